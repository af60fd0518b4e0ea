"""Profiles: bounded, normalised, and neutral first."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.learn.actions import (
    LEVELS,
    NEUTRAL,
    PROFILES,
    WEIGHT_BOUND,
    actions,
    profile_weights,
    searched,
)

NUMBERS = st.dictionaries(
    st.sampled_from([f"s{n}:1" for n in range(6)]), st.floats(1 / 20, 20), max_size=6
)
ADDRESSES = [f"s{n}:1" for n in range(5)]


@given(rates=NUMBERS, affinity=NUMBERS, profile=st.sampled_from((*PROFILES, LEVELS)))
def test_weights_are_bounded_and_complete(rates, affinity, profile) -> None:
    """Whatever the estimates, each peer has a weight within [1/3, 3], and some are not above 1."""
    weights = profile_weights(profile, ADDRESSES, rates, affinity)
    assert list(weights) == ADDRESSES
    assert all(1 / WEIGHT_BOUND - 1e-9 <= w <= WEIGHT_BOUND + 1e-9 for w in weights.values())
    assert min(weights.values()) <= 1 + 1e-9
    assert max(weights.values()) >= 1 - 1e-9


def test_first_profile_changes_nothing() -> None:
    """Neutral is W = 1 whatever is estimated."""
    weights = profile_weights(PROFILES[NEUTRAL], ADDRESSES, {"s1:1": 9.0}, {"s2:1": 4.0})
    assert set(weights.values()) == {1.0}


@pytest.mark.parametrize(
    ("name", "favoured"), [("affinity", "s1:1"), ("fast", "s2:1"), ("spread", "s1:1")]
)
def test_profiles_lean_where_they_say(name: str, favoured: str) -> None:
    """Affinity favours where the class runs well, fast the fast server, spread the slow one."""
    profile = next(p for p in PROFILES if p.name == name)
    weights = profile_weights(
        profile, ["s1:1", "s2:1"], {"s1:1": 0.5, "s2:1": 2.0}, {"s1:1": 0.5, "s2:1": 2.0}
    )
    assert max(weights, key=weights.__getitem__) == favoured
    assert math.prod(weights.values()) == pytest.approx(1.0)


def test_no_peers_no_weights() -> None:
    """An upstream without peers has none."""
    assert profile_weights(PROFILES[1], [], {}, {}) == {}


def test_stock_mode_has_the_levels_too_and_last() -> None:
    """A trained file's network knows its actions by their place."""
    given = searched("twin", "found", {})
    assert actions("lua", [given]) == (*PROFILES, given)
    assert actions("stock", [given]) == (*PROFILES, given, LEVELS)
