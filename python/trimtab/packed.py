"""The quick way from a report by column (`UpstreamStats.peer_columns`) to columns, and to rows.

Every column of the message is an array already, so little is done in Python: a hundred peers take
a quarter of the time of a message for each. Which addresses they are of is looked up by the bytes
that these have. What is out of the ordinary (a column not packed or in pieces, a number
beyond 2^53, a bound broken) gives None; then `spread` makes the same report with a message a peer,
which is decoded with every check.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from trimtab import varints
from trimtab.bounds import MessageError, check_exactly, check_length
from trimtab.columns import REAL, WHOLE, Columns, Layout, places
from trimtab.config import MAX_PAIRS, MAX_PEERS
from trimtab.v1 import policy_pb2
from trimtab.wire import Lay, in_bounds, layout_of, remember, texts_in_bounds

__all__ = ["columns", "gather", "spread"]

# Names are kept as they came, to know them again: sixteen thousand usual ones take half of this.
MOST_NAMES_BYTES: Final = 1024 * 1024

_WIDE: Final = {f.name: f.width for f in (*WHOLE, *REAL) if f.width > 1}

# Of a column of several: which of them comes first in the message, where that is not the first.
_FIRST: Final = {"response_time_buckets": "first_bucket"}

# What reads the column of each field.
_WHOLE: Final = tuple((attrgetter(f.name), f) for f in WHOLE)
_REAL: Final = tuple((attrgetter(f.name), f) for f in REAL)


class _OddError(Exception):
    """For the careful way."""


@dataclass(frozen=True, slots=True)
class _Named:
    """What the bytes of all names stand for, and how many peers and servers the message has."""

    layout: Layout
    peers: tuple[int, ...]
    servers: int


def columns(message: Any, lay: Lay, layouts: dict[Any, Any]) -> Columns | None:
    """The columns of a `wire.Report`; None for the careful way. `layouts` keeps what `lay` made."""
    try:
        return _columns(message, lay, layouts)
    except (_OddError, DecodeError):
        return None


def _columns(message: Any, lay: Lay, layouts: dict[Any, Any]) -> Columns | None:
    groups = [u.peer_columns for u in message.upstreams]
    of = message.address_columns
    if message.addresses or any(u.peers for u in message.upstreams):
        return None
    # A column that is not packed would be among these.
    if any(len(UnknownFieldSet(each)) for each in (of, *groups)):
        return None
    named = _named(message, lay, layouts)
    n, m = sum(named.peers), named.servers
    if not n or not m or not all(named.peers):
        return None
    pairs, server = _placed(groups, named.peers), [(of, 0, m)]
    whole = np.zeros(places(WHOLE, n, m)["completions_at"].stop, np.int64)
    runs, counts, targets = _runs(_WHOLE, whole, pairs, server, _varints_in)
    numbers = varints.decode(runs, counts)
    if numbers is None:
        return None
    _fill(targets, numbers)
    real = np.zeros(places(REAL, n, m)["ejection_seconds"].stop)
    runs, counts, targets = _runs(_REAL, real, pairs, server, _doubles_in)
    if any(len(run) != 8 * count for run, count in zip(runs, counts, strict=True)):
        return None
    _fill(targets, np.frombuffer(b"".join(runs), "<f8"))
    ejection = tuple(of.ejection) or ("",) * m
    if not (len(ejection) == m and in_bounds(whole, real, n, m) and texts_in_bounds(ejection)):
        return None
    return Columns(named.layout, whole, real, ejection).kept(n, m)


def _placed(groups: list[Any], sizes: tuple[int, ...]) -> list[tuple[Any, int, int]]:
    """Each group with its first row and that behind its last."""
    placed, at = [], 0
    for group, size in zip(groups, sizes, strict=True):
        placed.append((group, at, at + size))
        at += size
    return placed


def _varints_in(run: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(run, np.uint8) < 0x80))


def _doubles_in(run: bytes) -> int:
    return len(run) // 8


def _runs(
    table: Any, flat: Any, pairs: list[Any], server: list[Any], count: Callable[[bytes], int]
) -> tuple[list[bytes], list[int], list[Any]]:
    """The columns of a table's fields, how many numbers each should have, and where in `flat` these
    belong. Raises _OddError."""
    runs: list[bytes] = []
    counts: list[int] = []
    targets: list[Any] = []
    at = 0
    for read, field in table:
        groups = server if field.server else pairs
        rows = groups[-1][2]
        array = flat[at : at + rows * field.width].reshape(field.width, rows)
        at += array.size
        found = [_run(read(each)) for each, _, _ in groups]
        if field.width == 1 and all(found):
            runs += found
            counts += [stop - start for _, start, stop in groups]
            targets.append(array[0])
            continue
        for run, (each, start, stop) in zip(found, groups, strict=True):
            if run:
                number = stop - start if field.width == 1 else count(run)
                runs.append(run)
                counts.append(number)
                targets.append(_target(array, each, field.name, start, stop, number))
    return runs, counts, targets


def _target(array: Any, of: Any, name: str, start: int, stop: int, count: int) -> Any:
    """Where `count` numbers of a column belong in its array [width, rows]. Raises _OddError when
    they do not fit."""
    if len(array) == 1 and count == stop - start:
        return array[0, start:stop]
    first = getattr(of, _FIRST[name]) if name in _FIRST else 0
    columns, left = divmod(count, stop - start)
    if left or first + columns > len(array):
        raise _OddError
    return array[first : first + columns, start:stop]


def _fill(targets: list[Any], numbers: Any) -> None:
    at = 0
    for target in targets:
        size = target.size
        numbers_of = numbers[at : at + size]
        target[...] = numbers_of if target.ndim == 1 else numbers_of.reshape(target.shape)
        at += size


def _run(column: Any) -> bytes:
    """The bytes of a packed column, empty where there is none."""
    if not column:
        return b""
    if len(column) > 1:
        raise _OddError
    run: bytes = column[0]
    return run


def _named(message: Any, lay: Lay, layouts: dict[Any, Any]) -> _Named:
    """Whose the columns are. Raises _OddError."""
    key = (
        tuple((u.upstream, _run(u.peer_columns.addresses)) for u in message.upstreams),
        _run(message.address_columns.addresses),
    )
    named: _Named | None = layouts.get(key)
    if named is None:
        if sum(len(names) for _, names in key[0]) + len(key[1]) > MOST_NAMES_BYTES:
            raise _OddError
        upstreams = tuple((upstream, _addresses(names)) for upstream, names in key[0])
        servers = _addresses(key[1])
        layout = layout_of(upstreams, servers, lay, layouts)
        if layout is None:
            raise _OddError
        named = _Named(layout, tuple(len(peers) for _, peers in upstreams), len(servers))
        remember(layouts, key, named)
    return named


def _addresses(names: bytes) -> tuple[str, ...]:
    return tuple(policy_pb2.AddressList.FromString(names).addresses)


def spread(message: Any) -> None:
    """Turn a ReportStatsRequest's columns into a message a peer and a server, in place. Raises
    MessageError for a column of another length and for too many addresses."""
    pairs = 0
    for n, upstream in enumerate(message.upstreams):
        if not upstream.HasField("peer_columns"):
            continue
        where = f"upstreams[{n}]."
        if upstream.peers:
            raise MessageError(f"{where}peers and {where}peer_columns: one of them is allowed")
        check_length(
            upstream.peer_columns.addresses.addresses, f"{where}peer_columns.addresses", MAX_PEERS
        )
        pairs += len(upstream.peer_columns.addresses.addresses)
        if pairs > MAX_PAIRS:
            raise MessageError(
                f"upstreams have {pairs} peers in all; at most {MAX_PAIRS} are allowed"
            )
        _spread(upstream.peer_columns, upstream.peers, where + "peer_columns")
        upstream.ClearField("peer_columns")
    if message.HasField("address_columns"):
        if message.addresses:
            raise MessageError("addresses and address_columns: one of them is allowed")
        of = message.address_columns
        check_length(of.addresses.addresses, "address_columns.addresses", MAX_PAIRS)
        _spread(of, message.addresses, "address_columns")
        message.ClearField("address_columns")


def _spread(of: Any, entries: Any, where: str) -> None:
    addresses = of.addresses.addresses
    size = len(addresses)
    found: dict[str, list[Any]] = {}
    for name in _columns_of(of):
        values = getattr(of, name)
        if not values:
            continue
        width = _WIDE.get(name)
        if width is None:
            check_exactly(values, f"{where}.{name}", size)
            found[name] = list(values)
            continue
        first = getattr(of, _FIRST[name]) if name in _FIRST else 0
        columns, left = divmod(len(values), size) if size else (0, 1)
        if left or first + columns > width:
            raise MessageError(
                f"{where}.{name} has {len(values)} entries from column {first}; it must have "
                f"{size} a column, of at most {width} columns"
            )
        plain = list(values)
        after = [0] * (width - first - columns)
        found[name] = [[0] * first + plain[n::size] + after for n in range(size)]
    for n, address in enumerate(addresses):
        entries.add(address=address, **{name: values[n] for name, values in found.items()})


def _columns_of(of: Any) -> list[str]:
    beside = ("addresses", *_FIRST.values())
    return [field.name for field in of.DESCRIPTOR.fields if field.name not in beside]


def gather(message: Any) -> None:
    """Turn a ReportStatsRequest's messages for peers and servers into columns, in place: what
    `spread` undoes."""
    for upstream in message.upstreams:
        _gather(upstream.peers, upstream.peer_columns)
        upstream.ClearField("peers")
    _gather(message.addresses, message.address_columns)
    message.ClearField("addresses")


def _gather(entries: Any, of: Any) -> None:
    of.addresses.addresses.extend(entry.address for entry in entries)
    for name in _columns_of(of):
        values = [getattr(entry, name) for entry in entries]
        width = _WIDE.get(name)
        if width is None:
            if any(values):
                getattr(of, name).extend(values)
            continue
        # Entries may lack the whole row.
        used = [c for c in range(width) if any(row[c] for row in values if row)]
        if not used:
            continue
        first = used[0] if name in _FIRST else 0
        if name in _FIRST:
            setattr(of, _FIRST[name], first)
        for column in range(first, used[-1] + 1):
            getattr(of, name).extend(row[column] if row else 0 for row in values)
