"""The quick way from a ReportStatsRequest's bytes to columns, for reports as the hook sends them.

A packed array of numbers looks on the wire as a field of bytes does. So the report is parsed with
the contract's own descriptor, its arrays declared as bytes, and the arrays of all peers are
converted at once. What is out of the ordinary (an array missing or not packed, a number beyond
2^53, a bound broken) gives None, and the caller decodes with every check and message.
"""

from collections.abc import Callable, Mapping
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError

from trimtab.bounds import MessageError, check_text
from trimtab.columns import COUNTS, GAUGES, PAIR_SUMS, STATUS_CLASSES, Columns, Layout, stacked
from trimtab.model import BUCKET_BOUNDS_SECONDS, CONCURRENCY_LEVELS
from trimtab.v1 import policy_pb2

__all__ = ["Lay", "Names", "known_rows", "parse"]

BUCKETS: Final = len(BUCKET_BOUNDS_SECONDS) + 1

# Every count up to here is a float64 exactly.
MOST_COUNT: Final = 2.0**53

# Nine bytes of seven bits: what an int64 holds without a sign.
MOST_VARINT_BYTES: Final = 9

# Below this the careful way costs no more: a report of two or three peers.
LEAST_BYTES: Final = 1024

# Balancers of one configuration have one layout; during a roll-out there are two.
MOST_LAYOUTS: Final = 64

_sums: Final = attrgetter(*PAIR_SUMS)
_responses: Final = attrgetter("responses")
_buckets: Final = attrgetter("response_time_buckets")
_completions: Final = attrgetter("completions_at")
_seconds: Final = attrgetter("seconds_at")
_address: Final = attrgetter("address")
_gauges: Final = attrgetter(*GAUGES)
_ejection: Final = attrgetter("ejection")
_down: Final = attrgetter("down")

# Upstreams with the addresses of their peers.
Names = tuple[tuple[str, tuple[str, ...]], ...]

# What makes a layout of upstreams and servers, with every check; None when one is broken.
Lay = Callable[[Names, tuple[str, ...]], Layout | None]


def _report_class() -> Any:
    """ReportStatsRequest with its packed arrays as bytes."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto()
    policy_pb2.DESCRIPTOR.CopyToProto(file)
    own = file.package + ".rows"
    for message in file.message_type:
        for each in message.field:
            each.type_name = each.type_name.replace(f".{file.package}.", f".{own}.")
            if not each.type_name:
                each.ClearField("type_name")
            if each.label == kinds.LABEL_REPEATED and each.type in (
                kinds.TYPE_UINT64,
                kinds.TYPE_DOUBLE,
            ):
                each.label, each.type = kinds.LABEL_OPTIONAL, kinds.TYPE_BYTES
    file.name, file.package = "trimtab/rows.proto", own
    del file.service[:]
    duration = descriptor_pb2.FileDescriptorProto()
    duration_pb2.DESCRIPTOR.CopyToProto(duration)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(duration)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{own}.ReportStatsRequest"))


_Report: Final = _report_class()


def parse(raw: bytes, lay: Lay, layouts: dict[Any, Layout]) -> tuple[Any, Columns] | None:
    """The parsed message (for its single fields) and its columns; None for the careful way.

    `layouts` keeps what `lay` made, by the names.
    """
    if len(raw) < LEAST_BYTES:
        return None
    try:
        message = _Report.FromString(raw)
    except DecodeError:
        return None
    upstreams = list(message.upstreams)
    peers = [list(u.peers) for u in upstreams]
    servers = list(message.addresses)
    names = tuple(
        (u.upstream, tuple(map(_address, group))) for u, group in zip(upstreams, peers, strict=True)
    )
    key = (names, tuple(map(_address, servers)))
    layout = layouts.get(key)
    if layout is None:
        layout = lay(*key)
        if layout is None:
            return None
        if len(layouts) >= MOST_LAYOUTS:
            layouts.clear()
        layouts[key] = layout
    pairs = list(chain.from_iterable(peers))
    if not pairs or not servers:
        return None
    columns = _columns(layout, pairs, servers)
    return None if columns is None else (message, columns)


def _columns(layout: Layout, pairs: list[Any], servers: list[Any]) -> Columns | None:
    n, m = len(pairs), len(servers)
    sums = np.fromiter(chain.from_iterable(map(_sums, pairs)), np.float64, n * len(PAIR_SUMS))
    gauges = np.fromiter(chain.from_iterable(map(_gauges, servers)), np.float64, m * len(GAUGES))
    levels = b"".join(map(_seconds, servers))
    if len(levels) != 8 * CONCURRENCY_LEVELS * m:
        return None
    if any(len(s) != 8 * CONCURRENCY_LEVELS for s in map(_seconds, servers)):
        return None
    seconds = np.frombuffer(levels, "<f8")
    sums, gauges = sums.reshape(n, -1), gauges.reshape(m, -1)
    if not (
        _in_bounds(sums)
        and _in_bounds(gauges)
        and _in_bounds(seconds)
        and sums[:, :COUNTS].max() < MOST_COUNT
        and gauges[:, 1].max() < MOST_COUNT
        and gauges[:, 3].max() <= 1.0
    ):
        return None
    ejection = tuple(map(_ejection, servers))
    try:
        for text in set(ejection) - {""}:
            check_text(text, "ejection")
    except MessageError:
        return None
    kept = layout.keep_addresses
    numbers = _varints(
        [
            (list(map(_responses, pairs)), STATUS_CLASSES),
            (list(map(_buckets, pairs)), BUCKETS),
            (list(map(_completions, servers)), CONCURRENCY_LEVELS),
        ]
    )
    if numbers is None:
        return None
    responses, buckets, completions = numbers
    return Columns(
        layout=layout,
        sums=stacked(layout.keep_pairs, sums),
        rows=stacked(layout.keep_pairs, np.hstack((responses, buckets))),
        gauges=stacked(layout.keep_addresses, gauges),
        down=stacked(layout.keep_addresses, np.fromiter(map(_down, servers), bool, m)),
        ejection=ejection if kept is None else tuple(ejection[n] for n in kept),
        completions=stacked(layout.keep_addresses, completions),
        seconds=stacked(layout.keep_addresses, seconds.reshape(m, -1)),
    )


def _in_bounds(values: Any) -> bool:
    """Finite and not negative; NaN is neither."""
    return bool(values.min() >= 0.0 and values.max() < np.inf)


def _varints(parts: list[tuple[list[bytes], int]]) -> list[Any] | None:
    """An int64 array [rows, width] for each (rows, width); None unless every row has `width`
    varints of at most nine bytes."""
    joined = np.frombuffer(b"".join(chain.from_iterable(rows for rows, _ in parts)), np.uint8)
    ends = np.flatnonzero(joined < 0x80)
    total = sum(len(rows) * width for rows, width in parts)
    # Where each row must end: at its `width`-th varint, and at its last byte.
    lengths = [len(row) for rows, _ in parts for row in rows]
    widths = np.repeat([width for _, width in parts], [len(rows) for rows, _ in parts])
    if len(ends) != total or not len(joined) or ends[-1] != len(joined) - 1:
        return None
    if not np.array_equal(ends[np.cumsum(widths) - 1], np.cumsum(lengths) - 1):
        return None
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    more = ends - starts
    values = (joined[starts] & 0x7F).astype(np.int64)
    longest = int(more.max())
    if longest >= MOST_VARINT_BYTES:
        return None
    where = np.flatnonzero(more)
    for byte in range(1, longest + 1):
        values[where] |= (joined[starts[where] + byte] & 0x7F).astype(np.int64) << (7 * byte)
        where = where[more[where] > byte]
    out, at = [], 0
    for rows, width in parts:
        out.append(values[at : at + len(rows) * width].reshape(len(rows), width))
        at += len(rows) * width
    return out


def known_rows(
    names: Names,
    servers: tuple[str, ...],
    known: Mapping[str, frozenset[str]],
) -> Layout:
    """The layout of names in bounds, without what is not `known` (upstream -> addresses)."""
    unknown: dict[str, None] = {}
    kept: list[int] = []
    upstreams = []
    at = 0
    for name, peers in names:
        expected = known.get(name)
        if expected is None:
            unknown[name] = None
        else:
            unknown |= {a: None for a in peers if a not in expected}
            kept += [at + n for n, a in enumerate(peers) if a in expected]
            upstreams.append((name, tuple(a for a in peers if a in expected)))
        at += len(peers)
    every = frozenset[str]().union(*known.values())
    unknown |= {a: None for a in servers if a not in every}
    kept_servers = [n for n, a in enumerate(servers) if a in every]
    return Layout(
        upstreams=tuple(upstreams),
        addresses=tuple(a for a in servers if a in every),
        keep_pairs=None if len(kept) == at else np.array(kept, np.intp),
        keep_addresses=(
            None if len(kept_servers) == len(servers) else np.array(kept_servers, np.intp)
        ),
        unknown=tuple(unknown),
    )
