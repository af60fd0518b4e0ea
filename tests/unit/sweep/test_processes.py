"""Sweeps in this process and over processes: results, failures, and that nothing stays behind."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import sweep_jobs
from sweep_jobs import jobs
from trimtab.errors import ConfigError, TrimtabError
from trimtab.sweep.jobs import Here, JobError, Sweep, usable_cores
from trimtab.sweep.processes import Processes


@pytest.fixture(params=[1, 3], ids=["here", "processes"])
def sweep(request: pytest.FixtureRequest) -> Iterator[Sweep]:
    """Both."""
    with Here() if request.param == 1 else Processes(request.param) as one:
        yield one


@pytest.fixture
def two() -> Iterator[Processes]:
    """Two processes at most."""
    with Processes(2) as one:
        yield one


def test_results_come_in_the_order_of_the_jobs(sweep: Sweep) -> None:
    """Also when later jobs end sooner, and in a second round; no job is no result."""
    for _ in range(2):
        assert list(sweep.map(sweep_jobs.square, jobs(1, 2, 3, 4, 5))) == [1, 4, 9, 16, 25]
    assert list(sweep.map(sweep_jobs.square, [])) == []


def test_progress_never_exceeds_the_jobs_and_names_the_first_that_runs(sweep: Sweep) -> None:
    """Seconds are those of the jobs that are done and of the parts that running ones told; the
    label is that of the first job that is not done."""
    heard: list[tuple[str, float, str]] = []
    list(sweep.map(sweep_jobs.square, jobs(1, 2, 3), lambda *said: heard.append(said)))
    assert ("job 0", 5.0, "half") in heard or any(at > 5.0 for _, at, _ in heard)
    assert max(at for _, at, _ in heard) <= 30.0
    labels = [label for label, _, _ in heard]
    assert labels == sorted(labels)


def test_jobs_run_in_processes_that_are_kept(two: Processes) -> None:
    """Two jobs at once in two others; the next round has the same."""
    rounds = [set(two.map(sweep_jobs.process, jobs(None, None))) for _ in range(2)]
    assert rounds[0] == rounds[1]
    assert len(rounds[0]) == 2
    assert os.getpid() not in rounds[0]


def test_no_more_processes_than_jobs(two: Processes) -> None:
    """One job takes one process."""
    before = len(multiprocessing.active_children())
    list(two.map(sweep_jobs.square, jobs(1)))
    assert len(multiprocessing.active_children()) == before + 1


def test_an_error_of_the_user_keeps_its_kind_and_names_the_job(sweep: Sweep) -> None:
    """So that the exit status is what it would be without processes."""
    with pytest.raises(ConfigError, match="job 0: no table"):
        list(sweep.map(sweep_jobs.refused, jobs("table")))


def test_a_mistake_names_the_job_and_shows_where(sweep: Sweep) -> None:
    """It is raised as soon as it is known, and the sweep can be used again."""
    with pytest.raises(JobError, match=r"job 1 failed: KeyError: 'there'(.|\n)*sweep_jobs.py"):
        list(sweep.map(sweep_jobs.wrong, jobs("here", "there")))
    assert list(sweep.map(sweep_jobs.square, jobs(2))) == [4]


def test_a_result_that_cannot_be_sent_is_said(two: Processes) -> None:
    """Not a hang, and not a dead process."""
    with pytest.raises(JobError, match="job 0: its result cannot be sent"):
        list(two.map(sweep_jobs.unsendable, jobs(None)))


def test_a_killed_process_names_its_job_and_ends_the_others(two: Processes) -> None:
    """kill -9, as by a kernel without memory: at once a message, though the other process had ten
    minutes to go, and the sweep can be used again."""
    with pytest.raises(TrimtabError, match=r"job 1: its process was ended by SIGKILL.*memory"):
        list(two.map(sweep_jobs.victim, jobs(0, 1)))
    assert multiprocessing.active_children() == []
    assert list(two.map(sweep_jobs.square, jobs(2))) == [4]


def test_closing_ends_jobs_and_removes_what_they_keep(two: Processes, tmp_path: Path) -> None:
    """A job that is ended half way leaves no temporary files."""
    directory = str(tmp_path)

    def interrupt(_label: str, seconds: float, _note: str) -> None:
        if seconds > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(two.map(sweep_jobs.slow, jobs(directory, directory), interrupt))
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_of_the_terminal_does_not_reach_the_processes(two: Processes) -> None:
    """They ignore SIGINT: this process ends them."""
    (first, _) = two.map(sweep_jobs.process, jobs(None, None))
    os.kill(first, signal.SIGINT)
    assert first in set(two.map(sweep_jobs.process, jobs(None, None)))


def test_usable_cores_are_those_of_the_affinity() -> None:
    """Not those of the machine."""
    assert usable_cores() == len(os.sched_getaffinity(0))
