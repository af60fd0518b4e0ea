"""The controller: one step of the loop from statistics to weights in force.

    Source.read → Snapshot → Window → estimates, features → Policy → Guard → Actuator.apply

It owns the order of things and the phases: *observing* until `observe_seconds` of traffic were
seen, when the deadlines are fixed and the states fitted; then *learning* (or *fixed*, when
learning is disabled): every `decision_seconds` of windows the last profile gets its reward and the
next is chosen. Each step the estimates move on and the guard admits what they make of the profile.
How to estimate, decide or bound lives elsewhere; nothing here sleeps or does I/O of its own.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from trimtab import overview
from trimtab.config import Config
from trimtab.deciding import NEUTRAL_NAME, Deciding, Policy
from trimtab.discipline import SHARING, news
from trimtab.errors import SourceError, TrimtabError
from trimtab.estimate import FORGET_SECONDS, Estimates, Estimator
from trimtab.explain import explain
from trimtab.fleet import Fleet
from trimtab.guard import Guard
from trimtab.journal import Entry, Journal
from trimtab.model import Snapshot, Weights, Window
from trimtab.observation import Observation
from trimtab.overview import Change, View
from trimtab.store import StateStore
from trimtab.traffic import History, Totals

__all__ = ["Actuator", "Controller", "Policy", "Source"]

_log: Final = logging.getLogger(__name__)

# The summary of classes in `status` covers about this long.
RECENT_SECONDS: Final = 10.0

# At 50 requests/s and server and windows of 2 s: a rate within 5%, the default material change.
STOCK_FORGET_WINDOWS: Final = 3.0


def _forget_seconds(config: Config) -> float:
    """The memory of the estimates. In stock mode weights are for the time from one reload to the
    next, and nothing else sees that a server has slowed: so long, but a few windows at least."""
    if config.nginx.mode != "stock":
        return FORGET_SECONDS
    least = STOCK_FORGET_WINDOWS * config.policy.interval_seconds
    return min(max(config.stock.reload_min_seconds, least), FORGET_SECONDS)


class Source(Protocol):
    """Where statistics come from."""

    def read(self) -> tuple[Snapshot, ...]:
        """The newest snapshot of each balancer. Raises SourceError. Safe to call in a thread."""
        ...


class Actuator(Protocol):
    """What puts weights in force."""

    def apply(self, weights: Weights) -> None:
        """Put `weights` in force, or raise TrimtabError and keep what is. Called in a thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """Something of this step that the journal is told: see `journal.Entry`."""

    kind: str
    reason: str
    who: str = ""


class Controller:
    """See the module. Puts the first weights in force when it is made.

    `step` and `save` are called by one thread at a time; the rest is safe from any thread.
    Raises TrimtabError when the first weights cannot be put in force.

    Args:
        config: the configuration.
        source, policy, guard, actuator, store: the parts.
        clock: seconds, of a clock that does not go back: the age of the statistics.
        wall: seconds since 1970, for the journal.
        in_force: weights of the store's epoch that are in force already, if any.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        policy: Policy,
        guard: Guard,
        actuator: Actuator,
        store: StateStore,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        in_force: Weights | None = None,
    ) -> None:
        self._config = config
        self._source = source
        self._policy = policy
        self._guard = guard
        self._actuator = actuator
        self._store = store
        self._clock = clock
        self._wall = wall
        addresses = {u.name: [p.address for p in u.peers] for u in config.upstreams}
        slots = {p.address: p.slots for u in config.upstreams for p in u.peers}
        self._disciplines = {p.address: p.discipline for u in config.upstreams for p in u.peers}
        sharing = [address for address, told in self._disciplines.items() if told == SHARING]
        self._estimator = Estimator(addresses, slots, _forget_seconds(config), sharing=sharing)
        self._estimates = Estimates()
        self._observation = Observation(config, policy)
        self._recent: deque[Window] = deque()
        self._fleet = Fleet()
        self._deciding = Deciding(policy, guard.trials, config.learning.decision_seconds)
        self._in_force = in_force
        self._journal = Journal()
        self._events: list[_Event] = []  # of this step, for the journal
        self._troubles: dict[str, str] = {}  # what is wrong now, by part
        # Pins, drains and shadow come from other threads.
        self._operator = threading.Lock()
        self._orders: list[_Event] = []  # what the operator did since the last step
        self._snapshots: tuple[Snapshot, ...] = ()
        self._change: Change | None = None
        self._totals = Totals()
        self._history = History()
        self._measured_at: float | None = None
        restored = self._restore()
        start = "start, with what was learned before" if restored else "start, configured weights"
        self._act(_Event(kind="start", reason=start))
        self._view = self._look()

    @property
    def events(self) -> dict[str, int]:
        """How many entries of each kind the journal was ever given."""
        return self._journal.counts()

    @property
    def weights(self) -> Weights | None:
        """What is in force."""
        return self._in_force

    @property
    def phase(self) -> str:
        """One of observing, learning and fixed."""
        if not self._observation.done or not self._policy.fitted:
            return "observing"
        return "learning" if self._config.learning.enabled else "fixed"

    def step(self) -> None:
        """Read, estimate, observe, perhaps decide, act. Raises TrimtabError when the weights could
        not be put in force or no generation could be had; what is in force stays."""
        window = self._read()
        cause = _Event(kind="weights", reason="estimates")
        try:
            if window is not None:
                self._remember(window)
                if window.requests:
                    self._estimate(window)
                    for told in self._observation.take(window):
                        self._events.append(_Event(kind="observation", reason=told))
                    cause = self._decide(window) or cause
            self._act(cause)
        finally:
            self._view = self._look()

    def _read(self) -> Window | None:
        """The merged window since the last step; None when no balancer had anything new."""
        try:
            snapshots = self._source.read()
        except SourceError as error:
            self._trouble("source", f"no statistics: {error}; going on with what is known")
            return None
        self._trouble("source", "")
        self._snapshots = snapshots
        merged = self._fleet.take(snapshots)
        if merged is None:
            return None
        # Balancers that have nothing new in this very step share the servers all the same.
        return replace(merged, instances=len(snapshots))

    def _estimate(self, window: Window) -> None:
        self._estimator.update(window)
        before, self._estimates = self._estimates.disciplines, self._estimator.estimates()
        for told in news(before, self._estimates.disciplines, self._disciplines):
            self._events.append(_Event(kind="observation", reason=told))

    def _trouble(self, part: str, what: str) -> None:
        """Log and journal a change of state of a part: in trouble with `what`, or well ("")."""
        before = self._troubles.get(part, "")
        self._troubles[part] = what
        if what and what != before:
            _log.warning("%s", what)
            self._events.append(_Event(kind="trouble", reason=what))
        elif before and not what:
            _log.info("over: %s", before)
            self._events.append(_Event(kind="trouble", reason=f"over: {before}"))

    def _remember(self, window: Window) -> None:
        self._measured_at = self._clock()
        self._totals.take(window, self._observation.deadlines)
        self._history.take(window, self._observation.deadlines, self._wall())
        self._recent.append(window)
        while sum(w.seconds for w in self._recent) - self._recent[0].seconds >= RECENT_SECONDS:
            self._recent.popleft()

    def _decide(self, window: Window) -> _Event | None:
        """A decision of this step, or None."""
        if self.phase != "learning" or window.disturbed or window.unfollowed:
            return None
        reason = self._deciding.take(window, self._observation.deadlines, shadow=self._guard.shadow)
        if not reason:
            return None
        decision = _Event(kind="decision", reason=reason)
        self._events.append(decision)
        return decision

    def _act(self, cause: _Event) -> None:
        """Propose, admit, apply; then the journal, with the generation that resulted."""
        changed = False
        try:
            proposed = self._policy.propose(
                self._estimates, self._observation.deadlines, self._deciding.profile
            )
            with self._operator:
                orders, self._orders = self._orders, []
                self._events += orders
                # A change in this step is most likely theirs.
                cause = orders[-1] if orders else cause
                verdict = self._guard.admit(proposed, self._in_force, cause.reason)
            refused = verdict.refused
            self._trouble("proposal", f"a proposal was refused: {refused}" if refused else "")
            if verdict.changed:
                self._actuator.apply(verdict.weights)
                self._change = Change(time=self._wall(), before=self._in_force)
                self._in_force = verdict.weights
                changed = True
            self._trouble("weights", "")
        except TrimtabError as error:
            held = self._in_force.generation if self._in_force else 0
            self._trouble("weights", f"{error}; keeping generation {held}")
            raise
        finally:
            self._write_journal(cause, changed)

    def _write_journal(self, cause: _Event, changed: bool) -> None:
        events, self._events = self._events, []
        # A decision or an order tells of the change that it caused.
        if changed and cause not in events:
            self._journal.add(self._entry(cause, changes=1))
        for event in events:
            self._journal.add(self._entry(event))

    def _entry(self, event: _Event, changes: int = 0) -> Entry:
        decision = event.kind == "decision"
        return Entry(
            time=self._wall(),
            generation=self._in_force.generation if self._in_force else 0,
            state=self._deciding.decision.state,
            action=self._deciding.in_force(shadow=self._guard.shadow),
            reason=event.reason,
            reward=self._deciding.reward if decision else None,
            art_per_1000=self._deciding.art_per_1000 if decision else None,
            changes=changes,
            kind=event.kind,
            who=event.who,
        )

    # The operator: from the next step on. `who` and `why` are for the journal.

    def pin(
        self, upstream: str, address: str, weight: float | None, who: str = "", why: str = ""
    ) -> None:
        """Fix W of a pair (within [1/3, 3]); None lifts it. Raises ConfigError for a pair that is
        not configured or a weight out of bounds."""
        with self._operator:
            self._guard.pin(upstream, address, weight)
            pair = f"{address} in {upstream}"
            what = f"unpinned {pair}" if weight is None else f"pinned {pair} at W {weight:g}"
            self._order(what, who, why)

    def drain(self, address: str, on: bool = True, who: str = "", why: str = "") -> None:
        """No new requests to a server, or (`on` False) requests again. Raises ConfigError for a
        server that is not configured."""
        with self._operator:
            self._guard.drain(address, on)
            self._order(f"{'drained' if on else 'undrained'} {address}", who, why)

    def shadow(self, on: bool, who: str = "", why: str = "") -> None:
        """Decide and tell, but leave every W at 1 (pins aside); or (`on` False) enforce."""
        with self._operator:
            self._guard.shadow = on
            self._order("shadow on: learned W are not applied" if on else "shadow off", who, why)

    def _order(self, what: str, who: str, why: str) -> None:
        reason = f"{what}: {why}" if why else what
        _log.info("operator %s: %s", who or "(unnamed)", reason)
        self._orders.append(_Event(kind="operator", reason=reason, who=who))

    def explain(
        self, upstream: str, address: str | None = None, instance: str | None = None
    ) -> dict[str, Any]:
        """Why an upstream's requests go where they go: see `explain.explain`. Raises
        ConfigError for a name that is not known."""
        return explain(self._view, upstream, address, instance)

    def history(self) -> dict[str, Any]:
        """The last minutes, for JSON: see `traffic.History.status`."""
        return self._history.status()

    # State

    def save(self) -> None:
        """Write what was learned. Raises StateError."""
        with self._operator:
            guard = self._guard.to_state()
        self._store.save(
            {
                **self._observation.to_state(),
                "profile": self._deciding.profile,
                "estimator": self._estimator.to_state(),
                "policy": self._policy.to_state(),
                "guard": guard,
                "journal": self._journal.to_state(),
            }
        )

    def close(self) -> None:
        """Let go of the state directory, without saving."""
        self._store.close()

    def _restore(self) -> bool:
        """Take the saved state in, if there is one; whether there was. What is of another shape
        (another version's) is kept aside, and the parts that did not understand it start fresh."""
        state = self._store.load()
        if state is None:
            return False
        try:
            observed = self._observation.parsed(state)
            journal = Journal.entries_of(state.get("journal", ()))
            self._guard.restore(state["guard"])
            self._estimator.restore(state["estimator"])
            self._policy.restore(state["policy"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._store.set_aside(
                "state.json", f"the saved state has another shape: {type(error).__name__}: {error}"
            )
            return False
        self._journal.restore(journal)
        self._observation.restore(observed)
        if state["policy"].get("trained", "") == self._policy.to_state().get("trained", ""):
            self._deciding.profile = str(state.get("profile", NEUTRAL_NAME))
        else:
            # The weights of another file have won nothing, whatever their names.
            self._guard.trials.forget()
        self._estimates = self._estimator.estimates()
        return True

    # Status

    def _look(self) -> View:
        with self._operator:
            guard = self._guard.status()
        return View(
            phase=self.phase,
            observed_seconds=self._observation.seconds,
            weights=self._in_force,
            estimates=self._estimates,
            deadlines=dict(self._observation.deadlines),
            decision=self._deciding.decision,
            profile=self._deciding.profile,
            reward=self._deciding.reward,
            art_per_1000=self._deciding.art_per_1000,
            recent=tuple(self._recent),
            measured_at=self._measured_at,
            policy=self._policy.status(),
            guard=guard,
            journal=self._journal.entries(),
            events=self._journal.counts(),
            snapshots=self._snapshots,
            change=self._change,
        )

    def status(self) -> dict[str, Any]:
        """What is known and done after the last step, JSON-able: see `overview.status`."""
        status = overview.status(self._view, self._config, self._clock())
        return status | {"totals": self._totals.status()}
