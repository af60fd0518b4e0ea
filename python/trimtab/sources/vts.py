"""Reads the JSON status of nginx-module-vts, or of Trimtab's hook, which has the same shape.

`read` fetches, bounded in time and size; `parse` checks, and keeps the keys that Trimtab uses.
What the numbers mean over time (resets, removed servers, retries) is not judged here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trimtab.errors import SourceError
from trimtab.sources.page import Page

__all__ = ["Buckets", "ServerStatus", "Status", "Zone", "parse", "read"]

STATUS_CLASSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")
_NUMBERS: Final = (
    "requestCounter", "inBytes", "outBytes", "requestMsecCounter", "requestMsec",
    "responseMsecCounter", "responseMsec", "weight", "maxFails", "failTimeout", "inFlight",
)  # fmt: skip
# The module counts in 64 bits; what is more would overflow somewhere.
_TOO_MUCH: Final = 2**64
_FLAGS: Final = ("backup", "down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """A histogram: requests up to each bound. Old nodes keep their bounds over a reload."""

    bounds_msec: tuple[float, ...]
    counters: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """The shared memory of the counters. `free_bytes` is None in older versions."""

    name: str
    size_bytes: int
    used_bytes: int
    nodes: int
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server of a group, with the keys and units of VTS (milliseconds); absent ones left out.

    `responses` are answers by status class, "1xx" to "5xx"; `buckets` are of the response time,
    None without any.
    """

    server: str
    numbers: Mapping[str, int | float]
    flags: Mapping[str, bool]
    responses: Mapping[str, int]
    buckets: Buckets | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One answer of a status page."""

    groups: Mapping[str, tuple[ServerStatus, ...]]
    connections: Mapping[str, int] = field(default_factory=dict)
    load_msec: int | None = None  # when this configuration was loaded, also by a reload
    now_msec: int | None = None
    host: str = ""
    zone: Zone | None = None


def read(page: Page) -> Status:
    """Fetch and parse a status page.

    Raises SourceError with one sentence for anything that is not a status: what `Page.read`
    raises, or a body that is not of the right shape.
    """
    return parse(page.read(), page.shown)


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
        host=data["hostName"] if isinstance(data.get("hostName"), str) else "",
        zone=_zone(data.get("sharedZones"), f"{url}: sharedZones"),
    )


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _milliseconds(data: Mapping[str, Any], key: str, url: str) -> int | None:
    return int(_number(data[key], f"{url}: {key}")) if key in data else None


def _zone(zone: Any, where: str) -> Zone | None:
    if not isinstance(zone, dict) or not isinstance(zone.get("name"), str):
        return None
    numbers = {k: int(_number(v, f"{where}: {k}")) for k, v in zone.items() if k != "name"}
    return Zone(
        name=zone["name"],
        size_bytes=numbers.get("maxSize", 0),
        used_bytes=numbers.get("usedSize", 0),
        nodes=numbers.get("usedNode", 0),
        free_bytes=numbers.get("freeSize"),
    )


def _buckets(buckets: Any, where: str) -> Buckets | None:
    if not isinstance(buckets, dict):
        return None
    bounds, counters = buckets.get("msecs"), buckets.get("counters")
    if not (isinstance(bounds, list) and isinstance(counters, list)):
        raise SourceError(f"{where} has no lists of bounds and counters")
    if len(bounds) != len(counters):
        raise SourceError(f"{where} has {len(counters)} counters for {len(bounds)} bounds")
    if not bounds:
        return None
    return Buckets(
        bounds_msec=tuple(_number(b, where) for b in bounds),
        counters=tuple(int(_number(c, where)) for c in counters),
    )


def _number(value: Any, where: str) -> int | float:
    fine = isinstance(value, int | float) and not isinstance(value, bool)
    if not (fine and 0 <= value < _TOO_MUCH):
        raise SourceError(f"{where} is {value!r:.40}, not a number from 0 to 2^64")
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
        buckets=_buckets(entry.get("responseBuckets"), f"{where}: responseBuckets"),
    )
