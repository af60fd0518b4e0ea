"""The process that sends a part of a schedule: `python -m trimtab.load.worker JOB RESULT`.

`processes` writes JOB (an .npz without pickles) and talks to this over pipes:

    stdout  "ready", then JSON lines {"sent": n, "done": n, "failed": n}, then "done"
    stdin   "start T" with T on time.monotonic(), which all processes share; "stop"; the end of
            stdin means that nobody waits for the result any more
"""

import asyncio
import gc
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.load.client import PROGRESS_SECONDS
from trimtab.load.drive import Drive, raise_descriptor_limit
from trimtab.load.plan import Plan, Target

__all__ = ["load_plan", "main", "save_plan"]


def save_plan(path: Path, plan: Plan, where: Target, timeout_seconds: float) -> None:
    """Write the job of one process."""
    pieces = [piece for pair in plan.payloads for piece in pair]
    about = {
        "host": where.host,
        "port": where.port,
        "authority": where.authority,
        "timeout_seconds": timeout_seconds,
    }
    np.savez(
        path,
        times=plan.times,
        payload=plan.payload,
        work_seconds=plan.work_seconds,
        bytes=np.frombuffer(b"".join(pieces), dtype=np.uint8),
        ends=np.cumsum([len(p) for p in pieces]),
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
    )


def load_plan(path: Path) -> tuple[Plan, Target, float]:
    """The plan, target and timeout that `save_plan` wrote."""
    with np.load(path, allow_pickle=False) as job:
        about = json.loads(job["about"].tobytes())
        everything, ends = job["bytes"].tobytes(), job["ends"].tolist()
        pieces = [everything[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        plan = Plan(
            times=job["times"],
            payload=job["payload"],
            work_seconds=job["work_seconds"],
            payloads=list(zip(pieces[::2], pieces[1::2], strict=True)),
        )
    where = Target(about["host"], about["port"], about["authority"])
    return plan, where, about["timeout_seconds"]


def _say(word: str | dict[str, int]) -> None:
    print(word if isinstance(word, str) else json.dumps(word), flush=True)


async def _send(job: Path, result: Path) -> None:
    plan, where, timeout_seconds = load_plan(job)
    job.unlink()  # nobody else would, if the parent were killed
    drive = Drive(plan, timeout_seconds=timeout_seconds)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    # The plan and the records live until the end: the collector need not visit them.
    gc.collect()
    gc.freeze()
    _say("ready")
    word = (await reader.readline()).split()
    if not word or word[0] != b"start":
        return
    stop = asyncio.Event()
    abandoned = False

    async def listen() -> None:
        nonlocal abandoned
        abandoned = not await reader.readline()
        stop.set()

    async def tell() -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            _say({"sent": drive.sent, "done": drive.done, "failed": drive.failed})

    others = [loop.create_task(listen()), loop.create_task(tell())]
    start = float(word[1])
    await asyncio.sleep(max(0.0, start - time.monotonic() - 0.002))
    await drive.run(where, start=start, stop=stop)
    for task in others:
        task.cancel()
    if abandoned:
        return
    _say({"sent": drive.sent, "done": drive.done, "failed": drive.failed})
    names = json.dumps(list(drive.peers)).encode()
    columns: dict[str, Any] = dict(drive.columns)
    np.savez(
        result, **columns, peers=np.frombuffer(names, dtype=np.uint8), sent=np.array(drive.sent)
    )
    _say("done")


def main(job: str, result: str) -> int:
    """Run one job; the exit status is 1 with a sentence on stderr when it could not be."""
    import uvloop

    # Ctrl-C reaches every process of a terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_descriptor_limit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_send(Path(job), Path(result)))
    except (TrimtabError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
