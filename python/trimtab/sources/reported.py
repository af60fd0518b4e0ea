"""The newest report of each balancer, as the gRPC service took it in: the source of lua mode.

Reports may come twice, late or out of order; only a later one replaces what is held. A balancer
that fell silent is forgotten, so that its last gauges do not count for ever.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trimtab.config import Config
from trimtab.errors import SourceError
from trimtab.model import Snapshot

__all__ = ["Instance", "Reported"]

# More nginx than one policy server is meant for (a thousand), and few enough that names invented
# by a broken client cannot fill the memory.
MAX_INSTANCES: Final = 4096

# Counters held over all balancers; about 2 kB each with full histograms. A thousand balancers with
# a hundred upstream-peer pairs each fit.
MAX_PAIRS_HELD: Final = 131_072


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What is known of one balancer. `age_seconds` is the time since its last accepted report."""

    name: str
    start: int
    sequence: int
    generation: int
    age_seconds: float


@dataclass(slots=True)
class _Held:
    snapshot: Snapshot
    sequence: int
    pairs: int
    arrived: float


class Reported:
    """Snapshots by balancer. Safe to use from any thread."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        # A balancer that missed every report for a time to live has static weights by now or is
        # gone; and one whose wall clock went back may begin anew (a smaller start) after it.
        self._expiry_seconds = config.policy.time_to_live_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._pairs = 0
        self._accepted = 0

    @property
    def accepted(self) -> int:
        """Reports taken in so far."""
        return self._accepted

    def put(self, snapshot: Snapshot, sequence: int) -> bool:
        """Take a report in; False when it is a repetition or out of date, and changed nothing.

        Raises SourceError when there is no room for one more balancer.
        """
        pairs = sum(len(peers) for peers in snapshot.pairs.values())
        with self._lock:
            now = self._clock()
            old = self._held.get(snapshot.instance)
            if old and now - old.arrived > self._expiry_seconds:
                self._forget(snapshot.instance)
                old = None
            if old and (snapshot.start, sequence) <= (old.snapshot.start, old.sequence):
                return False
            self._make_room(snapshot.instance, pairs, now)
            if old:
                self._pairs -= old.pairs
            self._held[snapshot.instance] = _Held(snapshot, sequence, pairs, now)
            self._pairs += pairs
            self._accepted += 1
            return True

    def read(self) -> tuple[Snapshot, ...]:
        """The newest snapshot of each balancer that still reports, by name of the balancer."""
        with self._lock:
            self._expire(self._clock())
            return tuple(self._held[name].snapshot for name in sorted(self._held))

    def instances(self) -> tuple[Instance, ...]:
        """The balancers that still report, by name."""
        with self._lock:
            now = self._clock()
            self._expire(now)
            return tuple(
                Instance(
                    name=name,
                    start=held.snapshot.start,
                    sequence=held.sequence,
                    generation=held.snapshot.generation or 0,
                    age_seconds=now - held.arrived,
                )
                for name, held in sorted(self._held.items())
            )

    def _make_room(self, instance: str, pairs: int, now: float) -> None:
        def full() -> str:
            if instance not in self._held and len(self._held) >= MAX_INSTANCES:
                return f"{MAX_INSTANCES} balancers"
            old = self._held.get(instance)
            if self._pairs - (old.pairs if old else 0) + pairs > MAX_PAIRS_HELD:
                return f"{MAX_PAIRS_HELD} upstream-peer pairs over all balancers"
            return ""

        if full():
            self._expire(now)
        if what := full():
            raise SourceError(
                f"the report of {instance!r} was not taken: at most {what} are held; "
                f"silent balancers are forgotten after {self._expiry_seconds:g} s"
            )

    def _expire(self, now: float) -> None:
        for name in [n for n, h in self._held.items() if now - h.arrived > self._expiry_seconds]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._pairs -= self._held.pop(name).pairs
