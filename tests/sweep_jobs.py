"""Jobs for tests of sweeps: other processes import them by name."""

import os
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trimtab.errors import ConfigError
from trimtab.sweep.jobs import Job, Told

__all__ = ["jobs", "process", "refused", "slow", "square", "unsendable", "victim", "wrong"]


def jobs(*arguments: Any) -> list[Job[Any]]:
    """A job of ten seconds each."""
    return [Job(label=f"job {n}", seconds=10.0, argument=a) for n, a in enumerate(arguments)]


def square(number: float, told: Told) -> float:
    """The later ones are done sooner."""
    time.sleep(max(0.0, 0.05 - number / 100))
    told(5.0, "half")
    return number * number


def process(_argument: None, _told: Told) -> int:
    """Where it ran."""
    time.sleep(0.2)
    return os.getpid()


def refused(name: str, _told: Told) -> None:
    """Something that a user can mend."""
    raise ConfigError(f"no {name}")


def wrong(key: str, _told: Told) -> int:
    """A mistake in the code."""
    return {"here": 1}[key]


def unsendable(_argument: None, _told: Told) -> Any:
    """A result that no other process can have."""
    return lambda: None


def victim(number: int, _told: Told) -> int:
    """The second one is killed as by the kernel."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
    return number


def slow(directory: str, told: Told) -> None:
    """Keeps something in a temporary directory for a minute."""
    with TemporaryDirectory(dir=directory) as inside:
        Path(inside, "file").touch()
        for n in range(600):
            time.sleep(0.1)
            told(n / 10, "")
