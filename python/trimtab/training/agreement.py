"""The twin beside live runs: the same requests, work and events, in both.

    least-conn          nginx's, counting per class: `twin.events`
    trimtab-immediate   our rule, hold = "off": the twin with the production controller
    trimtab             our rule, hold = "auto"

The twin has no network, no processor time and no noise. The one thing that it is told of them is
the hand-over: a slot stands idle while a request comes to it from the waiting room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from trimtab.bench.outcome import Outcome, warm_up_seconds
from trimtab.bench.scenario import schedule, simulator_input
from trimtab.bench.statistics import ART_FLOOR, Ratio, median, paired_ratio
from trimtab.config import Learning
from trimtab.demo.scenario import Scenario
from trimtab.policy import Neutral
from trimtab.training.live import live, world_of
from trimtab.training.setting import configuration
from trimtab.twin.bounds import Summary, summary
from trimtab.twin.events import Rule, simulate

__all__ = ["BALANCERS", "HAND_OVER_SECONDS", "Figure", "figures", "simulated"]

# What the twin can play, and the hold of ours.
BALANCERS: Final[Mapping[str, str]] = {
    "least-conn": "",
    "trimtab-immediate": "off",
    "trimtab": "auto",
}

# Through nginx and the emulator, on a shared machine of two cores: decision 6.
HAND_OVER_SECONDS: Final = 0.0005


# Fields of an outcome and of a summary, and what is added to both sides of a ratio.
_FIGURES: Final = (("art_per_1000", ART_FLOOR), ("p50_seconds", 0.0), ("p99_seconds", 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of one balancer in one scenario: medians over seeds, and the twin's to the live
    one, paired by seed. ART is per 1000 requests, times are in seconds."""

    scenario: str
    balancer: str
    name: str
    live: float
    twin: float
    ratio: Ratio | None


def simulated(scenario: Scenario, balancer: str, seed: int, seconds: float) -> Summary:
    """What the twin makes of the requests of a run of that length, its warm-up left out. Raises
    KeyError for a balancer that it cannot play."""
    after = warm_up_seconds(scenario, seconds)
    hold = BALANCERS[balancer]
    if not hold:
        servers, requests, changes = simulator_input(scenario, schedule(scenario, seed, seconds))
        rule = Rule(name="least_conn", per_class=True)
        return summary(requests, simulate(servers, requests, rule, changes), after_seconds=after)
    config = configuration(scenario, hold=hold)
    config = replace(config, learning=Learning(enabled=False))
    world = world_of(
        scenario,
        config,
        seed,
        seconds,
        delay_seconds=config.policy.interval_seconds / 2,
        hand_over_seconds=HAND_OVER_SECONDS,
    )
    live(world, config, Neutral(config), seconds, lambda _now, _note: None)
    world.finish()
    return summary(world.requests, world.records(), after_seconds=after)


def figures(outcomes: Sequence[Outcome], scenarios: Sequence[Scenario]) -> list[Figure]:
    """ART, p50 and p99 of the valid outcomes that the twin can play, beside its own."""
    found: list[Figure] = []
    for scenario in scenarios:
        for balancer in BALANCERS:
            measured = {
                o.seed: o
                for o in outcomes
                if o.valid and (o.scenario, o.balancer) == (scenario.name, balancer)
            }
            played = {
                seed: simulated(scenario, balancer, seed, o.seconds) for seed, o in measured.items()
            }
            for name, floor in _FIGURES:
                real = {seed: float(getattr(o, name)) for seed, o in measured.items()}
                twin = {seed: float(getattr(s, name)) for seed, s in played.items()}
                if real:
                    found.append(
                        Figure(
                            scenario=scenario.name,
                            balancer=balancer,
                            name=name,
                            live=median(real),
                            twin=median(twin),
                            ratio=paired_ratio(twin, real, floor=floor),
                        )
                    )
    return found
