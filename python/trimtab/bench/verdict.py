"""Where Trimtab wins and where it loses: its runs against every other balancer's, seed by seed.

Ratios are Trimtab's to the other's, so above 1 is a loss. Ties are neither: a ratio within
`TIE` of 1, or an interval that holds 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.bench.runner import Plan, Results
from trimtab.bench.statistics import ART_FLOOR, Ratio, paired_ratio

__all__ = ["OURS", "Comparison", "compare", "headline", "lost"]

# Ours: what the comparisons are made with, and the names of its modes begin with it.
OURS: Final = "trimtab"

# A ratio this near to 1 is a tie, however narrow its interval.
TIE: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Trimtab to one other balancer in one scenario. `errors` is the difference of the ratios."""

    scenario: str
    other: str
    label: str
    hint: str
    art: Ratio
    p99: Ratio
    errors: float

    @property
    def art_verdict(self) -> str:
        """ "better", "worse" or "alike" in ART."""
        return _verdict(self.art)

    @property
    def p99_verdict(self) -> str:
        """ "better", "worse" or "alike" in the 99th percentile."""
        return _verdict(self.p99)

    def __str__(self) -> str:
        told = f" (told the {self.hint})" if self.hint else ""
        parts = [f"ART {self.art}", f"p99 {self.p99}"]
        if self.errors >= 0.0005:
            parts.append(f"errors +{100 * self.errors:.2f}%")
        return f"{self.scenario}: against {self.label}{told}: {', '.join(parts)}"


def _verdict(ratio: Ratio) -> str:
    # One seed has no interval (NaN): then the ratio alone decides.
    if ratio.mean > 1 + TIE and not ratio.low <= 1:
        return "worse"
    if ratio.mean < 1 - TIE and not ratio.high >= 1:
        return "better"
    return "alike"


def _by_seed(results: Results, scenario: str, balancer: str, figure: str) -> dict[int, float]:
    return {
        o.seed: float(getattr(o, figure))
        for o in results.outcomes
        if o.scenario == scenario and o.balancer == balancer
    }


def compare(plan: Plan, results: Results) -> list[Comparison]:
    """Trimtab against every balancer that is not one of its own modes, in the plan's order."""
    found = []
    for scenario in plan.scenarios:
        for other in plan.balancers:
            if other.name.startswith(OURS):
                continue
            (art, art_of), (p99, p99_of), (errors, errors_of) = (
                (
                    _by_seed(results, scenario.name, OURS, figure),
                    _by_seed(results, scenario.name, other.name, figure),
                )
                for figure in ("art_per_1000", "p99_seconds", "error_ratio")
            )
            art_ratio = paired_ratio(art, art_of, floor=ART_FLOOR)
            p99_ratio = paired_ratio(p99, p99_of)
            if art_ratio is None or p99_ratio is None:
                continue
            both = errors.keys() & errors_of.keys()
            found.append(
                Comparison(
                    scenario=scenario.name,
                    other=other.name,
                    label=other.label,
                    hint=other.hint,
                    art=art_ratio,
                    p99=p99_ratio,
                    errors=sum(errors[s] - errors_of[s] for s in both) / len(both),
                )
            )
    return found


def headline(comparisons: Sequence[Comparison]) -> str:
    """A sentence on ART and one on p99; empty without comparisons."""
    if not comparisons:
        return ""
    scenarios = list(dict.fromkeys(c.scenario for c in comparisons))
    count = {v: [c.art_verdict for c in comparisons].count(v) for v in ("better", "alike", "worse")}
    beaten = [
        s
        for s in scenarios
        if any(c.scenario == s and c.art_verdict == "worse" for c in comparisons)
    ]
    text = (
        f"Trimtab's ART is lower in {count['better']} of {len(comparisons)} comparisons with other "
        f"balancers ({len(scenarios)} scenario{'s' if len(scenarios) > 1 else ''}), "
        f"alike or undecided in {count['alike']}, and higher in {count['worse']}"
    )
    text += f" (in {', '.join(beaten)})." if beaten else "."
    p99 = {v: [c.p99_verdict for c in comparisons].count(v) for v in ("better", "worse")}
    return f"{text} Its p99 is lower in {p99['better']} and higher in {p99['worse']}."


def lost(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those in which Trimtab is worse in ART or p99, or fails more requests; the worst first."""
    worse = [
        c for c in comparisons if "worse" in (c.art_verdict, c.p99_verdict) or c.errors >= 0.0005
    ]
    return sorted(worse, key=lambda c: -max(c.art.mean, c.p99.mean))
