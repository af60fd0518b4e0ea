"""`trimtab bench agreement`: the twin beside live runs of the same requests."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from trimtab import terminal
from trimtab.bench import markdown
from trimtab.bench.balancers.known import chosen
from trimtab.bench.runner import Plan, Results
from trimtab.errors import ConfigError
from trimtab.training.agreement import BALANCERS, Figure, figures

__all__ = ["run"]

HEADER: Final = ("scenario", "balancer", "figure", "live", "twin", "twin to live [95%]")
_NAMES: Final = {
    "art_per_1000": ("ART/1000", 1),
    "p50_seconds": ("p50 ms", 1000),
    "p99_seconds": ("p99 ms", 1000),
}


def run(
    arguments: argparse.Namespace,
    plan: Callable[[argparse.Namespace], Plan],
    run_all: Callable[[Plan, Results], int],
) -> int:
    """Run what the twin can play too, then the twin; 0, 1 when a run failed or is not valid.

    Raises ConfigError for a balancer that the twin cannot play.
    """
    if strange := set(arguments.balancer or ()) - BALANCERS.keys():
        raise ConfigError(
            f"the twin cannot play {', '.join(sorted(strange))}; it can {', '.join(BALANCERS)}"
        )
    wanted = plan(arguments)
    if not arguments.balancer:
        wanted = replace(wanted, balancers=chosen(list(BALANCERS)))
    results = Results()
    status = run_all(wanted, results)
    rows = _rows(figures(results.outcomes, wanted.scenarios))
    text = _markdown(rows)
    markdown.write_text(text + "\n", wanted.directory / "agreement.md")
    print(text if arguments.markdown else terminal.table(HEADER, rows))
    lacking = [f"{name} is missing: {why}" for name, why in results.missing.items()]
    for line in (*lacking, *results.problems):
        print(line)
    return status or int(bool(results.problems or results.missing))


def _rows(found: Sequence[Figure]) -> list[list[str]]:
    rows = []
    for figure in found:
        name, scale = _NAMES[figure.name]
        rows.append(
            [figure.scenario, figure.balancer, name, f"{scale * figure.live:.1f}",
             f"{scale * figure.twin:.1f}", str(figure.ratio)]
        )  # fmt: skip
    return rows


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (HEADER, ["--"] * len(HEADER), *rows)]
    return "\n".join(lines)
