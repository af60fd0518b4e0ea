"""Runs the benchmark: every balancer on the same seeded requests, one after the other.

The order is scenario, seed, balancer, and the balancers take turns in being first, so that a
machine that slows down in the course of an hour slows all alike.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trimtab.bench.balancers.base import Balancer, Site
from trimtab.bench.outcome import Outcome, digest, read, warm_up_seconds, write
from trimtab.bench.scenario import schedule, simulator_input
from trimtab.bench.stage import Stage, free_ports
from trimtab.demo.scenario import Scenario
from trimtab.errors import StateError, TrimtabError
from trimtab.load.client import Progress
from trimtab.load.files import write_npz
from trimtab.load.processes import run_processes
from trimtab.load.schedule import Schedule
from trimtab.twin.bounds import Summary, bounds

__all__ = ["OVERHEAD_SECONDS", "Plan", "Results", "run"]

# Starting and stopping the processes of a run takes about this long.
OVERHEAD_SECONDS: Final = 2.0

# A client gives up after this; beyond it the order of seconds says nothing more.
TIMEOUT_SECONDS: Final = 20.0

# A run whose generator was late (a busy machine) is repeated so many times at most.
_REPEATS: Final = 2

# Of each of the first two lines of a problem: what failed, and the first that it said.
_PROBLEM_LETTERS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. `seconds` replaces the scenarios' own durations; `directory` is absolute.
    `workers` are worker processes or threads of each balancer."""

    scenarios: Sequence[Scenario]
    balancers: Sequence[Balancer]
    seeds: Sequence[int]
    directory: Path
    seconds: float | None = None
    resume: bool = False
    workers: int = 1

    def seconds_of(self, scenario: Scenario) -> float:
        """Length of a run of this scenario."""
        return scenario.duration_seconds if self.seconds is None else self.seconds

    @property
    def total_seconds(self) -> float:
        """How long all of it takes, about."""
        runs = len(self.balancers) * len(self.seeds)
        return sum(runs * (self.seconds_of(s) + OVERHEAD_SECONDS) for s in self.scenarios)


@dataclass(slots=True)
class Results:
    """What there is so far. `bounds` is by scenario and seed, `missing` by balancer."""

    outcomes: list[Outcome] = field(default_factory=list)
    bounds: dict[tuple[str, int], dict[str, Summary]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


Report = Callable[[float, str, str], None]  # seconds done, what runs, a note


def _file(plan: Plan, scenario: Scenario, balancer: Balancer, seed: int) -> Path:
    return plan.directory / "runs" / f"{scenario.name}.{balancer.name}.{seed}.json"


def _kept(plan: Plan, scenario: Scenario, balancer: Balancer, drawn: Schedule) -> Outcome | None:
    """The outcome of an earlier run of the same, if it is to be used."""
    path = _file(plan, scenario, balancer, drawn.seed)
    if not plan.resume or not path.exists():
        return None
    try:
        outcome = read(path)
    except StateError:
        return None
    same = (
        outcome.seconds == plan.seconds_of(scenario)
        and outcome.workers == plan.workers
        and outcome.requests_digest == digest(scenario, drawn)
    )
    return outcome if outcome.valid and same else None


async def _once(
    plan: Plan,
    scenario: Scenario,
    stage: Stage,
    balancer: Balancer,
    drawn: Schedule,
    on_progress: Callable[[Progress], None],
) -> Outcome:
    first = free_ports(4)
    listen, internal, policy, admin = (f"127.0.0.1:{first + n}" for n in range(4))
    site = Site(
        scenario=scenario,
        servers=stage.servers,
        listen=listen,
        internal_listen=internal,
        policy_listen=policy,
        admin_listen=admin,
        directory=plan.directory / "work" / f"{scenario.name}.{balancer.name}",
        workers=plan.workers,
    )
    stage.prepare(drawn.seed, drawn.seconds)
    running = balancer.start(site)
    try:
        before = running.cpu_seconds()
        result = await run_processes(
            drawn, f"http://{listen}", timeout_seconds=TIMEOUT_SECONDS, on_progress=on_progress
        )
        running.check()
        used = running.cpu_seconds() - before
        remarks = running.remarks()
    finally:
        running.stop()
    outcome = Outcome.of(
        scenario,
        balancer.name,
        result,
        servers=stage.servers,
        cpu_seconds=used,
        lateness_p99_seconds=stage.lateness_p99_seconds(),
        workers=plan.workers,
        remarks=remarks,
    )
    path = _file(plan, scenario, balancer, drawn.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(result, path.with_suffix(".npz"))
    write(outcome, path)
    return outcome


async def _repeated(
    plan: Plan,
    scenario: Scenario,
    stage: Stage,
    balancer: Balancer,
    drawn: Schedule,
    on_progress: Callable[[Progress], None],
) -> Outcome:
    outcome = await _once(plan, scenario, stage, balancer, drawn, on_progress)
    for _ in range(_REPEATS):
        if outcome.valid:
            break
        outcome = await _once(plan, scenario, stage, balancer, drawn, on_progress)
    return outcome


async def run(plan: Plan, results: Results, report: Report) -> None:
    """Run everything, adding to `results` as it goes: what is there after cancellation is whole.

    A balancer that is missing or fails is noted and left out; `report` is called about twice a
    second. Raises TrimtabError when the servers cannot be started.
    """
    results.missing = {b.name: why for b in plan.balancers if (why := b.missing())}
    present = [b for b in plan.balancers if b.name not in results.missing]
    try:
        plan.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrimtabError(f"cannot write {plan.directory}: {error.strerror or error}") from None
    done = 0.0
    for scenario in plan.scenarios:
        log = plan.directory / "work" / f"{scenario.name}.log"
        with Stage(scenario, log) as stage:
            for turn, seed in enumerate(plan.seeds):
                # Each seed another one begins.
                shift = turn % max(1, len(present))
                order = present[shift:] + present[:shift]
                await _seed(plan, scenario, stage, seed, order, results, report, done)
                each = plan.seconds_of(scenario) + OVERHEAD_SECONDS
                done += each * len(plan.balancers)


def _shortened(said: str) -> str:
    """What a table has room for; a dead child's whole last words are in its log, which it names."""
    lines = [line.strip()[:_PROBLEM_LETTERS] for line in said.splitlines()]
    return " ".join(lines[:2])


async def _seed(
    plan: Plan,
    scenario: Scenario,
    stage: Stage,
    seed: int,
    order: Sequence[Balancer],
    results: Results,
    report: Report,
    done: float,
) -> None:
    """All balancers on the requests of one seed, and the bounds for these requests."""
    length = plan.seconds_of(scenario)
    report(done, scenario.name, "simulating the bounds")
    drawn = schedule(scenario, seed, length)
    servers, requests, timeline = simulator_input(scenario, drawn)
    results.bounds[scenario.name, seed] = await asyncio.to_thread(
        bounds, servers, requests, timeline, after_seconds=warm_up_seconds(scenario, length)
    )

    def teller(at: float, name: str) -> Callable[[Progress], None]:
        def tell(progress: Progress) -> None:
            elapsed = min(progress.elapsed_seconds, progress.seconds)
            report(at + elapsed, scenario.name, f"seed {seed}, {name}")

        return tell

    for balancer in order:
        outcome = _kept(plan, scenario, balancer, drawn)
        where = f"{scenario.name}, {balancer.name}, seed {seed}"
        try:
            if outcome is None:
                outcome = await _repeated(
                    plan, scenario, stage, balancer, drawn, teller(done, balancer.name)
                )
            results.outcomes.append(outcome)
            if not outcome.valid:
                results.problems.append(f"{where}: not valid: {'; '.join(outcome.invalid_because)}")
        except TrimtabError as error:
            results.problems.append(f"{where}: {_shortened(str(error))}")
        done += length + OVERHEAD_SECONDS
