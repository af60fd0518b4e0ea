"""How far the estimates are from the truth, where the truth is known: in the twin.

The production controller steers simulated servers without learning; what its estimator says after
half a minute and after five is compared with what the scenario was made of. Each run is one case
and one seed, in a process of its own, as many at once as there are cores.

What is compared is what can be known. Service times, rates and affinities come with two free
factors (all rates twice as high and all work twice as much is the same system), so the truth is
put into the estimator's units: log v_j and log r_i are the row and column effects of log s_ij, the
rates' geometric mean is 1. Burstiness is the index of dispersion of a window of a second: of a
Poisson process 1, of one that is modulated between two rates by exponential times

    I(t) = 1 + 2·Var(λ)/(λ̄·γ)·(1 − (1 − e^(−γ·t))/(γ·t)),   γ = 1/burst + 1/calm

(Heffes and Lucantoni, IEEE JSAC 4 (1986), 856).
"""

import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.bench.scenario import find
from trimtab.config import Config
from trimtab.demo.scenario import Scenario, parse
from trimtab.estimate import Estimates
from trimtab.model import Weights
from trimtab.policy import Neutral
from trimtab.training.live import live, world_of
from trimtab.training.setting import addresses_of, configuration, loaded

__all__ = ["CASES", "LOAD", "MARKS", "QUANTITIES", "SLOTS", "Case", "Found", "errors", "measure"]

Floats = NDArray[np.float64]

# Seconds after which it is looked: when the target is to be met, and when memory is full.
MARKS: Final = (30.0, 300.0)

LOAD: Final = 0.7

# Slots to be found, in one class on three servers alike.
SLOTS: Final = tuple(range(1, 17))

# What has an error as a ratio, in the order of the table.
QUANTITIES: Final = (
    "service time",
    "rate",
    "affinity",
    "arrival rate",
    "service cv²",
    "burstiness",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is estimated: a scenario of the benchmark, or (with `slots`) servers alike; at `load`
    of its capacity, or its own; `told`: the configuration gives the slots."""

    scenario: str = ""
    slots: int = 0
    load: float | None = LOAD
    told: bool = True

    def build(self) -> Scenario:
        """The scenario."""
        if self.slots:
            return parse(_ALIKE.format(load=self.load, slots=self.slots), f"slots-{self.slots}")
        given = find(self.scenario)
        return loaded(given, 1.0 if self.load is None else self.load / _fraction(given))

    def __str__(self) -> str:
        told = "" if self.told else ", slots not given"
        load = _fraction(find(self.scenario)) if self.load is None else self.load
        return f"{self.scenario}, {load:.0%} load{told}"


def _fraction(of: Scenario) -> float:
    """Its own load, as a share of its capacity."""
    return of.requests_per_second / of.capacity_per_second


_ALIKE: Final = """
[load]
fraction = {load}
[[server]]
count = 3
slots = {slots}
[[class]]
name = "one"
service_seconds = 0.02
deadline_seconds = 0.06
"""

CASES: Final = (
    Case(scenario="speeds"),
    Case(scenario="three-classes"),
    Case(scenario="three-classes", told=False),
    Case(scenario="affinity", load=None),
    Case(scenario="affinity", load=None, told=False),
    Case(scenario="sharing"),
    Case(scenario="sharing", told=False),
    Case(scenario="bursts", load=None),
)


@dataclass(frozen=True, slots=True)
class Found:
    """Of one run at one mark: by quantity the errors as ratios (inf: nothing known), the slots by
    server (0: unknown) beside the true ones, and whether the discipline of each server is right
    (1), not sure (0) or wrong (−1)."""

    errors: Mapping[str, tuple[float, ...]]
    slots: tuple[tuple[int, int], ...]
    disciplines: tuple[int, ...]


class _Watching(Neutral):
    """Estimates only, and keeps the last."""

    estimates = Estimates()

    def propose(
        self, estimates: Estimates, deadlines: Mapping[str, float], profile: str
    ) -> Weights:
        """The weights of neutral."""
        self.estimates = estimates
        return super().propose(estimates, deadlines, profile)


def measure(
    cases: Sequence[Case], seeds: Sequence[int], seconds: float = MARKS[-1]
) -> Iterator[tuple[Case, dict[float, Found]]]:
    """Each case on each seed, as they are done, by processes on all cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        # The longest ones first.
        order = sorted(cases, key=lambda c: -c.slots)
        waiting = {pool.submit(_run, c, s, seconds): c for c in order for s in seeds}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _run(case: Case, seed: int, seconds: float) -> dict[float, Found]:
    scenario = case.build()
    given = configuration(scenario)
    peers = {
        u.name: tuple(replace(p, slots=p.slots if case.told else None) for p in u.peers)
        for u in given.upstreams
    }
    config = replace(
        given,
        learning=replace(given.learning, enabled=False),
        upstreams=tuple(replace(u, peers=peers[u.name]) for u in given.upstreams),
    )
    policy = _Watching(config)
    found: dict[float, Found] = {}
    interval = config.policy.interval_seconds

    def told(now: float, _note: str) -> None:
        for mark in MARKS:
            if abs(now - mark) < interval / 2:
                found[mark] = errors(policy.estimates, scenario, config)

    world = world_of(scenario, config, seed, seconds, delay_seconds=interval / 2)
    live(world, config, policy, seconds, told)
    return found


def errors(of: Estimates, scenario: Scenario, config: Config) -> Found:
    """The errors of estimates of that scenario; the configuration names its parts."""
    names, addresses = [u.name for u in config.upstreams], addresses_of(config)
    nu, rho, alpha = _truth(scenario)
    rates = scenario.requests_per_second * scenario.shares
    off: dict[str, list[float]] = {q: [] for q in QUANTITIES}

    def add(quantity: str, value: float | None, truth: float) -> None:
        off[quantity].append(math.inf if value is None else abs(value / truth - 1))

    for j, name in enumerate(names):
        add("service time", of.service_time_seconds.get(name), math.exp(nu[j]))
        add("arrival rate", of.arrivals_per_second.get(name), rates[j])
        add("service cv²", of.service_cv2.get(name), _cv2(scenario, j))
        add("burstiness", of.burstiness.get(name), _dispersion(scenario, rates[j]))
        for i, address in enumerate(addresses):
            # What has no evidence is 1 to the rule.
            value = of.affinity.get(name, {}).get(address, 1.0)
            add("affinity", value, math.exp(alpha[j, i]))
    for i, address in enumerate(addresses):
        add("rate", of.rates.get(address), math.exp(rho[i]))
    slots, disciplines = [], []
    for server, address in zip(scenario.servers, addresses, strict=True):
        k = of.slots.get(address)
        slots.append((k.value if k and k.sure else 0, server.slots))
        d = of.disciplines.get(address)
        right = d is not None and d.value == server.discipline
        disciplines.append(0 if d is None or not d.sure else 1 if right else -1)
    return Found({q: tuple(v) for q, v in off.items()}, tuple(slots), tuple(disciplines))


def _truth(scenario: Scenario) -> tuple[Floats, Floats, Floats]:
    """log v [classes], log r [servers] and log a [classes, servers], in the estimator's units."""
    work = np.log([c.service_seconds for c in scenario.classes])
    speed = np.log([s.speed for s in scenario.servers])
    y = work[:, None] + np.log(scenario.affinity.T) - speed[None, :]
    nu, rho = y.mean(axis=1), y.mean() - y.mean(axis=0)
    return nu, rho, y - nu[:, None] + rho[None, :]


def _cv2(scenario: Scenario, j: int) -> float:
    """The squared coefficient of variation of a class's work; only what the cases have."""
    kind = scenario.classes[j]
    return {"exponential": 1.0, "fixed": 0.0, "lognormal": kind.cv**2}[kind.law]


def _dispersion(scenario: Scenario, rate: float, seconds: float = 1.0) -> float:
    of = scenario.load
    if of.burst_ratio is None:
        return 1.0
    burst = of.burst_seconds / (of.burst_seconds + of.calm_seconds)
    calm_rate = rate / (1 + burst * (of.burst_ratio - 1))
    variance = burst * (1 - burst) * (calm_rate * (of.burst_ratio - 1)) ** 2
    gamma = 1 / of.burst_seconds + 1 / of.calm_seconds
    span = gamma * seconds
    return 1 + 2 * variance / (rate * gamma) * (1 + math.expm1(-span) / span)
