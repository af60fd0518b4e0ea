"""The benchmark as one self-contained HTML page, to be read in a minute: summary first."""

import base64
import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trimtab.bench.report import Row, ScenarioReport, machine, notes, scenario_report
from trimtab.bench.runner import Plan, Results
from trimtab.bench.statistics import Ratio
from trimtab.errors import TrimtabError

__all__ = ["write_page"]

_STYLE: Final = """
:root { --ink: #1c2024; --soft: #667; --line: #d8dce2; --paper: #fff; --ours: #c0392b;
  --bar: #8fa3bf; --shade: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #9aa3ad; --line: #343a42; --paper: #16191d; --ours: #ff7a66;
    --bar: #54688a; --shade: #1f242a; }
  img { filter: invert(0.92) hue-rotate(180deg); } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 0.3rem; }
p.soft, small { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.ours td { color: var(--ours); font-weight: 600; }
tr.bound td { color: var(--soft); font-style: italic; }
td.bar { width: 30%; min-width: 9rem; } td.bar div { height: 0.8rem; border-radius: 2px;
  background: var(--bar); } tr.ours td.bar div { background: var(--ours); }
img { width: 100%; margin-top: 0.8rem; } pre { background: var(--shade); padding: 0.8rem;
  overflow-x: auto; }
"""

# Bars are logarithmic: from a tenth of a deadline per 1000 requests to ten thousand.
_LEAST, _MOST = 0.1, 1e4


def _number(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" if value < 1000 else f"{value:,.0f}".replace(",", " ")


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    if math.isnan(ratio.low):
        return f"{ratio.mean:.2f}"
    return f"{ratio.mean:.2f} <small>[{ratio.low:.2f}, {ratio.high:.2f}]</small>"


def _bar(value: float) -> str:
    if math.isnan(value):
        return ""
    part = math.log(max(value, _LEAST) / _LEAST) / math.log(_MOST / _LEAST)
    return f'<div style="width:{100 * min(1.0, max(0.01, part)):.1f}%"></div>'


def _row(row: Row, kind: str) -> str:
    label = html.escape(row.label) + (f" <small>({html.escape(row.hint)})</small>" * bool(row.hint))
    if row.missing:
        return f'<tr><td>{label}</td><td colspan="8">{html.escape(row.missing)}</td></tr>'
    errors = "–" if math.isnan(row.error_ratio) else f"{100 * row.error_ratio:.2f}%"
    cells = [
        _number(row.art_per_1000),
        _ratio(row.ratio),
        _number(1000 * row.p50_seconds),
        _number(1000 * row.p99_seconds),
        _number(1000 * row.p999_seconds),
        errors,
        _number(1e6 * row.cpu_seconds_per_request, 0),
    ]
    tds = "".join(f"<td>{cell}</td>" for cell in cells)
    bar = f'<td class="bar">{_bar(row.art_per_1000)}</td>'
    return f'<tr class="{kind}"><td>{label}</td>{bar}{tds}</tr>'


def _section(plan: Plan, report: ScenarioReport, picture: Path | None) -> str:
    scenario = report.scenario
    rows = [_row(r, "ours" if r.name == "trimtab" else "") for r in report.rows]
    rows += [_row(r, "bound") for r in report.bounds]
    image = ""
    if picture is not None:
        data = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="{html.escape(scenario.name)}" src="data:image/png;base64,{data}">'
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "balancer", "ART per 1000, log scale", "ART/1000", "to least-conn [95%]", "p50 ms",
            "p99 ms", "p99.9 ms", "errors", "CPU µs",
        )
    )  # fmt: skip
    return (
        f'<h2 id="{scenario.name}">{html.escape(scenario.name)}</h2>'
        f'<p class="soft">{html.escape(scenario.description)}; '
        f"{scenario.requests_per_second:.0f} requests/s, {plan.seconds_of(scenario):g} s, "
        f"{len(plan.seeds)} seeds</p>"
        f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>{image}'
    )


def _summary(reports: list[ScenarioReport]) -> str:
    lines = []
    for report in reports:
        rows = {r.name: r for r in report.rows}
        ours, best = rows.get("trimtab"), rows.get(report.best_peer)
        if ours is None or best is None or not ours.seeds:
            continue
        name = report.scenario.name
        lines.append(
            f'<tr><td><a href="#{name}">{name}</a></td><td>{html.escape(best.label)}</td>'
            f"<td>{_number(best.art_per_1000)}</td><td>{_number(ours.art_per_1000)}</td>"
            f"<td>{_ratio(report.art_to_best)}</td><td>{_ratio(report.p99_to_best)}</td></tr>"
        )
    if not lines:
        return ""
    return (
        "<h2>Trimtab to the best peer that was told nothing</h2>"
        '<div class="wide"><table><tr><th>scenario</th><th>best peer</th><th>its ART/1000</th>'
        "<th>Trimtab's</th><th>ratio of ART [95%]</th><th>ratio of p99 [95%]</th></tr>"
        + "".join(lines)
        + "</table></div>"
    )


def write_page(
    plan: Plan, results: Results, pictures: Mapping[str, Path | None], path: Path
) -> None:
    """Write the page; `pictures` are PNG files by scenario. Raises TrimtabError."""
    reports = [scenario_report(plan, results, s) for s in plan.scenarios]
    reports = [r for r in reports if any(row.seeds for row in r.rows)]
    about = machine()
    where = "; ".join(
        str(about[key]) for key in ("at", "processor", "system", "nginx", "haproxy") if about[key]
    )
    command = html.escape(" ".join(about["command"]))
    body = "".join(_section(plan, r, pictures.get(r.scenario.name)) for r in reports)
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Trimtab benchmark</title><style>{_STYLE}</style></head><body>"
        "<h1>Trimtab benchmark</h1>"
        f'<p class="soft">{html.escape(where)}; {about["cores"]} cores; Trimtab '
        f"{about['trimtab']} {html.escape(about['commit'])}<br><code>{command}</code></p>"
        "<p>ART is the accumulated relative tardiness: how many deadlines late requests were, "
        "summed over 1000 of them; less is better.</p>"
        f"{_summary(reports)}{body}<h2>Notes</h2><pre>{html.escape(notes(plan, results))}</pre>"
        "</body></html>\n"
    )
    beside = path.with_suffix(".part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise TrimtabError(f"cannot write {path}: {error.strerror or error}") from None
