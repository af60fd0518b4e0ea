"""Service times out of busy time: right in the mean, honest about what they are worth."""

import numpy as np
import pytest

from trimtab.estimate import Estimator
from trimtab.model import CONCURRENCY_LEVELS, AddressCounters, PairCounters, Window
from trimtab.queued import QueuedWork

TRUE = np.array([0.015, 0.010, 0.060])
RATES = np.array([60.0, 30.0, 10.0])  # a second; 180% of one slot, 90% of two
NONE = np.zeros(3)


def lived(seconds: int, seed: int, rates=RATES) -> QueuedWork:
    """A server that did exponential work of three classes, a second a window."""
    rng = np.random.default_rng(seed)
    work = QueuedWork(3)
    for _ in range(seconds):
        done = rng.poisson(rates)
        busy = sum(rng.gamma(n, s) for n, s in zip(done, TRUE, strict=True) if n)
        work.add(1.0, busy, done.astype(float), 2.0)
    return work


@pytest.mark.parametrize("seed", range(5))
def test_busy_time_tells_service_times(seed: int) -> None:
    """Ten minutes of nothing but queued requests: each class within 4 of its own standard errors,
    the two heavy ones within 30%."""
    means, worth = lived(600, seed).means(NONE, NONE)
    assert all(abs(m - t) < 4 * m / np.sqrt(w) for m, t, w in zip(means, TRUE, worth, strict=True))
    assert means[[0, 2]] == pytest.approx(TRUE[[0, 2]], rel=0.3)


def test_worth_is_what_it_says() -> None:
    """Over sixty seeds the squared error of a mean is its square over its worth, within half."""
    found = [lived(120, seed).means(NONE, NONE) for seed in range(60)]
    means, worth = (np.array([f[n] for f in found]) for n in (0, 1))
    assert (worth[:, 2] > 0).all()
    normal = (means[:, 2] - TRUE[2]) ** 2 * worth[:, 2] / means[:, 2] ** 2
    assert 0.5 < normal.mean() < 1.5


def test_single_requests_come_first() -> None:
    """A class known from a thousand requests on free slots stays where it is, and sharpens what
    the busy time says of the others."""
    work = lived(60, 1)
    alone, _ = work.means(NONE, NONE)
    means, worth = work.means(np.array([1000.0, 1000.0, 0.0]), np.array([0.015, 0.010, 0.0]))
    assert means[:2] == pytest.approx(TRUE[:2], rel=0.1)
    assert worth[2] > work.means(NONE, NONE)[1][2]
    assert abs(means[2] - TRUE[2]) <= abs(alone[2] - TRUE[2])


def test_class_that_was_not_seen_has_nothing() -> None:
    """The prior alone is no evidence."""
    means, worth = lived(60, 1, np.array([60.0, 30.0, 0.0])).means(NONE, NONE)
    assert (means[2], worth[2]) == (0.0, 0.0)


def test_without_queueing_single_requests_pass_through() -> None:
    """A server that never queued says what its single requests say."""
    counts, means = np.array([5.0, 0.0, 2.0]), np.array([0.1, 0.0, 0.3])
    found, worth = QueuedWork(3).means(counts, means)
    assert found.tolist() == [0.1, 0.0, 0.3]
    assert worth.tolist() == counts.tolist()


def test_what_is_put_together_can_be_dropped() -> None:
    """A disturbed time leaves nothing behind, and forgetting empties."""
    work = QueuedWork(1)
    work.add(1.5, 100.0, np.array([50.0]), 1.0)
    work.skip()
    work.add(1.5, 1.0, np.array([50.0]), 1.0)
    assert work.empty
    work.add(1.5, 1.0, np.array([50.0]), 1.0)
    assert not work.empty
    assert work.means(np.zeros(1), np.zeros(1))[0][0] == pytest.approx(0.02, rel=0.01)
    work.forget(0.01)
    assert work.empty


def saturated(failures: int = 0, unplaced: int = 0) -> Window:
    """A second of two full servers of one slot, the second half as fast; nothing unqueued.
    `unplaced` requests more reached the first by nginx's own balancer."""
    zeros = (0,) * (CONCURRENCY_LEVELS - 5)

    def at(completions: int) -> AddressCounters:
        return AddressCounters(
            busy_seconds=1.0,
            completions_at=(0, 0, 0, 0, completions, *zeros),
            seconds_at=(0.0, 0.0, 0.0, 0.0, 1.0, *zeros),
        )

    return Window(
        seconds=1.0,
        pairs={
            "a": {
                "s1:1": PairCounters(requests=100 + failures + unplaced, failures=failures),
                "s2:1": PairCounters(requests=50),
            }
        },
        addresses={"s1:1": at(100), "s2:1": at(50)},
    )


def test_saturated_servers_are_known_all_the_same() -> None:
    """Where no request ever finds a free slot, rates follow from what is completed; a server whose
    requests fail shows nothing that way."""
    one = Estimator({"a": ["s1:1", "s2:1"]}, {"s1:1": 1, "s2:1": 1})
    for _ in range(30):
        one.update(saturated())
    found = one.estimates()
    assert found.rates["s1:1"] / found.rates["s2:1"] == pytest.approx(2.0, rel=0.05)
    assert found.service_time_seconds["a"] == pytest.approx(0.01 * 2**0.5, rel=0.05)
    other = Estimator({"a": ["s1:1", "s2:1"]}, {"s1:1": 1, "s2:1": 1})
    for _ in range(30):
        other.update(saturated(failures=900))
    assert "s1:1" not in other.estimates().rates


def test_requests_that_held_no_slot_in_the_counters_make_no_server_faster() -> None:
    """Where nginx's own balancer placed a part of the requests (an observation before the hook
    picks, or a hook that failed), the busy time is not theirs: such windows are left out."""
    one = Estimator({"a": ["s1:1", "s2:1"]}, {"s1:1": 1, "s2:1": 1})
    for second in range(30):
        one.update(saturated(unplaced=400 if second < 10 else 0))
    found = one.estimates()
    assert found.rates["s1:1"] / found.rates["s2:1"] == pytest.approx(2.0, rel=0.05)


def test_busy_time_in_the_wrong_unit_is_put_right() -> None:
    """What was counted as of one slot and is of two comes to the same as if counted right, and so
    does what follows."""
    wrong, right = QueuedWork(3), QueuedWork(3)
    rng = np.random.default_rng(2)
    for n in range(60):
        done = rng.poisson(RATES).astype(float)
        busy = sum(rng.gamma(d, s) for d, s in zip(done, TRUE, strict=True) if d)
        if n == 30:
            wrong.rescale(2.0)
        wrong.add(1.0, busy / (2 if n < 30 else 1), done, 2.0)
        right.add(1.0, busy, done, 2.0)
    assert wrong.means(NONE, NONE)[0] == pytest.approx(right.means(NONE, NONE)[0], rel=0.1)


def test_the_stretch_is_of_the_busy_time() -> None:
    """Means a quarter too long stretch what was done by a quarter, whatever lacks a mean."""
    work = lived(300, 3)
    assert work.stretch(1.25 * TRUE) == pytest.approx(1.25, rel=0.03)
    assert work.stretch(NONE) == 1.0
