"""Histogram buckets with other bounds, as counts in Trimtab's own (`model.BUCKET_BOUNDS_SECONDS`).

nginx-module-vts counts cumulatively (requests up to a bound) with bounds of the operator's choice.
A coarse bucket is spread over the fine ones that it covers, evenly by the logarithm, one request
after another in a fixed order: each count then only grows as the coarse ones grow, so that
differences of two readings stay right.
"""

import functools
import math
from collections.abc import Sequence
from typing import Final

from trimtab.model import BUCKET_BOUNDS_SECONDS

__all__ = ["spread"]

_CELLS: Final = len(BUCKET_BOUNDS_SECONDS) + 1


def _cell(seconds: float) -> int:
    """The cell whose upper bound is nearest, by the logarithm."""
    if seconds <= BUCKET_BOUNDS_SECONDS[0]:
        return 0
    return min(round(2 * math.log2(seconds / BUCKET_BOUNDS_SECONDS[0])), _CELLS - 1)


@functools.lru_cache(maxsize=64)
def _covered(bounds_seconds: tuple[float, ...]) -> tuple[tuple[int, ...], ...]:
    """For each coarse bucket, and the one beyond the last bound, its cells from the middle out."""
    cells: list[tuple[int, ...]] = []
    first = 0
    for bound in bounds_seconds:
        last = _cell(bound)
        # A bucket narrower than a cell shares that cell.
        inside = list(range(min(first, last), last + 1))
        middle = (inside[0] + inside[-1]) / 2
        cells.append(tuple(sorted(inside, key=lambda c: (abs(c - middle), c))))
        first = last + 1
    # How far beyond is not known; the next cell claims the least.
    cells.append((min(first, _CELLS - 1),))
    return tuple(cells)


def spread(
    bounds_seconds: Sequence[float], cumulative: Sequence[int], requests: int
) -> tuple[int, ...]:
    """Counts in `BUCKET_BOUNDS_SECONDS` and one beyond.

    Args:
        bounds_seconds: upper bounds, rising.
        cumulative: requests up to each bound, since the buckets began.
        requests: requests in all; what the last bound does not hold is beyond it.

    Raises:
        ValueError: bounds do not rise, counts fall, or their numbers differ.
    """
    bounds = tuple(bounds_seconds)
    if len(bounds) != len(cumulative) or not bounds:
        raise ValueError(f"{len(cumulative)} counts for {len(bounds)} bounds")
    if any(b <= a for a, b in zip((0.0, *bounds), bounds, strict=False)):
        raise ValueError("bounds that do not rise")
    counts = [b - a for a, b in zip((0, *cumulative), cumulative, strict=False)]
    if min(counts) < 0:
        raise ValueError("cumulative counts that fall")
    # Negative after a reset that spared the buckets.
    counts.append(max(requests - cumulative[-1], 0))
    cells = [0] * _CELLS
    for count, covered in zip(counts, _covered(bounds), strict=True):
        for order, cell in enumerate(covered):
            cells[cell] += (count + len(covered) - 1 - order) // len(covered)
    return tuple(cells)
