"""Policies: from the features of the balancer to a proposal of weights.

STATE   the cluster that was seen most in the decision window (`learn.clusters`)
ACTION  a profile, held for a decision window (`learn.actions`)
REWARD  of that window (`learn.reward`)

A policy proposes; whether it comes into force is the guard's. No I/O and no clock here: time is
what the windows say.
"""

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trimtab.config import Config
from trimtab.estimate import Estimates, shares
from trimtab.learn.actions import NEUTRAL, PROFILES, Profile, actions, profile_weights
from trimtab.learn.clusters import MOST_SAMPLES, Clusters, State, fit_wanted
from trimtab.learn.features import Features, demand
from trimtab.learn.network import NetworkTable
from trimtab.learn.qlearning import QTable
from trimtab.learn.trained import Trained
from trimtab.model import PeerWeight, UpstreamWeights, Weights

__all__ = ["Decision", "Learned", "Neutral", "proposal"]

_log: Final = logging.getLogger(__name__)

# Of a fitted mixture's own observations one in 370 lies outside, of a heavy tail's a few in a
# hundred: eight of ten are another world.
OUTSIDE_OF: Final = 10
OUTSIDE_LEAST: Final = 8

# Beyond it slots cannot be counted up to with certainty, and a guess that is too low would hold
# requests back for good.
MOST_GUESSED_SLOTS: Final = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The profile for the next decision window, by name, in which state (None: not known yet),
    whether to learn about it, and why; `worse` says how what is explored is surely worse than
    neutral, "" where it is not."""

    profile: str
    state: int | None
    exploring: bool
    reason: str
    worse: str = ""


def proposal(
    config: Config,
    estimates: Estimates,
    deadlines: Mapping[str, float],
    profile: str,
    profiles: Sequence[Profile] = PROFILES,
) -> Weights:
    """Weights for every configured upstream and peer: W from the profile (by name; an unknown one
    is neutral), the rest from the estimates. Slots and sharing only where they are sure."""
    chosen = next((p for p in profiles if p.name == profile), PROFILES[NEUTRAL])
    upstreams: dict[str, UpstreamWeights] = {}
    slots = _slots(config, estimates)
    for upstream in config.upstreams:
        affinity = estimates.affinity.get(upstream.name, {})
        addresses = [p.address for p in upstream.peers]
        weights = profile_weights(chosen, addresses, estimates.rates, affinity, upstream.name)
        peers: dict[str, PeerWeight] = {}
        for address in addresses:
            peers[address] = PeerWeight(
                weight=weights[address],
                affinity=affinity.get(address, 1.0),
                rate=estimates.rates.get(address, 1.0),
                slots=slots.get(address),
                sharing=shares(estimates, address),
            )
        upstreams[upstream.name] = UpstreamWeights(
            peers=peers,
            deadline_seconds=deadlines.get(upstream.name),
            service_time_seconds=estimates.service_time_seconds.get(upstream.name),
        )
    return Weights(upstreams=upstreams)


def _slots(config: Config, estimates: Estimates) -> dict[str, float]:
    """Slots by address: the sure ones, and where some are, a guess at the others.

    A server of unknown slots looks full to the rule as soon as it has a request. Beside others
    whose slots are known it would get so few that they never were: it is taken to be like those,
    or to have twice as many as it has shown at least. Where requests are held a guess that is too
    low costs capacity until it is doubled, one that is too high a queue until it is seen.
    """
    sure = {a: float(k.value) for a, k in estimates.slots.items() if k.sure}
    found = dict(sure)
    for upstream in config.upstreams:
        known = [p.slots or sure.get(p.address) for p in upstream.peers]
        alike = sorted(k for k in known if k)
        if not alike or len(alike) == len(known):
            continue
        middle = alike[len(alike) // 2]
        for peer in upstream.peers:
            least = estimates.least_slots.get(peer.address, 1)
            if max(middle, least) <= MOST_GUESSED_SLOTS:
                guess = max(middle, min(2.0 * least, MOST_GUESSED_SLOTS))
                found.setdefault(peer.address, guess)
    return found


class Neutral:
    """Estimates only: W = 1 always. What runs when learning is disabled."""

    fitted = True
    outside = ""

    def __init__(self, config: Config) -> None:
        self._config = config

    def observe(self, features: Features, seconds: float) -> str:
        """Nothing to remember."""
        del features, seconds
        return ""

    def fit(self) -> str:
        """Nothing to fit."""
        return ""

    def decide(self) -> Decision:
        """Neutral."""
        return Decision(
            profile=PROFILES[NEUTRAL].name, state=None, exploring=False, reason="not learning"
        )

    def learn(self, profile: str, reward: float) -> None:
        """Nothing to learn."""

    def propose(
        self, estimates: Estimates, deadlines: Mapping[str, float], profile: str
    ) -> Weights:
        """W = 1, whatever the profile."""
        del profile
        return proposal(self._config, estimates, deadlines, PROFILES[NEUTRAL].name)

    def status(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def to_state(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """What another policy saved stays unused."""


class Learned:
    """Gaussian-mixture states and Q-learning over the profiles, tabular or with a network.

    Keeps the last 2000 observations for fitting. When more observations than
    `outlier_threshold` were outside of every state, it observes for `observe_seconds` more and
    fits again; states that are found again keep their identity and what was learned in them.

    Args:
        config: the configuration.
        trained: states, values and further profiles to start from.
        table: what learns, instead of the tabular Q-learning of `trained`; over the same actions.
    """

    def __init__(
        self, config: Config, trained: Trained | None = None, table: QTable | None = None
    ) -> None:
        self._config = config
        self._profiles = actions(config.nginx.mode, trained.profiles if trained else ())
        self._trained = trained.digest if trained else ""
        learning = config.learning
        self._table = table or NetworkTable(
            [p.name for p in self._profiles],
            network=trained.network if trained else None,
            exploration_ratio=learning.exploration_ratio,
            seed=learning.seed,
        )
        self._samples: deque[Features] = deque(maxlen=MOST_SAMPLES)
        self._clusters: Clusters | None = None
        self._now: State | None = None
        self._seen: Counter[int] = Counter()  # in the present decision window
        self._occupancy: Counter[int] = Counter()  # since the last fit
        self._outside = 0
        self._lately: deque[bool] = deque(maxlen=OUTSIDE_OF)  # whether outside
        self._reobserve: float | None = None  # seconds left of a renewed observation
        self._decided_in: int | None = None
        if trained and trained.clusters:
            self._clusters = trained.clusters
            self._table.restore(trained.table)
            self._table.describe(self._clusters)

    @property
    def fitted(self) -> bool:
        """Whether there are states."""
        return self._clusters is not None

    @property
    def outside(self) -> str:
        """Why the present state is none of those that were learned in, or ""."""
        count = sum(self._lately)
        if count < OUTSIDE_LEAST:
            return ""
        return (
            f"the load of {count} of the last {len(self._lately)} observations lies outside of "
            "every state"
        )

    def observe(self, features: Features, seconds: float) -> str:
        """Take the features of an interval of that length in; gives what happened, if anything
        worth telling. May fit, which takes about a second, or some where their number is chosen."""
        self._samples.append(features)
        if self._clusters is None:
            return ""
        self._now = self._clusters.classify(features)
        self._seen[self._now.index] += 1
        self._occupancy[self._now.index] += 1
        self._outside += self._now.outside
        # A profile that is new makes new queues: what is strange must not be its own doing.
        self._lately.append(self._clusters.classify(demand(features)).outside)
        if self._reobserve is not None:
            self._reobserve -= seconds
            return self.fit() if self._reobserve <= 0 else ""
        threshold = self._config.learning.outlier_threshold
        if self._outside > threshold:
            self._reobserve = self._config.learning.observe_seconds
            return (
                f"{self._outside} observations outside of every state, more than {threshold}: "
                f"observing for {self._reobserve:g} s, then fitting the states again"
            )
        return ""

    def fit(self) -> str:
        """Fit the states to the observations kept; gives what came out. Without any: nothing."""
        self._reobserve = None
        self._outside = 0
        self._lately.clear()
        if not self._samples:
            return ""
        learning = self._config.learning
        before = self._clusters
        samples = list(self._samples)
        self._clusters = fit_wanted(samples, learning.clusters, seed=learning.seed, previous=before)
        now = set(self._clusters.identities)
        gone = sorted(set(before.identities) - now) if before else []
        self._table.forget(gone)
        self._table.describe(self._clusters)
        self._seen.clear()
        self._occupancy = Counter(self._clusters.classify(s).index for s in samples)
        if self._decided_in in gone:
            self._decided_in = None
        kept = len(now & set(before.identities)) if before else 0
        return f"{len(now)} states from {len(samples)} observations, {kept} of them known before"

    def decide(self) -> Decision:
        """The profile for the next decision window; begins that window."""
        state = self._common()
        self._seen.clear()
        self._decided_in = state
        if state is None:
            return Decision(
                profile=PROFILES[NEUTRAL].name, state=None, exploring=False, reason="no state yet"
            )
        choice = self._table.choose(state)
        return Decision(
            profile=self._profiles[choice.action].name,
            state=state,
            exploring=choice.exploring,
            reason=choice.reason,
            worse=self._table.worse(state, choice.action) if choice.exploring else "",
        )

    def _common(self) -> int | None:
        """The state seen most in this decision window; the present one when none was."""
        if self._seen:
            return self._seen.most_common(1)[0][0]
        return self._now.index if self._now else None

    def learn(self, profile: str, reward: float) -> None:
        """Take the reward of the window that the last `decide` began in; `profile` is what was in
        force then. Call before the next `decide`."""
        state, after = self._decided_in, self._common()
        action = next((n for n, p in enumerate(self._profiles) if p.name == profile), None)
        if state is None or after is None or action is None:
            return
        self._table.learn(state, action, reward, after)

    def propose(
        self, estimates: Estimates, deadlines: Mapping[str, float], profile: str
    ) -> Weights:
        """The weights of a profile, see `proposal`."""
        return proposal(self._config, estimates, deadlines, profile, self._profiles)

    def status(self) -> dict[str, Any]:
        """For JSON: the present state, the clusters and the Q-table.

        {"state": {"index", "log_likelihood", "outside"} or None, "outside": count since the fit,
        "observations": kept, "clusters": [{"index", "share" of the observations since the fit,
        "weight", "means": {feature: value}, "transitions": {index: probability under neutral}}],
        "values": {state: {profile: {"value", "visits", "next"}}}, "profiles": {name: summary}}
        """
        now = self._now
        return {
            "state": (
                {
                    "index": now.index,
                    "log_likelihood": now.log_likelihood,
                    "outside": now.outside,
                }
                if now
                else None
            ),
            "outside": self._outside,
            "observations": len(self._samples),
            "clusters": self._described(self._clusters) if self._clusters else [],
            "values": self._table.status(),
            "profiles": {p.name: p.summary for p in self._profiles},
        }

    def _described(self, clusters: Clusters) -> list[dict[str, Any]]:
        means = clusters.readable_means()
        total = self._occupancy.total() or 1
        return [
            {
                "index": index,
                "share": self._occupancy[index] / total,
                "weight": float(weight),
                "means": means[index],
                "transitions": {
                    str(s): p
                    for s, p in self._table.transitions(index, NEUTRAL, clusters.identities).items()
                },
            }
            for index, weight in zip(clusters.identities, clusters.weights, strict=True)
        ]

    def to_state(self) -> dict[str, Any]:
        """As JSON-able data: the clusters and the table, not the observations."""
        return {
            "clusters": self._clusters.to_state() if self._clusters else None,
            "occupancy": sorted(self._occupancy.items()),
            "table": self._table.to_state(),
            "trained": self._trained,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `to_state` gave. Raises KeyError, TypeError or ValueError for another
        shape, and has changed nothing then.

        What was learned live from another trained file (or none) than the present one is left: to
        give a new file means to start from it."""
        if not state:
            return
        if self._trained and state.get("trained", "") != self._trained:
            _log.info("starting from the trained file, not from what was learned before it")
            return
        clusters = Clusters.from_state(state["clusters"]) if state["clusters"] else None
        occupancy = Counter({int(s): int(n) for s, n in state["occupancy"]})
        self._table.restore(state["table"])
        self._clusters, self._occupancy = clusters, occupancy
        if clusters:
            self._table.describe(clusters)
