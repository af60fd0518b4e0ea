"""The controller: phases, decisions, and what happens when a part fails."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from brains import configuration
from trimtab.assembly import build
from trimtab.controller import Controller
from trimtab.errors import ConfigError, SourceError, StateError
from trimtab.guard import Guard
from trimtab.learn.actions import PROFILES, searched
from trimtab.learn.trained import Trained
from trimtab.model import (
    AddressCounters,
    PairCounters,
    PeerWeight,
    Snapshot,
    UpstreamWeights,
    Weights,
)
from trimtab.policy import Learned
from trimtab.store import Store

LEARNING = "observe_seconds = 10.0\ndecision_seconds = 5.0\nexploration_ratio = 0.0"
CONFIG = configuration(
    {"a": "priority = 2", "b": "deadline_seconds = 0.5"}, {"s1:1": 2, "s2:1": 2}, LEARNING
)
# Mean 10 ms and deviation 5 ms at s1, the same times three at s2.
MEANS = {"s1:1": 0.01, "s2:1": 0.03}


class Traffic:
    """A source of balancers with steady traffic; `requests` a step, pair and balancer."""

    def __init__(self, *instances: str) -> None:
        self.requests = 30
        self.now = 0.0
        self.error = ""
        self.tardiness = 0.0
        self.loaded_seconds: float | None = None
        self._instances = instances or ("one",)
        self._start = dict.fromkeys(self._instances, 1)
        self._done = dict.fromkeys(self._instances, 0)
        self._tardy = dict.fromkeys(self._instances, 0.0)

    def restart(self, instance: str) -> None:
        """A balancer's counters begin anew."""
        self._start[instance] += 1
        self._done[instance] = 0
        self._tardy[instance] = 0.0

    def tick(self) -> None:
        """A second of traffic."""
        self.now += 1.0
        for name in self._instances:
            self._done[name] += self.requests
            self._tardy[name] += self.tardiness

    def read(self) -> tuple[Snapshot, ...]:
        """All balancers."""
        if self.error:
            raise SourceError(self.error)
        return tuple(self._snapshot(name) for name in self._instances)

    def _snapshot(self, name: str) -> Snapshot:
        n = self._done[name]
        pairs = {
            address: PairCounters(
                requests=n,
                responses=(0, n, 0, 0, 0),
                response_time_seconds=n * mean,
                response_time_squared=n * (mean**2 + (mean / 2) ** 2),
                tardiness=self._tardy[name],
                tardy=round(self._tardy[name]),
                unqueued=n,
                unqueued_seconds=n * mean,
                unqueued_squared=n * mean**2 * 2,
                in_flight_seconds=n * mean,
            )
            for address, mean in MEANS.items()
        }
        return Snapshot(
            instance=name,
            start=self._start[name],
            clock_seconds=self.now,
            pairs={"a": pairs, "b": pairs},
            loaded_seconds=self.loaded_seconds,
            addresses={a: AddressCounters(busy_seconds=n * MEANS[a]) for a in MEANS},
        )


class Applied:
    """An actuator that remembers, and fails when told to."""

    def __init__(self) -> None:
        self.all: list[Weights] = []
        self.error = ""

    def apply(self, weights: Weights) -> None:
        """Remember, or fail."""
        if self.error:
            raise ConfigError(self.error)
        self.all.append(weights)


def run(controller: Controller, source: Traffic, seconds: int) -> None:
    """So many steps of a second."""
    for _ in range(seconds):
        source.tick()
        controller.step()


def start(path: Path, source: Traffic | None = None, config=CONFIG):
    """A controller with its source and actuator."""
    source, actuator = source or Traffic(), Applied()
    return build(config, source, actuator, path, lambda: source.now), source, actuator


def reasons(controller: Controller) -> list[str]:
    """The journal's reasons, oldest first."""
    return [entry["reason"] for entry in controller.status()["journal"]]


def test_first_weights_are_in_force_at_once(tmp_path: Path) -> None:
    """Before any traffic, the configured slots and deadlines and W = 1 are applied."""
    controller, _, actuator = start(tmp_path)
    assert [w.generation for w in actuator.all] == [1]
    first = actuator.all[0].upstreams
    assert first["a"].peers["s1:1"] == PeerWeight(slots=2.0)
    assert (first["a"].deadline_seconds, first["b"].deadline_seconds) == (None, 0.5)
    status = controller.status()
    assert (status["phase"], status["generation"]) == ("observing", 1)
    assert status["window"] == {}


def test_observation_ends_with_deadlines_and_states(tmp_path: Path) -> None:
    """After observe_seconds of traffic, deadlines follow the founding formula unless given, and
    the states are fitted."""
    controller, source, actuator = start(tmp_path)
    run(controller, source, 10)  # the first reading only begins the counting
    assert controller.phase == "observing"
    run(controller, source, 2)
    assert controller.phase == "learning"
    mean = 0.02
    std = math.sqrt((0.01**2 * 1.25 + 0.03**2 * 1.25) / 2 - mean**2)
    last = actuator.all[-1].upstreams
    assert last["a"].deadline_seconds == pytest.approx(mean + 1.5 * std)
    assert last["b"].deadline_seconds == 0.5
    assert controller.status()["clusters"]
    assert any("deadline of a" in r for r in reasons(controller))


def test_seconds_without_traffic_are_no_observation(tmp_path: Path) -> None:
    """An idle balancer stays in the observation, and nothing is decided or changed."""
    controller, source, actuator = start(tmp_path)
    source.requests = 0
    run(controller, source, 100)
    assert controller.phase == "observing"
    assert len(actuator.all) == 1
    assert len(reasons(controller)) == 1


def test_estimates_reach_the_balancer(tmp_path: Path) -> None:
    """Rates and service times are in the weights after a few seconds, while observing."""
    controller, source, actuator = start(tmp_path)
    run(controller, source, 8)
    assert controller.phase == "observing"
    a = actuator.all[-1].upstreams["a"]
    assert a.peers["s1:1"].rate / a.peers["s2:1"].rate == pytest.approx(3.0, rel=0.05)
    assert a.service_time_seconds == pytest.approx(math.sqrt(0.0003), rel=0.05)


class ResponseTimes(Traffic):
    """What nginx-module-vts shows: response times alone; class b's are four times class a's."""

    def _snapshot(self, name: str) -> Snapshot:
        n = self._done[name]
        pairs = {
            upstream: {
                address: PairCounters(
                    requests=n, responses=(0, n, 0, 0, 0), response_time_seconds=n * mean
                )
                for address in MEANS
            }
            for upstream, mean in (("a", 0.02), ("b", 0.08))
        }
        return Snapshot(instance=name, start=1, clock_seconds=self.now, pairs=pairs)


@pytest.mark.parametrize(("discipline", "ratio"), [("ps", 4.0), ("fifo", 7.0)])
def test_the_discipline_reaches_the_estimates(
    tmp_path: Path, discipline: str, ratio: float
) -> None:
    """Of response times alone, those at servers that share stretch both classes alike; in queues
    both wait alike, so that the longer class is the longer in service."""
    upstreams = tuple(
        replace(u, peers=tuple(replace(p, discipline=discipline) for p in u.peers))
        for u in CONFIG.upstreams
    )
    config = replace(CONFIG, upstreams=upstreams)
    controller, source, actuator = start(tmp_path, ResponseTimes(), config)
    run(controller, source, 20)
    services = {n: u.service_time_seconds for n, u in actuator.all[-1].upstreams.items()}
    assert services["b"] / services["a"] == pytest.approx(ratio, rel=0.03)


def test_steady_traffic_makes_few_generations(tmp_path: Path) -> None:
    """Where nothing changes, neither does the generation."""
    controller, source, actuator = start(tmp_path)
    run(controller, source, 40)
    settled = len(actuator.all)
    run(controller, source, 100)
    assert len(actuator.all) == settled
    assert controller.status()["generation"] == actuator.all[-1].generation


def test_a_decision_each_decision_time(tmp_path: Path) -> None:
    """Every five seconds of traffic the reward of the last profile is journalled."""
    controller, source, _ = start(tmp_path)
    source.tardiness = 3.0
    run(controller, source, 41)
    status = controller.status()
    decisions = [e for e in status["journal"] if e["reward"] is not None]
    assert len(decisions) == 6
    assert decisions[-1]["art_per_1000"] == pytest.approx(100.0)
    assert decisions[-1]["reward"] == pytest.approx(-math.log(0.11))
    assert decisions[-1]["action"] == "neutral"
    assert status["reward"] == decisions[-1]["reward"]
    assert status["guard"]["neutral_windows"] == 6


def test_windows_after_a_reload_bring_no_reward(tmp_path: Path) -> None:
    """What follows a reload of the balancer counts for no decision, but for the estimates."""
    controller, source, _ = start(tmp_path)
    run(controller, source, 16)
    before = controller.status()["reward"]
    assert before is not None
    source.tardiness = 100.0
    source.loaded_seconds = 0.5
    run(controller, source, 20)
    assert controller.status()["reward"] == before
    source.loaded_seconds = 60.0
    run(controller, source, 6)
    assert controller.status()["reward"] < before


def test_no_traffic_no_learning(tmp_path: Path) -> None:
    """When the traffic stops, decisions stop with it."""
    controller, source, _ = start(tmp_path)
    run(controller, source, 21)
    before = controller.status()["values"]
    source.requests = 0
    run(controller, source, 50)
    assert controller.status()["values"] == before


def test_several_balancers_are_one(tmp_path: Path) -> None:
    """Traffic of all balancers counts; a restart of one neither adds nor loses more than itself."""
    source = Traffic("one", "two")
    controller, _, _ = start(tmp_path, source)
    run(controller, source, 12)
    rate = controller.status()["window"]["a"]["requests_per_second"]
    assert rate == pytest.approx(2 * 2 * 30)
    source.restart("two")
    run(controller, source, 12)
    rate = controller.status()["window"]["a"]["requests_per_second"]
    assert rate == pytest.approx(2 * 2 * 30)
    assert controller.status()["upstreams"]["a"]["peers"]["s1:1"]["rate"] > 1.0


def test_learning_disabled_is_estimates_only(tmp_path: Path) -> None:
    """With enabled = false the phase is fixed after the observation, and W stays 1."""
    config = configuration(peers={"s1:1": 2, "s2:1": 2}, learning=f"{LEARNING}\nenabled = false")
    controller, source, actuator = start(tmp_path, config=config)
    run(controller, source, 60)
    assert controller.phase == "fixed"
    peers = actuator.all[-1].upstreams["a"].peers
    assert {p.weight for p in peers.values()} == {1.0}
    assert peers["s1:1"].rate > 1.0
    assert controller.status()["state"] is None


def test_source_that_fails_is_told_once(tmp_path: Path) -> None:
    """Without statistics the weights stay, and journal and log say so once, and when it is over."""
    controller, source, actuator = start(tmp_path)
    run(controller, source, 3)
    held = len(actuator.all)
    source.error = "nobody home"
    run(controller, source, 5)
    source.error = ""
    run(controller, source, 1)
    told = [r for r in reasons(controller) if "nobody home" in r]
    assert len(told) == 2
    assert told[1].startswith("over: ")
    assert len(actuator.all) >= held


def test_actuator_that_fails_is_tried_again(tmp_path: Path) -> None:
    """What could not be applied is not in force; the step says so, the next ones try again."""
    controller, source, actuator = start(tmp_path)
    actuator.error = "nginx -t says no"
    source.tick()
    controller.step()
    source.tick()
    with pytest.raises(ConfigError):
        controller.step()
    assert controller.status()["generation"] == 1
    assert "keeping generation 1" in reasons(controller)[-1]
    actuator.error = ""
    controller.step()
    assert controller.status()["generation"] == actuator.all[-1].generation > 2


def test_restart_resumes(tmp_path: Path) -> None:
    """A new controller on the same state goes on: phase, deadlines, estimates and what was
    learned; its generation is larger, its epoch the same."""
    controller, source, actuator = start(tmp_path)
    run(controller, source, 30)
    before = controller.status()
    controller.save()
    controller.close()
    again, _, applied = start(tmp_path)
    after = again.status()
    assert after["phase"] == "learning"
    assert after["epoch"] == before["epoch"]
    assert applied.all[0].generation > actuator.all[-1].generation
    for name in ("a", "b"):
        one, two = (w.all[n].upstreams[name] for w, n in ((actuator, -1), (applied, 0)))
        assert two.deadline_seconds == pytest.approx(one.deadline_seconds)
        assert two.peers["s2:1"].rate == pytest.approx(one.peers["s2:1"].rate, rel=0.03)
    assert after["values"] == before["values"]


@pytest.mark.parametrize(("digest", "promoted"), [("one", ("twin",)), ("two", ())])
def test_another_trained_file_has_won_nothing(
    tmp_path: Path, digest: str, promoted: tuple[str, ...]
) -> None:
    """A profile that was promoted stays so over a restart with the same trained file; one of the
    same name in another file must win first."""

    def started(of: str) -> tuple[Controller, Guard]:
        store = Store(tmp_path)
        guard = Guard(CONFIG, store.epoch, store.next_generation)
        twin = searched("twin", "searched", {"a": {"s1:1": 2.0}})
        policy = Learned(CONFIG, Trained(profiles=(twin,), digest=of))
        return Controller(CONFIG, Traffic(), policy, guard, Applied(), store), guard

    controller, guard = started("one")
    for _ in range(5):
        guard.trials.judge("neutral", 1.0)
    for _ in range(7):
        used, _ = guard.trials.permit("twin")
        guard.trials.judge(used, 2.0 if used == "twin" else 1.0)
    assert guard.trials.promoted == ("twin",)
    controller.save()
    controller.close()
    again, guard = started(digest)
    assert guard.trials.promoted == promoted
    again.close()


def test_restart_after_a_crash_keeps_generations_rising(tmp_path: Path) -> None:
    """Without a save nothing is learned, but no generation is used twice."""
    controller, source, actuator = start(tmp_path)
    run(controller, source, 30)
    controller.close()
    again, _, applied = start(tmp_path)
    assert again.status()["phase"] == "observing"
    assert again.status()["epoch"] == actuator.all[-1].epoch
    assert applied.all[0].generation > actuator.all[-1].generation


def test_peers_come_and_go_by_configuration(tmp_path: Path) -> None:
    """A changed list of servers keeps what is known of the rest, and the states."""
    controller, source, _ = start(tmp_path)
    run(controller, source, 30)
    controller.save()
    controller.close()
    config = configuration({"a": "priority = 2"}, {"s2:1": 2, "s3:1": None}, LEARNING)
    again, _, applied = start(tmp_path, source, config)
    assert again.phase == "learning"
    first = applied.all[0].upstreams
    assert list(first) == ["a"]
    assert set(first["a"].peers) == {"s2:1", "s3:1"}
    assert first["a"].deadline_seconds is not None
    run(again, source, 12)
    assert again.status()["state"]["index"] in {c["index"] for c in again.status()["clusters"]}


def test_state_of_another_shape_is_kept_aside(tmp_path: Path) -> None:
    """A valid file that this version does not understand does not stop the start."""
    store = Store(tmp_path)
    store.save({"observed_seconds": 5.0, "deadlines": {"a": -1.0}})
    store.close()
    controller, _, actuator = start(tmp_path)
    assert controller.phase == "observing"
    assert actuator.all
    assert len([p for p in tmp_path.iterdir() if ".corrupt-" in p.name]) == 1


def test_pins_and_drains_come_into_force_with_the_next_step(tmp_path: Path) -> None:
    """The operator's word is in the next weights and survives a restart."""
    controller, source, actuator = start(tmp_path)
    controller.pin("a", "s1:1", 2.0)
    controller.drain("s2:1")
    controller.step()
    last = actuator.all[-1].upstreams["a"].peers
    assert last["s1:1"].weight == 2.0
    assert last["s2:1"].drain
    controller.save()
    controller.close()
    _, _, applied = start(tmp_path, source)
    assert applied.all[0].upstreams["a"].peers["s1:1"].weight == 2.0
    with pytest.raises(ConfigError):
        controller.drain("nobody:1")


class Broken(Learned):
    """A policy that proposes NaN when told to."""

    broken = False

    def propose(self, estimates, deadlines, profile) -> Weights:
        """Garbage, or as ever."""
        weights = super().propose(estimates, deadlines, profile)
        if not self.broken:
            return weights
        peers = {a: PeerWeight(weight=math.nan) for a in MEANS}
        return replace(weights, upstreams={"a": UpstreamWeights(peers=peers)})


def test_garbage_from_a_policy_stays_out(tmp_path: Path) -> None:
    """NaN weights are refused: what is in force stays, told once, and it goes on afterwards."""
    source, actuator, store = Traffic(), Applied(), Store(tmp_path)
    policy = Broken(CONFIG)
    guard = Guard(CONFIG, store.epoch, store.next_generation)
    controller = Controller(CONFIG, source, policy, guard, actuator, store, lambda: source.now)
    run(controller, source, 8)
    held = controller.weights
    policy.broken = True
    run(controller, source, 8)
    assert controller.weights is held
    assert len([r for r in reasons(controller) if r.startswith("a proposal was refused")]) == 1
    policy.broken = False
    source.requests *= 5
    run(controller, source, 8)
    assert controller.status()["journal"][-1]["generation"] >= held.generation


def test_no_generation_to_be_had(tmp_path: Path) -> None:
    """When the store cannot give a generation, the step fails and the weights stay."""
    store = Store(tmp_path)
    given = iter([1])

    def generations() -> int:
        try:
            return next(given)
        except StopIteration:
            raise StateError("the disk is full") from None

    source, actuator = Traffic(), Applied()
    guard = Guard(CONFIG, 1, generations)
    controller = Controller(
        CONFIG, source, Learned(CONFIG), guard, actuator, store, lambda: source.now
    )
    source.tick()
    controller.step()
    source.tick()
    with pytest.raises(StateError):
        controller.step()
    assert len(actuator.all) == 1
    assert "the disk is full" in reasons(controller)[-1]


def test_status_is_json_with_what_the_dashboard_needs(tmp_path: Path) -> None:
    """Every number is finite, and the parts that were promised are there."""
    controller, source, _ = start(tmp_path)
    run(controller, source, 30)
    status = json.loads(json.dumps(controller.status(), allow_nan=False))
    assert set(status) >= {
        "phase",
        "epoch",
        "generation",
        "state",
        "profile",
        "upstreams",
        "window",
        "clusters",
        "journal",
        "estimates",
    }
    peer = status["upstreams"]["a"]["peers"]["s1:1"]
    assert set(peer) >= {"weight", "affinity", "rate", "slots", "drain", "evidence"}
    assert status["window"]["a"]["response_time_seconds"] == pytest.approx(0.02)
    assert status["window"]["a"]["shares"] == {"s1:1": 0.5, "s2:1": 0.5}
    assert status["statistics_age_seconds"] == 0.0
    times = [e["time"] for e in status["journal"]]
    assert times == sorted(times)


def test_a_promotion_and_its_end_are_journalled_with_their_reasons(tmp_path: Path) -> None:
    """A profile that is better is on trial and promoted, and reverted when it is worse: of each the
    journal has the reason, and of what came into force the generation."""
    store = Store(tmp_path)
    guard = Guard(CONFIG, store.epoch, store.next_generation)
    twin = searched("twin", "searched", {"a": {"s1:1": 2.0}})
    policy = Learned(CONFIG, Trained(profiles=(twin,), digest="one"))
    source, actuator = Traffic(), Applied()
    controller = Controller(CONFIG, source, policy, guard, actuator, store, lambda: source.now)

    def live(seconds: int, tardiness: float) -> None:
        for n in range(seconds):
            leans = actuator.all[-1].upstreams["a"].peers["s1:1"].weight > 1
            source.tardiness = (tardiness if leans else 8.0) + n % 3 * 0.1
            run(controller, source, 1)

    live(15, 1.0)
    assert controller.phase == "learning"
    action = [*(p.name for p in PROFILES), "twin"].index("twin")
    for state in policy.status()["clusters"]:
        policy._table.prefill(state["index"], action, 2.0, 0.01, 50)
        policy._table.prefill(state["index"], 0, 0.0, 0.01, 50)
    live(150, 1.0)
    assert guard.trials.promoted == ("twin",)
    live(60, 80.0)
    told = controller.status()["journal"]
    promoted = [e for e in told if "twin promoted" in e["reason"]]
    reverted = [e for e in told if "twin reverted" in e["reason"]]
    assert promoted
    assert reverted
    assert promoted[0]["time"] < reverted[-1]["time"]
    assert any("trial" in e["reason"] for e in told)
    assert all(e["generation"] for e in promoted + reverted)
