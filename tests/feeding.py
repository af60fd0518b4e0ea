"""A balancer that reports made-up traffic to a policy server, for tests of what is shown."""

import math
import threading
import time
from random import Random

import grpc

from trimtab.config import Config
from trimtab.model import BUCKET_BOUNDS_SECONDS
from trimtab.v1 import policy_pb2 as pb
from trimtab.v1 import policy_pb2_grpc


class Feeder:
    """Sends a report each `seconds` until it is left; peers differ in speed and share.

    Use as a context manager. `down` are addresses that this balancer has ejected.
    """

    def __init__(self, config: Config, *, seconds: float = 0.1, name: str = "nginx-1") -> None:
        self._config = config
        self._seconds = seconds
        self._name = name
        self._random = Random(7)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.down: set[str] = set()
        self._addresses = list(dict.fromkeys(p.address for u in config.upstreams for p in u.peers))
        self._speed = {a: (1.0, 2.0, 4.0)[n % 3] for n, a in enumerate(self._addresses)}
        self._upstreams = {
            u.name: pb.UpstreamStats(
                upstream=u.name,
                peers=[pb.PeerStats(address=p.address) for p in u.peers],
            )
            for u in config.upstreams
        }
        for upstream in self._upstreams.values():
            for peer in upstream.peers:
                peer.responses.extend([0] * 5)
                peer.response_time_buckets.extend([0] * (len(BUCKET_BOUNDS_SECONDS) + 1))

    def __enter__(self) -> "Feeder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(20)

    def _run(self) -> None:
        start, sequence = time.time_ns() // 1_000_000, 0
        while not self._ending.is_set():
            try:
                with grpc.insecure_channel(self._config.policy.listen) as channel:
                    stub = policy_pb2_grpc.PolicyServiceStub(channel)
                    while not self._ending.wait(self._seconds):
                        sequence += 1
                        query = pb.GetWeightsRequest(instance=self._name)
                        weights = stub.GetWeights(query, timeout=5)
                        self._advance(weights)
                        report = self._report(start, sequence, weights.generation)
                        stub.ReportStats(report, timeout=5)
            except grpc.RpcError:
                # The server is away, as a test wanted: a balancer asks again.
                self._ending.wait(0.1)

    def _advance(self, weights: pb.GetWeightsResponse) -> None:
        control = {(u.upstream, p.address): p for u in weights.upstreams for p in u.peers}
        for c, (name, upstream) in enumerate(self._upstreams.items()):
            deadline = next(
                (
                    u.deadline.ToTimedelta().total_seconds()
                    for u in weights.upstreams
                    if u.upstream == name and u.HasField("deadline")
                ),
                0.0,
            )
            upstream.waiting = self._random.randrange(3)
            for peer in upstream.peers:
                one = control.get((name, peer.address))
                speed = self._speed[peer.address]
                peer.in_flight = 0
                if peer.address in self.down or (one and one.drain):
                    continue
                rate = 60 * speed / (c + 1) * (one.weight if one else 1.0)
                done = int(rate * self._seconds + self._random.random())
                for _ in range(done):
                    mean = 0.012 * (c + 1) / speed
                    served = self._random.expovariate(1 / mean)
                    seconds = 0.002 + served * (1 + 2 * self._random.random() ** 4)
                    self._finish(peer, seconds, served + 0.002, deadline)
                peer.in_flight = self._random.randrange(3)
                peer.in_flight_seconds += peer.in_flight * self._seconds

    def _finish(self, peer: pb.PeerStats, seconds: float, served: float, deadline: float) -> None:
        failed = self._random.random() < 0.002
        peer.requests += 1
        peer.failures += failed
        peer.responses[4 if failed else 1] += 1
        peer.in_bytes += 300
        peer.out_bytes += 2000
        peer.response_time_seconds += seconds
        peer.response_time_squared += seconds**2
        if not failed:
            peer.unqueued += 1
            peer.unqueued_seconds += served
            peer.unqueued_squared += served**2
        bucket = math.ceil(2 * math.log2(seconds / BUCKET_BOUNDS_SECONDS[0]))
        peer.response_time_buckets[min(max(bucket, 0), len(BUCKET_BOUNDS_SECONDS))] += 1
        late = max(0.0, seconds / deadline - 1) if deadline else 0.0
        if failed:
            late = max(late, 9.0)
        peer.tardiness += late
        peer.tardy += late > 0

    def _report(self, start: int, sequence: int, generation: int) -> pb.ReportStatsRequest:
        return pb.ReportStatsRequest(
            instance=self._name,
            start=start,
            sequence=sequence,
            clock_seconds=time.monotonic(),
            generation=generation,
            upstreams=self._upstreams.values(),
            addresses=[
                pb.AddressStats(
                    address=address,
                    busy_seconds=sequence * self._seconds,
                    rate=self._speed[address],
                    error_ratio=0.4 if address in self.down else 0.002,
                    down=address in self.down,
                    ejection="stall" if address in self.down else "",
                    ejection_seconds=0.5 if address in self.down else 0.0,
                )
                for address in self._addresses
            ],
        )
