"""gRPC from Lua over the nginx bridge, with a real policy server and with broken ones."""

import contextlib
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nginx.policy_server import PolicyServer, policy_server
from nginx.wire import golden
from nginx.wire.harness import LUA, decoded, encoded, nginx, post_json
from ports import free_port
from trimtab.v1 import policy_pb2

INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 3, 4, 8, 13, 14


class Bridge:
    """An nginx with the bridge and a location that calls over it."""

    def __init__(self, port: int, bridge_port: int, policy_port: int, directory: Path) -> None:
        self.port = port
        self.bridge_port = bridge_port
        self.policy_port = policy_port
        self.directory = directory

    def call(self, **request: Any) -> dict[str, Any]:
        """One call: {"body"?, "err"?, "status", "milliseconds"}."""
        defaults = {"host": "127.0.0.1", "port": self.bridge_port}
        answer: dict[str, Any] = post_json(self.port, "/grpc/call", defaults | request)
        return answer

    def check(self, function: str, **request: Any) -> Any:
        """Run another function of grpc_checks.lua."""
        defaults = {"host": "127.0.0.1", "port": self.bridge_port}
        return post_json(self.port, f"/grpc/{function}", defaults | request)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A running bridge; nothing listens at its policy port yet."""
    port, bridge_port, policy_port = free_port(), free_port(), free_port()
    directory = tmp_path_factory.mktemp("bridge")
    http = f"""
    log_format kept '$connection $status';
    upstream trimtab_policy {{ server 127.0.0.1:{policy_port} max_fails=0; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{ content_by_lua_file {LUA}/serve_checks.lua; }}
    }}
    server {{
        listen 127.0.0.1:{bridge_port};
        listen unix:{directory}/bridge.sock;
        access_log logs/bridge.log kept;
        location /trimtab.v1.PolicyService/ {{
            client_max_body_size 9m;
            grpc_pass grpc://trimtab_policy;
            grpc_set_header TE trailers;
            grpc_connect_timeout 1s;
            grpc_next_upstream off;
        }}
    }}"""
    with nginx(directory, http, port):
        yield Bridge(port, bridge_port, policy_port, directory)


@pytest.fixture(scope="module")
def shared_server(bridge: Bridge) -> Iterator[PolicyServer]:
    """A real policy server behind the bridge, for the tests that leave it alive."""
    with policy_server(bridge.policy_port) as server:
        yield server


@pytest.fixture
def server(shared_server: PolicyServer) -> PolicyServer:
    """The real policy server, answering an empty message."""
    shared_server.set()
    return shared_server


def test_a_call_brings_the_response(bridge: Bridge, server: PolicyServer) -> None:
    """The policy server gets the request's bytes, and Lua gets the bytes that it answered."""
    server.set(weights=golden.weights(2, 3))
    request = policy_pb2.GetWeightsRequest(instance="edge-1", epoch=5, generation=6)
    answer = bridge.call(body=encoded(request.SerializeToString()))
    assert "err" not in answer
    assert answer["status"] == 0
    response = policy_pb2.GetWeightsResponse.FromString(decoded(answer["body"]))
    assert golden.table(response) == golden.table(
        golden.fill(policy_pb2.GetWeightsResponse(), golden.weights(2, 3))
    )
    (seen,) = server.set()
    assert seen["request"]["instance"] == "edge-1"
    assert seen["request"]["generation"] == 6


def test_an_empty_response_is_a_response(bridge: Bridge, server: PolicyServer) -> None:
    """A message of no bytes is a success, not a missing answer."""
    server.set(raw="")
    assert bridge.call()["body"] == ""


def test_the_bridge_may_be_a_unix_socket(bridge: Bridge, server: PolicyServer) -> None:
    """A host of "unix:/path" without a port works like an address."""
    server.set(raw="0801")
    answer = post_json(bridge.port, "/grpc/call", {"host": f"unix:{bridge.directory}/bridge.sock"})
    assert decoded(answer["body"]) == b"\x08\x01"


def test_a_large_report_gets_through(bridge: Bridge, server: PolicyServer) -> None:
    """A report of more than a megabyte, which nginx keeps in a file, arrives whole."""
    report = golden.report(5, 1000)
    data = golden.message_bytes("report_stats_request", report)
    assert len(data) > 1_000_000
    answer = bridge.call(method="ReportStats", body=encoded(data), timeout_ms=5000)
    assert policy_pb2.ReportStatsResponse.FromString(decoded(answer["body"])).accepted
    (seen,) = server.set()
    assert seen["request"]["upstreams"][3]["peers"][999]["requests"] > 0


def test_an_error_brings_code_and_message(bridge: Bridge, server: PolicyServer) -> None:
    """INVALID_ARGUMENT arrives as 3 with its message, decoded and safe to print on one line."""
    server.set(code="INVALID_ARGUMENT", message="upstreams[0]: 100% of names\n must be äscii")
    answer = bridge.call()
    assert "body" not in answer
    assert answer["status"] == INVALID_ARGUMENT
    assert answer["err"] == "status 3: upstreams[0]: 100% of names? must be ??scii"


def test_an_unknown_method_is_unimplemented(bridge: Bridge, server: PolicyServer) -> None:
    """A method that the server does not have gives status 12."""
    assert server.process.poll() is None
    assert bridge.call(method="Nothing")["status"] == 12


def test_a_slow_server_costs_no_more_than_the_timeout(bridge: Bridge, server: PolicyServer) -> None:
    """A call ends at its timeout, and the next one does not see the late answer."""
    server.set(delay=10, raw="0801")
    answer = bridge.call(timeout_ms=200)
    assert answer["status"] == DEADLINE_EXCEEDED
    assert 150 < answer["milliseconds"] < 9000, "not before its time, nor with the late answer"
    server.set(raw="0802")
    assert decoded(bridge.call()["body"]) == b"\x08\x02"


def test_connections_are_kept(bridge: Bridge, server: PolicyServer) -> None:
    """Fifty calls in a row go over one connection to the bridge."""
    server.set(weights=golden.weights(1, 1))
    log = bridge.directory / "logs" / "bridge.log"
    before = len(log.read_text().splitlines())
    assert "err" not in bridge.check("weights", count=50)
    lines = log.read_text().splitlines()[before:]
    assert len(lines) == 50
    assert len({line.split()[0] for line in lines}) == 1


def test_an_oversized_response_is_refused(bridge: Bridge, server: PolicyServer) -> None:
    """More than 8 MiB is not read, and the next call works."""
    server.set(raw="12" + "80808004" + "61" * (8 * 1024 * 1024))
    answer = bridge.call(timeout_ms=10_000)
    assert answer["status"] == RESOURCE_EXHAUSTED
    assert "more than" in answer["err"]
    server.set(raw="0801")
    assert decoded(bridge.call()["body"]) == b"\x08\x01"


def test_get_weights_with_a_thousand_peers(bridge: Bridge, server: PolicyServer) -> None:
    """GetWeights with 1000 peers, encoded, called and decoded by Lua; the median is printed."""
    weights = golden.weights(1, 1000)
    raw = golden.message_bytes("get_weights_response", weights).hex()
    for what, behaviour in (
        ("the server makes the message", {"weights": weights}),
        ("the server has the bytes", {"raw": raw}),
    ):
        server.set(**behaviour)
        answer = bridge.check("weights", count=60)
        assert len(answer["response"]["upstreams"][0]["peers"]) == 1000
        times = sorted(answer["milliseconds"][10:])
        print(
            f"\nGetWeights, 1000 peers, from Lua, {what}: median "
            f"{statistics.median(times):.2f} ms, p90 {times[44]:.2f} ms, max {times[-1]:.2f} ms"
        )


def test_misuse_gives_an_error_and_throws_nothing(bridge: Bridge) -> None:
    """Arguments of wrong types come back as errors, so that a timer needs no pcall."""
    for name, outcome in bridge.check("misuse").items():
        assert outcome["ok"], name
        assert not outcome["has_body"], name
        assert "failed to " in outcome["err"], name


def drain(connection: socket.socket) -> None:
    """Read until the other side closes."""
    while connection.recv(65536):
        pass


@contextlib.contextmanager
def raw_server(port: int, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A TCP server on loopback that hands every connection to `serve`, one at a time."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(0.1)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(5)
                    serve(connection)
                    connection.shutdown(socket.SHUT_WR)
                    # Closing with bytes unread would be a reset, which may overtake the answer.
                    drain(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def down(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """A bridge whose policy port each test uses for itself."""
    port, bridge_port, policy_port = free_port(), free_port(), free_port()
    directory = tmp_path_factory.mktemp("down")
    http = f"""
    server {{
        listen 127.0.0.1:{port};
        location / {{ content_by_lua_file {LUA}/serve_checks.lua; }}
    }}
    server {{
        listen 127.0.0.1:{bridge_port};
        location /trimtab.v1.PolicyService/ {{
            grpc_pass grpc://127.0.0.1:{policy_port};
            grpc_set_header TE trailers;
            grpc_read_timeout 1s;
            grpc_next_upstream off;
        }}
    }}"""
    with nginx(directory, http, port):
        yield Bridge(port, bridge_port, policy_port, directory)


def test_a_policy_server_that_is_down_is_unavailable(down: Bridge) -> None:
    """With nothing at the policy port the call fails at once and says so."""
    answer = down.call()
    assert answer["status"] == UNAVAILABLE
    assert answer["err"] == "the bridge answered 502, the policy server is down"


def test_a_bridge_that_is_down_is_unavailable(down: Bridge) -> None:
    """With nothing at the bridge's port the call fails at once and names the address."""
    port = free_port()
    answer = down.call(port=port)
    assert answer["status"] == UNAVAILABLE
    assert f"failed to connect to 127.0.0.1:{port}" in answer["err"]


def test_a_policy_server_killed_in_mid_call_is_an_error(down: Bridge) -> None:
    """kill -9 while the call waits ends the call at once; the server's return mends it."""
    with policy_server(down.policy_port) as server:
        server.set(delay=30)
        killer = threading.Timer(0.3, server.kill)
        killer.start()
        answer = down.call(timeout_ms=20_000)
        killer.join()
    assert answer["status"] == UNAVAILABLE, "not DEADLINE_EXCEEDED: it did not wait for its time"
    with policy_server(down.policy_port) as server:
        server.set(raw="0801")
        assert decoded(down.call()["body"]) == b"\x08\x01"


def test_the_bridge_s_own_timeout_is_a_timeout(down: Bridge) -> None:
    """A 504 of the bridge (grpc_read_timeout) is DEADLINE_EXCEEDED as well."""
    with policy_server(down.policy_port) as server:
        server.set(delay=30)
        answer = down.call(timeout_ms=5000)
    assert answer["status"] == DEADLINE_EXCEEDED
    assert "504" in answer["err"]


def h2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return (
        struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream)
    ) + payload


def h2_headers(flags: int, *pairs: tuple[bytes, bytes]) -> bytes:
    """A HEADERS frame of stream 1, all as literals."""
    block = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs
    )
    return h2_frame(1, flags, 1, block)


SETTINGS = h2_frame(4, 0, 0) + h2_frame(4, 1, 0)
HEADERS = h2_headers(4, (b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS = h2_headers(5, (b"grpc-status", b"0"))
GREETING = b"\0\0\0\0\x02\x08\x01"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(b"\x00\xff rubbish \r\n\r\n" * 50, "502", id="rubbish"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "502", id="http1"),
        pytest.param(b"", "502", id="nothing"),
        pytest.param(SETTINGS + HEADERS, "closed", id="headers-only"),
        pytest.param(SETTINGS + HEADERS + h2_frame(0, 0, 1, GREETING), "closed", id="no-trailers"),
        pytest.param(
            SETTINGS + HEADERS + h2_frame(0, 0, 1, b"\0\0\0\0\x09\x08\x01") + TRAILERS,
            "not one whole message",
            id="truncated-message",
        ),
        pytest.param(
            SETTINGS + HEADERS + h2_frame(0, 0, 1, GREETING + GREETING) + TRAILERS,
            "not one whole message",
            id="two-messages",
        ),
        pytest.param(
            SETTINGS + HEADERS + h2_frame(0, 0, 1, b"\0\0\0") + TRAILERS, "no message", id="stump"
        ),
        pytest.param(SETTINGS + HEADERS + TRAILERS, "no message", id="no-message"),
        pytest.param(
            SETTINGS + HEADERS + h2_frame(0, 0, 1, b"\x01\0\0\0\x02\x08\x01") + TRAILERS,
            "compressed",
            id="compressed",
        ),
        pytest.param(
            SETTINGS + HEADERS + h2_frame(0, 1, 1, GREETING), "no grpc-status", id="no-status"
        ),
        pytest.param(
            SETTINGS
            + HEADERS
            + h2_frame(0, 0, 1, GREETING)
            + h2_headers(5, (b"grpc-status", b"0x1")),
            "bad grpc-status",
            id="bad-status",
        ),
    ],
)
def test_a_server_that_speaks_rubbish_is_an_error(down: Bridge, answer: bytes, error: str) -> None:
    """Whatever a server on the policy port sends, the call returns an error and a status."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)
        if error not in ("502", "closed"):
            drain(connection)

    with raw_server(down.policy_port, serve):
        outcome = down.call(timeout_ms=3000)
    assert "body" not in outcome
    assert error in outcome["err"]
    assert outcome["status"] in (2, INTERNAL, UNAVAILABLE)


def test_hand_made_frames_that_are_right_are_accepted(down: Bridge) -> None:
    """The frames of the cases above, put together rightly, are an answer."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(SETTINGS + HEADERS + h2_frame(0, 0, 1, GREETING) + TRAILERS)
        drain(connection)

    with raw_server(down.policy_port, serve):
        assert decoded(down.call()["body"]) == b"\x08\x01"


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DONE = b"0\r\ngrpc-status: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP/1.1", id="ssh"),
        pytest.param(b"\r\n\r\n", "not HTTP/1.1", id="empty-lines"),
        pytest.param(b"x" * 100_000 + b"\r\n", "line of more than 8192 bytes", id="long-line"),
        pytest.param(OK + b"a: b\r\n" * 200, "more than 100 header lines", id="many-headers"),
        pytest.param(OK + b"nonsense\r\n\r\n", "header line without a name", id="no-colon"),
        pytest.param(OK + b"\r\n", "no length", id="no-length"),
        pytest.param(OK + b"Content-Length: -5\r\n\r\n", "no length", id="negative-length"),
        pytest.param(
            OK + b"Content-Length: 99999999999999999999\r\n\r\n", "answer of more", id="huge-length"
        ),
        pytest.param(
            OK + b"Transfer-Encoding: gzip\r\n\r\n", "other than chunked", id="other-coding"
        ),
        pytest.param(CHUNKED + b"zz\r\n", "chunk without a size", id="no-chunk-size"),
        pytest.param(CHUNKED + b"\r\n", "chunk without a size", id="empty-chunk-size"),
        pytest.param(CHUNKED + b"-1\r\n", "chunk without a size", id="negative-chunk"),
        pytest.param(CHUNKED + b"ffffffffffff\r\n", "answer of more", id="huge-chunk"),
        pytest.param(CHUNKED + b"2\r\nabcd", "chunk without an end", id="chunk-too-long"),
        pytest.param(CHUNKED + b"5\r\nabc", "closed", id="chunk-cut"),
        pytest.param(CHUNKED + b"7\r\n" + GREETING + b"\r\n0\r\n", "closed", id="trailers-cut"),
        pytest.param(OK + b"Content-Length: 10\r\n\r\nabc", "closed", id="body-cut"),
        pytest.param(OK[:9], "closed", id="status-cut"),
        pytest.param(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n", "413", id="413"),
    ],
)
def test_a_bridge_that_speaks_rubbish_is_an_error(down: Bridge, answer: bytes, error: str) -> None:
    """Whatever is sent in place of HTTP/1.1, the call returns an error that says what was wrong."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    port = free_port()
    with raw_server(port, serve):
        outcome = down.call(port=port, timeout_ms=3000)
    assert "body" not in outcome
    assert error in outcome["err"]


def test_a_bridge_that_drips_is_cut_at_the_timeout(down: Bridge) -> None:
    """A byte now and then does not extend the call: the timeout bounds it as a whole."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        for byte in CHUNKED * 3:
            connection.sendall(bytes([byte]))
            time.sleep(0.2)

    port = free_port()
    with raw_server(port, serve):
        outcome = down.call(port=port, timeout_ms=300)
    assert outcome["status"] == DEADLINE_EXCEEDED
    assert outcome["milliseconds"] < 200 * len(CHUNKED), "before the answer was whole"


def test_a_kept_connection_that_was_closed_is_replaced(down: Bridge) -> None:
    """When the bridge closed the kept connection, the call is made again on a new one."""
    whole = CHUNKED + b"7\r\n" + GREETING + b"\r\n" + DONE
    connections = []

    def serve(connection: socket.socket) -> None:
        connections.append(connection.recv(65536))
        connection.sendall(whole)
        if len(connections) == 1:
            # The second request on this connection is read and never answered.
            connection.recv(65536)

    port = free_port()
    with raw_server(port, serve):
        for _ in range(2):
            assert decoded(down.call(port=port)["body"]) == b"\x08\x01"
    assert len(connections) == 2
