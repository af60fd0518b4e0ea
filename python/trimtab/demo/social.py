"""One node of the social network: HTTP in front of its slots, the shared store behind them.

A request's arguments are read and checked first (a slow upload holds no slot), then it waits for
a slot, first come first served. docs/social-network.md is the reference.
"""

import asyncio
import errno
import ipaddress
import json
import logging
import math
import random
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from trimtab.config import split_address
from trimtab.demo import build
from trimtab.demo.capacity import VARIATION, FullError, ServiceTimes, Slots
from trimtab.demo.endpoints import ENDPOINTS, MAX_BODY_BYTES, Endpoint
from trimtab.demo.forms import BadArgumentError, IncompleteError, parse
from trimtab.demo.graph import USERS
from trimtab.demo.store import BUSY_SECONDS, Store, StoreError
from trimtab.errors import ConfigError, TrimtabError

__all__ = [
    "DEFAULT_DATABASE",
    "Node",
    "NodeSettings",
    "check_slowness",
    "loopback",
    "port_error",
    "run",
]

DEFAULT_DATABASE: Final = Path("var/demo/social.db")

# How long a stopping node lets requests in progress finish. Less than the five seconds after
# which a parent kills its children.
GRACE_SECONDS: Final = 4.0

# Slowness factors beyond these make service times that no timer keeps or nobody waits for.
LEAST_SLOWNESS: Final = 0.01
MOST_SLOWNESS: Final = 1000.0

# The longest work that a request may ask for with X-Trimtab-Work.
MOST_WORK_SECONDS: Final = 60.0

# A slot that wakes wants the interpreter's lock soon: 1 ms instead of 5 bounds its lateness when
# another thread computes.
SWITCH_SECONDS: Final = 0.001

# aiohttp would log a traceback for every malformed request.
_QUIET: Final = logging.getLogger("trimtab.demo.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What makes a node: "HOST:PORT" on loopback, capacity, and the database that it shares."""

    address: str
    slots: int = 2
    slowness: float = 1.0
    variation: float = VARIATION
    database: Path = DEFAULT_DATABASE
    seed: int = 1
    users: int = USERS
    busy_seconds: float = BUSY_SECONDS

    @property
    def description(self) -> str:
        """One line for people."""
        return (
            f"social network node on {self.address}: {self.slots} slots, "
            f"slowness {self.slowness:g}, database {self.database}"
        )


def loopback(address: str) -> tuple[str, int]:
    """Host and port of a loopback address. Raises ConfigError.

    Nodes answer anybody who reaches them and have no passwords to guard: loopback only.
    """
    try:
        host, port = split_address(address)
        bare = host.strip("[]")
        if port and (bare == "localhost" or ipaddress.ip_address(bare).is_loopback):
            return bare, port
    except ValueError:
        pass
    raise ConfigError(
        f"{address!r} is no place for a demo node: give a loopback address such as 127.0.0.1:19001"
    )


def check_slowness(text: str) -> float:
    """A slowness factor from text. Raises ValueError with what is allowed."""
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not LEAST_SLOWNESS <= factor <= MOST_SLOWNESS:
        raise ValueError(f"a number from {LEAST_SLOWNESS:g} to {MOST_SLOWNESS:g}")
    return factor


class Node:
    """One node as an asynchronous context: listening inside, drained and stopped after."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self._host, self._port = loopback(settings.address)
        self._times = ServiceTimes(
            f"{settings.seed} {settings.address}", variation=settings.variation
        )
        self._numbers = random.Random()  # noqa: S311
        self._peer = {"X-Trimtab-Peer": settings.address}

    async def __aenter__(self) -> "Node":
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening, let requests in progress finish, end the slots."""
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        claim = await asyncio.to_thread(
            build.ensure, settings.database, seed=settings.seed, users=settings.users
        )
        stack.callback(claim.release)
        self._slots = Slots(
            settings.slots,
            lambda: Store(settings.database, busy_seconds=settings.busy_seconds),
            slowness=settings.slowness,
        )
        stack.push_async_callback(asyncio.to_thread, self._slots.close)
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.on_response_prepare.append(self._sign)
        for endpoint in ENDPOINTS:
            app.router.add_route(endpoint.method, endpoint.path, self._handler(endpoint))
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/trimtab-demo/status", self._status)
        app.router.add_post("/trimtab-demo/slowness", self._change_slowness)
        _QUIET.setLevel(logging.CRITICAL)
        runner = web.AppRunner(app, access_log=None, logger=_QUIET, shutdown_timeout=GRACE_SECONDS)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, self._host, self._port, backlog=1024).start()
        except OSError as error:
            raise port_error(settings.address, error) from error

    def _handler(self, endpoint: Endpoint) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            if endpoint.method == "GET":
                raw = request.rel_url.raw_query_string.encode()
            else:
                raw = await request.read()
            try:
                job = endpoint.prepare(parse(raw))
                seconds = self._seconds(endpoint.kind, request.headers.get("X-Trimtab-Work"))
                answer = await self._in_slot(endpoint.kind, seconds, job)
            except IncompleteError:
                return _text(400, "Incomplete arguments")
            except BadArgumentError as error:
                return _text(400, f"Bad arguments: {error}")
            except FullError as error:
                return _text(503, f"{endpoint.failure}: {error}")
            except StoreError as error:
                return _text(500, f"{endpoint.failure}: {error}")
            except Exception as error:
                traceback.print_exc()
                return _text(500, f"{endpoint.failure}: {type(error).__name__}")
            return web.Response(text=answer, content_type=endpoint.content_type, charset="utf-8")

        return handle

    def _seconds(self, kind: str, given: str | None) -> float:
        """Service time at slowness 1: drawn, or given for a run that is to be repeated."""
        if given is None:
            return self._times.draw(kind)
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= MOST_WORK_SECONDS:
            raise BadArgumentError(
                f"X-Trimtab-Work must be a number of seconds from 0 to {MOST_WORK_SECONDS:g}"
            )
        return seconds

    async def _in_slot(self, kind: str, seconds: float, job: Callable[[Store, int], str]) -> str:
        future: asyncio.Future[str] = self._loop.create_future()
        number = self._numbers.getrandbits(60)

        def settle(result: str, error: Exception | None) -> None:
            if future.done():
                return
            if error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._slots.submit(
            kind,
            seconds,
            lambda store: job(store, number),
            lambda result, error: self._loop.call_soon_threadsafe(settle, result, error),
        )
        return await future

    async def _sign(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._peer)

    async def _health(self, _: web.Request) -> web.Response:
        return _text(200, "ok")

    async def _status(self, _: web.Request) -> web.Response:
        occupancy = self._slots.occupancy()
        status = {
            "address": self.settings.address,
            "slots": self._slots.count,
            "slowness": self._slots.slowness,
            **asdict(occupancy),
        }
        return web.Response(text=json.dumps(status) + "\n", content_type="application/json")

    async def _change_slowness(self, request: web.Request) -> web.Response:
        """For experiments: holds for requests that begin service from now on."""
        if not _from_loopback(request.remote):
            return _text(403, "only from loopback")
        try:
            factor = check_slowness(parse(await request.read()).get("factor", ""))
        except ValueError as error:
            return _text(400, f"factor must be {error}")
        self._slots.slowness = factor
        return _text(200, f"slowness {factor:g}")


def _from_loopback(remote: str | None) -> bool:
    try:
        return ipaddress.ip_address(remote or "").is_loopback
    except ValueError:
        return False


def _text(status: int, line: str) -> web.Response:
    return web.Response(status=status, text=f"{line}\n")


def port_error(address: str, error: OSError) -> TrimtabError:
    """What to tell about an address that cannot be listened on."""
    if error.errno != errno.EADDRINUSE:
        return TrimtabError(f"cannot listen on {address}: {error.strerror or error}")
    port = address.rpartition(":")[2]
    return TrimtabError(
        f"{address} is in use: end what listens there (ss -ltnp 'sport = :{port}' shows it), "
        "or choose another address with --node or --port"
    )


def run(settings: NodeSettings) -> int:
    """Serve one node in the foreground until SIGINT or SIGTERM; the exit status, 130 or 143."""
    import uvloop

    sys.setswitchinterval(SWITCH_SECONDS)
    return uvloop.run(_serve(settings))


async def _serve(settings: NodeSettings) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(number: int) -> None:
        if not ended.done():
            ended.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    async with Node(settings):
        print(settings.description, flush=True)
        ending = await ended
    return 128 + ending
