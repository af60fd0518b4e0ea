"""Bytes of the gRPC requests to the data model, with every bound of the proto.

Decoding either returns data that is in bounds or raises MessageError, whose text names field,
value and bound; it has no effects. The way back is in `answers`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from google.protobuf.message import DecodeError

from trimtab import packed, rows
from trimtab.bounds import (
    MessageError,
    check_counts,
    check_doubles,
    check_exactly,
    check_length,
    check_text,
    check_unique,
)
from trimtab.columns import Addresses, Columns, Layout, Pairs
from trimtab.config import MAX_PAIRS, MAX_PEERS, MAX_UPSTREAMS
from trimtab.model import (
    BUCKET_BOUNDS_SECONDS,
    CONCURRENCY_LEVELS,
    AddressCounters,
    Connections,
    PairCounters,
    Snapshot,
)
from trimtab.tables import MAX_NAME_BYTES
from trimtab.unparsed import UNCOUNTED_BYTES, count_parts
from trimtab.v1 import policy_pb2
from trimtab.wire import LEAST_BYTES, Names, known_rows
from trimtab.wire import Report as WireReport

__all__ = ["Query", "Report", "decode_query", "decode_report"]

# 256 names of 255 bytes with tags and lengths, the instance and two numbers: what is larger is
# out of bounds, and is refused before it is parsed.
MAX_QUERY_BYTES: Final = 72 * 1024

PACKAGE: Final = policy_pb2.DESCRIPTOR.package

BUCKETS: Final = len(BUCKET_BOUNDS_SECONDS) + 1
STATUS_CLASSES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A GetWeightsRequest in bounds."""

    instance: str
    upstreams: tuple[str, ...]
    epoch: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A ReportStatsRequest in bounds; `unknown` are names that were left out of the snapshot,
    `wanted` is what it asks for."""

    snapshot: Snapshot
    sequence: int
    unknown: tuple[str, ...]
    wanted: Query | None = None


def decode_query(raw: bytes) -> Query:
    """The GetWeightsRequest in `raw`. Raises MessageError."""
    if len(raw) > MAX_QUERY_BYTES:
        raise MessageError(
            f"a GetWeightsRequest of {len(raw)} bytes; at most {MAX_UPSTREAMS} upstream names of "
            f"{MAX_NAME_BYTES} bytes are allowed, which never take more than {MAX_QUERY_BYTES}"
        )
    message = _parse(policy_pb2.GetWeightsRequest, raw)
    check_text(message.instance, "instance")
    return _query(message, message.instance)


def _query(message: Any, instance: str, within: str = "") -> Query:
    check_length(message.upstreams, f"{within}upstreams", MAX_UPSTREAMS)
    for n, name in enumerate(message.upstreams):
        check_text(name, f"{within}upstreams[{n}]")
    check_unique(message.upstreams, f"{within}upstreams")
    numbers = (message.epoch, message.generation)
    check_counts(numbers, (f"{within}epoch", f"{within}generation"))
    return Query(
        instance=instance,
        upstreams=tuple(message.upstreams),
        epoch=message.epoch,
        generation=message.generation,
    )


def decode_report(
    raw: bytes,
    known: Mapping[str, frozenset[str]],
    layouts: dict[Any, Layout] | None = None,
) -> Report:
    """The ReportStatsRequest in `raw`, without what is not `known` (upstream -> addresses).

    `layouts` remembers, from one call to the next with the same `known`, which names make which
    rows. Raises MessageError; what is unknown is held to the same bounds.
    """
    if len(raw) > UNCOUNTED_BYTES:
        count_parts(raw)

    def lay(upstreams: Names, addresses: tuple[str, ...]) -> Layout | None:
        return _lay(upstreams, addresses, known)

    if len(raw) >= LEAST_BYTES:
        message = _parse(WireReport, raw)
        way = packed if message.HasField("address_columns") else rows
        columns = way.columns(message, lay, {} if layouts is None else layouts)
        if columns is not None:
            return _quick_report(message, columns)
    return _careful_report(_parse(policy_pb2.ReportStatsRequest, raw), known)


def _check_head(message: Any) -> None:
    """The bounds of the single fields of a report, and of its classes' names and gauges."""
    check_text(message.instance, "instance")
    scalars = (message.start, message.sequence, message.generation)
    check_counts(scalars, ("start", "sequence", "generation"))
    if message.start == 0:
        raise MessageError("start is 0; it must name the life of the counters, more than 0")
    check_doubles((message.clock_seconds,), ("clock_seconds",))


def _check_names(upstreams: Names, addresses: Sequence[str]) -> None:
    check_length(upstreams, "upstreams", MAX_UPSTREAMS)
    check_unique([name for name, _ in upstreams], "upstreams")
    total = sum(len(peers) for _, peers in upstreams)
    if total > MAX_PAIRS:
        raise MessageError(f"upstreams have {total} peers in all; at most {MAX_PAIRS} are allowed")
    check_length(addresses, "addresses", MAX_PAIRS)
    check_unique(addresses, "addresses")


def _lay(
    upstreams: Names, addresses: tuple[str, ...], known: Mapping[str, frozenset[str]]
) -> Layout | None:
    """The layout of these names; None when a bound is broken, which the careful way names."""
    try:
        _check_names(upstreams, addresses)
        for name, peers in upstreams:
            check_text(name, "upstream")
            check_length(peers, "peers", MAX_PEERS)
            check_unique(peers, "peers")
        for address in (*addresses, *(a for _, peers in upstreams for a in peers)):
            check_text(address, "address")
    except MessageError:
        return None
    return known_rows(upstreams, addresses, known)


def _quick_report(message: Any, columns: Columns) -> Report:
    _check_head(message)
    waiting = {u.upstream: u.waiting for u in message.upstreams}
    check_counts(tuple(waiting.values()), [f"upstreams[{n}].waiting" for n in range(len(waiting))])
    return Report(
        snapshot=Snapshot(
            instance=message.instance,
            start=message.start,
            clock_seconds=message.clock_seconds,
            pairs=Pairs(columns),
            addresses=Addresses(columns),
            waiting={name: waiting[name] for name in columns.layout.rows},
            connections=_connections(message.connections),
            generation=message.generation,
        ),
        sequence=message.sequence,
        unknown=columns.layout.unknown,
        wanted=_wanted(message),
    )


def _careful_report(message: Any, known: Mapping[str, frozenset[str]]) -> Report:
    """With every check in turn, so that the first bound broken is named."""
    _check_head(message)
    packed.spread(message)
    _check_names(
        tuple((u.upstream, tuple(p.address for p in u.peers)) for u in message.upstreams),
        [a.address for a in message.addresses],
    )

    unknown: dict[str, None] = {}
    pairs: dict[str, dict[str, PairCounters]] = {}
    waiting: dict[str, int] = {}
    for n, upstream in enumerate(message.upstreams):
        field = f"upstreams[{n}]."
        check_text(upstream.upstream, field + "upstream")
        check_counts((upstream.waiting,), (field + "waiting",))
        check_length(upstream.peers, field + "peers", MAX_PEERS)
        check_unique([p.address for p in upstream.peers], field + "peers")
        peers = {p.address: _pair(p, n, m) for m, p in enumerate(upstream.peers)}
        if upstream.upstream not in known:
            unknown[upstream.upstream] = None
            continue
        expected = known[upstream.upstream]
        unknown |= {address: None for address in peers if address not in expected}
        pairs[upstream.upstream] = {a: p for a, p in peers.items() if a in expected}
        waiting[upstream.upstream] = upstream.waiting

    servers = frozenset[str]().union(*known.values())
    addresses = {a.address: _address(a, n) for n, a in enumerate(message.addresses)}
    unknown |= {address: None for address in addresses if address not in servers}
    snapshot = Snapshot(
        instance=message.instance,
        start=message.start,
        clock_seconds=message.clock_seconds,
        pairs=pairs,
        addresses={a: c for a, c in addresses.items() if a in servers},
        waiting=waiting,
        connections=_connections(message.connections),
        generation=message.generation,
    )
    return Report(
        snapshot=snapshot,
        sequence=message.sequence,
        unknown=tuple(unknown),
        wanted=_wanted(message),
    )


def _wanted(message: Any) -> Query | None:
    if not message.HasField("weights_wanted"):
        return None
    return _query(message.weights_wanted, message.instance, "weights_wanted.")


def _parse(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise MessageError(
            f"{len(raw)} bytes that are not a {PACKAGE}.{kind.DESCRIPTOR.name}: the message is cut "
            "short or damaged, or a name in it is not UTF-8"
        ) from None


_PAIR_COUNTS: Final = (
    "in_flight", "requests", "failures", "in_bytes", "out_bytes", "tardy", "unqueued",
    "retries", "retries_refused",
)  # fmt: skip
_PAIR_DOUBLES: Final = (
    "response_time_seconds", "response_time_squared", "tardiness", "unqueued_seconds",
    "unqueued_squared", "in_flight_seconds",
)  # fmt: skip
_pair_counts: Final = attrgetter(*_PAIR_COUNTS)
_pair_doubles: Final = attrgetter(*_PAIR_DOUBLES)


def _pair(message: Any, upstream: int, peer: int) -> PairCounters:
    responses = tuple(message.responses)
    buckets = tuple(message.response_time_buckets)
    counts = _pair_counts(message)
    doubles = _pair_doubles(message)
    address = message.address
    try:
        check_text(address, "address")
        check_exactly(responses, "responses", STATUS_CLASSES)
        check_exactly(buckets, "response_time_buckets", BUCKETS)
        check_counts(counts, _PAIR_COUNTS)
        check_counts(responses, "responses")
        check_counts(buckets, "response_time_buckets")
        check_doubles(doubles, _PAIR_DOUBLES)
    except MessageError as error:
        raise MessageError(f"upstreams[{upstream}].peers[{peer}].{error}") from None
    return PairCounters(
        in_flight=float(counts[0]),
        requests=counts[1],
        responses=responses or (0, 0, 0, 0, 0),
        failures=counts[2],
        in_bytes=counts[3],
        out_bytes=counts[4],
        response_time_seconds=doubles[0],
        response_time_squared=doubles[1],
        tardiness=doubles[2],
        tardy=counts[5],
        unqueued=counts[6],
        unqueued_seconds=doubles[3],
        unqueued_squared=doubles[4],
        buckets=buckets,
        in_flight_seconds=doubles[5],
        retries=counts[7],
        retries_refused=counts[8],
    )


def _address(message: Any, position: int) -> AddressCounters:
    completions = tuple(message.completions_at)
    seconds = tuple(message.seconds_at)
    ratio = message.error_ratio
    try:
        check_text(message.address, "address")
        check_exactly(completions, "completions_at", CONCURRENCY_LEVELS)
        check_exactly(seconds, "seconds_at", CONCURRENCY_LEVELS)
        check_counts(completions, "completions_at")
        check_doubles(seconds, "seconds_at")
        check_doubles(
            (message.busy_seconds, message.rate, message.ejection_seconds),
            ("busy_seconds", "rate", "ejection_seconds"),
        )
        check_counts((message.ejections,), ("ejections",))
        if message.ejection:
            check_text(message.ejection, "ejection")
        if not 0.0 <= ratio <= 1.0:
            raise MessageError(f"error_ratio is {ratio:g}; it must be from 0 to 1")
    except MessageError as error:
        raise MessageError(f"addresses[{position}].{error}") from None
    return AddressCounters(
        busy_seconds=message.busy_seconds,
        completions_at=completions,
        seconds_at=seconds,
        rate=message.rate,
        error_ratio=ratio,
        down=message.down,
        ejections=message.ejections,
        ejection=message.ejection,
        ejection_seconds=message.ejection_seconds,
    )


def _connections(message: Any) -> Connections:
    names = ("active", "reading", "writing", "waiting")
    values = [getattr(message, name) for name in names]
    check_counts(values, [f"connections.{name}" for name in names])
    return Connections(**dict(zip(names, values, strict=True)))
