"""Sends a plan of requests on the absolute clock, in one event loop, and records what happens.

Open loop: the plan says when; what the server does, and how late this process is, changes
nothing about it. A late generator sends what is due at once, in order, and skips nothing.

A request takes the idle connection that was used last, or opens one: the pool has no upper
bound, because any bound would turn the open loop into a closed one.
"""

import asyncio
import contextlib
import errno
import math
import resource
import socket
import time
from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtab.alarm import open_alarm
from trimtab.errors import ConfigError
from trimtab.load.connection import Connection
from trimtab.load.plan import Plan, Target
from trimtab.load.records import FIELDS, Ending

__all__ = ["GRACE_SECONDS", "TIMEOUT_SECONDS", "Drive", "raise_descriptor_limit"]

# A whole answer must be here this long after the send. As long as nginx's own default timeouts,
# so that a balancer that waits for them is seen to do so.
TIMEOUT_SECONDS: Final = 60.0
# How long an interrupted run waits for what is in flight.
GRACE_SECONDS: Final = 1.0
# Sends in one turn of the event loop when the generator is behind: answers must get their turn
# too, or their times would be measured late.
BATCH: Final = 32
# How often timeouts are looked for. One is recorded up to this late, little beside its length.
TICK_SECONDS: Final = 0.05
# Distinct names of peers that are kept; a server that names each answer is no peer's name.
MAX_PEERS: Final = 30_000
# Errors of connect() that are this machine's doing, not the server's.
_LOCAL: Final = frozenset(
    (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
)


class Drive:
    """One plan being sent. Afterwards `columns` holds a column of `FIELDS` each, shape (n,).

    `sent` rows are filled (all, unless the drive was stopped), and `peers` are the names that
    column "peer" points to.
    """

    def __init__(self, what: Plan, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        count = len(what)
        self.columns: dict[str, NDArray[Any]] = {
            name: np.zeros(count, dtype=kind) for name, kind in FIELDS.items()
        }
        for name in ("send", "first_byte", "end"):
            self.columns[name].fill(math.nan)
        self.columns["peer"].fill(-1)
        self.peers: dict[str, int] = {}
        self.sent = self.done = self.failed = 0
        self._count = count
        self._timeout_seconds = timeout_seconds
        self._times = _view(what.times)
        self._payload = _view(what.payload)
        self._work = _view(what.work_seconds)
        self._payloads = what.payloads
        self._whole = [head + rest for head, rest in what.payloads]
        views = {name: _view(column) for name, column in self.columns.items()}
        self._send_at, self._first_at, self._end_at = (
            views[n] for n in ("send", "first_byte", "end")
        )
        self._status, self._ending, self._peer = (views[n] for n in ("status", "ending", "peer"))
        self._reused, self._received = views["reused"], views["received_bytes"]
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._timeouts: deque[tuple[float, Connection, int]] = deque()
        self._start = 0.0
        self._stopped = False

    async def run(self, where: Target, *, start: float, stop: asyncio.Event | None = None) -> None:
        """Send everything, counted from `start` on `time.monotonic()`, and wait for the ends.

        When `stop` is set, nothing more is sent, what is in flight gets GRACE_SECONDS, and what
        has not ended by then is CUT. Raises ConfigError when the host's name is not known.
        """
        self._loop = asyncio.get_running_loop()
        self._address = await _resolve(where)
        self._start = start
        self._over = self._loop.create_future()
        self._alarm = open_alarm(self._loop, self._pump)
        try:
            self._pump()
            while not self._over.done():
                await asyncio.wait((self._over,), timeout=TICK_SECONDS)
                self._expire()
                if stop is not None and stop.is_set() and not self._stopped:
                    self._stopped = True
                    self._loop.call_later(GRACE_SECONDS, self._cut)
                    self._check_over()
        finally:
            self._stopped = True
            self._alarm.close()
            opening = [c.opening for c in self._open if c.opening is not None]
            for connection in tuple(self._open):
                connection.close()
            await asyncio.gather(*opening, return_exceptions=True)

    @property
    def elapsed_seconds(self) -> float:
        """Since the start of the run."""
        return time.monotonic() - self._start

    def _pump(self) -> None:
        """Send what is due; come back when the next request is."""
        if self._stopped:
            return
        number = self.sent
        last = min(number + BATCH, self._count)
        times = self._times
        while number < last:
            now = time.monotonic() - self._start
            if times[number] > now:
                break
            self._send(number, now)
            number += 1
        self.sent = number
        if number == self._count:
            self._check_over()
        elif number == last:
            self._loop.call_soon(self._pump)
        else:
            self._alarm.set(self._start + times[number])

    def _send(self, number: int, now: float) -> None:
        payload = self._payload[number]
        work = self._work[number]
        if math.isnan(work):
            data = self._whole[payload]
        else:
            data = b"%bX-Trimtab-Work: %.7g\r\n%b" % (
                self._payloads[payload][0],
                work,
                self._payloads[payload][1],
            )
        self._send_at[number] = now
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.closed:
                self._reused[number] = True
                connection.send(number, data)
                break
        else:
            connection = Connection(self)
            self._open.add(connection)
            connection.send(number, data)
            connection.opening = self._loop.create_task(self._connect(connection))
        self._timeouts.append((now + self._timeout_seconds, connection, number))

    async def _connect(self, connection: Connection) -> None:
        try:
            await self._loop.create_connection(lambda: connection, *self._address)
        except ConnectionRefusedError:
            ending = Ending.REFUSED
        except TimeoutError:
            ending = Ending.TIMEOUT
        except OSError as error:
            ending = Ending.LOCAL if error.errno in _LOCAL else Ending.UNREACHABLE
        else:
            return
        self.gone(connection)
        if connection.index >= 0:
            connection.abandon(ending)

    def _expire(self) -> None:
        now = time.monotonic() - self._start
        timeouts = self._timeouts
        while timeouts and (timeouts[0][0] <= now or timeouts[0][1].index != timeouts[0][2]):
            _, connection, number = timeouts.popleft()
            if connection.index == number:
                connection.abandon(Ending.TIMEOUT)

    def _cut(self) -> None:
        for connection in tuple(self._open):
            if connection.index >= 0:
                connection.abandon(Ending.CUT)

    def _check_over(self) -> None:
        all_sent = self._stopped or self.sent == self._count
        if all_sent and self.done == self.sent and not self._over.done():
            self._over.set_result(None)

    # Owner of the connections

    def first_byte(self, index: int) -> None:
        """Note when the answer began."""
        self._first_at[index] = time.monotonic() - self._start

    def peer(self, index: int, name: bytes) -> None:
        """Note who answered."""
        text = name.decode("latin-1")
        number = self.peers.get(text)
        if number is None:
            if len(self.peers) >= MAX_PEERS:
                return
            number = self.peers[text] = len(self.peers)
        self._peer[index] = number

    def ended(self, connection: Connection, ending: Ending, status: int) -> None:
        """Record how the request of this connection ended."""
        number = connection.index
        self._end_at[number] = time.monotonic() - self._start
        self._ending[number] = ending
        self._status[number] = status
        self._received[number] = min(connection.received, 0xFFFFFFFF)
        self.done += 1
        if ending:
            self.failed += 1
        if self.done == self.sent:
            self._check_over()

    def idle(self, connection: Connection) -> None:
        """Keep the connection for another request."""
        self._idle.append(connection)

    def gone(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)


def _view(column: NDArray[Any]) -> Any:
    """The same memory: element access is several times faster than through the array."""
    return memoryview(column)  # type: ignore[arg-type]


async def _resolve(where: Target) -> tuple[str, int]:
    """Numeric host and port, looked up once: no look-up belongs into a response time.

    Of several addresses (localhost is often ::1 and 127.0.0.1) the first that takes a connection.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"cannot look up {where.host!r}: {error.strerror or error}") from None
    hosts = list(dict.fromkeys(str(f[4][0]) for f in found))
    for host in hosts if len(hosts) > 1 else ():
        opening = asyncio.open_connection(host, where.port)
        with contextlib.suppress(OSError, TimeoutError):
            _, writer = await asyncio.wait_for(opening, 1.0)
            writer.transport.abort()
            return host, where.port
    return hosts[0], where.port


def raise_descriptor_limit() -> None:
    """Allow this process as many open connections as the system lets it have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
