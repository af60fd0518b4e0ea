"""What a balancer of the benchmark is: something that can be started before the same servers."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from trimtab.children import Child
from trimtab.config import Config, Learning, Nginx, Peer, Policy, Upstream
from trimtab.demo.scenario import Scenario

__all__ = ["Balancer", "Running", "RunningChild", "Site", "cpu_seconds", "waited_seconds"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")

# Weights are whole numbers: in hundredths of the slowest server they are right within 1%.
_WEIGHT_UNITS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a balancer runs.

    `servers` are the addresses of the scenario's servers in order; the other addresses are free.
    `directory` is absolute and its own. `workers` are the balancer's worker processes or threads.
    """

    scenario: Scenario
    servers: tuple[str, ...]
    listen: str
    internal_listen: str
    policy_listen: str
    admin_listen: str
    directory: Path
    workers: int = 1

    def weights(self) -> list[int]:
        """The true weight of each server, slots × speed, as whole numbers."""
        power = [s.slots * s.speed for s in self.scenario.servers]
        return [max(1, round(_WEIGHT_UNITS * p / min(power))) for p in power]

    def config(
        self,
        *,
        weighted: bool = False,
        slots: bool = False,
        discipline: bool = False,
        hold: str = "auto",
        binary: str = "nginx",
    ) -> Config:
        """Trimtab's configuration for the scenario: each class an upstream of all servers.

        Deadlines and priorities are the scenario's; true weights, slots and disciplines only on
        request. `hold`
        is whether requests may wait in nginx, `binary` the nginx.
        """
        peers = tuple(
            Peer(
                address=a,
                weight=w if weighted else 1,
                slots=s.slots if slots else None,
                discipline=s.discipline if discipline else None,
            )
            for a, w, s in zip(self.servers, self.weights(), self.scenario.servers, strict=True)
        )
        return Config(
            policy=Policy(
                listen=self.policy_listen,
                admin_listen=self.admin_listen,
                state_directory=self.directory / "state",
            ),
            nginx=Nginx(
                listen=(self.listen,),
                internal_listen=self.internal_listen,
                worker_processes=self.workers,
                binary=binary,
                instance="bench",
            ),
            learning=Learning(enabled=False),
            upstreams=tuple(
                Upstream(
                    name=c.name,
                    location=c.path,
                    priority=c.priority,
                    deadline_seconds=c.deadline_seconds,
                    hold=hold,
                    peers=peers,
                )
                for c in self.scenario.classes
            ),
            path=f"scenario {self.scenario.name}",
        )


class Running(Protocol):
    """A balancer that serves."""

    def cpu_seconds(self) -> float:
        """Processor time of its data path so far: what serves requests, not what advises it."""

    def check(self) -> None:
        """Raise TrimtabError when a part of it has died."""

    def remarks(self) -> dict[str, float]:
        """What it can tell of the run that no request shows, by name; mostly nothing."""

    def stop(self) -> None:
        """End it; nothing is left. Idempotent."""


class Balancer(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str:
        """What the command line and the files call it."""

    @property
    def label(self) -> str:
        """What tables call it."""

    @property
    def hint(self) -> str:
        """What it was told that others were not, as "slots"; empty for nothing."""

    def missing(self) -> str:
        """Why it cannot run on this machine, with the remedy; empty when it can."""

    def start(self, site: Site) -> Running:
        """Start it and wait until it serves on `site.listen`. Raises TrimtabError."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of the processes so far, user and system; those that are gone count 0."""
    return sum(_scheduled(pid) or _ticked(pid) for pid in pids)


def _scheduled(pid: int) -> float:
    """What the scheduler has counted for all threads, in nanoseconds; 0 where it does not say."""
    total = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return total / 1e9


def waited_seconds(pid: int) -> float:
    """Processor time of the children of a process that have ended; 0 when it is gone."""
    return _ticked(pid, 13)


def _ticked(pid: int, at: int = 11) -> float:
    """The same in hundredths of a second, which every Linux counts."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # The name in parentheses may hold anything; after it, fields 3 on. 14 and 15 are the process's
    # own times, 16 and 17 those of its ended children.
    fields = text.rpartition(")")[2].split()
    return (int(fields[at]) + int(fields[at + 1])) / _TICKS


class RunningChild:
    """A balancer that is one process, and ends at SIGTERM."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def cpu_seconds(self) -> float:
        """Of the one process."""
        return cpu_seconds([self._child.pid])

    def check(self) -> None:
        """Raise TrimtabError when it has died."""
        self._child.check()

    def remarks(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def stop(self) -> None:
        """End it."""
        self._child.stop()
