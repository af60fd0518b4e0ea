"""What a reload of nginx costs its clients, by Trimtab and by `nginx -s reload` without it.

An open-loop load goes through an nginx of stock mode: without reloads, with reloads of an
upstream file that was just replaced, and with `actuators.stock` doing the same with its checks. The
variants take turns. The clients keep connections open and send nothing twice, so that what a
reload cuts is seen: a worker that ends closes the connections that are idle at that moment, and a
request that is on its way on one of them is lost to such a client. (A browser, or nginx as a
client of servers, sends an idempotent one again.)

Statistics play no part here, and no policy server runs.
"""

import asyncio
import math
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from trimtab.actuators.nginx_binary import find
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.actuators.stock import Stock
from trimtab.actuators.upstreams_conf import render_upstreams
from trimtab.bench.balancers.base import Site
from trimtab.bench.balancers.stock import stock_config
from trimtab.bench.cost import AT_ONCE, backend
from trimtab.bench.scenario import find as find_scenario
from trimtab.bench.scenario import schedule
from trimtab.bench.stage import Stage, free_ports
from trimtab.config import Config
from trimtab.demo.scenario import Load, Scenario, parse
from trimtab.load.processes import run_processes
from trimtab.load.records import Ending
from trimtab.load.result import Result
from trimtab.model import PeerWeight, UpstreamWeights, Weights

__all__ = [
    "CASES",
    "NEVER",
    "OURS",
    "PLAIN",
    "VARIANTS",
    "Measured",
    "Reloads",
    "measure",
    "total_seconds",
]

NEVER: Final = "no reload"
PLAIN: Final = "nginx -s reload"
OURS: Final = "trimtab apply"
VARIANTS: Final = (NEVER, PLAIN, OURS)

# Starting and stopping nginx and the load.
OVERHEAD_SECONDS: Final = 2.0

# Often enough for figures in seconds, and as long as a reload with all of Trimtab's checks takes
# on a busy machine.
EVERY_SECONDS: Final = 1.0

# What a reload does to response times is over by then: new workers answer within a few
# milliseconds, and old ones end when their requests do.
AFTER_SECONDS: Final = 0.3

# The first second opens the connections.
_WARM_SECONDS: Final = 1.0

# Of the servers that answer at once.
REQUESTS_PER_SECOND: Final = 500.0

CASES: Final = ("servers that answer at once", "speeds 1:2:4, 75% load")


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one variant. `lost` are failed requests of which nothing came back on a
    connection that had served others; `opened` are connections that were opened after the first
    second. Percentiles are of response times in seconds, NaN without requests; `after_p99_seconds`
    is over those that came within `AFTER_SECONDS` of a reload."""

    reloads: int
    requests: int
    failed: int
    lost: int
    opened: int
    p50_seconds: float
    p99_seconds: float
    p999_seconds: float
    after_p99_seconds: float


@dataclass(slots=True)
class Reloads:
    """All rounds: case → variant → round → what was measured."""

    rounds: dict[str, dict[str, dict[int, Measured]]] = field(default_factory=dict)

    @property
    def strange(self) -> int:
        """Failed requests that no reload explains."""
        every = (m for v in self.rounds.values() for r in v.values() for m in r.values())
        return sum(m.failed - m.lost for m in every)


def _weights(config: Config, scenario: Scenario, number: int) -> Weights:
    """True capacities; one of them changes to and fro by 2%: a new file, and next to no change."""
    power = [server.slots * server.speed for server in scenario.servers]
    power[0] *= 1.02 if number % 2 else 1.0
    peers = {
        p.address: PeerWeight(rate=r) for p, r in zip(config.upstreams[0].peers, power, strict=True)
    }
    upstreams = {u.name: UpstreamWeights(peers=peers) for u in config.upstreams}
    return Weights(upstreams=upstreams, epoch=1, generation=number, reason="a measurement")


class _Plainly:
    """The file replaced, and `nginx -s reload`, as a script would do it."""

    def __init__(self, config: Config) -> None:
        self._file = config.stock.include_file
        self._config = config
        main = str(config.stock.main_file)
        self._command = [find("nginx").path, "-e", "stderr", "-c", main, "-s", "reload"]

    def apply(self, weights: Weights) -> None:
        beside = self._file.with_name("upstreams.new")
        beside.write_text(render_upstreams(self._config, weights)[0], encoding="utf-8")
        beside.replace(self._file)
        subprocess.run(self._command, check=True, capture_output=True, timeout=30)


async def _again(
    apply: Callable[[int], None], until: float, every_seconds: float, at: list[float]
) -> None:
    """Reload every so often, in a thread; `at` gets the wall clock of each."""
    due = time.monotonic() + _WARM_SECONDS
    while due < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        at.append(time.time())
        await asyncio.to_thread(apply, len(at))
        due = max(due + every_seconds, time.monotonic())


def _judged(result: Result, at: list[float]) -> Measured:
    records = result.records
    seconds = records.response_seconds
    offsets = [t - result.started_at for t in at]
    after = np.zeros(len(records), dtype=np.bool_)
    for offset in offsets:
        after |= (records.intended >= offset) & (records.intended < offset + AFTER_SECONDS)
    lost = (records.ending == Ending.RESET) & records.reused & (records.received_bytes == 0)
    opened = np.logical_not(records.reused) & (records.intended >= _WARM_SECONDS)

    def percentile(of: np.ndarray, share: float) -> float:
        return float(np.quantile(of, share)) if len(of) else math.nan

    return Measured(
        reloads=len(at),
        requests=len(records),
        failed=int(records.failed.sum()),
        lost=int(lost.sum()),
        opened=int(opened.sum()),
        p50_seconds=percentile(seconds, 0.5),
        p99_seconds=percentile(seconds, 0.99),
        p999_seconds=percentile(seconds, 0.999),
        after_p99_seconds=percentile(seconds[after], 0.99),
    )


async def _round(
    site: Site, variant: str, seed: int, seconds: float, every_seconds: float
) -> Measured:
    config = stock_config(site, page="http://127.0.0.1:9/")  # nobody reads it
    first = _weights(config, site.scenario, 0)
    process = NginxProcess.rendered(site.directory, config, weights=first)
    process.start()
    at: list[float] = []
    reloading: Awaitable[None] | None = None
    try:
        if variant != NEVER:
            do = Stock(config).apply_now if variant == OURS else _Plainly(config).apply

            def apply(number: int) -> None:
                do(_weights(config, site.scenario, number))

            until = time.monotonic() + seconds
            reloading = asyncio.ensure_future(_again(apply, until, every_seconds, at))
        result = await run_processes(
            schedule(site.scenario, seed, seconds), f"http://{site.listen}"
        )
        if reloading is not None:
            await reloading
    finally:
        process.stop(0.0)
    return _judged(result, at)


@contextmanager
def _servers(
    case: str, directory: Path
) -> Iterator[tuple[Scenario, tuple[str, ...], Stage | None]]:
    """A case's scenario, and its servers while they run."""
    if case == CASES[0]:
        scenario = replace(
            parse(AT_ONCE, "reloads.toml"), load=Load(requests_per_second=REQUESTS_PER_SECOND)
        )
        first = free_ports(len(scenario.servers))
        addresses = tuple(f"127.0.0.1:{first + n}" for n in range(len(scenario.servers)))
        with backend(directory / "backend", addresses, 0):
            yield scenario, addresses, None
    else:
        scenario = find_scenario("speeds")
        directory.mkdir(parents=True, exist_ok=True)
        with Stage(scenario, directory / "servers.log") as stage:
            yield scenario, stage.servers, stage


def measure(
    directory: Path,
    *,
    seconds: float,
    rounds: int,
    found: Reloads,
    report: Callable[[float, str, str], None],
    every_seconds: float = EVERY_SECONDS,
) -> None:
    """Run every variant `rounds` times on every case, adding to `found` as it goes."""
    done = 0.0
    for case in CASES:
        of_case = found.rounds.setdefault(case, {name: {} for name in VARIANTS})
        with _servers(case, directory) as (scenario, servers, stage):
            for number in range(1, rounds + 1):
                for name in VARIANTS:
                    report(done, case, f"round {number}, {name}")
                    first = free_ports(4)
                    listen, internal, policy, admin = (f"127.0.0.1:{first + n}" for n in range(4))
                    site = Site(
                        scenario=replace(scenario, duration_seconds=seconds),
                        servers=servers,
                        listen=listen,
                        internal_listen=internal,
                        policy_listen=policy,
                        admin_listen=admin,
                        directory=directory / "nginx",
                    )
                    if stage is not None:
                        stage.prepare(number, seconds)
                    of_case[name][number] = asyncio.run(
                        _round(site, name, number, seconds, every_seconds)
                    )
                    done += seconds + OVERHEAD_SECONDS


def total_seconds(seconds: float, rounds: int) -> float:
    """How long `measure` takes, about."""
    return len(CASES) * rounds * len(VARIANTS) * (seconds + OVERHEAD_SECONDS)
