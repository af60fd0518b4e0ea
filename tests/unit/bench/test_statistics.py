"""Medians and paired ratios."""

import math

import numpy as np
import pytest

from trimtab.bench.statistics import Ratio, median, paired_ratio


def test_ratio_by_hand() -> None:
    """Ratios 1/2, 1/4 and 1/8: mean 1/4, and Student's 4.303 with two degrees of freedom."""
    found = paired_ratio({1: 1.0, 2: 1.0, 3: 1.0}, {1: 2.0, 2: 4.0, 3: 8.0})
    assert found is not None
    assert found.pairs == 3
    assert found.mean == pytest.approx(0.25)
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert found.low == pytest.approx(0.25 * math.exp(-half), rel=1e-5)
    assert found.high == pytest.approx(0.25 * math.exp(half), rel=1e-5)


def test_only_seeds_of_both_are_paired() -> None:
    """A seed that one of them lacks is left out; without a common one there is no ratio."""
    found = paired_ratio({1: 3.0, 2: 5.0}, {2: 10.0, 3: 1.0})
    assert found is not None
    assert (found.pairs, found.mean) == (1, pytest.approx(0.5))
    assert math.isnan(found.low)
    assert paired_ratio({1: 3.0}, {2: 3.0}) is None


def test_zero_needs_the_floor() -> None:
    """An ART of 0 has a ratio only with the floor on both sides."""
    assert paired_ratio({1: 0.0}, {1: 10.0}) is None
    found = paired_ratio({1: 0.0}, {1: 0.9}, floor=0.1)
    assert found is not None
    assert found.mean == pytest.approx(0.1)


def test_pairing_sees_what_the_seeds_hide() -> None:
    """Seeds differ by a factor of 50, the balancers by 10%: the interval finds the 10%."""
    rng = np.random.default_rng(1)
    base = {seed: float(np.exp(rng.normal(3, 2))) for seed in range(8)}
    better = {seed: 0.9 * v * float(np.exp(rng.normal(0, 0.02))) for seed, v in base.items()}
    found = paired_ratio(better, base)
    assert found is not None
    assert 0.85 < found.low < 0.9 < found.high < 0.95


def test_the_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    """5 seeds, 2000 repetitions: coverage between 93% and 97%."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(2000):
        values = {k: float(np.exp(rng.normal(0.5, 0.7))) for k in range(5)}
        found = paired_ratio(values, dict.fromkeys(range(5), 1.0))
        assert found is not None
        inside += found.low <= math.exp(0.5) <= found.high
    assert 0.93 < inside / 2000 < 0.97


def test_median() -> None:
    """Of nothing it is NaN."""
    assert median({1: 5.0, 2: 1.0, 3: 2.0}) == 2.0
    assert math.isnan(median({}))


def test_a_ratio_is_short() -> None:
    """Two seeds may give an interval of six digits, of which nobody needs more than three."""
    assert str(Ratio(mean=0.5, low=0.25, high=1.0, pairs=3)) == "0.50 [0.25, 1.00]"
    assert str(Ratio(mean=116.75, low=0.001, high=476168.48, pairs=2)) == "117 [0.00, >999]"
    assert str(Ratio(mean=2.0, low=math.nan, high=math.nan, pairs=1)) == "2.00"
