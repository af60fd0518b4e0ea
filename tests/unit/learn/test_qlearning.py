"""Q-learning: neutral until another has proven better, and what was counted."""

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.learn.qlearning import QTable

ACTIONS = ("neutral", "one", "two")
SEEDS = range(5)


def table(**options) -> QTable:
    """Three actions, no exploration unless asked for."""
    return QTable(ACTIONS, **({"exploration_ratio": 0.0} | options))


def live(gain: float, noise: float, decisions: int, seed: int, states: int = 3) -> QTable:
    """A table that lived: action "one" is better than neutral by `gain`, the load of a state moves
    all rewards, half of the decisions explore."""
    one = table(exploration_ratio=0.5, seed=seed)
    random = Random(seed)
    state = 0
    for _ in range(decisions):
        choice = one.choose(state)
        reward = 2.0 * state + gain * (choice.action == 1) + random.gauss(0, noise)
        after = random.randrange(states)
        one.learn(state, choice.action, reward, after)
        state = after
    return one


def test_neutral_is_the_default() -> None:
    """An empty table chooses neutral in any state."""
    assert {table().choose(s).action for s in range(50)} == {0}


def test_first_visit_takes_the_target_whole() -> None:
    """No starting value remains in Q."""
    one = table()
    one.learn(3, 0, -7.5, 3)
    assert one.value(3, 0) == -7.5
    assert one.value(3, 1) is None


def test_average_of_the_visits() -> None:
    """Early steps are averages; γ adds the best value of the next state."""
    one = table()
    for reward in (1.0, 2.0, 3.0):
        one.learn(0, 0, reward, 0)
    assert one.value(0, 0) == pytest.approx(2.0)
    two = table(gamma=0.5)
    two.learn(1, 0, 10.0, 2)
    two.learn(0, 0, 1.0, 1)
    assert two.value(0, 0) == pytest.approx(1.0 + 0.5 * 10.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_better_action_is_found(seed: int) -> None:
    """An action better by one, under noise of one half and loads that move rewards by up to four,
    is chosen in every state after 150 decisions."""
    one = live(1.0, 0.5, 150, seed)
    assert [one.proven(s)[0] for s in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_worse_action_is_not_chosen(seed: int) -> None:
    """An action that is worse by a half is never the greedy choice."""
    one = live(-0.5, 0.5, 150, seed)
    assert 1 not in [one.proven(s)[0] for s in range(3)]


def test_noise_alone_promotes_little() -> None:
    """With no difference between the actions, at most a quarter of the greedy choices over twenty
    seeds are not neutral."""
    chosen = [live(0.0, 1.0, 120, seed).proven(s)[0] for seed in range(20) for s in range(3)]
    assert sum(a != 0 for a in chosen) <= len(chosen) / 4


def test_load_alone_proves_nothing() -> None:
    """An action that was only tried in a lighter state is not better for it."""
    one = table()
    for _ in range(10):
        one.learn(0, 0, 0.0, 0)
        one.learn(1, 0, 4.0, 0)
        one.learn(1, 1, 4.0, 0)
    assert one.proven(0)[0] == 0
    assert one.proven(1)[0] == 0


def test_exploration_keeps_to_its_ratio_and_seed() -> None:
    """About ε of the choices explore, and a seed repeats them."""
    one = table(exploration_ratio=0.1, seed=4)
    choices = [one.choose(0) for _ in range(2000)]
    assert 0.07 < sum(c.exploring for c in choices) / 2000 < 0.13
    assert {c.action for c in choices if c.exploring} == {1, 2}
    again = table(exploration_ratio=0.1, seed=4)
    assert [again.choose(0) for _ in range(2000)] == choices


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=5))
@settings(max_examples=60)
def test_garbage_rewards_leave_the_table_finite(rewards: list[float]) -> None:
    """NaN, infinite and absurd rewards are ignored: the table can be saved and chooses."""
    one = table()
    for reward in rewards:
        one.learn(0, 1, reward, 0)
        one.learn(0, 0, reward, 0)
    json.dumps(one.to_state(), allow_nan=False)
    assert one.choose(0).action in range(3)


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_garbage_reward_changes_nothing(reward: float) -> None:
    """A reward that cannot be is as if there was none."""
    one = table()
    one.learn(0, 0, 1.0, 0)
    before = one.to_state()
    one.learn(0, 0, reward, 0)
    assert one.to_state() == before


def test_transitions_are_counted_and_smoothed() -> None:
    """p(s′|s,a) sums to 1, follows the counts, and is uniform without any."""
    one = table()
    for after in (1, 1, 1, 2):
        one.learn(0, 0, 0.0, after)
    p = one.transitions(0, 0, [0, 1, 2])
    assert sum(p.values()) == pytest.approx(1.0)
    assert p[1] == pytest.approx((3 + 1 / 3) / 5)
    assert p[0] == pytest.approx((1 / 3) / 5)
    assert set(one.transitions(9, 0, [0, 1]).values()) == {0.5}


def test_forgotten_states_are_gone_as_source_and_destination() -> None:
    """A state whose identity ended leaves no value and no transition behind."""
    one = table()
    one.learn(0, 0, 1.0, 1)
    one.learn(1, 0, 1.0, 0)
    one.forget([1])
    assert one.value(1, 0) is None
    assert list(one.status()) == ["0"]
    assert one.status()["0"]["neutral"]["next"] == {}


def test_prefilled_values_decide_until_experience_does() -> None:
    """Values from a simulator make an action proven; later rewards overrule them."""
    one = table()
    one.prefill(0, 0, 1.0, 0.01, 8)
    one.prefill(0, 1, 2.0, 0.01, 8)
    assert one.proven(0)[0] == 1
    for _ in range(60):
        one.learn(0, 1, 0.0, 0)
    assert one.proven(0)[0] == 0


def test_an_action_is_worse_only_where_it_is_sure() -> None:
    """Beyond two standard errors from enough visits; what a state shows outranks what is so over
    all states."""
    one = table()
    assert one.worse(0, 1) == ""
    one.restore({"rows": [], "overall": [["one", 8, -0.3, 0.1], ["two", 8, -0.1, 0.1]]})
    assert one.worse(0, 1) == "worse than neutral by 0.30 ± 0.12 over all states"
    assert one.worse(0, 2) == ""
    one.prefill(3, 0, 1.0, 0.01, 8)
    one.prefill(3, 1, 2.0, 0.01, 8)
    one.prefill(3, 2, 0.5, 0.01, 8)
    assert one.worse(3, 1) == ""
    assert one.worse(3, 2) == "worse than neutral by 0.50 ± 0.05 in state 3"
    one.prefill(4, 0, 1.0, 0.01, 3)
    one.prefill(4, 2, 0.5, 0.01, 3)
    assert one.worse(4, 2) == ""


def test_state_survives_a_round_trip() -> None:
    """A restored table chooses alike; actions that are no more are dropped; damage is refused."""
    one = live(1.0, 0.5, 150, 0)
    state = json.loads(json.dumps(one.to_state()))
    two = table()
    two.restore(state)
    assert two.to_state() == one.to_state()
    assert two.status() == one.status()
    fewer = QTable(("neutral", "two"))
    fewer.restore(state)
    assert all(set(actions) <= {"neutral", "two"} for actions in fewer.status().values())
    for damage in (
        {"rows": [[0, "neutral", 1, float("nan"), 0, []]]},
        {"rows": [[0, "neutral", -1, 0, 0, []]]},
        {"rows": [[0]]},
        {"overall": None},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            two.restore(state | damage)
    assert two.to_state() == one.to_state()
