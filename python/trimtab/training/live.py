"""One run of the twin: its world, and the production controller in it."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trimtab.bench.scenario import schedule, simulator_input
from trimtab.config import Config
from trimtab.controller import Controller, Source
from trimtab.demo.scenario import Scenario
from trimtab.estimate import Estimates
from trimtab.guard import Guard
from trimtab.learn.actions import Profile
from trimtab.learn.reward import FLOOR
from trimtab.model import Weights
from trimtab.policy import Learned, Neutral, proposal
from trimtab.store import Store
from trimtab.training.setting import addresses_of, loaded, upstreams_in_order
from trimtab.twin.world import World

__all__ = ["Fixed", "Lived", "live", "world_of"]


def world_of(
    scenario: Scenario,
    config: Config,
    seed: int,
    seconds: float,
    *,
    factor: float = 1.0,
    delay_seconds: float = 0.0,
    hand_over_seconds: float = 0.0,
    ties: int = 0,
) -> World:
    """The scenario at `factor` of its load, as the configuration names it, its requests drawn from
    the seed. Balancers follow weights after the delay, and hold requests as the configuration has
    it: "on" as "auto", as the slots of all servers are known or those of none are; see `World` for
    the hand-over and the ties."""
    drawn = schedule(loaded(scenario, factor), seed, seconds)
    servers, requests, changes = simulator_input(scenario, drawn)
    hold = {u.name: u.hold != "off" for u in config.upstreams}
    upstreams = upstreams_in_order(scenario, config)
    return World(
        servers,
        requests,
        changes,
        upstreams=upstreams,
        hold=[hold[name] for name in upstreams],
        addresses=addresses_of(config),
        deadlines={u.name: u.deadline_seconds for u in config.upstreams if u.deadline_seconds},
        slots_known=all(p.slots for u in config.upstreams for p in u.peers),
        hand_over_seconds=hand_over_seconds,
        delay_seconds=delay_seconds,
        interval_seconds=config.policy.interval_seconds,
        seed=seed,
        ties=ties,
    )


class Fixed(Neutral):
    """One profile, always."""

    def __init__(self, config: Config, profile: str, profiles: Sequence[Profile]) -> None:
        super().__init__(config)
        self._config, self._profile, self._profiles = config, profile, profiles

    def propose(
        self, estimates: Estimates, deadlines: Mapping[str, float], profile: str
    ) -> Weights:
        """The weights of the one profile."""
        del profile
        return proposal(self._config, estimates, deadlines, self._profile, self._profiles)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """What came of a run: finished requests, ART per 1000 of them, the reward of each decision
    window, and after each the seconds, requests and tardiness so far. `promoted_seconds` is when
    the first profile was promoted, None when none was."""

    requests: int
    art_per_1000: float
    rewards: tuple[float, ...]
    sums: tuple[tuple[float, int, float], ...]
    promoted_seconds: float | None

    def art_between(self, begin: float, end: float) -> float:
        """ART per 1000 requests of the decision windows from `begin` to `end` seconds."""
        inside = [s for s in ((0.0, 0, 0.0), *self.sums) if begin <= s[0] <= end]
        if len(inside) < 2:
            return math.nan
        (_, requests, tardiness), (_, more, later) = inside[0], inside[-1]
        return 1000 * (later - tardiness) / max(more - requests, 1)


def live(
    world: World,
    config: Config,
    policy: Learned | Neutral,
    seconds: float,
    told: Callable[[float, str], None],
    source: Source | None = None,
) -> Lived:
    """The production controller with that policy in that world; `told` hears the time and how it
    goes after each step. It reads `source` instead of the world where that is given."""
    rewards: list[float] = []
    sums: list[tuple[float, int, float]] = []
    promoted: float | None = None
    began, counted, summed = 0.0, 0, 0.0
    with tempfile.TemporaryDirectory() as directory:
        store = Store(directory)
        guard = Guard(config, store.epoch, store.next_generation)
        controller = Controller(
            config,
            source or world,
            policy,
            guard,
            world,
            store,
            lambda: world.now,
            lambda: world.now,
        )
        while world.now < seconds:
            world.advance(config.policy.interval_seconds)
            controller.step()
            requests, tardiness = world.totals()
            if world.now - began >= config.learning.decision_seconds:
                art = (tardiness - summed) / max(requests - counted, 1)
                rewards.append(-math.log(FLOOR + art))
                began, counted, summed = world.now, requests, tardiness
                sums.append((began, counted, summed))
            if promoted is None and guard.trials.promoted:
                promoted = world.now
            art_per_1000 = 1000 * tardiness / max(requests, 1)
            told(world.now, f"ART per 1000 {art_per_1000:.1f}, {controller.phase}")
        controller.close()
    requests, tardiness = world.totals()
    return Lived(
        requests=requests,
        art_per_1000=1000 * tardiness / max(requests, 1),
        rewards=tuple(rewards),
        sums=tuple(sums),
        promoted_seconds=promoted,
    )
