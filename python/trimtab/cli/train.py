"""`trimtab train`: search weights and learn in the simulator, and write what the server loads."""

import argparse
import json
from pathlib import Path
from typing import Final

from trimtab import config
from trimtab.bench import scenario
from trimtab.cli import sweeping
from trimtab.cli.states import WINDOW_SECONDS, windows_of
from trimtab.config import Config
from trimtab.demo.scenario import Scenario
from trimtab.errors import ConfigError
from trimtab.sources.collected import read_lines
from trimtab.terminal import Progress, table
from trimtab.training.course import NEUTRAL_NAME, Training
from trimtab.training.setting import addresses_of, configuration, fitted
from trimtab.twin.agreement import checks, speed_per_second
from trimtab.twin.bounds import summary
from trimtab.twin.compiled import AVAILABLE
from trimtab.twin.fit import Fit, from_status, from_windows
from trimtab.twin.world import RULES, World

__all__ = ["add_arguments", "run"]

DEFAULT_SCENARIO: Final = "three-classes"

# An hour a seed: sixty decisions of a minute, as long as live ones.
DEFAULT_SECONDS: Final = 3600.0
DEFAULT_SEEDS: Final = 3
DEFAULT_EVALUATIONS: Final = 120
DEFAULT_OUTPUT: Final = "var/trained.json"

# The table of rules: ten minutes, without the first one, in which weights that are renewed every
# ten seconds have yet to recover from having been equal.
RULES_SEED: Final = 1
RULES_SECONDS: Final = 600.0
RULES_WARM_UP_SECONDS: Final = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--scenario", metavar="NAME|FILE",
        help=f"servers, classes and load (default {DEFAULT_SCENARIO}; a file ends in .toml)",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="statistics", metavar="FILE",
        help="fit servers and load to live statistics instead: the policy server's /status.json, "
        "or what `trimtab collect` wrote (with --config, for the slots)",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE",
        help="the upstreams and peers to train for, in the scenario's order; without it the "
        "servers are those of --from, or called 127.0.0.1:9001 and up",
    )  # fmt: skip
    parser.add_argument(
        "--hold", choices=("off", "auto"), default="off",
        help="whether requests wait in nginx for a server with room (default off, where weights do "
        "most); with --config each upstream's own",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, metavar="S",
        help=f"simulated seconds of each seed (default {DEFAULT_SECONDS:g})",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=DEFAULT_SEEDS, metavar="N",
        help=f"how many, each with another load (default {DEFAULT_SEEDS})",
    )  # fmt: skip
    parser.add_argument(
        "--evaluations", type=int, default=DEFAULT_EVALUATIONS, metavar="N",
        help=f"candidates of the search for W (default {DEFAULT_EVALUATIONS}; 0: no search)",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=("table", "dqn"), default="table",
        help="what learns: a Q-table (default), or a DQN (needs torch, the extra dqn)",
    )  # fmt: skip
    parser.add_argument(
        "--output", default=DEFAULT_OUTPUT, metavar="FILE",
        help=f"the trained file (default {DEFAULT_OUTPUT})",
    )  # fmt: skip
    parser.add_argument(
        "--agreement", action="store_true",
        help="instead of training, compare the simulator with queueing theory, and the rules of "
        "others with ours on the scenario",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="go on with what --output holds, with more seeds too"
    )
    sweeping.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train. Ctrl-C ends with status 130 and keeps the file of what is done."""
    for name, least, most in (
        ("seconds", 60.0, 1e6), ("seeds", 1, 1000), ("evaluations", 0, 10_000)
    ):  # fmt: skip
        value = getattr(arguments, name)
        if not least <= value <= most:
            raise ConfigError(f"--{name} is {value:g}; it must be from {least:g} to {most:g}")
    sweep = sweeping.sweep_of(arguments)
    if arguments.agreement:
        print(_agreement())
        print()
        print(_rules(scenario.find(arguments.scenario or DEFAULT_SCENARIO)))
        return 0
    if arguments.scenario and arguments.statistics:
        raise ConfigError("--scenario and --from are both given; give one of them")
    chosen, made = _setting(arguments)
    output = Path(arguments.output)
    if output.is_dir():
        raise ConfigError(f"--output {output} is a directory; name a file")
    work = Training(
        chosen,
        made,
        output,
        seconds=arguments.seconds,
        seeds=arguments.seeds,
        evaluations=arguments.evaluations,
        with_network=arguments.method == "dqn",
    )
    if arguments.resume:
        work.resume()
    with Progress(work.total_seconds, unit="simulated s") as progress, sweep:
        if not AVAILABLE:
            progress.say(
                "numba is not installed, so the twin is a hundred times slower: "
                "pip install 'trimtab[sim]'"
            )
        try:
            work.run(lambda s: progress.update(s.done_seconds, s.label, s.note), sweep)
        except KeyboardInterrupt:
            progress.say(_kept(work, output, arguments.seeds))
            return 130
    print(_report(work, output))
    return 0


def _setting(arguments: argparse.Namespace) -> tuple[Scenario, Config]:
    """What to train on, and for."""
    given = config.load(arguments.config) if arguments.config else None
    if not arguments.statistics:
        chosen = scenario.find(arguments.scenario or DEFAULT_SCENARIO)
        return chosen, configuration(chosen, given, hold=arguments.hold)
    fit = _fit(arguments.statistics, given)
    addresses = tuple(addresses_of(given) if given else fit.rates)
    chosen = fitted(fit, addresses, Path(arguments.statistics).name)
    return chosen, configuration(chosen, given, addresses, hold=arguments.hold)


def _fit(path: str, given: Config | None) -> Fit:
    """The servers and the load of a statistics file."""
    try:
        status = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        status = None  # a collector's file has more than one line, each its own JSON
    if isinstance(status, dict) and "estimates" in status:
        return from_status(status, path)
    if given is None:
        raise ConfigError(
            f"{path} is not the status of a policy server; for a collector's file give --config, "
            "which says the slots and the deadlines"
        )
    slots = {p.address: p.slots for u in given.upstreams for p in u.peers}
    deadlines = {u.name: u.deadline_seconds for u in given.upstreams}
    sharing = {p.address for u in given.upstreams for p in u.peers if p.discipline == "ps"}
    windows = windows_of(read_lines(path), WINDOW_SECONDS)
    return from_windows(windows, slots, deadlines, path, sharing)


def _agreement() -> str:
    rows = [
        [c.name, f"{c.formula:.4f}", f"{c.twin:.4f}", f"{c.error:.4f}",
         f"{100 * (c.twin / c.formula - 1):+.2f}%"]
        for c in checks()
    ]  # fmt: skip
    header = ["mean response time", "formula", "twin", "standard error", "off by"]
    speed = f"{speed_per_second():,.0f} requests per second of processor time"
    return table(header, rows) + f"\n\n{speed}: three servers, three classes, our rule"


def _rules(chosen: Scenario) -> str:
    """Every rule on the same requests, without a policy server: what each knows by itself."""
    servers, requests, changes = scenario.simulator_input(
        chosen, scenario.schedule(chosen, RULES_SEED, RULES_SECONDS)
    )
    rows = []
    for balancers in (1, 4):
        for rule in RULES:
            world = World(
                servers,
                requests,
                changes,
                upstreams=[c.name for c in chosen.classes],
                addresses=[str(n) for n in range(len(chosen.servers))],
                rule=rule,
                balancers=balancers,
                seed=RULES_SEED,
            )
            world.finish()
            of = summary(requests, world.records(), after_seconds=RULES_WARM_UP_SECONDS)
            rows.append(
                [rule, str(balancers), f"{of.art_per_1000:.1f}", f"{1000 * of.p50_seconds:.1f}",
                 f"{1000 * of.p99_seconds:.0f}"]
            )  # fmt: skip
    return f"{chosen.name}:\n" + table(
        ["rule", "balancers", "ART per 1000", "p50 ms", "p99 ms"], rows
    )


def _kept(work: Training, output: Path, seeds: int) -> str:
    if not output.exists():
        return "interrupted: nothing is done yet"
    return (
        f"interrupted: {output} holds {work.seeds_done} of {seeds} seeds; the same command with "
        "--resume goes on"
    )


def _report(work: Training, output: Path) -> str:
    art = work.art_per_1000
    base = art[NEUTRAL_NAME]
    rows = [
        [name, f"{value:.2f}", f"{value / base:.2f}" if base else "-"]
        for name, value in art.items()
    ]
    outside = [[load, f"{ratio:.1%}"] for load, ratio in work.outside.items()]
    return "\n".join(
        [
            table(["profile, fixed", "ART per 1000", "of neutral"], rows),
            "",
            table(["at this part of the load", "observations outside of all states"], outside),
            "",
            f"{work.seeds_done} seeds, {work.requests} simulated requests; written to {output}",
            f'put  trained = "{output}"  into [learning] of the configuration to start from it',
        ]
    )
