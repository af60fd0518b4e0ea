"""Polls a status page and appends a line a reading to a file, until it is told to end.

What a line holds is in `collected`, how a page is read in `vts`.
"""

import os
import select
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from trimtab.errors import ConfigError, SourceError, TrimtabError
from trimtab.sources import vts
from trimtab.sources.collected import RESERVED, line
from trimtab.sources.page import Page

__all__ = ["End", "LineFile", "collect"]

INTERVAL_SECONDS: Final = 0.5
# The first reading may take this long to succeed: whoever starts balancer and collector together
# need not order them.
FIRST_SECONDS: Final = 5.0


class End:
    """When to stop: at `end()`, when a process ends, or after some seconds; whichever is first.

    `end` may be called from a signal handler or another thread. Close it, or use it in `with`.
    Raises ConfigError when there is no process of that number.
    """

    def __init__(self, *, pid: int | None = None, seconds: float | None = None) -> None:
        self._until = None if seconds is None else time.monotonic() + seconds
        self._process = -1
        self._pid = pid
        if pid is not None:
            try:
                # A descriptor, unlike the number, cannot come to mean another process.
                self._process = os.pidfd_open(pid)
            except ProcessLookupError:
                raise ConfigError(f"there is no process {pid}; nothing was collected") from None
            except OSError as error:
                raise ConfigError(f"cannot watch process {pid}: {error.strerror}") from None
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)
        if self._process >= 0:
            self._poll.register(self._process, select.POLLIN)
        self.asked = False

    def end(self) -> None:
        """Stop as soon as possible."""
        self.asked = True
        os.write(self._write, b".")

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` (none when negative); True when it is time to stop."""
        if self._until is not None:
            left = self._until - time.monotonic()
            if left <= 0:
                return True
            seconds = min(seconds, left)
        if self._poll.poll(max(0.0, seconds) * 1000):
            return True
        return self._until is not None and time.monotonic() >= self._until

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the descriptors."""
        for descriptor in (self._read, self._write, self._process):
            if descriptor >= 0:
                os.close(descriptor)
        self._read = self._write = self._process = -1


class LineFile:
    """A file that only ever grows by whole lines.

    Raises ConfigError when it cannot be written, or ends inside a line (then it is not ours, or
    was cut: adding to it would make one broken line).
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.lines = 0
        self._fresh = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            if path.exists() and not path.is_file():
                flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC  # a pipe or a device
            self._file = os.open(path, flags, 0o666)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
        found = os.fstat(self._file)
        self._regular = stat.S_ISREG(found.st_mode)
        if overwrite and self._regular:
            os.ftruncate(self._file, 0)
        elif self._regular and found.st_size and self._last_byte(found.st_size) != b"\n":
            self.close()
            raise ConfigError(
                f"{path} does not end with a whole line: it is not a statistics file, or was "
                "cut; name another file, or --overwrite"
            )

    def _last_byte(self, size: int) -> bytes:
        return os.pread(self._file, 1, size - 1)

    def write(self, data: bytes) -> None:
        """Append one line, or nothing. Raises TrimtabError when there is no room for it."""
        size = os.fstat(self._file).st_size
        try:
            done = os.write(self._file, data)
            while done < len(data):
                done += os.write(self._file, data[done:])
        except OSError as error:
            if self._regular:
                os.ftruncate(self._file, size)
            raise TrimtabError(
                f"cannot write {self.path}: {error.strerror}; collecting ends, "
                f"{self.lines} whole lines were added"
            ) from None
        self.lines += 1

    def close(self) -> None:
        """Close the file; one that is new and got no line is removed."""
        os.close(self._file)
        if self._fresh and not self.lines:
            self.path.unlink(missing_ok=True)


def _counters(status: vts.Status) -> dict[tuple[str, str], float]:
    return {
        (group, s.server): s.numbers.get("requestCounter", 0)
        for group, servers in status.groups.items()
        for s in servers
    }


def collect(
    url: str,
    file: LineFile,
    end: End,
    *,
    interval_seconds: float = INTERVAL_SECONDS,
    first_seconds: float = FIRST_SECONDS,
    notify: Callable[[str], None],
) -> int:
    """Poll `url` into `file` until `end`; the number of lines added.

    Readings are due at whole intervals from the start; one that is missed is not made up for. A
    page that cannot be read is told once, and once that it can be again. Raises ConfigError when
    it cannot be read in the first `first_seconds`, or not before the end unless somebody asked
    for that, and TrimtabError when the file cannot be written.
    """
    started = time.monotonic()
    failing_since: float | None = None
    why = ""  # the last reading failed
    first, misses = True, 0  # nothing read yet; readings missed since the last one
    before: dict[tuple[str, str], float] = {}
    with Page(url, agent="trimtab-collect") as page:
        ended = False
        while True:
            began = time.monotonic()
            try:
                status = vts.read(page)
            except SourceError as error:
                misses += 1
                why = str(error)
                if first and began - started >= first_seconds:
                    raise ConfigError(f"{error}; nothing was collected") from None
                if failing_since is None and not first:
                    failing_since = began
                    notify(f"cannot read the statistics, trying on: {error}")
            else:
                file.write(line(status, time.time()))
                if first:
                    notify(f"reading {page.shown} every {interval_seconds:g} s into {file.path}")
                    for name in status.groups.keys() & set(RESERVED):
                        notify(f"group {name!r} is left out: that name is a key of the line")
                elif failing_since is not None:
                    lost = time.monotonic() - failing_since
                    notify(f"reading again after {lost:.1f} s; {misses} readings are missing")
                counters = _counters(status)
                if any(value < before.get(key, 0) for key, value in counters.items()):
                    notify("the counters began again: the balancer was restarted, or they reset")
                first, misses, failing_since, before = False, 0, None, counters
            if ended:
                return file.lines
            now = time.monotonic()
            due = started + interval_seconds * (1 + (now - started) // interval_seconds)
            ended = end.wait(due - now)
            if ended and first and not end.asked:
                raise ConfigError(f"{why}; nothing was collected")
            if ended and end.asked:
                return file.lines  # whoever asks does not want to wait for a last reading
