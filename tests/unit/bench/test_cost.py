"""The cost of balancing: the figures, and one short round with real programs."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trimtab.actuators.nginx_binary import find
from trimtab.bench import callgrind, cost
from trimtab.bench.balancers.base import Site
from trimtab.bench.balancers.hook import Hook
from trimtab.bench.cost import Cost, Measured
from trimtab.bench.cost_tables import (
    instructions_markdown,
    instructions_table,
    markdown_of,
    table_of,
    write_json,
)
from trimtab.bench.instructions import Counter, count, uncounted
from trimtab.bench.stage import free_ports, listens
from trimtab.children import Child
from trimtab.cli import main
from trimtab.errors import ConfigError, DependencyError


def missing() -> bool:
    """Whether a program that the rounds need is not here."""
    return bool(Hook(name="x", label="x").missing()) or shutil.which("wrk") is None


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
    lines = table_of(found).splitlines()
    assert next(line for line in lines if "Trimtab" in line).split() == [
        *("Trimtab", "24.0", "1.20", "[1.20,", "1.20]", "20000", "not", "counted", "3")
    ]
    assert max(map(len, lines[:-2])) <= 80


def counted(instructions: float) -> Measured:
    """A round on a machine that counts instructions."""
    return Measured(1e-5, 5e4, 0, instructions)


def test_instructions_are_compared_where_they_are_counted(tmp_path: Path) -> None:
    """A column with the ratio to least_conn; in Markdown and JSON too."""
    found = Cost()
    found.rounds["empty reply"] = {
        cost.BASE: {1: counted(20000.0), 2: counted(20002.0)},
        "Trimtab": {1: counted(24000.0), 2: counted(24002.4)},
    }
    assert "24001  1.20 [1.20, 1.20]" in table_of(found)
    assert "| Trimtab | 10.0 | 1.00 [1.00, 1.00] | 50000 | 24001 | 1.20 " in markdown_of(found)
    write_json(found, tmp_path / "cost.json")
    written = json.loads((tmp_path / "cost.json").read_text())
    assert written["rounds"]["empty reply"]["Trimtab"]["1"]["instructions_per_request"] == 24000


def test_a_count_is_what_perf_counted() -> None:
    """A machine without counters says so in place of the number."""
    assert count("# started on\n\n1234567,,instructions:u,100,100.00,,\n") == 1234567
    assert count("<not supported>,,instructions:u,0,100.00,,\n") is None
    assert count("") is None


@pytest.mark.skipif(bool(uncounted()), reason="this machine cannot count instructions")
def test_instructions_of_another_process_are_counted() -> None:
    """As many as it executes while the command runs."""
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as busy:
        try:
            with Counter([busy.pid]) as counter:
                subprocess.run([*counter.prefix, "sleep", "0.2"], check=True)
                assert (counter.counted() or 0) > 1_000_000
        finally:
            busy.kill()


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Without wrk there is one sentence with the command that installs it."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(DependencyError, match="apt-get install"):
        cost.measure(tmp_path, seconds=1, rounds=1, cost=Cost(), report=lambda *_: None)


def test_counted_instructions_are_medians_beside_the_base() -> None:
    """What is added to least_conn, and the ratio; from the least to the most of the rounds."""
    found = {cost.BASE: [20010.0, 20000.0, 19000.0], "Trimtab": [24000.0, 30000.0, 23000.0]}
    rows = instructions_table(found).splitlines()
    assert next(r for r in rows if r.startswith("Trimtab")).split() == [
        *("Trimtab", "24000", "4000", "1.20", "23000", "30000")
    ]
    assert "| Trimtab | 24000 | 4000 | 1.20 | 23000 | 30000 |" in instructions_markdown(found)
    # Interrupted before there was a base.
    assert "-" in instructions_table({"Trimtab": [24000.0]}).splitlines()[2].split()


@pytest.mark.skipif(missing(), reason="no nginx with Lua")
def test_a_fixed_number_of_requests_is_sent(tmp_path: Path) -> None:
    """No more and no fewer, whatever the number of connections; other answers are errors."""
    address = f"127.0.0.1:{free_ports(1)}"
    with cost.backend(tmp_path, (address,), 4096):
        assert callgrind.send(address, 130) == 0
        assert callgrind.send(address, 3) == 0
    text = (tmp_path / "nginx.conf").read_text()
    text = text.replace("access_log off;", f"access_log {tmp_path}/access.log;")
    (tmp_path / "nginx.conf").write_text(text.replace("return 200", "return 404"))
    command = [find("nginx").path, "-p", f"{tmp_path}/", "-c", str(tmp_path / "nginx.conf")]
    with Child("nginx", [*command, "-g", "daemon off;"], log=tmp_path / "log") as child:
        child.wait_until(lambda: listens(address), seconds=10)
        assert callgrind.send(address, 130) == 130
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert sum("GET" in line for line in lines) == 130


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_valgrind_counts_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of plain nginx are within a few percent, and what is written has both."""
    monkeypatch.setattr(callgrind, "VARIANTS", {"least_conn": cost.VARIANTS["least_conn"]})
    monkeypatch.setattr(callgrind, "WARM_UP", 300)
    monkeypatch.setattr(callgrind, "COUNTED", 500)
    assert main(["bench", "cost", "--callgrind", "--seeds", "2", "--output", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "cost" / "callgrind.json").read_text())
    one, other = written["rounds"]["least_conn"]
    assert one == pytest.approx(other, rel=0.1)
    assert 5_000 < one < 100_000


def test_callgrind_goes_with_cost_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere it is an error that says so."""
    assert main(["bench", "reloads", "--callgrind"]) == ConfigError.exit_status
    assert "--callgrind goes with cost" in capsys.readouterr().err


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


@pytest.mark.skipif(missing(), reason="no nginx with Lua, or no wrk")
def test_an_interrupt_shows_the_rounds_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in the second variant: a table of the first, its files, exit status 143."""
    real = cost._round

    def rounds(site: Site, options: dict[str, Any], log: bool, seconds: float) -> Measured:
        if options["balancer"] != "least_conn":
            os.kill(os.getpid(), signal.SIGTERM)
        return real(site, options, log, seconds)

    monkeypatch.setattr(cost, "_round", rounds)
    arguments = ["bench", "cost", "--seeds", "1", "--duration", "1", "--output", str(tmp_path)]
    assert main(arguments) == 143
    printed = capsys.readouterr().out
    assert "least_conn" in printed
    assert "round robin" not in printed
    data = json.loads((tmp_path / "cost" / "cost.json").read_text())
    assert list(data["rounds"]["empty reply"]["least_conn"]) == ["1"]
    assert "| least_conn |" in (tmp_path / "cost" / "cost.md").read_text()
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False)
    assert left.stdout == b""
