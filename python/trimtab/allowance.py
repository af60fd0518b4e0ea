"""What a profile that has not proven itself may cost: a share of what is late anyway.

Each decision window of neutral earns a share of its tardiness, and what an unproven profile is
late beyond neutral's mean, request for request, is paid out of it; what it is late less is earned.
Who has nothing left is broken off, after seconds where it is several times as bad as neutral. What
it was late beyond that, in the seconds until it was seen, is owed: trials rest until neutral has
earned it back. So
trials, however many and of whatever, cost at most that share in the long run, and a profile that
is better is hardly ever broken off: it earns on the way.

Pure: sums in, a verdict out. Tardiness is relative, in deadlines, as in `learn.reward`.
"""

from collections.abc import Sequence
from typing import Final

__all__ = ["OWED", "Allowance"]

# Why trials rest.
OWED: Final = "trials have cost more than they may"

# Of neutral's tardiness. The aim is 5% at most in all: two from here and some that is chance.
SHARE: Final = 0.02

# Never more at hand than this part of a usual window of neutral.
MOST_WINDOWS: Final = 0.3

# Nor more owed: at 2% a window, that is earned back in 25.
MOST_OWED_WINDOWS: Final = 0.5

# Half of what a failed request counts: a single one does not end a trial.
LEAST_TARDINESS: Final = 5.0

# Neutral's windows are remembered over about this many, as in `trials`.
MEMORY: Final = 20


class Allowance:
    """The account. `left` is in deadlines, below 0 what is owed."""

    def __init__(self) -> None:
        self.left = 0.0
        self._windows = 0
        self._art = 0.0  # per request, of neutral
        self._usual = 0.0  # tardiness of a window of neutral

    def earn(self, tardiness: float, requests: float) -> None:
        """A whole window of neutral."""
        self._windows += 1
        step = max(1 / self._windows, 1 / MEMORY)
        self._art += step * (tardiness / requests - self._art)
        self._usual += step * (tardiness - self._usual)
        self._add(SHARE * tardiness)

    def exceeded(self, tardiness: float, requests: float) -> bool:
        """Whether an unproven profile that was so late until now may not go on."""
        return tardiness - requests * self._art > self.left + LEAST_TARDINESS

    @property
    def owed(self) -> bool:
        """Whether trials have cost more than they may."""
        return self.left < 0.0

    def pay(self, tardiness: float, requests: float) -> None:
        """A window of an unproven profile has ended."""
        self._add(requests * self._art - tardiness)

    def _add(self, tardiness: float) -> None:
        least, most = -MOST_OWED_WINDOWS * self._usual, MOST_WINDOWS * self._usual
        self.left = min(max(self.left + tardiness, least), most)

    def to_state(self) -> list[float]:
        """As JSON-able data."""
        return [self.left, self._windows, self._art, self._usual]

    @classmethod
    def of_state(cls, state: Sequence[float]) -> "Allowance":
        """What `to_state` gave. Raises TypeError or ValueError for another shape."""
        left, windows, art, usual = (float(v) for v in state)
        sane = all(0 <= v < 1e12 for v in (windows, art, usual)) and abs(left) < 1e12
        if not sane:
            raise ValueError(f"an allowance of {state!r}")
        one = cls()
        one.left, one._windows, one._art, one._usual = left, int(windows), art, usual
        return one
