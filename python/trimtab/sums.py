"""Sums of windows: of many balancers over the same time, of one after the other, of a class.

Windows themselves, the differences of counters, are made in `window`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import add, attrgetter
from typing import Final, TypeVar

from trimtab.model import AddressCounters, Connections, PairCounters, Window
from trimtab.window import PAIR_SUMS

__all__ = ["accumulate", "class_total", "merge"]

Number = TypeVar("Number", int, float)

_sums: Final = attrgetter(*PAIR_SUMS)


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
    sums = dict(zip(PAIR_SUMS, total, strict=True))
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
