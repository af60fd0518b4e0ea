"""Response times of the requests in a window: mean, standard deviation, percentiles."""

import math

from trimtab.model import BUCKET_BOUNDS_SECONDS, PairCounters

__all__ = ["mean_seconds", "percentile_seconds", "std_seconds"]


def mean_seconds(of: PairCounters) -> float | None:
    """Mean response time; None without a finished request."""
    return of.response_time_seconds / of.requests if of.requests else None


def _bucket_edges(index: int) -> tuple[float, float]:
    low = BUCKET_BOUNDS_SECONDS[index - 1] if index else 0.0
    high = BUCKET_BOUNDS_SECONDS[min(index, len(BUCKET_BOUNDS_SECONDS) - 1)]
    return low, high


def std_seconds(of: PairCounters) -> float | None:
    """Standard deviation of the response times (of the population); None when it is unknown.

    From the sum of squares, or else from the buckets, each at its middle (12% off at most within
    a bucket of half an octave).
    """
    if of.requests and of.response_time_squared > 0:
        mean = of.response_time_seconds / of.requests
        return math.sqrt(max(of.response_time_squared / of.requests - mean * mean, 0.0))
    count = sum(of.buckets)
    if len(of.buckets) != len(BUCKET_BOUNDS_SECONDS) + 1 or not count:
        return None
    middles = [sum(_bucket_edges(b)) / 2 for b in range(len(of.buckets))]
    mean = sum(n * m for n, m in zip(of.buckets, middles, strict=True)) / count
    square = sum(n * (m - mean) ** 2 for n, m in zip(of.buckets, middles, strict=True)) / count
    return math.sqrt(square)


def percentile_seconds(of: PairCounters, ratio: float) -> float | None:
    """The response time that `ratio` (0 to 1) of the requests did not exceed; None when unknown.

    Interpolated within a bucket; the last bucket has no upper bound and gives its lower one.
    """
    count = sum(of.buckets)
    if len(of.buckets) != len(BUCKET_BOUNDS_SECONDS) + 1 or not count:
        return None
    wanted = ratio * count
    below = 0
    for index, inside in enumerate(of.buckets):
        if inside and below + inside >= wanted:
            low, high = _bucket_edges(index)
            return low + (high - low) * max(wanted - below, 0.0) / inside
        below += inside
    return BUCKET_BOUNDS_SECONDS[-1]
