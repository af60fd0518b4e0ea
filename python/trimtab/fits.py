"""Two fits to counters: service times of classes at peers, and the slots of a server.

The model: a request of class j on peer i that finds a free slot takes

    s_ij = v_j · a_ij / r_i

in the mean, v_j the class's service time on a peer of rate 1, r_i the peer's rate, a_ij the
affinity. In logarithms it is a two-way table. With y_ij the log of the measured mean, n_ij the
number of requests behind it and c² their squared coefficient of variation, y_ij has the variance
c²/n_ij = 1/w_ij. Log affinities are taken as drawn with mean 0 and variance 1/κ, so that

    minimise  Σ w_ij·(y_ij − ν_j + ρ_i − α_ij)² + κ·Σ α_ij²      over ν, ρ, α

For given ν and ρ, α_ij = w_ij/(w_ij + κ)·(y_ij − ν_j + ρ_i): nothing without evidence, all of the
residual with much. Put back, it leaves weighted least squares for ν and ρ with the weights
u_ij = w_ij·κ/(w_ij + κ), which saturate, so that a busy pair does not outvote the others. The
peers are eliminated, and the classes' normal equations solved exactly. A pair without data has
the weight 0. κ follows from the data: it is where the residuals are as large as they should be,
Σ u_ij·(y_ij − ν_j + ρ_i)² = pairs − free parameters (Paule and Mandel, 1982), so that servers that
treat all classes alike are averaged over classes, and others are not. Adding a constant to ν and
ρ changes nothing: within each set of classes and peers that share data, ρ is given the weighted
mean 0 (the geometric mean of the rates is 1).

No I/O, no memory: numbers in, numbers out. `estimate` keeps the sums that go in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.model import CONCURRENCY_LEVELS

__all__ = ["Slots", "least_slots", "slots", "two_way"]

Floats = NDArray[np.float64]

# 1/κ is the variance of log affinities: from 3% up or down, less than anyone could use, to a
# factor of e. Between them, without enough pairs to tell, 25%: a class three times slower somewhere
# is then believed by half after 16 requests and by 94% after 250.
KAPPA_BOUNDS: Final = (1.0, 1000.0)
KAPPA_UNKNOWN: Final = 16.0

# Halvings of the range of κ: to within 6%, closer than its own uncertainty by far.
KAPPA_STEPS: Final = 7

# A peer's log rate is shrunk as if two requests had said that it is like the others.
RATE_EVIDENCE: Final = 2.0

# Two units of log-likelihood are an interval of about 95% for one parameter.
SLOTS_LOG_LIKELIHOOD: Final = 2.0

# Completions before the likelihood of the slots is looked at.
SLOTS_LEAST_COMPLETIONS: Final = 200.0


def _components(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each column (peer) of a table the number of its connected part; −1 without data."""
    parts = np.full(present.shape[1], -1, dtype=np.int64)
    for column in np.flatnonzero(present.any(axis=0)):
        if parts[column] >= 0:
            continue
        reached: NDArray[np.bool_] = np.zeros(present.shape[1], dtype=np.bool_)
        reached[column] = True
        while True:
            rows = present[:, reached].any(axis=1)
            more = np.asarray(present[rows].any(axis=0))
            if (more == reached).all():
                break
            reached = more
        parts[reached] = column
    return parts


def two_way(
    log_means: Floats, counts: Floats, cv2: Floats, kappa: float | None = None
) -> tuple[Floats, Floats, Floats]:
    """ν [classes], ρ [peers] and α [classes, peers] of the table described above.

    log_means, counts and cv2 are [classes, peers]; a count of 0 is a missing pair, whose other
    entries are ignored. κ is estimated unless it is given. A class or peer without any data
    gets 0.
    """
    present = counts > 0
    w = counts / np.maximum(cv2, 1e-9)
    # The logarithm of a mean of n is too small by c²/2n in the mean.
    y = np.where(present, log_means + 1 / (2 * np.where(present, w, 1.0)), 0.0)
    parts = _components(present)
    if kappa is None:
        unknowns = present.any(axis=0).sum() + present.any(axis=1).sum()
        free = int(present.sum() - unknowns + len(np.unique(parts[parts >= 0])))
        kappa = _kappa(y, w, free)
    nu, rho = _main_effects(y, w * kappa / (w + kappa))
    evidence = counts.sum(axis=0)
    trust = evidence / (evidence + RATE_EVIDENCE)
    for part in np.unique(parts[parts >= 0]):
        inside = parts == part
        shift = float((trust * rho)[inside].sum() / trust[inside].sum())
        rho[inside] -= shift
        nu[present[:, inside].any(axis=1)] -= shift
    rho *= trust
    alpha = np.where(present, w / (w + kappa) * (y - nu[:, None] + rho[None, :]), 0.0)
    return nu, rho, alpha


def _main_effects(y: Floats, u: Floats) -> tuple[Floats, Floats]:
    """ν and ρ of least Σ u·(y − ν + ρ)², of all that are equally good the shortest ν."""
    peer_sum = u.sum(axis=0)
    safe = np.where(peer_sum > 0, peer_sum, 1.0)
    peer_mean = (u * y).sum(axis=0) / safe
    matrix = np.diag(u.sum(axis=1)) - (u / safe) @ u.T
    right = (u * y).sum(axis=1) - u @ peer_mean
    nu = np.linalg.lstsq(matrix, right, rcond=1e-10)[0]
    return nu, np.where(peer_sum > 0, (u.T @ nu) / safe - peer_mean, 0.0)


def _kappa(y: Floats, w: Floats, free: int) -> float:
    """κ by Paule and Mandel: the weighted squares of the residuals fall as 1/κ rises."""
    if free < 1:
        return KAPPA_UNKNOWN
    low, high = (math.log(k) for k in KAPPA_BOUNDS)
    for _ in range(KAPPA_STEPS):
        middle = (low + high) / 2
        kappa = math.exp(middle)
        u = w * kappa / (w + kappa)
        nu, rho = _main_effects(y, u)
        if float((u * (y - nu[:, None] + rho[None, :]) ** 2).sum()) > free:
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Estimated slots of one server, with the interval of about 95%."""

    value: int
    low: int
    high: int

    @property
    def sure(self) -> bool:
        """Whether the interval is one to either side at most, or an eighth of the value."""
        return self.high - self.low <= max(2, self.value // 4)


def slots(
    completions: Sequence[float], seconds: Sequence[float], known: Slots | None = None
) -> Slots | None:
    """The slots of a server from `completions_at` and `seconds_at`; None when they do not tell.

    With k slots of rate μ, completions at n in flight come at the rate min(n, k)·μ. Given the
    times T_n the counts D_n are Poisson; with μ at its best value for each k the log-likelihood is

        L(k) = Σ_n D_n·log min(n, k) − D·log Σ_n min(n, k)·T_n

    Unknown when the interval reaches the largest concurrency seen: beyond it all k are alike.
    The last entry (32 and beyond) is left out, its concurrency is not known.

    `known`, what was sure before, stays as long as nothing sure contradicts it: a balancer that
    knows the slots seldom goes beyond them, and so sees less of them than one that does not.
    """
    known = known if known and known.sure else None
    seen = _interval(completions, seconds)
    if seen is None:
        return known
    value, low, high, is_open = seen
    found = None if is_open else Slots(value=value, low=low, high=high)
    sure = found is not None and found.sure
    if known and not sure and low <= known.value and (is_open or known.value <= high):
        return known
    return found


def least_slots(completions: Sequence[float], seconds: Sequence[float]) -> int:
    """The slots that a server has at least, by the same likelihood; 1 when it does not tell."""
    seen = _interval(completions, seconds)
    return seen[1] if seen else 1


def _interval(
    completions: Sequence[float], seconds: Sequence[float]
) -> tuple[int, int, int, bool] | None:
    """The likeliest slots, the interval, and whether it reaches the largest concurrency seen."""
    if len(completions) != CONCURRENCY_LEVELS or len(seconds) != CONCURRENCY_LEVELS:
        return None
    done = np.asarray(completions[:-1], dtype=float)
    time = np.asarray(seconds[:-1], dtype=float)
    total = float(done.sum())
    if total < SLOTS_LEAST_COMPLETIONS or not time.sum() > 0:
        return None
    n = np.arange(1, CONCURRENCY_LEVELS)
    served = np.minimum(n[None, :], n[:, None])  # [k - 1, n - 1]
    likelihood = np.log(served) @ done - total * np.log(served @ time)
    near = np.flatnonzero(likelihood >= likelihood.max() - SLOTS_LOG_LIKELIHOOD)
    seen = int(np.flatnonzero(done > 0)[-1]) + 1
    low, high = int(near[0]) + 1, int(near[-1]) + 1
    return int(likelihood.argmax()) + 1, low, high, high >= seen
