"""The control routes of the admin address: pin, unpin, drain, undrain and shadow over POST.

    POST /control/pin      {"upstream", "peer", "weight"}
    POST /control/unpin    {"upstream", "peer"}
    POST /control/drain    {"peer"}
    POST /control/undrain  {"peer"}
    POST /control/shadow   {"on": true or false}

each with "who" and "why" for the journal if wanted, as JSON, answered as JSON: {"done": text,
"generation": in force then} or {"error": text}. They need the token that [policy] names, in
`Authorization: Bearer …`; without one configured nothing can be changed here.

No other web site can call them: a browser sends no Authorization header by itself, and asks before
it sends one or JSON elsewhere, which nothing here allows; a foreign Origin is refused besides.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from trimtab.config import Config
from trimtab.errors import ConfigError, StateError
from trimtab.explain import unknown

__all__ = ["ACTIONS", "MOST_BODY_BYTES", "Control", "Operator"]

_log: Final = logging.getLogger(__name__)

# Names of 255 bytes and a reason of a few lines fit several times.
MOST_BODY_BYTES: Final = 4096

# What fits a line of the journal.
MOST_WHO: Final = 64
MOST_WHY: Final = 200

# Wrong tokens are logged once in this time: a log is no place to flood.
WRONG_LOG_SECONDS: Final = 60.0

ACTIONS: Final = ("pin", "unpin", "drain", "undrain", "shadow")


class Operator(Protocol):
    """What an operator can do and ask; `controller.Controller`. Raises ConfigError on a name or
    number that cannot be."""

    def pin(
        self, upstream: str, address: str, weight: float | None, who: str = "", why: str = ""
    ) -> None:
        """Fix W, or lift that."""
        ...

    def drain(self, address: str, on: bool = True, who: str = "", why: str = "") -> None:
        """No new requests, or again."""
        ...

    def shadow(self, on: bool, who: str = "", why: str = "") -> None:
        """Decide only, or enforce."""
        ...

    def explain(
        self, upstream: str, address: str | None = None, instance: str | None = None
    ) -> dict[str, Any]:
        """Why requests go where they go."""
        ...

    def history(self) -> dict[str, Any]:
        """The last minutes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """A checked body."""

    upstream: str = ""
    peer: str = ""
    weight: float | None = None
    on: bool = False
    who: str = ""
    why: str = ""


class _RefusedError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Control:
    """The handler of the control routes.

    Args:
        config: whose names can be ordered about.
        operator: who carries it out; called in a thread.
        token: what a caller must bear; None refuses everybody.
        generation: of the weights in force.
        count: called with action and HTTP status, for metrics.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: Config,
        operator: Operator,
        token: str | None,
        generation: Callable[[], int],
        count: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = config.path
        self._peers = {u.name: [p.address for p in u.peers] for u in config.upstreams}
        self._operator = operator
        self._token = token
        self._generation = generation
        self._count = count
        self._clock = clock
        self._wrong_logged_at = -WRONG_LOG_SECONDS
        self._done = 0

    @property
    def possible(self) -> bool:
        """Whether a token is configured."""
        return self._token is not None

    @property
    def done(self) -> int:
        """Orders carried out so far."""
        return self._done

    async def handle(self, request: web.Request) -> web.Response:
        """One call."""
        action = request.match_info["action"]
        headers = {}
        try:
            if action not in ACTIONS:
                raise _RefusedError(404, unknown("control", action, ACTIONS))
            self._authorise(request)
            text = await self._carry_out(action, await self._order(request, action))
            status, body = 200, {"done": text, "generation": self._generation()}
        except _RefusedError as error:
            status, body = error.status, {"error": str(error)}
            if status == 401:
                headers["WWW-Authenticate"] = 'Bearer realm="trimtab"'
        self._count(action if action in ACTIONS else "unknown", status)
        return web.json_response(body, status=status, headers=headers)

    def _authorise(self, request: web.Request) -> None:
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        origin = request.headers.get("Origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.host
        if site not in ("same-origin", "none") or foreign:
            raise _RefusedError(403, "control calls from another web site are refused")
        if self._token is None:
            raise _RefusedError(
                403,
                "control is off, no token is configured: set token_file (or token_variable) in "
                f"[policy] of {self._path} and restart the policy server",
            )
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self._token.encode())
        if kind.lower() == "bearer" and right:
            return
        now = self._clock()
        if given and now - self._wrong_logged_at >= WRONG_LOG_SECONDS:
            self._wrong_logged_at = now
            _log.warning("a control call from %s had a wrong token", request.remote or "the socket")
        raise _RefusedError(
            401,
            "the token is wrong"
            if given
            else "a token is needed: the header Authorization: Bearer TOKEN",
        )

    async def _order(self, request: web.Request, action: str) -> _Order:
        if request.content_type != "application/json":
            raise _RefusedError(415, "the body must be JSON, with Content-Type: application/json")
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise _RefusedError(413, f"the body is longer than {MOST_BODY_BYTES} bytes") from None
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            raise _RefusedError(400, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise _RefusedError(400, "the body must be a JSON object")
        return self._checked(action, body)

    def _checked(self, action: str, body: Mapping[str, Any]) -> _Order:
        needed = {
            "pin": ("upstream", "peer", "weight"),
            "unpin": ("upstream", "peer"),
            "drain": ("peer",),
            "undrain": ("peer",),
            "shadow": ("on",),
        }[action]
        allowed = (*needed, "who", "why")
        for name in body:
            if name not in allowed:
                raise _RefusedError(
                    400, f"unknown key {name[:64]!r} for {action}; allowed: {', '.join(allowed)}"
                )
        checks: Mapping[str, Callable[[Any], bool]] = {
            "upstream": lambda v: isinstance(v, str),
            "peer": lambda v: isinstance(v, str),
            # Also false for what is not finite; the bounds themselves are the guard's.
            "weight": lambda v: isinstance(v, int | float) and 0 < v < 1e9 and v is not True,
            "on": lambda v: isinstance(v, bool),
            "who": lambda v: _line(v, MOST_WHO),
            "why": lambda v: _line(v, MOST_WHY),
        }
        meanings = {
            "upstream": "a name",
            "peer": "an address",
            "weight": "a number from 1/3 to 3",
            "on": "true or false",
            "who": f"at most {MOST_WHO} printable characters",
            "why": f"at most {MOST_WHY} printable characters",
        }
        for name in allowed:
            if name in body and not checks[name](body[name]):
                raise _RefusedError(400, f"{name} must be {meanings[name]}")
            if name in needed and name not in body:
                raise _RefusedError(400, f"{action} needs {name}, {meanings[name]}")
        order = _Order(**{n: body[n] for n in allowed if n in body})
        if "upstream" in needed and order.upstream not in self._peers:
            raise _RefusedError(404, unknown("upstream", order.upstream[:255], self._peers))
        if "peer" in needed:
            known = self._peers[order.upstream] if order.upstream else _all(self._peers)
            if order.peer not in known:
                of = f"peer of {order.upstream}" if order.upstream else "peer"
                raise _RefusedError(404, unknown(of, order.peer[:255], known))
        return order

    async def _carry_out(self, action: str, order: _Order) -> str:
        by = {"who": order.who, "why": order.why}
        operator = self._operator
        try:
            if action in ("pin", "unpin"):
                await asyncio.to_thread(
                    operator.pin, order.upstream, order.peer, order.weight, **by
                )
            elif action in ("drain", "undrain"):
                await asyncio.to_thread(operator.drain, order.peer, action == "drain", **by)
            else:
                await asyncio.to_thread(operator.shadow, order.on, **by)
        except ConfigError as error:
            raise _RefusedError(400, str(error)) from None
        except StateError as error:
            # One of several policy servers, and not the one that leads.
            raise _RefusedError(409, str(error)) from None
        self._done += 1
        return {
            "pin": f"{order.peer} in {order.upstream} is pinned at W {order.weight or 0:g}",
            "unpin": f"{order.peer} in {order.upstream} is no longer pinned",
            "drain": f"{order.peer} is drained: it finishes what it has and gets nothing new",
            "undrain": f"{order.peer} gets requests again",
            "shadow": (
                "shadow is on: Trimtab decides and tells, every W goes to 1"
                if order.on
                else "shadow is off: what is learned comes into force"
            ),
        }[action]


def _line(value: Any, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most and value.isprintable()


def _all(peers: Mapping[str, list[str]]) -> set[str]:
    return {address for of in peers.values() for address in of}
