"""Requests byte for byte over a socket: what a library would tidy up is what tests are after."""

import socket
from dataclasses import dataclass

TIMEOUT = 20.0  # seconds; no answer takes one, but the machine may be busy


@dataclass(frozen=True)
class Answer:
    """Status, headers by lower-case name, and body."""

    status: int
    headers: dict[str, str]
    body: bytes


def receive(connection: socket.socket) -> Answer:
    """Read one answer with a Content-Length."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = {}
        while line := stream.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return Answer(status, headers, stream.read(int(headers.get("content-length", "0"))))


def exchange(address: str, raw: bytes) -> Answer:
    """Send these bytes on a connection of their own; the answer."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection:
        connection.sendall(raw)
        return receive(connection)


def get(address: str, target: str, *headers: str) -> Answer:
    """GET with the target as it stands."""
    return exchange(address, _head("GET", target, headers) + b"\r\n")


def post(address: str, target: str, body: str | bytes, *headers: str) -> Answer:
    """POST with the body as it stands, declared as a form as wrk's scripts do."""
    return exchange(address, post_bytes(target, body, *headers))


def post_bytes(target: str, body: str | bytes, *headers: str) -> bytes:
    """What `post` sends."""
    raw = body.encode() if isinstance(body, str) else body
    headers = ("Content-Type: application/x-www-form-urlencoded", *headers)
    return _head("POST", target, headers) + b"Content-Length: %d\r\n\r\n" % len(raw) + raw


def _head(method: str, target: str, headers: tuple[str, ...]) -> bytes:
    return "".join(
        f"{h}\r\n" for h in (f"{method} {target} HTTP/1.1", "Host: x", *headers)
    ).encode()
