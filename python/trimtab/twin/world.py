"""The twin as a world for the production controller: a Source and an Actuator with its own clock.

`advance` lets time pass; `read` gives what each balancer would report then; `apply` puts weights
in force after the feedback delay, on each balancer at a moment of its own, as real ones fetch them
on their own timers. One world is one run of requests that were drawn beforehand, so that two
worlds of the same seed differ in nothing but what the weights did.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.model import AddressCounters, PairCounters, Snapshot, Weights
from trimtab.twin import engine, parts, rivals, room, services, stations
from trimtab.twin.events import Records
from trimtab.twin.workload import Changes, Requests, Servers

__all__ = ["RULES", "World"]

Floats = NDArray[np.float64]

# "trimtab" is our rule, the others are explained in `rivals`.
RULES: Final = {"trimtab": engine.TRIMTAB, **rivals.CODES}

# As in trimtab.lua: balancers look at their own service times this often.
MAINTENANCE_SECONDS: Final = 0.4


@dataclass(frozen=True, slots=True)
class _Order:
    """Weights on their way to a balancer."""

    at: float
    balancer: int
    weights: Weights


class World:
    """See the module. Time starts at 0; upstreams and addresses are those of the weights applied.

    Args:
        servers, requests, changes: what happens, as arrays; see `workload`.
        upstreams: names of the classes, in the order of `requests.kind`.
        addresses: names of the servers.
        slots_known: whether the balancers' configuration gives the slots.
        hold: whether requests, or those of each upstream, wait for a server that has room, where
            all slots are known.
        deadlines: as configured; a class that is not named has none until weights say one.
        balancers: how many share the servers; requests come to each at random.
        hand_over_seconds: that a slot stands idle before a request from the waiting room is there:
            half a millisecond through a real nginx on a shared machine, see decision 6.
        delay_seconds: from `apply` to the first balancer that uses the weights; each of B balancers
            gets them 1/B of `interval_seconds` after the one before.
        interval_seconds: in which each balancer asks once.
        maintenance_seconds: each balancer looks at its own service times this often.
        rule: one of `RULES`.
        seed: of ties, failures and which balancer gets what.
        ties: 0, or the number of another way to break ties: two worlds that differ in it alone
            differ by chance alone.
    """

    def __init__(
        self,
        servers: Servers,
        requests: Requests,
        changes: Changes | None = None,
        *,
        upstreams: Sequence[str],
        addresses: Sequence[str],
        slots_known: bool = True,
        hold: bool | Sequence[bool] = False,
        deadlines: Mapping[str, float] | None = None,
        balancers: int = 1,
        hand_over_seconds: float = 0.0,
        delay_seconds: float = 0.0,
        interval_seconds: float = 1.0,
        maintenance_seconds: float = MAINTENANCE_SECONDS,
        rule: str = "trimtab",
        seed: int = 0,
        ties: int = 0,
    ) -> None:
        changes = Changes() if changes is None else changes
        count, m, c = len(requests.at), len(addresses), len(upstreams)
        random = np.random.default_rng([seed, 0x7477696E])
        balancer = (
            random.integers(0, balancers, count)
            if balancers > 1
            else np.zeros(count, dtype=np.int64)
        )
        uniform = random.random((count, 4))
        if ties:
            uniform[:, 0] = np.random.default_rng([seed, ties]).random(count)
        self.now = 0.0
        self.weights: Weights | None = None
        self.requests = requests
        self._upstreams, self._addresses = tuple(upstreams), tuple(addresses)
        self._code = RULES[rule]
        self._delay, self._interval = delay_seconds, interval_seconds
        self._maintenance = maintenance_seconds
        self._load = parts.Load(
            at=requests.at,
            kind=requests.kind,
            work=requests.work,
            balancer=balancer,
            uniform=uniform,
            change_at=changes.at,
            change_server=changes.server,
            change_speed=changes.speed,
            change_error=changes.error,
            change_down=changes.down,
        )
        self._stations = stations.stations(servers, count)
        self._control = parts.control(balancers, c, m)
        self._balancers = parts.balancers(balancers, m)
        self._counters = parts.counters(balancers, c, m)
        self.outcome = parts.outcome(count)
        self._room = room.room(balancers, c, m, count)
        self._control.hold[:] = hold
        self._control.hand_over[:] = hand_over_seconds
        if slots_known:
            self._control.slots[:] = np.tile(servers.slots, balancers)
            self._control.given[:] = 1
        for j, name in enumerate(upstreams):
            self._control.deadline[j] = (deadlines or {}).get(name, 0.0)
        self._generation = [0] * balancers
        self._orders: list[_Order] = []

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._orders and self._orders[0].at <= end:
            order = self._orders.pop(0)
            self._piecewise(order.at)
            self._follow(order)
        self._piecewise(end)

    def _piecewise(self, end: float) -> None:
        """Up to `end`; each balancer looks at its own service times now and then."""
        each = self._maintenance
        while not self._control.told.all():
            tick = (math.floor(self.now / each) + 1) * each
            if tick <= self.now:
                tick += each
            if tick >= end:
                break
            self._run(tick)
        self._run(end)

    def _run(self, until: float) -> None:
        engine.run(
            until,
            self._code,
            self._load,
            self._stations,
            self._control,
            self._balancers,
            self._counters,
            self.outcome,
            self._room,
        )
        self.now = until
        self._refresh_services()

    def finish(self) -> None:
        """Let all requests end, however long it takes."""
        last = float(self.requests.at[-1]) if len(self.requests.at) else self.now
        self.advance(max(0.0, last - self.now))
        stopped = self.now
        self._run(math.inf)
        self.now = stopped

    # Actuator

    def apply(self, weights: Weights) -> None:
        """New weights, in force after the feedback delay."""
        self.weights = weights
        many = len(self._generation)
        self._orders += [
            _Order(self.now + self._delay + b / many * self._interval, b, weights)
            for b in range(many)
        ]
        self._orders.sort(key=lambda order: order.at)
        if not self._delay:
            # The first of them at once, so that a world may begin with weights.
            self.advance(0.0)

    def _follow(self, order: _Order) -> None:
        b, c = order.balancer, self._control
        self._generation[b] = order.weights.generation
        for j, name in enumerate(self._upstreams):
            upstream = order.weights.upstreams[name]
            c.told[b, j] = upstream.service_time_seconds or 0.0
            if upstream.deadline_seconds is not None:
                c.deadline[j] = upstream.deadline_seconds
            for i, address in enumerate(self._addresses):
                peer = upstream.peers.get(address)
                c.skip[b, j, i] = 0.0 if peer and not peer.drain else 1.0
                if peer:
                    g = c.server[b, i]
                    c.weight[b, j, i] = peer.weight
                    c.affinity[b, j, i] = peer.affinity
                    c.prior[g] = peer.rate
                    c.slots[g] = peer.slots or c.slots[g]
                    c.sharing[g] = float(peer.sharing)
        self._refresh_services()

    def _refresh_services(self) -> None:
        for b in range(len(self._generation)):
            services.refresh(b, self._control, self._balancers, self._counters)

    # Source

    def read(self) -> tuple[Snapshot, ...]:
        """The counters of each balancer now."""
        return tuple(self._snapshot(b) for b in range(len(self._generation)))

    def _snapshot(self, b: int) -> Snapshot:
        n = self._counters
        at = self._control.server[b]
        return Snapshot(
            instance=f"twin-{b + 1}",
            start=1,
            clock_seconds=self.now,
            pairs={
                name: {a: self._pair(b, j, i) for i, a in enumerate(self._addresses)}
                for j, name in enumerate(self._upstreams)
            },
            addresses={
                a: AddressCounters(
                    busy_seconds=float(n.seconds_at[g].sum()),
                    completions_at=tuple(n.completions_at[g].tolist()),
                    seconds_at=tuple(n.seconds_at[g].tolist()),
                    rate=float(self._balancers.rate[g]),
                    error_ratio=float(self._balancers.error[g]),
                )
                for a, g in zip(self._addresses, at, strict=True)
            },
            generation=self._generation[b],
        )

    def _pair(self, b: int, j: int, i: int) -> PairCounters:
        q = (b * len(self._upstreams) + j) * len(self._addresses) + i
        v = self._counters.pair[q]
        present = float(v[parts.IN_FLIGHT])
        requests, failed = int(v[parts.REQUESTS]), int(v[parts.FAILED_REQUESTS])
        return PairCounters(
            in_flight=present,
            requests=requests,
            responses=(0, requests - failed, 0, 0, failed),
            failures=int(v[parts.FAILURES]),
            response_time_seconds=float(v[parts.SECONDS]),
            response_time_squared=float(v[parts.SQUARED]),
            tardiness=float(v[parts.TARDINESS]),
            tardy=int(v[parts.TARDY]),
            unqueued=int(v[parts.UNQUEUED]),
            unqueued_seconds=float(v[parts.UNQUEUED_SECONDS]),
            unqueued_squared=float(v[parts.UNQUEUED_SQUARED]),
            buckets=tuple(self._counters.buckets[q].tolist()),
            in_flight_seconds=float(
                v[parts.IN_FLIGHT_SECONDS] + present * (self.now - v[parts.SINCE])
            ),
        )

    # What came of it

    def records(self) -> Records:
        """What became of each request; a slot's start is not kept."""
        o = self.outcome
        nowhere = np.full(len(o.ended), np.nan)
        return Records(
            dispatched=o.began, started=nowhere, ended=o.ended, peer=o.peer, status=o.status
        )

    def totals(self) -> tuple[int, float]:
        """Finished requests and their tardiness so far, over all balancers."""
        pair = self._counters.pair
        return int(pair[..., parts.REQUESTS].sum()), float(pair[..., parts.TARDINESS].sum())
