"""What the counters say about servers and classes: service times, rates, affinities, slots.

A request of class j on peer i that finds a free slot takes v_j·a_ij/r_i in the mean: `fits` has
the model and how it is fitted. Successful tries that found a free slot (`unqueued`) show it singly,
the others through the busy time of the server's slots (`queued`); so neither queueing nor a server
that fails fast enters. A source without these figures (nginx-module-vts) has no address counters;
of its mean response times the mean wait is taken off, which follows from how many were there
(`crowded`).

All sums forget exponentially, by the time in which there was traffic.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtab.concurrency import Concurrency
from trimtab.crowded import CrowdedWork
from trimtab.discipline import SHARING, Discipline, Disciplines, likelihood_ratio, likely_sharing
from trimtab.fits import Slots, two_way
from trimtab.model import PairCounters, Window
from trimtab.queued import QueuedWork
from trimtab.responses import mean_seconds, std_seconds
from trimtab.saved import finite
from trimtab.sums import class_total

__all__ = ["Estimates", "Estimator", "deadline_seconds", "shares"]

Floats = NDArray[np.float64]

# A minute: at ten requests a second and pair 600 are remembered, an error of 4% for exponential
# service; a server that changed its speed is believed after about half of it. The balancer's own
# estimate (0.3 s) covers what is faster.
FORGET_SECONDS: Final = 60.0

# Fewer requests than this say nothing of a class's service time.
LEAST_REQUESTS: Final = 5.0

# A dispersion from so many windows is within about 60% for Poisson arrivals.
LEAST_WINDOWS: Final = 10.0

# Squared coefficient of variation of service times: bounds for what a few samples may claim, and
# that of the exponential where the squares are unknown.
CV2_BOUNDS: Final = (0.05, 4.0)
CV2_UNKNOWN: Final = 1.0

# Above this share of requests that failed, or that held no slot in the counters as nginx's own
# balancer placed them, a server's slots were not busy with what was completed.
MOST_STRAY_RATIO: Final = 0.02

# A server of unknown slots that was beyond the counted levels for more than this part of a window
# is overrun: nothing will show its slots, and no request finds a free one. It is then taken for a
# server of one slot. That gets its rate wrong, by a factor that is the same for all classes: its
# affinities come out, and with them the way out, where it is affinities that overran it.
OVERRUN_RATIO: Final = 0.9
OVERRUN_SLOTS: Final = 1.0

# Requests on a free slot of a server that shares are stretched alike within some 15%, so that many
# of them say no more than 40 undisturbed ones.
MOST_STRETCHED: Final = 40.0

# Normal equations are kept for a server with at most so many classes: 2 kB each.
MOST_QUEUED_CLASSES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """What is known now. Whatever lacks evidence is absent, and 1 (or unknown) is to be assumed.

    service_time_seconds: v_j by upstream.
    rates: r_i by address, geometric mean 1 among peers that share classes.
    affinity: a_ij by upstream and address.
    evidence: remembered requests behind a_ij, likewise.
    slots, disciplines: by address. least_slots: likewise, where slots are not sure.
    arrivals_per_second: by upstream.
    burstiness: by upstream the index of dispersion of requests a window: variance over mean, 1 for
    Poisson arrivals, more in bursts.
    service_cv2: by upstream the squared coefficient of variation of service times, 1 for
    exponential ones; of requests that found a free slot.
    """

    service_time_seconds: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    affinity: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    slots: Mapping[str, Slots] = field(default_factory=dict)
    least_slots: Mapping[str, int] = field(default_factory=dict)
    disciplines: Mapping[str, Discipline] = field(default_factory=dict)
    arrivals_per_second: Mapping[str, float] = field(default_factory=dict)
    burstiness: Mapping[str, float] = field(default_factory=dict)
    service_cv2: Mapping[str, float] = field(default_factory=dict)


def shares(of: Estimates, address: str) -> bool:
    """Whether a server surely shares its slots among all requests there."""
    found = of.disciplines.get(address)
    return found is not None and found.sure and found.value == SHARING


def deadline_seconds(of: PairCounters, priority: float) -> float | None:
    """d = μ + c·σ with c = 1 + 1/priority, of the response times of one class in an observation
    period; None while they are unknown."""
    mean, std = mean_seconds(of), std_seconds(of)
    if mean is None or std is None or not mean > 0:
        return None
    return mean + (1 + 1 / priority) * std


@dataclass(slots=True)
class _Sums:
    """Forgetting sums of one pair."""

    count: float = 0.0
    seconds: float = 0.0
    squared: float = 0.0


@dataclass(slots=True)
class _Work:
    """What a server did: by its classes the work of the requests that found no free slot, and that
    of all; forgetting slot-seconds that were busy, and request-seconds beyond the slots."""

    names: list[str]
    queued: QueuedWork
    all: QueuedWork
    busy: float = 0.0
    beyond: float = 0.0

    def forget(self, keep: float) -> None:
        self.queued.forget(keep)
        self.all.forget(keep)
        self.busy *= keep
        self.beyond *= keep

    def rescale(self, factor: float) -> None:
        self.queued.rescale(factor)
        self.all.rescale(factor)

    def skip(self) -> None:
        self.queued.skip()
        self.all.skip()


class Estimator:
    """Takes windows in, keeps forgetting sums, gives `Estimates`.

    Args:
        slots: configured slots by address; None where unknown. Also the list of known servers.
        upstreams: addresses by upstream; pairs that are not named here are ignored.
        forget_seconds: time constant, of time with traffic.
        sharing: addresses of servers that share their slots among all requests there, as far as
            nothing surer was measured.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Sequence[str]],
        slots: Mapping[str, float | None],
        forget_seconds: float = FORGET_SECONDS,
        sharing: Collection[str] = (),
    ) -> None:
        self._known = {name: frozenset(addresses) for name, addresses in upstreams.items()}
        self._given = dict(slots)
        self._forget = forget_seconds
        self._sharing = frozenset(sharing)
        self._pairs: dict[tuple[str, str], _Sums] = {}
        # Response times where there are no others.
        self._crowded = CrowdedWork(self._known, self._given, self._sharing)
        self._arrived: dict[str, float] = {}
        self._seconds = 0.0
        # Squared deviations in expected variances of Poisson arrivals, and of how many windows.
        self._dispersed: dict[str, tuple[float, float]] = {}
        self._slots = Concurrency(slots)
        # The slots that the busy time of a server was counted with.
        self._counted: dict[str, float] = {}
        # By server its classes, and what it did of queued requests.
        classes = {a: [n for n, known in self._known.items() if a in known] for a in slots}
        self._disciplines = Disciplines(classes)
        self._queued = {
            a: _Work(names, QueuedWork(len(names)), QueuedWork(len(names)))
            for a, names in classes.items()
            if len(names) <= MOST_QUEUED_CLASSES
        }

    def update(self, of: Window) -> None:
        """Take one window in; one without a finished request changes nothing."""
        if not of.requests:
            return
        keep = math.exp(-of.seconds / self._forget)
        for sums in self._pairs.values():
            sums.count *= keep
            sums.seconds *= keep
            sums.squared *= keep
        self._crowded.forget(keep)
        for name in self._known:
            requests = class_total(of, name).requests
            self._disperse(name, requests, of.seconds, keep)
            self._arrived[name] = self._arrived.get(name, 0.0) * keep + requests
        self._seconds = self._seconds * keep + of.seconds
        if of.addresses:
            self._unqueued(of)
            if of.instances == 1:
                self._slots.add(of)
                self._busy(of, keep)
                self._disciplines.add(of, self._slots.exact())
        else:
            self._crowded.add(of)

    def _disperse(self, name: str, requests: int, seconds: float, keep: float) -> None:
        """One window's count against what was expected of it; nothing before a rate is known."""
        before = self._arrived.get(name, 0.0)
        if before < LEAST_REQUESTS:
            return
        expected = before / self._seconds * seconds
        total, windows = self._dispersed.get(name, (0.0, 0.0))
        # The rate is uncertain too, by the windows behind it: that much less is dispersion.
        known = seconds / self._seconds
        square = (requests - expected) ** 2 / (expected * (1 + known))
        self._dispersed[name] = (total * keep + square, windows * keep + 1)

    def _variation(self) -> dict[str, float]:
        """Squared coefficients of variation by class, over peers weighted by their requests."""
        sums: dict[str, tuple[float, float]] = {}
        for (name, _), pair in self._pairs.items():
            if pair.count >= LEAST_REQUESTS and pair.squared > 0:
                cv2 = max(0.0, pair.squared * pair.count / pair.seconds**2 - 1)
                total, count = sums.get(name, (0.0, 0.0))
                sums[name] = (total + cv2 * pair.count, count + pair.count)
        return {name: total / count for name, (total, count) in sums.items()}

    def _add(self, name: str, address: str, count: float, seconds: float, squared: float) -> None:
        if address not in self._known.get(name, ()) or not (count > 0 and seconds > 0):
            return
        sums = self._pairs.setdefault((name, address), _Sums())
        sums.count += count
        sums.seconds += seconds
        sums.squared += squared

    def _shared(self, single: Mapping[str, tuple[Floats, Floats]]) -> frozenset[str]:
        """The servers that share their slots: requests that found a free one are slowed down
        afterwards there, and it is the busy time, where slots are known, that tells their work.
        `single` has by address the means [classes] of those that found a free slot, and the
        requests that they are worth."""
        sure, exact = self._disciplines.found(), self._slots.exact()
        shared: set[str] = set()
        # By the classes that they serve: servers that are alike in that are mostly of one kind.
        ratios: dict[tuple[str, ...], dict[str, float]] = {}
        for address, (means, worth) in single.items():
            work, found = self._queued[address], sure.get(address)
            if self._slots.of(address) is None or work.all.empty:
                continue
            if found and found.sure:
                if found.value == SHARING:
                    shared.add(address)
            elif address in self._sharing:
                shared.add(address)
            else:
                # One slot too few looks like sharing: such a server says nothing itself.
                ratios.setdefault(tuple(work.names), {})[address] = (
                    likelihood_ratio(
                        work.all.stretch(means),
                        work.all.stretch_error(means, worth),
                        work.busy,
                        work.beyond,
                    )
                    if address in exact
                    else 1.0
                )
        return frozenset(shared.union(*(likely_sharing(of) for of in ratios.values())))

    def _unqueued(self, of: Window) -> None:
        for name, peers in of.pairs.items():
            for address, p in peers.items():
                self._add(name, address, p.unqueued, p.unqueued_seconds, p.unqueued_squared)

    def _busy(self, of: Window, keep: float) -> None:
        for address, work in self._queued.items():
            work.forget(keep)
            names = work.names
            counters = of.addresses.get(address)
            pairs = [of.pairs.get(n, {}).get(address, PairCounters()) for n in names]
            k = self._slots.of(address)
            overrun = (
                k is None
                and counters is not None
                and sum(counters.seconds_at[-1:]) > OVERRUN_RATIO * of.seconds
            )
            if overrun:
                k = OVERRUN_SLOTS
            if k is not None:
                # Queued requests were there while all slots were busy: of so many as are known now.
                if k != (before := self._counted.get(address, k)):
                    work.rescale(k / before)
                self._counted[address] = k
            requests = sum(p.requests for p in pairs)
            failures = sum(p.failures for p in pairs)
            placed = sum(counters.completions_at) if counters else 0
            # A try and its request may end on two sides of a reading.
            stray = failures + max(abs(requests - failures - placed) - 2, 0)
            if k is None or counters is None or stray > MOST_STRAY_RATIO * requests:
                work.skip()
                continue
            busy = sum(min(n, k) * t for n, t in enumerate(counters.seconds_at, 1))
            done = np.array([p.requests - p.failures for p in pairs], dtype=float)
            work.busy += busy
            work.beyond += sum(max(n - k, 0.0) * t for n, t in enumerate(counters.seconds_at, 1))
            work.all.add(of.seconds, busy, done.copy(), k)
            # Those that found a free slot are known singly.
            done -= [p.unqueued for p in pairs]
            busy -= sum(p.unqueued_seconds for p in pairs)
            work.queued.add(of.seconds, busy, done, k)

    def _table(self) -> tuple[list[str], list[str], Floats, Floats, Floats]:
        """Upstreams, addresses, and by both: means, the requests that they are worth, and the
        squared coefficient of variation that these are to be taken with."""
        names, addresses = list(self._known), list(self._given)
        row = {name: n for n, name in enumerate(names)}
        column = {address: n for n, address in enumerate(addresses)}
        counts = np.zeros((len(names), len(addresses)))
        means = np.zeros_like(counts)
        cv2 = np.full_like(counts, CV2_UNKNOWN)
        for (name, address), sums in self._pairs.items():
            # Less than a whole request left in memory is no evidence but rounding.
            if sums.count < 1:
                continue
            cell = row[name], column[address]
            counts[cell] = sums.count
            means[cell] = sums.seconds / sums.count
            if sums.squared > 0:
                spread = sums.squared / sums.count / means[cell] ** 2 - 1
                cv2[cell] = min(max(spread, CV2_BOUNDS[0]), CV2_BOUNDS[1])
        for (name, address), (count, mean) in self._crowded.served().items():
            cell = row[name], column[address]
            if mean > 0 and not counts[cell]:
                counts[cell], means[cell] = count, mean
        at = {a: (np.array([row[n] for n in w.names]), column[a]) for a, w in self._queued.items()}
        single = {a: (means[of], counts[of] / cv2[of]) for a, of in at.items()}
        shared = self._shared(single)
        for address, work in self._queued.items():
            mean, worth = single[address]
            queued = work.queued
            if address in shared:
                # The busy time says how much those of a free slot were stretched.
                queued, mean = work.all, mean / work.all.stretch(mean)
                worth = np.minimum(worth, MOST_STRETCHED)
            if not queued.empty:
                means[at[address]], counts[at[address]] = queued.means(worth, mean)
                cv2[at[address]] = 1.0
        return names, addresses, means, counts, cv2

    def estimates(self) -> Estimates:
        """What the sums say now."""
        arrivals = {
            n: a / self._seconds for n, a in self._arrived.items() if self._seconds > 0 and a > 0
        }
        names, addresses, means, counts, cv2 = self._table()
        row = {name: n for n, name in enumerate(names)}
        column = {address: n for n, address in enumerate(addresses)}
        logs = np.log(np.where(counts > 0, means, 1.0))
        nu, rho, alpha = two_way(logs, counts, cv2)
        enough = counts.sum(axis=1) >= LEAST_REQUESTS
        return Estimates(
            service_time_seconds={n: math.exp(nu[row[n]]) for n in names if enough[row[n]]},
            rates={a: math.exp(rho[column[a]]) for a in addresses if counts[:, column[a]].any()},
            affinity={
                n: {
                    a: math.exp(alpha[row[n], c])
                    for a, c in column.items()
                    if counts[row[n], c] > 0
                }
                for n in names
            },
            evidence={
                n: {a: float(counts[row[n], c]) for a, c in column.items() if counts[row[n], c] > 0}
                for n in names
            },
            slots=self._slots.found(),
            least_slots=self._slots.least(),
            disciplines=self._disciplines.found(),
            arrivals_per_second=arrivals,
            burstiness={
                n: total / windows
                for n, (total, windows) in self._dispersed.items()
                if windows >= LEAST_WINDOWS
            },
            service_cv2=self._variation(),
        )

    def to_state(self) -> dict[str, Any]:
        """The sums as JSON-able data."""
        return {
            "pairs": [
                [name, address, s.count, s.seconds, s.squared]
                for (name, address), s in self._pairs.items()
            ],
            **self._crowded.to_state(),
            "arrived": self._arrived,
            "seconds": self._seconds,
            **self._slots.to_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `to_state` gave; what the configuration no longer names is dropped.

        Raises KeyError, TypeError or ValueError for data of another shape, and has changed
        nothing then.
        """
        pairs = {}
        for name, address, *numbers in state["pairs"]:
            count, seconds, squared = (finite(v) for v in numbers)
            if address in self._known.get(name, ()):
                pairs[name, address] = _Sums(count, seconds, squared)
        arrived = {n: finite(v) for n, v in state["arrived"].items() if n in self._known}
        total = finite(state["seconds"])
        crowded, slots = self._crowded.restored(state), self._slots.restored(state)
        self._pairs, self._arrived, self._seconds = pairs, arrived, total
        self._crowded, self._slots = crowded, slots
