"""Simulated balancers for `trimtab bench scale`: a process that asks and reports like many nginx.

`python -m trimtab.bench.fleet_load '{"target": …}'` runs until its seconds are over and prints one
JSON object. Each balancer has a connection of its own and a moment of its own in the interval, at
which it asks and reports. A call counts from when it was due: one that the server, or this process,
was late for is late. Reports are put together from bytes made once, so the load is cheap: only the
clock and the number of the report change from one balancer to the next.
"""

import asyncio
import json
import random
import sys
import time
from typing import Any, Final

import grpc
import grpc.aio

from trimtab import packed
from trimtab.v1 import policy_pb2

__all__ = ["address", "reports", "run"]

# Bodies of reports, made once and used in turn: counters rise from one to the next. After about a
# minute they begin anew, as after a restart of nginx, which costs the server more.
TURNS: Final = 64

# A call that takes longer has failed; a balancer's own limit is 5 s.
TIMEOUT_SECONDS: Final = 5.0

# Start of the counters: any number more than 0; the turns begin anew with each.
START: Final = 1_700_000_000_000


def address(peer: int) -> str:
    """The address of peer number `peer`."""
    return f"10.{peer // 62500}.{peer // 250 % 250}.{peer % 250 + 1}:8080"


def reports(upstreams: int, peers: int, seed: int = 0) -> list[bytes]:
    """The body of `TURNS` reports, without name, start, sequence and clock: each peer of each
    upstream has had traffic, with 14 buckets and 8 levels in use, as on a busy site."""
    rng = random.Random(seed)  # noqa: S311
    whole = policy_pb2.ReportStatsRequest(generation=1)
    for u in range(upstreams):
        upstream = whole.upstreams.add(upstream=f"u{u}")
        for p in range(peers):
            upstream.peers.add(
                address=address(p), in_flight=3, responses=[0] * 5, response_time_buckets=[0] * 36
            )
    for p in range(peers):
        whole.addresses.add(
            address=address(p), completions_at=[0] * 32, seconds_at=[0.0] * 32, rate=1.0
        )
    made = []
    for _ in range(TURNS):
        for upstream in whole.upstreams:
            for peer in upstream.peers:
                done = rng.randrange(5_000, 20_000)
                peer.requests += done
                peer.responses[1] += done
                peer.in_bytes += 500 * done
                peer.out_bytes += 2_000 * done
                peer.response_time_seconds += 0.03 * done
                peer.response_time_squared += 0.002 * done
                peer.unqueued += done // 2
                peer.unqueued_seconds += 0.01 * done
                peer.unqueued_squared += 0.0004 * done
                peer.in_flight_seconds += 0.03 * done
                for bucket in range(6, 20):
                    peer.response_time_buckets[bucket] += done // 14
        for server in whole.addresses:
            server.busy_seconds += 0.9
            for level in range(8):
                server.completions_at[level] += rng.randrange(2_000)
                server.seconds_at[level] += 0.1
        # As the hook writes it.
        sent = policy_pb2.ReportStatsRequest()
        sent.CopyFrom(whole)
        packed.gather(sent)
        made.append(sent.SerializeToString())
    return made


class _Balancer:
    """One simulated nginx: asks by GetWeights at first, then in its reports, as the hook does."""

    def __init__(self, number: int, target: str, bodies: list[bytes]) -> None:
        # A pool of its own: otherwise channels to one address share a connection.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.name = f"nginx-{number}"
        self._channel = grpc.aio.insecure_channel(target, options=options)
        service = "/trimtab.v1.PolicyService/"
        self._ask = self._channel.unary_unary(service + "GetWeights")
        self._report = self._channel.unary_unary(service + "ReportStats")
        self._bodies = bodies
        self._epoch = self._generation = self._sequence = 0

    async def ask(self) -> None:
        query = policy_pb2.GetWeightsRequest(
            instance=self.name, epoch=self._epoch, generation=self._generation
        )
        raw = await self._ask(query.SerializeToString(), timeout=TIMEOUT_SECONDS)
        self._take(policy_pb2.GetWeightsResponse.FromString(raw))

    async def report(self, wants: bool) -> None:
        # In protobuf the concatenation of messages is their merge.
        life, turn = divmod(self._sequence, TURNS)
        self._sequence += 1
        head = policy_pb2.ReportStatsRequest(
            instance=self.name,
            start=START + life,
            sequence=self._sequence,
            clock_seconds=time.monotonic(),
        )
        if wants:
            head.weights_wanted.epoch = self._epoch
            head.weights_wanted.generation = self._generation
        raw = head.SerializeToString() + self._bodies[turn]
        raw = await self._report(raw, timeout=TIMEOUT_SECONDS)
        if wants:
            self._take(policy_pb2.ReportStatsResponse.FromString(raw).weights)

    def _take(self, answer: Any) -> None:
        self._epoch, self._generation = answer.epoch, answer.generation

    async def close(self) -> None:
        await self._channel.close()


class _Times:
    """How long the calls of one method took, and how many failed, by status."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.failed: dict[str, int] = {}

    def result(self) -> dict[str, Any]:
        took = sorted(self.took)
        return {
            "calls": len(took),
            "failed": sum(self.failed.values()),
            "failures": self.failed,
            "p50_seconds": took[len(took) // 2] if took else None,
            "p99_seconds": took[len(took) * 99 // 100] if took else None,
            "max_seconds": took[-1] if took else None,
        }


async def run(
    target: str,
    *,
    instances: int,
    upstreams: int,
    peers: int,
    warm_seconds: float,
    seconds: float,
    separate: bool = False,
) -> dict[str, Any]:
    """Send for `warm_seconds`, then for `seconds` that count; {"seconds", "cpu_ratio" of this
    process, "methods": {name: {"calls" answered, "failed", "failures": {status: how many},
    "p50_seconds", "p99_seconds", "max_seconds"}}}. With `separate` each balancer asks in a call of
    its own each second, and reports without asking, as older ones do."""
    bodies = reports(upstreams, peers)
    balancers = [_Balancer(n, target, bodies) for n in range(instances)]
    times = {"GetWeights": _Times(), "ReportStats": _Times()}
    began = time.perf_counter()
    counts_from, ends = began + warm_seconds, began + warm_seconds + seconds

    async def call(method: str, due: float, behaviour: Any) -> None:
        of = times[method]
        try:
            await behaviour
        except grpc.RpcError as error:
            if due >= counts_from:
                code = error.code().name
                of.failed[code] = of.failed.get(code, 0) + 1
            return
        if due >= counts_from:
            of.took.append(time.perf_counter() - due)

    async def live(number: int, balancer: _Balancer) -> None:
        due, first = began + number / instances, True
        while due < ends:
            await asyncio.sleep(due - time.perf_counter())
            asks = separate or first
            calls = [call("ReportStats", due, balancer.report(not asks))]
            if asks:
                calls.append(call("GetWeights", due, balancer.ask()))
            await asyncio.gather(*calls)
            due, first = due + 1.0, False

    async def processor() -> float:
        await asyncio.sleep(warm_seconds)
        before = time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - before) / seconds

    *_, share = await asyncio.gather(*(live(n, b) for n, b in enumerate(balancers)), processor())
    await asyncio.gather(*(b.close() for b in balancers))
    return {
        "seconds": seconds,
        "cpu_ratio": share,
        "methods": {name: of.result() for name, of in times.items()},
    }


if __name__ == "__main__":
    import uvloop

    print(json.dumps(uvloop.run(run(**json.loads(sys.argv[1])))))
