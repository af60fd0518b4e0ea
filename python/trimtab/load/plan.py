"""Where to send, and the schedule written out as bytes for there."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError
from trimtab.load.schedule import Schedule

__all__ = ["Plan", "Target", "plan", "probe", "target"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send: host and port to connect to, and what the Host header says."""

    host: str
    port: int
    authority: str
    path: str = "/"

    @property
    def url(self) -> str:
        """Scheme and authority."""
        return f"http://{self.authority}"


def target(url: str) -> Target:
    """The target that a URL names. Raises ConfigError when it is not a plain http URL."""
    meaning = f"{url!r} is not a URL to send load to; it must be like http://127.0.0.1:18080/path"
    if any(c <= " " or c >= "\x7f" for c in url):
        raise ConfigError(meaning)
    try:
        parts = urlsplit(url)
        port = 80 if parts.port is None else parts.port
    except ValueError:
        raise ConfigError(meaning) from None
    if parts.scheme == "https":
        raise ConfigError(f"{url!r}: TLS is not supported; send the load to a plain http listener")
    if parts.scheme != "http" or not parts.hostname or not port:
        raise ConfigError(meaning)
    if "@" in parts.netloc or parts.fragment:
        raise ConfigError(meaning)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.hostname, port, parts.netloc, path)


def probe(where: Target, timeout_seconds: float = 5.0) -> None:
    """Connect once and hang up. Raises ConfigError when nothing listens there."""
    try:
        socket.create_connection((where.host, where.port), timeout_seconds).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot reach {where.url}: {reason}; nothing was sent") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one process sends. Arrays have shape (n,), ascending in `times`.

    `payload` points into `payloads`, each a request in two pieces between which the header with
    its work goes; `work_seconds` is NaN where there is none.
    """

    times: NDArray[np.float64]
    payload: NDArray[np.int32]
    work_seconds: NDArray[np.float64]
    payloads: Sequence[tuple[bytes, bytes]]

    def __len__(self) -> int:
        return len(self.times)

    def part(self, places: NDArray[np.intp]) -> "Plan":
        """The rows at `places`, in that order."""
        return Plan(
            times=self.times[places],
            payload=self.payload[places],
            work_seconds=self.work_seconds[places],
            payloads=self.payloads,
        )


def plan(schedule: Schedule, where: Target) -> Plan:
    """The schedule with its requests written out for this target."""
    payloads = [r.parts(where.authority) for variants in schedule.requests for r in variants]
    first = np.cumsum([0, *(len(v) for v in schedule.requests)])[:-1]
    return Plan(
        times=schedule.times,
        payload=(first[schedule.class_index] + schedule.variant).astype(np.int32),
        work_seconds=schedule.work_seconds,
        payloads=payloads,
    )
