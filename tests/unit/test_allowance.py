"""The account of what unproven profiles may cost."""

import random

import pytest

from trimtab.allowance import LEAST_TARDINESS, MOST_OWED_WINDOWS, MOST_WINDOWS, SHARE, Allowance


def earned(windows: int = 10, tardiness: float = 1000.0) -> Allowance:
    """After windows of neutral with 1000 requests each."""
    one = Allowance()
    for _ in range(windows):
        one.earn(tardiness, 1000.0)
    return one


def test_neutral_earns_a_share_up_to_a_bound() -> None:
    """A share of each window's tardiness, and never more than part of a window."""
    assert earned(5).left == pytest.approx(5 * SHARE * 1000)
    assert earned(1000).left == pytest.approx(MOST_WINDOWS * 1000)


def test_what_is_worse_is_broken_off_and_what_is_better_is_not() -> None:
    """Neutral is late by 1 a request: what is late by 2 may go on for as many requests as there is
    left, what is late by less for ever, and earns."""
    one = earned()
    most = one.left + LEAST_TARDINESS
    assert not one.exceeded(2 * (most - 1), most - 1)
    assert one.exceeded(2 * (most + 1), most + 1)
    assert not one.exceeded(900.0, 1000.0)
    before = one.left
    one.pay(950.0, 1000.0)
    assert one.left == pytest.approx(before + 50)
    assert not one.owed


def test_what_was_spent_beyond_is_owed_and_earned_back() -> None:
    """A window that was late beyond what was left before it was seen is owed, half a usual window
    at most, and neutral earns it back."""
    one = earned()
    one.pay(one.left + 1000.0 + 100.0, 1000.0)
    assert one.left == pytest.approx(-100.0)
    for _ in range(5):
        assert one.owed
        one.earn(1000.0, 1000.0)
    assert one.left == pytest.approx(0.0)
    one.pay(1e9, 1.0)
    assert one.left == pytest.approx(-MOST_OWED_WINDOWS * 1000)


def test_without_a_neutral_window_nothing_may_be_spent() -> None:
    """Only what a single late request costs is free."""
    assert Allowance().exceeded(LEAST_TARDINESS + 1, 1000.0)
    assert not Allowance().exceeded(LEAST_TARDINESS - 1, 1000.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_bad_profile_costs_a_few_hundredths_in_the_long_run(seed: int) -> None:
    """Three times as late as neutral and tried in every other window: over two hundred windows all
    is at most 4% later than neutral alone."""
    dice = random.Random(seed)
    one = Allowance()
    extra = whole = 0.0
    for _ in range(200):
        neutral = 1000 * dice.uniform(0.5, 1.5)
        one.earn(neutral, 1000.0)
        whole += neutral
        late = requests = 0.0
        while requests < 1000 and not one.exceeded(late, requests):
            late, requests = late + 3 * 10 * dice.uniform(0.5, 1.5), requests + 10
        one.pay(late, requests)
        extra, whole = extra + late - requests, whole + requests
    assert extra / whole < 0.04


def test_state_comes_back_or_is_refused() -> None:
    """As it was; nothing that is no number, negative or endless."""
    one = earned()
    assert Allowance.of_state(one.to_state()).to_state() == one.to_state()
    for wrong in ([1.0], [1.0, 1, float("nan"), 1.0], [1.0, -1, 1.0, 1.0], ["x", 1, 1.0, 1.0]):
        with pytest.raises((TypeError, ValueError)):
            Allowance.of_state(wrong)
