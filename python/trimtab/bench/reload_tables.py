"""What reloads cost, shown: a table for the terminal, Markdown, and every round as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from trimtab.bench.machine import machine
from trimtab.bench.markdown import pipes, provenance, write_text
from trimtab.bench.reloads import AFTER_SECONDS, NEVER, Measured, Reloads
from trimtab.bench.tables import wrapped
from trimtab.terminal import table

__all__ = ["markdown_of", "table_of", "write_json"]

FORMAT: Final = 1

HEADER: Final = (
    "variant", "p50 ms", "p99 ms", "p99.9 ms", "p99 after", "reloads", "cut/reload", "lost",
    "requests",
)  # fmt: skip

_NOTE: Final = (
    f"Medians over rounds of response times; p99 after is of the requests that came within "
    f"{1000 * AFTER_SECONDS:g} ms of a reload. cut/reload are kept connections of clients that a "
    "reload closed, by how many more were opened than without. lost are requests that were on "
    "their way on such a connection, of clients that send nothing twice."
)


def _middle(rounds: dict[int, Measured], of: Callable[[Measured], float]) -> str:
    value = 1000 * float(np.median([of(m) for m in rounds.values()]))
    return "-" if np.isnan(value) else f"{value:.1f}"


def _rows(found: Reloads, case: str) -> list[list[str]]:
    variants = {name: rounds for name, rounds in found.rounds[case].items() if rounds}
    base = variants.get(NEVER, {})
    usual = sum(m.opened for m in base.values()) / max(1, len(base))
    rows = []
    for name, rounds in variants.items():
        reloads = sum(m.reloads for m in rounds.values())
        more = sum(m.opened for m in rounds.values()) - usual * len(rounds)
        rows.append(
            [
                name,
                _middle(rounds, lambda m: m.p50_seconds),
                _middle(rounds, lambda m: m.p99_seconds),
                _middle(rounds, lambda m: m.p999_seconds),
                _middle(rounds, lambda m: m.after_p99_seconds),
                str(reloads),
                f"{more / reloads:.1f}" if reloads else "-",
                str(sum(m.lost for m in rounds.values())),
                str(sum(m.requests for m in rounds.values())),
            ]
        )
    return rows


def _note(found: Reloads) -> str:
    strange = found.strange
    return f"{_NOTE} {strange} more failed for another reason." if strange else _NOTE


def table_of(found: Reloads, columns: int | None = None) -> str:
    """One table a case, and a note broken to so many columns."""
    blocks = [
        f"{case}\n{table(HEADER, rows, indent='  ')}"
        for case in found.rounds
        if (rows := _rows(found, case))
    ]
    return "\n\n".join([*blocks, wrapped(_note(found), columns)])


def markdown_of(found: Reloads) -> str:
    """The same as Markdown, with where it was measured."""
    blocks = [provenance()]
    for case in found.rounds:
        if rows := _rows(found, case):
            blocks += [f"### {case[0].upper()}{case[1:]}", pipes(HEADER, rows)]
    return "\n\n".join([*blocks, _note(found)]) + "\n"


def write_json(found: Reloads, path: Path) -> None:
    """Write every round. Raises TrimtabError when the file cannot be written."""
    rounds = {
        case: {name: {n: asdict(m) for n, m in of.items()} for name, of in variants.items()}
        for case, variants in found.rounds.items()
    }
    write_text(json.dumps({"format": FORMAT, **machine(), "rounds": rounds}, indent=1) + "\n", path)
