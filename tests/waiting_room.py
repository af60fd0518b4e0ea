"""Requests that wait in nginx, for tests of late binding."""

import http.client
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hooked import Hooked, hooked, until
from peers import Peer, Peers, peers

__all__ = ["HELD", "Client", "finished", "full", "known", "refused", "waiting"]

HELD = {"hold": "auto"}


def known(group: Peers, slots: int = 1) -> list[dict[str, Any]]:
    """The peers as trimtab.json has them."""
    return [{"address": a, "slots": slots} for a in group.addresses]


def waiting(nginx: Hooked) -> int:
    """Requests in the waiting room, over classes and workers."""
    return sum(int(u["waiting"]) for u in nginx.snapshot()["upstreams"])


def refused(nginx: Hooked) -> int:
    """Requests that were refused."""
    return sum(int(u["refused"]) for u in nginx.snapshot()["upstreams"])


class Client:
    """One request on a connection of its own, answered when `wait` is called."""

    def __init__(self, port: int, path: str, work: float = 0.0, body: bytes = b"") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.settimeout(20)
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Work: {work}\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self._socket.sendall(head.encode() + body)

    def wait(self) -> http.client.HTTPResponse:
        """Its answer, read as a whole."""
        with self._socket, http.client.HTTPResponse(self._socket) as response:
            response.begin()
            response.read()
            return response

    def leave(self) -> None:
        """Go away without an answer."""
        self._socket.close()


@contextmanager
def full(
    directory: Path,
    slots: int = 1,
    *,
    work: float = 0.5,
    names: Sequence[str] = ("a",),
    **more: Any,
) -> Iterator[tuple[Hooked, Peers]]:
    """An nginx with one peer, all of whose slots are taken for `work` seconds."""
    more.setdefault("hold", HELD)
    with (
        peers(Peer(slots=slots)) as group,
        hooked(directory, {n: known(group, slots) for n in names}, **more) as nginx,
    ):
        # Services are known to be long, so that the limit is the slots.
        assert nginx.get(f"/{names[0]}", x_work="0.05")[0] == 200
        until(lambda: nginx.snapshot()["addresses"][0]["limit"] == slots)
        first = [Client(nginx.port, f"/{names[0]}", work) for _ in range(slots)]
        until(lambda: nginx.in_flight() == slots)
        yield nginx, group
        for client in first:
            client.leave()
        until(nginx.is_at_rest)
        assert "failed to hold" not in nginx.log
        assert "failed to count" not in nginx.log
        assert "aborted" not in nginx.log


def finished(clients: dict[str, Client]) -> list[str]:
    """The names of the clients in the order of their answers."""
    order: list[str] = []

    def wait(name: str, client: Client) -> None:
        assert client.wait().status == 200
        order.append(name)

    threads = [threading.Thread(target=wait, args=each) for each in clients.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return order
