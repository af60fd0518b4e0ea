"""`trimtab collect` as a user runs it."""

import http.server
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hooked import PATIENCE_SECONDS, hooked, until
from peers import Peer, peers
from trimtab.cli import main
from trimtab.sources.collected import read_lines
from trimtab.sources.collector import collect

TRIMTAB = (sys.executable, "-m", "trimtab")
PAGE = (Path(__file__).parents[1] / "data" / "vts" / "v0.2.7-head.03-loaded.json").read_bytes()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer with a real status."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A status page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/status/format/json"
        server.shutdown()
        thread.join()


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command."""
    return subprocess.Popen([*TRIMTAB, "collect", *arguments], stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its end; what it said."""
    try:
        return process.communicate(timeout=PATIENCE_SECONDS)[1]
    finally:
        process.kill()
        process.wait()


def wait_for_lines(path: Path, count: int) -> None:
    """Wait until the file has this many lines."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_it_ends_with_a_process(url: str, tmp_path: Path) -> None:
    """With --pid it collects until that process ends, takes a last reading, and exits with 0."""
    path = tmp_path / "s.json"
    watched = subprocess.Popen(["sleep", "600"])
    try:
        process = start(url, "-o", str(path), "--interval", "0.05", "--pid", str(watched.pid))
        wait_for_lines(path, 3)
        assert process.poll() is None
    finally:
        watched.kill()
        watched.wait()
    said = finish(process)
    assert process.returncode == 0
    readings = list(read_lines(path))
    assert f"{len(readings)} readings added" in said
    assert list(readings[0].groups) == ["compose_backend", "home_read_backend", "user_read_backend"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_leaves_whole_lines(url: str, tmp_path: Path, number: int, status: int) -> None:
    """Ctrl-C ends it at once, with whole lines only."""
    path = tmp_path / "s.json"
    process = start(url, "-o", str(path), "--interval", "0.02")
    wait_for_lines(path, 5)
    process.send_signal(number)
    finish(process)
    assert process.returncode == status
    assert path.read_bytes().endswith(b"}\n")
    assert len(list(read_lines(path))) == path.read_bytes().count(b"\n") >= 5


def test_seconds_and_a_second_run(url: str, tmp_path: Path) -> None:
    """--seconds ends it; a second run adds to the file, with --overwrite it replaces it."""
    path = tmp_path / "s.json"
    counts = []
    for more in ((), (), ("--overwrite",)):
        assert finish(start(url, "-o", str(path), "--seconds", "0.2", "--interval", "5", *more))
        counts.append(len(list(read_lines(path))))
    assert counts == [2, 4, 2]


BAD = {
    "cannot write /nowhere/s.json": ("{url}", "-o", "/nowhere/s.json"),
    "is not the http URL": ("status.json", "-o", "{path}"),
    "--interval 0": ("{url}", "-o", "{path}", "--interval", "0"),
    "--seconds -1": ("{url}", "-o", "{path}", "--seconds", "-1"),
    "there is no process 4194305": ("{url}", "-o", "{path}", "--pid", "4194305"),
    "Connection refused; nothing was collected": ("http://127.0.0.1:1/", "-o", "{path}"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_sentence(
    message: str,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What makes no sense ends with status 2 and one line, and leaves no file."""
    monkeypatch.setitem(collect.__kwdefaults__, "first_seconds", 0.1)
    arguments = [a.format(url=url, path=tmp_path / "s.json") for a in BAD[message]]
    assert main(["collect", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(url: str) -> None:
    """No space left ends it with status 1 and the reason."""
    process = start(url, "-o", "/dev/full")
    said = finish(process)
    assert process.returncode == 1
    assert "cannot write /dev/full: No space left on device; collecting ends" in said


def test_the_hooks_own_status_is_collected(tmp_path: Path) -> None:
    """Trimtab's nginx is read like one with the VTS module, with requests in flight added."""
    path = tmp_path / "s.json"
    page = (
        "location = /status/format/json { content_by_lua_block "
        '{ require("resty.trimtab").status_vts() } }'
    )
    with peers(Peer(), Peer()) as both:
        addresses = [{"address": p.address, "slots": 2, "weight": 1} for p in both]
        with hooked(tmp_path / "nginx", {"reads": addresses}, server=page) as nginx:
            url = f"http://127.0.0.1:{nginx.port}/status/format/json"
            process = start(url, "-o", str(path), "--interval", "0.05")
            wait_for_lines(path, 1)
            for _ in range(10):
                assert nginx.get("/reads")[0] == 200
            until(nginx.is_at_rest)
            wait_for_lines(path, path.read_bytes().count(b"\n") + 3)
            process.send_signal(signal.SIGTERM)
            finish(process)
    last = list(read_lines(path))[-1]
    servers = last.groups["reads"]
    assert set(servers) == {p["address"] for p in addresses}
    assert sum(s["requestCounter"] for s in servers.values()) == 10
    for server in servers.values():
        assert server["inFlight"] == 0
        assert server["Non 2xx/3xx responses"] == 0
        assert {"inBytes", "outBytes", "requestMsecCounter", "weight", "down"} <= set(server)
    assert last.connections["active"] >= 1


def test_a_restart_of_nginx_is_survived(tmp_path: Path) -> None:
    """nginx stops and starts again: the collector stays, and says gone, back and begun again."""
    path = tmp_path / "s.json"
    page = (
        "location = /status/format/json { content_by_lua_block "
        '{ require("resty.trimtab").status_vts() } }'
    )
    with peers(Peer()) as only:
        upstreams = {"reads": [{"address": p.address, "slots": 2} for p in only]}
        with hooked(tmp_path / "nginx", upstreams, server=page) as nginx:
            url = f"http://127.0.0.1:{nginx.port}/status/format/json"
            for _ in range(5):
                nginx.get("/reads")
            process = start(url, "-o", str(path), "--interval", "0.05")
            wait_for_lines(path, 2)
            nginx.process.terminate()
            nginx.process.wait(PATIENCE_SECONDS)
            stopped = path.read_bytes().count(b"\n")
            command = nginx.process.args
            nginx.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # type: ignore[call-overload]
            try:
                wait_for_lines(path, stopped + 2)
            finally:
                nginx.process.terminate()
                nginx.process.wait(PATIENCE_SECONDS)
        process.send_signal(signal.SIGTERM)
        said = finish(process)
    assert "the counters began again" in said
    counts = [
        sum(s["requestCounter"] for s in r.groups["reads"].values()) for r in read_lines(path)
    ]
    assert counts[0] == 5
    assert counts[-1] == 0
