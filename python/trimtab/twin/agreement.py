"""The twin against queueing theory: mean response times that are known exactly, and its speed.

M/M/1       E[T] = 1/(μ − λ)
M/M/c       E[T] = 1/μ + C(c, λ/μ)/(cμ − λ), C the Erlang C formula
M/G/1-PS    E[T] = E[S]/(1 − ρ), whatever the law of service times
two choices Σ_{i≥1} ρ^(2^i − 2), the mean over many servers (Mitzenmacher, 2001)
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.twin.workload import Requests, Servers, poisson
from trimtab.twin.world import World

__all__ = ["Check", "checks", "erlang_c_response", "speed_per_second"]

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]

# One server has nothing to choose: its balancer need not look at its own service times.
SELDOM_SECONDS: Final = 1e9

# Queues fill up before this share of the requests.
WARM_UP_RATIO: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One formula, in mean service times: what it says, the mean over runs, its standard error."""

    name: str
    formula: float
    twin: float
    error: float


def erlang_c_response(slots: int, load: float) -> float:
    """E[T] of M/M/c at that load, in mean service times."""
    offered = slots * load
    last = offered**slots / math.factorial(slots) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(slots)) + last)
    return 1 + waits / (slots * (1 - load))


def _mean(servers: Servers, requests: Requests, rule: str, seed: int) -> float:
    world = World(
        servers,
        requests,
        upstreams=["a"],
        addresses=[f"s{i}" for i in range(len(servers.slots))],
        rule=rule,
        maintenance_seconds=SELDOM_SECONDS,
        seed=seed,
    )
    world.finish()
    first = int(WARM_UP_RATIO * len(requests.at))
    return float((world.outcome.ended - requests.at)[first:].mean())


def _check(
    name: str,
    formula: float,
    servers: Servers,
    load: float,
    count: int,
    seeds: Sequence[int],
    work: Draw | None = None,
    rule: str = "trimtab",
) -> Check:
    means = []
    rate = load * float((servers.slots * servers.speed).sum())
    for seed in seeds:
        requests = poisson(count, rate, seed=seed)
        if work is not None:
            drawn = work(np.random.default_rng([seed, 1]), count)
            requests = replace(requests, work=drawn)
        means.append(_mean(servers, requests, rule, seed))
    error = float(np.std(means, ddof=1) / math.sqrt(len(means)))
    return Check(name=name, formula=formula, twin=float(np.mean(means)), error=error)


def _two_points(random: np.random.Generator, count: int) -> Floats:
    return random.choice([0.5, 5.5], count, p=[0.9, 0.1])


def checks(count: int = 100_000, runs: int = 10) -> list[Check]:
    """Every formula, from `runs` runs of `count` requests each."""
    seeds = range(runs)
    found = [
        _check(
            f"M/M/{slots}, load {load:g}",
            erlang_c_response(slots, load),
            Servers.alike(1, slots),
            load,
            count,
            seeds,
        )
        for slots, load in ((1, 0.5), (1, 0.8), (2, 0.7), (4, 0.9), (8, 0.8))
    ]
    laws: tuple[tuple[str, Draw | None], ...] = (("M/M/1", None), ("M/G/1", _two_points))
    found += [
        _check(f"{law}-PS, load 0.7", 1 / 0.3, Servers.alike(1, sharing=True), 0.7, count, seeds, w)
        for law, w in laws
    ]
    found.append(
        _check(
            "two choices, 100 servers, load 0.9",
            sum(0.9 ** (2**i - 2) for i in range(1, 10)),
            Servers.alike(100),
            0.9,
            count,
            seeds,
            rule="random_two",
        )
    )
    return found


def speed_per_second(count: int = 300_000) -> float:
    """Simulated requests per second of processor time, our rule on three servers of two slots."""
    servers = replace(Servers.alike(3, 2, classes=3), speed=np.array([1.0, 2.0, 4.0]))
    work = (0.015, 0.010, 0.060)
    shares = (0.6, 0.3, 0.1)
    rate = 0.8 * 14 / float(np.dot(work, shares))

    def run(size: int) -> float:
        requests = poisson(size, rate, shares=shares, mean_work=work, deadline=(0.1, 0.1, 0.1))
        world = World(servers, requests, upstreams=list("abc"), addresses=["s1", "s2", "s3"])
        began = time.process_time()
        world.finish()
        return size / (time.process_time() - began)

    run(1000)  # compiles
    return run(count)
