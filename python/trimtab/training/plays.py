"""The runs of a training that depend on nothing but what they are given: a sweep's jobs.

Candidates of the search, each on the same requests as every other, and runs under one profile or
from a trained file. Episodes are none of these: each goes on with what the one before it learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.config import Config
from trimtab.demo.scenario import Scenario
from trimtab.learn.actions import Profile
from trimtab.learn.trained import Trained
from trimtab.policy import Learned
from trimtab.sweep.jobs import Job, Sweep, Told
from trimtab.training.live import Fixed, Lived, live, world_of
from trimtab.training.setting import addresses_of, upstreams_in_order
from trimtab.twin.bounds import in_deadlines
from trimtab.twin.search import Played, ideal_weights

__all__ = ["SEARCH_RUNS", "SEARCH_SECONDS", "Play", "candidates", "compile_twin", "play"]

Floats = NDArray[np.float64]

# Requests of the search: enough that a run's ART says more of the weights than of its luck, few
# enough for a hundred candidates in a minute.
SEARCH_SECONDS: Final = 60.0
SEARCH_RUNS: Final = 3

# They draw from numbers that no episode has.
SEARCH_SEED: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One run of the production controller: from a trained file, or under one of the profiles."""

    scenario: Scenario
    config: Config
    seed: int
    seconds: float
    given: Trained | None = None
    profile: str = ""
    profiles: tuple[Profile, ...] = ()


def play(of: Play, told: Told) -> Lived:
    """Play it; `told` hears the time and how it goes."""
    # A report and a fetch an interval each: half of one in the mean.
    delay = of.config.policy.interval_seconds / 2
    world = world_of(of.scenario, of.config, of.seed, of.seconds, delay_seconds=delay)
    policy = (
        Learned(of.config, of.given)
        if of.given is not None
        else Fixed(of.config, of.profile, of.profiles)
    )
    return live(world, of.config, policy, of.seconds, told)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """W (C, M) and the number of a run."""

    scenario: Scenario
    config: Config
    table: Floats
    run: int


def _candidate(of: _Candidate, _told: Told) -> Played:
    """What comes of weights that are known from the start, were estimates exact."""
    scenario, upstreams = of.scenario, upstreams_in_order(of.scenario, of.config)
    deadlines = {u.name: u.deadline_seconds or 1.0 for u in of.config.upstreams}
    world = world_of(scenario, of.config, of.run, SEARCH_SECONDS)
    world.apply(
        ideal_weights(
            upstreams,
            addresses_of(of.config),
            [c.service_seconds for c in scenario.classes],
            [deadlines[n] for n in upstreams],
            [s.speed for s in scenario.servers],
            scenario.affinity,
            [s.slots for s in scenario.servers],
            of.table,
        )
    )
    world.finish()
    times = in_deadlines(world.requests, world.records())
    requests, tardiness = world.totals()
    return Played(requests, tardiness, float(times.mean()), float(np.quantile(times, 0.99)))


def candidates(
    scenario: Scenario, config: Config, tables: Sequence[Floats], sweep: Sweep
) -> Iterator[list[Played]]:
    """Of each W (C, M) what came of each run."""
    jobs = [
        Job(
            label=f"candidate {n} of the search",
            seconds=SEARCH_SECONDS,
            argument=_Candidate(scenario=scenario, config=config, table=table, run=run),
        )
        for n, table in enumerate(tables, 1)
        for run in range(SEARCH_SEED, SEARCH_SEED + SEARCH_RUNS)
    ]
    played = sweep.map(_candidate, jobs)
    for _ in tables:
        yield [next(played) for _ in range(SEARCH_RUNS)]


def compile_twin(scenario: Scenario, config: Config) -> None:
    """Compile what the twin runs, so that not each of many processes does so at the same time: half
    a minute where nothing is kept on disk yet, else a second."""
    world_of(scenario, config, SEARCH_SEED, 1.0).finish()
