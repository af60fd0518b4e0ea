"""A value network evaluated with numpy: what the server needs of a DQN, without torch.

STATE   a cluster's identity; the network sees the cluster's mean features, each x as
        (log(1 + x/unit) − center)/spread with a scaling that is kept with the network, so that it
        means the same after the clusters were fitted again; unknown features count as their mean
ACTION  the index of a profile, 0 neutral
REWARD  see `reward`; learning is in `dqn` and in the table underneath
Source: Mnih et al. (2015), "Human-level control through deep reinforcement learning"; the founding
notebook's network of two hidden layers of 30.

Unlike a table it knows something of states that it has not met, from those that look alike. It is
believed only beyond what it got wrong in training, and only until live traffic says otherwise.
"""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.learn.actions import NEUTRAL
from trimtab.learn.clusters import Clusters
from trimtab.learn.qlearning import PROOF_ERRORS, PROOF_VISITS, QTable

__all__ = ["Network", "NetworkTable", "Scaling", "digest", "dump", "load"]

Floats = NDArray[np.float64]

# 256 inputs, hidden layers of 30 and some actions are below 100 kB.
MOST_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaling:
    """How d features become inputs; all of shape (d,)."""

    names: tuple[str, ...]
    units: Floats
    centers: Floats
    spreads: Floats

    def inputs(self, means: Mapping[str, float]) -> Floats:
        """The input (d,) for a state with those mean features."""
        x = np.array([means.get(n, math.nan) for n in self.names], dtype=float)
        z = (np.log1p(np.maximum(x, 0.0) / self.units) - self.centers) / self.spreads
        return np.asarray(np.nan_to_num(z, nan=0.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """Fully connected, ReLU between: `layers` are (W (out, in), b (out,)); A outputs, Q(s, a).

    actions: their names. error: root mean square of what was left of the targets in training.
    visits (A,): targets seen of each action.
    """

    scaling: Scaling
    actions: tuple[str, ...]
    layers: tuple[tuple[Floats, Floats], ...]
    error: float
    visits: Floats

    def values(self, means: Mapping[str, float]) -> Floats:
        """Q(s, ·) of shape (A,) for a state with those mean features."""
        x = self.scaling.inputs(means)
        for w, b in self.layers[:-1]:
            x = np.maximum(w @ x + b, 0.0)
        w, b = self.layers[-1]
        return np.asarray(w @ x + b)


class NetworkTable(QTable):
    """A Q-table with a network beside it, for what the table has not seen enough of.

    Same interface. A state's action is the table's where live visits prove one; else the
    network's best, if its advantage over neutral exceeds z standard errors and live visits do not
    speak against it; else neutral.
    """

    def __init__(
        self,
        actions: Sequence[str],
        *,
        network: Network | None = None,
        exploration_ratio: float = 0.1,
        gamma: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(actions, exploration_ratio=exploration_ratio, gamma=gamma, seed=seed)
        self.network = network
        self._means: Mapping[int, Mapping[str, float]] = {}

    def describe(self, clusters: Clusters) -> None:
        """What the states look like: their mean features are the network's inputs."""
        self._means = clusters.readable_means()

    def proven(self, state: int) -> tuple[int, str]:
        """See the class."""
        action, reason = super().proven(state)
        network = self.network
        if action != NEUTRAL or network is None or state not in self._means:
            return action, reason
        values = network.values(self._means[state])
        best = int(values.argmax())
        gain = float(values[best] - values[NEUTRAL])
        visits = network.visits[[best, NEUTRAL]]
        if best == NEUTRAL or visits.min() < PROOF_VISITS:
            return action, reason
        error = network.error * math.sqrt(float((1 / visits).sum()))
        if gain <= PROOF_ERRORS * error or self._contradicted(state, best):
            return action, reason
        return best, f"the network expects {gain:.2f} ± {error:.2f} more than of neutral"

    def _contradicted(self, state: int, action: int) -> bool:
        """Whether live visits show the action to be no better than neutral in this state."""
        mine, neutral = self.cell(state, action), self.cell(state, NEUTRAL)
        return min(mine[0], neutral[0]) >= PROOF_VISITS and mine[1] <= neutral[1]


# On disk: a plain npz, no pickle.


def dump(network: Network) -> bytes:
    """The network as the bytes of an npz file of plain arrays."""
    arrays = {
        "names": np.array(network.scaling.names, dtype=np.str_),
        "units": network.scaling.units,
        "centers": network.scaling.centers,
        "spreads": network.scaling.spreads,
        "actions": np.array(network.actions, dtype=np.str_),
        "error": np.array(network.error),
        "visits": network.visits,
    }
    for n, (w, b) in enumerate(network.layers):
        arrays[f"w{n}"], arrays[f"b{n}"] = w, b
    file = io.BytesIO()
    # mypy takes the arrays by name for the flag before them.
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def digest(data: bytes) -> str:
    """The SHA-256 of a file, as the trained file names it."""
    return hashlib.sha256(data).hexdigest()


def load(data: bytes) -> Network:
    """The network of an npz file. Raises ValueError for anything else, or numbers that are not."""
    if len(data) > MOST_BYTES:
        raise ValueError("too large for a network")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = {name: np.array(file[name]) for name in file.files}
    except Exception as failure:  # numpy and zipfile raise what they like for damaged files
        raise ValueError(f"not an npz of plain arrays: {failure}") from None
    try:
        names = tuple(str(n) for n in found["names"])
        actions = tuple(str(n) for n in found["actions"])
        layers: list[tuple[Floats, Floats]] = []
        width = len(names)
        while f"w{len(layers)}" in found:
            n = len(layers)
            w, b = _finite(found[f"w{n}"]), _finite(found[f"b{n}"])
            if w.ndim != 2 or w.shape[1] != width or b.shape != (w.shape[0],):
                raise ValueError(f"layer {n} has the shape {w.shape}")
            layers.append((w, b))
            width = w.shape[0]
        if not layers or width != len(actions):
            raise ValueError(f"{len(actions)} actions, but {width} outputs")
        scaling = [_finite(found[n]) for n in ("units", "centers", "spreads")]
        visits, error = _finite(found["visits"]), float(_finite(found["error"]))
    except KeyError as missing:
        raise ValueError(f"no {missing} in it") from None
    if any(v.shape != (len(names),) for v in scaling) or visits.shape != (len(actions),):
        raise ValueError("scaling or visits of another size")
    if (scaling[0] <= 0).any() or (scaling[2] <= 0).any() or (visits < 0).any() or error < 0:
        raise ValueError("a unit, spread, count or error that is not positive")
    units, centers, spreads = scaling
    return Network(
        scaling=Scaling(names=names, units=units, centers=centers, spreads=spreads),
        actions=actions,
        layers=tuple(layers),
        error=error,
        visits=visits,
    )


def _finite(array: NDArray[np.generic]) -> Floats:
    numbers = np.asarray(array, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a number that is not finite")
    return numbers
