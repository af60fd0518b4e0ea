"""Who gets an answer over gRPC: TLS, mutual TLS, the balancers' token, limits, reflection."""

import os
import stat
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import serving
from certificates import Pair, authority, signed
from trimtab import bearer, tls
from trimtab.config import Policy
from trimtab.errors import ConfigError
from trimtab.server import Secrets
from trimtab.v1 import policy_pb2 as pb

TOKEN = "n0t-a-secret-0f-anybody"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """An authority; its directory takes what it signs."""
    return authority(tmp_path_factory.mktemp("certificates"))


def secrets(root: Pair, *, mutual: bool) -> Secrets:
    """The server's side of TLS."""
    pair = signed(root, root.key.parent, "server")
    policy = Policy(
        tls_certificate=pair.certificate,
        tls_key=pair.key,
        tls_client_ca=root.certificate if mutual else None,
    )
    return Secrets(tls=tls.credentials(policy))


def status(running: serving.Serving, **options: object) -> grpc.StatusCode:
    """What GetWeights ends with."""
    request = pb.GetWeightsRequest(instance="a")
    try:
        running.stub.GetWeights(request, timeout=serving.TIMEOUT, **options)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_tls_answers_those_who_trust_its_authority(root: Pair) -> None:
    """A client with the authority gets weights; one without TLS gets none."""
    client = grpc.ssl_channel_credentials(root.certificate.read_bytes())
    with serving.serving(secrets=secrets(root, mutual=False), credentials=client) as running:
        assert status(running) is grpc.StatusCode.OK
        with grpc.insecure_channel(running.config.policy.listen) as plain:
            with pytest.raises(grpc.RpcError) as caught:
                plain.unary_unary("/trimtab.v1.PolicyService/GetWeights")(b"", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("who", ["balancer", "nobody", "stranger"])
def test_mutual_tls_answers_its_own_balancers_only(who: str, root: Pair, tmp_path: Path) -> None:
    """Without a certificate of the authority in tls_client_ca there is no call."""
    by = {"balancer": root, "stranger": authority(tmp_path, "stranger"), "nobody": None}[who]
    pair = signed(by, tmp_path, "client") if by else None
    client = grpc.ssl_channel_credentials(
        root.certificate.read_bytes(),
        pair.key.read_bytes() if pair else None,
        pair.certificate.read_bytes() if pair else None,
    )
    with serving.serving(secrets=secrets(root, mutual=True), credentials=client) as running:
        expected = grpc.StatusCode.OK if who == "balancer" else grpc.StatusCode.UNAVAILABLE
        assert status(running) is expected


def test_balancers_without_the_token_get_nothing() -> None:
    """UNAUTHENTICATED without or with another token, and the report is not taken; health needs
    none."""
    with serving.serving(secrets=Secrets(token=TOKEN)) as running:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", TOKEN),)):
            assert status(running, metadata=metadata) is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as caught:
                running.stub.ReportStats(
                    pb.ReportStatsRequest(instance="a", start=1, sequence=1), metadata=metadata
                )
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert TOKEN not in caught.value.details()
        assert running.source.instances() == ()
        right = (("authorization", f"Bearer {TOKEN}"),)
        assert status(running, metadata=right) is grpc.StatusCode.OK
        health = health_pb2_grpc.HealthStub(running.channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=serving.TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_token_that_nginx_would_expand_is_refused(tmp_path: Path) -> None:
    """A '$' in the balancers' token is told before anything starts, without the token."""
    file = tmp_path / "token"
    file.write_text("abc$defghijklmnopq\n")
    with pytest.raises(ConfigError, match=r"has a '\$'") as caught:
        bearer.balancer_token(Policy(balancer_token_file=file))
    assert "abc$def" not in str(caught.value)
    file.write_text(TOKEN + "\n")
    assert bearer.balancer_token(Policy(balancer_token_file=file)) == TOKEN


@pytest.mark.parametrize("wanted", [False, True])
def test_reflection_is_there_when_it_is_wanted(wanted: bool) -> None:
    """Off it is UNIMPLEMENTED; on it lists PolicyService."""
    with serving.serving(policy=f"reflection = {str(wanted).lower()}") as running:
        stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = stub.ServerReflectionInfo(iter([request]), timeout=serving.TIMEOUT)
        if not wanted:
            with pytest.raises(grpc.RpcError) as caught:
                next(answers)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            return
        names = [s.name for s in next(answers).list_services_response.service]
        assert "trimtab.v1.PolicyService" in names


def test_a_larger_message_than_configured_is_refused() -> None:
    """Beyond max_message_bytes a report is RESOURCE_EXHAUSTED, and the server goes on."""
    with serving.serving(policy="max_message_bytes = 65536") as running:
        with pytest.raises(grpc.RpcError) as caught:
            running.raw("ReportStats")(bytes(65537), timeout=serving.TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert status(running) is grpc.StatusCode.OK


def test_an_old_connection_is_replaced_without_a_failed_call() -> None:
    """At its age a connection is closed (the channel is idle for a moment), and no call fails."""
    with serving.serving(policy="max_connection_age_seconds = 1") as running:
        states: list[grpc.ChannelConnectivity] = []
        running.channel.subscribe(states.append)
        until = time.monotonic() + serving.TIMEOUT
        while states.count(grpc.ChannelConnectivity.READY) < 2:
            assert time.monotonic() < until, states
            assert status(running, wait_for_ready=True) is grpc.StatusCode.OK


def test_the_socket_is_for_owner_and_group() -> None:
    """A unix socket has mode 0660 whatever the umask is."""
    before = os.umask(0)
    try:
        with serving.serving() as running:
            mode = Path(running.config.policy.listen.removeprefix("unix:")).stat().st_mode
    finally:
        os.umask(before)
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
