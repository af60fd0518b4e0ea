"""The options of commands that run many simulations at once, and the sweep that they ask for."""

import argparse
from typing import Final

from trimtab.errors import ConfigError
from trimtab.sweep.jobs import Here, Sweep, usable_cores
from trimtab.sweep.processes import MOST, Processes

__all__ = ["add_arguments", "refuse", "sweep_of"]

_OPTIONS: Final = ("jobs", "ray")


def add_arguments(parser: argparse.ArgumentParser, of: str = "") -> None:
    """Declare the arguments; `of` begins their help where a command has other uses."""
    parser.add_argument(
        "--jobs", type=int, metavar="N",
        help=f"{of}simulations at once, each in a process of its own (default: as many "
        "as there are usable cores, with --ray all cores of the cluster; 1: in this one); the "
        "results are the same with any",
    )  # fmt: skip
    parser.add_argument(
        "--ray", metavar="ADDRESS",
        help=f"{of}over the machines of this Ray cluster (host:port, ray://host:port or auto), or "
        "over a private Ray of this machine (local); needs the extra ray; only a cluster that you "
        "trust, see docs/security.md",
    )  # fmt: skip


def refuse(arguments: argparse.Namespace, goes_with: str) -> None:
    """Raise ConfigError when one of them is given where it has no use."""
    for name in _OPTIONS:
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name} goes with {goes_with}")


def sweep_of(arguments: argparse.Namespace) -> Sweep:
    """What does the jobs; nothing runs before it is entered. Raises ConfigError."""
    jobs = usable_cores() if arguments.jobs is None else arguments.jobs
    if not 1 <= jobs <= MOST:
        raise ConfigError(f"--jobs is {jobs}; it must be from 1 to {MOST}")
    if arguments.ray is not None:
        from trimtab.sweep.cluster import Cluster

        return Cluster(arguments.ray, arguments.jobs)
    return Here() if jobs == 1 else Processes(jobs)
