"""States: a Gaussian mixture over the features of the balancer.

STATE   the mixture's component (cluster) that most likely made an observation, named by an
        identity that is kept when the mixture is fitted again
ACTION  not known here
REWARD  not known here

Each feature x ≥ 0 is scaled twice: y = log(1 + x/unit), unit its median positive value, because
times and counts have long tails; z = (y − mean)/std. Columns that did not vary are left out of
the mixture and only watched. An observation with missing features is judged by the others (the
marginal of a Gaussian is its submatrix), so that a server added or removed by configuration
leaves the states standing.
An observation is outside of a cluster when its squared Mahalanobis distance exceeds what 99.73%
of the cluster's own stay below (3σ in one dimension), by Wilson and Hilferty's approximation of
the χ² quantile with d degrees of freedom.
Source: the founding plan (Gaussian mixture, K = 27 = 3³, refit when too many lie outside 3σ).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtab.learn.features import Features

__all__ = ["BIC", "Clusters", "State", "allowed_clusters", "fit", "fit_bic", "fit_wanted"]

Floats = NDArray[np.float64]

# Samples a cluster needs at least: ten give each of its variances an error of about half.
SAMPLES_A_CLUSTER: Final = 10

# A full covariance has d times the parameters of a diagonal one; it needs samples to match.
SAMPLES_A_COVARIANCE_COLUMN: Final = 4

# What stands for the number of clusters when it is to be chosen.
BIC: Final = "bic"

# What is tried when the number is chosen: steps of about a half, up to the default of 27.
BIC_COUNTS: Final = (1, 2, 3, 5, 8, 12, 18, 27)

# The criterion falls, and then rises: one rise may be the luck of a fit, after two none is tried.
BIC_RISES: Final = 2

# Bounds the time of a fit: 2000 samples, 27 clusters and 30 columns take about a second.
MOST_SAMPLES: Final = 2000
MOST_ITERATIONS: Final = 60

# Added to each variance, of standardised columns: no cluster is thinner than 0.1 of a column's
# standard deviation.
REGULARISATION: Final = 0.01

# A column that varies less than this (of its unit) is constant.
LEAST_SPREAD: Final = 1e-6

# A constant column that moved by more than this (in units of log(1 + x/unit)) is outside.
CONSTANT_MOVED: Final = 0.3

# A new mean within this root mean square distance (of standardised columns) of an old one is the
# same state.
SAME_STATE: Final = 1.0

# Standard normal quantile of 0.9973.
THREE_SIGMA_QUANTILE: Final = 2.782


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The cluster of one observation.

    index: identity of the cluster. log_likelihood: of the observation under the whole mixture.
    outside: whether it lies beyond 3σ of every cluster.
    """

    index: int
    log_likelihood: float
    outside: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clusters:
    """A fitted mixture. K clusters over d varying columns; immutable.

    names [d], units [d], centers [d], spreads [d]: the scaling of the columns.
    constants: watched columns by name, as (unit, log value).
    identities [K], weights [K], means [K, d], covariances [K, d, d]: scaled.
    """

    names: tuple[str, ...]
    units: Floats
    centers: Floats
    spreads: Floats
    constants: Mapping[str, tuple[float, float]]
    identities: tuple[int, ...]
    weights: Floats
    means: Floats
    covariances: Floats

    def _scaled(self, features: Features) -> Floats:
        values = dict(zip(features.names, features.values, strict=True))
        x = np.array([values.get(n, math.nan) for n in self.names], dtype=float)
        x[~np.isfinite(x)] = np.nan
        z: Floats = (np.log1p(np.maximum(x, 0.0) / self.units) - self.centers) / self.spreads
        return z

    def classify(self, features: Features) -> State:
        """The state of an observation; names that the mixture does not know are ignored.

        With nothing known of the mixture's columns it is the heaviest cluster.
        """
        z = self._scaled(features)
        seen = np.isfinite(z)
        d = int(seen.sum())
        if d == 0:
            heaviest = int(self.weights.argmax())
            return State(
                index=self.identities[heaviest],
                log_likelihood=0.0,
                outside=self._moved(features),
            )
        away = z[seen] - self.means[:, seen]
        covariances = self.covariances[:, seen][:, :, seen]
        distances = np.einsum(
            "kd,kd->k", away, np.linalg.solve(covariances, away[:, :, None])[:, :, 0]
        )
        logs = (
            np.log(np.maximum(self.weights, 1e-300))
            - 0.5 * (distances + np.linalg.slogdet(covariances)[1])
            - 0.5 * d * math.log(2 * math.pi)
        )
        top = float(logs.max())
        return State(
            index=self.identities[int(logs.argmax())],
            log_likelihood=top + math.log(float(np.exp(logs - top).sum())),
            outside=bool(distances.min() > _three_sigma(d)) or self._moved(features),
        )

    def _moved(self, features: Features) -> bool:
        for name, value in zip(features.names, features.values, strict=True):
            if name in self.constants and math.isfinite(value):
                unit, was = self.constants[name]
                if abs(math.log1p(max(value, 0.0) / unit) - was) > CONSTANT_MOVED:
                    return True
        return False

    def readable_means(self) -> dict[int, dict[str, float]]:
        """The means in the features' own units, by identity and name; constants included."""
        y = self.means * self.spreads + self.centers
        x = np.maximum(np.expm1(y), 0.0) * self.units
        fixed = {n: unit * math.expm1(was) for n, (unit, was) in self.constants.items()}
        return {
            identity: {**dict(zip(self.names, row.tolist(), strict=True)), **fixed}
            for identity, row in zip(self.identities, x, strict=True)
        }

    def to_state(self) -> dict[str, Any]:
        """As JSON-able data, six significant digits."""
        return {
            "names": list(self.names),
            "units": _rounded(self.units),
            "centers": _rounded(self.centers),
            "spreads": _rounded(self.spreads),
            "constants": {n: list(v) for n, v in self.constants.items()},
            "identities": list(self.identities),
            "weights": _rounded(self.weights),
            "means": _rounded(self.means),
            "covariances": _rounded(self.covariances),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Clusters":
        """What `to_state` gave. Raises KeyError, TypeError or ValueError for another shape."""
        names = tuple(str(n) for n in state["names"])
        identities = tuple(int(i) for i in state["identities"])
        k, d = len(identities), len(names)
        if not k or len(set(identities)) != k:
            raise ValueError("identities of clusters: none, or one twice")
        shapes = {
            "units": (d,),
            "centers": (d,),
            "spreads": (d,),
            "weights": (k,),
            "means": (k, d),
            "covariances": (k, d, d),
        }
        arrays: dict[str, Any] = {}
        for name, shape in shapes.items():
            array = np.array(state[name], dtype=float).reshape(shape)
            if not np.isfinite(array).all():
                raise ValueError(f"{name} of clusters: not finite")
            arrays[name] = array
        if (arrays["units"] <= 0).any() or (arrays["spreads"] <= 0).any():
            raise ValueError("units and spreads of clusters must be more than 0")
        if d and (np.linalg.eigvalsh(arrays["covariances"]) <= 0).any():
            raise ValueError("a covariance of the clusters is not positive definite")
        constants = {str(n): (float(u), float(w)) for n, (u, w) in state["constants"].items()}
        if any(not (u > 0 and math.isfinite(u + w)) for u, w in constants.values()):
            raise ValueError("constants of clusters: not finite")
        return cls(names=names, identities=identities, constants=constants, **arrays)


def _rounded(array: Floats) -> Any:
    return (
        np.vectorize(lambda v: float(f"{v:.6g}"), otypes=[float])(array).tolist()
        if (array.size)
        else array.tolist()
    )


def _three_sigma(d: int) -> float:
    """0.9973 quantile of χ² with d degrees of freedom (Wilson and Hilferty, 1931)."""
    return d * (1 - 2 / (9 * d) + THREE_SIGMA_QUANTILE * math.sqrt(2 / (9 * d))) ** 3


def allowed_clusters(wanted: int, samples: int) -> int:
    """How many clusters that many samples allow: one for each ten, at least one."""
    return max(1, min(wanted, samples // SAMPLES_A_CLUSTER))


def _columns(samples: Floats) -> tuple[Floats, Floats]:
    """Units [columns] and log(1 + x/unit) [samples, columns], NaN where not finite."""
    x = np.where(np.isfinite(samples), np.maximum(samples, 0.0), np.nan)
    units = np.ones(x.shape[1])
    for column in range(x.shape[1]):
        positive = x[:, column][x[:, column] > 0]
        if positive.size:
            units[column] = np.median(positive)
    return units, np.log1p(x / units)


def fit(
    observations: Sequence[Features],
    wanted: int,
    *,
    seed: int = 0,
    previous: Clusters | None = None,
) -> Clusters:
    """Fit a mixture of at most `wanted` clusters; fewer when the samples do not allow more.

    Observations must share their names (those that differ from the last one's are left out).
    Clusters near one of `previous` keep its identity, the others get the smallest numbers that
    `previous` has not used: an identity that is in both means the same state.
    Bounded: at most 2000 observations, evenly chosen, and 60 iterations.
    Raises ValueError without observations.
    """
    if not observations:
        raise ValueError("no observation to fit states to")
    names = observations[-1].names
    rows = [o.values for o in observations if o.names == names]
    if len(rows) > MOST_SAMPLES:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, MOST_SAMPLES).astype(int)]
    units, y = _columns(np.array(rows, dtype=float).reshape(len(rows), len(names)))
    known = np.isfinite(y)
    counts = known.sum(axis=0)
    centers = np.where(known, y, 0.0).sum(axis=0) / np.maximum(counts, 1)
    away = np.where(known, y - centers, 0.0)
    spreads = np.sqrt((away**2).sum(axis=0) / np.maximum(counts, 1))
    varies = spreads > LEAST_SPREAD
    constants = {
        n: (float(units[c]), float(centers[c]))
        for c, n in enumerate(names)
        if not varies[c] and counts[c]
    }
    # A missing value is taken as the column's mean: it pulls to no side.
    z = away[:, varies] / spreads[varies]
    weights, means, covariances = _mixture(z, wanted, seed)
    fitted = Clusters(
        names=tuple(n for c, n in enumerate(names) if varies[c]),
        units=units[varies],
        centers=centers[varies],
        spreads=spreads[varies],
        constants=constants,
        identities=tuple(range(len(weights))),
        weights=weights,
        means=means,
        covariances=covariances,
    )
    return _renamed(fitted, previous) if previous else fitted


def fit_bic(
    observations: Sequence[Features], *, seed: int = 0, previous: Clusters | None = None
) -> Clusters:
    """Like `fit`, with the number of clusters, up to 27, that has the least Bayesian information
    criterion −2·log L + p·log n, p the free parameters (Schwarz, 1978).

    At most eight fits, from few clusters to many; it ends when the criterion has risen twice."""
    if len(observations) > MOST_SAMPLES:
        evenly = np.linspace(0, len(observations) - 1, MOST_SAMPLES).astype(int)
        observations = [observations[i] for i in evenly]
    count = len(observations)
    best, least, rises = fit(observations, 1, seed=seed), math.inf, 0
    for wanted in BIC_COUNTS:
        if wanted > allowed_clusters(wanted, count) or rises >= BIC_RISES:
            break
        found = fit(observations, wanted, seed=seed) if wanted > 1 else best
        k, d = found.means.shape
        diagonal = all(np.count_nonzero(c - np.diag(np.diag(c))) == 0 for c in found.covariances)
        free = k * (d + (d if diagonal else d * (d + 1) // 2)) + k - 1
        criterion = free * math.log(count) - 2 * _log_likelihood(found, observations)
        if criterion < least:
            best, least, rises = found, criterion, 0
        else:
            rises += 1
    return _renamed(best, previous) if previous else best


def fit_wanted(
    observations: Sequence[Features],
    wanted: int | str,
    *,
    seed: int = 0,
    previous: Clusters | None = None,
) -> Clusters:
    """`fit_bic` where `wanted` is "bic", else `fit`: as the configuration says it."""
    if wanted == BIC:
        return fit_bic(observations, seed=seed, previous=previous)
    return fit(observations, int(wanted), seed=seed, previous=previous)


def _log_likelihood(of: Clusters, observations: Sequence[Features]) -> float:
    """The sum over the observations of what `classify` says, all whole ones at once."""
    z = np.array([of._scaled(o) for o in observations])
    whole = np.isfinite(z).all(axis=1)
    logs = np.empty((int(whole.sum()), len(of.weights)))
    constant = of.means.shape[1] * math.log(2 * math.pi)
    for k, (mean, covariance) in enumerate(zip(of.means, of.covariances, strict=True)):
        away = z[whole] - mean
        distances = (away * np.linalg.solve(covariance, away.T).T).sum(axis=1)
        log_weight = math.log(max(float(of.weights[k]), 1e-300))
        logs[:, k] = log_weight - 0.5 * (distances + np.linalg.slogdet(covariance)[1] + constant)
    others = (o for o, all_known in zip(observations, whole, strict=True) if not all_known)
    return float(np.logaddexp.reduce(logs, axis=1).sum()) + sum(
        of.classify(o).log_likelihood for o in others
    )


def _mixture(z: Floats, wanted: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Weights [K], means [K, d] and covariances [K, d, d] of standardised samples z."""
    n, d = z.shape
    k = min(allowed_clusters(wanted, n), len(np.unique(z, axis=0))) if d else 1
    if k == 1:
        spread = np.cov(z, rowvar=False, bias=True).reshape(d, d) if n > 1 else np.eye(d)
        if n < SAMPLES_A_COVARIANCE_COLUMN * d:
            spread = np.diag(np.diag(spread))
        return np.ones(1), z.mean(axis=0)[None, :], (spread + REGULARISATION * np.eye(d))[None]
    from sklearn.mixture import GaussianMixture  # slow to import, and only needed here
    from threadpoolctl import threadpool_limits

    full = n >= k * SAMPLES_A_COVARIANCE_COLUMN * d
    mixture = GaussianMixture(
        n_components=k,
        covariance_type="full" if full else "diag",
        reg_covar=REGULARISATION,
        max_iter=MOST_ITERATIONS,
        random_state=seed,
    )
    # One thread: the request path's machine may be this one. A mixture that has not converged
    # within the bound is still one.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture.fit(z)
    covariances = np.asarray(mixture.covariances_, dtype=float)
    if not full:
        covariances = np.stack([np.diag(row) for row in covariances])
    return np.asarray(mixture.weights_), np.asarray(mixture.means_), covariances


def _renamed(fitted: Clusters, previous: Clusters) -> Clusters:
    """`fitted` with the identities of the previous clusters that its means match best."""
    # Comes with scikit-learn, and is as slow to import.
    from scipy.optimize import linear_sum_assignment

    shared = [n for n in fitted.names if n in previous.names or n in previous.constants]
    old = previous.readable_means()
    identities: list[int | None] = [None] * len(fitted.identities)
    if shared:
        at = [fitted.names.index(n) for n in shared]
        x = np.array([[old[i][n] for n in shared] for i in previous.identities])
        z = (np.log1p(x / fitted.units[at]) - fitted.centers[at]) / fitted.spreads[at]
        away = fitted.means[:, None, at] - z[None, :, :]
        cost = np.sqrt((away**2).mean(axis=2))
        for mine, theirs in zip(*linear_sum_assignment(cost), strict=True):
            if cost[mine, theirs] <= SAME_STATE:
                identities[mine] = previous.identities[theirs]
    elif len(fitted.identities) == 1 and len(previous.identities) == 1:
        identities = [previous.identities[0]]
    taken = {*previous.identities, *(i for i in identities if i is not None)}
    free = (i for i in range(len(taken) + len(identities)) if i not in taken)
    return Clusters(
        names=fitted.names,
        units=fitted.units,
        centers=fitted.centers,
        spreads=fitted.spreads,
        constants=fitted.constants,
        identities=tuple(next(free) if i is None else i for i in identities),
        weights=fitted.weights,
        means=fitted.means,
        covariances=fitted.covariances,
    )
