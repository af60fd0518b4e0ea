"""The square-root rule against what it minimises."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.actuators.square_root import square_root_shares

CAPACITIES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2), st.floats(0.01, 100), min_size=1, max_size=6
)


def mean_response(capacities: dict[str, float], arrivals: dict[str, float]) -> float:
    """Mean response time of M/M/1 queues, times the arrival rate."""
    return sum(a / (capacities[s] - a) for s, a in arrivals.items())


def test_no_other_split_is_better() -> None:
    """Among all splits of the load on a fine grid none has a smaller mean response time."""
    capacities = {"a": 1.0, "b": 2.0, "c": 4.0}
    load = 0.7 * 7
    shares = square_root_shares(capacities, 0.7)
    total = sum(shares.values())
    best = mean_response(capacities, {s: load * v / total for s, v in shares.items()})
    steps = 200
    for one, two in itertools.product(range(1, steps), repeat=2):
        split = {"a": load * one / steps, "b": load * two / steps}
        split["c"] = load - split["a"] - split["b"]
        if split["c"] > 0 and all(split[s] < capacities[s] for s in split):
            assert mean_response(capacities, split) >= best * (1 - 1e-9)


@given(capacities=CAPACITIES, load=st.floats(0.01, 0.99))
def test_every_server_has_a_share_that_it_can_take(
    capacities: dict[str, float], load: float
) -> None:
    """Shares are positive and finite, and without tiny ones they add up to the load."""
    shares = square_root_shares(capacities, load)
    assert list(shares) == list(capacities)
    assert all(math.isfinite(v) and v > 0 for v in shares.values())
    arrivals = load * sum(capacities.values())
    assert arrivals * (1 - 1e-9) <= sum(shares.values()) <= arrivals * 1.021


@given(capacities=CAPACITIES, load=st.floats(0.01, 0.99), scale=st.floats(0.01, 100))
def test_only_ratios_of_capacities_matter(
    capacities: dict[str, float], load: float, scale: float
) -> None:
    """Measured in other units the shares are in the same ratios."""
    one = square_root_shares(capacities, load)
    other = square_root_shares({s: c * scale for s, c in capacities.items()}, load)
    for server in one:
        assert other[server] == pytest.approx(one[server] * scale, rel=1e-6)


@pytest.mark.parametrize(("capacity", "load"), [(0.0, 0.5), (math.nan, 0.5), (1.0, 1.0), (1, 0)])
def test_what_makes_no_sense_is_refused(capacity: float, load: float) -> None:
    """Capacities are above 0 and the load is between 0 and 1."""
    with pytest.raises(ValueError):
        square_root_shares({"a": capacity}, load)
