"""Decision windows: when they end, who is credited, and what follows."""

import math
from typing import Any

import pytest

from trimtab.deciding import Deciding
from trimtab.model import PairCounters, Window
from trimtab.policy import Decision
from trimtab.trials import Trials

DEADLINES = {"a": 0.1}
LENGTH = 10.0


class Wanting:
    """A policy that wants one profile; `credited` is what it was told."""

    fitted = True

    def __init__(self) -> None:
        self.wants, self.worse = "neutral", ""
        self.outside = ""
        self.credited: list[tuple[str, float]] = []

    def decide(self) -> Decision:
        """That profile."""
        return Decision(
            profile=self.wants,
            state=1,
            exploring=bool(self.worse),
            reason="wanted",
            worse=self.worse,
        )

    def learn(self, profile: str, reward: float) -> None:
        """Remember."""
        self.credited.append((profile, reward))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a decision does not need {name}")


def second(art: float) -> Window:
    """A second of 100 requests with that ART per request."""
    pair = PairCounters(requests=100, tardiness=100 * art, tardy=1)
    return Window(seconds=1.0, pairs={"a": {"s1:1": pair}})


def deciding(**given) -> tuple[Deciding, Wanting, Trials]:
    """Decision windows of ten seconds, neutral measured five times at ART 0.1 a request."""
    policy = Wanting()
    trials = Trials("neutral", **{"exploration_ratio": 0.0, "holdback_ratio": 0.05} | given)
    one = Deciding(policy, trials, LENGTH)
    for _ in range(50):
        one.take(second(0.1), DEADLINES, shadow=False)
    assert [profile for profile, _ in policy.credited] == ["neutral"] * 5
    policy.wants = "twin"
    return one, policy, trials


def run(one: Deciding, art: float, seconds: int) -> list[str]:
    """What was decided in so many seconds of that ART."""
    told = [one.take(second(art), DEADLINES, shadow=False) for _ in range(seconds)]
    return [reason for reason in told if reason]


def test_a_better_profile_is_promoted_in_four_switchbacks() -> None:
    """Half of neutral's ART in the windows of the profile: neutral and it take turns, and within
    nine windows it is promoted and stays."""
    one, _, trials = deciding()
    run(one, 0.1, 10)
    said = []
    for n in range(9):
        said += run(one, (0.05 if one.profile == "twin" else 0.1) * (1 + n % 3 / 20), 10)
    assert any("twin promoted: gain" in reason for reason in said)
    assert trials.status()["trials"]["twin"]["stage"] == "promoted"
    assert one.profile == "twin"


def test_an_unproven_profile_is_broken_off_when_it_has_cost_its_share() -> None:
    """A profile of one and a half times neutral's ART, not hopeless by far: its windows end when it
    has cost a fiftieth of what neutral was late; then trials rest until what it cost beyond that is
    earned back, and the second time it is reverted."""
    one, _, trials = deciding()
    run(one, 0.1, 10)
    seconds = {"neutral": 60, "twin": 0}
    said = []
    for _ in range(120):
        seconds[one.profile] += 1
        said += run(one, 0.15 if one.profile == "twin" else 0.1, 1)
    assert any("it has cost all that trials may" in reason for reason in said)
    assert any("twin reverted" in reason for reason in said)
    # Neutral was late by 10 a second, twin by 5 more: with 5 to spare, each time one second more.
    assert 2 <= seconds["twin"] <= 8
    assert trials.allowance.left < 0.02 * 10 * seconds["neutral"]


def test_exploring_what_is_worse_is_left_out() -> None:
    """What the policy says of a profile that it would explore reaches the trials."""
    one, policy, _ = deciding()
    policy.worse = "worse than neutral"
    assert run(one, 0.1, 10) == ["neutral: not exploring twin: worse than neutral"]


def test_what_was_promoted_is_not_broken_off() -> None:
    """It has proven itself, and the holdback watches it: a window somewhat worse ends as any."""
    one, _, trials = deciding(prove=False)
    run(one, 0.1, 10)
    assert one.profile == "twin"
    assert run(one, 0.12, 9) == []
    assert not trials.costly("twin", 1e6, 100)


def test_a_hopeless_window_ends_at_once() -> None:
    """A profile that is ten times worse is back to neutral after a few seconds, not after the
    window; the learner is told a reward that is no better than it was."""
    one, policy, trials = deciding()
    run(one, 0.1, 10)
    assert one.profile == "twin"
    trials.allowance.left = 1e9  # else it would end for its cost before
    seconds = 0
    while one.profile == "twin":
        said = run(one, 1.0, 1)
        seconds += 1
        assert seconds < 5
    assert "broken off" in said[0]
    profile, reward = policy.credited[-1]
    assert profile == "twin"
    assert reward < policy.credited[0][1] - 0.7
    assert trials.status()["suspended"]["twin"] == 19


def test_neutral_is_never_broken_off() -> None:
    """However bad: there is nothing to go back to."""
    one, policy, _ = deciding()
    policy.wants = "neutral"
    assert run(one, 50.0, 9) == []


def test_a_strange_state_is_neutral_at_once() -> None:
    """Within the window, which counts for nobody; the profile is back when the state is known."""
    one, policy, _ = deciding(prove=False)
    run(one, 0.1, 10)
    run(one, 0.1, 5)
    credited = len(policy.credited)
    policy.outside = "another world"
    assert run(one, 0.1, 1) == ["neutral at once: another world"]
    assert one.profile == "neutral"
    assert len(policy.credited) == credited
    assert run(one, 0.1, 10) == ["neutral: not twin: another world"]
    policy.outside = ""
    run(one, 0.1, 10)
    assert one.profile == "twin"


@pytest.mark.parametrize("requests", [0, 3])
def test_too_little_traffic_decides_nothing(requests: int) -> None:
    """A window of a few requests ends without a reward, and the profile stays."""
    one, policy, _ = deciding()
    run(one, 0.1, 10)
    credited = len(policy.credited)
    pair = PairCounters(requests=requests, tardiness=9.0 * requests, tardy=requests)
    for _ in range(10):
        few = Window(seconds=1.0, pairs={"a": {"s1:1": pair}})
        assert one.take(few, DEADLINES, shadow=False) == ""
    assert one.profile == "twin"
    assert len(policy.credited) == credited


def test_shadow_begins_a_new_window() -> None:
    """What was measured half in shadow tells of neither: ten more seconds to the next decision."""
    one, policy, _ = deciding(prove=False)
    run(one, 0.1, 10)
    run(one, 0.1, 5)
    told = [one.take(second(0.1), DEADLINES, shadow=True) for _ in range(10)]
    assert told[:9] == [""] * 9
    assert told[9].startswith("shadow, W stays 1; would be twin")
    assert policy.credited[-1][0] == "neutral"


def spoilt(tardy: int = 0) -> Window:
    """A second whose tardiness is no number."""
    pair = PairCounters(requests=100, tardiness=math.nan, tardy=tardy)
    return Window(seconds=1.0, pairs={"a": {"s1:1": pair}})


def test_spoilt_windows_are_left_out() -> None:
    """Decisions go on with every second window that is a number, and are the same."""
    one, policy, _ = deciding()
    windows = [second(0.1), spoilt(), spoilt(1)] * 20
    told = [one.take(window, DEADLINES, shadow=False) for window in windows]
    assert len([reason for reason in told if reason]) == 2
    assert all(math.isfinite(gained) for _, gained in policy.credited)


def test_what_cannot_be_measured_is_not_in_force() -> None:
    """A profile is back to neutral after a decision window of nothing but spoilt ones, one that was
    promoted too; neutral just goes on."""
    one, _, _ = deciding()
    run(one, 0.1, 10)
    assert one.profile == "twin"
    told = [one.take(spoilt(), DEADLINES, shadow=False) for _ in range(30)]
    assert [n for n, reason in enumerate(told) if reason] == [9]
    assert "nothing could be measured" in told[9]
    assert one.profile == "neutral"
