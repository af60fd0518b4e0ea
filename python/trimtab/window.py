"""The one place of counter arithmetic: two snapshots in, one window out.

Counters are cumulative since `Snapshot.start`; a `Window` holds their increase. Increases are never
negative and nothing is counted twice: a counter that went back began again from zero, so its later
value is the increase. Sums of windows (over balancers, over time) and the statistics that are read
from one (mean, standard deviation, percentiles) live here too; estimates do not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import add, attrgetter, lt, sub
from typing import Final, TypeVar

from trimtab.model import (
    BUCKET_BOUNDS_SECONDS,
    AddressCounters,
    Connections,
    PairCounters,
    Snapshot,
    Window,
)

__all__ = [
    "Meter",
    "accumulate",
    "class_total",
    "mean_seconds",
    "merge",
    "percentile_seconds",
    "std_seconds",
    "window",
]

Number = TypeVar("Number", int, float)

# Sums of seconds come out a little smaller when they are read in another order, or while they are
# being written: less than this is no reset. (The integrals over time are read in mid-change, with
# what has passed since added; they never tell of a reset.)
ROUNDING_RATIO: Final = 0.01

# After a reload old workers end what they have and clients connect anew. Most requests take well
# under two seconds; the windows that this touches say little of either configuration.
SETTLE_SECONDS: Final = 2.0

_COUNTS: Final = (
    "requests",
    "failures",
    "in_bytes",
    "out_bytes",
    "tardy",
    "unqueued",
    "retries",
    "retries_refused",
)
_SECONDS: Final = (
    "response_time_seconds",
    "response_time_squared",
    "tardiness",
    "unqueued_seconds",
    "unqueued_squared",
)
_PAIR_SUMS: Final = (*_COUNTS, *_SECONDS, "in_flight_seconds")
_counts: Final = attrgetter(*_COUNTS)
_seconds: Final = attrgetter(*_SECONDS)
_sums: Final = attrgetter(*_PAIR_SUMS)


def _began_again(before: PairCounters, after: PairCounters) -> bool:
    """Whether the counters of a pair started from zero in between."""
    return (
        any(map(lt, _counts(after), _counts(before)))
        or any(
            a < b * (1 - ROUNDING_RATIO)
            for a, b in zip(_seconds(after), _seconds(before), strict=True)
        )
        or _rows_back(before.responses, after.responses)
    )


def _rows_back(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether a row of counters went back; rows of different length tell nothing."""
    return len(before) == len(after) and any(map(lt, after, before))


def _row_increase(before: Sequence[Number], after: Sequence[Number]) -> tuple[Number, ...]:
    """Increase of a row of counters, not negative; empty (unknown) when the row changed its
    shape."""
    if len(before) != len(after):
        return ()
    # Rows are long and peers many: `map` does not run a line of Python for each number.
    row = tuple(map(sub, after, before))
    return tuple(max(n, type(n)(0)) for n in row) if min(row, default=0) < 0 else row


def _reset(before: PairCounters, after: PairCounters) -> PairCounters:
    """What to subtract where counters of a pair started from zero: mostly nothing.

    The control interface of nginx-module-vts zeroes requests but not buckets, nor (0.1.18) the
    sum of response times. Buckets that hold more than the requests tell that; without any, a sum
    of times that did not go back is taken to go on, as too little is better than twice.
    """
    zero = PairCounters(buckets=(0,) * len(after.buckets))
    known = len(before.buckets) == len(after.buckets) > 0
    go_on = known and sum(after.buckets) > after.requests
    if known and not go_on:
        return zero
    times = before.response_time_seconds <= after.response_time_seconds
    return replace(
        zero,
        buckets=before.buckets if go_on else zero.buckets,
        response_time_seconds=before.response_time_seconds if times else 0.0,
    )


def _pair_increase(before: PairCounters, after: PairCounters, seconds: float) -> PairCounters:
    if _began_again(before, after):
        before = _reset(before, after)
    increases = _row_increase(_sums(before), _sums(after))
    sums = dict(zip(_PAIR_SUMS, increases, strict=True))
    one, two, three, four, five = map(sub, after.responses, before.responses)
    # The integral is exact; a source without one leaves only the mean of two readings.
    integral = after.in_flight_seconds > 0
    return PairCounters(
        in_flight=(
            sums["in_flight_seconds"] / seconds
            if integral
            else (before.in_flight + after.in_flight) / 2
        ),
        responses=(one, two, three, four, five),
        # Buckets that began anew alone (other bounds) tell nothing of this window.
        buckets=(
            ()
            if _rows_back(before.buckets, after.buckets)
            else _row_increase(before.buckets, after.buckets)
        ),
        **sums,
    )


def _address_increase(before: AddressCounters, after: AddressCounters) -> AddressCounters:
    if _rows_back(before.completions_at, after.completions_at):
        before = AddressCounters(
            completions_at=(0,) * len(after.completions_at),
            seconds_at=(0.0,) * len(after.seconds_at),
        )
    return replace(
        after,
        busy_seconds=max(after.busy_seconds - before.busy_seconds, 0.0),
        completions_at=_row_increase(before.completions_at, after.completions_at),
        seconds_at=_row_increase(before.seconds_at, after.seconds_at),
        ejections=max(after.ejections - before.ejections, 0),
    )


def window(earlier: Snapshot, later: Snapshot) -> Window | None:
    """What happened between two snapshots of one balancer.

    None when its clock did not advance: no time, or a reboot of its machine. A peer that only
    `later` knows is new, and all it counted belongs to the window; one that only `earlier` knows
    is gone and left out. `Meter` keeps the counters of those, which may return.
    Raises ValueError for snapshots of two balancers.
    """
    if earlier.instance != later.instance:
        raise ValueError(f"snapshots of two balancers: {earlier.instance!r}, {later.instance!r}")
    seconds = later.clock_seconds - earlier.clock_seconds
    if not seconds > 0 or not math.isfinite(seconds):
        return None
    same = earlier.start == later.start
    pairs = earlier.pairs if same else {}
    addresses = earlier.addresses if same else {}
    result: dict[str, dict[str, PairCounters]] = {}
    for name, peers in later.pairs.items():
        known = pairs.get(name, {})
        result[name] = {
            address: _pair_increase(
                known.get(address, PairCounters(buckets=(0,) * len(after.buckets))), after, seconds
            )
            for address, after in peers.items()
        }
    waiting = earlier.waiting if same else {}
    return Window(
        seconds=seconds,
        pairs=result,
        addresses={
            address: _address_increase(
                addresses.get(
                    address,
                    AddressCounters(
                        completions_at=(0,) * len(after.completions_at),
                        seconds_at=(0.0,) * len(after.seconds_at),
                    ),
                ),
                after,
            )
            for address, after in later.addresses.items()
        },
        waiting={n: (waiting.get(n, w) + w) / 2 for n, w in later.waiting.items()},
        connections=later.connections,
        disturbed=(
            later.loaded_seconds is not None and later.loaded_seconds < seconds + SETTLE_SECONDS
        ),
        unfollowed=later.generation == 0,
    )


class Meter:
    """Windows of one balancer, one snapshot after another.

    Remembers the counters of peers that vanished, within one start: a peer that comes back with
    its old counts is not counted twice.
    """

    # A configuration has at most 16384 pairs (the proto); beyond it the oldest vanished are lost.
    MAX_VANISHED: Final = 16384

    def __init__(self) -> None:
        self._last: Snapshot | None = None

    @property
    def last(self) -> Snapshot | None:
        """What the next window begins with."""
        return self._last

    def go_on(self, snapshot: Snapshot) -> None:
        """Begin the next window with `snapshot`; whoever calls has made the one before, and it has
        the peers of `last`."""
        self._last = snapshot

    def take(self, snapshot: Snapshot) -> Window | None:
        """The window since the last snapshot taken; None for the first, a repeated or a late one.

        A clock that went back within one start is a late snapshot and is ignored; with a new
        start it is a reboot, and counting begins from this snapshot.
        """
        last = self._last
        if last is None:
            self._last = snapshot
            return None
        if snapshot.start == last.start and snapshot.clock_seconds <= last.clock_seconds:
            return None
        result = window(last, snapshot)
        self._last = self._carry(last, snapshot) if snapshot.start == last.start else snapshot
        return result

    def _carry(self, last: Snapshot, snapshot: Snapshot) -> Snapshot:
        """`snapshot` with the peers that only `last` knows: a later `window` leaves them out, or
        takes them as the baseline when they are back."""
        left = self.MAX_VANISHED
        pairs = {name: dict(peers) for name, peers in snapshot.pairs.items()}
        for name, peers in last.pairs.items():
            mine = pairs.setdefault(name, {})
            for address, counters in peers.items():
                if address not in mine and left > 0:
                    mine[address] = counters
                    left -= 1
        gone = [(a, c) for a, c in last.addresses.items() if a not in snapshot.addresses]
        if left == self.MAX_VANISHED and not gone:
            return snapshot
        addresses = dict(snapshot.addresses) | dict(gone[: self.MAX_VANISHED])
        return replace(snapshot, pairs=pairs, addresses=addresses)


def _add_rows(rows: Iterable[tuple[Number, ...]]) -> tuple[Number, ...]:
    """Sum of equally long rows; rows that are absent or of another length than the first are
    left out."""
    total: tuple[Number, ...] = ()
    for row in rows:
        if not total:
            total = row
        elif len(row) == len(total):
            total = tuple(map(add, total, row))
    return total


def _add_pairs(counters: Sequence[PairCounters], in_flight: float) -> PairCounters:
    if len(counters) == 1:
        return replace(counters[0], in_flight=in_flight)
    total = _add_rows(map(_sums, counters))
    sums = dict(zip(_PAIR_SUMS, total, strict=True))
    one, two, three, four, five = map(sum, zip(*(c.responses for c in counters), strict=True))
    return PairCounters(
        in_flight=in_flight,
        responses=(one, two, three, four, five),
        buckets=_add_rows(c.buckets for c in counters),
        **sums,
    )


def _add_addresses(counters: Sequence[AddressCounters]) -> AddressCounters:
    """Sums; gauges are means by busy time, and a server is down when every balancer says so."""
    busy = sum(c.busy_seconds for c in counters)
    shares = [c.busy_seconds / busy if busy > 0 else 1 / len(counters) for c in counters]
    return AddressCounters(
        busy_seconds=busy,
        completions_at=_add_rows(c.completions_at for c in counters),
        seconds_at=_add_rows(c.seconds_at for c in counters),
        rate=sum(c.rate * s for c, s in zip(counters, shares, strict=True)),
        error_ratio=sum(c.error_ratio * s for c, s in zip(counters, shares, strict=True)),
        down=all(c.down for c in counters),
        ejections=sum(c.ejections for c in counters),
        ejection=next((c.ejection for c in counters if c.ejection), ""),
        ejection_seconds=max(c.ejection_seconds for c in counters),
    )


def _grouped(maps: Iterable[Mapping[str, PairCounters]]) -> dict[str, list[PairCounters]]:
    groups: dict[str, list[PairCounters]] = {}
    for peers in maps:
        for address, counters in peers.items():
            groups.setdefault(address, []).append(counters)
    return groups


def _addresses(windows: Sequence[Window]) -> dict[str, AddressCounters]:
    groups: dict[str, list[AddressCounters]] = {}
    for one in windows:
        for address, counters in one.addresses.items():
            groups.setdefault(address, []).append(counters)
    return {address: _add_addresses(group) for address, group in groups.items()}


def merge(windows: Sequence[Window]) -> Window:
    """The sum of windows of several balancers over the same time. Raises ValueError for none.

    Counts at n in flight are each balancer's own: with more than one they say little about the
    server's, and `estimate` does not use them then.
    """
    if not windows:
        raise ValueError("no window to merge")
    if len(windows) == 1:
        return windows[0]
    names = dict.fromkeys(name for w in windows for name in w.pairs)
    held = dict.fromkeys(name for w in windows for name in w.waiting)
    gauges = ("active", "reading", "writing", "waiting")
    return Window(
        seconds=max(w.seconds for w in windows),
        pairs={
            name: {
                address: _add_pairs(group, sum(c.in_flight for c in group))
                for address, group in _grouped(w.pairs.get(name, {}) for w in windows).items()
            }
            for name in names
        },
        addresses=_addresses(windows),
        waiting={name: sum(w.waiting.get(name, 0.0) for w in windows) for name in held},
        connections=Connections(
            **{g: sum(getattr(w.connections, g) for w in windows) for g in gauges}
        ),
        instances=sum(w.instances for w in windows),
        disturbed=any(w.disturbed for w in windows),
        unfollowed=all(w.unfollowed for w in windows),
    )


def accumulate(windows: Sequence[Window]) -> Window:
    """The sum of consecutive windows. Raises ValueError for none.

    Counters and lengths add up; in flight and waiting are means over the whole time, connections
    and the gauges of addresses those of the last window.
    """
    if not windows:
        raise ValueError("no window to accumulate")
    last = windows[-1]
    if len(windows) == 1:
        return last
    seconds = sum(w.seconds for w in windows)
    pairs: dict[str, dict[str, PairCounters]] = {}
    for name in dict.fromkeys(name for w in windows for name in w.pairs):
        held: dict[str, float] = {}
        for w in windows:
            for address, counters in w.pairs.get(name, {}).items():
                held[address] = held.get(address, 0.0) + counters.in_flight * w.seconds / seconds
        pairs[name] = {
            address: _add_pairs(group, held[address])
            for address, group in _grouped(w.pairs.get(name, {}) for w in windows).items()
        }
    waiting: dict[str, float] = {}
    for w in windows:
        for name, count in w.waiting.items():
            waiting[name] = waiting.get(name, 0.0) + count * w.seconds / seconds
    addresses = _addresses(windows)
    for address, now in last.addresses.items():
        addresses[address] = replace(
            addresses[address],
            rate=now.rate,
            error_ratio=now.error_ratio,
            down=now.down,
            ejection=now.ejection,
            ejection_seconds=now.ejection_seconds,
        )
    return Window(
        seconds=seconds,
        pairs=pairs,
        addresses=addresses,
        waiting=waiting,
        connections=last.connections,
        instances=max(w.instances for w in windows),
        disturbed=any(w.disturbed for w in windows),
        unfollowed=any(w.unfollowed for w in windows),
    )


def class_total(of: Window, upstream: str) -> PairCounters:
    """The counters of one class summed over its peers; zeros for an unknown class."""
    peers = list(of.pairs.get(upstream, {}).values())
    return _add_pairs(peers, sum(p.in_flight for p in peers)) if peers else PairCounters()


def mean_seconds(of: PairCounters) -> float | None:
    """Mean response time; None without a finished request."""
    return of.response_time_seconds / of.requests if of.requests else None


def _bucket_edges(index: int) -> tuple[float, float]:
    low = BUCKET_BOUNDS_SECONDS[index - 1] if index else 0.0
    high = BUCKET_BOUNDS_SECONDS[min(index, len(BUCKET_BOUNDS_SECONDS) - 1)]
    return low, high


def std_seconds(of: PairCounters) -> float | None:
    """Standard deviation of the response times (of the population); None when it is unknown.

    From the sum of squares, or else from the buckets, each at its middle (12% off at most within
    a bucket of half an octave).
    """
    if of.requests and of.response_time_squared > 0:
        mean = of.response_time_seconds / of.requests
        return math.sqrt(max(of.response_time_squared / of.requests - mean * mean, 0.0))
    count = sum(of.buckets)
    if len(of.buckets) != len(BUCKET_BOUNDS_SECONDS) + 1 or not count:
        return None
    middles = [sum(_bucket_edges(b)) / 2 for b in range(len(of.buckets))]
    mean = sum(n * m for n, m in zip(of.buckets, middles, strict=True)) / count
    square = sum(n * (m - mean) ** 2 for n, m in zip(of.buckets, middles, strict=True)) / count
    return math.sqrt(square)


def percentile_seconds(of: PairCounters, ratio: float) -> float | None:
    """The response time that `ratio` (0 to 1) of the requests did not exceed; None when unknown.

    Interpolated within a bucket; the last bucket has no upper bound and gives its lower one.
    """
    count = sum(of.buckets)
    if len(of.buckets) != len(BUCKET_BOUNDS_SECONDS) + 1 or not count:
        return None
    wanted = ratio * count
    below = 0
    for index, inside in enumerate(of.buckets):
        if inside and below + inside >= wanted:
            low, high = _bucket_edges(index)
            return low + (high - low) * max(wanted - below, 0.0) / inside
        below += inside
    return BUCKET_BOUNDS_SECONDS[-1]
