"""The benchmark's figures as Markdown: `results.md`, which docs/benchmarks.md takes in."""

from collections.abc import Sequence
from pathlib import Path

from trimtab.bench.machine import machine
from trimtab.bench.report import Row, notes, scenario_report
from trimtab.bench.runner import Plan, Results
from trimtab.bench.tables import HEADER, cells, ratio_text, title
from trimtab.bench.verdict import OURS, compare, headline, lost
from trimtab.errors import TrimtabError

__all__ = ["markdown_of", "pipes", "provenance", "write_text"]


def pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    rule = "|" + "|".join([":--", *["--:"] * (len(header) - 1)]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def provenance(commits: Sequence[str] = ()) -> str:
    """Commit, command, machine and versions, as the first lines of a file of results."""
    about = machine()
    known = [c for c in dict.fromkeys(commits) if c] or [about["commit"]]
    commit = f"commit {', '.join(known)}" if known[0] else "no checkout"
    programs = ", ".join(about[k] for k in ("nginx", "haproxy", "envoy") if about[k])
    return (
        f"Trimtab {about['trimtab']}, {commit}; {about['at']}; {about['processor']}, "
        f"{about['cores']} cores; {about['system']}; Python {about['python']}; {programs}.\n\n"
        f"```\n{' '.join(about['command'])}\n```"
    )


def _row(row: Row) -> list[str]:
    shown = cells(row)
    # A star would begin something bold.
    shown[0] = f"{row.label} (told the {row.hint})" if row.hint else row.label
    return [f"**{cell}**" for cell in shown] if row.name == OURS else shown


def _overview(plan: Plan, results: Results) -> list[str]:
    """ART of every balancer by scenario, when there are several."""
    reports = [scenario_report(plan, results, s) for s in plan.scenarios]
    reports = [r for r in reports if any(row.seeds for row in r.rows)]
    if len(reports) < 2:
        return []
    art = [{row.name: cells(row)[1] for row in r.rows} for r in reports]
    rows = []
    for row in reports[0].rows:
        shown = [_row(row)[0].strip("*"), *(of[row.name] for of in art)]
        rows.append([f"**{cell}**" for cell in shown] if row.name == OURS else shown)
    header = ["balancer", *(r.scenario.name for r in reports)]
    return ["### ART per 1000 requests", pipes(header, rows)]


def markdown_of(plan: Plan, results: Results) -> str:
    """Where it ran, the verdict, a table a scenario, and where Trimtab loses."""
    comparisons = compare(plan, results)
    blocks = [provenance([o.commit for o in results.outcomes])]
    if comparisons:
        blocks.append(headline(comparisons))
    blocks += _overview(plan, results)
    for scenario in plan.scenarios:
        report = scenario_report(plan, results, scenario)
        rows = [r for r in report.rows if r.seeds or r.missing]
        if not any(r.seeds for r in rows):
            continue
        bounds = [[f"*bound: {r.label}*", *cells(r)[1:]] for r in report.bounds]
        blocks.append(f"### {scenario.name}\n\n{title(plan, scenario)}.")
        blocks.append(pipes(HEADER, [*(_row(r) for r in rows), *bounds]))
        if report.art_to_best is not None:
            blocks.append(
                f"Trimtab to the best peer without hints ({report.best_peer}): "
                f"ART {ratio_text(report.art_to_best)}, p99 {ratio_text(report.p99_to_best)}."
            )
    if comparisons:
        losses = "\n".join(f"* {c}" for c in lost(comparisons)) or "In none of these comparisons."
        blocks.append(
            f"### Where Trimtab loses in these\n\nRatios of Trimtab's to the other's.\n\n{losses}"
        )
    said = "\n".join(
        f"* {line}" for line in notes(plan, results).splitlines() if not line.startswith("* ")
    )
    blocks.append(f"### Notes\n\n{said}")
    return "\n\n".join(blocks) + "\n"


def write_text(text: str, path: Path) -> None:
    """Write it, at once: a reader finds all of it or nothing. Raises TrimtabError."""
    beside = path.with_suffix(".part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise TrimtabError(f"cannot write {path}: {error.strerror or error}") from None
