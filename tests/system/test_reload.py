"""`trimtab serve` under a service manager: ready, SIGHUP with good and bad files, the signals."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import serving
from trimtab.cli.status import fetch

PEER = '[[upstream.peer]]\naddress = "10.0.0.1:80"\n'
CLASS = '[[upstream]]\nname = "{0}"\nlocation = "/{0}"\n' + PEER


def write(directory: Path, *classes: str, policy: str = "") -> None:
    """The configuration file."""
    text = (
        f'[policy]\nlisten = "unix:{directory / "policy"}"\n'
        f'admin_listen = "unix:{directory / "admin"}"\nstate_directory = "{directory / "state"}"\n'
        f"interval_seconds = 0.1\n{policy}\n"
    )
    (directory / "trimtab.toml").write_text(text + "".join(CLASS.format(c) for c in classes))


@contextmanager
def running(directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A policy server and the notification socket of its manager."""
    with (
        (directory / "log").open("ab") as log,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(directory / "notify"))
        manager.settimeout(serving.TIMEOUT)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "trimtab", "serve"),
                *("--config", str(directory / "trimtab.toml")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(directory / "notify"),
                "WATCHDOG_USEC": "200000",
            },
        )
        try:
            told(manager, "READY=1")
            yield process, manager
        finally:
            process.kill()
            process.wait()


def told(manager: socket.socket, line: str) -> None:
    """Wait until the manager is told a line."""
    until = time.monotonic() + serving.TIMEOUT
    while line not in manager.recv(4096).decode().split("\n"):
        assert time.monotonic() < until


def upstreams(directory: Path) -> list[str]:
    """What the running server knows."""
    return list(fetch(f"unix:{directory / 'admin'}")["upstreams"])


def logged(directory: Path, pattern: str) -> None:
    """Wait until the log has a line."""
    until = time.monotonic() + serving.TIMEOUT
    while not re.search(pattern, (directory / "log").read_text()):
        assert time.monotonic() < until, (directory / "log").read_text()
        time.sleep(0.02)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a configuration of one class."""
    write(tmp_path, "one")
    return tmp_path


def test_hangup_puts_a_good_file_to_use_and_keeps_the_old_for_a_bad_one(directory: Path) -> None:
    """A class is added without the process ending, and generations rise on; a file with a mistake,
    and one that cannot start, leave what is in use."""
    with running(directory) as (process, manager):
        before = fetch(f"unix:{directory / 'admin'}")
        write(directory, "one", "two")
        process.send_signal(signal.SIGHUP)
        told(manager, "RELOADING=1")
        told(manager, "READY=1")
        assert upstreams(directory) == ["one", "two"]
        after = fetch(f"unix:{directory / 'admin'}")
        assert after["server"]["pid"] == before["server"]["pid"]
        assert after["epoch"] == before["epoch"]
        assert after["generation"] > before["generation"]

        write(directory, "one", "two", policy="interval_secs = 2")
        process.send_signal(signal.SIGHUP)
        logged(directory, r"unknown key 'interval_secs' .* keeping the configuration in use")
        assert upstreams(directory) == ["one", "two"]

        write(directory, "three")
        text = (directory / "trimtab.toml").read_text()
        absent = directory / "absent" / "policy"
        text = text.replace(str(directory / "policy"), str(absent))
        (directory / "trimtab.toml").write_text(text)
        process.send_signal(signal.SIGHUP)
        logged(directory, r"no directory .*absent.* going back to the configuration before")
        told(manager, "READY=1")
        assert upstreams(directory) == ["one", "two"]
        assert process.poll() is None

        told(manager, "WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        told(manager, "STOPPING=1")
        assert process.wait(serving.TIMEOUT) == 143
