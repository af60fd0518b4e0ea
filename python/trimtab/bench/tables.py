"""The benchmark's figures as text: one table a scenario, as wide as the terminal allows."""

import math
import textwrap
from collections.abc import Sequence
from typing import Final

from trimtab.bench.balancers.known import BASE
from trimtab.bench.report import Row, scenario_report
from trimtab.bench.runner import Plan, Results
from trimtab.bench.statistics import Ratio
from trimtab.demo.scenario import Scenario
from trimtab.terminal import fitted, table

__all__ = ["HEADER", "cells", "ratio_text", "shares_text", "tables", "title", "wrapped"]

# Servers whose shares a table shows one by one.
_MOST_SHARES: Final = 4

# Names of bounds where there is little room.
_SHORT: Final = {
    "shortest expected delay knowing speeds": "expected delay",
    "central queue in deadline order": "central queue",
    "least work knowing every size": "least work",
}


def _number(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.0f}"


def shares_text(shares: Sequence[float]) -> str:
    """What each server had of the requests, in per cent; of many servers the least and the most."""
    whole = [round(100 * share) for share in shares]
    if len(whole) > _MOST_SHARES:
        return f"{min(whole)} to {max(whole)}"
    return " ".join(map(str, whole)) or "-"


def ratio_text(ratio: Ratio | None) -> str:
    """A ratio with its interval, or a dash."""
    return "-" if ratio is None else str(ratio)


def cells(row: Row) -> list[str]:
    """What a table shows of a row, one text for each of `HEADER`."""
    label = f"{row.label} *" if row.hint else row.label
    ratio = "1" if row.name == BASE and row.seeds else ratio_text(row.ratio)
    if row.missing:
        return [label, "missing", *["-"] * 8]
    return [
        label,
        _number(row.art_per_1000),
        ratio,
        _number(1000 * row.p50_seconds),
        _number(1000 * row.p99_seconds),
        _number(1000 * row.p999_seconds),
        "-" if math.isnan(row.error_ratio) else f"{100 * row.error_ratio:.2f}%",
        _number(row.goodput_per_second),
        _number(1e6 * row.cpu_seconds_per_request, 0),
        shares_text(row.shares),
    ]


HEADER: Final = (
    "balancer", "ART/1000", "to least-conn [95%]", "p50 ms", "p99 ms", "p99.9 ms", "errors",
    "in time/s", "CPU µs", "shares %",
)  # fmt: skip


# What a narrow terminal does without, in this order; the files have everything.
_EXPENDABLE: Final = ("shares %", "in time/s", "p50 ms", "CPU µs", "p99.9 ms", "errors")


def title(plan: Plan, scenario: Scenario) -> str:
    """What was run, in a line."""
    plural = "" if len(plan.seeds) == 1 else "s"
    workers = "" if plan.workers == 1 else f", {plan.workers} workers"
    return (
        f"{scenario.description}; {scenario.requests_per_second:.0f} requests/s, "
        f"{plan.seconds_of(scenario):g} s, {len(plan.seeds)} seed{plural}{workers}"
    )


def _fitted(rows: list[list[str]], short: list[str], columns: int | None) -> str:
    """The table within so many columns: with shorter names first, then with less to read.

    `short` is the first cell of each row, shorter. None: all, however wide.
    """

    text = table(HEADER, rows, indent="  ")
    if columns is None or max(map(len, text.splitlines())) <= columns:
        return text
    rows = [[name, *row[1:]] if row else [] for name, row in zip(short, rows, strict=True)]
    spare = [HEADER.index(name) for name in _EXPENDABLE]
    return fitted(HEADER, rows, spare, columns, indent="  ")


def tables(plan: Plan, results: Results, columns: int | None = None) -> str:
    """One table for each scenario of which anything was run, for a terminal of so many columns."""
    blocks = []
    for scenario in plan.scenarios:
        report = scenario_report(plan, results, scenario)
        rows = [r for r in report.rows if r.seeds or r.missing]
        if not rows:
            continue
        bounds = [[f"  bound: {r.label}", *cells(r)[1:]] for r in report.bounds]
        short = [f"{r.name} *" if r.hint else r.name for r in rows]
        bound_names = [f"bound: {_SHORT.get(r.name, r.name)}" for r in report.bounds]
        lines = [f"{scenario.name}: {title(plan, scenario)}"]
        if report.art_to_best is not None:
            lines.append(
                f"Trimtab to the best peer without hints ({report.best_peer}): "
                f"ART {ratio_text(report.art_to_best)}, p99 {ratio_text(report.p99_to_best)}"
            )
        first, *last = (wrapped(line, columns) for line in lines)
        drawn = _fitted(
            [*(cells(r) for r in rows), [], *bounds], [*short, "", *bound_names], columns
        )
        blocks.append("\n".join([first, drawn, *last]))
    return "\n\n".join(blocks)


def wrapped(text: str, columns: int | None) -> str:
    """The lines of a text, broken to so many columns."""
    if columns is None:
        return text
    return "\n".join(
        textwrap.fill(line, max(20, columns), subsequent_indent="  ", break_on_hyphens=False)
        for line in text.splitlines()
    )
