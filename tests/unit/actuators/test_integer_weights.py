"""Integer weights: ratios within 1%, small, never 0."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.actuators.integer_weights import MAX_WEIGHT_RATIO, integer_weights

WEIGHTS = st.dictionaries(
    st.text(min_size=1, max_size=5), st.floats(1e-3, 1e1), min_size=1, max_size=30
)


@given(WEIGHTS)
def test_ratios_are_kept_within_one_percent(weights: dict[str, float]) -> None:
    """For any weights less than the largest ratio apart, every ratio is right within 1%."""
    whole = integer_weights(weights)
    assert whole.keys() == weights.keys()
    shares = [whole[peer] / weights[peer] for peer in weights]
    assert max(shares) <= min(shares) * 1.0101


@given(st.dictionaries(st.text(max_size=5), st.floats(5e-324, 1.7e308), max_size=10))
def test_every_weight_above_zero_gives_an_integer_that_nginx_takes(
    weights: dict[str, float],
) -> None:
    """Even the smallest and the largest doubles give integers from 1 to a bounded largest."""
    whole = integer_weights(weights)
    assert all(1 <= n <= 201 * MAX_WEIGHT_RATIO + 1 for n in whole.values())


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0], [1]),
        ([3.5, 3.5, 3.5], [1, 1, 1]),
        ([0.25, 0.5, 1.0], [1, 2, 4]),
        ([2.0, 3.0], [2, 3]),
        ([1.0, 1.5], [2, 3]),
        ([1e-9, 1.0], [1, 10_000]),
    ],
)
def test_simple_ratios_give_small_integers(weights: list[float], expected: list[int]) -> None:
    """Weights that are integers up to a factor give just these integers."""
    named = {str(n): weight for n, weight in enumerate(weights)}
    assert list(integer_weights(named).values()) == expected


def test_no_peers_give_no_weights() -> None:
    """Nothing in, nothing out."""
    assert integer_weights({}) == {}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_not_above_zero_is_refused(bad: float) -> None:
    """Zero, negative and non-finite weights raise an error that names the peer."""
    with pytest.raises(ValueError, match=r"'b' is .* more than 0"):
        integer_weights({"a": 1.0, "b": bad})
