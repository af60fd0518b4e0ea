"""The table of errors: against estimates that are right, wrong, and absent by construction."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtab.bench.scenario import find, schedule
from trimtab.cli import bench_estimates, main
from trimtab.discipline import Discipline
from trimtab.estimate import Estimates
from trimtab.fits import Slots
from trimtab.training import estimation
from trimtab.training.estimation import Case, Found, errors, measure
from trimtab.training.setting import addresses_of, configuration

SCENARIO = find("affinity")
CONFIG = configuration(SCENARIO)
ADDRESSES = addresses_of(CONFIG)
# Three classes, each three times slower at another one of three servers of speed 1.
CENTRE = 3 ** (1 / 3)
TRUE = Estimates(
    service_time_seconds={u.name: 0.012 * CENTRE for u in CONFIG.upstreams},
    rates=dict.fromkeys(ADDRESSES, 1.0),
    affinity={
        u.name: {a: (3.0 if i == j else 1.0) / CENTRE for i, a in enumerate(ADDRESSES)}
        for j, u in enumerate(CONFIG.upstreams)
    },
    slots={a: Slots(value=4, low=4, high=4) for a in ADDRESSES},
    disciplines={a: Discipline(ratio=0.0, error=0.1) for a in ADDRESSES},
    arrivals_per_second={
        u.name: SCENARIO.requests_per_second * share
        for u, share in zip(CONFIG.upstreams, SCENARIO.shares, strict=True)
    },
    burstiness={u.name: 1.0 for u in CONFIG.upstreams},
    service_cv2={u.name: 1.0 for u in CONFIG.upstreams},
)


def test_the_truth_has_no_error() -> None:
    """What the scenario was made of, in the estimator's units, is right in everything."""
    found = errors(TRUE, SCENARIO, CONFIG)
    assert all(e == pytest.approx(0.0, abs=1e-9) for off in found.errors.values() for e in off)
    assert found.slots == ((4, 4),) * 3
    assert found.disciplines == (1, 1, 1)


def test_what_is_wrong_or_unknown_is_told() -> None:
    """A rate a tenth too high, unsure slots, a queue taken for sharing, and nothing at all."""
    first, second, _ = ADDRESSES
    wrong = replace(
        TRUE,
        rates=dict.fromkeys(ADDRESSES, 1.1),
        slots={first: Slots(value=4, low=2, high=9), second: Slots(value=5, low=5, high=5)},
        disciplines={
            first: Discipline(ratio=1.0, error=0.1),
            second: Discipline(ratio=0.1, error=0.3),
        },
    )
    found = errors(wrong, SCENARIO, CONFIG)
    assert found.errors["rate"] == pytest.approx((0.1, 0.1, 0.1))
    assert found.slots == ((0, 4), (5, 4), (0, 4))
    assert found.disciplines == (-1, 0, 0)
    nothing = errors(Estimates(), SCENARIO, CONFIG)
    assert all(math.isinf(e) for e in nothing.errors["rate"])
    # To the rule an unknown affinity is 1.
    assert max(nothing.errors["affinity"]) < 1


def test_burstiness_is_that_of_the_schedule() -> None:
    """The formula for modulated arrivals gives the dispersion of an hour of the benchmark's."""
    case = Case(scenario="bursts", load=None)
    scenario = case.build()
    config = configuration(scenario)
    drawn = schedule(scenario, 1, 3600.0)
    counts = [
        np.bincount(drawn.times[drawn.class_index == j].astype(int), minlength=3600)
        for j in range(len(scenario.classes))
    ]
    measured = Estimates(
        burstiness={
            u.name: float(c.var() / c.mean()) for u, c in zip(config.upstreams, counts, strict=True)
        }
    )
    assert max(errors(measured, scenario, config).errors["burstiness"]) < 0.15


def test_the_command_meets_its_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half a minute at 70% load half of all rates are within 5%, and slots exact or one off;
    the table of it is printed and kept."""
    monkeypatch.setattr(estimation, "MARKS", (30.0,))
    monkeypatch.setattr(bench_estimates, "MARKS", (30.0,))
    monkeypatch.setattr(bench_estimates, "CASES", (Case(scenario="three-classes", told=False),))
    monkeypatch.setattr(bench_estimates, "SLOTS", (4,))
    runs: dict[Case, list[dict[float, Found]]] = {}

    def kept(cases, seeds):
        for case, found in measure(cases, seeds, 30.5):
            runs.setdefault(case, []).append(found)
            yield case, found

    monkeypatch.setattr(bench_estimates, "measure", kept)
    output = tmp_path / "out"
    arguments = ["bench", "estimates", "--seeds", "3", "--markdown", "--output", str(output)]
    assert main(arguments) == 0
    rates = [
        e for f in runs[Case(scenario="three-classes", told=False)] for e in f[30.0].errors["rate"]
    ]
    assert float(np.median(rates)) < 0.05
    slots = [s for f in runs[Case(slots=4, told=False)] for s in f[30.0].slots]
    assert sum(abs(value - true) <= 1 for value, true in slots) >= 0.8 * len(slots)
    printed = capsys.readouterr().out
    assert "| rate | three-classes, 70% load, slots not given |" in printed
    assert (output / "estimates" / "estimates.md").read_text() == printed


def test_wrong_seeds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From 1 to 1000."""
    assert main(["bench", "estimates", "--seeds", "0", "--output", str(tmp_path)]) == 2
    assert "--seeds" in capsys.readouterr().err


def test_rates_of_servers_that_share_are_right_before_it_is_sure_that_they_do() -> None:
    """After half a minute no discipline is sure; their requests are taken for stretched all the
    same, so that the fast server, which is the fullest, does not look slower than it is."""
    runs = [found for _, found in measure([Case(scenario="sharing")], range(1, 4), 31.0)]
    assert all(set(run[30.0].disciplines) == {0} for run in runs)
    rate, service = (
        [error for run in runs for error in run[30.0].errors[what]]
        for what in ("rate", "service time")
    )
    assert np.quantile(rate, 0.9) < 0.06
    assert np.median(service) < 0.05
