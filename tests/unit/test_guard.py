"""The guard: what always holds of weights in force, whatever is proposed."""

import itertools
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brains import configuration, proposed
from trimtab.errors import ConfigError, StateError
from trimtab.guard import Guard
from trimtab.model import PeerWeight, UpstreamWeights, Weights

CONFIG = configuration({"a": "", "b": "deadline_seconds = 0.2"}, {"s1:1": 2, "s2:1": None})


def guard(config=CONFIG) -> Guard:
    """A guard of epoch 7 that counts generations from 1."""
    return Guard(config, 7, itertools.count(1).__next__)


NUMBER = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0.01, 100),
    st.sampled_from([0.0, -1.0, 1.0, 1e300, 1e-300]),
)


@st.composite
def garbage(draw) -> Weights | None:
    """Proposals with any numbers, unknown and missing names."""
    if draw(st.booleans()) and draw(st.booleans()):
        return None
    names = draw(st.sets(st.sampled_from(["a", "b", "nobody"])))
    upstreams = {}
    for name in names:
        addresses = draw(st.sets(st.sampled_from(["s1:1", "s2:1", "s9:1"])))
        upstreams[name] = UpstreamWeights(
            peers={
                a: PeerWeight(
                    weight=draw(NUMBER),
                    affinity=draw(NUMBER),
                    rate=draw(NUMBER),
                    slots=draw(st.none() | NUMBER),
                    drain=draw(st.booleans()),
                    sharing=draw(st.booleans()),
                )
                for a in addresses
            },
            deadline_seconds=draw(st.none() | NUMBER),
            service_time_seconds=draw(st.none() | NUMBER),
        )
    return Weights(upstreams=upstreams)


@settings(max_examples=150)
@given(st.lists(garbage(), min_size=1, max_size=8))
def test_invariants_hold_whatever_is_proposed(proposals: list[Weights | None]) -> None:
    """All pairs, no others, finite and bounded numbers, bounded steps, rising generations."""
    one = guard()
    held: Weights | None = None
    for proposal in proposals:
        verdict = one.admit(proposal, held, "test")
        weights = verdict.weights
        assert list(weights.upstreams) == ["a", "b"]
        for name, upstream in weights.upstreams.items():
            assert set(upstream.peers) == {"s1:1", "s2:1"}
            for address, peer in upstream.peers.items():
                assert 1 / 3 - 1e-12 <= peer.weight <= 3 + 1e-12
                assert 1 / 20 <= peer.rate <= 20
                assert 1 / 20 <= peer.affinity <= 20
                assert peer.slots is None or 1 <= peer.slots <= 65535
                before = held.upstreams[name].peers[address].weight if held else 1.0
                assert before / 1.5001 <= peer.weight <= before * 1.5001
                assert not peer.drain
            assert upstream.peers["s1:1"].slots == 2
            for seconds in (upstream.deadline_seconds, upstream.service_time_seconds):
                assert seconds is None or 1e-5 <= seconds <= 86400
        assert weights.upstreams["b"].deadline_seconds == 0.2
        assert weights.epoch == 7
        if held is None:
            assert weights.generation == 1
            assert verdict.changed
        else:
            assert verdict.changed == (weights is not held)
            assert weights.generation == held.generation + verdict.changed
        held = weights


ORDER = st.one_of(
    st.tuples(
        st.just("pin"),
        st.sampled_from([(u, a) for u in ("a", "b") for a in ("s1:1", "s2:1")]),
        st.none() | st.floats(1 / 3, 3),
    ),
    st.tuples(st.just("drain"), st.sampled_from(["s1:1", "s2:1"]), st.booleans()),
    st.tuples(st.just("shadow"), st.none(), st.booleans()),
)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.lists(ORDER, max_size=3), garbage()), min_size=1, max_size=12))
def test_orders_hold_whatever_is_proposed(
    steps: list[tuple[list[tuple[str, object, object]], Weights | None]],
) -> None:
    """Between any proposals any pins, drains and shadow: what is pinned has its W, what is drained
    is, nothing else is; other W are within the bound, take bounded steps, in shadow towards 1; a
    refused proposal moves nothing but that; a generation more says that something differs."""
    one = guard()
    held = one.admit(None, None, "start").weights
    pins: dict[tuple[str, str], float] = {}
    drains: set[str] = set()
    shadow = False
    for orders, proposal in steps:
        for kind, what, value in orders:
            if kind == "pin":
                one.pin(*what, value)
                pins.pop(what, None)
                pins |= {} if value is None else {what: value}
            elif kind == "drain":
                one.drain(what, value)
                (drains.add if value else drains.discard)(what)
            else:
                one.shadow = shadow = value
        verdict = one.admit(proposal, held, "test")
        weights = verdict.weights
        moved = False
        for name, upstream in weights.upstreams.items():
            for address, peer in upstream.peers.items():
                old = held.upstreams[name].peers[address]
                moved = moved or old != peer
                assert peer.drain == (address in drains)
                if (name, address) in pins:
                    # Within the 2% below which a change is none.
                    assert peer.weight == pytest.approx(pins[name, address], rel=0.021)
                    continue
                assert 1 / 3 - 1e-12 <= peer.weight <= 3 + 1e-12
                assert old.weight / 1.5001 <= peer.weight <= old.weight * 1.5001
                if shadow:
                    assert abs(math.log(peer.weight)) <= abs(math.log(old.weight)) + 1e-9
                elif verdict.refused:
                    assert peer.weight == old.weight
        assert weights.generation == held.generation + verdict.changed
        if verdict.changed:
            assert moved or any(
                u.deadline_seconds != held.upstreams[n].deadline_seconds
                or u.service_time_seconds != held.upstreams[n].service_time_seconds
                for n, u in weights.upstreams.items()
            )
        else:
            assert weights is held
        held = weights


@given(
    number=st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0]),
    where=st.sampled_from(["weight", "affinity", "rate", "slots"]),
)
def test_number_that_is_none_refuses_the_whole_proposal(number: float, where: str) -> None:
    """A NaN, an infinity or a nonpositive number anywhere leaves what is in force, and says so."""
    config = configuration(peers={"s1:1": None, "s2:1": None})
    one = guard(config)
    held = one.admit(proposed(config, rate=2.0), None, "first").weights
    bad = dict(proposed(config, rate=3.0, weight=1.2).upstreams)
    bad["b"] = UpstreamWeights(peers={"s2:1": PeerWeight(**{where: number})})
    verdict = one.admit(Weights(upstreams=bad), held, "bad")
    assert verdict.weights is held
    assert not verdict.changed
    assert "s2:1 in b" in verdict.refused


@pytest.mark.parametrize("seconds", [math.nan, 0.0, -1.0])
def test_impossible_times_are_refused(seconds: float) -> None:
    """A deadline that is no positive number refuses the proposal."""
    one = guard(configuration())
    held = one.admit(None, None, "first").weights
    verdict = one.admit(proposed(configuration(), deadline=seconds), held, "bad")
    assert verdict.weights is held
    assert "deadline of a" in verdict.refused


def test_first_weights_come_from_the_configuration() -> None:
    """Without a proposal and without weights in force, everything is neutral and slots are as
    configured."""
    weights = guard().admit(None, None, "start").weights
    assert weights.upstreams["a"].peers == {
        "s1:1": PeerWeight(slots=2),
        "s2:1": PeerWeight(slots=None),
    }
    assert weights.reason == "start"


def test_jitter_is_no_change() -> None:
    """Differences of up to 2% from what is in force keep it; drift beyond it comes through."""
    one = guard()
    held = one.admit(proposed(CONFIG, rate=1.0), None, "first").weights
    for rate in (1.01, 0.985, 1.019):
        assert one.admit(proposed(CONFIG, rate=rate), held, "jitter").weights is held
    moved = one.admit(proposed(CONFIG, rate=1.03), held, "drift").weights
    assert moved.generation == held.generation + 1
    assert moved.upstreams["a"].peers["s2:1"].rate == 1.03


def test_weights_move_in_bounded_steps_to_their_bound() -> None:
    """W goes from 1 to its bound of 3 in factors of at most 1.5, and back."""
    one = guard()
    held = one.admit(None, None, "start").weights
    seen = []
    for _ in range(4):
        held = one.admit(proposed(CONFIG, weight=50.0), held, "up").weights
        seen.append(held.upstreams["a"].peers["s1:1"].weight)
    assert seen == [1.5, 2.25, 3.0, 3.0]


def test_pins_and_drains_always_win() -> None:
    """What the operator said holds whatever is proposed or refused, until it is lifted."""
    one = guard()
    held = one.admit(None, None, "start").weights
    one.pin("a", "s1:1", 2.5)
    one.drain("s2:1", True)
    for proposal in (None, proposed(CONFIG, weight=0.5), proposed(CONFIG, weight=math.nan)):
        held = one.admit(proposal, held, "x").weights
        assert held.upstreams["a"].peers["s1:1"].weight == 2.5
        assert held.upstreams["a"].peers["s2:1"].drain
        assert held.upstreams["b"].peers["s2:1"].drain
        assert not held.upstreams["b"].peers["s1:1"].drain
    one.pin("a", "s1:1", None)
    one.drain("s2:1", False)
    held = one.admit(proposed(CONFIG), held, "lifted").weights
    assert held.upstreams["a"].peers["s1:1"].weight == pytest.approx(2.5 / 1.5)
    assert not held.upstreams["a"].peers["s2:1"].drain


def test_a_configured_discipline_stands() -> None:
    """What is found of a server that the operator said nothing of is admitted; else his word is."""
    config = configuration({"a": ""}, {"s1:1": 2, "s2:1": None, "s3:1": 2})
    (upstream,) = config.upstreams
    words = ("fifo", None, "ps")
    peers = tuple(
        replace(p, discipline=word) for p, word in zip(upstream.peers, words, strict=True)
    )
    config = replace(config, upstreams=(replace(upstream, peers=peers),))
    one = guard(config)
    held = one.admit(None, None, "start").weights
    assert [p.sharing for p in held.upstreams["a"].peers.values()] == [False, False, True]
    found = {a: PeerWeight(sharing=True) for a in ("s1:1", "s2:1", "s3:1")}
    verdict = one.admit(Weights(upstreams={"a": UpstreamWeights(peers=found)}), held, "found")
    assert verdict.changed
    assert [p.sharing for p in verdict.weights.upstreams["a"].peers.values()] == [False, True, True]


@pytest.mark.parametrize(
    ("upstream", "address", "weight"),
    [("a", "s9:1", 1.0), ("z", "s1:1", 1.0), ("a", "s1:1", 9.0), ("a", "s1:1", math.nan)],
)
def test_wrong_pins_are_refused(upstream: str, address: str, weight: float) -> None:
    """A pin needs a configured pair and a weight within the bounds."""
    with pytest.raises(ConfigError):
        guard().pin(upstream, address, weight)


def test_unknown_server_cannot_be_drained() -> None:
    """A drain needs a configured server."""
    with pytest.raises(ConfigError, match="s9:1"):
        guard().drain("s9:1", True)


def test_no_generation_no_change() -> None:
    """When no generation is to be had a change fails, and what is in force still holds."""

    def exhausted() -> int:
        raise StateError("the disk is full")

    one = guard()
    held = one.admit(None, None, "start").weights
    broken = Guard(CONFIG, 7, exhausted)
    with pytest.raises(StateError):
        broken.admit(proposed(CONFIG, rate=2.0), held, "x")
    assert broken.admit(None, held, "x").weights is held


def test_state_survives_a_round_trip() -> None:
    """Trials, pins and drains come back; pins of removed peers do not."""
    config = configuration()
    one = guard(config)
    for profile, reward in [("neutral", 2.0)] * 4 + [("fast", 0.0)] * 2:
        one.trials.judge(profile, reward)
    one.pin("a", "s1:1", 2.0)
    one.drain("s3:1", True)
    state = json.loads(json.dumps(one.to_state()))
    two = guard(config)
    two.restore(state)
    assert two.status() == one.status()
    fewer = guard(configuration({"b": ""}, {"s1:1": None}))
    fewer.restore(state)
    assert fewer.status()["pins"] == []
    assert fewer.status()["drains"] == []
    assert one.status()["suspended"] == {"fast": 20}
    for key, value in {
        "pins": [["a", "s1:1", 50.0]],
        "trials": {"neutral": [1, math.nan, 0]},
    }.items():
        with pytest.raises(ValueError):
            two.restore(state | {key: value})
    assert two.status() == one.status()
