"""`trimtab run`: the demo. Three balancers under the same load, then a table."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trimtab import paths
from trimtab.errors import ConfigError
from trimtab.terminal import Progress, table

__all__ = ["add_arguments", "run"]

# The states table stays shorter than a screen.
MOST_STATES: Final = 8

EPILOG: Final = """\
Three social-network nodes of speeds 1 : 2 : 4, nginx in front and the policy server, all on
loopback, and the same seeded open-loop load through nginx's round robin, its least_conn, and
Trimtab. Everything is written below --directory and ends with the command.
"""


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise ValueError
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "statistics",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="append nginx's statistics here, one JSON object a line",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the demo's TOML file")
    parser.add_argument("--seconds", type=_positive, default=26.0, help="per balancer (26)")
    parser.add_argument(
        "--rate", type=_positive, default=170.0, help="requests a second in all (170)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the load (1)")
    parser.add_argument(
        "--directory", type=Path, default=Path("var/run"), help="where to write (var/run)"
    )


def _milliseconds(seconds: float) -> str:
    return "-" if seconds != seconds else f"{1000 * seconds:.1f}"


def _row(name: str, balancer: str, summary: Any) -> list[str]:
    spread = summary.response
    return [
        name,
        balancer,
        _milliseconds(spread.p50),
        _milliseconds(spread.p99),
        _milliseconds(spread.p999),
        f"{summary.art_per_1000:.1f}",
        str(summary.failed),
    ]


def _comparison(outcome: Any) -> str:
    from trimtab.bench.showcase import BALANCERS

    header = ["class", "balancer", "p50 ms", "p99 ms", "p99.9 ms", "ART/1000", "errors"]
    rows: list[list[str]] = []
    for name, deadline in outcome.deadlines.items():
        for number, (balancer, result) in enumerate(outcome.results.items()):
            shown = (name, f"  deadline {1000 * deadline:.0f} ms", "")[min(number, 2)]
            rows.append(_row(shown, BALANCERS[balancer], result.summary(name)))
        rows.append([])
    for number, (balancer, result) in enumerate(outcome.results.items()):
        rows.append(_row("" if number else "all", BALANCERS[balancer], result.summary()))
    return table(header, rows)


def _weights(status: Mapping[str, Any], shares: Mapping[str, Mapping[str, int]]) -> str:
    """The weights in force at the end, with the share of the requests that each peer got."""
    header = ["upstream", "peer", "weight", "affinity", "rate", "slots", "share"]
    rows: list[list[str]] = []
    for name, upstream in status["upstreams"].items():
        total = sum(shares[name].values()) or 1
        for number, (address, peer) in enumerate(upstream["peers"].items()):
            slots = peer["slots"]
            rows.append(
                [
                    "" if number else name,
                    address,
                    f"{peer['weight']:.2f}",
                    f"{peer['affinity']:.2f}",
                    f"{peer['rate']:.2f}",
                    "?" if slots is None else f"{slots:g}",
                    f"{shares[name].get(address, 0) / total:.0%}",
                ]
            )
        rows.append([])
    return table(header, rows[:-1])


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.3f} of" if theirs > 0 else "beside 0 of"


def _verdict(outcome: Any) -> str:
    from trimtab.bench.showcase import BALANCERS

    art = {b: r.summary().art_per_1000 for b, r in outcome.results.items()}
    others = [
        f"{_ratio(art['trimtab'], value)} {BALANCERS[name]}'s"
        for name, value in art.items()
        if name != "trimtab"
    ]
    return f"ART of Trimtab: {art['trimtab']:.1f} per 1000, {', '.join(others)}."


async def _cancellable(work: Any, stopped: list[int]) -> Any:
    """Run `work`; SIGINT and SIGTERM cancel it, so that it ends its children in order."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)

    def stop(number: int) -> None:
        stopped.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    return await task


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 when every part worked."""
    from trimtab.bench import showcase

    source = arguments.config or paths.templates_directory() / "demo.toml"
    if not source.is_file():
        raise ConfigError(f"{source}: no such file")
    plan = showcase.Plan(
        source=source,
        directory=arguments.directory,
        seconds=arguments.seconds,
        rate_per_second=arguments.rate,
        seed=arguments.seed,
        statistics=arguments.statistics,
    )
    stopped: list[int] = []
    with Progress(plan.total_seconds) as progress:
        try:
            outcome = asyncio.run(_cancellable(showcase.run(plan, progress.update), stopped))
        except asyncio.CancelledError:
            progress.say("interrupted; everything that was started has been stopped")
            return 128 + (stopped[0] if stopped else signal.SIGINT)
    print(_comparison(outcome))
    print()
    print(_verdict(outcome))
    print()
    print(_status_lines(outcome))
    invalid = {b: r.invalid_because for b, r in outcome.results.items() if not r.valid}
    for balancer, reasons in invalid.items():
        print(f"not to be trusted: {balancer}: {'; '.join(reasons)}", file=sys.stderr)
    if arguments.statistics:
        print(f"\nstatistics: {arguments.statistics}")
    print(f"logs and configuration: {arguments.directory}")
    return 0


def _state_rows(status: Mapping[str, Any]) -> list[list[str]]:
    """A row a state: its share of the observations, and the means that tell states apart."""
    upstreams = status["upstreams"]
    addresses = list(dict.fromkeys(a for u in upstreams.values() for a in u["peers"]))
    rows = []
    for cluster in sorted(status["clusters"], key=lambda c: -c["share"])[:MOST_STATES]:
        means = cluster["means"]
        in_flight = "/".join(f"{means.get(f'in_flight/{a}', 0.0):.1f}" for a in addresses)
        response = "/".join(
            _milliseconds(means.get(f"response_time_seconds/{name}", float("nan")))
            for name in upstreams
        )
        rate = sum(means.get(f"requests_per_second/{name}", 0.0) for name in upstreams)
        rows.append(
            [str(cluster["index"]), f"{cluster['share']:.0%}", f"{rate:.0f}", in_flight, response]
        )
    return rows


def _states(status: Mapping[str, Any]) -> str:
    clusters = status["clusters"]
    if not clusters:
        return "States: none yet; the observation was not over."
    state = status["state"]
    lines = [
        f"States: {len(clusters)} from {status['observations']} observations; at the end "
        f"{'none' if state is None else 'state ' + str(state['index'])}.",
        f"Profile: {status['profile']} ({status['decision']}).",
    ]
    header = ["state", "seen", "req/s", "in flight by peer", "response ms by class"]
    lines.append(table(header, _state_rows(status)))
    if len(clusters) > MOST_STATES:
        lines.append(f"and {len(clusters) - MOST_STATES} rarer ones: status.json has them all")
    return "\n".join(lines)


def _status_lines(outcome: Any) -> str:
    shares = {name: outcome.results["trimtab"].summary(name).peers for name in outcome.deadlines}
    status = outcome.status
    return (
        f"Trimtab's weights at the end (generation {status['generation']}):\n"
        + _weights(status, shares)
        + "\n\n"
        + _states(status)
    )
