"""Service times from response times alone: against theory, and against simulated least_conn."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.bench.scenario import find, schedule, simulator_input
from trimtab.crowded import serving
from trimtab.estimate import Estimates, Estimator
from trimtab.model import PairCounters, Window
from trimtab.twin.events import Rule, simulate

ADDRESSES = ("s1:1", "s2:1", "s3:1")  # as many as the scenarios have servers


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("utilisation", [0.1, 0.5, 0.9])
def test_formula_is_inverted(slots: int, utilisation: float) -> None:
    """What M/M/k theory says is in flight gives the load that it was made of."""
    offered = slots * utilisation
    terms = [1.0]
    for k in range(1, slots + 1):
        terms.append(terms[-1] * offered / k)
    last = terms.pop() / (1 - utilisation)
    waits = last / (sum(terms) + last)
    in_flight = offered + waits * utilisation / (1 - utilisation)
    assert serving(in_flight, slots) == pytest.approx(offered, rel=1e-4)


@given(st.floats(0, 1e9), st.floats(0.1, 1e6))
def test_never_more_than_there_are(in_flight: float, slots: float) -> None:
    """In service are at most those present, and at most the slots."""
    busy = serving(in_flight, slots)
    assert 0 <= busy <= min(in_flight, max(1, round(slots)))


def windows(name: str, weights: np.ndarray, seconds: float) -> list[Window]:
    """What nginx-module-vts shows of a simulated run of least_conn, a group a class, in 2 s."""
    scenario = find(name)
    names = [kind.name for kind in scenario.classes]
    servers, requests, changes = simulator_input(scenario, schedule(scenario, 1, seconds))
    records = simulate(
        servers, requests, Rule(name="least_conn", per_class=True, weights=weights), changes
    )
    response = records.ended - requests.at

    def pair(kind: int, server: int, begin: float) -> PairCounters:
        chosen = (requests.kind == kind) & (records.peer == server)
        chosen &= (records.ended >= begin) & (records.ended < begin + 2)
        return PairCounters(
            requests=int(chosen.sum()), response_time_seconds=float(response[chosen].sum())
        )

    return [
        Window(
            seconds=2.0,
            pairs={
                n: {a: pair(j, i, begin) for i, a in enumerate(ADDRESSES)}
                for j, n in enumerate(names)
            },
        )
        for begin in np.arange(0.0, seconds - 1, 2.0)
    ]


@pytest.mark.parametrize("slots", [2, None])
@pytest.mark.parametrize("name", ["speeds", "three-classes"])
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 4)])
def test_speeds_are_found_under_load(name: str, slots: int | None, weights: tuple) -> None:
    """Servers of speeds 1 : 2 : 4 at 75 or 80% load: the ratios come out within 30%, whatever
    weights were in force, and whether or not the slots are known."""
    names = [kind.name for kind in find(name).classes]
    one = Estimator(dict.fromkeys(names, ADDRESSES), dict.fromkeys(ADDRESSES, slots))
    for window in windows(name, np.array(weights, dtype=float), 40):
        one.update(window)
    rates = one.estimates().rates
    for address, speed in zip(ADDRESSES[1:], (2, 4), strict=True):
        assert rates[address] / rates[ADDRESSES[0]] == pytest.approx(speed, rel=0.3)


@pytest.mark.parametrize("slots", [2, None])
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 4)])
def test_servers_that_share_stretch_all_classes_alike(slots: int | None, weights: tuple) -> None:
    """Processor-sharing servers at 80% load: class service times 15, 10 and 60 ms come out in
    these ratios within 15%, speeds 1 : 2 : 4 within 30%; taken for queues, the long class would
    seem about twice as long as it is."""
    names = [kind.name for kind in find("sharing").classes]
    seen = windows("sharing", np.array(weights, dtype=float), 40)

    def estimates(sharing: tuple[str, ...]) -> Estimates:
        given = dict.fromkeys(ADDRESSES, slots)
        one = Estimator(dict.fromkeys(names, ADDRESSES), given, sharing=sharing)
        for window in seen:
            one.update(window)
        return one.estimates()

    found = estimates(ADDRESSES)
    first, *others = (found.service_time_seconds[n] for n in names)
    assert [o / first for o in others] == pytest.approx([10 / 15, 60 / 15], rel=0.15)
    for address, speed in zip(ADDRESSES[1:], (2, 4), strict=True):
        assert found.rates[address] / found.rates[ADDRESSES[0]] == pytest.approx(speed, rel=0.3)
    wrong = estimates(()).service_time_seconds
    assert wrong[names[2]] / wrong[names[0]] > 7


def test_response_times_survive_a_restart() -> None:
    """What was learned from response times is in the saved state."""
    one, two = (Estimator({"request": ADDRESSES}, dict.fromkeys(ADDRESSES)) for _ in range(2))
    for window in windows("speeds", np.ones(3), 10):
        one.update(window)
    two.restore(json.loads(json.dumps(one.to_state())))
    assert two.estimates() == one.estimates()
    assert two.estimates().rates
