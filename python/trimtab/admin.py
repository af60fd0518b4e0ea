"""The admin endpoint: dashboard, health, status, metrics and control over HTTP.

It shows what others know; only the control routes (`control`) change anything, and they need a
token. Every request is bounded in time and number, so a slow reader or a stuck control loop takes
no more than one thread; the dashboard's events (`events`) have bounds of their own.

    GET /              the dashboard           GET /healthz       200, or 503 and why
    GET /events        its live data           GET /status.json   all that is known
    GET /history.json  the last ten minutes    GET /metrics       Prometheus's text format
    GET /explain.json?upstream=NAME[&peer=ADDRESS][&balancer=NAME]
    POST /control/ACTION
"""

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final, TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from trimtab import dashboard
from trimtab.config import Config, is_loopback
from trimtab.control import MOST_BODY_BYTES, Control, Operator
from trimtab.errors import ConfigError, TrimtabError
from trimtab.events import Events
from trimtab.listen import claim, socket_mode
from trimtab.metrics import Metrics

__all__ = ["Admin"]

T = TypeVar("T")

_log: Final = logging.getLogger(__name__)

# What a page may take. The status of 16384 pairs takes well under a second; a scraper gives up
# after ten by default.
ANSWER_SECONDS: Final = 5.0

# Requests under way at once; an operator, a few dashboards and a scraper need less.
MAX_REQUESTS: Final = 16

# A kept-alive connection without a request is closed after this.
IDLE_SECONDS: Final = 30.0


class Admin:
    """The HTTP server on `config.policy.admin_listen`.

    Args:
        config: for the address.
        status: gives what /status.json shows; called in a thread.
        trouble: why the control loop is not healthy, or None; called in the event loop.
        metrics: what /metrics shows.
        operator: what can be ordered and asked; called in a thread.
        control: the control routes.
        role: of one of several policy servers, in words; "" when it is alone.
    """

    def __init__(
        self,
        config: Config,
        status: Callable[[], dict[str, Any]],
        trouble: Callable[[], str | None],
        metrics: Metrics,
        operator: Operator,
        control: Control,
        role: Callable[[], str] = lambda: "",
    ) -> None:
        self._listen = config.policy.admin_listen
        self._loopback = is_loopback(self._listen) and not self._listen.startswith("unix:")
        self._status = status
        self._trouble = trouble
        self._role = role
        self._metrics = metrics
        self._operator = operator
        self._control = control
        self._page, self._policy = dashboard.page()
        self._under_way = 0
        # One thread: a status that hangs on a stuck loop holds this one and no other.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="admin")
        self._events = Events(self._live)
        app = web.Application(middlewares=[self._bounded], client_max_size=MOST_BODY_BYTES)
        app.router.add_get("/", self._dashboard)
        app.router.add_get("/events", self._events.handle)
        app.router.add_get("/history.json", self._history_json)
        app.router.add_get("/explain.json", self._explain_json)
        app.router.add_post("/control/{action}", control.handle)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/status.json", self._status_json)
        app.router.add_get("/metrics", self._metrics_text)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=1.0
        )

    async def start(self) -> None:
        """Listen and serve. Raises TrimtabError when the address cannot be had."""
        claim(self._listen, "admin_listen")
        await self._runner.setup()
        site: web.BaseSite
        if self._listen.startswith("unix:"):
            site = web.UnixSite(self._runner, self._listen.removeprefix("unix:"))
        else:
            host, _, port = self._listen.rpartition(":")
            site = web.TCPSite(self._runner, host.strip("[]"), int(port))
        try:
            with socket_mode():
                await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise TrimtabError(
                f"cannot listen on admin_listen = {self._listen!r}: {error}"
            ) from None

    async def stop(self) -> None:
        """Close, and leave no socket behind."""
        listening = bool(self._runner.addresses)
        await self._events.stop()
        await self._runner.cleanup()
        if listening and self._listen.startswith("unix:"):
            Path(self._listen.removeprefix("unix:")).unlink(missing_ok=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse
        if self._loopback and not _literal(request.host):
            return _text(
                403,
                f"the host {request.host[:255]!r} is neither an address nor localhost: open the "
                "page by its address, or let the proxy in front send that as Host",
            )
        if request.path == "/events":
            response = await handler(request)
            return response
        if self._under_way >= MAX_REQUESTS:
            return _text(503, f"{MAX_REQUESTS} requests are under way; try again")
        self._under_way += 1
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await handler(request)
        except TimeoutError:
            response = _text(503, f"no answer within {ANSWER_SECONDS:g} s: {self._trouble()}")
        finally:
            self._under_way -= 1
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def _healthz(self, _: web.Request) -> web.Response:
        trouble = self._trouble()
        role = self._role()
        told = (trouble or "ok", f"role: {role}" if role else "")
        return _text(503 if trouble else 200, "\n".join(filter(None, told)))

    async def _dashboard(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._page,
            content_type="text/html",
            charset="utf-8",
            headers={
                "Content-Security-Policy": self._policy,
                "Referrer-Policy": "no-referrer",
                "X-Frame-Options": "DENY",
            },
        )

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _status_json(self, _: web.Request) -> web.Response:
        return _answer(await self._in_thread(lambda: _json(self._status())))

    async def _history_json(self, _: web.Request) -> web.Response:
        return _answer(await self._in_thread(lambda: _json(self._operator.history())))

    async def _explain_json(self, request: web.Request) -> web.Response:
        upstream = request.query.get("upstream", "")
        address, instance = request.query.get("peer"), request.query.get("balancer")
        try:
            return _answer(
                await self._in_thread(
                    lambda: _json(self._operator.explain(upstream, address, instance))
                )
            )
        except ConfigError as error:
            return _answer(_json({"error": str(error)}), 404)

    async def _live(self) -> dict[str, Any]:
        """For the dashboard: the status, and what a page needs besides."""
        async with asyncio.timeout(ANSWER_SECONDS):
            status, history = await self._in_thread(
                lambda: (self._status(), self._operator.history())
            )
        return {
            **status,
            "time": time.time(),
            "control": self._control.possible,
            "point": next(reversed(history["points"]), None),
        }

    async def _metrics_text(self, _: web.Request) -> web.Response:
        status = None
        try:
            # Half of what the whole answer may take: a stuck status costs the traffic's metrics,
            # not those that tell that it is stuck.
            async with asyncio.timeout(ANSWER_SECONDS / 2):
                status = await self._in_thread(self._status)
        except Exception as error:
            _log.warning("metrics without traffic: no status: %s", error or type(error).__name__)
        # A thread of the common pool: ours may be the stuck one.
        body = await asyncio.to_thread(self._metrics.text, status)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _literal(host: str) -> bool:
    """Whether a Host header is an address or localhost. A web site whose name is made to point at
    the visitor's own machine (DNS rebinding) has its name there, and must read nothing."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]*\Z", host) else host
    return name.lower() == "localhost" or _address(name.strip("[]")) is not None


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _json(value: Any) -> str:
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _answer(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="application/json")


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n")
