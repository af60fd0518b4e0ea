"""Which servers share their slots, found by the production controller in the twin."""

from dataclasses import replace

import pytest

from trimtab.bench.scenario import find
from trimtab.config import Config
from trimtab.estimate import Estimates
from trimtab.model import Weights
from trimtab.policy import Neutral
from trimtab.training.live import live, world_of
from trimtab.training.setting import addresses_of, configuration

pytest.importorskip("numba", reason="half an hour of traffic takes minutes without it")


class Watching(Neutral):
    """Estimates only, and keeps them."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.seen: list[Estimates] = []

    def propose(self, estimates: Estimates, deadlines, profile: str) -> Weights:
        """The weights of neutral."""
        self.seen.append(estimates)
        return super().propose(estimates, deadlines, profile)


def told(name: str, *, slots: bool, discipline: str | None = None) -> Config:
    """The scenario's configuration, without slots unless they are to be told."""
    config = configuration(find(name))
    return replace(
        config,
        learning=replace(config.learning, enabled=False),
        upstreams=tuple(
            replace(
                u,
                peers=tuple(
                    replace(p, slots=p.slots if slots else None, discipline=discipline)
                    for p in u.peers
                ),
            )
            for u in config.upstreams
        ),
    )


def lived(name: str, config: Config, seed: int, seconds: float) -> tuple[Watching, float, Weights]:
    """The estimates over the run, the ART of its second half, and the last weights."""
    world = world_of(find(name), config, seed, seconds, delay_seconds=0.5)
    policy = Watching(config)
    run = live(world, config, policy, seconds, lambda _now, _note: None)
    assert world.weights is not None
    return policy, run.art_between(seconds / 2, seconds), world.weights


@pytest.mark.parametrize("seed", [1, 2])
def test_untold_servers_that_share_are_found_and_served_as_if_told(seed: int) -> None:
    """Neither slots nor discipline are told: after five minutes all are known, the rates within
    5%, and ART is within a fifth of what it is with both told, and far from a queue's."""
    told_all = lived("sharing", told("sharing", slots=True, discipline="ps"), seed, 600.0)[1]
    as_queue = lived("sharing", told("sharing", slots=True, discipline="fifo"), seed, 600.0)[1]
    config = told("sharing", slots=False)
    policy, art, weights = lived("sharing", config, seed, 600.0)
    half = policy.seen[len(policy.seen) // 2]
    assert [half.disciplines[a].value for a in addresses_of(config)] == ["ps"] * 3
    assert all(p.sharing for u in weights.upstreams.values() for p in u.peers.values())
    rates = [policy.seen[-1].rates[a] for a in addresses_of(config)]
    assert rates == pytest.approx([0.5, 1.0, 2.0], rel=0.05)
    assert art < 1.2 * told_all
    assert art < 0.7 * as_queue


def test_what_the_operator_says_stands() -> None:
    """Servers that share but are called queues: it is found, and not acted on."""
    policy, _, weights = lived("sharing", told("sharing", slots=True, discipline="fifo"), 1, 300.0)
    assert any(d.sure and d.value == "ps" for d in policy.seen[-1].disciplines.values())
    assert not any(p.sharing for u in weights.upstreams.values() for p in u.peers.values())


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("speeds", False),
        ("slowdown", True),
        ("three-classes", False),
        ("failing", True),
        ("hanging", False),
        ("noisy", False),
        ("affinity", False),
        ("bursts", False),
    ],
)
def test_queues_are_never_taken_for_sharing(name: str, slots: bool) -> None:
    """In ten minutes of a slowdown, of failures, of noise, nothing is ever surely sharing."""
    policy, _, _ = lived(name, told(name, slots=slots), 3, 600.0)
    wrong = [d for e in policy.seen for d in e.disciplines.values() if d.sure and d.value == "ps"]
    assert wrong == []
