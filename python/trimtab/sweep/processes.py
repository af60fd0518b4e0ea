"""A sweep over processes of this machine.

The processes are spawned, as forks of a process with threads (numba's, BLAS's) can hang, and each
has a pipe of its own, so that a dead one is told from a busy one at once, with the job that it had.
Ctrl-C reaches this process alone, which ends the others; should it be killed itself, they end at
their next word to it. Source: multiprocessing, "Contexts and start methods".
"""

import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from pickle import PickleError
from typing import Any, Final, Self, TypeVar

from trimtab.errors import TrimtabError
from trimtab.sweep.jobs import Heard, Job, JobError, Told, attempt, quiet

__all__ = ["MOST", "Processes"]

A = TypeVar("A")
R = TypeVar("R")

# More than any machine of today has cores.
MOST: Final = 1024

# A job tells how it goes so often at most: as often as a bar needs it.
TELL_SECONDS: Final = 0.2

# From SIGTERM to SIGKILL: a job removes its files, but does not go on.
GRACE_SECONDS: Final = 10.0

# A process that closed its pipe ends within this.
DEATH_SECONDS: Final = 10.0

_SPAWN: Final = multiprocessing.get_context("spawn")

# What a process says: how its job goes, its result, or what it raised.
_TOLD, _DONE, _FAILED = "told", "done", "failed"


class _Worker:
    """One process, and the number of the job that it has; None when it is idle."""

    def __init__(self) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(theirs,), daemon=True)
        # Or the tracker's own start would let signals through again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.job: int | None = None

    def obituary(self) -> str:
        """How it ended."""
        self.process.join(DEATH_SECONDS)
        status = self.process.exitcode
        if status is None or status >= 0:
            return f"its process ended with status {status}"
        name = signal.Signals(-status).name
        if -status != signal.SIGKILL:
            return f"its process was ended by {name}"
        return (
            f"its process was ended by {name}; if nobody sent that, memory ran out: a smaller "
            "--jobs needs less"
        )

    def end(self) -> None:
        """Wait for it to end, as asked with SIGTERM, or end it."""
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        self.process.close()


class Processes:
    """Does as many jobs at once; a `Sweep`. Processes are started when there are jobs for them, and
    kept for the next ones."""

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self._workers: list[_Worker] = []

    def map(
        self, function: Callable[[A, Told], R], jobs: Sequence[Job[A]], heard: Heard = quiet
    ) -> Iterator[R]:
        """See `Sweep`. Raises TrimtabError also when a process is killed."""
        results: dict[int, R] = {}
        running: dict[int, tuple[float, str]] = {}
        begun, done = 0, 0.0
        while len(self._workers) < min(self.parallel, len(jobs)):
            self._workers.append(_Worker())
        try:
            for first in range(len(jobs)):
                while first not in results:
                    for worker in self._workers:
                        if worker.job is None and begun < len(jobs):
                            self._give(worker, begun, function, jobs[begun])
                            running[begun] = (0.0, "")
                            begun += 1
                    for number, kind, said in self._said(jobs):
                        if kind == _TOLD:
                            running[number] = said
                            continue
                        results[number] = said
                        del running[number]
                        done += jobs[number].seconds
                    heard(
                        jobs[min(running, default=first)].label,
                        done + sum(seconds for seconds, _ in running.values()),
                        running[min(running)][1] if running else "",
                    )
                yield results.pop(first)
        finally:
            # What was begun in vain would be in the way of the next ones.
            if any(worker.job is not None for worker in self._workers):
                self.close()

    def _give(
        self, worker: _Worker, number: int, function: Callable[[A, Told], R], job: Job[A]
    ) -> None:
        worker.job = number
        with contextlib.suppress(ConnectionError):  # it is dead: `_said` finds that, and says it
            worker.connection.send((function, job))

    def _said(self, jobs: Sequence[Job[A]]) -> Iterator[tuple[int, str, Any]]:
        """What the processes say, waiting for one of them. Raises what a job raised."""
        busy = {w.connection: w for w in self._workers if w.job is not None}
        for ready in connection.wait(list(busy)):
            assert isinstance(ready, Connection)  # noqa: S101 -- as given
            worker = busy[ready]
            number = worker.job
            assert number is not None  # noqa: S101 -- it is busy
            try:
                kind, said = ready.recv()
            except (EOFError, ConnectionError):
                raise TrimtabError(f"{jobs[number].label}: {worker.obituary()}") from None
            if kind == _FAILED:
                raise said
            if kind == _DONE:
                worker.job = None
            yield number, kind, said

    def close(self) -> None:
        """End all processes; a later `map` starts new ones."""
        for worker in self._workers:
            worker.process.terminate()
        while self._workers:
            self._workers.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _Leave:
    """SIGTERM ends a process as a program ends, so that what a job keeps in files is removed: at
    once where it waits for a job, else where the job next tells how it goes. Wherever it is then,
    an exception might be lost: in a function that C calls back it is printed and forgotten."""

    def __init__(self) -> None:
        self.has_job = False
        self._is_asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self._is_asked = True
        if not self.has_job:
            self.if_asked()

    def if_asked(self) -> None:
        """End, if that was asked for."""
        if self._is_asked:
            sys.exit(128 + signal.SIGTERM)


def _work(pipe: Connection) -> None:
    """What a process does: the jobs that come, until the pipe closes or SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave = _Leave()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            function, job = pipe.recv()
            leave.has_job = True
            try:
                answer = (_DONE, attempt(function, job, _teller(pipe, leave)))
            except TrimtabError as error:
                answer = (_FAILED, error)
            try:
                pipe.send(answer)
            except (TypeError, AttributeError, PickleError) as error:
                pipe.send((_FAILED, JobError(f"{job.label}: its result cannot be sent: {error}")))
            leave.has_job = False
            leave.if_asked()


def _teller(pipe: Connection, leave: _Leave) -> Told:
    last = -TELL_SECONDS

    def told(seconds: float, note: str) -> None:
        nonlocal last
        leave.if_asked()
        now = time.monotonic()
        if now - last >= TELL_SECONDS:
            last = now
            pipe.send((_TOLD, (seconds, note)))

    return told
