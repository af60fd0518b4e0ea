"""Bytes of the gRPC messages to the data model and back, with every bound of the proto.

The one module that sees generated protobuf code. Decoding either returns data that is in bounds or
raises MessageError, whose text names field, value and bound; it has no effects. Encoding joins
pieces serialised once a generation, so that a thousand balancers that ask cost little.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

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

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Answers",
    "MessageError",
    "Query",
    "Report",
    "decode_query",
    "decode_report",
    "encode_report_answer",
]

# The proto's bound; the largest report in bounds (16384 pairs with full histograms) fits.
MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024

# 256 names of 255 bytes with tags and lengths, the instance and two numbers: what is larger is
# out of bounds, and is refused before it is parsed.
MAX_QUERY_BYTES: Final = 72 * 1024

# A report up to this size is parsed as it is. An empty sub-message is two bytes on the wire and
# about 170 in memory, so a larger one (8 MiB would become 700 MB) has them counted first.
UNCOUNTED_BYTES: Final = 64 * 1024

# What a report in bounds can have of fields outside the pairs, twice over: the count of fields
# stops here, so a message of a million tiny fields costs milliseconds.
MAX_FIELDS: Final = 4 * MAX_PAIRS

# What Lua and every other client can hold in a signed 64-bit integer.
MAX_COUNT: Final = 2**63 - 1

# A response names this many unknown names: enough to see what is wrong.
MAX_UNKNOWN: Final = 16

BUCKETS: Final = len(BUCKET_BOUNDS_SECONDS) + 1
STATUS_CLASSES: Final = 5


class MessageError(ValueError):
    """A message out of bounds. The text says which field, what it is, and what it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A GetWeightsRequest in bounds."""

    instance: str
    upstreams: tuple[str, ...]
    epoch: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A ReportStatsRequest in bounds; `unknown` are names that were left out of the snapshot."""

    snapshot: Snapshot
    sequence: int
    unknown: tuple[str, ...]


def decode_query(raw: bytes) -> Query:
    """The GetWeightsRequest in `raw`. Raises MessageError."""
    if len(raw) > MAX_QUERY_BYTES:
        raise MessageError(
            f"a GetWeightsRequest of {len(raw)} bytes; at most {MAX_UPSTREAMS} upstream names of "
            f"{MAX_NAME_BYTES} bytes are allowed, which never take more than {MAX_QUERY_BYTES}"
        )
    message = _parse(policy_pb2.GetWeightsRequest, raw)
    _text(message.instance, "instance")
    _length(message.upstreams, "upstreams", MAX_UPSTREAMS)
    for n, name in enumerate(message.upstreams):
        _text(name, f"upstreams[{n}]")
    _unique(message.upstreams, "upstreams")
    _counts((message.epoch, message.generation), ("epoch", "generation"), "")
    return Query(
        instance=message.instance,
        upstreams=tuple(message.upstreams),
        epoch=message.epoch,
        generation=message.generation,
    )


def decode_report(raw: bytes, known: Mapping[str, frozenset[str]]) -> Report:
    """The ReportStatsRequest in `raw`, without what is not `known` (upstream -> addresses).

    Raises MessageError; what is unknown is held to the same bounds.
    """
    if len(raw) > UNCOUNTED_BYTES:
        _count_parts(raw)
    message = _parse(policy_pb2.ReportStatsRequest, raw)
    _text(message.instance, "instance")
    scalars = (message.start, message.sequence, message.generation)
    _counts(scalars, ("start", "sequence", "generation"), "")
    if message.start == 0:
        raise MessageError("start is 0; it must name the life of the counters, more than 0")
    _doubles((message.clock_seconds,), ("clock_seconds",), "")
    _length(message.upstreams, "upstreams", MAX_UPSTREAMS)
    _unique([u.upstream for u in message.upstreams], "upstreams")
    total = sum(len(u.peers) for u in message.upstreams)
    if total > MAX_PAIRS:
        raise MessageError(f"upstreams have {total} peers in all; at most {MAX_PAIRS} are allowed")
    _length(message.addresses, "addresses", MAX_PAIRS)
    _unique([a.address for a in message.addresses], "addresses")

    unknown: dict[str, None] = {}
    pairs: dict[str, dict[str, PairCounters]] = {}
    waiting: dict[str, int] = {}
    for n, upstream in enumerate(message.upstreams):
        field = f"upstreams[{n}]."
        _text(upstream.upstream, field + "upstream")
        _counts((upstream.waiting,), ("waiting",), field)
        _length(upstream.peers, field + "peers", MAX_PEERS)
        _unique([p.address for p in upstream.peers], field + "peers")
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
    return Report(snapshot=snapshot, sequence=message.sequence, unknown=tuple(unknown))


def encode_report_answer(accepted: bool, unknown: Sequence[str]) -> bytes:
    """A ReportStatsResponse; of the unknown names the first 16."""
    answer = policy_pb2.ReportStatsResponse(accepted=accepted, unknown=unknown[:MAX_UNKNOWN])
    return bytes(answer.SerializeToString())


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
        )
        self._header: bytes = header.SerializeToString()
        header.unchanged = True
        self._unchanged: bytes = header.SerializeToString()
        self._pieces: dict[str, bytes] = {}

    def answer(self, query: Query) -> bytes:
        """The serialised response to `query`. Raises KeyError with a name that is not known."""
        upstreams = self.weights.upstreams
        for name in query.upstreams:
            if name not in upstreams:
                raise KeyError(name)
        if (query.epoch, query.generation) == (self.weights.epoch, self.weights.generation):
            return self._unchanged
        pieces = [self._piece(name) for name in query.upstreams or upstreams]
        return b"".join([self._header, *pieces])

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
            f"{len(raw)} bytes that are not a {kind.DESCRIPTOR.full_name}: the message is cut "
            "short or damaged, or a name in it is not UTF-8"
        ) from None


def _shown(text: str) -> str:
    return ascii(text) if len(text) <= 40 else f"{text[:40]!a}… ({len(text)} characters)"


def _text(value: str, field: str) -> None:
    if not (0 < len(value) <= MAX_NAME_BYTES and value.isascii() and value.isprintable()):
        raise MessageError(
            f"{field} is {_shown(value)}; it must be 1 to {MAX_NAME_BYTES} bytes of printable ASCII"
        )


def _length(values: Sequence[Any], field: str, most: int) -> None:
    if len(values) > most:
        raise MessageError(f"{field} has {len(values)} entries; at most {most} are allowed")


def _exactly(values: Sequence[Any], field: str, size: int) -> None:
    if len(values) not in (0, size):
        raise MessageError(f"{field} has {len(values)} entries; it must have {size}, or none")


def _unique(names: Sequence[str], field: str) -> None:
    seen: set[str] = set()
    if len(set(names)) < len(names):
        for name in names:
            if name in seen:
                raise MessageError(f"{field} has {_shown(name)} twice")
            seen.add(name)


def _counts(values: Sequence[int], names: Iterable[str], field: str) -> None:
    if max(values, default=0) > MAX_COUNT:
        for value, name in zip(values, names, strict=False):
            if value > MAX_COUNT:
                raise MessageError(f"{field}{name} is {value}; it must be at most {MAX_COUNT}")


def _doubles(values: Sequence[float], names: Iterable[str], field: str) -> None:
    # The sum is finite only if every part is; where finite parts overflow it, the loop acquits.
    if not (min(values, default=0.0) >= 0.0 and sum(values) < math.inf):
        for value, name in zip(values, names, strict=False):
            if not 0.0 <= value < math.inf:
                raise MessageError(
                    f"{field}{name} is {value:g}; it must be finite and not negative"
                )


def _entries(name: str) -> Iterator[str]:
    return (f"{name}[{n}]" for n in range(BUCKETS))


_PAIR_COUNTS: Final = (
    "in_flight", "requests", "failures", "in_bytes", "out_bytes", "tardy", "unqueued",
)  # fmt: skip
_PAIR_DOUBLES: Final = (
    "response_time_seconds", "response_time_squared", "tardiness", "unqueued_seconds",
    "unqueued_squared", "in_flight_seconds",
)  # fmt: skip
_pair_counts: Final = attrgetter(*_PAIR_COUNTS)
_pair_doubles: Final = attrgetter(*_PAIR_DOUBLES)


def _pair(message: Any, upstream: int, peer: int) -> PairCounters:
    # A report has hundreds of these: the checks take whole tuples, and a field's name is put
    # together only for a message.
    responses = tuple(message.responses)
    buckets = tuple(message.response_time_buckets)
    counts = _pair_counts(message)
    doubles = _pair_doubles(message)
    address = message.address
    try:
        _text(address, "address")
        _exactly(responses, "responses", STATUS_CLASSES)
        _exactly(buckets, "response_time_buckets", BUCKETS)
        _counts(counts, _PAIR_COUNTS, "")
        _counts(responses, _entries("responses"), "")
        _counts(buckets, _entries("response_time_buckets"), "")
        _doubles(doubles, _PAIR_DOUBLES, "")
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
    )


def _address(message: Any, position: int) -> AddressCounters:
    completions = tuple(message.completions_at)
    seconds = tuple(message.seconds_at)
    ratio = message.error_ratio
    try:
        _text(message.address, "address")
        _exactly(completions, "completions_at", CONCURRENCY_LEVELS)
        _exactly(seconds, "seconds_at", CONCURRENCY_LEVELS)
        _counts(completions, _entries("completions_at"), "")
        _doubles(seconds, _entries("seconds_at"), "")
        _doubles((message.busy_seconds, message.rate), ("busy_seconds", "rate"), "")
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
    )


def _connections(message: Any) -> Connections:
    names = ("active", "reading", "writing", "waiting")
    values = (message.active, message.reading, message.writing, message.waiting)
    _counts(values, names, "connections.")
    return Connections(**dict(zip(names, values, strict=True)))


def _count_parts(raw: bytes) -> None:
    """Refuse a large report with too many parts, from the wire format and without parsing it."""
    budget = [MAX_FIELDS]
    pairs = addresses = 0
    try:
        for field, start, end in _fields(raw, 0, len(raw), budget):
            if field == policy_pb2.ReportStatsRequest.UPSTREAMS_FIELD_NUMBER:
                peers = policy_pb2.UpstreamStats.PEERS_FIELD_NUMBER
                pairs += sum(f == peers for f, _, _ in _fields(raw, start, end, budget))
            addresses += field == policy_pb2.ReportStatsRequest.ADDRESSES_FIELD_NUMBER
    except IndexError:
        raise MessageError(f"{len(raw)} bytes that are not a report: it is cut short") from None
    if pairs > MAX_PAIRS or addresses > MAX_PAIRS:
        raise MessageError(
            f"upstreams have {pairs} peers in all, and addresses {addresses} entries; at most "
            f"{MAX_PAIRS} are allowed of each"
        )


def _fields(raw: bytes, at: int, end: int, budget: list[int]) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field with a length; steps over the others."""
    while at < end:
        budget[0] -= 1
        if budget[0] < 0:
            raise MessageError(f"a report with more than {MAX_FIELDS} fields")
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(raw, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, at = _varint(raw, at)
            if at + size > end:
                raise IndexError
            yield tag >> 3, at, at + size
            at += size
        else:
            raise MessageError(f"{len(raw)} bytes that are not a report: wire type {kind}")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
