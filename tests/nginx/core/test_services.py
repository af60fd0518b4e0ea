"""v_j in Lua, in a real nginx, against the twin's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nginx.wire.harness import post_json, serving
from trimtab.twin.workload import Servers, poisson
from trimtab.twin.world import World


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that runs service_checks.lua."""
    with serving(
        tmp_path_factory.mktemp("services"), Path(__file__).parent / "service_checks.lua"
    ) as port:
        yield port


def twin(seen: list[dict[str, float]]) -> tuple[list[float], float]:
    """v_j of each class and their mean, as a balancer of the twin has them."""
    classes = [str(j) for j in range(len(seen))]
    requests = poisson(1, 1.0, shares=[1 / len(seen)] * len(seen), deadline=[1.0] * len(seen),
                       mean_work=[1.0] * len(seen))  # fmt: skip
    world = World(Servers.alike(1, classes=len(seen)), requests, upstreams=classes, addresses=["s"])
    world._learned[0] = [s.get("told", 0.0) for s in seen]
    world._counters.sampled[0] = [s["count"] for s in seen]
    world._counters.service[0] = [s["mean_seconds"] for s in seen]
    world._refresh_services()
    return world._control.service[0].tolist(), float(world._control.mean_service[0])


def row(count: float, mean_seconds: float, **told: float) -> dict[str, float]:
    """What is known of a class."""
    return {"count": count, "mean_seconds": mean_seconds, **told}


@pytest.mark.parametrize(
    "seen",
    [
        [row(0, 0.0), row(0, 0.0)],
        [row(1, 0.03), row(0, 0.0), row(3, 0.01)],
        [row(5000, 0.06), row(40, 0.01), row(2, 0.5)],
        [row(0, 0.0, told=0.02), row(7, 0.004), row(0, 0.0)],
        [row(3, 0.0)],
    ],
)
def test_service_times_are_the_twins(port: int, seen: list[dict[str, float]]) -> None:
    """To 12 digits, whatever is known."""
    services, mean = post_json(port, "/", seen)
    wanted, its_mean = twin(seen)
    assert services == pytest.approx(wanted, rel=1e-12)
    assert mean == pytest.approx(its_mean, rel=1e-12)


def test_few_samples_do_not_set_a_class_apart(port: int) -> None:
    """Two samples that are five times longer move v_j by a little, a thousand by most of it, and
    what the policy server says is taken as it is."""
    (few, other), _ = post_json(port, "/", [row(2, 0.05), row(2, 0.01)])
    assert few / other == pytest.approx((0.05 + 0.03 * 10) / (0.01 + 0.03 * 10))
    (many, other), _ = post_json(port, "/", [row(1000, 0.05), row(1000, 0.01)])
    assert 4.5 < many / other < 5
    (told, _), mean = post_json(port, "/", [row(2, 0.05, told=0.05), row(0, 0.0)])
    assert told == 0.05
    assert np.isclose(mean, 0.05)
