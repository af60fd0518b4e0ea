"""PolicyService over a real connection: answers, refusals, and what a report leaves behind."""

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import serving
from trimtab.sources import reported
from trimtab.v1 import policy_pb2 as pb


@pytest.fixture
def server() -> Iterator[serving.Serving]:
    """A running server with generation 1 of epoch 5 in force."""
    with serving.serving() as running:
        yield running


def ask(running: serving.Serving, **fields) -> pb.GetWeightsResponse:
    """Call GetWeights."""
    fields = {"instance": "nginx-1"} | fields
    return running.stub.GetWeights(pb.GetWeightsRequest(**fields), timeout=serving.TIMEOUT)


def report(running: serving.Serving, **fields) -> pb.ReportStatsResponse:
    """Call ReportStats."""
    fields = {"instance": "nginx-1", "start": 1, "sequence": 1} | fields
    return running.stub.ReportStats(pb.ReportStatsRequest(**fields), timeout=serving.TIMEOUT)


def test_weights_are_answered_as_they_are_on_the_board(server: serving.Serving) -> None:
    """Every number on the board arrives: weights, rates, deadlines, time to live, interval."""
    answer = ask(server)
    assert (answer.epoch, answer.generation, answer.unchanged) == (5, 1, False)
    assert answer.time_to_live.ToNanoseconds() == 10_000_000_000
    assert answer.refresh_interval.ToNanoseconds() == 1_000_000_000
    assert [u.upstream for u in answer.upstreams] == ["u0", "u1", "u2"]
    upstream = answer.upstreams[1]
    assert upstream.deadline.ToNanoseconds() == 150_000_000
    assert upstream.service_time.ToNanoseconds() == 12_500_000
    assert [
        (p.address, p.weight, p.affinity, p.rate, p.slots, p.drain) for p in upstream.peers
    ] == [("10.0.0.1:80", 1.0, 0.5, 2.0, 3.0, False), ("10.0.0.2:80", 8 / 7, 0.5, 2.0, 3.0, False)]


def test_only_the_upstreams_asked_for_are_answered(server: serving.Serving) -> None:
    """Named upstreams come alone, in the order asked."""
    assert [u.upstream for u in ask(server, upstreams=["u2", "u0"]).upstreams] == ["u2", "u0"]


def test_current_generation_is_answered_unchanged(server: serving.Serving) -> None:
    """Who has epoch and generation in force gets no weights, but a new time to live."""
    answer = ask(server, epoch=5, generation=1)
    assert answer.unchanged
    assert not answer.upstreams
    assert answer.time_to_live.seconds == 10


@pytest.mark.parametrize(("epoch", "generation"), [(4, 1), (5, 2), (5, 0), (6, 1)])
def test_other_generations_are_answered_in_full(
    server: serving.Serving, epoch: int, generation: int
) -> None:
    """A generation of another epoch is another generation."""
    assert not ask(server, epoch=epoch, generation=generation).unchanged


def test_new_generation_is_answered_at_once(server: serving.Serving) -> None:
    """After the board changes, the next answer is the new generation and none goes back."""
    assert ask(server).generation == 1
    server.board.apply(serving.weights(server.config, generation=2))
    answer = ask(server, epoch=5, generation=1)
    assert (answer.generation, answer.unchanged) == (2, False)


def test_unknown_upstream_is_not_found_by_name(server: serving.Serving) -> None:
    """NOT_FOUND says which upstream is not configured, and where; also beside known ones."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, upstreams=["u0", "nobody"], epoch=5, generation=1)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'nobody'" in caught.value.details()
    assert "test.toml" in caught.value.details()


def test_empty_board_is_unavailable() -> None:
    """Before any weights are in force a caller is told to ask again."""
    with serving.serving(generation=0) as running, pytest.raises(grpc.RpcError) as caught:
        ask(running)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_report_arrives_as_a_snapshot(server: serving.Serving) -> None:
    """Every field of a report reaches the snapshot."""
    peer = pb.PeerStats(
        address="10.0.0.1:80", in_flight=2, requests=100, responses=[0, 90, 1, 2, 7], failures=8,
        in_bytes=11, out_bytes=12, response_time_seconds=1.5, response_time_squared=0.25,
        tardiness=63.5, tardy=9, unqueued=50, unqueued_seconds=0.75, unqueued_squared=0.125,
        response_time_buckets=range(36), in_flight_seconds=3.5,
    )  # fmt: skip
    server_stats = pb.AddressStats(
        address="10.0.0.1:80", busy_seconds=4.5, completions_at=range(32),
        seconds_at=[n / 2 for n in range(32)], rate=1.25, error_ratio=0.07, down=True,
    )  # fmt: skip
    answer = report(
        server,
        start=77,
        clock_seconds=12.5,
        generation=1,
        connections={"active": 4, "reading": 1, "writing": 2, "waiting": 3},
        upstreams=[pb.UpstreamStats(upstream="u1", waiting=6, peers=[peer])],
        addresses=[server_stats],
    )
    assert answer.accepted
    assert not answer.unknown
    (snapshot,) = server.source.read()
    assert (snapshot.instance, snapshot.start) == ("nginx-1", 77)
    assert (snapshot.clock_seconds, snapshot.generation) == (12.5, 1)
    assert snapshot.waiting == {"u1": 6}
    connections = snapshot.connections
    assert (connections.active, connections.reading) == (4, 1)
    assert (connections.writing, connections.waiting) == (2, 3)
    pair = snapshot.pairs["u1"]["10.0.0.1:80"]
    for name in type(pair).__slots__:
        sent = getattr(peer, "response_time_buckets" if name == "buckets" else name)
        assert getattr(pair, name) == (tuple(sent) if hasattr(sent, "append") else sent), name
    counters = snapshot.addresses["10.0.0.1:80"]
    for name in type(counters).__slots__:
        sent = getattr(server_stats, name)
        assert getattr(counters, name) == (tuple(sent) if hasattr(sent, "append") else sent), name


def test_report_sent_twice_counts_once(server: serving.Serving) -> None:
    """A retry and a late older report are answered "not accepted" and change nothing."""
    peers = [pb.PeerStats(address="10.0.0.1:80", requests=9)]
    upstreams = [pb.UpstreamStats(upstream="u0", peers=peers)]
    assert report(server, sequence=3, upstreams=upstreams).accepted
    before = server.source.read()
    peers[0].requests = 1
    assert not report(server, sequence=3, upstreams=upstreams).accepted
    assert not report(server, sequence=2, upstreams=upstreams).accepted
    assert server.source.read() == before


def test_a_report_is_answered_what_it_wants(server: serving.Serving) -> None:
    """Weights asked for in a report are those of GetWeights, whole or unchanged; who asks for
    none gets none."""
    for fields in ({}, {"upstreams": ["u2", "u0"]}, {"epoch": 5, "generation": 1}):
        answer = report(server, sequence=9, weights_wanted=pb.WeightsWanted(**fields))
        assert answer.weights == ask(server, **fields)
    assert ask(server).reads_columns
    assert not report(server).HasField("weights")


def test_what_is_not_to_be_had_is_left_out(server: serving.Serving) -> None:
    """A report that asks for an unknown upstream counts all the same, and has no weights in its
    answer; a name out of bounds is refused as in GetWeights."""
    answer = report(server, weights_wanted=pb.WeightsWanted(upstreams=["nobody"]))
    assert answer.accepted
    assert not answer.HasField("weights")
    with pytest.raises(grpc.RpcError) as error:
        report(server, weights_wanted=pb.WeightsWanted(upstreams=["u0", ""]))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "weights_wanted.upstreams[1] is ''" in error.value.details()


def test_unknown_names_are_listed_and_ignored(server: serving.Serving) -> None:
    """Unknown upstreams, and addresses at known ones, are named, at most 16, and left out."""
    strangers = [pb.PeerStats(address=f"10.9.9.{n}:80") for n in range(20)]
    answer = report(
        server,
        upstreams=[
            pb.UpstreamStats(upstream="u0", peers=[pb.PeerStats(address="10.0.0.2:80")]),
            pb.UpstreamStats(upstream="nobody", peers=strangers[:1]),
            pb.UpstreamStats(upstream="u1", peers=strangers),
        ],
        addresses=[pb.AddressStats(address="10.9.9.1:80"), pb.AddressStats(address="10.0.0.1:80")],
    )
    assert answer.accepted
    assert list(answer.unknown) == ["nobody", *(f"10.9.9.{n}:80" for n in range(15))]
    (snapshot,) = server.source.read()
    assert {u: list(p) for u, p in snapshot.pairs.items()} == {"u0": ["10.0.0.2:80"], "u1": []}
    assert list(snapshot.addresses) == ["10.0.0.1:80"]
    assert snapshot.waiting == {"u0": 0, "u1": 0}


def test_no_room_for_another_balancer_is_exhausted(
    server: serving.Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A balancer for which there is no room gets RESOURCE_EXHAUSTED with the bound."""
    monkeypatch.setattr(reported, "MAX_INSTANCES", 1)
    report(server)
    with pytest.raises(grpc.RpcError) as caught:
        report(server, instance="nginx-2")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 1 balancers are held" in caught.value.details()


def test_calls_are_observed_with_method_and_status(server: serving.Serving) -> None:
    """Each call is counted under its method and status."""
    ask(server)
    report(server)
    with pytest.raises(grpc.RpcError):
        ask(server, instance="")
    assert server.calls == [
        ("GetWeights", "OK"),
        ("ReportStats", "OK"),
        ("GetWeights", "INVALID_ARGUMENT"),
    ]


@pytest.mark.parametrize("service", ["", "trimtab.v1.PolicyService"])
def test_health_is_serving_until_the_server_stops(server: serving.Serving, service: str) -> None:
    """The standard health service answers SERVING, then NOT_SERVING to those who watch."""
    health = health_pb2_grpc.HealthStub(server.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    statuses = health_pb2.HealthCheckResponse
    answer = health.Check(request, timeout=serving.TIMEOUT)
    assert answer.status == statuses.SERVING
    watch = health.Watch(request, timeout=serving.TIMEOUT)
    assert next(watch).status == statuses.SERVING
    stopped = server.stop()
    assert next(watch).status == statuses.NOT_SERVING
    watch.cancel()  # or the server waits for it to the end of its grace
    stopped.result(serving.TIMEOUT)


def test_health_of_another_service_is_not_found(server: serving.Serving) -> None:
    """The health of a service that is not here is NOT_FOUND, as the standard says."""
    request = health_pb2.HealthCheckRequest(service="other")
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(server.channel).Check(request, timeout=serving.TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_unknown_method_is_unimplemented(server: serving.Serving) -> None:
    """A method that PolicyService does not have is UNIMPLEMENTED."""
    with pytest.raises(grpc.RpcError) as caught:
        server.raw("SetWeights")(b"", timeout=serving.TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
