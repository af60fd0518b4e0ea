"""What balancing costs: processor time per request and requests per second, nginx saturated.

wrk keeps nginx busy, which passes every request to a second nginx that answers at once. The
variants take turns, so that a machine that slows down slows all alike; ratios are paired by round.
Where the kernel counts instructions (`perf stat`), they are there too: unlike time they hardly
depend on what else the machine does.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from trimtab.actuators.nginx_binary import find, machine
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.bench.balancers.base import Site, cpu_seconds
from trimtab.bench.instructions import Counter
from trimtab.bench.stage import free_ports, listens
from trimtab.bench.statistics import Ratio, median, paired_ratio
from trimtab.children import Child
from trimtab.demo.scenario import parse
from trimtab.errors import DependencyError, TrimtabError

__all__ = [
    "AT_ONCE",
    "BASE",
    "CASES",
    "VARIANTS",
    "Cost",
    "Measured",
    "backend",
    "measure",
    "rendered",
    "site_of",
    "total_seconds",
]

# Starting and stopping nginx, and warming it up.
OVERHEAD_SECONDS: Final = 1.5

# As wrk's users do: enough connections that nginx never waits for a client.
_CONNECTIONS: Final = 64

_START_SECONDS: Final = 10.0

# Servers that answer at once show what the balancer itself takes.
AT_ONCE: Final = """
[load]
requests_per_second = 1
[[server]]
count = 3
slots = 64
[[class]]
name = "all"
path = "/"
service_seconds = 0.001
deadline_seconds = 1
"""

# Name, and how nginx is rendered for it; with `slots` a server, 9 of wrk's 64 connections at most
# are being served (short services get one more), and the others wait.
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "least_conn": {"balancer": "least_conn", "observe": False},
    "round robin": {"balancer": "round_robin", "observe": False},
    "random two": {"balancer": "random_two", "observe": False},
    "hook, counting only": {"balancer": "least_conn"},
    "Trimtab, not holding": {"balancer": "trimtab", "hold": "off"},
    "Trimtab": {"balancer": "trimtab"},
    "Trimtab, everyone held": {"balancer": "trimtab", "slots": 2},
}
BASE: Final = "least_conn"

# Name: bytes of a reply, and whether there is an access log.
CASES: Final = {"empty reply": (0, False), "4 KB, access log": (4096, True)}

_BACKEND: Final = """\
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
{listen}
        set $part "{part}";
        location / {{ return 200 "{body}"; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one variant."""

    cpu_seconds_per_request: float
    requests_per_second: float
    errors: int
    instructions_per_request: float | None = None  # None: not counted


@dataclass(slots=True)
class Cost:
    """All rounds: case → variant → round → what was measured."""

    rounds: dict[str, dict[str, dict[int, Measured]]] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Failed requests in all."""
        return sum(m.errors for v in self.rounds.values() for r in v.values() for m in r.values())

    def figures(self, case: str, variant: str) -> tuple[float, Ratio | None, float, int]:
        """Median CPU seconds a request, its ratio to the base's, median requests/s, errors."""
        own, base = self.rounds[case][variant], self.rounds[case].get(BASE, {})
        cpu = {n: m.cpu_seconds_per_request for n, m in own.items()}
        ratio = paired_ratio(cpu, {n: m.cpu_seconds_per_request for n, m in base.items()})
        rates = {n: m.requests_per_second for n, m in own.items()}
        return median(cpu), ratio, median(rates), sum(m.errors for m in own.values())

    def instructions(self, case: str, variant: str) -> tuple[float, Ratio | None] | None:
        """Median instructions a request and their ratio to the base's; None when not counted."""

        def counted(name: str) -> dict[int, float]:
            rounds = self.rounds[case].get(name, {}).items()
            return {
                n: m.instructions_per_request
                for n, m in rounds
                if m.instructions_per_request is not None
            }

        own = counted(variant)
        return (median(own), paired_ratio(own, counted(BASE))) if own else None


def _needs() -> None:
    """Raise DependencyError unless nginx with Lua and wrk are there."""
    machine(find("nginx"), Path.cwd(), "lua")
    if shutil.which("wrk") is None:
        raise DependencyError(
            "there is no wrk, which makes the load: apt-get install --no-install-recommends wrk"
        )


def backend(directory: Path, addresses: tuple[str, ...], size: int) -> Child:
    """An nginx that answers at once on all the addresses."""
    directory.mkdir(parents=True, exist_ok=True)
    listen = "\n".join(f"        listen {address};" for address in addresses)
    path = directory / "nginx.conf"
    # nginx takes words of less than 4 KB.
    part, count = "x" * 1024, size // 1024
    text = _BACKEND.format(directory=directory, listen=listen, part=part, body="$part" * count)
    path.write_text(text, encoding="utf-8")
    command = [find("nginx").path, "-p", f"{directory}/", "-c", str(path), "-g", "daemon off;"]
    child = Child("the backend nginx", command, log=directory / "start.log")
    try:
        child.wait_until(lambda: listens(addresses[-1]), seconds=_START_SECONDS)
    except BaseException:
        child.stop()
        raise
    return child


def _wrk(url: str, seconds: float, prefix: tuple[str, ...] = ()) -> tuple[int, float, int]:
    """Requests, requests per second, and errors of one run of wrk, started by `prefix`."""
    command = [*prefix, "wrk", "-t1", f"-c{_CONNECTIONS}", f"-d{max(1, round(seconds))}s", url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 30, check=False
    )
    count = re.search(r"(\d+) requests in", done.stdout)
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", done.stdout)
    if done.returncode != 0 or not count or not rate:
        raise TrimtabError(f"wrk failed: {(done.stderr or done.stdout).strip()[:300]}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    cut = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+)", done.stdout)
    errors = (int(bad[1]) if bad else 0) + (sum(map(int, cut.groups())) if cut else 0)
    return int(count[1]), float(rate[1]), errors


def site_of(directory: Path, addresses: tuple[str, ...]) -> Site:
    """Seven addresses: three servers that answer at once, and those of nginx."""
    return Site(
        scenario=parse(AT_ONCE, "cost.toml"),
        servers=addresses[:3],
        listen=addresses[3],
        internal_listen=addresses[4],
        policy_listen=addresses[5],
        admin_listen=addresses[6],
        directory=directory,
    )


def rendered(site: Site, options: dict[str, Any], *, log: bool) -> NginxProcess:
    """nginx as a variant's options say, not yet started."""
    config = site.config(slots=True, hold=options.get("hold", "auto"))
    if slots := options.get("slots"):
        peers = tuple(replace(peer, slots=slots) for peer in config.upstreams[0].peers)
        config = replace(config, upstreams=(replace(config.upstreams[0], peers=peers),))
    others = {n: v for n, v in options.items() if n not in ("hold", "slots")}
    return NginxProcess.rendered(site.directory, config, access_log=log, **others)


def _round(site: Site, options: dict[str, Any], log: bool, seconds: float) -> Measured:
    process = rendered(site, options, log=log)
    process.start()
    try:
        _wrk(f"http://{site.listen}/", 1)  # connections opened, Lua compiled
        pids = [process.pid, *process.workers()]
        before = cpu_seconds(pids)
        with Counter(pids) as counter:
            url = f"http://{site.listen}/"
            count, rate, errors = _wrk(url, seconds, counter.prefix)
            instructions = counter.counted()
        used = cpu_seconds(pids) - before
    finally:
        process.stop(0.0)
    each = None if instructions is None else instructions / max(1, count)
    return Measured(used / max(1, count), rate, errors, each)


def measure(
    directory: Path,
    *,
    seconds: float,
    rounds: int,
    cost: Cost,
    report: Callable[[float, str, str], None],
) -> None:
    """Run every variant `rounds` times on every case, adding to `cost` as it goes.

    Raises DependencyError when a program is missing.
    """
    _needs()
    done = 0.0
    for case, (size, log) in CASES.items():
        first = free_ports(7)
        addresses = tuple(f"127.0.0.1:{first + n}" for n in range(7))
        of_case = cost.rounds.setdefault(case, {name: {} for name in VARIANTS})
        with backend(directory / "backend", addresses[:3], size):
            for number in range(1, rounds + 1):
                for name, options in VARIANTS.items():
                    report(done, case, f"round {number}, {name}")
                    site = site_of(directory / re.sub(r"\W+", "-", name), addresses)
                    of_case[name][number] = _round(site, options, log, seconds)
                    done += seconds + OVERHEAD_SECONDS


def total_seconds(seconds: float, rounds: int) -> float:
    """How long `measure` takes, about."""
    return len(CASES) * rounds * len(VARIANTS) * (seconds + OVERHEAD_SECONDS)
