"""The emulated servers of a scenario: one process, one port a server, and a control port.

Each server is a `queueing.Queue` in real time. A request brings its work in X-Trimtab-Work
(seconds at speed 1; drawn from the class's law when absent) and its class in X-Trimtab-Class (or
by its path); the answer says where it was served (X-Trimtab-Peer), how long (X-Trimtab-Service)
and how long it queued before (X-Trimtab-Queued), in seconds. docs/emulator.md is the reference.
"""

import asyncio
import json
import math
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from trimtab.alarm import open_alarm
from trimtab.demo.connection import Connection, Request
from trimtab.demo.emulated import EmulatedServer
from trimtab.demo.scenario import Class, Scenario, load
from trimtab.demo.timeline import Change, changes
from trimtab.errors import TrimtabError

__all__ = ["DEFAULT_PORT_BASE", "Emulator", "run"]

DEFAULT_PORT_BASE: Final = 19100

# Drawn ahead, because drawing one number at a time costs as much as a request.
DRAW_AHEAD: Final = 4096

# Timing errors kept for the percentiles: the newest, 24 MB at most.
KEPT_ERRORS: Final = 1_000_000

CONTROL: Final = b"/trimtab-emulator/"


class Emulator:
    """The servers of one scenario on loopback; an asynchronous context.

    Server i (from 1) listens on `port_base` + i and the control port is `port_base`; with
    `port_base` 0 the system chooses every port. `addresses` are those of the servers in order.
    The timeline of events starts at `start`, or with the first request.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        port_base: int = DEFAULT_PORT_BASE,
        host: str = "127.0.0.1",
        seed: int = 0,
    ) -> None:
        self.scenario = scenario
        self.host = host
        self._lateness: deque[float] = deque(maxlen=KEPT_ERRORS)
        self.started_at: float | None = None
        self.bodies = [b"x" * c.response_bytes for c in scenario.classes]
        self._port_base = port_base
        self._seed = seed
        self._duration = scenario.duration_seconds
        self._by_name = {c.name.encode(): j for j, c in enumerate(scenario.classes)}
        self._by_path = {c.path.encode(): j for j, c in enumerate(scenario.classes)}
        self._servers = [EmulatedServer(self, i) for i in range(len(scenario.servers))]
        self._changes: deque[Change] = deque()
        self._armed = math.inf
        self._control: asyncio.Server | None = None
        self._controllers: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fresh(seed)

    def _fresh(self, seed: int) -> None:
        self._random = np.random.default_rng([seed, 1])
        self._drawn: list[list[float]] = [[] for _ in self.scenario.classes]
        self._lateness.clear()

    @property
    def addresses(self) -> list[str]:
        """HOST:PORT of each server."""
        return [s.address for s in self._servers]

    @property
    def control_address(self) -> str:
        """HOST:PORT of the control port."""
        assert self._control is not None, "not entered"  # noqa: S101
        return f"{self.host}:{self._control.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> "Emulator":
        loop = asyncio.get_running_loop()
        self._timer = open_alarm(loop, self._tick)
        try:
            for position, server in enumerate(self._servers, 1):
                await server.listen(self._port_base + position if self._port_base else 0)
            try:
                self._control = await loop.create_server(
                    lambda: Connection(self._command, self._controllers),
                    self.host,
                    self._port_base,
                    reuse_address=True,
                )
            except OSError as error:
                raise TrimtabError(
                    f"the emulator's control port cannot listen on {self.host}:"
                    f"{self._port_base}: {error.strerror or error}; give another --port"
                ) from None
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._timer.close()
        for task in self._tasks:
            task.cancel()
        for server in self._servers:
            server.close()
        if self._control is not None:
            self._control.close()
        for connection in list(self._controllers):
            connection.reset()
        await asyncio.sleep(0)  # let the loop call connection_lost

    # The run.

    def start(
        self, at: float, seed: int | None = None, duration_seconds: float | None = None
    ) -> None:
        """Begin a run: its second 0 is `at` on time.monotonic(), which may be in the future.

        Seed and duration are those of the last reset or start unless given.
        """
        self._take(seed, duration_seconds)
        self.started_at = at
        self._changes = deque(changes(self.scenario, self._seed, self._duration))
        self._armed = math.inf
        self._tick()

    def _take(self, seed: int | None, duration_seconds: float | None) -> None:
        self._seed = self._seed if seed is None else seed
        self._duration = self._duration if duration_seconds is None else duration_seconds

    def reset(self, seed: int | None = None, duration_seconds: float | None = None) -> None:
        """Forget the run: queues emptied (their clients cut), servers healthy, counters zero.

        The next run begins with the first request, or at `start`.
        """
        self._take(seed, duration_seconds)
        self.started_at = None
        self._changes.clear()
        for server in self._servers:
            for connection in list(server.connections):
                connection.reset()
            was_down = server.down
            server.fresh()
            if was_down:
                self.listen_again(server)
        self._fresh(self._seed)

    def listen_again(self, server: EmulatedServer) -> None:
        """Open the port of a server that had crashed."""
        task = asyncio.get_running_loop().create_task(server.listen(server.port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def arm(self, at: float) -> None:
        """Have `_tick` called at `at` if nothing earlier is due."""
        if at < self._armed:
            self._armed = at
            self._timer.set(at)

    def _tick(self) -> None:
        """Do all that is due, and set the timer to the next."""
        now = time.monotonic()
        due = math.inf
        if self.started_at is not None:
            while self._changes and self.started_at + self._changes[0].at_seconds <= now:
                change = self._changes.popleft()
                self._servers[change.server].change(now, change)
            if self._changes:
                due = self.started_at + self._changes[0].at_seconds
        for server in self._servers:
            if server.next_end <= now:
                server.advance(now)
                server.next_end = server.queue.next_end()
            due = min(due, server.next_end)
        self._armed = due
        self._timer.set(due)

    def class_of(self, request: Request) -> int | None:
        """The class of a request: by header, else by path; the only one needs neither."""
        name = request.headers.get(b"x-trimtab-class")
        if name is not None:
            return self._by_name.get(name)
        return self._by_path.get(request.path, 0 if len(self.bodies) == 1 else None)

    def begin(self, now: float) -> None:
        """A request has come: start the run unless it has started."""
        if self.started_at is None:
            self.start(now)

    def fails(self, error_ratio: float) -> bool:
        """Draw whether a request fails."""
        return bool(self._random.random() < error_ratio)

    def late(self, seconds: float) -> None:
        """Note the timing error of an answer."""
        self._lateness.append(seconds)

    def drawn(self, kind: int) -> float:
        """Work of a request that does not bring its own."""
        if not self._drawn[kind]:
            self._drawn[kind] = self.scenario.classes[kind].draw(DRAW_AHEAD, self._random).tolist()
        return self._drawn[kind].pop()

    # The control port.

    def status(self) -> dict[str, Any]:
        """What has happened since the start or reset; JSON-able, times in seconds."""
        now = time.monotonic()
        late = np.array(self._lateness) if self._lateness else np.zeros(1)
        return {
            "scenario": self.scenario.name,
            "control": self.control_address,
            "elapsed_seconds": None if self.started_at is None else now - self.started_at,
            "servers": [s.status() for s in self._servers],
            # Answered later than planned: the emulator's timing error.
            "lateness_seconds": {
                "count": len(self._lateness),
                "mean": float(late.mean()),
                "p50": float(np.quantile(late, 0.5)),
                "p99": float(np.quantile(late, 0.99)),
                "max": float(late.max()),
            },
        }

    def _command(self, connection: Connection, request: Request) -> None:
        """GET status; POST start or reset with {"seed", "duration_seconds"}, start with "at"."""
        command = request.path.removeprefix(CONTROL).decode("latin-1")
        if command not in ("status", "start", "reset") or not request.path.startswith(CONTROL):
            connection.respond(404, b"There are status, start and reset\n")
            return
        if (request.method == b"POST") != (command != "status"):
            connection.respond(405, b"GET status, POST start, POST reset\n")
            return
        if command != "status":
            try:
                options = _options(request.body, command)
            except ValueError as error:
                connection.respond(400, f"{error}\n".encode())
                return
            if command == "reset":
                self.reset(**options)
            else:
                self.start(options.pop("at", time.monotonic()), **options)
        connection.respond(
            200, json.dumps(self.status()).encode(), b"Content-Type: application/json\r\n"
        )


def _options(body: bytes, command: str) -> dict[str, Any]:
    """The checked arguments of `start` or `reset` in a JSON body. Raises ValueError."""
    data = json.loads(body or b"{}")
    allowed = {"seed", "duration_seconds"} | ({"at"} if command == "start" else set())
    if not isinstance(data, dict) or not set(data) <= allowed:
        raise ValueError(f"a JSON object with {', '.join(sorted(allowed))}, all optional")
    options: dict[str, Any] = {}
    for name, value in data.items():
        whole = name == "seed"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError(f"{name} must be a {'whole ' if whole else ''}number")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative")
        options[name] = value
    return options


def _describe(classes: tuple[Class, ...]) -> str:
    return ", ".join(f"{c.name} {c.service_seconds * 1000:g} ms ({c.path})" for c in classes)


def _print_summary(emulator: Emulator, out: TextIO) -> None:
    status = emulator.status()
    late = status["lateness_seconds"]
    served = sum(s["served"] for s in status["servers"])
    print(
        f"served {served} requests; answered later than planned by {late['mean'] * 1e3:.3f} ms "
        f"on average, p99 {late['p99'] * 1e3:.3f} ms, at most {late['max'] * 1e3:.3f} ms",
        file=out,
        flush=True,
    )


async def _serve(scenario: Scenario, port_base: int, seed: int, out: TextIO) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> None:
        if not ended.done():
            ended.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    async with Emulator(scenario, port_base=port_base, seed=seed) as emulator:
        print(
            f"{scenario.name}: {len(scenario.servers)} servers on "
            f"{emulator.addresses[0]} to {emulator.addresses[-1]}, "
            f"control on {emulator.control_address}\n"
            f"classes: {_describe(scenario.classes)}\n"
            f"capacity {scenario.capacity_per_second:.1f} requests/s, "
            f"load {scenario.requests_per_second:.1f} requests/s; ends at Ctrl-C",
            file=out,
            flush=True,
        )
        ending = await ended
        _print_summary(emulator, out)
    return 128 + ending


def run(
    path: str | Path,
    *,
    port_base: int = DEFAULT_PORT_BASE,
    seed: int = 0,
    out: TextIO | None = None,
) -> int:
    """Serve a scenario file in the foreground until SIGINT or SIGTERM; the exit status, 130 or 143.

    Raises ConfigError when the file is wrong, TrimtabError when a port is taken.
    """
    import uvloop

    scenario = load(path)
    return uvloop.run(_serve(scenario, port_base, seed, sys.stdout if out is None else out))
