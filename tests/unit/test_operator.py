"""What an operator orders: shadow, pins and drains, in the journal with who and why; explain."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brains import configuration, proposed
from trimtab.actuators.board import Board
from trimtab.config import Config
from trimtab.controller import Controller
from trimtab.errors import ConfigError
from trimtab.estimate import Estimates
from trimtab.guard import Guard
from trimtab.learn.features import Features
from trimtab.model import (
    AddressCounters,
    PairCounters,
    PeerWeight,
    Snapshot,
    UpstreamWeights,
    Weights,
)
from trimtab.policy import Decision
from trimtab.store import Store
from trimtab.twin import rule

CONFIG = configuration(
    {"a": "deadline_seconds = 0.1", "b": "deadline_seconds = 0.5"},
    {"s1:1": 2, "s2:1": 2},
    "observe_seconds = 1.0\ndecision_seconds = 2.0\nprove = false",
)


class Source:
    """One balancer with steady traffic, 60 requests a second and pair."""

    def __init__(self) -> None:
        self.now = 0.0
        self.in_flight = {"a": {"s1:1": 3, "s2:1": 0}, "b": {"s1:1": 1, "s2:1": 2}}
        self.rates = {"s1:1": 1.0, "s2:1": 0.5}
        self.names: tuple[str, ...] = ("one",)

    def read(self) -> tuple[Snapshot, ...]:
        """The counters of now."""
        done = round(60 * self.now)
        return tuple(
            Snapshot(
                instance=name,
                start=1,
                clock_seconds=self.now,
                generation=1,
                pairs={
                    upstream: {
                        address: PairCounters(
                            in_flight=n,
                            requests=done,
                            responses=(0, done, 0, 0, 0),
                            response_time_seconds=0.02 * done,
                            response_time_squared=0.0005 * done,
                            unqueued=done,
                            unqueued_seconds=0.02 * done,
                            unqueued_squared=0.0005 * done,
                        )
                        for address, n in peers.items()
                    }
                    for upstream, peers in self.in_flight.items()
                },
                addresses={
                    a: AddressCounters(busy_seconds=self.now, rate=r, error_ratio=0.0)
                    for a, r in self.rates.items()
                },
            )
            for name in self.names
        )


class Leaning:
    """A policy that always proposes W = 2 at the first server and 0.5 at the second."""

    fitted = True
    outside = ""

    def __init__(self) -> None:
        self.learned: list[str] = []

    def observe(self, features: Features, seconds: float) -> str:
        """Nothing."""
        del features, seconds
        return ""

    def fit(self) -> str:
        """Nothing."""
        return ""

    def decide(self) -> Decision:
        """To lean."""
        return Decision(profile="fast", state=3, exploring=False, reason="best so far")

    def learn(self, profile: str, reward: float) -> None:
        """Remember which profile was credited."""
        del reward
        self.learned.append(profile)

    def propose(
        self, estimates: Estimates, deadlines: Mapping[str, float], profile: str
    ) -> Weights:
        """W = 2 and 0.5 with the profile, 1 without."""
        del estimates, deadlines
        lean = profile == "fast"
        return Weights(
            upstreams={
                name: UpstreamWeights(
                    peers={
                        "s1:1": PeerWeight(weight=2.0 if lean else 1.0, affinity=2.0),
                        "s2:1": PeerWeight(weight=0.5 if lean else 1.0),
                    },
                    service_time_seconds=0.02,
                )
                for name in ("a", "b")
            }
        )

    def status(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def to_state(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class World:
    """A controller and its parts; `run` lets seconds pass."""

    def __init__(self, directory: Path, config: Config = CONFIG) -> None:
        self.source, self.policy, self.board = Source(), Leaning(), Board()
        self.store = Store(directory)
        guard = Guard(config, self.store.epoch, self.store.next_generation)
        self.controller = Controller(
            config,
            self.source,
            self.policy,
            guard,
            self.board,
            self.store,
            lambda: self.source.now,
            lambda: 1000 + self.source.now,
        )

    def run(self, seconds: int) -> None:
        """A step a second."""
        for _ in range(seconds):
            self.source.now += 1
            self.controller.step()

    def weight(self, address: str) -> float:
        """W in force in upstream a."""
        weights = self.board.current()
        assert weights is not None
        return weights.upstreams["a"].peers[address].weight

    def journal(self, kind: str) -> list[dict[str, Any]]:
        """The journal's entries of a kind."""
        return [e for e in self.controller.status()["journal"] if e["kind"] == kind]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A fresh one."""
    return World(tmp_path)


def test_shadow_takes_learned_weights_back_in_steps(world: World) -> None:
    """Under shadow W returns to 1 by at most half a step a second, and stays there."""
    world.run(10)
    assert (world.weight("s1:1"), world.weight("s2:1")) == (2.0, 0.5)
    world.controller.shadow(True)
    world.run(1)
    assert world.weight("s1:1") == pytest.approx(2 / 1.5)
    world.run(9)
    assert (world.weight("s1:1"), world.weight("s2:1")) == (1.0, 1.0)


def test_shadow_still_decides_and_tells_what_it_withholds(world: World) -> None:
    """Decisions go on; status and journal say which weights would be in force."""
    world.controller.shadow(True, who="ada", why="first day")
    world.run(10)
    status = world.controller.status()
    assert (status["profile"], status["chosen"]) == ("neutral", "fast")
    assert status["guard"]["shadow"] is True
    assert status["guard"]["withheld"]["a"] == {"s1:1": 2.0, "s2:1": 0.5}
    assert status["upstreams"]["a"]["peers"]["s1:1"]["weight"] == 1.0
    assert world.journal("decision")[-1]["reason"] == (
        "shadow, W stays 1; would be fast: best so far"
    )
    assert world.journal("decision")[-1]["action"] == "neutral"
    order = world.journal("operator")[0]
    assert (order["who"], order["reason"]) == (
        "ada",
        "shadow on: learned W are not applied: first day",
    )


def test_shadow_credits_what_was_in_force(world: World) -> None:
    """Rewards measured under W = 1 are neutral's, never those of the profile that waits; the
    window in which shadow changed is nobody's."""
    world.controller.shadow(True)
    world.run(9)
    assert set(world.policy.learned) == {"neutral"}
    before = len(world.policy.learned)
    world.controller.shadow(False)
    world.run(1)
    assert len(world.policy.learned) == before
    world.run(5)
    assert set(world.policy.learned[before:]) == {"fast"}


def test_a_pin_holds_in_shadow(world: World) -> None:
    """What the operator fixed is no learned weight."""
    world.controller.shadow(True)
    world.controller.pin("a", "s1:1", 1.5)
    world.run(3)
    assert world.weight("s1:1") == 1.5


def test_shadow_survives_a_restart(world: World, tmp_path: Path) -> None:
    """It is saved with the state."""
    world.run(3)
    world.controller.shadow(True)
    world.run(3)
    world.controller.save()
    world.controller.close()
    again = World(tmp_path)
    again.run(10)
    assert again.controller.status()["guard"]["shadow"] is True
    assert again.weight("s1:1") == 1.0


def test_orders_are_journalled_with_who_and_why(world: World) -> None:
    """Each order is an entry of its own, and names the generation that it made."""
    world.run(5)
    before = world.controller.status()["generation"]
    world.controller.pin("a", "s2:1", 1.25, who="ada", why="cache is warm")
    world.controller.drain("s1:1", True, who="bob")
    world.run(1)
    world.controller.pin("a", "s2:1", None)
    world.controller.drain("s1:1", False)
    world.run(1)
    orders = [(e["who"], e["reason"]) for e in world.journal("operator")]
    assert orders == [
        ("ada", "pinned s2:1 in a at W 1.25: cache is warm"),
        ("bob", "drained s1:1"),
        ("", "unpinned s2:1 in a"),
        ("", "undrained s1:1"),
    ]
    assert world.journal("operator")[0]["generation"] == before + 1
    assert world.controller.status()["events"]["operator"] == 4


def test_a_refused_order_leaves_no_trace(world: World) -> None:
    """An order for a name that is not configured changes and journals nothing."""
    with pytest.raises(ConfigError):
        world.controller.drain("s9:1")
    world.run(1)
    assert world.journal("operator") == []


def test_explain_scores_as_the_rule_does(world: World) -> None:
    """The scores are the twin's, from what is in flight over all classes, and ranked."""
    world.run(10)
    told = world.controller.explain("a")
    one = told["peers"]["s1:1"]
    work = 3 * 0.02 * 2.0 + 1 * 0.02 * 2.0
    assert one["in_flight"] == 4
    assert one["in_flight_class"] == 3
    assert one["work_seconds"] == pytest.approx(work)
    assert one["score"] == rule.score(0.04, 4, work, 1.0, 0.0, 2.0, 0.0, 2.0)
    served = 0.04 * (1 + rule.SPREAD * 4 / 2)
    assert one["wait_seconds"] == pytest.approx(one["score"] * 2.0 - served)
    assert told["peers"]["s2:1"]["wait_seconds"] == pytest.approx(0.02 / (2 * 0.5))
    by_score = sorted(told["peers"], key=lambda a: told["peers"][a]["score"])
    assert [told["peers"][a]["rank"] for a in by_score] == [1, 2]
    assert (told["profile"], told["instance"], told["instances"]) == ("fast", "one", 1)
    assert json.loads(json.dumps(told)) == told


def test_explain_knows_servers_that_share_their_slots(tmp_path: Path) -> None:
    """Where the configuration says "ps", the score is the rule's for processor sharing."""
    upstreams = tuple(
        replace(u, peers=tuple(replace(p, discipline="ps") for p in u.peers))
        for u in CONFIG.upstreams
    )
    world = World(tmp_path, replace(CONFIG, upstreams=upstreams))
    world.run(10)
    one = world.controller.explain("a")["peers"]["s1:1"]
    work = one["work_seconds"]
    assert one["score"] == rule.score(0.04, 4, work, 1.0, 0.0, 2.0, 1.0, 2.0)
    assert one["score"] != rule.score(0.04, 4, work, 1.0, 0.0, 2.0, 0.0, 2.0)


def test_explain_tells_the_last_change(world: World) -> None:
    """Only what differs is named, with before and after, and the reason."""
    world.run(10)
    world.controller.drain("s2:1", why="disk")
    world.run(1)
    told = world.controller.explain("a", "s2:1")
    assert list(told["peers"]) == ["s2:1"]
    assert told["peers"]["s2:1"]["rank"] is None
    assert told["last_change"]["peers"] == {"s2:1": {"drain": [False, True]}}
    assert told["last_change"]["reason"] == "drained s2:1: disk"
    assert told["last_change"]["to"] == told["last_change"]["from"] + 1
    assert told["last_decision"]["reason"] == "fast: best so far"


def test_explain_is_of_one_balancer(world: World) -> None:
    """With several, the first by default, and any by name."""
    world.source.names = ("one", "two")
    world.run(2)
    assert world.controller.explain("a")["instances"] == 2
    assert world.controller.explain("a", instance="two")["instance"] == "two"


def test_explain_before_any_report(world: World) -> None:
    """Nothing in flight, the priors, and no balancer named."""
    told = world.controller.explain("b")
    assert told["instance"] is None
    assert told["peers"]["s1:1"]["in_flight"] == 0
    assert told["last_change"]["from"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c",), "no upstream is called 'c'; there are: a, b"),
        (("a", "s1:2"), r"no peer of a is called 's1:2'; did you mean 's1:1'\?"),
        (("a", None, "ones"), r"no balancer that reports is called 'ones'; did you mean 'one'\?"),
    ],
)
def test_explain_knows_a_close_name(world: World, arguments: tuple, message: str) -> None:
    """A name that is not known gets the closest one."""
    world.run(1)
    with pytest.raises(ConfigError, match=message):
        world.controller.explain(*arguments)


def test_guard_withholds_whatever_is_proposed() -> None:
    """Shadow is the guard's: no proposal passes it, and the withheld W are within the bound."""
    one = Guard(CONFIG, 1, iter(range(1, 99)).__next__)
    one.shadow = True
    admitted = one.admit(proposed(CONFIG, weight=100.0), None, "x").weights
    assert admitted.upstreams["a"].peers["s1:1"].weight == 1.0
    assert one.withheld["a"]["s1:1"] == 3.0
    again = Guard(CONFIG, 1, iter(range(1, 99)).__next__)
    again.restore(json.loads(json.dumps(one.to_state())))
    assert again.shadow is True
