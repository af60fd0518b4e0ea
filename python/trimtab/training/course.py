"""Training in the twin: the production controller steers simulated servers, over many seeds.

    1. search   W_ij by CMA-ES on the scenario (`twin.search`): the profiles "twin" and "twin-half"
                of the least ART, "mean" and "tail" of the least mean and 99% quantile of response
                times in deadlines
    2. observe  states are fitted over every load that is trained at (`observing`)
    3. learn    an episode a seed: the production controller with its estimator, guard and policy
                in a `twin.world.World`; the load varies from seed to seed
    4. measure  every profile, fixed, on the same requests: its advantage over neutral, paired by
                decision window, is what the table knows beforehand over all states
    5. compare  every profile, fixed, and what was learned, on requests that nothing has seen; and
                how many observations are outside of every state at loads that nothing was fitted to

What was reached is a trained file at any time (`learn.trained`): after each stage and episode it is
written, so that an interrupted training keeps what is done and `resume` goes on with the rest.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from trimtab.config import Config
from trimtab.demo.scenario import Scenario
from trimtab.errors import ConfigError, DependencyError, StateError
from trimtab.learn import network, trained
from trimtab.learn.actions import NEUTRAL, PROFILES, Profile, searched
from trimtab.learn.network import Network, NetworkTable
from trimtab.policy import Learned
from trimtab.sweep.jobs import Here, Job, Sweep
from trimtab.training.live import Lived, live, world_of
from trimtab.training.observing import (
    LOAD_FACTORS,
    check_seconds,
    observe_seconds,
    observed,
    outside_ratios,
)
from trimtab.training.plays import (
    SEARCH_RUNS,
    SEARCH_SECONDS,
    Play,
    candidates,
    compile_twin,
    play,
)
from trimtab.training.setting import addresses_of, upstreams_in_order, upstreams_of
from trimtab.twin.search import OBJECTIVES, by_name, search

__all__ = ["NEUTRAL_NAME", "Stage", "Training"]

NEUTRAL_NAME: Final = PROFILES[NEUTRAL].name

# The profiles of the objectives other than ART.
_SEARCHED_FOR: Final = {
    "mean": "W as searched in the twin for the least mean response time, in deadlines",
    "tail": "W as searched in the twin for the least 99% quantile of response times, in deadlines",
}

# In training, trying is free: most decisions explore, and nothing has to be proven first.
EXPLORATION_RATIO: Final = 0.75

# No episode fits the states again: they are those of all loads, and values are of states.
NEVER: Final = 1_000_000_000

# Long enough for some decisions after the server's usual observation.
COMPARE_SECONDS: Final = 900.0

# The row of the comparison for what the server starts from: states, values and all profiles.
LEARNED: Final = "as learned"

# Runs of the comparison draw from numbers that no episode has.
MEASURE_SEED: Final = 1_500_000
COMPARE_SEED: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a training is: `done` simulated seconds in all, and what to tell."""

    label: str
    done_seconds: float
    note: str = ""


@dataclass(slots=True)
class _Progress:
    """What is done, as it stands in the trained file."""

    weights: list[list[float]] | None = None  # W (C, M) of the search for the least ART
    others: dict[str, list[list[float]]] = field(default_factory=dict)  # and for the others
    searched: dict[str, float] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    # profile -> windows, mean and variance of its advantage in reward over neutral, measured
    advantages: dict[str, list[float]] = field(default_factory=dict)
    art_per_1000: dict[str, float] = field(default_factory=dict)  # profile -> ART, compared
    outside: dict[str, float] = field(default_factory=dict)  # load -> share outside of all states
    requests: int = 0


class Training:
    """One training, which `run` goes through.

    Args:
        scenario: servers, classes and load.
        config: upstreams and peers, as `configuration` gave them.
        output: the trained file.
        seconds: simulated, of each episode.
        seeds: episodes.
        evaluations: of the search; 0 leaves it out.
        with_network: whether a DQN learns, instead of the table.
    """

    def __init__(
        self,
        scenario: Scenario,
        config: Config,
        output: Path,
        *,
        seconds: float,
        seeds: int,
        evaluations: int,
        with_network: bool = False,
    ) -> None:
        self._scenario = scenario
        self._live_config = config
        self._config = replace(
            config,
            learning=replace(
                config.learning,
                exploration_ratio=EXPLORATION_RATIO,
                prove=False,
                outlier_threshold=NEVER,
            ),
        )
        self._upstreams = upstreams_in_order(scenario, config)
        self._given = upstreams_of(config)
        self._addresses = addresses_of(config)
        self._output, self._seconds, self._seeds = output, seconds, seeds
        self._evaluations = evaluations
        self._network = with_network
        self._learned: Network | None = None
        self._told: Callable[[Stage], None] = lambda _stage: None
        self._sweep: Sweep = Here()
        self._done_seconds = 0.0
        self._progress = _Progress()
        self._policy_state: dict[str, Any] | None = None

    @property
    def total_seconds(self) -> float:
        """Simulated seconds of a whole training, about."""
        runs = len(OBJECTIVES) * self._search_seconds + self._seeds * self._seconds
        runs += observe_seconds(self._seconds) + check_seconds(self._seconds)
        searched_for = 1 + len(OBJECTIVES)
        return runs + (2 * (len(PROFILES) + searched_for) + 2) * self._compare_seconds

    @property
    def _search_seconds(self) -> float:
        return self._evaluations * SEARCH_RUNS * SEARCH_SECONDS

    @property
    def _compare_seconds(self) -> float:
        return min(self._seconds, COMPARE_SECONDS)

    @property
    def requests(self) -> int:
        """Requests that were simulated."""
        return self._progress.requests

    @property
    def seeds_done(self) -> int:
        """Episodes that are in the file."""
        return len(self._progress.seeds)

    @property
    def art_per_1000(self) -> Mapping[str, float]:
        """Profile -> ART per 1000 requests in the comparison; empty before it."""
        return self._progress.art_per_1000

    @property
    def outside(self) -> Mapping[str, float]:
        """Load, as a share of the scenario's -> share of the observations outside of every state,
        at loads that the states were not fitted to; empty before it is measured."""
        return self._progress.outside

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Those of the trained file: none before the search, or when it found nothing better."""
        progress = self._progress
        found = [
            ("twin", "W as searched in the twin", progress.weights, 1.0),
            (
                "twin-half",
                "W^1/2: half as far from neutral as what was searched in the twin",
                progress.weights,
                0.5,
            ),
            *((name, _SEARCHED_FOR[name], table, 1.0) for name, table in progress.others.items()),
        ]
        return tuple(
            searched(name, said, by_name(np.array(table), self._upstreams, self._addresses, power))
            for name, said, table, power in found
            if table is not None and not np.allclose(np.array(table), 1.0)
        )

    def resume(self) -> None:
        """Go on from the output file. Raises StateError when it is damaged, ConfigError when it is
        of another training."""
        body, _ = trained.read(self._output)
        training = body.get("training", {})
        if training.get("plan") != self._plan():
            raise ConfigError(
                f"{self._output}: of another training ({training.get('plan')}, now "
                f"{self._plan()}); name another --output, or leave --resume out to begin anew"
            )
        try:
            trained.parse(body)
            self._progress = _Progress(**training["progress"])
            self._policy_state = training["policy"]
            if body["network"]:
                self._learned = trained.network_beside(self._output, body["network"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"{self._output}: of another shape: {error}") from None

    def _plan(self) -> dict[str, Any]:
        """What must be the same for going on; more seeds may be asked for."""
        return {
            "scenario": self._scenario.name,
            "upstreams": self._given,
            "seconds": self._seconds,
            "evaluations": self._evaluations,
            "method": "dqn" if self._network else "table",
        }

    def _save(self) -> None:
        progress = self._progress
        entry = None
        if self._learned is not None:
            # Named by its content: the trained file never names a network of another moment.
            data = network.dump(self._learned)
            content = network.digest(data)
            path = self._output.with_name(f"{self._output.stem}-{content[:12]}.npz")
            trained.replace(path, data)
            entry = {"file": path.name, "sha256": content}
        trained.write(
            self._output,
            trained.body_of(
                self._given,
                self.profiles,
                self._known(),
                {
                    "plan": self._plan(),
                    "progress": {n: getattr(progress, n) for n in progress.__dataclass_fields__},
                    "policy": self._policy_state,
                },
                entry,
            ),
        )
        for old in self._output.parent.glob(f"{self._output.stem}-{'[0-9a-f]' * 12}.npz"):
            if entry is None or old.name != entry["file"]:
                old.unlink(missing_ok=True)

    def run(
        self,
        told: Callable[[Stage], None] = lambda _stage: None,
        sweep: Sweep | None = None,
    ) -> None:
        """All that is left to do; what is done is in the file, also when this is interrupted.
        `told` is called now and then with where it is. The sweep does what can be done at once
        (default: in this process); the file is the same with any."""
        self._told = told
        if sweep is not None:
            self._sweep = sweep
            if sweep.parallel > 1:
                compile_twin(self._scenario, self._config)
        for objective in OBJECTIVES:
            if self._evaluations and not self._is_searched(objective):
                self._search(objective)
                self._save()
            self._done_seconds += self._search_seconds
        if self._policy_state is None:
            self._observe()
            self._save()
        self._done_seconds += observe_seconds(self._seconds)
        for seed in range(1, self._seeds + 1):
            if seed not in self._progress.seeds:
                self._episode(seed)
                self._progress.advantages, self._progress.art_per_1000 = {}, {}
                self._progress.outside = {}
                self._save()
            self._done_seconds += self._seconds
        if not self._progress.advantages:
            self._measure()
            self._save()
        self._done_seconds += self._compare_seconds * (1 + len(self.profiles) + len(PROFILES))
        if not self._progress.art_per_1000:
            self._compare()
            self._save()
        self._done_seconds = self.total_seconds - check_seconds(self._seconds)
        if not self._progress.outside:
            self._check()
            self._save()

    # The stages

    def _is_searched(self, objective: str) -> bool:
        if objective == "art":
            return self._progress.weights is not None
        # A training that was begun without them goes on without: its states and values are of
        # the profiles that it had.
        return objective in self._progress.others or self._policy_state is not None

    def _search(self, objective: str) -> None:
        def told(count: int, art: float) -> None:
            done = count * SEARCH_RUNS * SEARCH_SECONDS
            self._heard(f"search, {objective}", done, f"ART per 1000 {art:.1f}")

        told(0, math.nan)
        try:
            found = search(
                lambda tables: candidates(self._scenario, self._config, tables, self._sweep),
                (len(self._upstreams), len(self._addresses)),
                objective=objective,
                evaluations=self._evaluations,
                told=told,
            )
        except DependencyError as error:
            if objective == "art":
                self._told(Stage("no search", 0.0, str(error)))
            return
        if objective != "art":
            self._progress.others[objective] = found.weights.tolist()
            return
        self._progress.weights = found.weights.tolist()
        self._progress.searched = {
            "art_per_1000": found.art_per_1000,
            "neutral_art_per_1000": found.neutral_art_per_1000,
            "evaluations": found.evaluations,
        }

    def _heard(self, label: str, seconds: float, note: str) -> None:
        self._told(Stage(label, self._done_seconds + seconds, note))

    def _observe(self) -> None:
        profiles = (*PROFILES, *self.profiles)
        policy, _ = self._policy()
        for each in observed(
            self._scenario, self._config, profiles, self._seconds, self._heard, self._sweep
        ):
            policy.observe(each, self._config.policy.interval_seconds)
        policy.fit()
        self._policy_state = policy.to_state()

    def _check(self) -> None:
        """How well the states fit other loads."""
        if self._policy_state and self._policy_state["clusters"]:
            self._progress.outside = outside_ratios(
                self._scenario,
                self._config,
                (*PROFILES, *self.profiles),
                self._policy_state["clusters"],
                self._seconds,
                self._heard,
                self._sweep,
            )

    def _policy(self) -> tuple[Learned, NetworkTable | None]:
        """What learns, as nothing was learned yet, and its network's table."""
        table = self._dqn() if self._network else None
        return Learned(self._config, trained.Trained(profiles=self.profiles), table), table

    def _episode(self, seed: int) -> None:
        policy, table = self._policy()
        if self._policy_state is not None:
            policy.restore(self._policy_state)
        # The first at the scenario's own load, the others around it.
        factor = 1.0 if seed == 1 else Random(seed).uniform(*LOAD_FACTORS)  # noqa: S311
        # A report and a fetch an interval each: half of one in the mean.
        delay = self._config.policy.interval_seconds / 2
        world = world_of(
            self._scenario, self._config, seed, self._seconds, factor=factor, delay_seconds=delay
        )
        lived = live(
            world,
            self._config,
            policy,
            self._seconds,
            lambda now, note: self._heard(f"episode {seed}", now, note),
        )
        self._progress.requests += lived.requests
        self._policy_state = policy.to_state()
        self._learned = table.network if table else None
        self._progress.seeds.append(seed)

    def _dqn(self) -> NetworkTable:
        try:
            dqn = importlib.import_module("trimtab.learn.dqn")
        except ImportError:
            raise DependencyError(
                "a DQN needs the package torch: pip install 'trimtab[dqn]', or train the table "
                "(--method table)"
            ) from None
        table: NetworkTable = dqn.DQN(
            [p.name for p in (*PROFILES, *self.profiles)],
            exploration_ratio=EXPLORATION_RATIO,
            seed=self._config.learning.seed,
        )
        return table

    def _fixed(self, seed: int, doing: str) -> list[Job[Play]]:
        """A run of each profile through the same requests."""
        fixed = replace(self._config, learning=replace(self._config.learning, enabled=False))
        profiles = (*PROFILES, *self.profiles)
        return [
            self._job(f"{doing} {p.name}", fixed, seed, profile=p.name, profiles=profiles)
            for p in profiles
        ]

    def _job(self, label: str, config: Config, seed: int, **policy: Any) -> Job[Play]:
        seconds = self._compare_seconds
        return Job(
            label=label,
            seconds=seconds,
            argument=Play(
                scenario=self._scenario, config=config, seed=seed, seconds=seconds, **policy
            ),
        )

    def _played(self, jobs: Sequence[Job[Play]]) -> Iterator[Lived]:
        for lived in self._sweep.map(play, jobs, self._heard):
            self._progress.requests += lived.requests
            yield lived

    def _measure(self) -> None:
        names = [p.name for p in (*PROFILES, *self.profiles)]
        runs = self._played(self._fixed(MEASURE_SEED, "try"))
        found = {n: np.array(lived.rewards) for n, lived in zip(names, runs, strict=True)}
        for name, rewards in found.items():
            gains = rewards - found[NEUTRAL_NAME]
            if name != NEUTRAL_NAME and gains.size:
                self._progress.advantages[name] = [
                    gains.size,
                    float(gains.mean()),
                    float(gains.var()),
                ]

    def _known(self) -> dict[str, Any] | None:
        """The state of the policy, with what was measured of each profile over all states."""
        state = self._policy_state
        if state is None or not self._progress.advantages:
            return state
        overall = [[name, int(n), *rest] for name, (n, *rest) in self._progress.advantages.items()]
        return {**state, "table": {**state["table"], "overall": overall}}

    def _compare(self) -> None:
        names = [*(p.name for p in (*PROFILES, *self.profiles)), LEARNED]
        body = trained.body_of(self._given, self.profiles, self._known(), {})
        given = replace(trained.parse(body), network=self._learned)
        jobs = [
            *self._fixed(COMPARE_SEED, "compare"),
            self._job(LEARNED, self._live_config, COMPARE_SEED, given=given),
        ]
        arts = [lived.art_per_1000 for lived in self._played(jobs)]
        self._progress.art_per_1000.update(zip(names, arts, strict=True))
