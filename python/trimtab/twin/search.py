"""Search of the weights W_ij in the twin, by CMA-ES with common random numbers.

A candidate is log W, one number a server and class, within ±log 3 (what the guard lets through).
It is played on the same requests as every other candidate, so that their difference is what the
weights did. Its cost is the mean over these runs of a logarithm:

    art    of 0.01 + ART per request: the reward that learning uses, negated
    mean   of the mean response time, each in deadlines of its class
    tail   of their 99% quantile

A weight common to all servers of a class changes nothing, so the search subtracts it.
Source: N. Hansen, "The CMA evolution strategy: a tutorial", 2016; the package `cmaes`.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import DependencyError
from trimtab.learn.actions import WEIGHT_BOUND
from trimtab.learn.reward import FLOOR
from trimtab.model import PeerWeight, UpstreamWeights, Weights

__all__ = ["OBJECTIVES", "Found", "Played", "by_name", "ideal_weights", "search"]

Floats = NDArray[np.float64]

# Of log W at the start: most candidates lie within a factor of two of neutral.
FIRST_STEP: Final = 0.3

# What may be searched for, see the module.
OBJECTIVES: Final = ("art", "mean", "tail")


@dataclass(frozen=True, slots=True)
class Played:
    """A run of a candidate: its requests and their tardiness; mean and 99% quantile of the response
    times in deadlines, of which a failed request has ten at least."""

    requests: int
    tardiness: float
    mean: float
    tail: float

    def cost(self, objective: str) -> float:
        """What is minimised."""
        if objective == "art":
            return math.log(FLOOR + self.tardiness / max(self.requests, 1))
        return math.log(max(self.mean if objective == "mean" else self.tail, FLOOR))


# Plays candidates W (C, M): of each, in their order, what came of every run.
Play = Callable[[Sequence[Floats]], Iterator[Sequence[Played]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """W (C, M) with geometric mean 1 in each class; ART per 1000 requests of it and of W = 1, over
    all runs."""

    weights: Floats
    art_per_1000: float
    neutral_art_per_1000: float
    evaluations: int


def ideal_weights(
    upstreams: Sequence[str],
    addresses: Sequence[str],
    service_seconds: Sequence[float],
    deadline_seconds: Sequence[float],
    speed: Sequence[float],
    affinity: Floats,
    slots: Sequence[float],
    weights: Floats | None = None,
) -> Weights:
    """What the controller would say if its estimates were exact: `affinity` (M, C), W (C, M)."""
    w = np.ones((len(upstreams), len(addresses))) if weights is None else weights
    return Weights(
        upstreams={
            name: UpstreamWeights(
                deadline_seconds=deadline_seconds[j],
                service_time_seconds=service_seconds[j],
                peers={
                    a: PeerWeight(
                        weight=float(w[j, i]),
                        affinity=float(affinity[i, j]),
                        rate=float(speed[i]),
                        slots=float(slots[i]),
                    )
                    for i, a in enumerate(addresses)
                },
            )
            for j, name in enumerate(upstreams)
        },
        generation=1,
    )


def _bounded(log_w: Floats, shape: tuple[int, int]) -> Floats:
    table = log_w.reshape(shape)
    table = table - table.mean(axis=1, keepdims=True)
    bound = math.log(WEIGHT_BOUND)
    return np.asarray(np.exp(np.clip(table, -bound, bound)))


def _cost(runs: Sequence[Played], objective: str) -> tuple[float, float]:
    """What is minimised, and ART per 1000 requests."""
    requests, tardiness = sum(r.requests for r in runs), sum(r.tardiness for r in runs)
    cost = sum(r.cost(objective) for r in runs) / len(runs)
    return cost, 1000 * tardiness / max(requests, 1)


def search(
    play: Play,
    shape: tuple[int, int],
    *,
    objective: str = "art",
    evaluations: int = 120,
    seed: int = 0,
    told: Callable[[int, float], None] = lambda _count, _best: None,
) -> Found:
    """The best W found; neutral when nothing beats it.

    Args:
        play: plays a generation of candidates, each on the same runs; it may do so at once, as no
            candidate of a generation depends on another.
        shape: (C, M).
        objective: one of OBJECTIVES.
        evaluations: candidates, about; whole generations are played.
        seed: of the search.
        told: called with the candidates so far and the best ART per 1000.

    Raises DependencyError without the package `cmaes`.
    """
    try:
        cmaes: Any = importlib.import_module("cmaes")
    except ImportError:
        raise DependencyError(
            "the search needs the package cmaes: pip install 'trimtab[sim]'"
        ) from None
    neutral = np.ones(shape)
    (played,) = play([neutral])
    least, art = _cost(played, objective)
    neutral_art, best = art, neutral
    size = shape[0] * shape[1]
    if size < 2 or shape[1] < 2:
        return Found(weights=neutral, art_per_1000=art, neutral_art_per_1000=art, evaluations=1)
    bound = math.log(WEIGHT_BOUND)
    optimiser = cmaes.CMA(
        mean=np.zeros(size),
        sigma=FIRST_STEP,
        bounds=np.tile([-bound, bound], (size, 1)),
        seed=seed,
    )
    done = 1
    while done < evaluations and not optimiser.should_stop():
        candidates = [optimiser.ask() for _ in range(optimiser.population_size)]
        tables = [_bounded(candidate, shape) for candidate in candidates]
        generation = []
        for candidate, w, played in zip(candidates, tables, play(tables), strict=True):
            value, its_art = _cost(played, objective)
            generation.append((candidate, value))
            if value < least:
                least, best, art = value, w, its_art
            done += 1
            told(done, art)
        optimiser.tell(generation)
    return Found(weights=best, art_per_1000=art, neutral_art_per_1000=neutral_art, evaluations=done)


def by_name(
    table: Floats, upstreams: Sequence[str], addresses: Sequence[str], power: float = 1.0
) -> Mapping[str, Mapping[str, float]]:
    """W^power (C, M) as upstream -> address -> W."""
    return {
        name: {a: float(table[j, i] ** power) for i, a in enumerate(addresses)}
        for j, name in enumerate(upstreams)
    }
