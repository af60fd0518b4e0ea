"""The benchmark's scenarios: complete, equal for every balancer, and small enough for two cores."""

import numpy as np
import pytest

from trimtab.bench.scenario import find, names, scenario_bounds, schedule, simulator_input
from trimtab.errors import ConfigError
from trimtab.twin.bounds import summary
from trimtab.twin.compiled import AVAILABLE
from trimtab.twin.events import Rule, simulate


def test_every_scenario_of_the_benchmark_is_there() -> None:
    """All by name, in the order of the table."""
    assert names() == [
        "equal",
        "speeds",
        "slowdown",
        "slowdown-overload",
        "three-classes",
        "failing",
        "hanging",
        "twelve",
        "affinity",
        "sharing",
        "thrashing",
        "noisy",
        "bursts",
        "overload",
    ]


@pytest.mark.parametrize("name", names())
def test_scenarios_are_feasible(name: str) -> None:
    """Below capacity (`overload` beyond it), at a rate that fits on two cores, with deadlines
    beyond the mean work."""
    scenario = find(name)
    assert scenario.name == name
    assert scenario.description
    assert 300 <= scenario.requests_per_second <= 700
    load = scenario.requests_per_second / scenario.capacity_per_second
    assert load == pytest.approx(1.5) if name == "overload" else load < 1
    fastest = max(s.speed for s in scenario.servers)
    assert all(c.deadline_seconds > c.service_seconds / fastest for c in scenario.classes)


def test_the_three_classes_are_those_of_the_specification() -> None:
    """Shares, mean work, deadlines and priorities on speeds 1:2:4 at 80% load."""
    scenario = find("three-classes")
    assert [s.speed for s in scenario.servers] == [1, 2, 4]
    assert scenario.load.fraction == 0.8
    assert [
        (c.share, c.service_seconds, c.deadline_seconds, c.priority) for c in scenario.classes
    ] == [(0.6, 0.015, 0.040, 1), (0.3, 0.010, 0.025, 2), (0.1, 0.060, 0.150, 3)]
    assert scenario.classes[2].law == "lognormal"


def test_the_schedule_depends_on_the_seed_only() -> None:
    """Two balancers of one seed meet the same times, classes and work; another seed, others."""
    scenario = find("three-classes")
    one, again, other = (schedule(scenario, seed, 20.0) for seed in (1, 1, 2))
    for field in ("times", "class_index", "work_seconds"):
        assert np.array_equal(getattr(one, field), getattr(again, field))
    assert not np.array_equal(one.times, other.times)


def test_the_schedule_has_the_stated_rate_shares_and_work() -> None:
    """Over 200 s: the rate, the shares of the classes, and each one's mean work within 5%."""
    scenario = find("three-classes")
    drawn = schedule(scenario, 4, 200.0)
    assert len(drawn) / 200 == pytest.approx(scenario.requests_per_second, rel=0.02)
    for j, kind in enumerate(scenario.classes):
        of_class = drawn.class_index == j
        assert of_class.mean() == pytest.approx(kind.share, rel=0.05)
        assert drawn.work_seconds[of_class].mean() == pytest.approx(kind.service_seconds, rel=0.05)
        assert drawn.requests[j][0].path == kind.path


def test_bursts_keep_the_mean_rate() -> None:
    """Bursts of all classes at once, and the long-run rate as stated."""
    scenario = find("bursts")
    drawn = schedule(scenario, 1, 400.0)
    assert len(drawn) / 400 == pytest.approx(scenario.requests_per_second, rel=0.1)
    per_second = np.bincount(drawn.times.astype(int))
    assert per_second.var() > 5 * per_second.mean()  # 1 for a Poisson process


@pytest.mark.parametrize("name", names())
def test_bounds_hold_for_every_scenario(name: str) -> None:
    """Deadline order beats least_conn in simulation everywhere; nothing fails in it needlessly."""
    scenario = find(name)
    drawn = schedule(scenario, 2, 30.0 if AVAILABLE else 10.0)
    servers, requests, timeline = simulator_input(scenario, drawn)
    found = scenario_bounds(scenario, drawn)["central queue in deadline order"]
    records = simulate(servers, requests, Rule(name="least_conn"), timeline)
    counting = summary(requests, records, after_seconds=scenario.warm_up_seconds)
    assert found.art_per_1000 < counting.art_per_1000
    assert found.error_ratio == 0
    assert found.requests == (drawn.times >= scenario.warm_up_seconds).sum()


def test_an_unknown_scenario_is_one_sentence() -> None:
    """The message lists the names."""
    with pytest.raises(ConfigError, match="no scenario 'nothing'; there are equal, speeds"):
        find("nothing")
    with pytest.raises(ConfigError, match="no such scenario file"):
        find("nothing.toml")
