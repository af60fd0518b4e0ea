"""What learning adds, in the twin: the same requests under every learner, and under faults.

    least_conn    nginx's, counting per class (`twin.events`)
    heuristic     neutral: the rule and the estimates, every W = 1; what ratios are to
    heuristic again   the same, only that ties are broken otherwise: what chance alone does
    table, cold   tabular Q-learning from nothing
    table         from the trained file: states, values, searched W
    dqn           the same with the network of a DQN, where one was trained
    twin W        the searched W, fixed: neither guard nor trial
    garbage       as table, but its learner is told random rewards
    poisoned      a trained file whose W are the searched ones turned round, and praised
    nan           as table, but one report in five has rows of NaN

A run is cut in halves. The first is *during* learning: observation, trial and all; the second
*after* it. All runs of a seed have the same requests, so ratios are paired by seed. Whether
requests wait for a server with room is the configuration's `hold`. The learner's own dice (what it
explores, and when) are drawn from the seed too, so that seeds differ in them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from trimtab.bench.scenario import schedule, simulator_input
from trimtab.bench.statistics import ART_FLOOR, Ratio, median, paired_ratio
from trimtab.config import Config
from trimtab.demo.scenario import Scenario
from trimtab.learn import trained
from trimtab.learn.actions import PROFILES, searched
from trimtab.learn.trained import Trained
from trimtab.model import Snapshot
from trimtab.policy import Learned, Neutral
from trimtab.sweep.jobs import Heard, Here, Job, Sweep, Told, quiet
from trimtab.training.live import Fixed, live, world_of
from trimtab.training.plays import compile_twin
from trimtab.twin.bounds import summary
from trimtab.twin.events import Rule, simulate
from trimtab.twin.world import World

__all__ = [
    "AGAIN",
    "BASE",
    "FAULTS",
    "HALVES",
    "LEARNERS",
    "LEAST_CONN",
    "UNGUARDED",
    "Comparison",
    "poisoned",
]

BASE: Final = "heuristic"
AGAIN: Final = "heuristic again"
LEAST_CONN: Final = "least_conn"
UNGUARDED: Final = "twin W"
LEARNERS: Final = (LEAST_CONN, BASE, AGAIN, "table, cold", "table", "dqn", UNGUARDED)
FAULTS: Final = ("garbage", "poisoned", "nan")
HALVES: Final = ("during", "after")

# One report in so many is spoilt.
NAN_EVERY: Final = 5

# Random rewards are as large as real ones.
GARBAGE: Final = (-5.0, 5.0)


class _Garbage(Learned):
    """A learner that is told random rewards."""

    def __init__(self, config: Config, given: Trained | None, seed: int) -> None:
        super().__init__(config, given)
        self._dice = Random(seed)  # noqa: S311 -- rewards need a seed, not secrecy

    def learn(self, profile: str, reward: float) -> None:
        """Something else."""
        del reward
        super().learn(profile, self._dice.uniform(*GARBAGE))


class _Spoilt:
    """A source whose reports now and then have rows of NaN."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._count = 0

    def read(self) -> tuple[Snapshot, ...]:
        """The world's counters, every fifth time with NaN in the times of one server."""
        self._count += 1
        snapshots = self._world.read()
        if self._count % NAN_EVERY:
            return snapshots
        return tuple(replace(s, pairs=_spoilt(s.pairs)) for s in snapshots)


def _spoilt(pairs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    spoilt = {name: dict(peers) for name, peers in pairs.items()}
    for peers in spoilt.values():
        first = next(iter(peers))
        peers[first] = replace(
            peers[first],
            response_time_seconds=math.nan,
            tardiness=math.nan,
            unqueued_seconds=math.nan,
        )
    return spoilt


def poisoned(given: Trained) -> Trained:
    """A trained file as an enemy would write it: every searched W turned into its inverse (or, with
    none, the first servers at the bound), and the values saying that it is by far the best."""
    profiles = []
    for profile in given.profiles:
        factors = {n: {a: 1 / w for a, w in peers.items()} for n, peers in profile.factors.items()}
        profiles.append(searched(profile.name, profile.summary, factors))
    praised = [[p.name, 8, 3.0, 0.01] for p in profiles]
    others = [
        row for row in given.table.get("overall", []) if row[0] not in {p.name for p in profiles}
    ]
    table = {"rows": [], "overall": [*others, *praised]}
    return Trained(profiles=tuple(profiles), clusters=given.clusters, table=table)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One of a comparison; `given` is the trained file where one is used."""

    who: str
    scenario: Scenario
    config: Config
    seed: int
    seconds: float
    given: Trained | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """ART by half, and when the first profile was promoted."""

    art: Mapping[str, float]
    promoted_seconds: float | None = None


def _outcome(run: _Run, told: Told) -> _Outcome:
    if run.who == LEAST_CONN:
        return _Outcome(art=dict(_least_conn(run)))
    # Explorations are other ones in each run: what they cost is part of the answer.
    learning = replace(run.config.learning, seed=run.seed)
    enabled = run.who not in (BASE, AGAIN, UNGUARDED)
    config = replace(run.config, learning=replace(learning, enabled=enabled))
    world = world_of(
        run.scenario,
        config,
        run.seed,
        run.seconds,
        delay_seconds=config.policy.interval_seconds / 2,
        ties=int(run.who == AGAIN),
    )
    source = _Spoilt(world) if run.who == "nan" else None
    lived = live(world, config, _policy(run, config), run.seconds, told, source)
    middle = run.seconds / 2
    return _Outcome(
        art={
            HALVES[0]: lived.art_between(0.0, middle),
            HALVES[1]: lived.art_between(middle, run.seconds),
        },
        promoted_seconds=lived.promoted_seconds,
    )


def _policy(run: _Run, config: Config) -> Learned | Neutral:
    if run.who in (BASE, AGAIN):
        return Neutral(config)
    given = run.given
    if given is None:  # "table, cold"
        return Learned(config)
    if run.who == UNGUARDED:
        return Fixed(config, "twin", (*PROFILES, *given.profiles))
    if run.who == "garbage":
        return _Garbage(config, given, run.seed)
    return Learned(config, poisoned(given) if run.who == "poisoned" else given)


def _least_conn(run: _Run) -> Iterator[tuple[str, float]]:
    drawn = schedule(run.scenario, run.seed, run.seconds)
    servers, requests, changes = simulator_input(run.scenario, drawn)
    records = simulate(servers, requests, Rule(name="least_conn", per_class=True), changes)
    whole = summary(requests, records)
    later = summary(requests, records, after_seconds=run.seconds / 2)
    sums = whole.art_per_1000 * whole.requests - later.art_per_1000 * later.requests
    yield HALVES[0], sums / max(1, whole.requests - later.requests)
    yield HALVES[1], later.art_per_1000


@dataclass(slots=True)
class Comparison:
    """The runs of one scenario; `art` is by who, half and seed, `promoted` seconds by who and seed
    (absent: nothing was promoted).

    Args:
        scenario, config: what is compared on.
        tables, network: the trained files; `network` None where there is none.
        seconds: of each run.
    """

    scenario: Scenario
    config: Config
    tables: Path
    network: Path | None
    seconds: float
    art: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    promoted: dict[str, dict[int, float]] = field(default_factory=dict)

    def run(
        self,
        who: Sequence[str],
        seeds: Sequence[int],
        heard: Heard = quiet,
        sweep: Sweep | None = None,
    ) -> None:
        """All of them on all seeds; `heard` hears the simulated seconds done, and what runs. The
        sweep does them (default: in this process); the results are the same with any."""
        sweep = sweep or Here()
        if sweep.parallel > 1:
            compile_twin(self.scenario, self.config)
        of_who = {name: self._given(name) for name in who if name != "dqn" or self.network}
        jobs = [
            Job(
                label=f"{self.scenario.name}, {name}, seed {seed}",
                seconds=self.seconds,
                argument=_Run(
                    who=name,
                    scenario=self.scenario,
                    config=self.config,
                    seed=seed,
                    seconds=self.seconds,
                    given=given,
                ),
            )
            for seed in seeds
            for name, given in of_who.items()
        ]
        for job, outcome in zip(jobs, sweep.map(_outcome, jobs, heard), strict=True):
            run = job.argument
            for half, value in outcome.art.items():
                self.art.setdefault(run.who, {}).setdefault(half, {})[run.seed] = value
            if outcome.promoted_seconds is not None:
                self.promoted.setdefault(run.who, {})[run.seed] = outcome.promoted_seconds

    def _given(self, who: str) -> Trained | None:
        """The trained file of one; read here, as other machines need not have it."""
        if who in (LEAST_CONN, BASE, AGAIN, "table, cold"):
            return None
        return trained.load(
            self.network if who == "dqn" and self.network else self.tables, self.config
        )

    def ratio(self, who: str, half: str) -> Ratio | None:
        """ART of the half to the heuristic's, paired by seed."""
        base = self.art.get(BASE, {}).get(half, {})
        return paired_ratio(self.art.get(who, {}).get(half, {}), base, floor=ART_FLOOR)

    def worst(self, who: str, half: str) -> float | None:
        """The largest ratio of a seed; None without any."""
        mine, base = (self.art.get(name, {}).get(half, {}) for name in (who, BASE))
        each = [paired_ratio({s: mine[s]}, base, floor=ART_FLOOR) for s in mine]
        return max((ratio.mean for ratio in each if ratio is not None), default=None)

    def promotion_minutes(self, who: str) -> float | None:
        """Median minutes from the start until a profile was promoted; None where none was."""
        found = self.promoted.get(who)
        return median(found) / 60 if found else None
