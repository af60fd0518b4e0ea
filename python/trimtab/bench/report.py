"""The benchmark's figures by scenario, and all of it as JSON.

Figures are medians over seeds; ratios are paired. What shows them: `tables` on a terminal,
`markdown`, `page` with the pictures of `pictures`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trimtab.bench.balancers.base import Balancer
from trimtab.bench.balancers.known import BASE, PEERS
from trimtab.bench.machine import machine
from trimtab.bench.outcome import Outcome, warm_up_seconds
from trimtab.bench.runner import Plan, Results
from trimtab.bench.statistics import ART_FLOOR, Ratio, median, paired_ratio
from trimtab.bench.verdict import OURS, compare
from trimtab.demo.scenario import Scenario
from trimtab.errors import TrimtabError

__all__ = ["Row", "ScenarioReport", "notes", "scenario_report", "write_json"]

FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One balancer or bound in one scenario: medians over seeds, times in seconds.

    `ratio` is of ART to the base's. What a bound or a missing balancer has not is NaN.
    """

    name: str
    label: str
    hint: str
    seeds: int
    art_per_1000: float
    ratio: Ratio | None
    p50_seconds: float
    p99_seconds: float
    p999_seconds: float = math.nan
    error_ratio: float = math.nan
    goodput_per_second: float = math.nan
    cpu_seconds_per_request: float = math.nan
    shares: tuple[float, ...] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioReport:
    """All rows of a scenario. `best_peer` is the one of least ART; the ratios are ours to it."""

    scenario: Scenario
    rows: tuple[Row, ...]
    bounds: tuple[Row, ...]
    best_peer: str
    art_to_best: Ratio | None
    p99_to_best: Ratio | None


def _by_seed(outcomes: Sequence[Outcome], field: str) -> dict[int, float]:
    return {o.seed: float(getattr(o, field)) for o in outcomes}


def _row(balancer: Balancer, own: list[Outcome], base: dict[int, float], missing: str) -> Row:
    def middle(field: str) -> float:
        return median(_by_seed(own, field))

    servers = list(own[0].shares) if own else []
    return Row(
        name=balancer.name,
        label=balancer.label,
        hint=balancer.hint,
        seeds=len(own),
        art_per_1000=middle("art_per_1000"),
        ratio=paired_ratio(_by_seed(own, "art_per_1000"), base, floor=ART_FLOOR),
        p50_seconds=middle("p50_seconds"),
        p99_seconds=middle("p99_seconds"),
        p999_seconds=middle("p999_seconds"),
        error_ratio=middle("error_ratio"),
        goodput_per_second=middle("goodput_per_second"),
        cpu_seconds_per_request=middle("cpu_seconds_per_request"),
        shares=tuple(median({o.seed: o.shares[s] for o in own}) for s in servers),
        missing=missing,
    )


def scenario_report(plan: Plan, results: Results, scenario: Scenario) -> ScenarioReport:
    """The figures of one scenario; of what was not run, NaN."""
    of = {
        b.name: [
            o for o in results.outcomes if o.scenario == scenario.name and o.balancer == b.name
        ]
        for b in plan.balancers
    }
    base = _by_seed(of.get(BASE, []), "art_per_1000")
    rows = tuple(_row(b, of[b.name], base, results.missing.get(b.name, "")) for b in plan.balancers)
    seeds = {seed: by for (name, seed), by in results.bounds.items() if name == scenario.name}
    names = list(next(iter(seeds.values()), {}))
    simulated = []
    for name in names:
        art = {seed: by[name].art_per_1000 for seed, by in seeds.items()}
        simulated.append(
            Row(
                name=name,
                label=name,
                hint="",
                seeds=len(seeds),
                art_per_1000=median(art),
                ratio=paired_ratio(art, base, floor=ART_FLOOR),
                p50_seconds=median({s: by[name].p50_seconds for s, by in seeds.items()}),
                p99_seconds=median({s: by[name].p99_seconds for s, by in seeds.items()}),
            )
        )
    peers = [r for r in rows if r.name in PEERS and r.seeds]
    best = min(peers, key=lambda r: r.art_per_1000).name if peers else ""

    def ours(field: str, floor: float) -> Ratio | None:
        mine, theirs = of.get(OURS, []), of.get(best, [])
        return paired_ratio(_by_seed(mine, field), _by_seed(theirs, field), floor=floor)

    return ScenarioReport(
        scenario=scenario,
        rows=rows,
        bounds=tuple(simulated),
        best_peer=best,
        art_to_best=ours("art_per_1000", ART_FLOOR),
        p99_to_best=ours("p99_seconds", 0.0),
    )


def _left_out(plan: Plan) -> str:
    """The warm-up, in words."""
    warm = sorted({warm_up_seconds(s, plan.seconds_of(s)) for s in plan.scenarios})
    span = " to ".join(f"{w:g}" for w in dict.fromkeys((warm[0], warm[-1])))
    return f"The first {span} s of a run warm up and are left out."


def notes(plan: Plan, results: Results) -> str:
    """What a reader of the tables must know, then what is missing and what went wrong."""
    hints = ", ".join(f"{b.label} ({b.hint})" for b in plan.balancers if b.hint)
    lines = [
        "Medians over seeds; ratios are paired, geometric means with 95% intervals "
        f"(ART + {ART_FLOOR:g}). A failed request counts as ten deadlines late. {_left_out(plan)}",
        "Bounds are simulated on the same requests, by rules that know more than any balancer can.",
    ]
    if hints:
        lines.append(f"* was told more than the others: {hints}.")
    lines += [f"{name} is missing: {why}" for name, why in results.missing.items()]
    return "\n".join([*lines, *results.problems])


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


def write_json(plan: Plan, results: Results, path: Path) -> None:
    """Write everything. Raises TrimtabError when the file cannot be written."""
    scenarios = {}
    for scenario in plan.scenarios:
        report = scenario_report(plan, results, scenario)
        scenarios[scenario.name] = {
            "description": scenario.description,
            "capacity_per_second": scenario.capacity_per_second,
            "requests_per_second": scenario.requests_per_second,
            "seconds": plan.seconds_of(scenario),
            "rows": [asdict(r) for r in report.rows],
            "bounds": [asdict(r) for r in report.bounds],
            "best_peer": report.best_peer,
            "art_to_best": report.art_to_best and asdict(report.art_to_best),
            "p99_to_best": report.p99_to_best and asdict(report.p99_to_best),
        }
    data = {
        "format": FORMAT,
        **machine(),
        "seeds": list(plan.seeds),
        "workers": plan.workers,
        "base": BASE,
        "scenarios": scenarios,
        "comparisons": [asdict(c) for c in compare(plan, results)],
        "missing": results.missing,
        "problems": results.problems,
        "outcomes": [asdict(o) for o in results.outcomes],
    }
    beside = path.with_suffix(".part")
    try:
        beside.write_text(
            json.dumps(_finite(data), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        beside.replace(path)
    except OSError as error:
        raise TrimtabError(f"cannot write {path}: {error.strerror or error}") from None
