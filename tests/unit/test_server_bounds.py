"""Every bound of the proto: what is inside is taken, what is outside is refused by name.

A refused message changes nothing: the source has no report, the board is as it was.
"""

import math
from collections.abc import Iterator

import grpc
import pytest

import serving
from trimtab.v1 import policy_pb2 as pb

LONG = "n" * 255
LARGEST = 2**63 - 1


@pytest.fixture(scope="module")
def server() -> Iterator[serving.Serving]:
    """One server for all bounds, with one report in it: refused messages leave that alone."""
    with serving.serving() as running:
        running.stub.ReportStats(with_peer(requests=3), timeout=serving.TIMEOUT)
        yield running


def refused(running: serving.Serving, method: str, raw: bytes) -> str:
    """Send bytes, see INVALID_ARGUMENT and no effect, and give the message."""
    before = (running.source.read(), running.board.current())
    with pytest.raises(grpc.RpcError) as caught:
        running.raw(method)(raw, timeout=serving.TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    assert (running.source.read(), running.board.current()) == before
    return caught.value.details()


def query(**fields: object) -> pb.GetWeightsRequest:
    """A GetWeightsRequest, in bounds but for `fields`."""
    return pb.GetWeightsRequest(**{"instance": "a"} | fields)


def report(**fields: object) -> pb.ReportStatsRequest:
    """A ReportStatsRequest, in bounds but for `fields`."""
    return pb.ReportStatsRequest(**{"instance": "a", "start": 1, "sequence": 1} | fields)


def with_peer(**fields: object) -> pb.ReportStatsRequest:
    """A report of one peer in the second of two upstreams."""
    peer = pb.PeerStats(**{"address": "10.0.0.1:80"} | fields)
    return report(
        upstreams=[
            pb.UpstreamStats(upstream="u0"),
            pb.UpstreamStats(upstream="u1", peers=[pb.PeerStats(address="x"), peer]),
        ]
    )


def with_address(**fields: object) -> pb.ReportStatsRequest:
    """A report of one server."""
    return report(addresses=[pb.AddressStats(**{"address": "10.0.0.1:80"} | fields)])


def peers(count: int, upstreams: int = 1) -> list[pb.UpstreamStats]:
    """Upstreams that nobody knows, with `count` peers in all."""
    each = [pb.PeerStats(address=f"p{n}") for n in range(count // upstreams)]
    return [pb.UpstreamStats(upstream=f"x{n}", peers=each) for n in range(upstreams)]


TEXT = "it must be 1 to 255 bytes of printable ASCII"
BAD_TEXTS = {
    "": "is ''",
    "n" * 256: "is 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn'… (256 characters)",
    "a\n": r"is 'a\n'",
    "a\0": r"is 'a\x00'",
    "\x7f": r"is '\x7f'",
    "é": r"is '\xe9'",
    "\U0001f600": r"is '\U0001f600'",
}


@pytest.mark.parametrize("bad", BAD_TEXTS, ids=ascii)
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("instance", lambda t: query(instance=t)),
        ("upstreams[1]", lambda t: query(upstreams=["u0", t])),
        ("instance", lambda t: report(instance=t)),
        ("upstreams[0].upstream", lambda t: report(upstreams=[pb.UpstreamStats(upstream=t)])),
        ("upstreams[1].peers[1].address", lambda t: with_peer(address=t)),
        ("addresses[0].address", lambda t: with_address(address=t)),
    ],
)
def test_texts_are_printable_ascii_up_to_255_bytes(
    server: serving.Serving, field: str, message, bad: str
) -> None:
    """Names and addresses that are empty, long, or not printable ASCII are refused as shown."""
    built = message(bad)
    method = "GetWeights" if isinstance(built, pb.GetWeightsRequest) else "ReportStats"
    details = refused(server, method, built.SerializeToString())
    assert details == f"{field} {BAD_TEXTS[bad]}; {TEXT}"


BAD_DOUBLES = {math.nan: "nan", math.inf: "inf", -math.inf: "-inf", -1e-300: "-1e-300"}


@pytest.mark.parametrize("bad", BAD_DOUBLES, ids=str)
@pytest.mark.parametrize(
    ("prefix", "field", "message"),
    [
        ("", "clock_seconds", report),
        *(
            ("upstreams[1].peers[1].", name, with_peer)
            for name in (
                "response_time_seconds", "response_time_squared", "tardiness",
                "unqueued_seconds", "unqueued_squared", "in_flight_seconds",
            )
        ),
        *(("addresses[0].", name, with_address) for name in ("busy_seconds", "rate")),
    ],
)  # fmt: skip
def test_doubles_are_finite_and_not_negative(
    server: serving.Serving, prefix: str, field: str, message, bad: float
) -> None:
    """Each double refuses NaN, infinity and less than nothing, by name."""
    details = refused(server, "ReportStats", message(**{field: bad}).SerializeToString())
    assert details == f"{prefix}{field} is {BAD_DOUBLES[bad]}; it must be finite and not negative"


@pytest.mark.parametrize("bad", BAD_DOUBLES, ids=str)
def test_time_at_a_concurrency_is_finite_and_not_negative(
    server: serving.Serving, bad: float
) -> None:
    """An entry of a repeated double is named by its position."""
    message = with_address(seconds_at=[0.0] * 31 + [bad])
    details = refused(server, "ReportStats", message.SerializeToString())
    assert details.startswith(f"addresses[0].seconds_at[31] is {BAD_DOUBLES[bad]};")


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.0000001, math.inf])
def test_error_ratio_is_a_ratio(server: serving.Serving, bad: float) -> None:
    """A ratio outside 0 to 1 is refused."""
    details = refused(server, "ReportStats", with_address(error_ratio=bad).SerializeToString())
    assert details == f"addresses[0].error_ratio is {bad:g}; it must be from 0 to 1"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("epoch", query(epoch=LARGEST + 1)),
        ("generation", query(generation=LARGEST + 1)),
        ("start", report(start=LARGEST + 1)),
        ("sequence", report(sequence=LARGEST + 1)),
        ("generation", report(generation=LARGEST + 1)),
        *(
            (f"connections.{name}", report(connections={name: LARGEST + 1}))
            for name in ("active", "reading", "writing", "waiting")
        ),
        (
            "upstreams[0].waiting",
            report(upstreams=[pb.UpstreamStats(upstream="u", waiting=LARGEST + 1)]),
        ),
        *(
            (f"upstreams[1].peers[1].{name}", with_peer(**{name: LARGEST + 1}))
            for name in (
                "in_flight", "requests", "failures", "in_bytes", "out_bytes", "tardy", "unqueued",
            )
        ),
        ("upstreams[1].peers[1].responses[4]", with_peer(responses=[0, 0, 0, 0, LARGEST + 1])),
        (
            "upstreams[1].peers[1].response_time_buckets[35]",
            with_peer(response_time_buckets=[0] * 35 + [LARGEST + 1]),
        ),
        ("addresses[0].completions_at[0]", with_address(completions_at=[LARGEST + 1] + [0] * 31)),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_counts_fit_signed_64_bits(server: serving.Serving, field: str, message) -> None:
    """A count that a signed 64-bit integer cannot hold is refused by name."""
    method = "GetWeights" if isinstance(message, pb.GetWeightsRequest) else "ReportStats"
    details = refused(server, method, message.SerializeToString())
    assert details == f"{field} is {LARGEST + 1}; it must be at most {LARGEST}"


@pytest.mark.parametrize(
    ("field", "size", "message"),
    [
        *(
            ("upstreams[1].peers[1].responses", 5, (n, with_peer(responses=[0] * n)))
            for n in (1, 4, 6)
        ),
        *(
            (
                "upstreams[1].peers[1].response_time_buckets", 36,
                (n, with_peer(response_time_buckets=[0] * n)),
            )
            for n in (1, 35, 37)
        ),
        *(
            (f"addresses[0].{name}", 32, (n, with_address(**{name: [0] * n})))
            for name in ("completions_at", "seconds_at")
            for n in (1, 31, 33)
        ),
    ],
)  # fmt: skip
def test_arrays_have_their_length_or_none(
    server: serving.Serving, field: str, size: int, message
) -> None:
    """Status classes, buckets and concurrency levels come complete or not at all."""
    count, built = message
    details = refused(server, "ReportStats", built.SerializeToString())
    assert details == f"{field} has {count} entries; it must have {size}, or none"


def test_start_is_more_than_zero(server: serving.Serving) -> None:
    """A report must name the life of its counters."""
    details = refused(server, "ReportStats", report(start=0).SerializeToString())
    assert details == "start is 0; it must name the life of the counters, more than 0"


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (
            "upstreams has 257 entries; at most 256 are allowed",
            query(upstreams=[f"u{n}" for n in range(257)]),
        ),
        ("upstreams has 'u0' twice", query(upstreams=["u0", "u1", "u0"])),
        (
            "upstreams has 257 entries; at most 256 are allowed",
            report(upstreams=peers(257, upstreams=257)),
        ),
        ("upstreams has 'u0' twice", report(upstreams=[pb.UpstreamStats(upstream="u0")] * 2)),
        (
            "upstreams[0].peers has 4097 entries; at most 4096 are allowed",
            report(upstreams=peers(4097)),
        ),
        (
            "upstreams[1].peers has 'x' twice",
            with_peer(address="x"),
        ),
        (
            "addresses has 'x' twice",
            report(addresses=[pb.AddressStats(address="x")] * 2),
        ),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)
def test_lists_are_bounded_and_without_repetitions(
    server: serving.Serving, expected: str, message
) -> None:
    """Too many entries and a name that comes twice are refused."""
    method = "GetWeights" if isinstance(message, pb.GetWeightsRequest) else "ReportStats"
    assert refused(server, method, message.SerializeToString()) == expected


@pytest.mark.parametrize(
    "message",
    [
        report(upstreams=peers(16_400, upstreams=5)),
        report(addresses=[pb.AddressStats(address=f"p{n}") for n in range(16_385)]),
    ],
    ids=["pairs", "addresses"],
)
def test_pairs_and_addresses_are_bounded_in_all(server: serving.Serving, message) -> None:
    """More than 16384 upstream-peer pairs, or addresses, are refused."""
    details = refused(server, "ReportStats", message.SerializeToString())
    assert "at most 16384 are allowed" in details


@pytest.mark.parametrize(
    ("method", "raw", "expected"),
    [
        ("GetWeights", b"\x0a\x7fshort", "not a trimtab.v1.GetWeightsRequest: "),
        ("GetWeights", b"\x0a\x02\xff\xfe", "not a trimtab.v1.GetWeightsRequest: "),
        ("ReportStats", b"\xff" * 20, "not a trimtab.v1.ReportStatsRequest: "),
        ("GetWeights", b"\x12\x00" * 40_000, "a GetWeightsRequest of 80000 bytes; "),
        # Two bytes each on the wire, and 700 MB if they were parsed.
        ("ReportStats", b"\x2a\x00" * 4_000_000, "more fields than any"),
        ("ReportStats", b"\x2a\x80\x80\xf4\x03" + b"\x1a\x00" * 4_096_000, "more fields than any"),
        ("ReportStats", b"\x10\x01" * 4_000_000, "more fields than any"),
        ("ReportStats", b"\x2a\xff\xff\x7f" + b"\0" * 300_000, "not a report: it is cut short"),
        ("ReportStats", b"\x2a" + b"\xff" * 300_000, "not a report: it is cut short"),
        ("ReportStats", b"\x2b" * 300_000, "not a report: wire type 3"),
    ],
    ids=[
        "truncated", "utf8", "rubbish", "long-query", "empty-upstreams", "empty-peers", "scalars",
        "cut", "varint", "group",
    ],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused(
    server: serving.Serving, method: str, raw: bytes, expected: str
) -> None:
    """Damaged bytes are INVALID_ARGUMENT, and a bomb of tiny parts is refused unparsed."""
    assert expected in refused(server, method, raw)


def test_messages_beyond_8_mib_are_refused(server: serving.Serving) -> None:
    """The transport refuses what is larger than the proto's bound."""
    with pytest.raises(grpc.RpcError) as caught:
        server.raw("ReportStats")(bytes(8 * 1024 * 1024 + 1), timeout=serving.TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_compressed_messages_are_refused(server: serving.Serving) -> None:
    """A compressed message could grow a thousandfold after its size was checked."""
    call = server.raw("ReportStats")
    with pytest.raises(grpc.RpcError) as caught:
        call(bytes(2_000_000), timeout=serving.TIMEOUT, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "message",
    [
        query(instance=LONG, epoch=LARGEST, generation=LARGEST),
        query(instance=" ~", upstreams=["u2", "u1"]),
        report(instance=LONG, start=LARGEST, sequence=LARGEST, generation=LARGEST),
        report(sequence=0, clock_seconds=1.7e308, connections={"active": LARGEST}),
        with_peer(
            address=LONG,
            requests=LARGEST,
            responses=[LARGEST] * 5,
            response_time_buckets=[LARGEST] * 36,
            # Finite, though their sum is not.
            response_time_seconds=1.7e308,
            response_time_squared=1.7e308,
        ),
        with_address(completions_at=[LARGEST] * 32, seconds_at=[1.7e308] * 32, error_ratio=1.0),
        report(upstreams=peers(4096)),
        report(upstreams=peers(16_384, upstreams=4)),
        report(upstreams=peers(0, upstreams=256)),
        report(addresses=[pb.AddressStats(address=f"p{n}") for n in range(16_384)]),
    ],
    ids=lambda m: f"{m.ByteSize()}-bytes",
)
def test_what_is_at_its_bound_is_taken(message) -> None:
    """The largest values that the proto allows are in bounds."""
    with serving.serving() as running:
        if isinstance(message, pb.GetWeightsRequest):
            answer = running.stub.GetWeights(message, timeout=serving.TIMEOUT)
            assert answer.generation == 1
        else:
            answer = running.stub.ReportStats(message, timeout=serving.TIMEOUT)
            assert answer.accepted
