"""Several nodes of the social network under one parent: start, watch, stop together."""

import http.client
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from trimtab.children import Child
from trimtab.demo import build
from trimtab.demo.social import NodeSettings, loopback, port_error

__all__ = ["command", "run"]

# A node imports and opens its database in half a second; slow, busy machines get a minute.
READY_SECONDS: Final = 60.0

# How often the parent looks after its children.
WATCH_SECONDS: Final = 0.1


def command(settings: NodeSettings) -> list[str]:
    """The command line of one node."""
    return [
        *(sys.executable, "-m", "trimtab", "demo"),
        *("--node", settings.address),
        *("--slots", str(settings.slots)),
        *("--slowness", repr(settings.slowness)),
        *("--variation", repr(settings.variation)),
        *("--database", str(settings.database)),
        *("--seed", str(settings.seed)),
        *("--users", str(settings.users)),
    ]


def run(nodes: Sequence[NodeSettings]) -> int:
    """Run the nodes until SIGINT or SIGTERM; the exit status, 130 or 143.

    The nodes share one database, built here before they start; each one's output goes to a file
    beside it. Raises TrimtabError naming the node when one ends by itself or cannot start; the
    others are stopped first.
    """
    for node in nodes:
        _check_free(node.address)
    ended = threading.Event()
    received: list[int] = []

    def end(number: int, _: object) -> None:
        received.append(number)
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _supervise(nodes, ended, received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervise(
    nodes: Sequence[NodeSettings], ended: threading.Event, received: Sequence[int]
) -> int:
    first = nodes[0]
    claim = build.ensure(first.database, seed=first.seed, users=first.users)
    children: list[Child] = []
    try:
        for node in nodes:
            log = first.database.with_name(f"node-{loopback(node.address)[1]}.log")
            log.unlink(missing_ok=True)
            children.append(Child(f"node {node.address}", command(node), log=log))
        for node, child in zip(nodes, children, strict=True):
            child.wait_until(partial(_settled, node.address, ended), seconds=READY_SECONDS)
        if not ended.is_set():
            for node in nodes:
                print(node.description, flush=True)
            print(f"{len(nodes)} nodes ready, database {first.database}", flush=True)
        while not ended.wait(WATCH_SECONDS):
            for child in children:
                child.check()
    finally:
        _stop(children)
        claim.release()
    return 128 + received[0]


def _stop(children: Sequence[Child]) -> None:
    for child in children:  # All at once, before any is waited for.
        if child.running:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
    for child in children:
        child.stop()


def _settled(address: str, ended: threading.Event) -> bool:
    return ended.is_set() or _healthy(address)


def _check_free(address: str) -> None:
    host, port = loopback(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise port_error(address, error) from error


def _healthy(address: str) -> bool:
    host, port = loopback(address)
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        # Another server on our port would answer too, but not in our node's name.
        return answer.status == 200 and answer.getheader("X-Trimtab-Peer") == address
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
