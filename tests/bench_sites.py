"""A place for a balancer of the benchmark to run: free addresses, three servers that need not be
there."""

from pathlib import Path

from trimtab.bench.balancers.base import Site
from trimtab.bench.scenario import find
from trimtab.bench.stage import free_ports

__all__ = ["site"]


def site(directory: Path) -> Site:
    """The scenario `speeds` in `directory`."""
    first = free_ports(7)
    addresses = [f"127.0.0.1:{first + n}" for n in range(7)]
    return Site(
        scenario=find("speeds"),
        servers=tuple(addresses[:3]),
        listen=addresses[3],
        internal_listen=addresses[4],
        policy_listen=addresses[5],
        admin_listen=addresses[6],
        directory=directory,
    )
