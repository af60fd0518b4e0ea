"""Sweeps on a private Ray of this machine: the same results, on loopback alone, nothing left."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import sweep_jobs
from small_system import SMALL
from sweep_jobs import jobs
from trimtab.cli import main
from trimtab.errors import ConfigError, TrimtabError
from trimtab.sweep import cluster
from trimtab.sweep.cluster import Cluster
from trimtab.sweep.jobs import JobError

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"
)


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    """A private Ray with two cores, whose processes find the jobs of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(sweep_jobs.__file__).parent))
        with Cluster("local", 2) as sweep:
            yield sweep


def processes() -> list[psutil.Process]:
    """Those below this one."""
    return psutil.Process().children(recursive=True)


@with_ray
def test_results_come_in_the_order_of_the_jobs(ray: Cluster) -> None:
    """Twice, in other processes than this one, with the seconds of whole jobs told."""
    heard: list[tuple[str, float, str]] = []
    for _ in range(2):
        found = ray.map(sweep_jobs.square, jobs(1, 2, 3, 4), lambda *said: heard.append(said))
        assert list(found) == [1, 4, 9, 16]
    assert os.getpid() not in set(ray.map(sweep_jobs.process, jobs(None, None)))
    assert {at for _, at, _ in heard} <= {0.0, 10.0, 20.0, 30.0}


@with_ray
def test_nothing_listens_beyond_loopback(ray: Cluster) -> None:
    """Every socket of Ray's processes that listens is on 127.0.0.1, and its directory is closed."""
    listening = [
        c.laddr.ip
        for p in [psutil.Process(), *processes()]
        for c in p.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert ray._directory is not None
    assert Path(ray._directory).stat().st_mode & 0o777 == 0o700


@with_ray
def test_errors_name_the_job_and_keep_their_kind(ray: Cluster) -> None:
    """As over processes; afterwards the sweep goes on."""
    with pytest.raises(ConfigError, match="job 0: no table"):
        list(ray.map(sweep_jobs.refused, jobs("table")))
    with pytest.raises(JobError, match=r"job 0 failed: KeyError: 'there'(.|\n)*sweep_jobs.py"):
        list(ray.map(sweep_jobs.wrong, jobs("there")))
    with pytest.raises(TrimtabError, match="job 0: lost by Ray: "):
        list(ray.map(sweep_jobs.victim, jobs(1)))
    assert list(ray.map(sweep_jobs.square, jobs(2))) == [4]


@with_ray
def test_another_version_is_refused_before_it_runs(
    ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose trimtab or numpy differs from ours would give other results."""
    monkeypatch.setattr(cluster, "fingerprint", lambda: "trimtab 9.9.9 (0123), numpy 9.9")
    said = r"cannot run it: .* has trimtab 0.*; install the same trimtab there: trimtab 9\.9\.9"
    with pytest.raises(TrimtabError, match=said):
        list(ray.map(sweep_jobs.square, jobs(2)))


# The command, as a whole program


@pytest.fixture
def files() -> Iterator[Path]:
    """Where commands keep temporary files; a short path, as sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        yield Path(directory)


def start(tmp_path: Path, files: Path, *arguments: str) -> subprocess.Popen[str]:
    """`trimtab train` in a session of its own."""
    (tmp_path / "small.toml").write_text(SMALL)
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab", "train", "--scenario", str(tmp_path / "small.toml"),
         *arguments],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": str(files)},
    )  # fmt: skip


def below(program: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that it started, and those that these started."""
    return psutil.Process(program.pid).children(recursive=True)


@with_ray
def test_the_trained_file_is_the_same_on_ray(tmp_path: Path, files: Path) -> None:
    """Byte by byte that of one process, on two cores of Ray; no process stays."""
    outputs = []
    for name, where in (("one.json", ("--jobs", "1")), ("ray.json", ("--ray", "local"))):
        outputs.append(tmp_path / name)
        program = start(
            tmp_path, files, "--evaluations", "8", "--seconds", "60", "--seeds", "1", *where,
            "--output", str(outputs[-1]),
        )  # fmt: skip
        seen: dict[int, psutil.Process] = {}
        while program.poll() is None:
            if psutil.pid_exists(program.pid):
                try:
                    seen.update({p.pid: p for p in below(program)})
                except psutil.NoSuchProcess:
                    break
            time.sleep(0.2)
        _, said = program.communicate()
        assert program.returncode == 0, said
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert len(seen) > 3
    assert list(files.iterdir()) == []
    _, alive = psutil.wait_procs(list(seen.values()), timeout=10)
    assert alive == []


@with_ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_ended_command_leaves_no_ray(
    tmp_path: Path, files: Path, number: signal.Signals
) -> None:
    """Ctrl-C and kill -9 while Ray has jobs: what has jobs and what serves ends too. Two agents of
    Ray's notice a kill -9 after a minute; here they are ended sooner."""
    program = start(
        tmp_path, files, "--evaluations", "0", "--seconds", "36000", "--jobs", "1",
        "--ray", "local", "--output", str(tmp_path / "t.json"),
    )  # fmt: skip
    started: list[psutil.Process] = []
    end = time.monotonic() + 120
    while not any("_answer" in p.name() for p in started):
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
        started = below(program)
    slow = [p for p in started if number == signal.SIGKILL and p.name().endswith("Agent")]
    if number == signal.SIGINT:
        os.killpg(program.pid, number)
    else:
        os.kill(program.pid, number)
    _, said = program.communicate(timeout=60)
    _, alive = psutil.wait_procs([p for p in started if p not in slow], timeout=30)
    for agent in slow:
        agent.kill()
    assert alive == []
    if number == signal.SIGINT:
        assert list(files.iterdir()) == []
        assert program.returncode == 130
        assert "interrupted" in said
        assert "Traceback" not in said


@with_ray
@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("127.0.0.1:{}", 1, "no Ray answers there within"),
        ("ray://127.0.0.1:{}", 1, "no Ray answers there within"),
        ("auto", 1, "no cluster to be had"),
        ("nonsense", 2, "give host:port"),
    ],
)
def test_an_address_without_a_ray_is_said_in_bounded_time(
    address: str,
    status: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where something else listens and says nothing."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = address.format(silent.getsockname()[1])
        output = tmp_path / "t.json"
        assert main(["train", "--ray", where, "--output", str(output)]) == status
    assert says in capsys.readouterr().err
    assert not output.exists()


def test_without_the_package_the_command_that_installs_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 3, as for every package that is missing."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["train", "--ray", "local", "--output", str(tmp_path / "t.json")]) == 3
    assert "pip install 'trimtab[ray]'" in capsys.readouterr().err


def test_the_fingerprint_names_what_numbers_come_from() -> None:
    """Version, source, Python and numpy."""
    said = cluster.fingerprint()
    assert said.startswith("trimtab ")
    assert "numpy " in said
    assert "Python 3." in said
