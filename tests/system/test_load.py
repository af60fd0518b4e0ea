"""`trimtab load` as a user runs it, against a real nginx."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ports import free_ports
from trimtab.cli import main

TRIMTAB = (sys.executable, "-m", "trimtab")

CONFIG = """
daemon off; worker_processes 1; pid nginx.pid; error_log error.log;
events {{ worker_connections 2048; }}
http {{
    access_log off; keepalive_requests 100000;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4;
    scgi_temp_path t5;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{ add_header X-Trimtab-Peer one; return 200 "ok"; }}
        location /wrk2-api/post/compose {{ return 200 "Successfully upload post"; }}
        location /bad {{ return 503; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a private nginx that answers at once."""
    directory = tmp_path_factory.mktemp("nginx")
    port = free_ports(1)[0]
    (directory / "nginx.conf").write_text(CONFIG.format(port=port))
    command = ("nginx", "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1000):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def load(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end. The lag is not judged, unless asked for: others run here too."""
    command = [*TRIMTAB, "load", *arguments]
    if "--max-lag" not in arguments:
        command += ["--max-lag", "60"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_run_leaves_a_table_and_its_files(url: str, tmp_path: Path) -> None:
    """One run prints its figures and writes the same ones as JSON, records and histogram log."""
    files = {n: tmp_path / f"r.{n}" for n in ("json", "npz", "hdr")}
    arguments = [x for n, path in files.items() for x in (f"--{n}", str(path))]
    done = load(
        f"{url}/x", "--rate", "300", "--duration", "1", "--seed", "7", "--deadline", "5", *arguments
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(files["json"].read_text())
    assert result["valid"]
    assert result["classes"]["requests"]["art_per_1000"] == 0
    sent = result["total"]["requests"]
    assert result["total"]["statuses"] == {"200": sent}
    assert result["total"]["peers"] == {"one": sent}
    with np.load(files["npz"], allow_pickle=False) as records:
        assert len(records["end"]) == sent
    assert files["hdr"].read_text().startswith("#[Histogram log format version 1.2]")
    assert f" {sent} " in done.stdout
    assert "the run is valid" in done.stdout
    assert "answered by: one 100.0%" in done.stdout
    assert "left" in done.stderr  # plain lines of progress


def test_the_same_seed_sends_the_same(url: str, tmp_path: Path) -> None:
    """Two runs of one seed have the same intended times, from one process or two."""
    times = []
    for processes in ("1", "2"):
        path = tmp_path / f"{processes}.npz"
        done = load(
            "--url", url, "--profile", "social", "--rate", "200", "--duration", "0.5",
            "--seed", "3", "--processes", processes, "--npz", str(path), "--quiet",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        with np.load(path, allow_pickle=False) as records:
            times.append((records["intended"], records["class_index"]))
            assert (records["ending"] == 0).all()
    assert np.array_equal(times[0][0], times[1][0])
    assert np.array_equal(times[0][1], times[1][1])


def test_the_founding_profile_runs_in_seconds(url: str, tmp_path: Path) -> None:
    """With time scaled, an hour's worth of periods and pauses passes in a second and a half."""
    path = tmp_path / "f.json"
    done = load(
        url, "--profile", "founding", "--duration", "1500", "--time-scale", "0.001",
        "--rate-scale", "0.2", "--seed", "1", "--json", str(path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["seconds"] == pytest.approx(1.5)
    assert list(result["classes"]) == ["compose", "home", "user"]
    assert all(c["requests"] > 10 and c["failed"] == 0 for c in result["classes"].values())


def test_failures_are_reported_by_kind(url: str) -> None:
    """A server's errors are results: they are counted and named, and the run stays valid."""
    done = load(
        url, "--duration", "0.4",
        "--class", "name=good,rate=50,path=/", "--class", "name=bad,rate=50,path=/bad",
    )  # fmt: skip
    assert done.returncode == 0
    assert "bad failed: status 503 " in done.stdout
    assert "good failed" not in done.stdout


def test_a_run_that_is_not_valid_says_so(url: str) -> None:
    """Lag above the bound: exit status 1, and the reason in the last line."""
    done = load(url, "--rate", "200", "--duration", "0.3", "--max-lag", "0.0000001")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith("THE RUN IS NOT VALID: p99 of the send lag is ")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_an_interruption_reports_what_is_done(
    url: str, tmp_path: Path, number: int, status: int
) -> None:
    """Ctrl-C ends the run early: table and files cover what was sent, and no process is left."""
    path = tmp_path / "r.json"
    process = subprocess.Popen(
        [*TRIMTAB, "load", url, "--rate", "200", "--duration", "300", "--processes", "2",
         "--max-lag", "60", "--json", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        process.stderr.readline()  # the first line of progress: the load has begun
        time.sleep(0.5)
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status
    assert "requests of the schedule were not sent" in out
    result = json.loads(path.read_text())
    assert result["interrupted"]
    assert 0 < result["total"]["requests"] < 20_000
    assert result["total"]["failed"] == 0
    assert str(path) not in _command_lines()


def _command_lines() -> str:
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(lines)


def test_a_terminal_gets_a_bar(url: str) -> None:
    """On a terminal the progress is a bar that is drawn over, and gone at the end."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*TRIMTAB, "load", url, "--rate", "100", "--duration", "1", "--max-lag", "60"],
        stdout=subprocess.DEVNULL, stderr=slave, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(slave)
    drawn = b""
    try:
        while select.select([master], [], [], 30)[0]:
            try:
                drawn += os.read(master, 65536)
            except OSError:  # the other end is closed
                break
    finally:
        os.close(master)
        process.wait(30)
    assert process.returncode == 0
    assert drawn.count(b"\r") > 3
    assert b"\n" not in drawn
    assert b"100 sent" not in drawn.split(b"\r")[-1]


BAD = {
    "unknown law 'poisson'": ("--law", "poisson"),
    "the schedule holds no request": ("--rate", "0"),
    "--rate -5": ("--rate", "-5"),
    "--duration 0": ("--duration", "0"),
    "--processes 0": ("--processes", "0"),
    "the seed is -1": ("--seed", "-1"),
    "--timeout nan": ("--timeout", "nan"),
    "lacks rate=": ("--class", "name=x"),
    "exclude each other": ("--class", "name=x,rate=1", "--profile", "social"),
    "cannot write /nowhere/r.json": ("--json", "/nowhere/r.json"),
    "--header 'x'": ("--header", "x"),
    "method 'BREW'": ("--method", "brew"),
    "at most 50000000": ("--rate", "1e9"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_sentence(
    message: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What makes no sense ends with status 2 and one line, before anything is sent."""
    assert main(["load", url, *BAD[message]]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((), "say once where"),
        (("ftp://x/",), "is not a URL to send load to"),
        (("https://x/",), "TLS is not supported"),
        (("http://127.0.0.1:1/",), "cannot reach http://127.0.0.1:1: Connection refused"),
    ],
)
def test_a_bad_target_is_one_sentence(
    where: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No URL, another scheme, a port nobody listens on: status 2, and nothing was sent."""
    assert main(["load", *where]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_full_disk_keeps_the_table(url: str) -> None:
    """When a result file cannot be written after all, the figures were printed, and status is 1."""
    done = load(url, "--rate", "50", "--duration", "0.2", "--json", "/dev/full", "--quiet")
    assert done.returncode == 1
    assert "the run is valid" in done.stdout
    assert "cannot write /dev/full: No space left on device" in done.stderr
