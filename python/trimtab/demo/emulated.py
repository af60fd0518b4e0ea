"""One emulated server: a port, its queue in real time, and its present troubles."""

import asyncio
import math
import time
from typing import Final, Protocol

from trimtab.demo.connection import Connection, Request
from trimtab.demo.queueing import Job, Queue
from trimtab.demo.scenario import Scenario
from trimtab.demo.timeline import Change
from trimtab.errors import TrimtabError

__all__ = ["EmulatedServer"]

# A client may not ask for more work than the scenario files can: an hour.
MAX_WORK_SECONDS: Final = 3600.0


class Served(Job):
    """A request at an emulated server, and whom to answer."""

    __slots__ = ("connection", "kind")

    def __init__(self, work_seconds: float, kind: int, connection: Connection) -> None:
        super().__init__(work_seconds)
        self.kind = kind
        self.connection = connection


class Site(Protocol):
    """What a server needs of the whole."""

    scenario: Scenario
    host: str
    bodies: list[bytes]  # one a class

    def begin(self, now: float) -> None:
        """A request has come: start the run unless it has started."""

    def class_of(self, request: Request) -> int | None:
        """The class of a request, None when it has none."""

    def drawn(self, kind: int) -> float:
        """Work in seconds for a request of this class that does not bring its own."""

    def fails(self, error_ratio: float) -> bool:
        """Draw whether a request fails."""

    def late(self, seconds: float) -> None:
        """Note the timing error of an answer."""

    def arm(self, at: float) -> None:
        """Call `advance` of every server at `at` or before."""

    def listen_again(self, server: "EmulatedServer") -> None:
        """Have the port of a server that had crashed opened."""


class EmulatedServer:
    """One port: its queue, its connections, and its present troubles."""

    def __init__(self, emulator: "Site", position: int) -> None:
        self.emulator = emulator
        self._header = b""
        self.position = position
        self.config = emulator.scenario.servers[position]
        self.affinity = emulator.scenario.affinity[position].tolist()
        self.connections: set[Connection] = set()
        self.listener: asyncio.Server | None = None
        self.port = 0
        self.fresh()

    def fresh(self) -> None:
        """As at the start of a run: empty, healthy, counting from zero."""
        config = self.config
        self.queue: Queue[Served] = Queue(
            slots=config.slots,
            processor_sharing=config.discipline == "ps",
            speed=config.speed,
            thrash_beyond=config.thrash_beyond,
            thrash_ratio=config.thrash_ratio,
            thrash_floor=config.thrash_floor,
        )
        self.next_end = math.inf
        self.error_ratio = 0.0
        self.down = False
        self.served = self.failed = self.abandoned = self.lost = 0

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.emulator.host}:{self.port}"

    async def listen(self, port: int) -> None:
        """Open the port (0: any). Raises TrimtabError when it is taken."""
        loop = asyncio.get_running_loop()
        host = self.emulator.host
        try:
            self.listener = await loop.create_server(
                lambda: Connection(self.receive, self.connections),
                host,
                port,
                reuse_address=True,
                backlog=1024,
            )
        except OSError as error:
            raise TrimtabError(
                f"the emulated server {self.position + 1} cannot listen on {host}:{port}: "
                f"{error.strerror or error}; free the port or give another --port"
            ) from None
        self.port = self.listener.sockets[0].getsockname()[1]
        self._header = b"X-Trimtab-Peer: %b\r\n" % self.address.encode()

    def crash(self) -> None:
        """Refuse and reset everything; the work is lost."""
        self.down = True
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self.lost += len(self.queue.clear())
        self.next_end = math.inf
        for connection in list(self.connections):
            connection.reset()

    def receive(self, connection: Connection, request: Request) -> None:
        """A whole request has arrived."""
        emulator = self.emulator
        if self.down:
            connection.reset()
            return
        kind = emulator.class_of(request)
        if kind is None:
            connection.respond(404, b"No class of the scenario has this path or name\n")
            return
        given = request.headers.get(b"x-trimtab-work")
        try:
            work = emulator.drawn(kind) if given is None else float(given)
        except ValueError:
            work = math.nan
        if not 0 <= work <= MAX_WORK_SECONDS:
            connection.respond(400, b"X-Trimtab-Work must be seconds from 0 to 3600\n")
            return
        now = time.monotonic()
        emulator.begin(now)
        if self.error_ratio and emulator.fails(self.error_ratio):
            self.failed += 1
            connection.respond(500, b"Emulated failure\n", self._header)
            return
        self.advance(now)
        self.queue.arrive(now, Served(work * self.affinity[kind], kind, connection))
        self.next_end = self.queue.next_end()
        emulator.arm(self.next_end)

    def advance(self, now: float) -> None:
        """Answer what has ended by now."""
        for job in self.queue.advance(now):
            # A client that went away was served all the same: most servers cannot tell.
            if job.connection.closed:
                self.abandoned += 1
                continue
            self.served += 1
            job.connection.respond(
                200,
                self.emulator.bodies[job.kind],
                b"%bX-Trimtab-Service: %.6f\r\nX-Trimtab-Queued: %.6f\r\n"
                % (self._header, job.ended - job.started, job.started - job.arrived),
            )
            self.emulator.late(time.monotonic() - job.ended)

    def change(self, now: float, change: Change) -> None:
        """Follow the timeline."""
        self.advance(now)
        self.queue.set_speed(now, change.speed)
        self.next_end = self.queue.next_end()
        self.error_ratio = change.error_ratio
        if change.down and not self.down:
            self.crash()
        elif self.down and not change.down:
            self.down = False
            self.emulator.listen_again(self)

    def status(self) -> dict[str, object]:
        """What has happened since the run began; JSON-able."""
        return {
            "address": self.address,
            "present": len(self.queue),
            "served": self.served,
            "failed": self.failed,
            "abandoned": self.abandoned,
            "lost": self.lost,
            "busy_seconds": self.queue.busy_seconds,
            "down": self.down,
        }

    def close(self) -> None:
        """Stop listening and cut every connection."""
        if self.listener is not None:
            self.listener.close()
        for connection in list(self.connections):
            connection.reset()
