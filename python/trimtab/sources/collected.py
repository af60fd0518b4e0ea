"""The lines of a statistics file: how a reading is written, and how files are read again.

A line is one JSON object, a superset of what the founding project's get_states.py wrote:

    {"time": 1795340002.153, "loadMsec": 1795339999912, "nowMsec": 1795340002153,
     "connections": {"active": 1, "reading": 0, "writing": 1, "waiting": 0, …},
     "compose_backend": {"127.0.0.1:9001": {"requestCounter": 13, "inBytes": 6474,
        "outBytes": 2769, "Non 2xx/3xx responses": 0, "requestMsecCounter": 262,
        "requestMsec": 7, "responseMsecCounter": 261, "weight": 1, "maxFails": 1,
        "failTimeout": 10, "backup": 0, "down": 0, "inFlight": 2}, …}, …}

Only "time" and the groups are always there; the founding files lack "time" too. `collector`
writes these lines. Counters stay cumulative, times in milliseconds, as VTS has them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from trimtab.errors import SourceError
from trimtab.sources.vts import ServerStatus, Status

__all__ = ["NOT_2XX_3XX", "RESERVED", "Reading", "line", "read_lines"]

NOT_2XX_3XX: Final = "Non 2xx/3xx responses"
# Keys of a line that are no groups; a group of such a name cannot be recorded.
RESERVED: Final = ("time", "loadMsec", "nowMsec", "connections")
# A line holds less of each server than the status page, of which 32 MiB are read at most.
MAX_LINE_BYTES: Final = 32 * 1024 * 1024

_ORDER: Final = (
    "requestCounter", "inBytes", "outBytes", NOT_2XX_3XX, "requestMsecCounter", "requestMsec",
    "responseMsecCounter", "weight", "maxFails", "failTimeout", "backup", "down", "inFlight",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One line: group → server → key → number, with the keys of the module's docstring.

    `time_seconds` (since the epoch) is None in files of the founding project, and `connections`
    is empty in its first ones.
    """

    groups: Mapping[str, Mapping[str, Mapping[str, float]]]
    connections: Mapping[str, float]
    time_seconds: float | None = None
    load_msec: float | None = None


def _entry(server: ServerStatus) -> dict[str, float]:
    values: dict[str, float] = {**server.numbers, **{k: int(v) for k, v in server.flags.items()}}
    values[NOT_2XX_3XX] = sum(server.responses.get(c, 0) for c in ("1xx", "4xx", "5xx"))
    return {k: values[k] for k in _ORDER if k in values}


def line(status: Status, time_seconds: float) -> bytes:
    """The line of a reading taken at `time_seconds` since the epoch, line end included.

    Groups whose name is one of RESERVED are left out. A server that a group lists more than once
    (nginx then counts them as one) appears once, with its weights summed.
    """
    data: dict[str, Any] = {"time": round(time_seconds, 3)}
    if status.load_msec is not None:
        data["loadMsec"] = status.load_msec
    if status.now_msec is not None:
        data["nowMsec"] = status.now_msec
    data["connections"] = dict(status.connections)
    for name, servers in status.groups.items():
        if name in RESERVED:
            continue
        group: dict[str, dict[str, float]] = {}
        for server in servers:
            entry = _entry(server)
            if (known := group.get(server.server)) is not None and "weight" in entry:
                known["weight"] = known.get("weight", 0) + entry["weight"]
            else:
                group[server.server] = entry
        data[name] = group
    return (json.dumps(data, ensure_ascii=False) + "\n").encode()


def read_lines(path: Path | str) -> Iterator[Reading]:
    """The readings of a file, ours or the founding project's, in its order.

    A last line without its end is being written right now, or was cut; it is left out. Raises
    SourceError with file and line for anything else that is not a reading.
    """
    try:
        with open(path, "rb") as file:
            yield from _readings(file, str(path))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from None


def _readings(file: IO[bytes], path: str) -> Iterator[Reading]:
    for number in range(1, 2**63):
        text = file.readline(MAX_LINE_BYTES)
        if not text.endswith(b"\n"):
            if len(text) >= MAX_LINE_BYTES:
                raise SourceError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes")
            return
        if text.strip():
            yield _reading(text, f"{path}, line {number}")


def _reading(text: bytes, where: str) -> Reading:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise SourceError(f"{where}: not an object of groups")
    connections = data.pop("connections", {})
    times = {k: data.pop(k) for k in RESERVED if k in data}
    for key, value in times.items():
        _check(value, f"{where}: {key}")
    _numbers(connections, f"{where}: connections")
    for group, servers in data.items():
        if not isinstance(servers, dict):
            raise SourceError(f"{where}: group {group!r} is not an object of servers")
        for server, entry in servers.items():
            _numbers(entry, f"{where}: group {group!r}, server {server!r}")
    return Reading(
        groups=data,
        connections=connections,
        time_seconds=times.get("time"),
        load_msec=times.get("loadMsec"),
    )


def _numbers(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise SourceError(f"{where} is not an object")
    for key, value in entry.items():
        _check(value, f"{where}: {key}")


def _check(value: Any, where: str) -> None:
    # true and false pass: they are 1 and 0 to whoever computes with them.
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise SourceError(f"{where} is {value!r:.40}, not a number")
