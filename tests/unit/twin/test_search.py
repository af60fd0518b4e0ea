"""The search of W: each objective finds what is good for it."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from trimtab.demo.scenario import Scenario, parse
from trimtab.sweep.jobs import Here
from trimtab.training.plays import candidates
from trimtab.training.setting import configuration
from trimtab.twin.search import OBJECTIVES, Played, search

TOML = """
description = "short and long on two servers"
[load]
fraction = 0.6
[[server]]
slots = 1
speed = 1
[[server]]
slots = 1
speed = 3
[[class]]
name = "short"
share = 0.8
service_seconds = 0.02
deadline_seconds = 0.05
[[class]]
name = "long"
share = 0.2
service_seconds = 0.1
deadline_seconds = 1.0
"""


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Two classes on two servers."""
    return parse(TOML, "short-and-long.toml")


def test_a_run_tells_what_each_objective_is_of(scenario: Scenario) -> None:
    """Where few requests are late, the mean is below a deadline and the tail above."""
    config = configuration(scenario)
    ((one, *rest),) = candidates(scenario, config, [np.ones((2, 2))], Here())
    assert 0 < one.mean < 1 < one.tail
    assert 0 < one.tardiness < one.requests * one.tail
    assert len(rest) == 2


def test_each_objective_finds_the_least_of_its_own(scenario: Scenario) -> None:
    """Of the weights found for the three, each is the best for what it was searched for."""
    config = configuration(scenario)

    def play(tables: Sequence[np.ndarray]) -> Iterator[list[Played]]:
        return candidates(scenario, config, tables, Here())

    found = [
        search(play, (2, 2), objective=objective, evaluations=40, seed=1).weights
        for objective in OBJECTIVES
    ]
    runs = list(play([np.ones((2, 2)), *found]))
    for n, objective in enumerate(OBJECTIVES, 1):
        costs = [sum(run.cost(objective) for run in each) for each in runs]
        assert costs[n] < costs[0]
        assert costs[n] <= min(costs[1:]) + 0.05 * abs(costs[n])
