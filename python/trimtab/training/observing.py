"""The states of a training: fitted over every load that it meets, under every profile.

States of one load alone would call the next one strange. So before anything is learned the
scenario is observed at loads from a quiet hour to a busy one, another profile each half minute,
as many observations of each load; what is learned afterwards is learned in these states, and no
episode fits them again. How well they fit is measured at loads between these, on requests that
nothing has seen: the share of observations outside of every state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from trimtab.config import Config
from trimtab.demo.scenario import Scenario
from trimtab.estimate import Estimates
from trimtab.learn.actions import Profile
from trimtab.learn.clusters import MOST_SAMPLES, Clusters
from trimtab.learn.features import Features
from trimtab.model import Weights
from trimtab.policy import Neutral, proposal
from trimtab.sweep.jobs import Heard, Here, Job, Sweep, Told
from trimtab.training.live import live, world_of

__all__ = [
    "LOAD_FACTORS",
    "OTHER_LOADS",
    "check_seconds",
    "observe_seconds",
    "observed",
    "outside_ratios",
]

# The load of an episode over the scenario's: from a quiet hour to a busy one.
LOAD_FACTORS: Final = (0.7, 1.1)

# The loads that are observed; a tenth apart is less than a minute of Poisson arrivals varies by.
LOADS: Final = (0.7, 0.8, 0.9, 1.0, 1.1)

# Where it is looked how well the states fit: loads of none of those runs.
OTHER_LOADS: Final = (0.75, 0.85, 0.95, 1.05)

# Together as many observations as a fit takes, at one a second.
OBSERVE_SECONDS: Final = MOST_SAMPLES / len(LOADS)
CHECK_SECONDS: Final = 300.0

# A profile's queues are there after some seconds.
PROFILE_OBSERVATIONS: Final = 30

# Runs draw from numbers that no episode has.
OBSERVE_SEED: Final = 2_500_000
CHECK_SEED: Final = 3_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run of the scenario at a load, all profiles in turn; `clusters` are states as of
    `Clusters.to_state`, where it is looked how well they fit."""

    scenario: Scenario
    config: Config
    profiles: tuple[Profile, ...]
    load: float
    seed: int
    seconds: float
    clusters: Mapping[str, Any] | None = None


class _Observer(Neutral):
    """One profile after the other, and all that is observed."""

    def __init__(self, config: Config, profiles: Sequence[Profile]) -> None:
        super().__init__(config)
        self._of, self._profiles = config, profiles
        self.seen: list[Features] = []

    def observe(self, features: Features, seconds: float) -> str:
        """Keep them."""
        del seconds
        self.seen.append(features)
        return ""

    def propose(
        self, estimates: Estimates, deadlines: Mapping[str, float], profile: str
    ) -> Weights:
        """The weights of the profile whose turn it is."""
        del profile
        turn = len(self.seen) // PROFILE_OBSERVATIONS % len(self._profiles)
        return proposal(self._of, estimates, deadlines, self._profiles[turn].name, self._profiles)


def observe_seconds(most: float) -> float:
    """Simulated seconds of `observed`, with `most` of each load."""
    return min(OBSERVE_SECONDS, most) * len(LOADS)


def check_seconds(most: float) -> float:
    """Simulated seconds of `outside_ratios`, likewise."""
    return min(CHECK_SECONDS, most) * len(OTHER_LOADS)


def _observe(run: _Run, told: Told) -> list[Features]:
    learning = replace(run.config.learning, enabled=False)
    fixed = replace(run.config, learning=learning)
    observer = _Observer(fixed, run.profiles)
    delay = fixed.policy.interval_seconds / 2
    world = world_of(
        run.scenario, fixed, run.seed, run.seconds, factor=run.load, delay_seconds=delay
    )
    live(world, fixed, observer, run.seconds, told)
    return observer.seen


def _outside(run: _Run, told: Told) -> float:
    """Which part of what is observed is outside of every state."""
    states = Clusters.from_state(run.clusters or {})
    seen = _observe(run, told)
    return sum(states.classify(each).outside for each in seen) / max(len(seen), 1)


def _jobs(
    scenario: Scenario,
    config: Config,
    profiles: Sequence[Profile],
    loads: Sequence[float],
    seed: int,
    seconds: float,
    clusters: Mapping[str, Any] | None = None,
) -> list[Job[_Run]]:
    """A run at each load, of seeds that count up."""
    return [
        Job(
            label=f"load {load:g}",
            seconds=seconds,
            argument=_Run(
                scenario=scenario,
                config=config,
                profiles=tuple(profiles),
                load=load,
                seed=seed + n,
                seconds=seconds,
                clusters=clusters,
            ),
        )
        for n, load in enumerate(loads)
    ]


def observed(
    scenario: Scenario,
    config: Config,
    profiles: Sequence[Profile],
    most_seconds: float,
    heard: Heard,
    sweep: Sweep | None = None,
) -> list[Features]:
    """What is observed at all loads, in `most_seconds` each at most; `heard` hears of each load,
    the seconds done and how it goes."""
    seconds = min(OBSERVE_SECONDS, most_seconds)
    jobs = _jobs(scenario, config, profiles, LOADS, OBSERVE_SEED, seconds)
    return [each for seen in (sweep or Here()).map(_observe, jobs, heard) for each in seen]


def outside_ratios(
    scenario: Scenario,
    config: Config,
    profiles: Sequence[Profile],
    clusters: Mapping[str, Any],
    most_seconds: float,
    heard: Heard,
    sweep: Sweep | None = None,
) -> dict[str, float]:
    """By load, as a share of the scenario's: which part of the observations is outside of every
    state (`clusters` as of `Clusters.to_state`)."""
    seconds = min(CHECK_SECONDS, most_seconds)
    jobs = _jobs(scenario, config, profiles, OTHER_LOADS, CHECK_SEED, seconds, clusters)
    found = (sweep or Here()).map(_outside, jobs, heard)
    return dict(zip((f"{load:g}" for load in OTHER_LOADS), found, strict=True))
