"""Random and mutated messages: every one is answered or refused with a reason, none is a fault."""

import gc
import itertools
import math
import os
import random
import time
from collections.abc import Callable

import grpc
import psutil

import serving
from trimtab import messages, packed
from trimtab.answers import Answers
from trimtab.bounds import MessageError
from trimtab.sources.reported import Reported
from trimtab.v1 import policy_pb2 as pb

# Through a channel, and through decoding, source and answers without one. `make fuzz` sends more:
# TRIMTAB_FUZZ_MESSAGES=1000000 takes some minutes.
MESSAGES = int(os.environ.get("TRIMTAB_FUZZ_MESSAGES", "102000"))
OVER_GRPC = MESSAGES // 34
IN_PROCESS = MESSAGES - OVER_GRPC
SEED = int(os.environ.get("TRIMTAB_FUZZ_SEED", "20"))

EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
}

EXTREME = [math.nan, math.inf, -math.inf, -1.0, -0.0, 1.7e308]
INTERESTING = [0, 1, 127, 128, 255, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def seeds() -> dict[str, list[bytes]]:
    """Valid messages to start from."""
    peer = pb.PeerStats(
        address="10.0.0.1:80", requests=9, responses=[1] * 5, response_time_buckets=[3] * 36,
        response_time_seconds=1.5, tardiness=0.5,
    )  # fmt: skip
    stats = pb.AddressStats(address="10.0.0.1:80", completions_at=[1] * 32, seconds_at=[0.5] * 32)
    return {
        "GetWeights": [
            pb.GetWeightsRequest(instance="a").SerializeToString(),
            pb.GetWeightsRequest(
                instance="nginx-1", upstreams=["u0", "u2"], epoch=5, generation=1
            ).SerializeToString(),
        ],
        "ReportStats": [
            pb.ReportStatsRequest(
                instance="a", start=1, sequence=1, clock_seconds=2.5,
                upstreams=[pb.UpstreamStats(upstream=u, peers=[peer]) for u in ("u0", "u1")],
                addresses=[stats], connections={"active": 3},
            ).SerializeToString(),
            pb.ReportStatsRequest(instance="b", start=2, sequence=9).SerializeToString(),
            # Large enough for the quick way (trimtab.rows).
            pb.ReportStatsRequest(
                instance="c", start=1, sequence=1,
                upstreams=[pb.UpstreamStats(upstream=f"u{n}", peers=[peer]) for n in range(3)],
                addresses=[
                    pb.AddressStats(address=f"10.0.0.{n}:80", completions_at=[n] * 32,
                                    seconds_at=[0.5] * 32)
                    for n in (1, 2, 3)
                ],
            ).SerializeToString(),
            by_column(peer),
        ],
    }  # fmt: skip


def by_column(peer: pb.PeerStats) -> bytes:
    """A report with columns (trimtab.packed)."""
    report = pb.ReportStatsRequest(instance="d", start=1, sequence=1)
    for n in range(3):
        peers = [pb.PeerStats(address=f"10.0.0.{p}:80", requests=7) for p in (2, 3)]
        report.upstreams.add(upstream=f"u{n}", peers=[peer, *peers])
        report.addresses.add(
            address=f"10.0.0.{n}:80", completions_at=[n] * 32, seconds_at=[0.5] * 32,
            ejection="stall", down=True,
        )  # fmt: skip
    packed.gather(report)
    return bytes(report.SerializeToString())


def built(rng: random.Random) -> tuple[str, bytes]:
    """A well-formed message with values at random, in bounds or not."""
    names = ["u0", "u1", "u2", "nobody", "10.0.0.1:80", "10.0.0.2:80", "n" * 255, "", "\t"]

    def name() -> str:
        return rng.choice(names[: rng.choice([3, 7, 9])])

    def count() -> int:
        return rng.choice(INTERESTING[: rng.choice([8, 10])])

    def double() -> float:
        return rng.choice([0.0, 1e-9, 1.0, 1e300, 1e300, 1e300, rng.choice(EXTREME)])

    if rng.random() < 0.3:
        query = pb.GetWeightsRequest(instance=name(), epoch=count(), generation=rng.randrange(3))
        query.upstreams.extend(name() for _ in range(rng.randrange(3)))
        return "GetWeights", query.SerializeToString()
    report = pb.ReportStatsRequest(
        instance=name(), start=count(), sequence=count(), clock_seconds=double()
    )
    for _ in range(rng.randrange(3)):
        upstream = report.upstreams.add(upstream=name(), waiting=rng.randrange(9))
        for _ in range(rng.randrange(3)):
            upstream.peers.add(
                address=name(),
                requests=count(),
                responses=[rng.randrange(9)] * rng.choice([0, 5, 5, rng.randrange(9)]),
                response_time_buckets=[count()] * rng.choice([0, 36]),
                tardiness=double(),
            )
    for _ in range(rng.randrange(3)):
        report.addresses.add(address=name(), seconds_at=[double()] * 32, error_ratio=rng.random())
    wide = all(len(peer.responses) in (0, 5) for u in report.upstreams for peer in u.peers)
    if wide and rng.random() < 0.5:
        packed.gather(report)
    return "ReportStats", report.SerializeToString()


def flip(raw: bytearray, rng: random.Random) -> None:
    """Change bits of one byte."""
    if raw:
        raw[rng.randrange(len(raw))] ^= rng.randrange(1, 256)


def cut(raw: bytearray, rng: random.Random) -> None:
    """Take a piece out."""
    start = rng.randint(0, len(raw))
    del raw[start : start + rng.randint(1, 20)]


def repeat(raw: bytearray, rng: random.Random) -> None:
    """Copy a piece to another place."""
    start = rng.randint(0, len(raw))
    at = rng.randint(0, len(raw))
    raw[at:at] = raw[start : start + rng.randint(1, 200)] * rng.randint(1, 5)


def number(raw: bytearray, rng: random.Random) -> None:
    """Put a varint at the edge of a range somewhere."""
    value = rng.choice(INTERESTING)
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    at = rng.randint(0, len(raw))
    raw[at : at + rng.randint(0, len(out))] = out


def rubbish(raw: bytearray, rng: random.Random) -> None:
    """Random bytes instead of the message."""
    raw[:] = rng.randbytes(rng.randint(0, 300))


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [flip, cut, repeat, number, rubbish]


def made(rng: random.Random, start: dict[str, list[bytes]]) -> tuple[str, bytes]:
    """The next message and the method that it is for."""
    if rng.random() < 0.4:
        return built(rng)
    method = rng.choice(list(start))
    raw = bytearray(rng.choice(start[method]))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        rng.choice(MUTATIONS)(raw, rng)
    return method, bytes(raw)


def test_no_message_is_a_fault() -> None:
    """Whatever the bytes, the status is OK or names the caller's mistake, and service goes on."""
    rng = random.Random(SEED)
    start = seeds()
    counts: dict[grpc.StatusCode, int] = {}
    with serving.serving() as running:
        methods = {name: running.raw(name) for name in start}
        while sum(counts.values()) < OVER_GRPC:
            batch = []
            for _ in range(50):
                method, sent = made(rng, start)
                batch.append((method, sent, methods[method].future(sent, timeout=serving.TIMEOUT)))
            for method, sent, call in batch:
                code = call.code()
                assert code in EXPECTED, f"{code} {call.details()}: {method} {sent.hex()}"
                assert code is grpc.StatusCode.OK or call.details()
                counts[code] = counts.get(code, 0) + 1
        # The server is as good as before, and the mutations were neither all good nor all bad.
        assert running.stub.GetWeights(pb.GetWeightsRequest(instance="a")).generation == 1
        assert len(running.source.instances()) <= OVER_GRPC
    assert set(counts) == EXPECTED
    assert min(counts.values()) > OVER_GRPC / 50, counts


def test_decoding_many_messages_is_quick_and_keeps_nothing() -> None:
    """Each of a hundred thousand messages is decoded or refused within a second, and memory after
    the last is that after the first half."""
    rng = random.Random(SEED + 1)
    start = seeds()
    checked = serving.configuration()
    known = {u.name: frozenset(p.address for p in u.peers) for u in checked.upstreams}
    # Names of balancers are made up too: silent ones must be forgotten.
    clock = itertools.count()
    source = Reported(checked, clock=lambda: next(clock) / 100)
    answers = Answers(serving.weights(checked), 10.0, 1.0)
    process = psutil.Process()
    refused = slowest = 0.0
    half = 0
    for n in range(IN_PROCESS):
        method, sent = made(rng, start)
        began = time.thread_time()
        try:
            if method == "GetWeights":
                answers.answer(messages.decode_query(sent))
            else:
                report = messages.decode_report(sent, known)
                source.put(report.snapshot, report.sequence)
        except (MessageError, KeyError):
            refused += 1
        slowest = max(slowest, time.thread_time() - began)
        if n == IN_PROCESS // 2:
            gc.collect()
            half = process.memory_info().rss
    gc.collect()
    grown = process.memory_info().rss - half
    assert 0.05 < refused / IN_PROCESS < 0.95
    assert slowest < 1.0
    # An object of 200 bytes kept for each message would be 10 MB.
    assert grown < 100 * IN_PROCESS + 2 * 2**20, f"{grown} bytes more"
