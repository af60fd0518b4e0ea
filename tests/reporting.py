"""Balancers whose reports rise at random, and each report in columns and in objects."""

import random
from dataclasses import fields

import serving
from trimtab import messages, packed
from trimtab.columns import Pairs
from trimtab.model import PairCounters, Snapshot
from trimtab.v1 import policy_pb2 as pb

CONFIG = serving.configuration(upstreams=2, peers=3)
KNOWN = {u.name: frozenset(p.address for p in u.peers) for u in CONFIG.upstreams}


class Balancer:
    """Reports with counters that rise at random."""

    def __init__(self, name: str, seed: int, peers: int = 3) -> None:
        self.rng = random.Random(seed)
        self.message = pb.ReportStatsRequest(instance=name, start=7, clock_seconds=50.0)
        for u in range(2):
            upstream = self.message.upstreams.add(upstream=f"u{u}")
            for p in range(peers):
                upstream.peers.add(
                    address=serving.address(p), responses=[0] * 5, response_time_buckets=[0] * 36
                )
        for p in range(peers):
            self.message.addresses.add(
                address=serving.address(p), completions_at=[0] * 32, seconds_at=[0.0] * 32
            )

    def report(self, seconds: float = 1.0) -> bytes:
        """The next report, `seconds` after the last."""
        rng, message = self.rng, self.message
        message.sequence += 1
        message.clock_seconds += seconds
        message.generation = rng.randrange(2)
        message.connections.active = rng.randrange(99)
        for upstream in message.upstreams:
            upstream.waiting = rng.randrange(5)
            for peer in upstream.peers:
                peer.in_flight = rng.randrange(9)
                for each in fields(PairCounters):
                    if each.type is int:
                        more = rng.choice([0, 1, 200, 10**9])
                        setattr(peer, each.name, getattr(peer, each.name) + more)
                for each in fields(PairCounters):
                    if each.type is float and each.name != "in_flight":
                        setattr(peer, each.name, getattr(peer, each.name) + rng.random())
                peer.responses[rng.randrange(5)] += rng.randrange(1000)
                peer.response_time_buckets[rng.randrange(36)] += rng.randrange(100_000)
        for server in message.addresses:
            server.busy_seconds += rng.choice([0.0, 0.5])
            server.completions_at[rng.randrange(32)] += rng.randrange(300)
            server.seconds_at[rng.randrange(32)] += rng.random()
            server.rate, server.error_ratio = rng.random() * 3, rng.random()
            server.down = rng.random() < 0.5
            server.ejections += rng.randrange(3)
            server.ejection = rng.choice(["", "errors", "stall"])
            server.ejection_seconds = rng.random() * 9
        raw: bytes = message.SerializeToString()
        return raw


def both(raw: bytes) -> tuple[Snapshot, Snapshot]:
    """The report in columns, and in objects; both forms of message give the same."""
    message = pb.ReportStatsRequest.FromString(raw)
    careful = messages._careful_report(message, KNOWN)
    rows = messages.decode_report(raw, KNOWN, LAYOUTS)
    packed.gather(message)
    columns = messages.decode_report(message.SerializeToString(), KNOWN, LAYOUTS)
    assert messages._careful_report(message, KNOWN) == careful
    for quick in (rows, columns):
        assert isinstance(quick.snapshot.pairs, Pairs)
        assert quick == careful
    # Balancers of both versions are summed together.
    assert rows.snapshot.pairs.columns.layout is columns.snapshot.pairs.columns.layout
    quick = columns if message.sequence % 2 else rows
    return quick.snapshot, careful.snapshot


LAYOUTS: dict = {}
