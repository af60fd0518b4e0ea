"""A private redis-server on a unix socket, without persistence, for tests."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

import certificates
import ports

PATIENCE_SECONDS = 20.0


class Redis:
    """May be started and killed again and again; `url` stays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "redis"
        self.url = f"unix://{self.socket}?db=0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, empty, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                *("redis-server", "--port", "0", "--unixsocket", str(self.socket)),
                *("--dir", str(self.directory), "--save", "", "--appendonly", "no"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + PATIENCE_SECONDS
        with self.client() as client:
            while True:
                with suppress(redis.RedisError):
                    if client.ping():
                        return
                assert time.monotonic() < end, "redis-server does not answer"
                time.sleep(0.01)

    def kill(self) -> None:
        """Kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self) -> redis.Redis:
        """A plain client."""
        return redis.Redis.from_url(self.url)


@contextmanager
def running() -> Iterator[Redis]:
    """A running server; skips the test where there is none."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server (Debian: redis-server)")
    with tempfile.TemporaryDirectory(prefix="trimtab-redis-") as directory:
        server = Redis(Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def running_with_tls(directory: Path, password: str) -> Iterator[str]:
    """A server that speaks TLS only and wants a password; gives its address, HOST:PORT, and leaves
    `authority.pem` in the directory."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server (Debian: redis-server)")
    authority = certificates.authority(directory)
    pair = certificates.signed(authority, directory, "redis")
    port = ports.free_port()
    process = subprocess.Popen(
        [
            *("redis-server", "--port", "0", "--bind", "127.0.0.1", "--tls-port", str(port)),
            *("--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key)),
            *("--tls-ca-cert-file", str(authority.certificate), "--tls-auth-clients", "no"),
            *("--requirepass", password, "--dir", str(directory)),
            *("--save", "", "--appendonly", "no"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, "redis-server ended"
            assert time.monotonic() < end, "redis-server does not listen"
            time.sleep(0.01)
        yield f"localhost:{port}"
    finally:
        process.kill()
        process.wait()
