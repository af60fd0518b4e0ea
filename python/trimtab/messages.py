"""Bytes of the gRPC messages to the data model and back, with every bound of the proto.

The one module that sees generated protobuf code. Decoding either returns data that is in bounds or
raises MessageError, whose text names field, value and bound; it has no effects. Encoding joins
pieces serialised once a generation, so that a thousand balancers that ask cost little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
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
    wire_fields,
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
    UpstreamWeights,
    Weights,
)
from trimtab.tables import MAX_NAME_BYTES
from trimtab.v1 import policy_pb2
from trimtab.wire import LEAST_BYTES, Names, known_rows
from trimtab.wire import Report as WireReport

__all__ = [
    "UNCOUNTED_BYTES",
    "Answers",
    "Query",
    "Report",
    "decode_query",
    "decode_report",
    "encode_report_answer",
]

# 256 names of 255 bytes with tags and lengths, the instance and two numbers: what is larger is
# out of bounds, and is refused before it is parsed.
MAX_QUERY_BYTES: Final = 72 * 1024

# A report up to this size (four times that of a hundred peers) is parsed as it is. An empty
# sub-message is two bytes on the wire and about 170 in memory, so a larger one (8 MiB would become
# 700 MB) has its parts counted first.
UNCOUNTED_BYTES: Final = 256 * 1024

# Twice the fields that a report in bounds can have outside its pairs: counting stops there, so a
# message of a million tiny fields costs milliseconds.
MAX_FIELDS: Final = 4 * MAX_PAIRS

# A response names this many unknown names: enough to see what is wrong.
MAX_UNKNOWN: Final = 16

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
        _count_parts(raw)

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


def encode_report_answer(
    accepted: bool, unknown: Sequence[str], weights: bytes | None = None
) -> bytes:
    """A ReportStatsResponse; of the unknown names the first 16; with a serialised
    GetWeightsResponse, if there is one."""
    answer = policy_pb2.ReportStatsResponse(accepted=accepted, unknown=unknown[:MAX_UNKNOWN])
    own: bytes = answer.SerializeToString()
    return own if weights is None else own + _WEIGHTS_TAG + _length(len(weights)) + weights


# A field with a length is tag, length and bytes.
_WEIGHTS_TAG: Final = bytes([policy_pb2.ReportStatsResponse.WEIGHTS_FIELD_NUMBER << 3 | 2])


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


class Answers:
    """The GetWeightsResponses of one generation of weights.

    In protobuf the concatenation of serialised messages is the serialisation of their merge, so
    an answer is the header followed by a piece for each upstream asked for, and a piece is made
    once. Not thread-safe; it lives in the server's event loop.
    """

    def __init__(
        self, weights: Weights, time_to_live_seconds: float, refresh_interval_seconds: float
    ) -> None:
        self.weights = weights
        header = policy_pb2.GetWeightsResponse(
            epoch=weights.epoch,
            generation=weights.generation,
            time_to_live=_duration(time_to_live_seconds),
            refresh_interval=_duration(refresh_interval_seconds),
            reads_columns=True,
        )
        self._header: bytes = header.SerializeToString()
        header.unchanged = True
        self._unchanged: bytes = header.SerializeToString()
        self._pieces: dict[str, bytes] = {}

    def answer(self, query: Query, time_to_live_seconds: float | None = None) -> bytes:
        """The serialised response to `query`; with that time to live instead of the usual one.
        Raises KeyError with a name that is not known."""
        upstreams = self.weights.upstreams
        for name in query.upstreams:
            if name not in upstreams:
                raise KeyError(name)
        if (query.epoch, query.generation) == (self.weights.epoch, self.weights.generation):
            return self._head(True, time_to_live_seconds)
        pieces = [self._piece(name) for name in query.upstreams or upstreams]
        return b"".join([self._head(False, time_to_live_seconds), *pieces])

    def _head(self, unchanged: bool, time_to_live_seconds: float | None) -> bytes:
        if time_to_live_seconds is None:
            return self._unchanged if unchanged else self._header
        header = policy_pb2.GetWeightsResponse.FromString(self._header)
        header.time_to_live.CopyFrom(_duration(time_to_live_seconds))
        header.unchanged = unchanged
        return bytes(header.SerializeToString())

    def _piece(self, name: str) -> bytes:
        piece = self._pieces.get(name)
        if piece is None:
            upstream = _encode_upstream(name, self.weights.upstreams[name])
            whole = policy_pb2.GetWeightsResponse(upstreams=[upstream])
            piece = self._pieces[name] = whole.SerializeToString()
        return piece


def _encode_upstream(name: str, weights: UpstreamWeights) -> policy_pb2.UpstreamWeights:
    message = policy_pb2.UpstreamWeights(upstream=name)
    if weights.deadline_seconds is not None:
        message.deadline.CopyFrom(_duration(weights.deadline_seconds))
    if weights.service_time_seconds is not None:
        message.service_time.CopyFrom(_duration(weights.service_time_seconds))
    for address, peer in weights.peers.items():
        message.peers.add(
            address=address,
            weight=peer.weight,
            affinity=peer.affinity,
            rate=peer.rate,
            slots=peer.slots or 0.0,
            drain=peer.drain,
            sharing=peer.sharing,
        )
    return message


def _duration(seconds: float) -> Duration:
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


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


def _count_parts(raw: bytes) -> None:
    """Refuse a large report with too many parts, from the wire format and without parsing it."""
    kind = policy_pb2.ReportStatsRequest
    budget = [MAX_FIELDS]
    pairs = addresses = 0
    for field, start, end in wire_fields(raw, 0, len(raw), budget):
        if field == kind.UPSTREAMS_FIELD_NUMBER:
            for inner, first, last in wire_fields(raw, start, end, budget):
                if inner == policy_pb2.UpstreamStats.PEERS_FIELD_NUMBER:
                    pairs += 1
                elif inner == policy_pb2.UpstreamStats.PEER_COLUMNS_FIELD_NUMBER:
                    pairs += _count_names(raw, first, last, budget)
        elif field == kind.ADDRESSES_FIELD_NUMBER:
            addresses += 1
        elif field == kind.ADDRESS_COLUMNS_FIELD_NUMBER:
            addresses += _count_names(raw, start, end, budget)
    if pairs > MAX_PAIRS or addresses > MAX_PAIRS:
        raise MessageError(
            f"upstreams have {pairs} peers in all, and addresses {addresses} entries; at most "
            f"{MAX_PAIRS} are allowed of each"
        )


def _count_names(raw: bytes, start: int, end: int, budget: list[int]) -> int:
    """How many addresses columns have; other texts in them only take of the budget."""
    # The same number in both kinds of columns.
    names = policy_pb2.PeerColumns.ADDRESSES_FIELD_NUMBER
    return sum(
        sum(1 for _ in wire_fields(raw, first, last, budget))
        for field, first, last in wire_fields(raw, start, end, budget)
        if field == names
    )
