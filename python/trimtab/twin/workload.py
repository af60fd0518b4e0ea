"""What the simulator is given: servers, requests and changes as arrays.

Times are seconds, work is seconds on a slot of speed 1. M servers, C classes, N requests. Where
these come from (a scenario file, live statistics) is the caller's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Changes", "Requests", "Servers", "poisson"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """M servers.

    `slots` (M,): served at once, or cores of a processor-sharing server. `sharing` (M,): 1 for
    processor sharing, 0 for FIFO. `speed` (M,). `affinity` (M, C): factor on the work of a class.
    `thrash` (M, 3): beyond how many present (inf: never), ratio and floor, so that the speed is
    multiplied by max(floor, 1/(1 + ratio·excess)).
    """

    slots: Integers
    sharing: Integers
    speed: Floats
    affinity: Floats
    thrash: Floats

    @classmethod
    def alike(
        cls,
        count: int,
        slots: int = 1,
        *,
        classes: int = 1,
        speed: Sequence[float] | None = None,
        sharing: bool = False,
    ) -> "Servers":
        """`count` servers that differ at most in speed, without affinity and thrashing."""
        return cls(
            slots=np.full(count, slots, dtype=np.int64),
            sharing=np.full(count, int(sharing), dtype=np.int64),
            speed=np.array([1.0] * count if speed is None else speed, dtype=np.float64),
            affinity=np.ones((count, classes)),
            thrash=np.tile([np.inf, 0.0, 1.0], (count, 1)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """N requests in order of arrival, and what is known of their C classes.

    `at`, `work` (N,) and `kind` (N,), the class. `deadline` (C,): relative, in seconds.
    `mean_work` (C,): v_j.
    """

    at: Floats
    kind: Integers
    work: Floats
    deadline: Floats
    mean_work: Floats


def _none() -> Floats:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """K changes in order of time: from `at` on, `server` has this speed (0: hangs), fails this
    share of requests at once, and is down (1) or not. All of shape (K,); none by default.
    """

    at: Floats = field(default_factory=_none)
    server: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    speed: Floats = field(default_factory=_none)
    error: Floats = field(default_factory=_none)
    down: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def poisson(
    count: int,
    rate_per_second: float,
    *,
    shares: Sequence[float] = (1.0,),
    mean_work: Sequence[float] = (1.0,),
    deadline: Sequence[float] = (10.0,),
    seed: int = 0,
) -> Requests:
    """`count` Poisson arrivals with exponential work; one entry a class in each sequence."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(len(shares), count, p=list(shares)).astype(np.int64)
    means = np.array(mean_work, dtype=np.float64)
    return Requests(
        at=np.cumsum(rng.exponential(1 / rate_per_second, count)),
        kind=kind,
        work=rng.exponential(1.0, count) * means[kind],
        deadline=np.array(deadline, dtype=np.float64),
        mean_work=means,
    )
