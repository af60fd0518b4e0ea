"""What reloads cost: the figures, and one short round with real programs."""

import json
from pathlib import Path

import pytest

from trimtab.bench import reload_tables, reloads
from trimtab.bench.reloads import Measured, Reloads
from trimtab.cli import main


def measured(*, reloads: int, lost: int, failed: int, opened: int, p99: float) -> Measured:
    """A round; what came after a reload was twice as slow."""
    return Measured(reloads, 1000, failed, lost, opened, 0.001, p99, 3 * p99, 2 * p99)


def test_cuts_and_losses_are_by_reload() -> None:
    """What is opened without reloads is no cut, and what fails without one is told apart."""
    found = Reloads()
    found.rounds["a case"] = {
        "no reload": {
            n: measured(reloads=0, lost=0, failed=0, opened=4, p99=float("nan")) for n in (1, 2)
        },
        "trimtab apply": {
            1: measured(reloads=10, lost=1, failed=1, opened=34, p99=0.002),
            2: measured(reloads=10, lost=2, failed=5, opened=64, p99=0.006),
        },
    }
    assert found.strange == 3
    told = reload_tables.table_of(found).splitlines()
    row = next(line for line in told if "trimtab apply" in line).split()
    assert row == ["trimtab", "apply", "1.0", "4.0", "12.0", "8.0", "20", "4.5", "3", "2000"]
    base = next(line for line in told if "no reload" in line).split()
    assert base == ["no", "reload", "1.0", "-", "-", "-", "0", "-", "0", "2000"]
    assert "3 more failed for another reason" in " ".join(told)


def test_a_short_round_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways of reloading are measured on both kinds of servers, every request is in, nothing
    fails but what a reload cuts, and the files are written."""
    arguments = ["bench", "reloads", "--seeds", "1", "--duration", "2", "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("nginx -s reload") == 2
    data = json.loads((tmp_path / "reloads" / "reloads.json").read_text())
    assert list(data["rounds"]) == list(reloads.CASES)
    for variants in data["rounds"].values():
        assert list(variants) == list(reloads.VARIANTS)
        for name, rounds in variants.items():
            assert (rounds["1"]["reloads"] > 0) == (name != reloads.NEVER)
            assert rounds["1"]["requests"] > 500
            assert rounds["1"]["failed"] == rounds["1"]["lost"]
    assert "| trimtab apply |" in (tmp_path / "reloads" / "reloads.md").read_text()
