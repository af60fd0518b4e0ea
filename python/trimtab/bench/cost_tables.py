"""What balancing costs, shown: a table for the terminal, Markdown, and every round as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Final

from trimtab.bench.cost import BASE, Cost
from trimtab.bench.instructions import uncounted
from trimtab.bench.machine import machine
from trimtab.bench.markdown import pipes, provenance, write_text
from trimtab.bench.tables import wrapped
from trimtab.terminal import table

__all__ = [
    "instructions_markdown",
    "instructions_table",
    "markdown_of",
    "table_of",
    "write_instructions",
    "write_json",
]

FORMAT: Final = 1

HEADER: Final = (
    "variant", "CPU µs", "to least_conn", "req/s", "instr.", "to least_conn", "errors",
)  # fmt: skip


def _rows(cost: Cost, case: str) -> list[list[str]]:
    rows = []
    for name, rounds in cost.rounds[case].items():
        if not rounds:
            continue
        cpu, ratio, rate, errors = cost.figures(case, name)
        counted = cost.instructions(case, name)
        rows.append(
            [
                name,
                f"{1e6 * cpu:.1f}",
                "1" if name == BASE else str(ratio or "-"),
                f"{rate:.0f}",
                f"{counted[0]:.0f}" if counted else "not counted",
                "-" if counted is None else "1" if name == BASE else str(counted[1] or "-"),
                str(errors),
            ]
        )
    return rows


def _note() -> str:
    text = (
        "Processor time and instructions of nginx per request; req/s is what one worker could do. "
        "Medians over rounds; ratios are paired by round, with 95% intervals."
    )
    why = uncounted()
    return f"{text} Instructions are not counted: {why}." if why else text


def table_of(cost: Cost, columns: int | None = None) -> str:
    """One table a case, and a note broken to so many columns."""
    header = list(HEADER)
    blocks = []
    for case in cost.rounds:
        rows = _rows(cost, case)
        if all(row[4] == "not counted" for row in rows):
            # Nothing to be compared: the one column says it.
            rows = [row[:5] + row[6:] for row in rows]
            header = [*HEADER[:5], HEADER[6]]
        if rows:
            blocks.append(f"{case}\n{table(header, rows, indent='  ')}")
    return "\n\n".join([*blocks, wrapped(_note(), columns)])


def markdown_of(cost: Cost) -> str:
    """The same as Markdown, with where it was measured."""
    blocks = [provenance()]
    for case in cost.rounds:
        if rows := _rows(cost, case):
            blocks += [f"### {case[0].upper()}{case[1:]}", pipes(HEADER, rows)]
    return "\n\n".join([*blocks, _note()]) + "\n"


def write_json(cost: Cost, path: Path) -> None:
    """Write every round. Raises TrimtabError when the file cannot be written."""
    rounds = {
        case: {name: {n: asdict(m) for n, m in of.items()} for name, of in variants.items()}
        for case, variants in cost.rounds.items()
    }
    data = {"format": FORMAT, **machine(), "uncounted": uncounted(), "rounds": rounds}
    write_text(json.dumps(data, indent=1) + "\n", path)


COUNT_HEADER: Final = ("variant", "instr.", "added", "to least_conn", "from", "to")
_COUNT_NOTE: Final = (
    "Instructions in user space per request, 4 KB replies, no access log, counted by valgrind: "
    "medians over rounds, from the least to the most; the kernel's are not in it."
)


def _count_rows(found: dict[str, list[float]]) -> list[list[str]]:
    base = median(found[BASE]) if found.get(BASE) else None
    rows = []
    for name, counts in found.items():
        own = median(counts)
        compared = ["-", "-"] if base is None else [f"{own - base:.0f}", f"{own / base:.2f}"]
        rows.append([name, f"{own:.0f}", *compared, f"{min(counts):.0f}", f"{max(counts):.0f}"])
    return rows


def instructions_table(found: dict[str, list[float]], columns: int | None = None) -> str:
    """What callgrind counted (variant → a number a round), as a table for the terminal."""
    return f"{table(COUNT_HEADER, _count_rows(found))}\n\n{wrapped(_COUNT_NOTE, columns)}"


def instructions_markdown(found: dict[str, list[float]]) -> str:
    """The same as Markdown, with where it was counted."""
    return "\n\n".join([provenance(), pipes(COUNT_HEADER, _count_rows(found)), _COUNT_NOTE]) + "\n"


def write_instructions(found: dict[str, list[float]], path: Path) -> None:
    """Write every round. Raises TrimtabError when the file cannot be written."""
    write_text(json.dumps({"format": FORMAT, **machine(), "rounds": found}, indent=1) + "\n", path)
