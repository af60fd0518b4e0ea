"""Sends one schedule from several processes of its own, and merges what they recorded.

Each request belongs to process number (its place in the schedule) mod (number of processes), so
the schedule, and what is sent, is the same for any number of them.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from trimtab.errors import ConfigError, TrimtabError
from trimtab.load.client import Progress
from trimtab.load.drive import TIMEOUT_SECONDS
from trimtab.load.plan import plan, target
from trimtab.load.records import FIELDS, Records, merge
from trimtab.load.result import Result
from trimtab.load.schedule import Schedule
from trimtab.load.worker import save_plan

__all__ = ["MAX_PROCESSES", "run_processes", "send"]

# More processes than any machine of today has cores for this.
MAX_PROCESSES: Final = 256
# From "all are ready" to the first request: every process must have read the start time by then.
LEAD_SECONDS: Final = 0.1
# A process that was asked to stop has this long beyond its own grace to write its records.
STOP_SECONDS: Final = 30.0


class _Worker:
    """One process and what it last told."""

    def __init__(self, process: Process, result: Path) -> None:
        self.process = process
        self.result = result
        self.told = {"sent": 0, "done": 0, "failed": 0}

    async def line(self) -> str:
        """The next word that is not progress; raises when the process is gone."""
        assert self.process.stdout is not None  # noqa: S101 -- made with PIPE
        while line := await self.process.stdout.readline():
            if line.startswith(b"{"):
                self.told = json.loads(line)
            else:
                return line.decode().strip()
        assert self.process.stderr is not None  # noqa: S101 -- made with PIPE
        text = (await self.process.stderr.read()).decode(errors="replace").strip()
        status = await self.process.wait()
        last = text.splitlines()[-1] if text else f"exit status {status}"
        raise TrimtabError(f"a process of the load generator ended early: {last}; run it again")

    def write(self, text: str) -> None:
        """Send a line to the process, which may be gone."""
        assert self.process.stdin is not None  # noqa: S101 -- made with PIPE
        with contextlib.suppress(ConnectionError, RuntimeError):
            self.process.stdin.write(text.encode())

    async def end(self) -> None:
        """Kill the process if it is still there, and reap it."""
        if self.process.returncode is None:
            # Not process.kill(): that reaps a process that has just ended, and asyncio, which waits
            # for it in a thread, then complains of an unknown child.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        # asyncio closes a pipe only when it has been read to its end.
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                await pipe.read()
        if self.process.stdin is not None:
            self.process.stdin.close()


def _read(worker: _Worker, schedule: Schedule, places: np.ndarray) -> tuple[Records, int]:
    with np.load(worker.result, allow_pickle=False) as got:
        records = Records(
            classes=tuple(c.name for c in schedule.classes),
            peers=tuple(json.loads(got["peers"].tobytes())),
            class_index=schedule.class_index[places],
            intended=schedule.times[places],
            work_seconds=schedule.work_seconds[places],
            **{name: got[name] for name in FIELDS},
        )
        return records, int(got["sent"])


async def run_processes(
    schedule: Schedule,
    url: str,
    *,
    processes: int = 1,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_lag_seconds: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Send the schedule from `processes` child processes and return what became of it.

    As `client.run`, which sends from the calling process. `stop`, when set, ends the run early;
    cancelling this ends the children. Raises ConfigError for arguments that make no sense, and
    TrimtabError when a child dies.
    """
    where = target(url)
    if not 1 <= processes <= MAX_PROCESSES:
        raise ConfigError(f"{processes} processes; it must be from 1 to {MAX_PROCESSES}")
    whole = plan(schedule, where)
    places = [np.arange(p, len(schedule), processes) for p in range(processes)]
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="trimtab-load-") as directory:
        try:
            for number, rows in enumerate(places):
                job = Path(directory, f"job-{number}.npz")
                result = Path(directory, f"result-{number}.npz")
                save_plan(job, whole.part(rows), where, timeout_seconds)
                command = (sys.executable, "-m", "trimtab.load.worker", str(job), str(result))
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
                )
                workers.append(_Worker(process, result))
            await asyncio.gather(*(w.line() for w in workers))
            started_at = time.time() + LEAD_SECONDS
            start = time.monotonic() + LEAD_SECONDS
            for worker in workers:
                worker.write(f"start {start!r}\n")
            await _watch(workers, schedule, start, on_progress, stop)
            parts = [_read(w, schedule, r) for w, r in zip(workers, places, strict=True)]
        finally:
            for worker in workers:
                await worker.end()
    sent = np.zeros(len(schedule), dtype=np.bool_)
    for (_, count), rows in zip(parts, places, strict=True):
        sent[rows[:count]] = True
    records = merge([(r, p[0]) for p, r in zip(parts, places, strict=True)], len(schedule))
    return Result.of(
        schedule,
        records,
        url=where.url,
        started_at=started_at,
        processes=processes,
        sent=sent,
        max_lag_seconds=max_lag_seconds,
    )


async def _watch(
    workers: list[_Worker],
    schedule: Schedule,
    start: float,
    on_progress: Callable[[Progress], None] | None,
    stop: asyncio.Event | None,
) -> None:
    """Wait until every process is done, telling progress and passing on the stop."""
    waiting = {asyncio.ensure_future(w.line()) for w in workers}
    stopped_at = None
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=0.1, return_when="FIRST_EXCEPTION")
            for task in done:
                task.result()
            now = time.monotonic()
            if stop is not None and stop.is_set():
                if stopped_at is None:
                    stopped_at = now
                    for worker in workers:
                        worker.write("stop\n")
                elif now > stopped_at + STOP_SECONDS:
                    raise TrimtabError("the load generator's processes do not stop; killed them")
            if on_progress is not None:
                told = [w.told for w in workers]
                on_progress(
                    Progress(
                        elapsed_seconds=max(0.0, now - start),
                        seconds=schedule.seconds,
                        total=len(schedule),
                        sent=sum(t["sent"] for t in told),
                        done=sum(t["done"] for t in told),
                        failed=sum(t["failed"] for t in told),
                    )
                )
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def send(
    schedule: Schedule,
    url: str,
    *,
    processes: int = 1,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_lag_seconds: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """`run_processes` for a caller without an event loop."""
    return asyncio.run(
        run_processes(
            schedule,
            url,
            processes=processes,
            timeout_seconds=timeout_seconds,
            max_lag_seconds=max_lag_seconds,
            on_progress=on_progress,
        )
    )
