"""Service times from response times alone, of servers with requests waiting in them.

A source like nginx-module-vts tells how many requests a server answered and how long they took in
all, so by Little's law how many were there in the mean, L. Taking the server as an M/M/k queue of
utilisation ρ (Poisson arrivals, k slots, Erlang's C the probability that all are busy),

    L = k·ρ + C(k, ρ)·ρ/(1 − ρ)

which grows with ρ, so ρ follows from L by halving. kρ is the mean number being served, and the
mean wait before service is (L − kρ)/X at a throughput X, the same for every class of a first-come
first-served server; for k = 1 the service rate comes out as X + 1/R, R the mean response time.
A processor-sharing server of k cores holds as many, but stretches every class alike, by L/(kρ).

Balanced arrivals are smoother than Poisson, so queues are shorter than this says, and where k is
not known, 1 is taken for it. Both errors are alike on all servers with alike in flight, which is
what least_conn makes of them: ratios of service times, which weights are made of, come out close
to right (tests/unit/test_crowded.py).

No I/O: windows in, numbers out.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trimtab.model import Window
from trimtab.saved import finite

__all__ = ["CrowdedWork", "serving"]

# A service time is at least this part of what it would be if all classes were stretched alike: the
# wait that is taken off a short class is a mean over the server, and rather uncertain.
LEAST_SERVICE_RATIO: Final = 0.8

# Above this share of requests that failed, a window is left out: what fails fast looks like speed.
MOST_FAILED_RATIO: Final = 0.02

# Halvings of [0, 1): to a millionth, far below the noise of any counter.
_STEPS: Final = 20

# A server with more slots than this waits for none at any load of interest.
_MOST_SLOTS: Final = 1000


def _present(slots: int, utilisation: float) -> float:
    """L of an M/M/k queue."""
    offered = slots * utilisation
    # Erlang's B by its recurrence, which neither overflows nor cancels.
    blocked = 1.0
    for k in range(1, slots + 1):
        blocked = offered * blocked / (k + offered * blocked)
    waits = blocked / (1 - utilisation * (1 - blocked))
    return offered + waits * utilisation / (1 - utilisation)


def serving(in_flight: float, slots: float = 1.0) -> float:
    """Of `in_flight` requests at a server of `slots` places in the mean, how many are in service.

    At most `slots`; slots are rounded to a whole number from 1 to 1000.
    """
    k = min(max(round(slots), 1), _MOST_SLOTS)
    if not (math.isfinite(in_flight) and in_flight > 0):
        return 0.0
    if k == 1:
        return in_flight / (1 + in_flight)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _present(k, middle) < in_flight:
            low = middle
        else:
            high = middle
    return k * low if low > 0 else min(in_flight, k * high)


@dataclass(slots=True)
class _Responses:
    """Forgetting sums of the responses of one pair."""

    count: float = 0.0
    seconds: float = 0.0


class CrowdedWork:
    """Response times by pair, and by server the seconds that they cover; sums that forget.

    Args:
        known: addresses by upstream; other pairs are ignored.
        given: configured slots by address; None where unknown. Also the list of known servers.
        sharing: addresses of servers that share their slots among all requests there.
    """

    def __init__(
        self,
        known: Mapping[str, frozenset[str]],
        given: Mapping[str, float | None],
        sharing: Collection[str],
    ) -> None:
        self._known = known
        self._given = given
        self._sharing = sharing
        self._pairs: dict[tuple[str, str], _Responses] = {}
        self._covered: dict[str, float] = {}

    def forget(self, keep: float) -> None:
        """Multiply all sums."""
        for sums in self._pairs.values():
            sums.count *= keep
            sums.seconds *= keep
        self._covered = {a: s * keep for a, s in self._covered.items()}

    def add(self, of: Window) -> None:
        """Take one window in."""
        for address in self._given:
            pairs = {n: p for n, peers in of.pairs.items() if (p := peers.get(address))}
            requests = sum(p.requests for p in pairs.values())
            if sum(p.failures for p in pairs.values()) > MOST_FAILED_RATIO * requests:
                continue
            self._covered[address] = self._covered.get(address, 0.0) + of.seconds
            for name, p in pairs.items():
                if address in self._known.get(name, ()) and p.requests:
                    sums = self._pairs.setdefault((name, address), _Responses())
                    sums.count += p.requests
                    sums.seconds += p.response_time_seconds

    def served(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Count and mean service time of each pair of which only response times are known."""
        found: dict[tuple[str, str], tuple[float, float]] = {}
        # With slots of some servers only, rates per slot and rates per server would mix.
        slots = self._given if all(self._given.values()) else {}
        for address, covered in self._covered.items():
            of = {k: s for k, s in self._pairs.items() if k[1] == address and s.count >= 1}
            held = sum(s.seconds for s in of.values())
            if not (covered > 0 and held > 0):
                continue
            # Little's law: response seconds per second are requests in flight.
            busy_ratio = serving(held / covered, slots.get(address) or 1.0) * covered / held
            wait = held * (1 - busy_ratio) / sum(s.count for s in of.values())
            for key, sums in of.items():
                mean = sums.seconds / sums.count
                # What is shared stretches every request alike; in a queue all wait alike.
                alike = busy_ratio * mean
                served = alike if address in self._sharing else mean - wait
                found[key] = sums.count, max(served, LEAST_SERVICE_RATIO * alike)
        return found

    def to_state(self) -> dict[str, Any]:
        """The sums as JSON-able data."""
        return {
            "responses": [
                [name, address, s.count, s.seconds] for (name, address), s in self._pairs.items()
            ],
            "covered": self._covered,
        }

    def restored(self, state: Mapping[str, Any]) -> "CrowdedWork":
        """The same servers with what `to_state` gave; see `Estimator.restore`."""
        other = CrowdedWork(self._known, self._given, self._sharing)
        # Both are absent in states of version 0.1.
        for name, address, *numbers in state.get("responses", ()):
            count, seconds = (finite(v) for v in numbers)
            if address in self._known.get(name, ()):
                other._pairs[name, address] = _Responses(count, seconds)
        covered = state.get("covered", {})
        other._covered = {a: finite(v) for a, v in covered.items() if a in self._given}
        return other
