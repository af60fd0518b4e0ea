"""The counters of one report as arrays: what a thousand balancers with a hundred peers each need.

A report decoded into `Columns` costs a tenth of one decoded into a `PairCounters` for each pair,
and so do differences and sums (`fleet`). `Pairs` and `Addresses` show columns as the mappings of a
`Snapshot`, an object at a time when somebody looks. No decoding here, and no windows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from trimtab.model import AddressCounters, PairCounters

__all__ = ["GAUGES", "PAIR_SUMS", "Addresses", "Columns", "Layout", "Pairs", "pair_counters"]

# The columns of `Columns.sums`: the gauge first, then counts, then seconds.
PAIR_SUMS: Final = (
    "in_flight", "requests", "failures", "in_bytes", "out_bytes", "tardy", "unqueued",
    "retries", "retries_refused", "response_time_seconds", "response_time_squared", "tardiness",
    "unqueued_seconds", "unqueued_squared", "in_flight_seconds",
)  # fmt: skip
COUNTS: Final = 9

# The columns of `Columns.gauges`: two that rise and three of now.
GAUGES: Final = ("busy_seconds", "ejections", "rate", "error_ratio", "ejection_seconds")

STATUS_CLASSES: Final = 5


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Which row is whose: upstreams with the addresses of their peers, in order, and servers.

    `keep_pairs` and `keep_addresses` are the rows of the message that are known here, None for
    all; `unknown` the names that are not.
    """

    upstreams: tuple[tuple[str, tuple[str, ...]], ...]
    addresses: tuple[str, ...]
    keep_pairs: Any = None
    keep_addresses: Any = None
    unknown: tuple[str, ...] = ()
    rows: dict[str, dict[str, int]] = field(init=False)  # upstream -> address -> row
    servers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        rows: dict[str, dict[str, int]] = {}
        at = 0
        for name, peers in self.upstreams:
            rows[name] = {address: at + n for n, address in enumerate(peers)}
            at += len(peers)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "servers", {a: n for n, a in enumerate(self.addresses)})


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Arrays by row of the layout: pairs first, then servers.

    `sums` float64 [pairs, 15] as `PAIR_SUMS` (counts below 2^53 are exact), `rows` int64
    [pairs, 5 + 36] status classes and buckets; `gauges` float64 [servers, 5] as `GAUGES`, `down`
    bool [servers], `ejection` a text by server, `completions` int64 and `seconds` float64
    [servers, 32].
    """

    layout: Layout
    sums: Any
    rows: Any
    gauges: Any
    down: Any
    ejection: tuple[str, ...]
    completions: Any
    seconds: Any


def pair_counters(sums: list[float], row: list[int], in_flight: float) -> PairCounters:
    """One pair, from a row of `sums` and of `rows`."""
    values: dict[str, Any] = dict(zip(PAIR_SUMS, sums, strict=True))
    for name in PAIR_SUMS[1:COUNTS]:
        values[name] = int(values[name])
    values["in_flight"] = in_flight
    one, two, three, four, five = row[:STATUS_CLASSES]
    return PairCounters(
        responses=(one, two, three, four, five), buckets=tuple(row[STATUS_CLASSES:]), **values
    )


class _Peers(Mapping[str, PairCounters]):
    __slots__ = ("_columns", "_rows")

    def __init__(self, columns: Columns, rows: dict[str, int]) -> None:
        self._columns = columns
        self._rows = rows

    def __getitem__(self, address: str) -> PairCounters:
        row = self._rows[address]
        sums = self._columns.sums[row].tolist()
        return pair_counters(sums, self._columns.rows[row].tolist(), sums[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Pairs(Mapping[str, Mapping[str, PairCounters]]):
    """`Snapshot.pairs` of columns."""

    __slots__ = ("columns",)

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __getitem__(self, upstream: str) -> Mapping[str, PairCounters]:
        return _Peers(self.columns, self.columns.layout.rows[upstream])

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.layout.rows)

    def __len__(self) -> int:
        return len(self.columns.layout.rows)


class Addresses(Mapping[str, AddressCounters]):
    """`Snapshot.addresses` of columns."""

    __slots__ = ("columns",)

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __getitem__(self, address: str) -> AddressCounters:
        columns = self.columns
        row = columns.layout.servers[address]
        busy, ejections, rate, error, ejection_seconds = columns.gauges[row].tolist()
        return AddressCounters(
            busy_seconds=busy,
            completions_at=tuple(columns.completions[row].tolist()),
            seconds_at=tuple(columns.seconds[row].tolist()),
            rate=rate,
            error_ratio=error,
            down=bool(columns.down[row]),
            ejections=int(ejections),
            ejection=columns.ejection[row],
            ejection_seconds=ejection_seconds,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.layout.servers)

    def __len__(self) -> int:
        return len(self.columns.layout.servers)


def stacked(kept: Any, array: Any) -> Any:
    """`array`, or its rows `kept`."""
    return array if kept is None else np.ascontiguousarray(array[kept])
