"""The one place of counter arithmetic: two snapshots in, one window out.

Counters are cumulative since `Snapshot.start`; a `Window` holds their increase. Increases are never
negative and nothing is counted twice: a counter that went back began again from zero, so its later
value is the increase. Sums of windows are in `sums`, the statistics that are read from one in
`responses`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter, lt, sub
from typing import Final, TypeVar

from trimtab.model import AddressCounters, PairCounters, Snapshot, Window

__all__ = ["PAIR_SUMS", "ROUNDING_RATIO", "Meter", "window"]

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
# All of a pair that are numbers and add up.
PAIR_SUMS: Final = (*_COUNTS, *_SECONDS, "in_flight_seconds")
_counts: Final = attrgetter(*_COUNTS)
_seconds: Final = attrgetter(*_SECONDS)
_sums: Final = attrgetter(*PAIR_SUMS)


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
    sums = dict(zip(PAIR_SUMS, increases, strict=True))
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
