"""`trimtab bench learning`: what learning adds to the heuristic, and what faults cost.

With --twin in the simulator, an hour in seconds; else on live nginx and emulated servers.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from trimtab import terminal
from trimtab.bench.runner import Plan, Results
from trimtab.bench.scenario import find, names
from trimtab.bench.statistics import ART_FLOOR, median, paired_ratio
from trimtab.cli import learning_tables
from trimtab.cli.sweeping import sweep_of
from trimtab.config import Config
from trimtab.demo.scenario import Scenario
from trimtab.errors import ConfigError, DependencyError
from trimtab.sweep.jobs import Sweep
from trimtab.training import taught
from trimtab.training.comparison import BASE, FAULTS, LEARNERS, Comparison
from trimtab.training.course import Training
from trimtab.training.setting import configuration

__all__ = ["live", "live_plan", "run"]

SCENARIOS: Final = ("three-classes", "affinity")

# Half an hour of learning and as long after it.
SECONDS: Final = 3600.0
SEEDS: Final = 5

# Live: nine arms of some 45 s and three seeds, twenty minutes. The scenario in which there is most
# to learn.
LIVE_SCENARIOS: Final = ("three-classes",)
LIVE_SECONDS: Final = 40.0
LIVE_SEEDS: Final = 3

# Of the training that comes first: as `trimtab train` by default.
TRAINING_SECONDS: Final = 3600.0
TRAINING_SEEDS: Final = 3
EVALUATIONS: Final = 120


def run(arguments: argparse.Namespace) -> int:
    """Train where the output directory has no trained files, compare, print; 0. Ctrl-C ends with
    130 and keeps the trained files and the tables of the scenarios that are done."""
    seconds = SECONDS if arguments.duration is None else arguments.duration
    seeds = SEEDS if arguments.seeds is None else arguments.seeds
    if not 60 <= seconds <= 86400 or not 1 <= seeds <= 1000:
        raise ConfigError(
            f"--duration {seconds:g}, --seeds {seeds}: they must be from 60 to 86400 seconds, and "
            "from 1 to 1000"
        )
    wanted = arguments.scenario or SCENARIOS
    chosen = [find(name) for name in (names() if "all" in wanted else dict.fromkeys(wanted))]
    directory = arguments.output / "learning"
    who = _who(arguments.balancer)
    style = {"hold": arguments.hold, "markdown": arguments.markdown}
    blocks: list[str] = []
    status = 0
    done: list[Comparison] = []
    for scenario in chosen:
        total = seconds * seeds * len(who)
        with terminal.Progress(total, unit="simulated s") as bar, sweep_of(arguments) as sweep:
            try:
                config = configuration(scenario, hold=arguments.hold)
                methods = ("table", "dqn") if "dqn" in who else ("table",)
                files = _train(scenario, config, directory, methods, bar.say, sweep)
                compared = Comparison(scenario, config, files["table"], files.get("dqn"), seconds)
                compared.run(
                    who, range(1, seeds + 1), lambda what, at, _note: bar.update(at, what), sweep
                )
            except KeyboardInterrupt:
                status = 130
                break
        done.append(compared)
        blocks.append(learning_tables.comparison(compared, who, seeds, **style))
        print(blocks[-1] + "\n", flush=True)
    if len(done) > 1:
        blocks.append(learning_tables.every_scenario(done, who, seeds, **style))
        print(blocks[-1] + "\n", flush=True)
    if blocks:
        (directory / "learning.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return status


def _who(wanted: Sequence[str] | None) -> list[str]:
    """Who is compared in the twin, the heuristic always among them. Raises ConfigError."""
    known = (*LEARNERS, *FAULTS)
    if strange := [name for name in wanted or () if name not in (*known, "all")]:
        raise ConfigError(f"no learner {strange[0]!r}; there are {', '.join(known)}")
    if not wanted or "all" in wanted:
        return list(known)
    return [name for name in known if name in wanted or name == BASE]


def _train(
    scenario: Scenario,
    config: Config,
    directory: Path,
    methods: Sequence[str],
    say: Callable[[str], None],
    sweep: Sweep,
) -> dict[str, Path]:
    """The trained files by method, of an earlier run or made now. Raises DependencyError."""
    files = {}
    for method in methods:
        stem = taught.file_stem(scenario.name, config.upstreams[0].hold)
        path = directory / f"{stem}-{method}.json"
        work = Training(
            scenario,
            config,
            path,
            seconds=TRAINING_SECONDS,
            seeds=TRAINING_SEEDS,
            evaluations=EVALUATIONS,
            with_network=method == "dqn",
        )
        try:
            if path.exists():
                work.resume()
            say(f"{scenario.name}: trained file {path}")
            work.run(sweep=sweep)
            files[method] = path
        except DependencyError as error:
            say(f"{scenario.name}, {method}: {error}")
    if "table" not in files:
        raise DependencyError("nothing could be trained")
    return files


def live_plan(arguments: argparse.Namespace) -> Plan:
    """What is to be run on live nginx, checked; the output directory is made. Raises
    ConfigError."""
    seconds = LIVE_SECONDS if arguments.duration is None else arguments.duration
    seeds = LIVE_SEEDS if arguments.seeds is None else arguments.seeds
    if not 10 <= seconds <= 86400 or not 1 <= seeds <= 1000:
        raise ConfigError(
            f"--duration {seconds:g}, --seeds {seeds}: they must be from 10 to 86400 seconds, and "
            "from 1 to 1000"
        )
    files = (arguments.output / "learning").absolute()
    usual = [arm.name for arm in taught.arms(files)]
    known = {arm.name: arm for arm in (*taught.arms(files), *taught.unhurried_arms(files))}
    wanted = arguments.balancer or usual
    wanted = usual if "all" in wanted else list(dict.fromkeys(wanted))
    if strange := [name for name in wanted if name not in known]:
        raise ConfigError(f"no arm {strange[0]!r}; there are {', '.join(known)}")
    names_ = arguments.scenario or LIVE_SCENARIOS
    scenarios = [find(name) for name in (names() if "all" in names_ else dict.fromkeys(names_))]
    try:
        files.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {files}: cannot write there: {error.strerror}") from None
    return Plan(
        # A quarter is left out: by then a trial can be over.
        scenarios=[replace(s, warm_up_seconds=seconds) for s in scenarios],
        balancers=[known[name] for name in wanted],
        seeds=range(1, seeds + 1),
        directory=files / "live",
        seconds=seconds,
        resume=arguments.resume,
        workers=arguments.workers,
    )


def live(arguments: argparse.Namespace, run_plan: Callable[[Plan, Results], int]) -> int:
    """The same on live nginx: train what is not trained, run, print. Status as of `run_plan`, 1
    when something failed or is not valid."""
    plan = live_plan(arguments)
    learners = [b for b in plan.balancers if isinstance(b, taught.Taught) and b.arm != taught.BASE]
    with sweep_of(arguments) as sweep:
        for hold in dict.fromkeys(arm.hold for arm in learners):
            for scenario in plan.scenarios:
                given = find(scenario.name)
                _train(
                    given,
                    configuration(given, hold=hold),
                    plan.directory.parent,
                    ("table",),
                    lambda text: print(text, file=sys.stderr, flush=True),
                    sweep,
                )
    results = Results()
    status = run_plan(plan, results)
    blocks = [_live_table(plan, results, s, markdown=arguments.markdown) for s in plan.scenarios]
    text = "\n\n".join([*blocks, *results.problems])
    print(text)
    (plan.directory.parent / "learning-live.md").write_text(text + "\n", encoding="utf-8")
    return status or int(bool(results.problems))


def _live_table(plan: Plan, results: Results, scenario: Scenario, *, markdown: bool) -> str:
    header = ["in force", "ART/1000", "p99 ms", f"ART to {BASE}", f"to {BASE}-held", "errors"]
    header.append("promoted, minutes")
    rows = []
    of = [o for o in results.outcomes if o.scenario == scenario.name and o.valid]

    def art(name: str) -> dict[int, float]:
        return {o.seed: o.art_per_1000 for o in of if o.balancer == name}

    for arm in plan.balancers:
        mine = [o for o in of if o.balancer == arm.name]
        if not mine:
            rows.append([arm.label, *["-"] * 6])
            continue
        promoted = [m for o in mine if (m := o.remarks.get("promoted_seconds")) is not None]
        ratios = [
            paired_ratio(art(arm.name), art(name), floor=ART_FLOOR)
            for name in (BASE, f"{BASE}-held")
        ]
        rows.append(
            [
                arm.label,
                f"{median(art(arm.name)):.1f}",
                f"{1000 * median({o.seed: o.p99_seconds for o in mine}):.0f}",
                *("-" if ratio is None else str(ratio) for ratio in ratios),
                f"{max(o.error_ratio for o in mine):.2%}",
                _promotions([seconds / 60 for seconds in promoted], len(mine)),
            ]
        )
    title = (
        f"{scenario.name}, live: {scenario.requests_per_second:.0f} requests/s, {len(plan.seeds)} "
        f"seeds of {plan.seconds_of(scenario):g} s, the first quarter left out; medians, paired "
        "ratios [95%]"
    )
    return learning_tables.titled(title, header, rows, markdown=markdown)


def _promotions(minutes: Sequence[float], runs: int) -> str:
    """The median of the minutes until a profile was promoted, and in how many of the runs."""
    return f"{statistics.median(minutes):.1f} ({len(minutes)} of {runs})" if minutes else "-"
