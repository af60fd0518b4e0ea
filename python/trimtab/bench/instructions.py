"""Instructions that processes execute, counted by `perf stat` where the machine can.

Many virtual machines cannot; `uncounted` says why, and `callgrind` counts there.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Final, Self

__all__ = ["Counter", "count", "uncounted"]

# What perf counts: the kernel's share of a request is the same for all, and large.
_EVENT: Final = "instructions:u"


@cache
def uncounted() -> str:
    """Why instructions cannot be counted on this machine; empty when they can."""
    if shutil.which("perf") is None:
        return "there is no perf: apt-get install --no-install-recommends linux-perf"
    try:
        done = subprocess.run(
            ["perf", "stat", "-x,", "-e", _EVENT, "true"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"perf does not run: {error}"
    if done.returncode == 0 and count(done.stderr) is not None:
        return ""
    if "<not " in done.stderr:
        return "this machine gives perf no counter of instructions"
    said = done.stderr.strip().splitlines()
    return f"perf says {said[-1][:100] if said else 'nothing'!r}"


def count(text: str) -> int | None:
    """The count in what `perf stat -x,` writes; None for one that it does not support."""
    for line in text.splitlines():
        cells = line.split(",")
        if len(cells) > 2 and cells[2].startswith("instructions") and cells[0].isdigit():
            return int(cells[0])
    return None


class Counter:
    """Counts the instructions of processes while a command runs that `prefix` starts.

    Use as a context manager. Where nothing can be counted the prefix is empty.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._written = tempfile.NamedTemporaryFile("r", suffix=".perf")  # noqa: SIM115 -- __exit__
        self.prefix: tuple[str, ...] = ()
        if not uncounted():
            of = ",".join(map(str, pids))
            name = self._written.name
            self.prefix = ("perf", "stat", "-x,", "-e", _EVENT, "-o", name, "-p", of)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._written.close()

    def counted(self) -> int | None:
        """The instructions, after the command; None when not countable."""
        return count(self._written.read()) if self.prefix else None
