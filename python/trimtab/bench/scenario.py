"""A scenario's requests: what arrives when, with which work, the same for every balancer.

The files are checked by `demo.scenario`; here they meet the load generator's schedule, and the
simulator gets both as arrays.
"""

import math
from importlib import resources
from typing import Final

import numpy as np

from trimtab.demo.scenario import Class, Scenario, load
from trimtab.demo.timeline import changes
from trimtab.errors import ConfigError
from trimtab.load.schedule import Bursts, ClassLoad, Draw, Schedule, build
from trimtab.load.workloads import Request
from trimtab.twin.bounds import Summary, bounds
from trimtab.twin.workload import Changes, Requests, Servers

__all__ = [
    "class_loads",
    "find",
    "names",
    "scenario_bounds",
    "schedule",
    "simulator_input",
]

_DIRECTORY: Final = resources.files("trimtab.bench") / "scenarios"

# The order of the benchmark's table; files beyond these come after them.
_ORDER: Final = (
    "equal",
    "speeds",
    "slowdown",
    "slowdown-overload",
    "three-classes",
    "failing",
    "hanging",
    "twelve",
    "affinity",
    "sharing",
    "thrashing",
    "noisy",
    "bursts",
    "overload",
)


def names() -> list[str]:
    """The scenarios that ship with the package, in the order of the benchmark's table."""
    files = {e.name.removesuffix(".toml") for e in _DIRECTORY.iterdir() if e.name.endswith(".toml")}
    return [*(n for n in _ORDER if n in files), *sorted(files - set(_ORDER))]


def find(name: str) -> Scenario:
    """The scenario of that name, or in that file when it ends in ".toml". Raises ConfigError."""
    if name.endswith(".toml"):
        return load(name)
    if name not in names():
        raise ConfigError(
            f"no scenario {name!r}; there are {', '.join(names())}, or name a .toml file"
        )
    with resources.as_file(_DIRECTORY / f"{name}.toml") as path:
        return load(path)


def _work(kind: Class) -> Draw:
    return lambda rng, count: kind.draw(count, rng)


def class_loads(scenario: Scenario) -> list[ClassLoad]:
    """The load of each class; bursts are shared, as when the users of a site come together."""
    load_ = scenario.load
    bursts = None
    if load_.burst_ratio is not None:
        bursts = Bursts(load_.burst_ratio, load_.burst_seconds, load_.calm_seconds, shared=True)
    return [
        ClassLoad(
            name=kind.name,
            rate_per_second=float(share * scenario.requests_per_second),
            law=load_.arrivals,
            request=Request(path=kind.path),
            deadline_seconds=kind.deadline_seconds,
            work=_work(kind),
            bursts=bursts,
        )
        for kind, share in zip(scenario.classes, scenario.shares, strict=True)
    ]


def schedule(scenario: Scenario, seed: int, seconds: float | None = None) -> Schedule:
    """Every request of a run: time, class and work. The same for the same seed."""
    length = scenario.duration_seconds if seconds is None else seconds
    return build(class_loads(scenario), seconds=length, seed=seed)


def simulator_input(scenario: Scenario, drawn: Schedule) -> tuple[Servers, Requests, Changes]:
    """The servers, the requests, and the timeline of a run as the simulator's arrays."""
    timeline = changes(scenario, drawn.seed, drawn.seconds)
    servers = scenario.servers
    return (
        Servers(
            slots=np.array([s.slots for s in servers], dtype=np.int64),
            sharing=np.array([s.discipline == "ps" for s in servers], dtype=np.int64),
            speed=np.array([s.speed for s in servers]),
            affinity=scenario.affinity,
            thrash=np.array(
                [(s.thrash_beyond or math.inf, s.thrash_ratio, s.thrash_floor) for s in servers]
            ),
        ),
        Requests(
            at=drawn.times,
            kind=drawn.class_index.astype(np.int64),
            work=drawn.work_seconds,
            deadline=np.array([c.deadline_seconds for c in scenario.classes]),
            mean_work=np.array([c.service_seconds for c in scenario.classes]),
        ),
        Changes(
            at=np.array([c.at_seconds for c in timeline], dtype=np.float64),
            server=np.array([c.server for c in timeline], dtype=np.int64),
            speed=np.array([c.speed for c in timeline], dtype=np.float64),
            error=np.array([c.error_ratio for c in timeline], dtype=np.float64),
            down=np.array([c.down for c in timeline], dtype=np.int64),
        ),
    )


def scenario_bounds(scenario: Scenario, drawn: Schedule) -> dict[str, Summary]:
    """The simulated bounds on this run's requests, the warm-up left out."""
    servers, requests, timeline = simulator_input(scenario, drawn)
    return bounds(servers, requests, timeline, after_seconds=scenario.warm_up_seconds)
