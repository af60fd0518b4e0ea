"""Servers over all balancers: arrays and objects say the same."""

import random

import pytest

from reporting import Balancer, both
from trimtab.model import Snapshot
from trimtab.servers import servers


def snapshots(seed: int) -> tuple[list[Snapshot], list[Snapshot]]:
    """Reports of six balancers, one of them with other peers: in columns, and in objects."""
    pairs = [
        both(Balancer(f"n{n}", seed * 100 + n, peers=3 if n else 2).report()) for n in range(6)
    ]
    return [quick for quick, _ in pairs], [careful for _, careful in pairs]


@pytest.mark.parametrize("seed", range(5))
def test_columns_and_objects_say_the_same(seed: int) -> None:
    """In columns, in objects, or some in each: the same of every server."""
    quick, careful = snapshots(seed)
    rng = random.Random(seed)
    mixed = [rng.choice(two) for two in zip(quick, careful, strict=True)]
    expected = servers(careful)
    assert expected
    for given in (quick, mixed):
        got = servers(given)
        assert got.keys() == expected.keys()
        for address, server in expected.items():
            mine = dict(got[address])
            # Of one of those that have it ejected.
            assert bool(mine.pop("ejection")) == bool(server["ejection"])
            assert mine == pytest.approx({k: v for k, v in server.items() if k != "ejection"})


def test_sums_means_and_worst() -> None:
    """In flight is the sum over upstreams and balancers, rate the mean, error ratio the worst."""
    _, careful = snapshots(1)
    address = "10.0.0.1:80"
    got = servers(careful)[address]
    of = [s.addresses[address] for s in careful]
    assert got["in_flight"] == sum(p[address].in_flight for s in careful for p in s.pairs.values())
    assert got["rate"] == pytest.approx(sum(a.rate for a in of) / 6)
    assert got["error_ratio"] == max(a.error_ratio for a in of)
    assert got["down"] == sum(a.down for a in of)
    assert got["ejected"] == sum(bool(a.ejection) for a in of)
    assert servers([]) == {}
