"""`trimtab up`: both parts run, survive what they should, and nothing is left afterwards."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from nginxes import answering, toml
from trimtab.actuators.nginx_process import STOP_SECONDS
from trimtab.cli.up import Backoff


def wait_until(true: Callable[[], object]) -> None:
    """Fail unless it becomes true within a generous time."""
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Up:
    """A running `trimtab up` and what it says."""

    def __init__(self, directory: Path, text: str) -> None:
        self.file = directory / "trimtab.toml"
        self.file.write_text(text)
        self._said = directory / "said"
        with self._said.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trimtab", "up", "--config", str(self.file)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        """All that it has printed."""
        return self._said.read_text()

    def children(self, pid: int | None = None) -> dict[int, str]:
        """Process id to command line of its children, and of theirs."""
        pid = pid or self.process.pid
        found = {}
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
                found |= {int(child): command.decode()} | self.children(int(child))
        return found

    def policy_server(self) -> int | None:
        """Process id of the policy server, if it runs."""
        return next((p for p, c in self.children().items() if " serve " in c), None)

    def nginx(self) -> int:
        """Process id of nginx's master."""
        return next(p for p, c in self.children().items() if "master" in c)

    def wait_ready(self) -> Self:
        """Wait until it says that it runs."""
        wait_until(lambda: "Ctrl-C stops" in self.said() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        return self

    def wait_end(self, number: int | None = None) -> int:
        """Send a signal, if any; wait until it has ended and nothing is left; its status."""
        children = self.children()
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(60)
        wait_until(lambda: not any(alive(pid) for pid in children))
        return status


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[[str], Up]]:
    """Starts `trimtab up` on a configuration text; ended, whatever happens."""
    started: list[Up] = []

    def start(text: str) -> Up:
        started.append(Up(tmp_path, text))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.wait_end(signal.SIGKILL)


def setting(text: str, key: str) -> str:
    """The first value of a key in a configuration text."""
    return text.partition(f"{key} = ")[2].partition("\n")[0].strip('[]"')


def clients(text: str) -> str:
    """Where nginx listens for clients."""
    return text.partition("[nginx]")[2].partition('["')[2].partition('"')[0]


def get(address: str, path: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal_and_leaves_nothing(
    number: int, status: int, up: Callable[[str], Up], tmp_path: Path
) -> None:
    """Requests are answered, the status page too; a signal ends all with 128 + its number."""
    with answering() as backend:
        text = toml(tmp_path, peers=[backend])
        running = up(text).wait_ready()
        assert get(clients(text), "/read")[0] == 200
        assert get(setting(text, "internal_listen"), "/trimtab/status")[0] == 200
        assert clients(text) in running.said()
        assert running.wait_end(number) == status
    assert running.said().endswith("trimtab: stopped\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["said", "state", "trimtab.toml"]


def test_a_second_signal_cuts_what_the_first_waits_for(
    up: Callable[[str], Up], tmp_path: Path
) -> None:
    """The first Ctrl-C waits for a request that hangs, the second one does not."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        # Longer than the grace period, so that nothing else ends the request.
        text = toml(tmp_path, peers=[f"127.0.0.1:{backend.getsockname()[1]}"])
        running = up(text.replace("timeout_seconds = 2", "timeout_seconds = 60")).wait_ready()
        host, port = clients(text).split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(b"GET /read HTTP/1.1\r\nHost: x\r\n\r\n")
            with backend.accept()[0]:
                began = time.monotonic()
                running.process.send_signal(signal.SIGINT)
                wait_until(lambda: "SIGINT: stopping" in running.said())
                assert running.process.poll() is None
                assert running.wait_end(signal.SIGINT) == 130
                assert time.monotonic() - began < STOP_SECONDS


def test_the_policy_server_may_die(up: Callable[[str], Up], tmp_path: Path) -> None:
    """After kill -9 of the policy server requests are answered, and it is started again."""
    with answering() as backend:
        text = toml(tmp_path, peers=[backend])
        running = up(text).wait_ready()
        wait_until(running.policy_server)
        first = running.policy_server()
        assert first is not None
        os.kill(first, signal.SIGKILL)
        statuses = []

        def again() -> bool:
            statuses.append(get(clients(text), "/read")[0])
            return running.policy_server() not in (None, first)

        wait_until(again)
        assert set(statuses) == {200}
        assert "the policy server ended with signal 9" in running.said()
        assert running.wait_end(signal.SIGINT) == 130


def test_without_nginx_all_ends(up: Callable[[str], Up], tmp_path: Path) -> None:
    """When nginx is killed everything stops, with exit status 1 and where to look."""
    running = up(toml(tmp_path)).wait_ready()
    wait_until(running.policy_server)
    children = running.children()
    os.kill(running.nginx(), signal.SIGKILL)
    assert running.process.wait(60) == 1
    wait_until(lambda: not any(alive(pid) for pid in children))
    assert "nginx has died" in running.said()
    assert "error.log" in running.said()


def test_nothing_outlives_kill_9(up: Callable[[str], Up], tmp_path: Path) -> None:
    """Killed without a chance to clean up, it still leaves neither nginx nor policy server."""
    running = up(toml(tmp_path)).wait_ready()
    wait_until(running.policy_server)
    assert len(running.children()) >= 3
    assert running.wait_end(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.parametrize("key", ["listen", "admin_listen", "internal_listen"])
def test_a_port_in_use_is_told_before_anything_starts(
    key: str, up: Callable[[str], Up], tmp_path: Path
) -> None:
    """Status 1 and a message with the key, the port and the command that shows who has it."""
    text = toml(tmp_path)
    port = int(setting(text, key).rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        running = up(text)
        assert running.process.wait(60) == 1
    assert f"{key} = " in running.said()
    assert f"sport = :{port}" in running.said()
    assert not (tmp_path / "state" / "nginx" / "nginx.pid").exists()


def test_two_cannot_share_a_state_directory(up: Callable[[str], Up], tmp_path: Path) -> None:
    """The second one, on other ports, is refused and leaves the first one's files alone."""
    with answering() as backend:
        text = toml(tmp_path, peers=[backend])
        first = up(text).wait_ready()
        conf = (tmp_path / "state" / "nginx" / "nginx.conf").read_text()
        other = tmp_path / "other.toml"
        other.write_text(toml(tmp_path, peers=[backend]))
        second = subprocess.run(
            [sys.executable, "-m", "trimtab", "up", "--config", str(other)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert "another `trimtab up`" in second.stderr
        assert (tmp_path / "state" / "nginx" / "nginx.conf").read_text() == conf
        assert get(clients(text), "/read")[0] == 200
        assert first.wait_end(signal.SIGTERM) == 143


def test_stock_mode_is_refused(up: Callable[[str], Up], tmp_path: Path) -> None:
    """`up` is for lua mode: another mode is a configuration error that says what to use."""
    running = up(toml(tmp_path).replace("[nginx]", '[nginx]\nmode = "stock"'))
    assert running.process.wait(60) == 2
    assert "trimtab render" in running.said()


def test_restarts_come_later_and_later_until_it_lives() -> None:
    """Waits double up to half a minute, and begin anew after a minute of life."""
    backoff = Backoff()
    assert [backoff.after(0.1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.after(61.0) == 0.5
    assert backoff.after(0.1) == 1
