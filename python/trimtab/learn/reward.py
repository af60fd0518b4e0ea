"""Reward: how well a window went, from the accumulated relative tardiness (ART) of its requests.

STATE   not used here
ACTION  the profile that was in force through the window
REWARD  −log(0.01 + ART / requests); 4.6 when nothing was late, 0 when a request was about one
        deadline late in the mean. The logarithm because ART over short windows is dominated by
        a few bursts (mean 0.27, sd 2.5 within one second); 0.01 because below one deadline's
        tardiness in a hundred requests differences are noise.
Source: the founding plan's ART, and the measurements on learning from it.
"""

import math
from collections.abc import Mapping
from typing import Final

from trimtab.model import BUCKET_BOUNDS_SECONDS, FAILED_TARDINESS, PairCounters, Window

__all__ = ["LEAST_REQUESTS", "art_per_request", "reward", "reward_at_most", "tardiness"]

FLOOR: Final = 0.01

# With fewer requests a single late one decides the reward.
LEAST_REQUESTS: Final = 50


def tardiness(of: PairCounters, deadline_seconds: float | None) -> float:
    """Accumulated relative tardiness of one class at one peer, no unit.

    What the balancer summed, where it did. A source that cannot know it leaves zero there: then
    from the buckets, each late one at its middle, and failures at 9.
    """
    # What is no number is not 0: it stays to be seen.
    if of.tardy or of.tardiness != 0 or deadline_seconds is None:
        return of.tardiness
    total = FAILED_TARDINESS * min(of.failures, of.requests)
    if len(of.buckets) == len(BUCKET_BOUNDS_SECONDS) + 1:
        bounds = (0.0, *BUCKET_BOUNDS_SECONDS)
        for index, count in enumerate(of.buckets):
            # A bucket that straddles the deadline is not known to be late.
            if count and bounds[index] >= deadline_seconds:
                high = bounds[min(index + 1, len(bounds) - 1)]
                middle = (bounds[index] + high) / 2
                total += count * (middle - deadline_seconds) / deadline_seconds
    return total


def art_per_request(of: Window, deadlines: Mapping[str, float]) -> float | None:
    """ART of a window per finished request; None without any."""
    requests = of.requests
    if not requests:
        return None
    total = sum(
        tardiness(pair, deadlines.get(name))
        for name, peers in of.pairs.items()
        for pair in peers.values()
    )
    return total / requests


def reward(of: Window, deadlines: Mapping[str, float]) -> float | None:
    """The reward of a window; None when it had too few requests to mean something."""
    if of.requests < LEAST_REQUESTS:
        return None
    art = art_per_request(of, deadlines)
    return None if art is None or not math.isfinite(art) else -math.log(FLOOR + art)


def reward_at_most(of: Window, deadlines: Mapping[str, float], seconds: float) -> float | None:
    """The most that a window of that length can come to that began like `of`: if no further
    request were late, and they came as before. None as for `reward`."""
    if of.requests < LEAST_REQUESTS:
        return None
    art = art_per_request(of, deadlines)
    if art is None or not math.isfinite(art):
        return None
    return -math.log(FLOOR + art * min(of.seconds / seconds, 1.0))
