"""What commands draw on a terminal: a progress bar and plain tables.

On anything but a terminal the bar becomes a plain line now and then, and nothing is coloured.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

__all__ = ["Progress", "columns", "fitted", "table"]


# From ten minutes on nobody counts seconds.
_MANY_SECONDS = 600


class Progress:
    """A progress bar over a known number of seconds; use as a context manager.

    Args:
        total_seconds: length of the whole, in the unit that `update` is given.
        stream: where to draw; a bar if it is a terminal, else a line each `line_seconds`.
        line_seconds: least time between two plain lines.
        unit: of what is left, as the text says it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        total_seconds: float,
        *,
        unit: str = "s",
        stream: TextIO | None = None,
        line_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = max(total_seconds, 1e-9)
        self._stream = sys.stderr if stream is None else stream
        self._bar = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._line_seconds = line_seconds
        self._unit = unit
        self._clock = clock
        self._drawn_at = -1e9
        self._label = ""
        self._width = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove the bar, so that other text can be written."""
        if self._bar and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

    def say(self, text: str) -> None:
        """Write a whole line above the bar."""
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def update(self, done_seconds: float, label: str, note: str = "") -> None:
        """Draw `label`, the share done and `note`; a new label is always drawn at once."""
        now = self._clock()
        # Ten drawings a second look smooth and cost nothing.
        least = 0.1 if self._bar else self._line_seconds
        if label == self._label and now - self._drawn_at < least:
            return
        self._label, self._drawn_at = label, now
        done = min(max(done_seconds, 0.0), self._total)
        left = self._total - done
        text = f"{label:<14} {done / self._total:4.0%}  {_left(left, self._unit)} left  {note}"
        if not self._bar:
            self._stream.write(text.rstrip() + "\n")
            self._stream.flush()
            return
        columns = shutil.get_terminal_size().columns
        room = columns - len(text) - 4
        if room >= 10:
            cells = min(room, 40)
            full = round(cells * done / self._total)
            text = f"[{'#' * full}{'.' * (cells - full)}] {text}"
        text = text[: columns - 1]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)


def _left(left: float, unit: str) -> str:
    """What is left; many seconds as minutes, which is how people wait."""
    if unit != "s" or left < _MANY_SECONDS:
        return f"{left:4.0f} {unit}"
    hours, minutes = divmod(round(left / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> str:
    """A plain table: the first column and any of words to the left, numbers to the right.

    A row of no cells draws an empty line. Every other row has a cell for each header.
    """
    widths = [max([len(header[c]), *(len(r[c]) for r in rows if r)]) for c in range(len(header))]
    left = [all(not r or not r[c][:1].isdigit() for r in rows) for c in range(len(header))]
    left[0] = True

    def line(cells: Sequence[str]) -> str:
        parts = (
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(cells, widths, left, strict=True)
        )
        return (indent + "  ".join(parts)).rstrip()

    rule = indent + "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *(line(r) if r else "" for r in rows)])


def columns() -> int | None:
    """Width of the terminal; None when the output goes elsewhere and nobody says (COLUMNS)."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return None


def fitted(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    expendable: Sequence[int],
    width: int | None,
    *,
    indent: str = "",
) -> str:
    """A table within `width` columns, with a line on what was left out for that.

    `expendable` are the numbers of the columns that may go, the first first; None: all stay.
    """
    kept = list(range(len(header)))
    spare = iter(expendable)
    while True:
        of_kept = [[row[c] for c in kept] if row else [] for row in rows]
        text = table([header[c] for c in kept], of_kept, indent=indent)
        if width is None or max(map(len, text.splitlines())) <= width:
            break
        last = next(spare, None)
        if last is None:
            break
        kept.remove(last)
    left_out = ", ".join(name for c, name in enumerate(header) if c not in kept)
    return f"{text}\n{indent}(no room for {left_out})" if left_out else text
