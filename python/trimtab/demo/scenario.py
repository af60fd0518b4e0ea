"""Scenario files: emulated servers, request classes, load and timed events, checked.

TOML in, a `Scenario` out; docs/emulator.md is the reference of its keys. Here are also the
service laws; what events do to each server is in `timeline`, arrivals are in `bench.scenario`.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError
from trimtab.tables import integer, key, matching, number, one_of, section, tables

__all__ = ["Class", "Event", "Load", "Scenario", "Server", "load", "parse"]

MAX_SERVERS: Final = 1000
MAX_SLOTS: Final = 65535

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_PATH: Final = re.compile(r"/[A-Za-z0-9_.~/-]*\Z")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _affinity(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError("a table of class = factor, as { compose = 3.0 }")
    check = number(0.001, 1000)
    try:
        return {str(name): check(factor) for name, factor in value.items()}
    except ValueError as error:
        raise ValueError(f"a table of class = factor, each {error}") from None


def _positions(value: Any) -> tuple[int, ...]:
    """Server numbers from 1; () means all."""
    meaning = 'a server number from 1, a list of them, or "all"'
    if value == "all":
        return ()
    listed = value if isinstance(value, list) else [value]
    if not listed or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in listed):
        raise ValueError(meaning)
    return tuple(listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """[[server]]: `count` servers alike.

    `slots` requests are served at once: the threads of a FIFO server, the cores of a
    processor-sharing one. `affinity` multiplies the work of a class here. With more than
    `thrash_beyond` requests present (queued ones too), the speed is divided by
    1 + thrash_ratio·(excess), down to `thrash_floor` of itself.
    """

    count: int = key(integer(1, MAX_SERVERS), default=1)
    slots: int = key(integer(1, MAX_SLOTS))
    speed: float = key(number(0.001, 1000), default=1.0)
    discipline: str = key(one_of("fifo", "ps"), default="fifo")
    affinity: Mapping[str, float] = key(_affinity, default_factory=dict)
    thrash_beyond: int | None = key(integer(1, MAX_SLOTS), default=None)
    thrash_ratio: float = key(number(0, 10), default=0.1)
    thrash_floor: float = key(number(0.01, 1), default=0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """[[class]]: one kind of request; `service_seconds` is its mean work on a slot of speed 1."""

    name: str = key(matching(_NAME, "letters, digits, '_' and '-'"))
    share: float | None = key(number(0, 1), default=None)
    requests_per_second: float | None = key(number(0.001, 1e6), default=None)
    service_seconds: float = key(number(1e-5, 3600))
    law: str = key(
        one_of("exponential", "lognormal", "bounded_pareto", "fixed"), default="exponential"
    )
    cv: float = key(number(0.01, 100), default=1.0)  # lognormal: deviation over mean
    tail_index: float = key(number(0.1, 10), default=1.5)  # bounded_pareto
    bound_ratio: float = key(number(1.01, 1e9), default=1000.0)  # bounded_pareto: largest/smallest
    deadline_seconds: float = key(number(0.0001, 3600))
    priority: float = key(number(1, 1000), default=1.0)
    path: str = key(matching(_PATH, 'a path, as "/compose"'), default="")
    response_bytes: int = key(integer(0, 16_777_216), default=2048)

    def draw(self, count: int, random: np.random.Generator) -> NDArray[np.float64]:
        """The work of `count` requests in seconds at speed 1, mean `service_seconds`."""
        if self.law == "fixed":
            return np.full(count, self.service_seconds)
        if self.law == "exponential":
            return random.exponential(self.service_seconds, count)
        if self.law == "lognormal":
            variance = math.log1p(self.cv**2)
            mean = math.log(self.service_seconds) - variance / 2
            return random.lognormal(mean, math.sqrt(variance), count)
        # Density ∝ x^(-a-1) on [low, low·ratio], by inversion; `unit` is the mean for low = 1.
        a, ratio = self.tail_index, self.bound_ratio
        mass = 1 - ratio**-a
        power = math.log(ratio) if a == 1 else (1 - ratio ** (1 - a)) / (a - 1)
        unit = a / mass * power
        uniform = random.random(count)
        return np.asarray(self.service_seconds / unit * (1 - uniform * mass) ** (-1 / a))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """[load]: how much arrives. `fraction` is of the capacity; a burst is a two-state Markov
    modulation whose mean rate is the stated one: `burst_ratio` times the calm rate, for
    `burst_seconds`, then calm for `calm_seconds` (both mean values of exponential times).
    """

    fraction: float | None = key(number(0.001, 10), default=None)
    requests_per_second: float | None = key(number(0.001, 1e6), default=None)
    arrivals: str = key(one_of("exp", "fixed", "norm", "zipf"), default="exp")
    burst_ratio: float | None = key(number(1, 1000), default=None)
    burst_seconds: float = key(number(0.001, 3600), default=1.0)
    calm_seconds: float = key(number(0.001, 3600), default=4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """[[event]]: what happens to a server between two moments, given as fractions of the run.

    slow: speed divided by `factor`. noisy: the same, off and on in turn for exponential times of
    mean `off_seconds` and `on_seconds`. error: a share `ratio` of requests is answered 500 at
    once. hang: nothing is served, work goes on afterwards. crash: connections are reset, new ones
    refused, work is lost.
    """

    kind: str = key(one_of("slow", "noisy", "error", "hang", "crash"))
    server: tuple[int, ...] = key(_positions)
    from_ratio: float = key(number(0, 1), default=0.0)
    to_ratio: float = key(number(0, 1), default=1.0)
    factor: float = key(number(0.01, 1000), default=4.0)
    ratio: float = key(number(0, 1), default=1.0)
    on_seconds: float = key(number(0.001, 3600), default=1.0)
    off_seconds: float = key(number(0.001, 3600), default=4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """The top-level keys."""

    description: str = key(_text, default="")
    duration_seconds: float = key(number(0.1, 86400), default=60.0)
    warm_up_seconds: float = key(number(0, 3600), default=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole scenario; `servers` has one entry a server. Times are seconds of the run."""

    name: str
    path: str
    description: str
    duration_seconds: float
    warm_up_seconds: float
    load: Load
    servers: tuple[Server, ...]
    classes: tuple[Class, ...]
    events: tuple[Event, ...]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of each class in the arrivals, shape (classes,), sum 1."""
        given = [c.share if c.share is not None else c.requests_per_second for c in self.classes]
        parts = np.array([1.0 if part is None else part for part in given])
        return np.asarray(parts / parts.sum())

    @property
    def affinity(self) -> NDArray[np.float64]:
        """Factor on the work of each class at each server, shape (servers, classes)."""
        return np.array([[s.affinity.get(c.name, 1.0) for c in self.classes] for s in self.servers])

    @property
    def capacity_per_second(self) -> float:
        """The largest rate, in this mix of classes, that some assignment to servers can carry.

        Without affinities: the sum of slots·speed over the mean work. With them: a linear
        program over the share of each server's time given to each class. Events and thrashing
        are left out.
        """
        power = np.array([s.slots * s.speed for s in self.servers])
        work = np.array([c.service_seconds for c in self.classes])
        affinity = self.affinity
        if (affinity == 1).all():
            return float(power.sum() / (self.shares @ work))
        from scipy.optimize import linprog

        # Variables: time share of server i for class j, then the rate, which is maximised.
        servers, classes = affinity.shape
        cost = np.zeros(servers * classes + 1)
        cost[-1] = -1.0
        busy = np.zeros((servers, cost.size))
        served = np.zeros((classes, cost.size))
        for i in range(servers):
            for j in range(classes):
                busy[i, i * classes + j] = 1.0
                served[j, i * classes + j] = power[i] / (affinity[i, j] * work[j])
        served[:, -1] = -self.shares
        found = linprog(cost, busy, np.ones(servers), served, np.zeros(classes), bounds=(0, None))
        return float(found.x[-1])

    @property
    def requests_per_second(self) -> float:
        """Mean rate over all classes."""
        if self.load.fraction is not None:
            return self.load.fraction * self.capacity_per_second
        if self.load.requests_per_second is not None:
            return self.load.requests_per_second
        return sum(c.requests_per_second or 0.0 for c in self.classes)


def _check_load(load_: Load, classes: Sequence[Class], path: str) -> None:
    rates = [c.requests_per_second is not None for c in classes]
    shares = [c.share is not None for c in classes]
    given = [load_.fraction is not None, load_.requests_per_second is not None, any(rates)]
    if sum(given) != 1:
        raise ConfigError(
            f"{path}: give the load once: fraction or requests_per_second in [load], or "
            "requests_per_second in every [[class]]"
        )
    if any(rates):
        if not all(rates) or any(shares):
            raise ConfigError(
                f"{path}: with requests_per_second in one [[class]], every class needs it, and "
                "none a share"
            )
    elif len(classes) > 1 or any(shares):
        if not all(shares):
            raise ConfigError(f"{path}: every [[class]] needs a share, as share = 0.5")
        total = sum(c.share or 0.0 for c in classes)
        if abs(total - 1) > 1e-6:
            raise ConfigError(f"{path}: the shares of the classes sum to {total:g}; they must to 1")


def _check_whole(scenario: Scenario) -> None:
    """What holds between sections."""
    path = scenario.path
    names = [c.name for c in scenario.classes]
    for kind, values in (("name", names), ("path", [c.path for c in scenario.classes])):
        for value in values:
            if values.count(value) > 1:
                raise ConfigError(f"{path}: two [[class]] have the {kind} {value!r}")
    for server in scenario.servers:
        for name in server.affinity:
            if name not in names:
                raise ConfigError(
                    f"{path}: affinity in [[server]] names the class {name!r}; there are: "
                    + ", ".join(names)
                )
    for n, event in enumerate(scenario.events, 1):
        for position in event.server:
            if position > len(scenario.servers):
                raise ConfigError(
                    f"{path}: [[event]] {n} names server {position}; there are "
                    f"{len(scenario.servers)}"
                )
        if event.to_ratio <= event.from_ratio:
            raise ConfigError(
                f"{path}: [[event]] {n} ends at to_ratio = {event.to_ratio:g}, not after its "
                f"from_ratio = {event.from_ratio:g}"
            )
    if scenario.warm_up_seconds >= scenario.duration_seconds:
        raise ConfigError(
            f"{path}: warm_up_seconds is {scenario.warm_up_seconds:g}; it must be less than "
            f"duration_seconds ({scenario.duration_seconds:g})"
        )
    _check_load(scenario.load, scenario.classes, path)


def _class(table: Any, position: int, path: str) -> Class:
    values = section(Class, table, f"[[class]] {position}", path)
    values.setdefault("path", f"/{values['name']}")
    return Class(**values)


def parse(text: str, path: str = "<text>") -> Scenario:
    """The scenario in a TOML text. Raises ConfigError, which names `path`, key and remedy."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    sections = ("load", "server", "class", "event")  # all but load with double brackets
    for name in data:
        if name not in sections and name not in _Whole.__dataclass_fields__:
            allowed = ", ".join([*_Whole.__dataclass_fields__, *(f"[{s}]" for s in sections)])
            raise ConfigError(f"{path}: unknown key {name!r}; allowed: {allowed}")
    top = section(_Whole, {k: v for k, v in data.items() if k not in sections}, "the file", path)
    listed = {
        name: list(enumerate(tables(data.get(name, []), f"[[{name}]]", path), 1))
        for name in ("server", "class", "event")
    }
    for name in ("server", "class"):
        if not listed[name]:
            raise ConfigError(f"{path}: there is no [[{name}]]")
    kinds = [Server(**section(Server, t, f"[[server]] {n}", path)) for n, t in listed["server"]]
    servers = tuple(kind for kind in kinds for _ in range(kind.count))
    if len(servers) > MAX_SERVERS:
        raise ConfigError(f"{path}: {len(servers)} servers in all; at most {MAX_SERVERS}")
    whole = _Whole(**top)
    scenario = Scenario(
        name=Path(path).stem,
        path=path,
        description=whole.description,
        duration_seconds=whole.duration_seconds,
        warm_up_seconds=whole.warm_up_seconds,
        load=Load(**section(Load, data.get("load", {}), "[load]", path)),
        servers=servers,
        classes=tuple(_class(t, n, path) for n, t in listed["class"]),
        events=tuple(
            Event(**section(Event, t, f"[[event]] {n}", path)) for n, t in listed["event"]
        ),
    )
    _check_whole(scenario)
    return scenario


def load(path: str | Path) -> Scenario:
    """The scenario in a TOML file. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such scenario file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return parse(text, str(path))
