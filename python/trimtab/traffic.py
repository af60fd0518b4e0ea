"""What was counted since the start, and the last minutes of it, for those who look.

`Totals` only rise, also when a balancer restarts or vanishes, as Prometheus wants its counters;
`History` is what a graph of the last ten minutes is drawn from. Both take merged windows in the
controller's thread and are read in any.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import add, attrgetter
from typing import Any, Final

from trimtab.learn.reward import tardiness
from trimtab.model import BUCKET_BOUNDS_SECONDS, PairCounters, Window
from trimtab.sums import class_total

__all__ = ["History", "Totals"]

# Two seconds a point and 300 points: ten minutes, in a graph of some hundred pixels.
POINT_SECONDS: Final = 2.0
MOST_POINTS: Final = 300

# Lines that a graph can still tell apart, and a bound on what is kept.
MOST_CLASSES: Final = 32

_SUMS: Final = (
    "requests",
    "failures",
    "in_bytes",
    "out_bytes",
    "response_time_seconds",
    "tardy",
    "in_flight_seconds",
    "retries",
    "retries_refused",
)
_READ: Final = attrgetter(*_SUMS)


@dataclass(slots=True)
class _Upstream:
    """Sums of one class: by address in the order of `_SUMS` and tardiness last, and over all."""

    peers: dict[str, list[float]] = field(default_factory=dict)
    responses: list[int] = field(default_factory=lambda: [0] * 5)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKET_BOUNDS_SECONDS) + 1))

    def add(self, address: str, of: PairCounters, deadline: float | None) -> None:
        sums = self.peers.setdefault(address, [0.0] * (len(_SUMS) + 1))
        if not (of.requests or of.failures or of.in_flight_seconds or of.in_bytes):
            return  # idle, as most are of many
        now = (*_READ(of), tardiness(of, deadline))
        self.peers[address] = list(map(add, sums, now))
        # Rows that a source does not know are empty.
        if len(of.responses) == len(self.responses):
            self.responses = list(map(add, self.responses, of.responses))
        if len(of.buckets) == len(self.buckets):
            self.buckets = list(map(add, self.buckets, of.buckets))


class Totals:
    """Sums of all windows since the start, by upstream and peer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._upstreams: dict[str, _Upstream] = {}
        self._ejections: dict[str, int] = {}

    def take(self, window: Window, deadlines: Mapping[str, float]) -> None:
        """Add a window."""
        with self._lock:
            for name, peers in window.pairs.items():
                held = self._upstreams.setdefault(name, _Upstream())
                for address, counters in peers.items():
                    held.add(address, counters, deadlines.get(name))
            for address, server in window.addresses.items():
                self._ejections[address] = self._ejections.get(address, 0) + server.ejections

    def status(self) -> dict[str, Any]:
        """{"upstreams": {name: {"buckets": counts between `BUCKET_BOUNDS_SECONDS`, "responses":
        [1xx … 5xx], "peers": {address: {the sums of `model.PairCounters`, "tardiness"}}}},
        "ejections": {address: how often balancers have ejected it}}"""
        keys = (*_SUMS, "tardiness")
        with self._lock:
            return {
                "upstreams": {
                    name: {
                        "buckets": list(held.buckets),
                        "responses": list(held.responses),
                        "peers": {
                            address: dict(zip(keys, sums, strict=True))
                            for address, sums in held.peers.items()
                        },
                    }
                    for name, held in self._upstreams.items()
                },
                "ejections": dict(self._ejections),
            }


class History:
    """Points of about two seconds each, the last ten minutes of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: deque[dict[str, Any]] = deque(maxlen=MOST_POINTS)
        self._seconds = 0.0
        self._sums: dict[str, list[float]] = {}

    def take(self, window: Window, deadlines: Mapping[str, float], now: float) -> None:
        """Add a window that ended `now`, in seconds since 1970."""
        with self._lock:
            self._seconds += window.seconds
            for name in list(window.pairs)[:MOST_CLASSES]:
                total = class_total(window, name)
                late = sum(tardiness(p, deadlines.get(name)) for p in window.pairs[name].values())
                sums = self._sums.setdefault(name, [0.0, 0.0, 0.0])
                sums[0] += total.requests
                sums[1] += late
                sums[2] += total.response_time_seconds
            if self._seconds >= POINT_SECONDS:
                self._points.append(self._point(now))
                self._seconds, self._sums = 0.0, {}

    def _point(self, now: float) -> dict[str, Any]:
        requests = sum(s[0] for s in self._sums.values())
        late = sum(s[1] for s in self._sums.values())
        return {
            "time": now,
            "requests_per_second": requests / self._seconds,
            "art_per_1000": 1000 * late / requests if requests else None,
            "classes": {
                name: {
                    "requests_per_second": n / self._seconds,
                    "art_per_1000": 1000 * art / n if n else None,
                    "response_time_seconds": seconds / n if n else None,
                }
                for name, (n, art, seconds) in self._sums.items()
            },
        }

    def status(self) -> dict[str, Any]:
        """{"point_seconds", "points": [{"time": seconds since 1970, "requests_per_second",
        "art_per_1000", "classes": {name: {the same two, "response_time_seconds" in the mean}}}]},
        oldest first; None where there was no request."""
        with self._lock:
            return {"point_seconds": POINT_SECONDS, "points": list(self._points)}
