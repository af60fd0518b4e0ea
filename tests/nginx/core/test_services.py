"""v_j in Lua, in a real nginx, against the twin's; and what was measured in them follows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nginx.wire.harness import post_json, serving
from trimtab.twin import parts, services

# Of three servers: work-seconds done, busy seconds, and the rate that they were said to have.
DONE, BUSY, PRIOR = [0.0, 0.3, 5.0], [0.0, 0.2, 8.0], [1.0, 1.5, 0.7]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that runs service_checks.lua."""
    with serving(
        tmp_path_factory.mktemp("services"), Path(__file__).parent / "service_checks.lua"
    ) as port:
        yield port


def twin(seen: list[dict[str, float]]) -> dict[str, Any]:
    """What a balancer of the twin has after it looked at its service times."""
    told = parts.control(1, len(seen), len(DONE))
    known, counted = parts.balancers(1, len(DONE)), parts.counters(1, len(seen), len(DONE))
    told.told[0] = [s.get("told", 0.0) for s in seen]
    told.service[0], told.prior[:] = [s["in_use"] for s in seen], PRIOR
    known.done[:], known.busy[:] = DONE, BUSY
    counted.sampled[0] = [s["count"] for s in seen]
    counted.service[0] = [s["mean_seconds"] for s in seen]
    services.refresh(0, told, known, counted)
    return {
        "service": told.service[0].tolist(),
        "in_use": told.service[0].tolist(),
        "mean": float(told.mean_service[0]),
        "done": known.done.tolist(),
        "rate": known.rate.tolist(),
    }


def live(port: int, seen: list[dict[str, float]]) -> dict[str, Any]:
    """The same of the Lua code."""
    given = {"classes": seen, "done": DONE, "busy": BUSY, "prior": PRIOR}
    found: dict[str, Any] = post_json(port, "/", given)
    return found


def row(count: float, mean_seconds: float, in_use: float = 0.01, **told: float) -> dict[str, float]:
    """What is known of a class."""
    return {"count": count, "mean_seconds": mean_seconds, "in_use": in_use, **told}


@pytest.mark.parametrize(
    "seen",
    [
        [row(0, 0.0), row(0, 0.0)],
        [row(1, 0.03), row(0, 0.0), row(3, 0.01, 0.004)],
        [row(5000, 0.06, 0.07), row(40, 0.01, 0.002), row(2, 0.5, 0.4)],
        [row(0, 0.0, told=0.02), row(7, 0.004), row(0, 0.0)],
        [row(3, 0.0)],
    ],
)
def test_service_times_are_the_twins(port: int, seen: list[dict[str, float]]) -> None:
    """To 12 digits, whatever is known; and so are D and the rates."""
    found, wanted = live(port, seen), twin(seen)
    assert set(found) == set(wanted)
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], rel=1e-12)


def test_few_samples_do_not_set_a_class_apart(port: int) -> None:
    """Two samples that are five times longer move v_j by a little, a thousand by most of it, and
    what the policy server says is taken as it is."""
    few, other = live(port, [row(2, 0.05), row(2, 0.01)])["service"]
    assert few / other == pytest.approx((0.05 + 0.03 * 10) / (0.01 + 0.03 * 10))
    many, other = live(port, [row(1000, 0.05), row(1000, 0.01)])["service"]
    assert 4.5 < many / other < 5
    found = live(port, [row(2, 0.05, told=0.05), row(0, 0.0)])
    assert found["service"][0] == 0.05
    assert found["mean"] == pytest.approx(0.05)


def test_what_was_completed_is_worth_what_it_is_worth_today(port: int) -> None:
    """Where v_j grow tenfold so does D, whoever was idle meanwhile: what a server was seen to take
    for a request stays what it was. A class counts by its samples."""
    before, after = (live(port, [row(500, 0.02, v, told=0.02)]) for v in (0.02, 0.002))
    assert before["done"] == pytest.approx(DONE)
    assert after["done"] == pytest.approx([10 * d for d in DONE])
    seldom = live(port, [row(9999, 0.02, 0.02, told=0.02), row(99, 0.01, 0.02, told=0.01)])
    assert seldom["done"] == pytest.approx([d * 0.995 for d in DONE], rel=1e-3)


def test_before_anything_was_in_use_nothing_grows(port: int) -> None:
    """A new mapping has no v_j yet."""
    assert live(port, [row(0, 0.0, 0.0), row(0, 0.0, 0.0)])["done"] == DONE
