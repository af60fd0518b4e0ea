"""Child processes that never outlive us: start, watch, stop.

Each child is a session of its own, so that Ctrl-C in a terminal reaches us alone and we end the
children in order; the kernel ends them if we are killed (prctl(2), PR_SET_PDEATHSIG).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from trimtab.errors import TrimtabError

__all__ = ["Child"]

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# Lines of a dead child's log that its obituary quotes: enough for a Python traceback's end.
_TAIL_LINES: Final = 8


def _die_with_parent(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the prctl
            os._exit(143)

    return prepare


class Child:
    """One child process; use as a context manager.

    Args:
        name: what messages call it.
        argv: program and arguments; no shell is involved.
        log: file that takes its standard output and error, appended.
        environment: variables set on top of ours.

    Raises TrimtabError when the program cannot be started.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_die_with_parent(os.getpid()),
                    env={**os.environ, **(environment or {})},
                )
        except OSError as error:
            raise TrimtabError(f"cannot start {name} ({argv[0]}): {error}") from None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def check(self) -> None:
        """Raise TrimtabError, quoting the end of its log, if it has ended."""
        status = self._process.poll()
        if status is not None:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise TrimtabError(f"{self.name} ended with {how}: {self._tail()}")

    def _tail(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return "\n    ".join([f"the end of {self.log}:", *lines[-_TAIL_LINES:]])

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> None:
        """Poll `ready` until it is true. Raises TrimtabError when the child dies or time is up."""
        end = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise TrimtabError(f"{self.name} is not ready after {seconds:g} s; {self._tail()}")
            time.sleep(0.05)

    def stop(self, *, grace_seconds: float = 5.0) -> int:
        """Ask it to end (SIGTERM), then kill its session; return its exit status."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                self._kill_session()
        return self._process.wait()

    def _kill_session(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
