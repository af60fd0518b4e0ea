"""Reward: the logarithm of ART per request, from sums or from buckets."""

import math

import pytest

from trimtab.learn.reward import LEAST_REQUESTS, art_per_request, reward, tardiness
from trimtab.model import BUCKET_BOUNDS_SECONDS, PairCounters, Window

BUCKETS = len(BUCKET_BOUNDS_SECONDS) + 1


def window(**pair) -> Window:
    """One second of one class at one peer."""
    return Window(seconds=1.0, pairs={"a": {"s1:1": PairCounters(**pair)}})


def test_reward_is_minus_the_logarithm_of_art_per_request() -> None:
    """0 lateness gives −log 0.01; one deadline a request about 0; more is worse."""
    assert reward(window(requests=100), {"a": 0.1}) == pytest.approx(-math.log(0.01))
    one = reward(window(requests=100, tardiness=100.0, tardy=50), {"a": 0.1})
    assert one == pytest.approx(-math.log(1.01))
    worse = reward(window(requests=100, tardiness=900.0, tardy=100), {"a": 0.1})
    assert worse is not None
    assert worse < one


def test_too_little_traffic_has_no_reward() -> None:
    """Below fifty requests one late request would decide."""
    assert reward(window(requests=LEAST_REQUESTS - 1, tardiness=5.0, tardy=1), {}) is None
    assert reward(window(), {}) is None
    assert art_per_request(window(), {}) is None


def test_tardiness_falls_back_to_buckets() -> None:
    """Without a sum from the balancer, late buckets count at their middle and failures as 9; the
    bucket that holds the deadline is not known to be late."""
    buckets = [0] * BUCKETS
    late = next(b for b, bound in enumerate(BUCKET_BOUNDS_SECONDS) if bound > 0.2)
    buckets[late - 2], buckets[late], buckets[late + 2] = 7, 5, 10
    deadline = (BUCKET_BOUNDS_SECONDS[late - 1] + BUCKET_BOUNDS_SECONDS[late]) / 2
    pair = PairCounters(requests=30, failures=2, buckets=tuple(buckets))
    middle = (BUCKET_BOUNDS_SECONDS[late + 1] + BUCKET_BOUNDS_SECONDS[late + 2]) / 2
    expected = 18.0 + 10 * (middle - deadline) / deadline
    assert tardiness(pair, deadline) == pytest.approx(expected)
    assert tardiness(pair, None) == 0.0


def test_sum_from_the_balancer_comes_first() -> None:
    """What the balancer summed is exact, and used as it is."""
    buckets = (0,) * (BUCKETS - 1) + (10,)
    pair = PairCounters(requests=10, tardiness=4.0, tardy=2, buckets=buckets)
    assert tardiness(pair, 0.01) == 4.0
