"""Trials: nothing stays in force that did not win on live traffic, and nothing that stopped to."""

import json
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.trials import STAGES, Trials


def trials(baseline: bool = True, **given) -> Trials:
    """Trials that have measured neutral, reward about 2.0, unless told otherwise."""
    one = Trials("neutral", **{"exploration_ratio": 0.1, "holdback_ratio": 0.05} | given)
    for reward in (2.0, 2.01, 1.99, 2.0) if baseline else ():
        assert one.judge("neutral", reward) == ""
    return one


def lived(one: Trials, rewards, decisions: int, wanted: str = "twin") -> list[tuple[str, str]]:
    """Profiles in force and what was said of them, while the policy wants one profile always."""
    seen, judged = [], ""
    for _ in range(decisions):
        used, reason = one.permit(wanted)
        seen.append((used, judged or reason))
        judged = one.judge(used, rewards(used))
    return seen


def drawn(seed: int, gain: float, deviation: float = 0.3):
    """Rewards around 2.0, a profile's higher by the gain."""
    random = Random(seed)
    return lambda used: random.gauss(2.0 + (gain if used != "neutral" else 0.0), deviation)


def test_candidate_waits_until_neutral_is_measured() -> None:
    """Neither a candidate nor an exploration is in force before three windows of neutral."""
    one = trials(baseline=False)
    for exploring in (False, True):
        profile, reason = one.permit("fast", exploring)
        assert profile == "neutral"
        assert "measured 0 times" in reason


def test_trial_takes_turns_with_neutral_and_ends_in_promotion() -> None:
    """Profile and neutral alternate; after the third switchback with a sure gain the profile is
    promoted, and stays in force but for the holdback."""
    one = trials()
    seen = lived(one, drawn(1, 1.0, 0.05), 6)
    assert [used for used, _ in seen] == ["twin", "neutral"] * 3
    assert "on trial, switchback 1" in seen[0][1]
    after = lived(one, drawn(2, 1.0, 0.05), 41)
    assert one.status()["trials"]["twin"]["stage"] == "promoted"
    held = [n for n, (used, _) in enumerate(after) if used == "neutral"]
    assert len(held) in (2, 3)
    assert all("held back, one window in 20" in after[n][1] for n in held)


def test_holdback_goes_on_measuring() -> None:
    """Under a promoted profile each window that is held back is one more switchback, and a gain
    that is surely negative reverts it."""
    one = trials(holdback_ratio=0.25)
    lived(one, drawn(1, 1.0, 0.05), 7)
    before = one.status()["trials"]["twin"]
    assert before["stage"] == "promoted"
    lived(one, drawn(2, 1.0, 0.05), 12)
    after = one.status()["trials"]["twin"]
    assert after["switchbacks"] > before["switchbacks"]
    assert after["gain"] == pytest.approx(1.0, abs=0.2)
    # Worse, but not by so much that a window is bad.
    seen = lived(one, drawn(3, -0.2, 0.01), 80)
    assert any("reverted" in said and "switchbacks" in said for _, said in seen)


def test_what_does_not_win_is_reverted_and_rests() -> None:
    """A profile that is a little worse goes back to neutral after three switchbacks, and its rest
    doubles each time."""
    one = trials()
    seen = lived(one, drawn(4, -0.1, 0.01), 7)
    assert "reverted for 20 decisions" in seen[-1][1]
    assert "no sure gain" in seen[-1][1]
    assert {used for used, _ in lived(one, drawn(4, -0.1, 0.01), 18)} == {"neutral"}
    lived(one, drawn(4, -0.1, 0.01), 8)
    assert one.status()["suspended"]["twin"] > 30


def test_two_bad_windows_revert_a_profile() -> None:
    """After two windows in a row below neutral's it rests for twenty decisions; a good one between
    clears the first."""
    one = trials(prove=False)
    for reward in (1.0, 2.0, 1.0, 2.0, 1.0):
        assert one.judge("fast", reward) == ""
    assert "back to neutral: 2 bad windows" in one.judge("fast", 1.0)
    assert [one.permit("fast")[0] for _ in range(20)] == ["neutral"] * 19 + ["fast"]


def test_a_promoted_profile_falls_by_two_bad_windows() -> None:
    """What was promoted is reverted by two bad windows in a row like any other."""
    one = trials()
    lived(one, drawn(1, 1.0, 0.05), 8)
    assert one.judge("twin", 0.0) == ""
    assert "reverted" in one.judge("twin", 0.0)
    assert one.permit("twin")[0] == "neutral"


def test_hopeless_windows_end_early_and_revert_at_once() -> None:
    """A window that cannot come near neutral's rewards any more is hopeless; neutral's never is."""
    one = trials()
    assert not one.hopeless("twin", 1.5)
    assert one.hopeless("twin", 1.0)
    assert not one.hopeless("neutral", -5.0)
    assert "broken off" in one.judge("twin", 1.0, hopeless=True)
    assert one.permit("twin")[0] == "neutral"


def test_state_outside_of_training_is_neutral() -> None:
    """Whatever is wanted, promoted or explored: outside of what was seen, neutral."""
    one = trials()
    lived(one, drawn(1, 1.0, 0.05), 8)
    for exploring in (False, True):
        assert one.permit("twin", exploring, "a strange state") == (
            "neutral",
            "not twin: a strange state",
        )


def test_rewards_that_are_no_numbers_judge_nothing() -> None:
    """NaN, infinite and absurd rewards neither revert nor move the baseline."""
    one = trials()
    before = one.to_state()
    for reward in (math.nan, math.inf, -math.inf, 1e200):
        assert one.judge("fast", reward) == ""
        assert one.judge("neutral", reward) == ""
    assert one.to_state() == before


def test_no_switchback_spans_a_gap() -> None:
    """Windows before and after an interruption are not compared."""
    one = trials()
    one.permit("twin")
    one.judge("twin", 3.0)
    one.interrupt()
    one.judge("neutral", 2.0)
    assert one.status()["trials"]["twin"]["switchbacks"] == 0


@given(st.lists(st.booleans(), min_size=60, max_size=60))
@settings(max_examples=30, deadline=None)
def test_exploration_is_limited(dice: list[bool]) -> None:
    """However the dice fall, at most a quarter of any twenty decisions explore (ratio 0.1)."""
    one = trials()
    done = [
        one.permit("fast", exploring=True)[0] == "fast" if explore else False for explore in dice
    ]
    assert all(sum(done[n : n + 20]) <= 5 for n in range(len(done) - 19))


def test_what_is_known_to_be_worse_is_not_explored() -> None:
    """Neutral stays, and the journal is told why; without trials what the policy wants is done."""
    said = "worse than neutral by 0.31 ± 0.04 over all states"
    assert trials().permit("fast", True, "", said) == ("neutral", f"not exploring fast: {said}")
    assert trials().permit("fast", True) == ("fast", "")
    assert trials(prove=False).permit("fast", True, "", said) == ("fast", "")
    # A trial asks live traffic: it is not for the policy's knowledge to refuse it.
    assert trials().permit("fast", False, "", said)[0] == "fast"


PROFILES = ("neutral", "fast", "twin")
DECISION = st.tuples(
    st.sampled_from(PROFILES),
    st.booleans(),
    st.sampled_from(["", "", "", "strange"]),
    st.floats(-5, 5) | st.floats(allow_nan=True, allow_infinity=True),
)


@given(st.lists(DECISION, max_size=80), st.integers(0, 79))
@settings(max_examples=150, deadline=None)
def test_invariants_hold_whatever_is_wanted_and_measured(decisions, restart: int) -> None:
    """In force is neutral, what was wanted, what is on trial or was promoted, never outside of what
    was seen, nor while it rests; what is neither promoted nor explored takes turns with neutral or
    with what is promoted; and a restart changes nothing but that a switchback under way is lost."""
    one = trials(baseline=False)
    before = "neutral"
    for number, (wanted, exploring, outside, reward) in enumerate(decisions):
        if number == restart:
            state = json.loads(json.dumps(one.to_state(), allow_nan=False))
            one = trials(baseline=False)
            one.restore(state)
            assert one.to_state() == state
            before = "neutral"
        bases = {"neutral", *one.promoted[-1:]}
        used, _ = one.permit(wanted, exploring, outside)
        status = one.status()
        on = [p for p, trial in status["trials"].items() if trial["stage"] == "on trial"]
        assert len(on) <= 1
        assert used in {"neutral", wanted, *on, *bases}
        if used != "neutral":
            trial = status["trials"][used]
            assert not outside
            assert status["neutral_windows"] >= 3
            assert trial["stage"] in STAGES[:3]
            assert used not in status["suspended"]
            if trial["stage"] == "on trial":
                assert before in bases
        for trial in status["trials"].values():
            if trial["stage"] == "promoted" and trial["switchbacks"] == 3:
                assert trial["gain"] > 0
        before = used
        one.judge(used, reward)


def test_a_trial_that_began_comes_to_its_end() -> None:
    """Whatever the policy wants meanwhile, or explores, the trial goes on to its verdict; but not
    for ever, where nothing is ever measured."""
    one = trials()
    rewards = drawn(1, 1.0, 0.05)
    wants = [("twin", False), ("neutral", False), ("fast", False), ("fast", True)] * 2
    judged = ""
    for wanted, exploring in wants[:7]:
        used, _ = one.permit(wanted, exploring)
        assert used in ("neutral", "twin")
        judged = one.judge(used, rewards(used))
    assert one.promoted == ("twin",), judged
    stuck = trials()
    stuck.permit("twin")
    for _ in range(48):
        stuck.interrupt()
        stuck.permit("neutral")
    assert stuck.status()["trials"]["twin"]["stage"] == "candidate"


def test_trials_rest_while_they_owe() -> None:
    """After a trial has cost more than trials may, neutral stays until it has earned that back, and
    nothing is explored meanwhile."""
    one = trials()
    for _ in range(10):
        one.count("neutral", 1000.0, 1000.0)
    assert one.permit("twin")[0] == "twin"
    one.count("twin", 1000.0 + one.allowance.left + 30.0, 1000.0)
    one.judge("twin", 2.0)
    one.judge("neutral", 2.0)
    for exploring in (False, True):
        used, reason = one.permit("twin", exploring)
        assert used == "neutral"
        assert "cost more than they may" in reason
    one.count("neutral", 1000.0, 1000.0)
    one.count("neutral", 1000.0, 1000.0)
    assert one.permit("twin")[0] == "twin"


def test_the_policy_s_doubt_is_measured_not_believed() -> None:
    """Where the policy wants neutral in place of a promoted profile both take turns: one that gains
    stays promoted, one that no longer does is reverted."""
    one = trials()
    lived(one, drawn(1, 1.0, 0.05), 7)
    seen = lived(one, drawn(2, 1.0, 0.05), 40, "neutral")
    assert one.promoted == ("twin",)
    assert [used for used, _ in seen].count("twin") == 20
    seen = lived(one, drawn(3, -0.1, 0.01), 60, "neutral")
    assert one.promoted == ()
    assert seen[-1][0] == "neutral"


def test_a_promoted_profile_is_what_others_must_beat() -> None:
    """Beside a promoted profile another is on trial against it, and what rests leaves it in force;
    who wins takes its place, and when that falls the first is back."""
    one = trials(holdback_ratio=0.0)
    level = {"neutral": 2.0, "twin": 3.0, "fast": 2.5, "best": 3.5}
    random = Random(5)

    def rewards(used: str) -> float:
        return random.gauss(level[used], 0.02)

    lived(one, rewards, 7)
    seen = lived(one, rewards, 12, "fast")
    assert {used for used, _ in seen[:7]} == {"twin", "fast"}
    assert "no sure gain" in seen[6][1]
    assert {used for used, _ in seen[7:]} == {"twin"}
    seen = lived(one, rewards, 12, "best")
    assert one.promoted == ("twin", "best")
    assert any("promoted" in said and "over twin" in said for _, said in seen)
    one.judge("best", 0.0)
    one.judge("best", 0.0)
    assert one.promoted == ("twin",)
    assert one.permit("best")[0] == "twin"


@pytest.mark.parametrize(
    ("gain", "least", "most"), [(0.0, 0.0, 0.12), (-0.2, 0.0, 0.02), (0.7, 0.9, 1.0)]
)
def test_chance_promotes_seldom(gain: float, least: float, most: float) -> None:
    """Of 300 trials with rewards of deviation 0.3: what gains nothing is promoted in fewer than one
    in eight, what is worse hardly ever, what doubles the quality (0.7) in nine of ten."""
    promoted = 0
    for seed in range(300):
        one = trials(baseline=False)
        rewards = drawn(seed, gain)
        for _ in range(4):
            one.judge("neutral", rewards("neutral"))
        promoted += any("promoted" in said for _, said in lived(one, rewards, 26))
    assert least <= promoted / 300 <= most


def test_state_of_another_shape_changes_nothing() -> None:
    """Unknown stages, numbers that are none and negative counts are refused as a whole."""
    one = trials()
    lived(one, drawn(1, 1.0, 0.05), 8)
    state = one.to_state()
    for profiles in (
        {"twin": ["king", [], 0, 0, 0]},
        {"twin": ["promoted", [math.inf], 0, 0, 0]},
        {"twin": ["promoted", [1.0], 0, -1, 0]},
        {"twin": ["promoted", [1.0], 0, 10_000, 0]},
    ):
        with pytest.raises(ValueError):
            one.restore(state | {"profiles": profiles})
    with pytest.raises(KeyError):
        one.restore({"neutral": [1, 1.0, 0.0]})
    assert one.to_state() == state
