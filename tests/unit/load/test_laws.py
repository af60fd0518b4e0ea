"""The laws of the gaps: their mean, their variation, what truncation does."""

import numpy as np
import pytest

from trimtab.load.laws import LAWS, stream, unit_gaps

# Deviation over mean, from each law's formula.
VARIATION = {"exp": 1.0, "fixed": 0.0, "norm": 0.4583, "zipf": 1.1544}


def gaps(law: str, seed: int = 1, count: int = 400_000) -> np.ndarray:
    """Many gaps; the first of a fixed law is its random phase and is left out."""
    return unit_gaps(law, stream(seed, "a", "arrivals"), count)[1:]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_law_has_mean_one(law: str, seed: int) -> None:
    """The mean gap is 1 within four standard errors, for each law and several seeds."""
    drawn = gaps(law, seed)
    error = VARIATION[law] / np.sqrt(len(drawn))
    assert abs(drawn.mean() - 1) <= 4 * error + 1e-12


@pytest.mark.parametrize("law", LAWS)
def test_every_law_varies_as_documented(law: str) -> None:
    """Deviation over mean is 1, 0, 0.458 and 1.154 for exp, fixed, norm and zipf."""
    drawn = gaps(law)
    assert drawn.std() == pytest.approx(VARIATION[law], rel=0.02, abs=1e-12)


def test_no_gap_is_negative() -> None:
    """The normal law is truncated at zero: no gap lies below, where 2.3% would."""
    assert gaps("norm").min() > 0


def test_truncation_takes_what_lies_below_zero() -> None:
    """Before the scaling back, the truncated normal's mean is 1.0276 times the normal's."""
    rng = np.random.default_rng(5)
    plain = rng.normal(1, 0.5, 400_000)
    kept = plain[plain > 0]
    assert kept.mean() == pytest.approx(1.0276, abs=0.003)
    drawn = gaps("norm")
    for share in (0.05, 0.5, 0.95):
        expected = np.quantile(kept / kept.mean(), share)
        assert np.quantile(drawn, share) == pytest.approx(expected, abs=0.01)


def test_zipf_gaps_are_ranks() -> None:
    """A zipf gap is a whole number from 1 to 100 times one unit, rank 1 in 83% of the cases."""
    drawn = gaps("zipf")
    ranks = drawn / drawn.min()
    assert np.allclose(ranks, np.rint(ranks))
    assert round(ranks.max()) <= 100
    assert (np.rint(ranks) == 1).mean() == pytest.approx(0.8319, abs=0.003)
    assert (np.rint(ranks) == 2).mean() == pytest.approx(0.8319 / 8, abs=0.003)


def test_fixed_starts_at_a_random_phase() -> None:
    """Classes of one fixed rate do not send at the same instants: each has a phase of its own."""
    phases = [unit_gaps("fixed", stream(1, name), 10.0)[0] for name in "abcdef"]
    assert len(set(phases)) == 6
    assert all(0 <= p < 1 for p in phases)


@pytest.mark.parametrize("law", LAWS)
def test_a_longer_draw_begins_like_a_shorter_one(law: str) -> None:
    """How many gaps are needed does not change their values."""
    short = unit_gaps(law, stream(7, "a"), 100)
    long = unit_gaps(law, stream(7, "a"), 30_000)
    assert np.array_equal(short, long[: len(short)])


def test_streams_are_named() -> None:
    """A stream depends on its seed and on all of its names, and on nothing else."""
    first = stream(1, "a", "arrivals").random(4)
    assert np.array_equal(first, stream(1, "a", "arrivals").random(4))
    for other in (stream(2, "a", "arrivals"), stream(1, "b", "arrivals"), stream(1, "aarrivals")):
        assert not np.array_equal(first, other.random(4))
