"""The benchmark as one self-contained HTML page, to be read in a minute: summary first."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from trimtab.bench.machine import machine
from trimtab.bench.markdown import write_text
from trimtab.bench.report import Row, ScenarioReport, notes, scenario_report
from trimtab.bench.runner import Plan, Results
from trimtab.bench.statistics import Ratio
from trimtab.bench.tables import shares_text, title
from trimtab.bench.verdict import OURS, Comparison, compare, headline, lost

__all__ = ["write_page"]

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c6570; --line: #d8dce2; --paper: #fff;
  --ours: #b8321f; --bar: #8fa3bf; --shade: #f4f6f9; --good: #d9f0dd; --bad: #fbdcd6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #9aa3ad; --line: #343a42; --paper: #16191d; --ours: #ff7a66;
    --bar: #54688a; --shade: #1f242a; --good: #1d3a25; --bad: #4a241e; }
  a { color: #8ab4f8; }
  img { filter: invert(0.915) hue-rotate(180deg); } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 0.3rem; }
p.soft, small, summary { color: var(--soft); } p.soft { margin-top: 0; }
p.verdict { font-size: 1.1rem; background: var(--shade); padding: 0.8rem 1rem;
  border-left: 4px solid var(--ours); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.full { width: 100%; }
th, td { text-align: right; padding: 0.25rem 0.3rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { vertical-align: bottom; } table.map th { white-space: normal; max-width: 7.5rem; }
th:first-child, td:first-child, td.text { text-align: left; white-space: normal;
  min-width: 9rem; }
table.full { font-size: 0.9rem; } table.full td:first-child { min-width: 13rem; }
tr.ours td { color: var(--ours); font-weight: 600; }
td.best { font-weight: 700; text-decoration: underline; }
td.good, span.good { background: var(--good); } td.bad, span.bad { background: var(--bad); }
span.good, span.bad { padding: 0 0.4rem; border-radius: 3px; }
tr.bound td { color: var(--soft); font-style: italic; }
td.bar { width: 10%; min-width: 4rem; } td.bar div { height: 0.8rem; border-radius: 2px;
  background: var(--bar); } tr.ours td.bar div { background: var(--ours); }
tr.bound td.bar div { opacity: 0.45; }
img { width: 100%; margin-top: 0.8rem; } pre, code { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; }
ul { padding-left: 1.2rem; }
"""

_COLOURS: Final = {"better": "good", "worse": "bad", "alike": ""}

# Bars are logarithmic: from a tenth of a deadline per 1000 requests to ten thousand.
_LEAST, _MOST = 0.1, 1e4


def _number(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" if value < 1000 else f"{value:,.0f}".replace(",", " ")


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    mean, _, interval = str(ratio).partition(" ")
    return f"{mean} <small>{interval}</small>" if interval else mean


def _bar(value: float) -> str:
    if math.isnan(value):
        return ""
    part = math.log(max(value, _LEAST) / _LEAST) / math.log(_MOST / _LEAST)
    return f'<div style="width:{100 * min(1.0, max(0.01, part)):.1f}%"></div>'


def _label(row: Row) -> str:
    told = f" <small>({html.escape(row.hint)})</small>" if row.hint else ""
    return html.escape(row.label) + told


def _row(row: Row, kind: str) -> str:
    label = _label(row)
    if row.missing:
        why = html.escape(row.missing)
        return f'<tr><td>{label}</td><td class="text" colspan="10">{why}</td></tr>'
    errors = "–" if math.isnan(row.error_ratio) else f"{100 * row.error_ratio:.2f}%"
    cells = [
        _number(row.art_per_1000),
        _ratio(row.ratio),
        _number(1000 * row.p50_seconds),
        _number(1000 * row.p99_seconds),
        _number(1000 * row.p999_seconds),
        errors,
        _number(row.goodput_per_second),
        shares_text(row.shares),
        _number(1e6 * row.cpu_seconds_per_request, 0),
    ]
    tds = "".join(f"<td>{cell}</td>" for cell in cells)
    bar = f'<td class="bar">{_bar(row.art_per_1000)}</td>'
    return f'<tr class="{kind}"><td>{label}</td>{bar}{tds}</tr>'


def _section(plan: Plan, report: ScenarioReport, picture: Path | None) -> str:
    scenario = report.scenario
    rows = [_row(r, "ours" if r.name == OURS else "") for r in report.rows]
    rows += [_row(r, "bound") for r in report.bounds]
    image = ""
    told = any(r.hint for r in report.rows)
    if picture is not None:
        data = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="{html.escape(scenario.name)}" src="data:image/png;base64,{data}">'
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "balancer", "log scale", "ART/1000", "to least-conn [95%]", "p50 ms",
            "p99 ms", "p99.9 ms", "errors", "in time/s", "shares %", "CPU µs",
        )
    )  # fmt: skip
    return (
        f'<h2 id="{scenario.name}">{html.escape(scenario.name)}</h2>'
        f'<p class="soft">{html.escape(title(plan, scenario))}. Italic: simulated bounds'
        f"{'; in brackets what a balancer was told' if told else ''}.</p>"
        f'<div class="wide"><table class="full"><tr>{head}</tr>{"".join(rows)}</table></div>{image}'
    )


def _map(reports: list[ScenarioReport], comparisons: Mapping[tuple[str, str], Comparison]) -> str:
    """ART of every balancer (ours first) by scenario, coloured by how ours compares."""
    ran = {r.name for report in reports for r in report.rows if r.seeds}
    balancers = sorted(
        (r for r in reports[0].rows if r.name in ran), key=lambda r: not r.name.startswith(OURS)
    )
    names = [report.scenario.name for report in reports]
    of = [{r.name: r for r in report.rows if r.seeds} for report in reports]
    least = [min(r.art_per_1000 for r in rows.values()) for rows in of]
    lines = []
    for balancer in balancers:
        cells = []
        for name, rows, best in zip(names, of, least, strict=True):
            row = rows.get(balancer.name)
            if row is None:
                cells.append("<td>–</td>")
                continue
            against = comparisons.get((name, row.name))
            kinds = [_COLOURS[against.art_verdict]] if against else []
            kinds += ["best"] * (row.art_per_1000 == best)
            cells.append(f'<td class="{" ".join(kinds)}">{_number(row.art_per_1000)}</td>')
        kind = "ours" if balancer.name == OURS else ""
        lines.append(f'<tr class="{kind}"><td>{_label(balancer)}</td>{"".join(cells)}</tr>')
    head = "".join(f'<th><a href="#{name}">{name}</a></th>' for name in names)
    return (
        "<h2>ART per 1000 requests: less is better</h2>"
        '<p class="soft">Medians over seeds; the least of a scenario is underlined. '
        '<span class="good">Green</span>: Trimtab has less than this balancer; '
        '<span class="bad">red</span>: more; no colour: alike, or too few seeds to say. '
        "In brackets what a balancer was told.</p>"
        f'<div class="wide"><table class="map"><tr><th>balancer</th>{head}</tr>'
        f"{''.join(lines)}</table></div>"
    )


def _losses(comparisons: Sequence[Comparison]) -> str:
    """Where ours is worse, the worst first."""
    items = "".join(f"<li>{html.escape(str(c))}</li>" for c in lost(comparisons))
    body = f"<ul>{items}</ul>" if items else "<p>In none of these comparisons.</p>"
    return (
        "<h2>Where Trimtab loses</h2>"
        '<p class="soft">Ratios of Trimtab&#39;s to the other&#39;s, above 1 is worse; '
        f"in brackets their 95% intervals.</p>{body}"
    )


def write_page(
    plan: Plan, results: Results, pictures: Mapping[str, Path | None], path: Path
) -> None:
    """Write the page; `pictures` are PNG files by scenario. Raises TrimtabError."""
    reports = [scenario_report(plan, results, s) for s in plan.scenarios]
    reports = [r for r in reports if any(row.seeds for row in r.rows)]
    comparisons = compare(plan, results)
    summary = ""
    if reports:
        summary = _map(reports, {(c.scenario, c.other): c for c in comparisons})
    if comparisons:
        verdict = html.escape(headline(comparisons))
        summary = f'<p class="verdict">{verdict}</p>{summary}{_losses(comparisons)}'
    about = machine()
    where = "; ".join(
        str(about[key])
        for key in ("at", "processor", "system", "nginx", "haproxy", "envoy")
        if about[key]
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
        "<p>Every balancer met the same requests with the same work. ART is the accumulated "
        "relative tardiness: how many deadlines late requests were, summed over 1000 of them. "
        "A failed request counts as at least 9.</p>"
        f"{summary}{body}<h2>Notes</h2><pre>{html.escape(notes(plan, results))}</pre>"
        "</body></html>\n"
    )
    write_text(text, path)
