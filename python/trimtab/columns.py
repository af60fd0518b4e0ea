"""The counters of one report as arrays: what a thousand balancers with a hundred peers each need.

A report decoded into `Columns` costs a tenth of one decoded into a `PairCounters` for each pair,
and so do differences and sums (`fleet`). `Pairs` and `Addresses` show columns as the mappings of a
`Snapshot`, an object at a time when somebody looks. No decoding here, and no windows.

All whole numbers of a report are one array, and all doubles another, a field after the other:
gauges and counters that rise stand together, so that the difference of two reports, and the sum of
many, is one operation. Which field is where follows from the numbers of pairs and servers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np

from trimtab.model import (
    BUCKET_BOUNDS_SECONDS,
    CONCURRENCY_LEVELS,
    AddressCounters,
    PairCounters,
)

__all__ = [
    "BUCKETS",
    "REAL",
    "STATUS_CLASSES",
    "WHOLE",
    "Addresses",
    "Columns",
    "Layout",
    "Pairs",
    "address_counters",
    "pair_counters",
    "places",
]

STATUS_CLASSES: Final = 5
BUCKETS: Final = len(BUCKET_BOUNDS_SECONDS) + 1


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an array: its name in the contract, whether it is of a server (or of a pair),
    and how many numbers each has: first those of all rows, then the second ones."""

    name: str
    server: bool = False
    width: int = 1


# Gauges and what is no plain counter first; `Layout.rising` is the rest.
WHOLE: Final = (
    Field("in_flight"), Field("ejections", True), Field("down", True),
    Field("requests"), Field("failures"), Field("in_bytes"), Field("out_bytes"), Field("tardy"),
    Field("unqueued"), Field("retries"), Field("retries_refused"),
    Field("responses", width=STATUS_CLASSES), Field("response_time_buckets", width=BUCKETS),
    Field("completions_at", True, CONCURRENCY_LEVELS),
)  # fmt: skip

# What rises first: `Layout.times` (which tell of a reset), then integrals; then gauges.
REAL: Final = (
    Field("response_time_seconds"), Field("response_time_squared"), Field("tardiness"),
    Field("unqueued_seconds"), Field("unqueued_squared"),
    Field("in_flight_seconds"), Field("seconds_at", True, CONCURRENCY_LEVELS),
    Field("busy_seconds", True),
    Field("rate", True), Field("error_ratio", True), Field("ejection_seconds", True),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
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

    @cached_property
    def pairs(self) -> int:
        """How many."""
        return sum(len(peers) for _, peers in self.upstreams)

    @cached_property
    def whole(self) -> dict[str, slice]:
        """Where each field of `WHOLE` is."""
        return places(WHOLE, self.pairs, len(self.addresses))

    @cached_property
    def real(self) -> dict[str, slice]:
        """Where each field of `REAL` is."""
        return places(REAL, self.pairs, len(self.addresses))

    @cached_property
    def rising(self) -> slice:
        """The counters among the whole numbers."""
        return slice(self.whole["requests"].start, self.whole["completions_at"].stop)

    @cached_property
    def times(self) -> slice:
        """The sums of seconds of the pairs."""
        return slice(0, self.real["in_flight_seconds"].start)

    @cached_property
    def growing(self) -> slice:
        """All among the doubles that only rises: times, integrals and busy seconds."""
        return slice(0, self.real["busy_seconds"].stop)

    @cached_property
    def ratings(self) -> slice:
        """Rate and error ratio."""
        return slice(self.real["rate"].start, self.real["error_ratio"].stop)

    def fields(self, whole: Any, real: Any) -> dict[str, Any]:
        """Each field of the two arrays by name: [rows], or [rows, width]."""
        found = {}
        for table, where, array in ((WHOLE, self.whole, whole), (REAL, self.real, real)):
            for each in table:
                part = array[where[each.name]]
                found[each.name] = part.reshape(each.width, -1).T if each.width > 1 else part
        return found


@lru_cache(64)
def places(fields: tuple[Field, ...], pairs: int, servers: int) -> dict[str, slice]:
    """Where each field is in an array of so many pairs and servers."""
    found, at = {}, 0
    for each in fields:
        to = at + (servers if each.server else pairs) * each.width
        found[each.name] = slice(at, to)
        at = to
    return found


@dataclass(frozen=True, eq=False)
class Columns:
    """`whole` int64 in the order of `WHOLE`, `real` float64 in that of `REAL`, by row of the
    layout; `ejection` a text by server."""

    layout: Layout
    whole: Any
    real: Any
    ejection: tuple[str, ...]

    @cached_property
    def fields(self) -> dict[str, Any]:
        """See `Layout.fields`."""
        return self.layout.fields(self.whole, self.real)

    def kept(self, pairs: int, servers: int) -> "Columns":
        """Of columns with all of a message's pairs and servers (so many) those with the rows that
        the layout keeps."""
        rows, addresses = self.layout.keep_pairs, self.layout.keep_addresses
        if rows is None and addresses is None:
            return self
        arrays = []
        for table, array in ((WHOLE, self.whole), (REAL, self.real)):
            where = places(table, pairs, servers)
            parts = []
            for each in table:
                part = array[where[each.name]].reshape(each.width, -1)
                keep = addresses if each.server else rows
                parts.append((part if keep is None else part[:, keep]).ravel())
            arrays.append(np.concatenate(parts))
        texts = self.ejection
        if addresses is not None:
            texts = tuple(texts[n] for n in addresses)
        whole, real = arrays
        return Columns(self.layout, whole, real, texts)


def pair_counters(of: Mapping[str, Any], row: int, in_flight: float) -> PairCounters:
    """One pair, from the fields of columns (as arrays, or as lists)."""
    one, two, three, four, five = _listed(of["responses"][row])
    return PairCounters(
        in_flight=in_flight,
        requests=int(of["requests"][row]),
        responses=(one, two, three, four, five),
        failures=int(of["failures"][row]),
        in_bytes=int(of["in_bytes"][row]),
        out_bytes=int(of["out_bytes"][row]),
        response_time_seconds=float(of["response_time_seconds"][row]),
        response_time_squared=float(of["response_time_squared"][row]),
        tardiness=float(of["tardiness"][row]),
        tardy=int(of["tardy"][row]),
        unqueued=int(of["unqueued"][row]),
        unqueued_seconds=float(of["unqueued_seconds"][row]),
        unqueued_squared=float(of["unqueued_squared"][row]),
        buckets=tuple(_listed(of["response_time_buckets"][row])),
        in_flight_seconds=float(of["in_flight_seconds"][row]),
        retries=int(of["retries"][row]),
        retries_refused=int(of["retries_refused"][row]),
    )


def address_counters(of: Mapping[str, Any], row: int, ejection: str) -> AddressCounters:
    """One server, likewise."""
    return AddressCounters(
        busy_seconds=float(of["busy_seconds"][row]),
        completions_at=tuple(_listed(of["completions_at"][row])),
        seconds_at=tuple(_listed(of["seconds_at"][row])),
        rate=float(of["rate"][row]),
        error_ratio=float(of["error_ratio"][row]),
        down=bool(of["down"][row]),
        ejections=int(of["ejections"][row]),
        ejection=ejection,
        ejection_seconds=float(of["ejection_seconds"][row]),
    )


def _listed(row: Any) -> list[Any]:
    return row if isinstance(row, list) else list(row.tolist())


class _Peers(Mapping[str, PairCounters]):
    __slots__ = ("_columns", "_rows")

    def __init__(self, columns: Columns, rows: dict[str, int]) -> None:
        self._columns = columns
        self._rows = rows

    def __getitem__(self, address: str) -> PairCounters:
        row, fields = self._rows[address], self._columns.fields
        return pair_counters(fields, row, float(fields["in_flight"][row]))

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
        return address_counters(columns.fields, row, columns.ejection[row])

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.layout.servers)

    def __len__(self) -> int:
        return len(self.columns.layout.servers)
