"""Server-sent events for the dashboard: the status once a second, the journal when it changed.

One producer makes each event once for all listeners, and only while there are any. A listener
gets the newest event when it can take one, never a queue of old ones; one that takes none in time
is let go. Events: `status` (see `digest`), `journal` (entries, newest first).
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

__all__ = ["Events", "digest"]

_log: Final = logging.getLogger(__name__)

# Dashboards open at once. Each costs some tens of kilobytes a second.
MOST_LISTENERS: Final = 16

# A second is what people call live; a large status is made less often: a tenth of the time at most.
LEAST_SECONDS: Final = 1.0
IDLE_FACTOR: Final = 9.0

# Proxies cut what is silent for half a minute or more.
HEARTBEAT_SECONDS: Final = 10.0

# A listener that takes nothing for this long is gone, or as good as.
SEND_SECONDS: Final = 10.0

# What the browser waits before it connects again.
RETRY_MS: Final = 2000

# Of the journal and of the balancers this much is sent; the page says how many there are.
MOST_ENTRIES: Final = 80
MOST_INSTANCES: Final = 50


class Events:
    """The handler of /events.

    Args:
        fetch: gives the status; awaited by the producer only.
    """

    def __init__(self, fetch: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._fetch = fetch
        self._changed = asyncio.Condition()
        self._status = b""
        self._journal = b""
        self._number = 0
        self._listeners = 0
        self._producer: asyncio.Task[None] | None = None
        self._closing = False
        self._failure: str | None = None

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return self._listeners

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One listener, until it goes or the server stops."""
        if self._closing or self._listeners >= MOST_LISTENERS:
            return web.Response(
                status=503,
                headers={"Retry-After": "10"},
                text=f"{MOST_LISTENERS} dashboards are open; close one\n",
            )
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                # nginx in front must not collect events.
                "X-Accel-Buffering": "no",
            }
        )
        self._listeners += 1
        try:
            await response.prepare(request)
            if self._producer is None:
                self._number = 0  # what was made for earlier listeners is old
                self._producer = asyncio.create_task(self._produce())
            await self._feed(response)
        except (ConnectionError, TimeoutError):
            # One that takes nothing would not take the end of the stream either.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._listeners -= 1
            if self._listeners == 0 and self._producer is not None:
                self._producer.cancel()
                self._producer = None
        return response

    async def _feed(self, response: web.StreamResponse) -> None:
        await self._send(response, f"retry: {RETRY_MS}\n\n".encode())
        sent, journal = 0, b""
        while not self._closing:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS), self._changed:
                    while self._number == sent and not self._closing:
                        await self._changed.wait()
            except TimeoutError:
                await self._send(response, b": heartbeat\n\n")
                continue
            if self._closing:
                return
            sent, text = self._number, self._status
            if self._journal != journal:
                journal = self._journal
                text += journal
            await self._send(response, text)

    @staticmethod
    async def _send(response: web.StreamResponse, text: bytes) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await response.write(text)

    async def _produce(self) -> None:
        while True:
            started = time.monotonic()
            try:
                made = await asyncio.to_thread(_made, await self._fetch())
            except Exception as error:
                # The loop is stuck, say: the page keeps what it has, and says how old it is.
                if str(error) != self._failure:
                    _log.error("no status for the dashboard: %s", error or type(error).__name__)
                self._failure = str(error)
            else:
                self._failure = None
                async with self._changed:
                    self._status, self._journal = made
                    self._number += 1
                    self._changed.notify_all()
            took = time.monotonic() - started
            await asyncio.sleep(max(LEAST_SECONDS - took, IDLE_FACTOR * took))

    async def stop(self) -> None:
        """Let all listeners go."""
        self._closing = True
        if self._producer is not None:
            self._producer.cancel()
            self._producer = None
        async with self._changed:
            self._changed.notify_all()


def _made(status: Mapping[str, Any]) -> tuple[bytes, bytes]:
    journal = list(status.get("journal", ()))[-MOST_ENTRIES:]
    return _event("status", digest(status)), _event("journal", journal[::-1])


def _event(kind: str, value: Any) -> bytes:
    text = json.dumps(_short(value), separators=(",", ":"))
    return f"event: {kind}\ndata: {text}\n\n".encode()


def _short(value: Any) -> Any:
    """`value` with four digits a measured number; null for what JSON has none for."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        # Times since 1970 and counts keep their digits.
        return value if abs(value) >= 10000 else float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(k): _short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return value


_KEPT: Final = (
    "phase",
    "observed_seconds",
    "observe_seconds",
    "epoch",
    "generation",
    "reason",
    "changed",
    "profile",
    "chosen",
    "exploring",
    "decision",
    "reward",
    "art_per_1000",
    "statistics_age_seconds",
    "state",
    "profiles",
    "server",
    "servers",
    "time",
    "control",
    "point",
)


def digest(status: Mapping[str, Any]) -> dict[str, Any]:
    """What the dashboard needs of the status: the keys of `_KEPT` as they are, "shadow",
    "instances" (at most 50) and "instance_count", and "upstreams": {name: the class's figures and
    "peers": {address: {"w": W, "a": affinity, "r": rate, "k": slots, "d": drained, "p": pinned,
    "h": W withheld, "s": share, "n": in flight, "t": response time}}}."""
    guard = status.get("guard", {})
    pins = {(name, address) for name, address, _ in guard.get("pins", ())}
    withheld = guard.get("withheld", {})
    upstreams = {}
    for name, control in status.get("upstreams", {}).items():
        recent = status.get("window", {}).get(name, {})
        shares, traffic = recent.get("shares", {}), recent.get("peers", {})
        upstreams[name] = {
            "deadline_seconds": control.get("deadline_seconds"),
            "service_time_seconds": control.get("service_time_seconds"),
            **{k: v for k, v in recent.items() if k not in ("shares", "peers")},
            "peers": {
                address: {
                    "w": peer.get("weight"),
                    "a": peer.get("affinity"),
                    "r": peer.get("rate"),
                    "k": peer.get("slots"),
                    "d": bool(peer.get("drain")),
                    "p": (name, address) in pins,
                    "h": withheld.get(name, {}).get(address),
                    "s": shares.get(address),
                    "n": traffic.get(address, {}).get("in_flight"),
                    "t": traffic.get(address, {}).get("response_time_seconds"),
                }
                for address, peer in control.get("peers", {}).items()
            },
        }
    instances = status.get("instances", [])
    return {
        **{k: status[k] for k in _KEPT if k in status},
        "shadow": bool(guard.get("shadow")),
        "instances": instances[:MOST_INSTANCES],
        "instance_count": len(instances),
        "upstreams": upstreams,
    }
