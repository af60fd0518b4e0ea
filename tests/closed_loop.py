"""A small world for the production controller: servers, traffic and a balancer on a clock of its
own, which is a Source and an Actuator. Immediate dispatch by the per-request rule itself."""

import heapq
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from trimtab.model import (
    BUCKET_BOUNDS_SECONDS,
    CONCURRENCY_LEVELS,
    FAILED_TARDINESS,
    AddressCounters,
    PairCounters,
    Snapshot,
    Weights,
)
from trimtab.twin import rule

# The memory of the balancer's own rate estimate.
TAU_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Server:
    """FIFO with `slots` places, each doing `rate(time)` work a second; `failing(time)` is the
    share of requests that it answers at once with a 500."""

    rate: Callable[[float], float]
    slots: int = 1
    failing: Callable[[float], float] = lambda _now: 0.0


@dataclass(frozen=True, kw_only=True)
class Class:
    """Poisson arrivals, exponential service of that mean at rate 1, times the server's affinity."""

    per_second: float
    service_seconds: float
    affinity: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Pair:
    """Counters of one class at one server, as the balancer keeps them."""

    in_flight: int = 0
    since: float = 0.0
    integral: float = 0.0
    requests: int = 0
    failures: int = 0
    seconds: float = 0.0
    squared: float = 0.0
    tardiness: float = 0.0
    tardy: int = 0
    unqueued: int = 0
    unqueued_seconds: float = 0.0
    unqueued_squared: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKET_BOUNDS_SECONDS) + 1))

    def change(self, now: float, by: int) -> None:
        """`by` more in flight."""
        self.integral += self.in_flight * (now - self.since)
        self.since = now
        self.in_flight += by


class World:
    """`advance(seconds)` lets time pass; the rest is what the controller asks for."""

    def __init__(
        self,
        servers: Mapping[str, Server],
        classes: Mapping[str, Class],
        *,
        seed: int,
        slots_known: bool = True,
    ) -> None:
        self.now = 0.0
        self.weights: Weights | None = None
        self.applied: list[Weights] = []
        self._servers = servers
        self._classes = classes
        self._addresses = list(servers)
        self._random = Random(seed)
        self._known = slots_known
        n = len(servers)
        self._index = {a: i for i, a in enumerate(self._addresses)}
        self._pairs = {(c, a): Pair() for c in classes for a in servers}
        self._in_flight = [0] * n
        self._work = [0.0] * n
        self._done, self._busy, self._last = [0.0] * n, [0.0] * n, [0.0] * n
        self._error = [0.0] * n
        self._completions = [[0] * CONCURRENCY_LEVELS for _ in range(n)]
        self._at = [[0.0] * CONCURRENCY_LEVELS for _ in range(n)]
        self._free = [[0.0] * s.slots for s in servers.values()]
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for name in classes:
            self._next_arrival(name)

    def read(self) -> tuple[Snapshot, ...]:
        """The counters now."""
        pairs: dict[str, dict[str, PairCounters]] = {}
        for (name, address), p in self._pairs.items():
            p.change(self.now, 0)
            pairs.setdefault(name, {})[address] = PairCounters(
                in_flight=p.in_flight,
                requests=p.requests,
                responses=(0, p.requests - p.failures, 0, 0, p.failures),
                failures=p.failures,
                response_time_seconds=p.seconds,
                response_time_squared=p.squared,
                tardiness=p.tardiness,
                tardy=p.tardy,
                unqueued=p.unqueued,
                unqueued_seconds=p.unqueued_seconds,
                unqueued_squared=p.unqueued_squared,
                buckets=tuple(p.buckets),
                in_flight_seconds=p.integral,
            )
        addresses = {}
        for i, address in enumerate(self._addresses):
            self._carry(i)
            addresses[address] = AddressCounters(
                busy_seconds=sum(self._at[i]),
                completions_at=tuple(self._completions[i]),
                seconds_at=tuple(self._at[i]),
                rate=self._rates()[i],
                error_ratio=self._error[i],
            )
        return (
            Snapshot(
                instance="simulated",
                start=1,
                clock_seconds=self.now,
                pairs=pairs,
                addresses=addresses,
                generation=self.weights.generation if self.weights else 0,
            ),
        )

    def apply(self, weights: Weights) -> None:
        """New weights, at once."""
        self.weights = weights
        self.applied.append(weights)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        self.now = end

    def totals(self) -> tuple[int, float]:
        """Requests and tardiness so far."""
        pairs = self._pairs.values()
        return sum(p.requests for p in pairs), sum(p.tardiness for p in pairs)

    def requests_at(self, address: str) -> int:
        """Requests that a server has finished."""
        return sum(p.requests for (_, a), p in self._pairs.items() if a == address)

    def _at_time(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _next_arrival(self, name: str) -> None:
        gap = self._random.expovariate(self._classes[name].per_second)
        self._at_time(self.now + gap, lambda: self._arrive(name))

    def _service(self, name: str) -> float:
        """v_j as the balancer knows it: a guess until the controller says."""
        known = self.weights.upstreams[name].service_time_seconds if self.weights else None
        return known or 0.01

    def _priors(self) -> list[float]:
        if not self.weights:
            return [1.0] * len(self._addresses)
        peers = next(iter(self.weights.upstreams.values())).peers
        return [peers[a].rate for a in self._addresses]

    def _slots(self) -> list[float]:
        if self._known:
            return [float(s.slots) for s in self._servers.values()]
        peers = next(iter(self.weights.upstreams.values())).peers if self.weights else {}
        return [(peers[a].slots or 0.0) if peers else 0.0 for a in self._addresses]

    def _rates(self) -> list[float]:
        mean = sum(self._service(c) for c in self._classes) / len(self._classes)
        return [
            rule.rate(d, b, prior, mean)
            for d, b, prior in zip(self._done, self._busy, self._priors(), strict=True)
        ]

    def _carry(self, i: int) -> None:
        n = self._in_flight[i]
        passed = rule.advance(
            i, self.now, n, self._slots(), self._done, self._busy, self._last, TAU_SECONDS
        )
        if n:
            self._at[i][min(n, CONCURRENCY_LEVELS) - 1] += passed

    def _arrive(self, name: str) -> None:
        self._next_arrival(name)
        n = len(self._addresses)
        for i in range(n):
            self._carry(i)
        control = self.weights.upstreams[name].peers if self.weights else {}
        weight = [control[a].weight if control else 1.0 for a in self._addresses]
        affinity = [control[a].affinity if control else 1.0 for a in self._addresses]
        service = self._service(name)
        slots = self._slots()
        i = rule.pick(
            n,
            range(n),
            weight,
            affinity,
            [0] * n,
            service,
            self._in_flight,
            self._work,
            self._rates(),
            self._error,
            slots,
            [0.0] * n,
            self._random.random(),
            [0.0] * n,
        )
        address = self._addresses[i]
        self._start(name, address, i, service * affinity[i], self._in_flight[i] < max(1, slots[i]))

    def _start(self, name: str, address: str, i: int, own: float, unqueued: bool) -> None:
        server, traffic = self._servers[address], self._classes[name]
        self._in_flight[i] += 1
        self._work[i] += own
        self._pairs[name, address].change(self.now, 1)
        began = self.now
        work = self._random.expovariate(1 / traffic.service_seconds)
        if self._random.random() < server.failing(began):
            self._at_time(
                began + 0.001, lambda: self._finish(name, address, i, own, began, unqueued, True)
            )
            return
        free = heapq.heappop(self._free[i])
        start = max(began, free)
        end = start + work * traffic.affinity.get(address, 1.0) / server.rate(start)
        heapq.heappush(self._free[i], end)
        self._at_time(end, lambda: self._finish(name, address, i, own, began, unqueued, False))

    def _finish(
        self, name: str, address: str, i: int, own: float, began: float, unqueued: bool, bad: bool
    ) -> None:
        self._carry(i)
        n = self._in_flight[i]
        self._in_flight[i] -= 1
        self._work[i] = max(0.0, self._work[i] - own) if self._in_flight[i] else 0.0
        self._error[i] = rule.error_ratio(self._error[i], bad)
        pair = self._pairs[name, address]
        pair.change(self.now, -1)
        seconds = self.now - began
        pair.requests += 1
        pair.seconds += seconds
        pair.squared += seconds**2
        bucket = math.ceil(2 * math.log2(max(seconds, 1e-9) / BUCKET_BOUNDS_SECONDS[0]))
        pair.buckets[min(max(bucket, 0), len(pair.buckets) - 1)] += 1
        deadline = self.weights.upstreams[name].deadline_seconds if self.weights else None
        late = max(0.0, seconds / deadline - 1) if deadline else 0.0
        if bad:
            pair.failures += 1
            late = max(late, FAILED_TARDINESS)
        else:
            self._done[i] += own
            self._completions[i][min(n, CONCURRENCY_LEVELS) - 1] += 1
            if unqueued:
                pair.unqueued += 1
                pair.unqueued_seconds += seconds
                pair.unqueued_squared += seconds**2
        pair.tardiness += late
        pair.tardy += late > 0
