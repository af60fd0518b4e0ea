"""`trimtab bench estimates`: how far the estimates are from simulated truth."""

import argparse
import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from trimtab import terminal
from trimtab.errors import ConfigError
from trimtab.training.estimation import CASES, LOAD, MARKS, QUANTITIES, SLOTS, Case, Found, measure

__all__ = ["run"]

SEEDS: Final = 5

Runs = dict[Case, list[dict[float, Found]]]


def run(arguments: argparse.Namespace) -> int:
    """Measure and print, also into the output directory; 0. Ctrl-C prints what is done and ends
    with 130."""
    seeds = SEEDS if arguments.seeds is None else arguments.seeds
    if not 1 <= seeds <= 1000:
        raise ConfigError(f"--seeds {seeds}: it must be from 1 to 1000")
    alike = [Case(slots=k, told=False) for k in SLOTS]
    cases = [*CASES, *alike]
    runs: Runs = {case: [] for case in cases}
    status = 0
    with terminal.Progress(len(cases) * seeds, unit="runs") as bar:
        try:
            for n, (case, found) in enumerate(measure(cases, range(1, seeds + 1)), 1):
                runs[case].append(found)
                bar.update(n, f"{case.slots} slots" if case.slots else str(case))
        except KeyboardInterrupt:
            status = 130
    markdown: bool = arguments.markdown
    blocks = [
        _block("Median and 90th-percentile error, in %", _errors(runs), markdown=markdown),
        _block("Discipline, in % of servers", _disciplines(runs), markdown=markdown),
        _block(
            f"Slots, not given; three servers alike, one class, {_percent(LOAD)}% load; in % of "
            "servers",
            _slots(runs, alike),
            markdown=markdown,
        ),
    ]
    text = "\n\n".join([f"{seeds} seeds each.", *blocks])
    print(text)
    directory = arguments.output / "estimates"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "estimates.md").write_text(text + "\n", encoding="utf-8")
    return status


Table = tuple[list[str], list[list[str]]]


def _block(title: str, table: Table, *, markdown: bool) -> str:
    header, rows = table
    if not markdown:
        return f"{title}\n{terminal.table(header, rows)}"
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join([f"{title}:", "", *lines])


def _ages() -> list[str]:
    return [f"{m:g} s" if m < 60 else f"{m / 60:g} min" for m in MARKS]


def _errors(runs: Runs) -> Table:
    header = ["what", "scenario"]
    header += [f"{age}: {of}" for age in _ages() for of in ("median", "90%")]
    rows = []
    for quantity in QUANTITIES:
        for case in CASES:
            row = [quantity, str(case)]
            for mark in MARKS:
                off = [e for found in runs[case] for e in found[mark].errors[quantity]]
                row += [_percent(_quantile(off, q)) for q in (0.5, 0.9)]
            rows.append(row)
    return header, rows


def _disciplines(runs: Runs) -> Table:
    header = ["scenario"]
    header += [f"{age}: {of}" for age in _ages() for of in ("right", "not sure", "wrong")]
    rows = []
    for case in CASES:
        row = [str(case)]
        for mark in MARKS:
            seen = [d for found in runs[case] for d in found[mark].disciplines]
            row += [_share([d == value for d in seen]) for value in (1, 0, -1)]
        rows.append(row)
    return header, rows


def _slots(runs: Runs, alike: Sequence[Case]) -> Table:
    header = ["slots"]
    header += [f"{age}: {of}" for age in _ages() for of in ("exact", "within 1", "unknown")]
    rows = []
    for case in alike:
        row = [str(case.slots)]
        for mark in MARKS:
            seen = [s for found in runs[case] for s in found[mark].slots]
            row.append(_share([value == true for value, true in seen]))
            row.append(_share([value > 0 and abs(value - true) <= 1 for value, true in seen]))
            row.append(_share([value == 0 for value, _ in seen]))
        rows.append(row)
    return header, rows


def _quantile(values: Sequence[float], q: float) -> float:
    # Not between two values: where nothing is known the error is infinite.
    return float(np.quantile(values, q, method="higher")) if values else math.nan


def _percent(ratio: float) -> str:
    if math.isinf(ratio):
        return "unknown"
    return "-" if math.isnan(ratio) else f"{100 * ratio:.1f}".removesuffix(".0")


def _share(of: Sequence[bool]) -> str:
    return f"{100 * sum(of) / len(of):.0f}" if of else "-"
