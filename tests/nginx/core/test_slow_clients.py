"""What slow clients hold: no slot while they upload, none once nginx has their answer."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked import Hooked, hooked, load, until
from nginx.wire.harness import get
from nginxes import configuration
from peers import Peer, Peers, peers
from ports import free_ports
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.config import split_address

# As rendered for users; the socket's own buffer is small, as a slow network leaves it.
BUFFERS = "proxy_buffer_size 8k; proxy_buffers 64 8k; proxy_busy_buffers_size 64k;"
NO_FILES = "proxy_max_temp_file_size 0;"
SIZE = 400_000


@contextlib.contextmanager
def narrow(directory: Path, **options: Any) -> Iterator[tuple[Hooked, Peers, int]]:
    """An nginx with one peer of one slot, and a port that sends through a small socket buffer."""
    (port,) = free_ports(1)
    with (
        peers(Peer()) as group,
        hooked(
            directory,
            {"a": [{"address": group[0].address, "slots": 1}]},
            server=f"listen 127.0.0.1:{port} sndbuf=8k;",
            **options,
        ) as nginx,
    ):
        yield nginx, group, port
        until(nginx.is_at_rest)


@contextlib.contextmanager
def reader(port: int, path: str, size: int) -> Iterator[socket.socket]:
    """A client that has asked for an answer of so many bytes, and reads none of it yet."""
    with socket.socket() as client:
        client.settimeout(20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Fault: size:{size}\r\n\r\n".encode())
        yield client


def read(client: socket.socket, size: int) -> None:
    """Read an answer with a body of so many bytes."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(65536)
    count = len(received.split(b"\r\n\r\n", 1)[1])
    while count < size:
        more = len(client.recv(65536))
        assert more
        count += more
    assert count == size


@pytest.mark.parametrize("hold", ["off", "on"])
def test_a_slow_reader_holds_no_slot_once_nginx_has_its_answer(tmp_path: Path, hold: str) -> None:
    """The slot is free while the client has read nothing; the request counts when it has read all,
    with the time that the server took, and is the server's success."""
    with narrow(tmp_path, extra=BUFFERS, hold={"hold": hold}) as (nginx, group, port):
        with reader(port, "/a", SIZE) as client:
            until(lambda: group[0].seen == 1 and nginx.in_flight() == 0)
            assert nginx.snapshot()["records"]["live"] == 1
            assert nginx.total("a", "requests") == 0
            assert sum(nginx.snapshot()["addresses"][0]["completions_at"]) == 1
            # The one slot is for others.
            assert nginx.get("/a")[0] == 200
            time.sleep(1)
            read(client, SIZE)
        until(nginx.is_at_rest)
        assert nginx.total("a", "requests") == 2
        assert nginx.total("a", "out_bytes") > SIZE
        assert nginx.total("a", "response_time_seconds") < 0.5
        assert sum(nginx.snapshot()["addresses"][0]["completions_at"]) == 2
        assert nginx.total("a", "failures") == 0


def test_a_slow_reader_that_goes_away_is_counted_once(tmp_path: Path) -> None:
    """Thirty readers that hang up after their slots were freed leave gauges at zero, not below."""
    with narrow(tmp_path, extra=BUFFERS) as (nginx, group, port):
        with contextlib.ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(reader(port, "/a", SIZE))
            until(lambda: group[0].seen == 30 and nginx.in_flight() == 0)
        until(nginx.is_at_rest)
        assert sum(nginx.snapshot()["addresses"][0]["completions_at"]) == 30
        assert nginx.total("a", "failures") == 0


def test_who_waits_is_bound_when_a_slow_reader_s_slot_is_freed(tmp_path: Path) -> None:
    """Requests that wait for the slot of a slow reader get it before the reader has read."""
    with narrow(tmp_path, extra=BUFFERS, hold={"hold": "on"}) as (nginx, _, port):
        # Services are known to be long, so that the limit is the slot.
        assert nginx.get("/a", x_work="0.05")[0] == 200
        until(lambda: nginx.snapshot()["addresses"][0]["limit"] == 1)
        with reader(port, "/a", SIZE) as client:
            got = asyncio.run(load(nginx.port, ["/a"], concurrency=4, count=40))
            assert got.statuses == {200: 40}
            read(client, SIZE)


def test_what_nginx_cannot_keep_holds_the_slot(tmp_path: Path) -> None:
    """An answer beyond the buffers, where nginx may write no file, keeps the server busy until the
    client has read it, and so the slot."""
    with (
        narrow(tmp_path, extra=BUFFERS + NO_FILES) as (nginx, _, port),
        reader(port, "/a", 20_000_000) as client,
    ):
        until(lambda: nginx.in_flight() == 1)
        time.sleep(0.3)
        assert nginx.in_flight() == 1
        read(client, 20_000_000)


@pytest.mark.parametrize("hold", ["off", "on"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_slow_upload_holds_no_slot(tmp_path: Path, hold: str, is_chunked: bool) -> None:
    """Two hundred kilobytes, more than nginx keeps in memory, in slow pieces: nothing is in flight
    nor waits until the last one, with a length or without."""
    size, pieces = 200_000, 20
    with (
        narrow(tmp_path, hold={"hold": hold}) as (nginx, group, port),
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        kind = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {size}"
        client.sendall(f"POST /a HTTP/1.1\r\nHost: x\r\n{kind}\r\n\r\n".encode())
        for _ in range(pieces):
            snapshot = nginx.snapshot()
            assert snapshot["addresses"][0]["in_flight"] == 0
            assert snapshot["upstreams"][0]["waiting"] == 0
            assert group[0].seen == 0
            piece = b"x" * (size // pieces)
            client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)
            time.sleep(0.02)
        if is_chunked:
            client.sendall(b"0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert group[0].seen == 1


def test_the_rendered_configuration_keeps_what_slow_readers_leave(tmp_path: Path) -> None:
    """As rendered for users: 20 MB for a client that does not read leave the server's slot."""
    with peers(Peer()) as group:
        config = configuration(tmp_path, peers=group.addresses)
        _, port = split_address(config.nginx.listen[0])
        _, internal = split_address(config.nginx.internal_listen)

        def in_flight() -> float:
            document = json.loads(get(internal, "/trimtab/status")[1])
            return float(sum(a["in_flight"] for a in document["addresses"]))

        with (
            NginxProcess.rendered(tmp_path, config),
            reader(port, "/read", 20_000_000) as client,
        ):
            until(lambda: group[0].seen == 1 and in_flight() == 0)
            read(client, 20_000_000)
