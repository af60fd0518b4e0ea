"""The value network without torch: what it computes, when it is believed, and its file."""

import io

import numpy as np
import pytest

from trimtab.learn.clusters import Clusters, fit
from trimtab.learn.features import Features
from trimtab.learn.network import Network, NetworkTable, Scaling, dump, load

ACTIONS = ("neutral", "twin", "fast")


def clusters() -> Clusters:
    """Two states, with 1 and with 9 in flight."""
    return fit(
        [
            Features(names=("in_flight",), values=(level * (1 + n % 7 / 50),))
            for level in (1.0, 9.0)
            for n in range(40)
        ],
        2,
    )


def network(gain: float, error: float = 0.5, visits: int = 50) -> Network:
    """Expects of "twin" `gain` more than of neutral where much is in flight."""
    scaling = Scaling(
        names=("in_flight",),
        units=np.array([1.0]),
        centers=np.array([np.log(5.0)]),
        spreads=np.array([0.5]),
    )
    first = (np.array([[1.0], [-1.0]]), np.zeros(2))
    second = (np.array([[0.0, 0.0], [gain, 0.0], [-1.0, -1.0]]), np.array([2.0, 2.0, 1.0]))
    return Network(
        scaling=scaling, actions=ACTIONS, layers=(first, second), error=error,
        visits=np.full(3, float(visits)),
    )  # fmt: skip


def busy(of: Clusters) -> tuple[int, int]:
    """The identities of the busy and of the calm state."""
    means = of.readable_means()
    calm, full = sorted(means, key=lambda s: means[s]["in_flight"])
    return full, calm


def test_values_are_those_of_the_layers() -> None:
    """Scaled, multiplied, bent at 0, multiplied: by hand."""
    z = (np.log1p(9.0) - np.log(5.0)) / 0.5
    assert network(3.0).values({"in_flight": 9.0}) == pytest.approx([2.0, 2 + 3 * z, 1 - z])
    assert network(3.0).values({"unknown": 9.0}) == pytest.approx([2.0, 2.0, 1.0])


def table(of: Network, states: Clusters) -> NetworkTable:
    """A table that never explores, with a network."""
    made = NetworkTable(ACTIONS, network=of, exploration_ratio=0.0)
    made.describe(states)
    return made


def test_network_chooses_where_it_is_sure() -> None:
    """An advantage beyond two standard errors counts; one within them, or in another state, not."""
    states = clusters()
    full, calm = busy(states)
    sure = table(network(3.0), states)
    assert sure.choose(full).action == 1
    assert "network expects" in sure.choose(full).reason
    assert sure.choose(calm).action == 0
    assert table(network(3.0, error=20.0), states).choose(full).action == 0
    assert table(network(3.0, visits=2), states).choose(full).action == 0
    assert NetworkTable(ACTIONS, exploration_ratio=0.0).choose(full).action == 0


def test_live_visits_outvote_the_network() -> None:
    """Four windows of each in which the action was no better, and the network is not believed."""
    states = clusters()
    full, _ = busy(states)
    doubted = table(network(3.0), states)
    for n in range(4):
        doubted.learn(full, 0, 2.0 + n % 2, full)
        doubted.learn(full, 1, 1.0 + n % 2, full)
    assert doubted.choose(full).action == 0


def test_npz_gives_the_network_back() -> None:
    """Through bytes without pickle, exactly."""
    before = network(3.0)
    after = load(dump(before))
    assert after.actions == ACTIONS
    means = {"in_flight": 4.2}
    assert (after.values(means) == before.values(means)).all()
    assert (after.error, after.visits.tolist()) == (0.5, [50.0] * 3)


def changed(**arrays: object) -> bytes:
    """The file with other arrays; None leaves one out."""
    with np.load(io.BytesIO(dump(network(1.0)))) as file:
        found = {n: file[n] for n in file.files} | arrays
    out = io.BytesIO()
    np.savez(out, **{n: v for n, v in found.items() if v is not None})
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a zip",
        dump(network(1.0))[:200],
        changed(w1=None, b1=None),
        changed(w0=np.ones((2, 3))),
        changed(b0=np.array([np.nan, 0.0])),
        changed(units=np.array([0.0])),
        changed(visits=np.ones(2)),
        changed(error=None),
        changed(names=np.array([{"a": 1}], dtype=object)),
    ],
    ids=["empty", "text", "cut", "layer", "shape", "nan", "unit", "visits", "missing", "pickle"],
)
def test_damaged_networks_are_refused(data: bytes) -> None:
    """Cut, of another shape, not finite, or with a pickle in it: an error, and no unpickling."""
    with pytest.raises(ValueError):
        load(data)
