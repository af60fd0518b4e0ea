"""What is trained and compared is the same for any number of processes, and Ctrl-C ends them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from small_system import SMALL
from trimtab import config
from trimtab.cli import main
from trimtab.demo.scenario import Scenario, parse
from trimtab.learn import trained
from trimtab.learn.actions import searched
from trimtab.sweep.jobs import Sweep
from trimtab.sweep.processes import Processes
from trimtab.training.comparison import FAULTS, LEARNERS, Comparison
from trimtab.training.course import Stage, Training
from trimtab.training.setting import configuration


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    """Two processes."""
    with Processes(2) as sweep:
        yield sweep


@pytest.fixture
def scenario() -> Scenario:
    """Two classes on two servers."""
    return parse(SMALL, "small.toml")


def quick(scenario: Scenario) -> config.Config:
    """Its configuration, with decisions of seconds."""
    made = configuration(scenario)
    return replace(
        made,
        learning=replace(made.learning, observe_seconds=20.0, decision_seconds=6.0, clusters=4),
    )


def train(scenario: Scenario, output: Path, sweep: Sweep | None, stop: str = "") -> None:
    """A training of seconds; interrupted at the stage, and then gone on with."""

    def told(stage: Stage) -> None:
        if stop and stage.label == stop:
            raise KeyboardInterrupt

    def plan() -> Training:
        return Training(scenario, quick(scenario), output, seconds=60.0, seeds=2, evaluations=12)

    if stop:
        with pytest.raises(KeyboardInterrupt):
            plan().run(told, sweep)
    work = plan()
    if stop:
        work.resume()
    work.run(sweep=sweep)


def test_the_trained_file_is_the_same_for_any_number_of_processes(
    scenario: Scenario, tmp_path: Path, two: Processes
) -> None:
    """Byte by byte: in this process, over two, and interrupted over two and gone on with."""
    train(scenario, tmp_path / "one.json", None)
    expected = (tmp_path / "one.json").read_bytes()
    train(scenario, tmp_path / "two.json", two)
    assert (tmp_path / "two.json").read_bytes() == expected
    train(scenario, tmp_path / "cut.json", two, "try neutral")
    assert (tmp_path / "cut.json").read_bytes() == expected


def test_the_comparison_is_the_same_for_any_number_of_processes(
    scenario: Scenario, tmp_path: Path, two: Processes
) -> None:
    """Every arm and fault but the DQN, on two seeds."""
    factors = {n: {"127.0.0.1:9001": 0.5, "127.0.0.1:9002": 2.0} for n in ("short", "long")}
    servers = {u.name: [p.address for p in u.peers] for u in quick(scenario).upstreams}
    body = trained.body_of(servers, [searched("twin", "found", factors)], None, {})
    trained.write(tmp_path / "t.json", body)
    who = [name for name in (*LEARNERS, *FAULTS) if name != "dqn"]
    both = []
    for sweep in (None, two):
        one = Comparison(scenario, quick(scenario), tmp_path / "t.json", None, 120.0)
        one.run(who, (1, 2), sweep=sweep)
        both.append((one.art, one.promoted))
    assert both[0] == both[1]
    assert list(both[0][0]) == who


# The command, as a whole program


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`trimtab train --jobs 2` of an hour a load, in a session of its own, once both processes have
    a job that keeps files."""
    (tmp_path / "small.toml").write_text(SMALL)
    (tmp_path / "files").mkdir()
    program = subprocess.Popen(
        [sys.executable, "-m", "trimtab", "train", "--scenario", str(tmp_path / "small.toml"),
         "--evaluations", "0", "--seconds", "36000", "--jobs", "2",
         "--output", str(tmp_path / "t.json")],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "files")},
    )  # fmt: skip
    try:
        until(lambda: len(kept(tmp_path)) == 2, 120)
        yield program
    finally:
        for one in [p for p in psutil.process_iter() if session(p.pid) == program.pid]:
            one.kill()
        program.communicate()


def kept(tmp_path: Path) -> list[Path]:
    """The directories of the stores of running jobs."""
    return [p for p in (tmp_path / "files").iterdir() if p.name.startswith("tmp")]


def session(pid: int) -> int:
    """The session of a process; 0 when it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def workers(program: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that have jobs."""
    children = psutil.Process(program.pid).children()
    return [p for p in children if "spawn_main" in " ".join(p.cmdline())]


def alone(program: subprocess.Popen[str]) -> bool:
    """Whether nothing of the command's session runs."""
    return not any(session(p.pid) == program.pid for p in psutil.process_iter())


def until(ready, seconds: float) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_ends_all_processes(command: subprocess.Popen[str], tmp_path: Path) -> None:
    """The signal of a terminal goes to all of them: status 130, one line, no traceback, and neither
    a process nor a file stays."""
    os.killpg(command.pid, signal.SIGINT)
    _, said = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    until(lambda: alone(command), 10)
    assert kept(tmp_path) == []


def test_a_killed_command_leaves_no_process(command: subprocess.Popen[str], tmp_path: Path) -> None:
    """kill -9 of the command: its processes find their pipe closed, and remove their files."""
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    until(lambda: alone(command), 30)
    assert kept(tmp_path) == []


def test_a_killed_process_ends_the_command(command: subprocess.Popen[str]) -> None:
    """kill -9 of one of its processes: status 1, and a line that names the job and the signal."""
    workers(command)[0].kill()
    _, said = command.communicate(timeout=30)
    assert command.returncode == 1
    assert "trimtab: load 0." in said
    assert "its process was ended by SIGKILL" in said
    assert "Traceback" not in said
    until(lambda: alone(command), 10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--jobs", "0"], "--jobs is 0"),
        (["bench", "learning", "--twin", "--jobs", "-1"], "--jobs is -1"),
        (["bench", "cost", "--jobs", "2"], "--jobs goes with learning"),
    ],
)
def test_wrong_numbers_of_jobs_are_refused(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, before anything runs."""
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
