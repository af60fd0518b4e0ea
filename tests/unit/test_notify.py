"""The service manager is told what systemd's protocol says, and its absence is no trouble."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.notify import Notify


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(20)
        yield one


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    """What systemd sets."""
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_states_are_datagrams_of_lines(manager: socket.socket) -> None:
    """Ready with a status of one line, reloading with the time, stopping."""
    notify = Notify(environment(manager))
    notify.ready("serving\nhere")
    assert manager.recv(1000) == b"READY=1\nSTATUS=serving here"
    notify.reloading()
    first, second = manager.recv(1000).decode().split("\n")
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    notify.stopping()
    assert manager.recv(1000) == b"STOPPING=1"


def test_abstract_sockets_are_reached() -> None:
    """An address that begins with "@" is a name without a file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(f"\0trimtab-{os.getpid()}")
        one.settimeout(20)
        Notify({"NOTIFY_SOCKET": f"@trimtab-{os.getpid()}"}).stopping()
        assert one.recv(100) == b"STOPPING=1"


def test_heart_beats_while_alive(manager: socket.socket) -> None:
    """Twice in the watchdog's time, and not when what it watches is stuck."""
    notify = Notify(environment(manager, WATCHDOG_USEC="20000", WATCHDOG_PID=str(os.getpid())))
    assert notify.watchdog_seconds == 0.02
    asked = [0]

    async def beat() -> None:
        done = asyncio.Event()

        def alive() -> bool:
            asked[0] += 1
            if asked[0] == 4:
                done.set()
            return asked[0] < 3

        task = asyncio.create_task(notify.watch(alive))
        await done.wait()
        task.cancel()

    asyncio.run(beat())
    manager.setblocking(False)
    assert [manager.recv(100), manager.recv(100)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        manager.recv(100)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"WATCHDOG_USEC": "20000"},
        {"NOTIFY_SOCKET": "/absent", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/absent", "WATCHDOG_USEC": "soon"},
    ],
)
def test_without_a_manager_or_for_another_process_nothing_happens(given: dict[str, str]) -> None:
    """No socket, another process's watchdog, or nonsense: no heartbeat and no error."""
    notify = Notify(given)
    assert notify.watchdog_seconds == 0
    notify.stopping()
    asyncio.run(asyncio.wait_for(notify.watch(lambda: True), 20))
