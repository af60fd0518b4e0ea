"""Ports for servers that a test starts.

From below the range that the kernel takes the ports of outgoing connections from (32768 and up, by
default): one of those may be taken between the moment when a test finds it free and the moment when
a server listens there. Each process of pytest-xdist has a part of its own, and takes from it in
turn, so that nobody is given a port twice in a row.
"""

import os
import random
import socket
from itertools import count
from typing import Final

__all__ = ["free_port", "free_ports"]

# Above what the demo and the configuration's defaults use (18080 to 19003).
FIRST: Final = 20_000
PER_WORKER: Final = 3_000
WORKERS: Final = 4

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_start = FIRST + _worker * PER_WORKER
# Not from the beginning each time: of the run before connections may still be in TIME_WAIT.
_turns = count(random.SystemRandom().randrange(PER_WORKER))


def free_ports(wanted: int) -> list[int]:
    """So many ports on 127.0.0.1 that nothing listens on."""
    return [free_port() for _ in range(wanted)]


def free_port(consecutive: int = 1) -> int:
    """The first of so many ports in a row on 127.0.0.1 that nothing listens on."""
    while True:
        first = _start + next(_turns) % PER_WORKER
        ports = range(first, first + consecutive)
        if ports[-1] < _start + PER_WORKER and all(map(_free, ports)):
            for _ in ports[1:]:
                next(_turns)
            return first


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
