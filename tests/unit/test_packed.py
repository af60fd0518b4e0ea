"""Reports by column: the same bounds and the same data as with a message a peer."""

import math
import random
from collections.abc import Callable

import pytest

from trimtab import messages, packed
from trimtab.bounds import MessageError
from trimtab.columns import Pairs
from trimtab.v1 import policy_pb2 as pb

ADDRESSES = [f"10.0.0.{n}:80" for n in range(9)]
LAYOUTS: dict = {}
KNOWN = {"u0": frozenset(ADDRESSES), "u1": frozenset(ADDRESSES[:4])}


def rows() -> pb.ReportStatsRequest:
    """A report with a message a peer, of two upstreams."""
    message = pb.ReportStatsRequest(instance="n", start=7, sequence=3, clock_seconds=5.0)
    for name, peers in (("u0", ADDRESSES), ("u1", ADDRESSES[:4])):
        upstream = message.upstreams.add(upstream=name, waiting=2)
        for n, address in enumerate(peers):
            upstream.peers.add(
                address=address, in_flight=n, requests=1000 * n, responses=[0, n, 0, 1, 2],
                response_time_seconds=0.25 * n, response_time_buckets=[n * b for b in range(36)],
                in_bytes=2**40 + n, retries=n % 2,
            )  # fmt: skip
    for n, address in enumerate(ADDRESSES):
        message.addresses.add(
            address=address, completions_at=[n] * 32, seconds_at=[0.5 * n] * 32, rate=1.0,
            down=n == 3, ejection="stall" if n == 3 else "", error_ratio=0.25,
        )  # fmt: skip
    return message


def columns() -> pb.ReportStatsRequest:
    """The same by column."""
    message = rows()
    packed.gather(message)
    return message


def decoded(message: pb.ReportStatsRequest | bytes) -> messages.Report:
    """What comes out, without anything remembered."""
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    return messages.decode_report(raw, KNOWN, {})


def test_columns_are_the_same_report() -> None:
    """Both forms decode to the same, on the quick way; gathering and spreading undo each other."""
    assert isinstance(decoded(columns()).snapshot.pairs, Pairs)
    assert decoded(columns()) == decoded(rows())
    message = columns()
    packed.spread(message)
    assert decoded(message) == decoded(rows())


def test_columns_are_smaller() -> None:
    """What is the same of all peers is sent once, what is nought of all not at all."""
    assert len(columns().SerializeToString()) < len(rows().SerializeToString())


def test_unknown_names_are_left_out() -> None:
    """An upstream and addresses that are not configured are named, and the others taken."""
    known = {"u0": frozenset(ADDRESSES[1:])}
    raw = columns().SerializeToString()
    got = messages.decode_report(raw, known, {})
    assert isinstance(got.snapshot.pairs, Pairs)
    assert got == messages.decode_report(rows().SerializeToString(), known, {})
    assert set(got.unknown) == {"u1", ADDRESSES[0]}
    assert got.snapshot.pairs["u0"][ADDRESSES[3]].requests == 3000


def unpacked() -> bytes:
    """A column written as single fields, as protobuf allows."""
    message = columns()
    upstream = pb.UpstreamStats()
    values = message.upstreams[0].peer_columns.requests
    inner = b"".join(b"\x18" + varint(v) for v in values)
    message.upstreams[0].peer_columns.ClearField("requests")
    own = message.upstreams[0].peer_columns.SerializeToString() + inner
    upstream.CopyFrom(message.upstreams[0])
    upstream.ClearField("peer_columns")
    first = upstream.SerializeToString() + b"\x22" + varint(len(own)) + own
    second = message.upstreams[1].SerializeToString()
    message.ClearField("upstreams")
    return message.SerializeToString() + b"".join(
        b"\x2a" + varint(len(part)) + part for part in (first, second)
    )


def in_pieces() -> bytes:
    """A message within it that comes in two parts, which protobuf joins."""
    message = columns()
    rest = pb.ReportStatsRequest()
    rest.address_columns.rate.extend(message.address_columns.rate[4:])
    del message.address_columns.rate[4:]
    return bytes(message.SerializeToString() + rest.SerializeToString())


def varint(value: int) -> bytes:
    """As protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.parametrize("make", [unpacked, in_pieces])
def test_what_protobuf_allows_is_read(make: Callable[[], bytes]) -> None:
    """Columns in another form of the wire take the careful way, to the same end."""
    got = decoded(make())
    assert not isinstance(got.snapshot.pairs, Pairs)
    assert got == decoded(rows())


def test_counts_beyond_a_float_are_read() -> None:
    """A count above 2^53 takes the careful way and stays as it is."""
    message = columns()
    message.upstreams[0].peer_columns.requests[1] = 2**53 + 1
    assert decoded(message).snapshot.pairs["u0"][ADDRESSES[1]].requests == 2**53 + 1


def change(path: str, value: object) -> Callable[[pb.ReportStatsRequest], None]:
    """Set an entry of a column: "FIELD.N"."""
    name, at = path.split(".")

    def apply(message: pb.ReportStatsRequest) -> None:
        for of in (message.upstreams[0].peer_columns, message.address_columns):
            if hasattr(of, name):
                getattr(of, name)[int(at)] = value

    return apply


def cut(message: pb.ReportStatsRequest) -> None:
    """One bucket too few."""
    del message.upstreams[0].peer_columns.response_time_buckets[-1]


def more(message: pb.ReportStatsRequest) -> None:
    """One double too many."""
    message.address_columns.seconds_at.append(1.0)


def late(message: pb.ReportStatsRequest) -> None:
    """Buckets beyond the last."""
    message.upstreams[0].peer_columns.first_bucket = 2


def twice(message: pb.ReportStatsRequest) -> None:
    """An address twice."""
    message.upstreams[1].peer_columns.addresses.addresses[1] = ADDRESSES[0]


def both(message: pb.ReportStatsRequest) -> None:
    """Peers in both forms."""
    message.upstreams[0].peers.add(address=ADDRESSES[0])


def both_servers(message: pb.ReportStatsRequest) -> None:
    """Servers in both forms."""
    message.addresses.add(address=ADDRESSES[0])


def nobody(message: pb.ReportStatsRequest) -> None:
    """Columns without addresses."""
    message.upstreams[0].peer_columns.ClearField("addresses")


def crowd(message: pb.ReportStatsRequest) -> None:
    """More peers than an upstream may have."""
    of = message.upstreams[0].peer_columns
    of.Clear()
    of.addresses.addresses.extend(f"10.1.{n // 250}.{n % 250}:80" for n in range(4097))


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (change("response_time_seconds.2", math.nan), "peers[2].response_time_seconds is nan"),
        (change("response_time_seconds.2", -1.0), "peers[2].response_time_seconds is -1"),
        (change("seconds_at.40", math.inf), "addresses[4].seconds_at[4] is inf"),
        (change("error_ratio.8", 1.5), "addresses[8].error_ratio is 1.5"),
        (change("requests.4", 2**63), "upstreams[0].peers[4].requests is"),
        (change("ejection.3", "\t"), "addresses[3].ejection is"),
        (change("ejection.3", "x" * 256), "addresses[3].ejection is"),
        (cut, "upstreams[0].peer_columns.response_time_buckets has 314 entries from column 1; it"),
        (more, "address_columns.seconds_at has 289 entries from column 0; it must have 9 a column"),
        (late, "of at most 36 columns"),
        (twice, "upstreams[1].peers has '10.0.0.0:80' twice"),
        (both, "upstreams[0].peers and upstreams[0].peer_columns"),
        (both_servers, "addresses and address_columns"),
        (nobody, "entries; it must have 0"),
        (crowd, "upstreams[0].peer_columns.addresses has 4097 entries; at most 4096"),
    ],
)  # fmt: skip
def test_bounds_are_those_of_rows(
    break_it: Callable[[pb.ReportStatsRequest], None], text: str
) -> None:
    """A column out of bounds is refused with field and value."""
    message = columns()
    break_it(message)
    with pytest.raises(MessageError) as error:
        decoded(message)
    assert text in str(error.value)


def test_the_quick_way_is_never_laxer() -> None:
    """Whatever the quick way makes of damaged bytes, the careful way makes the same of them."""
    rng = random.Random(5)
    valid = columns().SerializeToString()
    quick = 0
    for _ in range(4000):
        raw = bytearray(valid)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(raw))
            if rng.random() < 0.8:
                raw[at] ^= 1 << rng.randrange(8)
            else:
                end = at + rng.randint(1, 60)
                to = rng.randrange(len(raw))
                raw[to:to] = raw[at:end]
        try:
            got = messages.decode_report(bytes(raw), KNOWN, LAYOUTS)
        except MessageError:
            continue
        if isinstance(got.snapshot.pairs, Pairs):
            quick += 1
            message = pb.ReportStatsRequest.FromString(bytes(raw))
            assert messages._careful_report(message, KNOWN) == got
    assert quick > 200


def test_names_by_the_hundred_thousand_are_refused_before_they_are_parsed() -> None:
    """An empty name is two bytes on the wire: a large report has them counted first."""
    names = b"\x0a\x00" * 200_000
    of = b"\x0a" + varint(len(names)) + names
    upstream = b"\x22" + varint(len(of)) + of
    for tail in (
        b"\x4a" + varint(len(of)) + of,
        b"\x2a" + varint(len(upstream)) + upstream,
    ):
        head = pb.ReportStatsRequest(instance="n", start=1).SerializeToString()
        with pytest.raises(MessageError, match="more fields than any report"):
            messages.decode_report(head + tail, KNOWN, {})


def test_layouts_are_remembered_by_names_and_bounded() -> None:
    """The same names are looked up, and clients that invent names do not fill the memory."""
    layouts: dict = {}
    raw = columns().SerializeToString()
    one = messages.decode_report(raw, KNOWN, layouts).snapshot.pairs
    two = messages.decode_report(raw, KNOWN, layouts).snapshot.pairs
    assert one.columns.layout is two.columns.layout
    for n in range(300):
        message = columns()
        message.address_columns.addresses.addresses[0] = f"10.9.{n}.1:80"
        messages.decode_report(message.SerializeToString(), KNOWN, layouts)
    assert len(layouts) <= 64
