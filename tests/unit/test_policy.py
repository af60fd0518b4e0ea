"""Policies: observations to states, states to profiles, profiles to proposals."""

import json
from dataclasses import replace

import pytest

from brains import configuration
from trimtab.estimate import Estimates
from trimtab.fits import Slots
from trimtab.learn.actions import PROFILES
from trimtab.learn.features import Features, features
from trimtab.model import PairCounters, Window
from trimtab.policy import Learned, Neutral, proposal

NAMES = ("in_flight/s1:1", "connections")
CONFIG = configuration(
    learning="clusters = 2\noutlier_threshold = 10\nobserve_seconds = 30.0\nexploration_ratio = 0.0"
)
ESTIMATES = Estimates(
    service_time_seconds={"a": 0.02},
    rates={"s1:1": 0.5, "s2:1": 2.0},
    affinity={"a": {"s1:1": 2.0, "s2:1": 0.5}},
    slots={
        "s1:1": Slots(value=4, low=3, high=5),
        "s2:1": Slots(value=4, low=2, high=9),
    },
)


def observation(level: float, jitter: int) -> Features:
    """A load around `level`."""
    return Features(names=NAMES, values=(level * (1 + jitter % 7 / 50), 10 * level + jitter % 5))


def observed(policy: Learned, level: float, count: int = 60) -> list[str]:
    """What the policy had to tell of `count` observations of a second each."""
    return [policy.observe(observation(level, n), 1.0) for n in range(count)]


def fitted(exploration_ratio: float = 0.0) -> Learned:
    """A policy that knows two loads, as states."""
    learning = replace(CONFIG.learning, exploration_ratio=exploration_ratio)
    policy = Learned(replace(CONFIG, learning=learning))
    observed(policy, 1.0)
    observed(policy, 10.0)
    assert not policy.fitted
    assert policy.fit().startswith("2 states from 120 observations")
    return policy


def test_number_of_states_is_chosen_where_the_configuration_says_so() -> None:
    """Of "bic" two loads are two states although many would be allowed, and the load that comes
    later is a third one; what was known keeps its name."""
    chosen = configuration(
        learning='clusters = "bic"\noutlier_threshold = 10\nobserve_seconds = 60'
    )
    policy = Learned(chosen)
    observed(policy, 1.0, 120)
    observed(policy, 10.0, 120)
    assert policy.fit().startswith("2 states from 240 observations")
    told = [text for text in observed(policy, 100.0, 120) if text]
    assert told[-1] == "3 states from 311 observations, 2 of them known before"


def test_proposal_holds_every_pair_and_the_estimates() -> None:
    """Known numbers go in, unknown ones are 1 or None, slots only where they are sure."""
    weights = proposal(CONFIG, ESTIMATES, {"b": 0.3}, "neutral")
    a, b = weights.upstreams["a"], weights.upstreams["b"]
    assert (a.deadline_seconds, b.deadline_seconds) == (None, 0.3)
    assert (a.service_time_seconds, b.service_time_seconds) == (0.02, None)
    assert a.peers["s1:1"].rate == b.peers["s1:1"].rate == 0.5
    assert (a.peers["s1:1"].affinity, b.peers["s1:1"].affinity) == (2.0, 1.0)
    assert a.peers["s1:1"].slots == 4.0
    assert a.peers["s2:1"].slots == 4.0  # not sure: as the other
    assert a.peers["s3:1"].weight == 1.0
    assert weights.generation == 0


def test_a_class_with_a_single_peer_is_fitted_and_never_leant() -> None:
    """One upstream, one server: states are fitted as for many, every profile gives it W = 1, and
    what is decided is one of them."""
    alone = configuration(
        {"a": ""}, {"s1:1": None}, "clusters = 27\nobserve_seconds = 30.0\nexploration_ratio = 1.0"
    )
    policy = Learned(alone)
    for n in range(60):
        window = Window(
            seconds=1.0,
            pairs={
                "a": {
                    "s1:1": PairCounters(
                        in_flight=float(1 + n % 3 + 20 * (n % 2)),
                        requests=50 + n % 5 + 200 * (n % 2),
                    )
                }
            },
        )
        policy.observe(features(window, ["a"], ["s1:1"]), 1.0)
    assert "states from 60 observations" in policy.fit()
    assert 1 < len(policy.status()["clusters"]) <= 6
    decided = policy.decide()
    assert decided.profile in {p.name for p in PROFILES}
    for profile in PROFILES:
        estimates = Estimates(rates={"s1:1": 4.0}, affinity={"a": {"s1:1": 3.0}})
        weights = proposal(alone, estimates, {}, profile.name)
        assert weights.upstreams["a"].peers["s1:1"].weight == 1.0


def test_unknown_slots_are_guessed_beside_known_ones() -> None:
    """A server whose slots are not sure is taken to be like the others, or to have twice what it
    has shown; where none are known, or it has shown more than counts, nothing is said."""
    config = configuration({"a": ""}, {"s1:1": None, "s2:1": None, "s3:1": 3})

    def slots(of: Estimates) -> list[float | None]:
        peers = proposal(config, of, {}, "neutral").upstreams["a"].peers
        return [peers[a].slots for a in ("s1:1", "s2:1")]

    sure = {"s1:1": Slots(value=6, low=6, high=6)}
    assert slots(Estimates()) == [3.0, 3.0]
    assert slots(Estimates(slots=sure)) == [6.0, 6.0]
    assert slots(Estimates(slots=sure, least_slots={"s2:1": 2})) == [6.0, 6.0]
    assert slots(Estimates(slots=sure, least_slots={"s2:1": 9})) == [6.0, 18.0]
    assert slots(Estimates(slots=sure, least_slots={"s2:1": 24})) == [6.0, 24.0]
    assert slots(Estimates(slots=sure, least_slots={"s2:1": 25})) == [6.0, None]
    nobody = configuration({"a": ""}, {"s1:1": None, "s2:1": None})
    weights = proposal(nobody, Estimates(least_slots={"s1:1": 9}), {}, "neutral")
    assert {p.slots for p in weights.upstreams["a"].peers.values()} == {None}


def test_profiles_make_the_weights() -> None:
    """W follows the named profile; an unknown name is neutral."""
    fast = proposal(CONFIG, ESTIMATES, {}, "fast").upstreams["a"].peers
    assert fast["s2:1"].weight > fast["s3:1"].weight > fast["s1:1"].weight
    lean = proposal(CONFIG, ESTIMATES, {}, "affinity").upstreams
    assert lean["a"].peers["s2:1"].weight > 1 > lean["a"].peers["s1:1"].weight
    assert {p.weight for p in lean["b"].peers.values()} == {1.0}
    gone = proposal(CONFIG, ESTIMATES, {}, "no such profile").upstreams["a"].peers
    assert {p.weight for p in gone.values()} == {1.0}


def test_neutral_policy_never_leans() -> None:
    """With learning disabled W stays 1, and the estimates are used all the same."""
    policy = Neutral(CONFIG)
    assert policy.fitted
    assert policy.observe(observation(1.0, 0), 1.0) == policy.fit() == ""
    policy.learn("fast", 5.0)
    assert policy.decide().profile == "neutral"
    peers = policy.propose(ESTIMATES, {}, "fast").upstreams["a"].peers
    assert {p.weight for p in peers.values()} == {1.0}
    assert peers["s1:1"].rate == 0.5
    policy.restore(policy.to_state())
    assert policy.status() == {}


def test_nothing_is_decided_without_states() -> None:
    """Before the first fit the profile is neutral, in no state, and nothing is learned."""
    policy = Learned(CONFIG)
    observed(policy, 1.0, 5)
    decision = policy.decide()
    assert (decision.profile, decision.state, decision.exploring) == ("neutral", None, False)
    policy.learn("neutral", 1.0)
    assert policy.status()["values"] == {}
    assert Learned(CONFIG).fit() == ""


def test_state_of_a_window_is_the_one_seen_most() -> None:
    """A decision is made in the state that most of the window's observations fell in."""
    policy = fitted()
    observed(policy, 1.0, 6)
    observed(policy, 10.0, 4)
    low = policy.decide().state
    observed(policy, 1.0, 3)
    observed(policy, 10.0, 7)
    high = policy.decide().state
    assert {low, high} == {0, 1}


def test_learning_is_of_the_state_and_profile_of_the_window() -> None:
    """A reward goes to the state decided in and the profile in force, with the next state."""
    policy = fitted()
    observed(policy, 1.0, 5)
    low = policy.decide().state
    observed(policy, 10.0, 5)
    policy.learn("fast", 3.0)
    high = policy.decide().state
    assert policy.status()["values"] == {
        str(low): {"fast": {"value": 3.0, "visits": 1, "next": {str(high): 1.0}}}
    }


def test_proven_profile_is_chosen() -> None:
    """After eight windows each, the profile that is better by one is decided for."""
    policy = fitted()
    for n in range(16):
        observed(policy, 1.0, 2)
        policy.decide()
        observed(policy, 1.0, 2)
        policy.learn(("neutral", "spread")[n % 2], n % 2 + n % 3 / 10)
    decision = policy.decide()
    assert decision.profile == "spread"
    assert "better than neutral" in decision.reason


def test_exploring_says_what_is_known_to_be_worse() -> None:
    """After eight windows each, exploring the profile that is worse by one says so, and nothing is
    said of one that was never tried."""
    policy = fitted(exploration_ratio=0.5)
    for n in range(16):
        observed(policy, 1.0, 2)
        policy.decide()
        observed(policy, 1.0, 2)
        policy.learn(("spread", "neutral")[n % 2], n % 2 + n % 3 / 10)
    decisions = [policy.decide() for _ in range(100)]
    seen = {d.profile: d.worse for d in decisions if d.exploring}
    assert "worse than neutral by" in seen["spread"]
    assert seen["fast"] == ""
    assert {d.worse for d in decisions if not d.exploring} == {""}


def test_outliers_bring_a_new_observation_and_a_refit() -> None:
    """More outliers than the threshold: observe_seconds later the states are fitted again, the
    known ones keep their identity and what was learned, the new load has a state of its own."""
    policy = fitted()
    observed(policy, 1.0, 5)
    low = policy.decide().state
    observed(policy, 1.0, 5)
    policy.learn("neutral", 2.5)
    told = observed(policy, 300.0, 45)
    assert "observing for 30 s" in told[10]
    refit = [t for t in told[11:] if t]
    assert len(refit) == 1
    assert "states from" in refit[0]
    assert "0 of them known" not in refit[0]
    assert policy.status()["outside"] == 0
    observed(policy, 300.0, 5)
    new = policy.decide().state
    assert new != low
    observed(policy, 1.0, 5)
    assert policy.decide().state == low
    assert policy.status()["values"][str(low)]["neutral"]["value"] == 2.5


def test_status_is_readable_json() -> None:
    """State, clusters with means in their units, shares and transitions that sum to 1."""
    policy = fitted()
    observed(policy, 10.0, 3)
    status = json.loads(json.dumps(policy.status(), allow_nan=False))
    assert status["state"]["outside"] is False
    assert status["observations"] == 123
    assert sum(c["share"] for c in status["clusters"]) == pytest.approx(1.0)
    for cluster in status["clusters"]:
        assert sum(cluster["transitions"].values()) == pytest.approx(1.0)
    means = sorted(c["means"]["in_flight/s1:1"] for c in status["clusters"])
    assert means == pytest.approx([1.06, 10.6], rel=0.05)


def test_state_survives_a_round_trip() -> None:
    """Restored, the policy is fitted and decides as before; damage is refused."""
    policy = fitted()
    observed(policy, 1.0, 5)
    policy.decide()
    observed(policy, 1.0, 5)
    policy.learn("neutral", 2.5)
    state = json.loads(json.dumps(policy.to_state(), allow_nan=False))
    again = Learned(CONFIG)
    again.restore(state)
    assert again.fitted
    observed(again, 1.0, 3)
    assert again.decide().state == policy.decide().state
    assert again.status()["values"] == policy.status()["values"]
    with pytest.raises((KeyError, TypeError, ValueError)):
        again.restore(state | {"clusters": {"names": []}})
    assert again.fitted


def test_a_load_that_was_never_seen_is_outside() -> None:
    """Eight loads of ten that no state has say so, and known ones take it back; queues that only
    the weights can have made do not."""

    def load(rate: float, queue: float, n: int) -> Features:
        return Features(
            names=("requests_per_second/a", "in_flight/s1:1"),
            values=(rate * (1 + n % 7 / 50), queue * (1 + n % 5 / 50)),
        )

    policy = Learned(CONFIG)
    for n in range(60):
        policy.observe(load(100.0, 2.0, n), 1.0)
    policy.fit()
    for n in range(10):
        policy.observe(load(100.0, 50.0, n), 1.0)
    assert policy.outside == ""
    for n in range(8):
        policy.observe(load(900.0, 2.0, n), 1.0)
    assert policy.outside.startswith("the load of 8 of the last")
    for n in range(3):
        policy.observe(load(100.0, 2.0, n), 1.0)
    assert policy.outside == ""
