"""What is sent: plain requests, the three request types of the social network, laws of work.

Pure: random streams in, requests and arrays out. When they are sent is in `schedule`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError

__all__ = [
    "SOCIAL",
    "SOCIAL_PATHS",
    "SOCIAL_SHARES",
    "WORK_LAWS",
    "Request",
    "Work",
    "Workload",
    "compose",
    "home",
    "user",
]

# Users of the socfb-Reed98 graph that DeathStarBench loads; ids 1 to 962.
USERS: Final = 962
_LETTERS: Final = np.frombuffer(
    b"qwertyuiopasdfghjklzxcvbnmQWERTYUIOPASDFGHJKLZXCVBNM1234567890", dtype=np.uint8
)
_DIGITS: Final = np.frombuffer(b"1234567890", dtype=np.uint8)
_FORM: Final = (("Content-Type", "application/x-www-form-urlencoded"),)
_METHODS: Final = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP/1.1 request. Host, Content-Length and the drawn headers are added when it is sent.

    Raises ConfigError for what cannot be sent as it is (a space in the path, a line end in a
    header, HEAD and CONNECT, whose answers are framed differently).
    """

    path: str = "/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ConfigError(f"method {self.method!r}: it must be one of {', '.join(_METHODS)}")
        if not self.path.startswith("/") or any(c <= " " or c >= "\x7f" for c in self.path):
            raise ConfigError(f"path {self.path!r}: it must begin with '/', in printable ASCII")
        for name, value in self.headers:
            if not name or any(c <= " " or c >= "\x7f" or c == ":" for c in name):
                raise ConfigError(f"header {name!r}: its name must be printable ASCII without ':'")
            if any(c in value for c in "\r\n\0") or not value.isascii():
                raise ConfigError(f"header {name!r}: its value must be one line of ASCII")
            if name.lower() in ("host", "content-length", "connection", "transfer-encoding"):
                raise ConfigError(f"header {name!r} is set by the generator itself")

    def parts(self, host: str) -> tuple[bytes, bytes]:
        """The request as two pieces between which further header lines fit."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.body or self.method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(self.body)}")
        return "".join(f"{line}\r\n" for line in lines).encode("ascii"), b"\r\n" + self.body


Workload = Callable[[np.random.Generator, int], list[Request]]  # (stream, count) -> requests


def _characters(rng: np.random.Generator, count: int, of: NDArray[np.uint8] = _LETTERS) -> bytes:
    return of[rng.integers(0, len(of), count)].tobytes()


def compose(rng: np.random.Generator, count: int) -> list[Request]:
    """Posts like those of DeathStarBench's compose-post.lua, unescaped as it sends them.

    256 random characters, 1 to 6 mentions, 1 to 6 links, 1 to 5 media.
    """
    requests = []
    for _ in range(count):
        own = int(rng.integers(1, USERS + 1))
        text = _characters(rng, 256)
        for _ in range(rng.integers(1, 7)):
            other = int(rng.integers(1, USERS))
            text += b" @username_%d" % (other + (other >= own))  # anyone but oneself
        for _ in range(rng.integers(1, 7)):
            text += b" http://" + _characters(rng, 64)
        media = [_characters(rng, 18, _DIGITS) for _ in range(rng.integers(1, 6))]
        body = b"username=username_%d&user_id=%d&text=%s&media_ids=[%s]&media_types=[%s]" % (
            own,
            own,
            text,
            b",".join(b'"%s"' % m for m in media),
            b",".join([b'"png"'] * len(media)),
        )
        requests.append(Request("/wrk2-api/post/compose", "POST", _FORM, body + b"&post_type=0"))
    return requests


def _reads(path: str, rng: np.random.Generator, count: int) -> list[Request]:
    users = rng.integers(1, USERS + 1, count)
    starts = rng.integers(0, 101, count)
    return [
        Request(f"{path}?user_id={u}&start={s}&stop={s + 10}", "GET", _FORM)
        for u, s in zip(users, starts, strict=True)
    ]


def home(rng: np.random.Generator, count: int) -> list[Request]:
    """Ten posts of a random user's home timeline, from a random one of the first hundred on."""
    return _reads("/wrk2-api/home-timeline/read", rng, count)


def user(rng: np.random.Generator, count: int) -> list[Request]:
    """Ten posts of a random user's own timeline, from a random one of the first hundred on."""
    return _reads("/wrk2-api/user-timeline/read", rng, count)


SOCIAL: Final[dict[str, Workload]] = {"compose": compose, "home": home, "user": user}
SOCIAL_PATHS: Final = {
    "compose": "/wrk2-api/post/compose",
    "home": "/wrk2-api/home-timeline/read",
    "user": "/wrk2-api/user-timeline/read",
}
# The mix of DeathStarBench's mixed-workload.lua.
SOCIAL_SHARES: Final = {"compose": 0.1, "home": 0.6, "user": 0.3}


def _lognormal(rng: np.random.Generator, count: int, cv: float) -> NDArray[np.float64]:
    sigma = math.sqrt(math.log(1 + cv * cv))
    return rng.lognormal(-sigma * sigma / 2, sigma, count)


def _pareto(rng: np.random.Generator, count: int, alpha: float) -> NDArray[np.float64]:
    """Bounded Pareto of mean 1 whose largest value is 1000 times its smallest."""
    ratio = 1000.0  # three decades: from a cache hit to a table scan
    cut = 1 - ratio**-alpha
    if alpha == 1:
        mean = math.log(ratio) / cut
    else:
        mean = alpha / (alpha - 1) * (1 - ratio ** (1 - alpha)) / cut
    values: NDArray[np.float64] = (1 - rng.random(count) * cut) ** (-1 / alpha) / mean
    return values


WORK_LAWS: Final = ("fixed", "exp", "lognormal", "pareto")


@dataclass(frozen=True, slots=True)
class Work:
    """Draws the work of requests: `mean_seconds` at rate 1, after a law of `WORK_LAWS`.

    `shape`: deviation over mean for "lognormal" (default 1), the exponent of the density's tail
    for "pareto" (default 1.5); the others have none. Calling it gives shape (count,), seconds.
    """

    law: str
    mean_seconds: float
    shape: float | None = None

    def __post_init__(self) -> None:
        if self.law not in WORK_LAWS:
            raise ConfigError(
                f"unknown law of work {self.law!r}; the laws are {', '.join(WORK_LAWS)}"
            )
        for value, what in ((self.mean_seconds, "mean"), (self.shape or 1.0, "shape")):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"the {what} of work is {value:g}; it must be above 0")

    def __call__(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """`count` draws of work in seconds."""
        if self.law == "fixed":
            values = np.ones(count)
        elif self.law == "exp":
            values = rng.exponential(1.0, count)
        elif self.law == "lognormal":
            values = _lognormal(rng, count, 1.0 if self.shape is None else self.shape)
        else:
            values = _pareto(rng, count, 1.5 if self.shape is None else self.shape)
        return values * self.mean_seconds
