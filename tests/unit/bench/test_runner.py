"""The benchmark with real balancers: two of them, two seconds each."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trimtab.bench.balancers.known import BALANCERS, chosen
from trimtab.bench.outcome import digest
from trimtab.bench.scenario import names, schedule
from trimtab.bench.stage import free_ports
from trimtab.cli import main, parser
from trimtab.cli.bench import plan
from trimtab.demo.scenario import load

SCENARIO = """
description = "small"
duration_seconds = 4
warm_up_seconds = 0.5
[load]
requests_per_second = 150
[[server]]
slots = 2
[[server]]
slots = 2
speed = 2
[[class]]
name = "quick"
share = 0.5
service_seconds = 0.004
deadline_seconds = 0.02
[[class]]
name = "long"
share = 0.5
service_seconds = 0.01
deadline_seconds = 0.05
"""

PRESENT = [b.name for b in chosen(["least-conn", "haproxy-leastconn"]) if not b.missing()]


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    """A scenario file of one's own."""
    path = tmp_path / "small.toml"
    path.write_text(SCENARIO)
    return str(path)


@pytest.mark.skipif(not PRESENT, reason="neither nginx nor HAProxy is installed")
def test_every_balancer_meets_the_same_requests(
    scenario: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Same times, classes and work; figures for each; --resume runs nothing again."""
    monkeypatch.delenv("COLUMNS", raising=False)  # names are not cut where nobody says a width
    output = tmp_path / "out"
    arguments = [
        *("bench", "--scenario", scenario, "--balancer", *PRESENT),
        *("--seeds", "1", "--duration", "2", "--output", str(output)),
    ]
    assert main(arguments) in (0, 1)  # 1: the machine was too busy for a valid run
    printed = capsys.readouterr().out
    assert "small: small; 150 requests/s, 2 s, 1 seed" in printed
    assert "bound: central queue in deadline order" in printed
    sent = []
    for name in PRESENT:
        with np.load(output / "runs" / f"small.{name}.1.npz") as records:
            sent.append([records[f] for f in ("intended", "class_index", "work_seconds")])
    for other in sent[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(sent[0], other, strict=True))
    data = json.loads((output / "results.json").read_text())
    for outcome in data["outcomes"]:
        assert outcome["error_ratio"] == 0
        assert outcome["requests"] > 150
        assert sum(outcome["shares"].values()) == pytest.approx(1)
        assert outcome["p50_seconds"] > 0.001
        assert outcome["cpu_seconds_per_request"] > 0
    if any(not o["valid"] for o in data["outcomes"]):
        return  # would be run again
    markdown = (output / "results.md").read_text()
    assert "small; 150 requests/s, 2 s, 1 seed." in markdown
    written = {path: path.stat().st_mtime_ns for path in (output / "runs").iterdir()}
    assert main([*arguments, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (output / "runs").iterdir()} == written
    assert json.loads((output / "results.json").read_text())["outcomes"] == data["outcomes"]


@pytest.mark.skipif(len(PRESENT) < 2, reason="needs nginx and HAProxy")
def test_an_interrupt_keeps_what_is_done(scenario: str, tmp_path: Path) -> None:
    """Ctrl-C in the second run: a table of the first, exit status 130, no process left."""
    output = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "trimtab", "bench", "--scenario", scenario),
        *("--balancer", *PRESENT, "--seeds", "1", "--duration", "3", "--output", str(output)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            give_up = time.monotonic() + 60
            second = output / "work" / f"small.{PRESENT[1]}"
            while not second.exists() and time.monotonic() < give_up:
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(0.5)  # into the load of the second run
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert PRESENT[0].encode() in out
    assert b"written to" in out
    outcomes = json.loads((output / "results.json").read_text())["outcomes"]
    assert [o["balancer"] for o in outcomes] == [PRESENT[0]]
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False)
    assert left.stdout == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "nothing"], "no scenario 'nothing'"),
        (["--balancer", "apache"], "no balancer 'apache'"),
        (["--seeds", "0"], "--seeds 0: it must be from 1"),
        (["--duration", "0.1"], "--duration 0.1: it must be from 1"),
        (["--workers", "0"], "--workers 0: it must be from 1"),
        (["--nginx", "/no/nginx"], "--nginx /no/nginx: there is no program"),
        (["--output", "/dev/null/x"], "--output /dev/null/x: cannot write there"),
        (["cost", "--output", "/dev/null/x"], "cannot write there"),
        (["--scenario", "/no/file.toml"], "/no/file.toml: "),
        (["--duration", "nan"], "--duration nan: it must be from 1"),
    ],
)
def test_bad_arguments_are_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, before anything starts."""
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_broken_scenario_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names file and key; nothing has been started or written."""
    path = tmp_path / "broken.toml"
    path.write_text(SCENARIO.replace("slots = 2", "slots = -2", 1))
    assert main(["bench", "--scenario", str(path), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"trimtab: {path}: ")
    assert "slots" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_other_requests_are_not_resumed(tmp_path: Path) -> None:
    """A scenario file that has changed since makes other runs, under the same names."""
    path = tmp_path / "small.toml"
    path.write_text(SCENARIO)
    before = load(path)
    path.write_text(SCENARIO.replace("speed = 2", "speed = 3"))
    after = load(path)
    drawn = schedule(before, 1, 2.0)
    assert digest(before, drawn) == digest(before, schedule(before, 1, 2.0))
    assert digest(before, drawn) != digest(after, drawn)
    assert digest(before, drawn) != digest(before, schedule(before, 2, 2.0))


def test_scenarios_and_balancers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With the rate of each scenario, and what a balancer was told."""
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "three-classes             622  three classes on speeds" in printed
    assert "haproxy-maxconn" in printed


def test_free_ports_are_free() -> None:
    """So many in a row, below the ports of outgoing connections."""
    first = free_ports(5)
    assert first >= 15000
    assert first + 5 <= 32000


def test_the_short_set_takes_under_a_quarter_of_an_hour(tmp_path: Path) -> None:
    """Also with a run in eight repeated; `all` is everything that is listed."""
    arguments = parser(["bench"]).parse_args(["bench", "--output", str(tmp_path)])
    assert 1.125 * plan(arguments).total_seconds < 15 * 60
    arguments.scenario = arguments.balancer = ["all"]
    everything = plan(arguments)
    assert [s.name for s in everything.scenarios] == names()
    assert list(everything.balancers) == list(BALANCERS)
