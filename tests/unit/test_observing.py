"""The states of a training, fitted over all of its loads."""

from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.demo.scenario import Scenario, parse
from trimtab.learn import trained
from trimtab.learn.actions import PROFILES
from trimtab.learn.clusters import Clusters, fit
from trimtab.training import observing
from trimtab.training.course import Training
from trimtab.training.observing import OTHER_LOADS, observed, outside_ratios
from trimtab.training.setting import configuration

BUSY = """
duration_seconds = 60
[load]
requests_per_second = 300
[[server]]
slots = 4
speed = 1
[[server]]
slots = 4
speed = 2
[[class]]
name = "short"
share = 0.7
service_seconds = 0.01
deadline_seconds = 0.03
[[class]]
name = "long"
share = 0.3
service_seconds = 0.03
deadline_seconds = 0.15
"""


@pytest.fixture
def scenario() -> Scenario:
    """Two classes on two servers, enough requests that a second tells the load."""
    return parse(BUSY, "busy.toml")


def quiet(_label: str, _seconds: float, _note: str) -> None:
    """Nobody listens."""


def test_states_of_all_loads_know_the_loads_between(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At loads that nothing was fitted to few observations are outside of every state; were the
    states fitted at one load alone, most would be."""
    made = configuration(scenario)
    ratios = []
    for loads in (observing.LOADS, (1.0,)):
        monkeypatch.setattr(observing, "LOADS", loads)
        states = fit(observed(scenario, made, PROFILES, 100.0, quiet), 8)
        ratios.append(outside_ratios(scenario, made, PROFILES, states.to_state(), 60.0, quiet))
    of_all, of_one = ratios
    assert tuple(map(float, of_all)) == OTHER_LOADS
    assert max(of_all.values()) < 0.1
    assert of_one["0.75"] > 0.3


def test_a_load_far_from_all_stays_outside(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of many loads are not states of every load: at a quarter of it nearly all is strange,
    and the guard can tell."""
    made = configuration(scenario)
    states = fit(observed(scenario, made, PROFILES, 100.0, quiet), 8)
    monkeypatch.setattr(observing, "OTHER_LOADS", (0.25,))
    found = outside_ratios(scenario, made, PROFILES, states.to_state(), 60.0, quiet)
    assert found["0.25"] > 0.8


def test_episodes_learn_in_the_states_of_all_loads(scenario: Scenario, tmp_path: Path) -> None:
    """The trained file has the states that were fitted before the episodes, and what was learned is
    of these; how well they fit other loads is measured."""
    made = configuration(scenario)
    made = replace(
        made,
        learning=replace(
            made.learning, clusters=4, observe_seconds=10, decision_seconds=6, outlier_threshold=1
        ),
    )
    works = [
        Training(scenario, made, tmp_path / name, seconds=60, seeds=seeds, evaluations=0)
        for name, seeds in (("one.json", 1), ("two.json", 3))
    ]
    for work in works:
        work.run()
    bodies = [trained.read(tmp_path / name)[0]["policy"] for name in ("one.json", "two.json")]
    assert bodies[0]["clusters"] == bodies[1]["clusters"]
    known = Clusters.from_state(bodies[1]["clusters"]).identities
    assert {s for s, *_ in bodies[1]["table"]["rows"]} <= set(known)
    assert len(bodies[1]["table"]["rows"]) > len(bodies[0]["table"]["rows"])
    assert set(works[0].outside) == {f"{load:g}" for load in OTHER_LOADS}
