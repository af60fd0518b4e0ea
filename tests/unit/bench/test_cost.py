"""The cost of balancing: the figures, and one short round with real programs."""

import shutil

import pytest

from trimtab.bench import cost
from trimtab.bench.cost import Cost, Measured
from trimtab.errors import DependencyError


def test_figures_are_medians_and_paired_ratios() -> None:
    """Ours costs 1.2 of least_conn in every round, whatever the machine does meanwhile."""
    found = Cost()
    found.rounds["empty reply"] = {
        cost.BASE: {n: Measured(1e-5 * n, 5e4 / n, 0) for n in (1, 2, 3)},
        "Trimtab": {n: Measured(1.2e-5 * n, 4e4 / n, n - 1) for n in (1, 2, 3)},
    }
    cpu, ratio, rate, errors = found.figures("empty reply", "Trimtab")
    assert cpu == pytest.approx(2.4e-5)
    assert ratio is not None
    assert ratio.mean == pytest.approx(1.2)
    assert (rate, errors, found.errors) == (pytest.approx(2e4), 3, 3)
    assert "Trimtab               24.0    1.20 [1.20, 1.20]       20000       3" in cost.table_of(
        found
    )


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Without wrk there is one sentence with the command that installs it."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(DependencyError, match="apt-get install"):
        cost.measure(tmp_path, seconds=1, rounds=1, cost=Cost(), report=lambda *_: None)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_round_of_plain_nginx(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered without errors, and take processor time of the balancer."""
    monkeypatch.setattr(cost, "VARIANTS", {"least_conn": cost.VARIANTS["least_conn"]})
    monkeypatch.setattr(cost, "CASES", {"4 KB, access log": (4096, True)})
    found = Cost()
    told: list[str] = []

    def report(_done: float, _case: str, note: str) -> None:
        told.append(note)

    cost.measure(tmp_path, seconds=1, rounds=1, cost=found, report=report)
    measured = found.rounds["4 KB, access log"]["least_conn"][1]
    assert measured.errors == 0
    assert measured.requests_per_second > 100
    assert measured.cpu_seconds_per_request > 0
    assert told == ["round 1, least_conn"]
    log = tmp_path / "least_conn" / "logs" / "access.log"
    assert log.stat().st_size > 0
