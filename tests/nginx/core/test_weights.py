"""Weights from a policy server: in force, expired, refused, and reports back to it."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from hooked import Hooked, hooked, load, until
from nginxes import free_ports
from peers import Peer, Peers, peers
from trimtab.v1 import policy_pb2 as v1


class Policy(grpc.GenericRpcHandler):
    """A policy server that answers what the test says, as a message or as raw bytes."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.requests: list[v1.GetWeightsRequest] = []
        self.reports: list[v1.ReportStatsRequest] = []
        self.answer: Callable[[v1.GetWeightsRequest], bytes] = lambda _: b""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Both methods."""
        handlers = {"GetWeights": self._weights, "ReportStats": self._report}
        return grpc.unary_unary_rpc_method_handler(handlers[details.method.split("/")[-1]])

    def _weights(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = v1.GetWeightsRequest.FromString(data)
        self.requests.append(request)
        try:
            return self.answer(request)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    def _report(self, data: bytes, _: grpc.ServicerContext) -> bytes:
        self.reports.append(v1.ReportStatsRequest.FromString(data))
        return v1.ReportStatsResponse(accepted=True).SerializeToString()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Listen on the port until the block ends."""
        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((self,))
        assert server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
        server.start()
        try:
            yield
        finally:
            server.stop(0).wait()


def weights(
    group: Peers, *values: float, epoch: int = 7, generation: int = 1, ttl: float = 5.0, **peer: Any
) -> v1.GetWeightsResponse:
    """An answer for the upstream a with these weights."""
    return v1.GetWeightsResponse(
        epoch=epoch,
        generation=generation,
        time_to_live=_span(ttl),
        refresh_interval=_span(0.1),
        upstreams=[
            v1.UpstreamWeights(
                upstream="a",
                deadline=_span(0.05),
                service_time=_span(0.01),
                peers=[
                    v1.PeerWeight(
                        **{
                            "address": address,
                            "weight": weight,
                            "affinity": 1,
                            "rate": 1,
                            "slots": 4,
                            **peer,
                        }
                    )
                    for address, weight in zip(group.addresses, values, strict=True)
                ],
            )
        ],
    )


def _span(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))


@pytest.fixture
def group() -> Iterator[Peers]:
    """Two peers."""
    with peers(Peer(), Peer()) as group:
        yield group


@pytest.fixture
def policy() -> Policy:
    """A policy server that is not up yet."""
    return Policy()


@pytest.fixture
def nginx(tmp_path: Path, group: Peers, policy: Policy) -> Iterator[Hooked]:
    """Two workers and a class, with slots and weights not configured."""
    each = [{"address": a} for a in group.addresses]
    with hooked(tmp_path, {"a": each}, workers=2, policy=f"127.0.0.1:{policy.port}") as nginx:
        yield nginx


def source(nginx: Hooked) -> tuple[str, int]:
    """What is in force: learned or static, and the generation that is held."""
    # A request to each worker, as weights enter force with one.
    for _ in range(8):
        nginx.get("/a")
    weights = nginx.snapshot()["weights"]
    return weights["source"], weights["generation"]


def test_learned_weights_enter_force_and_expire(
    nginx: Hooked, group: Peers, policy: Policy
) -> None:
    """A policy server that comes up late is heard; when it goes its weights last for their time
    to live, and then the static ones are in force; when it returns, its own again."""
    assert source(nginx) == ("static", 0)
    policy.answer = lambda _: weights(group, 1, 4, ttl=1.0).SerializeToString()
    with policy.serving():
        until(lambda: source(nginx) == ("learned", 1))
        pairs = nginx.pairs("a")
        assert [pairs[a]["weight"] for a in group.addresses] == [1, 4]
        upstream = nginx.snapshot()["upstreams"][0]
        assert upstream["deadline_seconds"] == pytest.approx(0.05)
        assert upstream["service_time_seconds"] == pytest.approx(0.01)
        assert [a["slots"] for a in nginx.snapshot()["addresses"]] == [4, 4]
        got = asyncio.run(
            load(nginx.port, ["/a"], concurrency=10, count=300, headers="X-Work: 0.01\r\n")
        )
        assert got.statuses == {200: 300}
        assert got.peers[group[1].address] > 1.2 * got.peers[group[0].address]
    gone = time.monotonic()
    assert source(nginx) == ("learned", 1)
    until(lambda: source(nginx)[0] == "static", 5)
    assert time.monotonic() - gone > 0.5
    assert [p["weight"] for p in nginx.pairs("a").values()] == [1, 1]
    with policy.serving():
        until(lambda: source(nginx) == ("learned", 1))
    assert nginx.log.count("trimtab: failed to get weights") == 2
    assert "keeping generation 1 for" in nginx.log


def test_unchanged_renews_the_time_to_live(nginx: Hooked, group: Peers, policy: Policy) -> None:
    """The hook says what it has; "unchanged" keeps that in force without sending it again."""

    def answer(request: v1.GetWeightsRequest) -> bytes:
        full = weights(group, 1, 2, generation=3, ttl=0.6)
        if (request.epoch, request.generation) == (7, 3):
            del full.upstreams[:]
            full.unchanged = True
        return full.SerializeToString()

    policy.answer = answer
    with policy.serving():
        until(lambda: source(nginx) == ("learned", 3))
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert source(nginx) == ("learned", 3)
        assert [(r.epoch, r.generation) for r in policy.requests].count((0, 0)) == 1
        assert {r.instance for r in policy.requests} == {"test"}
        assert [list(r.upstreams) for r in policy.requests][-1] == ["a"]


def test_a_drained_peer_gets_nothing(nginx: Hooked, group: Peers, policy: Policy) -> None:
    """`drain` takes a peer out, and when all are drained nginx's own balancer answers."""
    answer = weights(group, 1, 1)
    answer.upstreams[0].peers[0].drain = True
    policy.answer = lambda _: answer.SerializeToString()
    with policy.serving():
        until(lambda: source(nginx)[0] == "learned")
        seen = group[0].seen
        assert {nginx.get("/a")[1] for _ in range(20)} == {str(group[1].port)}
        assert group[0].seen == seen
        assert [a["down"] for a in nginx.snapshot()["addresses"]] == [True, False]
        answer.generation = 2
        answer.upstreams[0].peers[1].drain = True
        until(lambda: source(nginx) == ("learned", 2))
        assert nginx.get("/a")[0] == 200
        until(lambda: nginx.snapshot()["upstreams"][0]["unplaced"] > 0)


GARBAGE: list[tuple[str, Callable[[v1.GetWeightsResponse], bytes]]] = [
    ("nothing at all", lambda _: b""),
    ("noise", lambda _: bytes(range(200, 256)) * 20),
    ("cut short", lambda a: a.SerializeToString()[:-9]),
    ("an older generation", lambda a: _with(a, generation=1)),
    ("an older epoch", lambda a: _with(a, epoch=6)),
    ("a weight that is not a number", lambda a: _peer(a, weight=math.nan)),
    ("an infinite affinity", lambda a: _peer(a, affinity=math.inf)),
    ("a weight of zero", lambda a: _peer(a, weight=0)),
    ("a negative rate", lambda a: _peer(a, rate=-1)),
    ("slots without bound", lambda a: _peer(a, slots=1e300)),
    ("no time to live", lambda a: _with(a, time_to_live=Duration())),
    ("a negative deadline", lambda a: _deadline(a, -1)),
    ("peers that are not ours", lambda a: _peer(a, address="10.9.9.9:1")),
    ("unchanged, of what we lack", lambda a: _with(a, unchanged=True, generation=9)),
    ("a refusal", lambda _: (_ for _ in ()).throw(ValueError("no\nsuch thing \x1b[31m"))),
]


def _with(answer: v1.GetWeightsResponse, **fields: Any) -> bytes:
    answer.MergeFrom(v1.GetWeightsResponse(**fields))
    if "time_to_live" in fields:
        answer.time_to_live.Clear()
    return bytes(answer.SerializeToString())


def _peer(answer: v1.GetWeightsResponse, **fields: Any) -> bytes:
    for peer in answer.upstreams[0].peers:
        for name, value in fields.items():
            setattr(peer, name, value)
    return bytes(answer.SerializeToString())


def _deadline(answer: v1.GetWeightsResponse, seconds: int) -> bytes:
    answer.upstreams[0].deadline.seconds = seconds
    return bytes(answer.SerializeToString())


def test_rubbish_changes_nothing(nginx: Hooked, group: Peers, policy: Policy) -> None:
    """Whatever is wrong with an answer, the weights that are held stay in force, no request
    fails, and the log has one line a change of state."""
    good = weights(group, 1, 3, generation=5, ttl=60)
    policy.answer = lambda _: good.SerializeToString()
    with policy.serving():
        until(lambda: source(nginx) == ("learned", 5))
        before = nginx.snapshot()["weights"]
        for what, spoil in GARBAGE:
            changed = weights(group, 9, 9, generation=6, ttl=60)
            policy.answer = lambda _, spoil=spoil, changed=changed: spoil(changed)
            count = len(policy.requests)
            until(lambda count=count: len(policy.requests) >= count + 2)
            assert source(nginx) == ("learned", 5), what
            assert [p["weight"] for p in nginx.pairs("a").values()] == [1, 3], what
        assert nginx.snapshot()["weights"]["epoch"] == before["epoch"]
        assert nginx.log.count("trimtab: failed to get weights") <= 2
        assert "\x1b" not in nginx.log
        policy.answer = lambda _: weights(group, 2, 2, generation=6).SerializeToString()
        until(lambda: source(nginx) == ("learned", 6))


def test_weights_last_over_a_reload(nginx: Hooked, group: Peers, policy: Policy) -> None:
    """New workers use the weights that are held at once; with other peers they ask anew."""
    policy.answer = lambda _: weights(group, 1, 3, ttl=60).SerializeToString()
    with policy.serving():
        until(lambda: source(nginx) == ("learned", 1))
    nginx.reload()
    assert source(nginx) == ("learned", 1)
    assert [p["weight"] for p in nginx.pairs("a").values()] == [1, 3]
    with policy.serving():
        count = len(policy.requests)
        nginx.reload(upstreams={"a": [{"address": group.addresses[1]}]})
        until(lambda: any(r.generation == 0 for r in policy.requests[count:]))


def test_reports_tell_the_counters(nginx: Hooked, group: Peers, policy: Policy) -> None:
    """Reports have rising sequences and clocks, one start, and the counters of all workers, also
    when the worker that reports is replaced."""
    with policy.serving():
        got = asyncio.run(load(nginx.port, ["/a"], concurrency=4, count=200))
        assert got.statuses == {200: 200}
        until(lambda: bool(policy.reports) and _requests(policy.reports[-1]) == 200)
        nginx.reload()
        count = len(policy.reports)
        until(lambda: len(policy.reports) > count + 3)
    reports = policy.reports
    assert len({r.start for r in reports}) == 1
    assert abs(reports[0].start / 1000 - time.time()) < 60
    assert all(a.sequence < b.sequence for a, b in itertools.pairwise(reports))
    assert all(
        a.clock_seconds <= b.clock_seconds for a, b in itertools.pairwise(reports)
    )
    last = reports[-1]
    assert [u.upstream for u in last.upstreams] == ["a"]
    assert _requests(last) == 200
    for peer in last.upstreams[0].peers:
        assert peer.responses == [0, peer.requests, 0, 0, 0]
        assert sum(peer.response_time_buckets) == peer.requests
    assert sorted(a.address for a in last.addresses) == sorted(group.addresses)
    assert sum(sum(a.completions_at) for a in last.addresses) == 200
    assert all(a.rate > 0 and not a.down for a in last.addresses)
    assert last.connections.active >= 1


def _requests(report: v1.ReportStatsRequest) -> int:
    return sum(p.requests for u in report.upstreams for p in u.peers)
