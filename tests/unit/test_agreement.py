"""`trimtab bench agreement`: the twin on the requests of live runs."""

import math

import pytest

from trimtab.bench.outcome import Outcome
from trimtab.bench.scenario import find, schedule, simulator_input
from trimtab.cli import main
from trimtab.training.agreement import BALANCERS, figures, simulated
from trimtab.twin.bounds import bounds

SECONDS = 8.0


def outcome(balancer: str, seed: int, art: float, p99: float, *, valid: bool = True) -> Outcome:
    """A live run of `speeds` that gave these figures."""
    return Outcome(
        scenario="speeds", balancer=balancer, seed=seed, seconds=SECONDS, warm_up_seconds=2.0,
        requests=3500, art_per_1000=art, p50_seconds=0.01, p99_seconds=p99, p999_seconds=1.0,
        error_ratio=0.0, goodput_per_second=500.0, shares={}, classes={},
        cpu_seconds_per_request=1e-4, send_lag_p99_seconds=0.001, lateness_p99_seconds=0.001,
        valid=valid,
    )  # fmt: skip


def test_the_twin_plays_balancers_on_the_requests_of_the_seed() -> None:
    """Ours are between nginx's and what knows every size, on the same requests."""
    scenario = find("speeds")
    art = {name: simulated(scenario, name, 1, SECONDS).art_per_1000 for name in BALANCERS}
    drawn = simulator_input(scenario, schedule(scenario, 1, SECONDS))
    least = bounds(*drawn, after_seconds=2.0)["least work knowing every size"].art_per_1000
    assert least < art["trimtab"] < art["least-conn"] / 2
    assert least < art["trimtab-immediate"] < art["least-conn"] / 2
    assert simulated(scenario, "trimtab", 1, SECONDS).art_per_1000 == art["trimtab"]
    with pytest.raises(KeyError):
        simulated(scenario, "haproxy-leastconn", 1, SECONDS)


def test_ratios_are_paired_by_seed_and_leave_out_what_is_not_valid() -> None:
    """Live runs that are off by a factor each show just that."""
    scenario = find("speeds")
    twins = {seed: simulated(scenario, "least-conn", seed, SECONDS) for seed in (1, 2, 3)}
    outcomes = [
        outcome("least-conn", 1, 2 * twins[1].art_per_1000 + 0.1, 2 * twins[1].p99_seconds),
        outcome("least-conn", 2, 2 * twins[2].art_per_1000 + 0.1, 2 * twins[2].p99_seconds),
        outcome("least-conn", 3, 1e6, 1e6, valid=False),
        outcome("round-robin", 1, 1e6, 1e6),
    ]
    found = {f.name: f for f in figures(outcomes, [scenario])}
    assert {f.balancer for f in found.values()} == {"least-conn"}
    assert found["p99_seconds"].ratio.mean == pytest.approx(0.5)
    assert found["p99_seconds"].ratio.pairs == 2
    assert found["art_per_1000"].ratio.mean == pytest.approx(0.5)
    assert found["art_per_1000"].twin == pytest.approx(
        (twins[1].art_per_1000 + twins[2].art_per_1000) / 2
    )
    assert math.isfinite(found["p50_seconds"].ratio.high)


def test_a_balancer_that_the_twin_cannot_play_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    """It says which it can, before anything runs."""
    status = main(["bench", "agreement", "--balancer", "least-time", "--output", str(tmp_path)])
    assert status == 2
    said = capsys.readouterr().err
    assert "cannot play least-time" in said
    assert "trimtab-immediate" in said
    assert not any(tmp_path.iterdir())
