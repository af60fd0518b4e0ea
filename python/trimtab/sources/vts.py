"""Reads the JSON status of nginx-module-vts, or of Trimtab's hook, which has the same shape.

`read` fetches, bounded in time and size; `parse` checks, and keeps the keys that Trimtab uses.
What the numbers mean over time (resets, removed servers, retries) is not judged here.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import requests
import urllib3

from trimtab.errors import SourceError

__all__ = ["MAX_BYTES", "ServerStatus", "Status", "parse", "read"]

# A server takes about 3.5 kB, a third of it per class: this is room for 9000 of them.
MAX_BYTES: Final = 32 * 1024 * 1024
CONNECT_SECONDS: Final = 1.0
READ_SECONDS: Final = 2.0
# For the whole answer: a body that drips in must not stop the readings for longer.
WHOLE_SECONDS: Final = 5.0

STATUS_CLASSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")
_NUMBERS: Final = (
    "requestCounter", "inBytes", "outBytes", "requestMsecCounter", "requestMsec",
    "responseMsecCounter", "responseMsec", "weight", "maxFails", "failTimeout", "inFlight",
)  # fmt: skip
_FLAGS: Final = ("backup", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server of a group, with the keys and units of VTS (milliseconds); absent ones left out.

    `responses` are answers by status class, "1xx" to "5xx".
    """

    server: str
    numbers: Mapping[str, int | float]
    flags: Mapping[str, bool]
    responses: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One answer of a status page."""

    groups: Mapping[str, tuple[ServerStatus, ...]]
    connections: Mapping[str, int] = field(default_factory=dict)
    load_msec: int | None = None  # when this configuration was loaded, also by a reload
    now_msec: int | None = None


def read(session: requests.Session, url: str) -> Status:
    """Fetch and parse a status page.

    Raises SourceError with one sentence for anything that is not a status: no connection, a
    timeout, a redirect, an HTTP error, a body too large, too slow or not of the right shape.
    """
    return parse(_fetch(session, url), url)


def _fetch(session: requests.Session, url: str) -> bytes:
    give_up = time.monotonic() + WHOLE_SECONDS
    try:
        with session.get(
            url,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            stream=True,
            allow_redirects=False,
            headers={"Accept-Encoding": "identity"},
        ) as answer:
            if answer.is_redirect:
                raise SourceError(f"{url} redirects to {answer.headers['Location']}: name that")
            if answer.status_code != 200:
                raise SourceError(f"{url} answers {answer.status_code} {answer.reason}")
            # read1 gives what has come; read would wait for the whole piece while a body drips.
            # urllib3 has it from 2.1 on.
            some = getattr(answer.raw, "read1", answer.raw.read)
            body = bytearray()
            while piece := some(65536):
                body += piece
                if len(body) > MAX_BYTES:
                    raise SourceError(f"{url} answers more than {MAX_BYTES} bytes")
                if time.monotonic() > give_up:
                    raise SourceError(f"{url} takes more than {WHOLE_SECONDS:g} s to answer")
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise SourceError(f"{url} does not answer in time") from None
    except requests.ConnectionError as error:
        raise SourceError(f"{url}: {_reason(error)}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise SourceError(f"{url}: {error}") from None
    return bytes(body)


def _reason(error: BaseException) -> str:
    """What the operating system said, out of the layers that requests and urllib3 wrap it in."""
    inner: BaseException | None = error
    for _ in range(8):  # they nest three or four deep
        if inner is None:
            break
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        reason = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        first = inner.args[0] if inner.args else None
        inner = reason if isinstance(reason, BaseException) else first
        if not isinstance(inner, BaseException):
            break
    return "no connection"


def parse(body: bytes, url: str = "the status page") -> Status:
    """The status in an answer's body. Raises SourceError that says what is wrong where."""
    try:
        data = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{url} does not answer JSON: {error}") from None
    zones = data.get("upstreamZones", {}) if isinstance(data, dict) else None
    if not isinstance(zones, dict) or "connections" not in data:
        raise SourceError(f"{url} answers JSON that is not a VTS status")
    groups = {}
    for group, servers in zones.items():
        if not isinstance(servers, list):
            raise SourceError(f"{url}: group {group!r} is not a list of servers")
        groups[group] = tuple(_server(s, f"{url}: group {group!r}") for s in servers)
    connections = data["connections"]
    if not isinstance(connections, dict):
        raise SourceError(f"{url}: connections is not an object")
    return Status(
        groups=groups,
        connections={
            k: int(_number(v, f"{url}: connections {k!r}")) for k, v in connections.items()
        },
        load_msec=_milliseconds(data, "loadMsec", url),
        now_msec=_milliseconds(data, "nowMsec", url),
    )


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _milliseconds(data: Mapping[str, Any], key: str, url: str) -> int | None:
    return int(_number(data[key], f"{url}: {key}")) if key in data else None


def _number(value: Any, where: str) -> int | float:
    fine = isinstance(value, int | float) and not isinstance(value, bool)
    if not (fine and math.isfinite(value) and value >= 0):
        raise SourceError(f"{where} is {value!r:.40}, not a number of 0 or more")
    number: int | float = value
    return number


def _server(entry: Any, where: str) -> ServerStatus:
    if not isinstance(entry, dict) or not isinstance(entry.get("server"), str):
        raise SourceError(f"{where} has an entry without a server's name")
    where = f"{where}, server {entry['server']!r}"
    responses = entry.get("responses", {})
    if not isinstance(responses, dict):
        raise SourceError(f"{where}: responses is not an object")
    for key in _FLAGS:
        if not isinstance(entry.get(key, False), bool):
            raise SourceError(f"{where}: {key} is neither true nor false")
    return ServerStatus(
        server=entry["server"],
        numbers={k: _number(entry[k], f"{where}: {k}") for k in _NUMBERS if k in entry},
        flags={k: entry[k] for k in _FLAGS if k in entry},
        responses={
            k: int(_number(responses[k], f"{where}: {k}")) for k in STATUS_CLASSES if k in responses
        },
    )
