"""HAProxy: one thread a worker, one backend of all servers, a private configuration."""

import shutil
from dataclasses import dataclass
from typing import Final

from trimtab.bench.balancers.base import Running, RunningChild, Site
from trimtab.bench.stage import listens
from trimtab.children import Child

__all__ = ["Haproxy"]

_START_SECONDS: Final = 10.0

# More than any scenario has in flight; two descriptors each must fit the usual hard limits.
_CONNECTIONS: Final = 8000

# Timeouts as nginx's defaults, so that no balancer gives up earlier than the others.
_CONFIG: Final = """\
global
    maxconn {connections}
    nbthread {threads}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout queue 60s
    option http-keep-alive
    http-reuse always
frontend bench
    bind {listen}
    default_backend servers
backend servers
    balance {method}
{servers}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Haproxy:
    """One method of HAProxy; `limited` gives each server maxconn = its slots, the rest queues."""

    name: str
    label: str
    method: str
    limited: bool = False
    hint: str = ""

    def missing(self) -> str:
        """Why it cannot run here."""
        if shutil.which("haproxy") is None:
            return "there is no haproxy: apt-get install --no-install-recommends haproxy"
        return ""

    def start(self, site: Site) -> Running:
        """Start it in the foreground of a child process."""
        site.directory.mkdir(parents=True, exist_ok=True)
        lines = [
            f"    server s{number} {address}{f' maxconn {server.slots}' if self.limited else ''}"
            for number, (address, server) in enumerate(
                zip(site.servers, site.scenario.servers, strict=True), 1
            )
        ]
        path = site.directory / "haproxy.cfg"
        path.write_text(
            _CONFIG.format(
                connections=_CONNECTIONS,
                threads=site.workers,
                listen=site.listen,
                method=self.method,
                servers="\n".join(lines),
            ),
            encoding="utf-8",
        )
        child = Child(
            "HAProxy", ["haproxy", "-db", "-f", str(path)], log=site.directory / "haproxy.log"
        )
        try:
            child.wait_until(lambda: listens(site.listen), seconds=_START_SECONDS)
        except BaseException:
            child.stop()
            raise
        return RunningChild(child)
