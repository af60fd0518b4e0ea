"""The tables of `trimtab bench learning --twin`: one a scenario, and one of all scenarios.

A mean over seeds can hide one bad run, and where some runs gain much and others nothing its
interval is wide to both sides though none was worse. So each ratio comes with that of the worst
seed, and the last table ends with what is above the aim.
"""

from collections.abc import Sequence
from typing import Final

from trimtab import terminal
from trimtab.bench.statistics import median
from trimtab.training.comparison import AGAIN, BASE, HALVES, LEAST_CONN, UNGUARDED, Comparison

__all__ = ["MOST_RATIO", "comparison", "every_scenario", "titled"]

# Issue and docs: never more than this of the heuristic's ART, during and after learning.
MOST_RATIO: Final = 1.05

# Nobody promises anything of these.
WITHOUT_GUARD: Final = (BASE, AGAIN, LEAST_CONN, UNGUARDED)

RATIOS: Final = tuple(text for h in HALVES for text in (f"to {BASE} {h} [95%]", "worst"))


def titled(title: str, header: list[str], rows: list[list[str]], *, markdown: bool) -> str:
    """A table under its title, for the terminal or as Markdown."""
    if not markdown:
        return f"{title}\n{terminal.table(header, rows)}"
    lines = [f"| {' | '.join(row)} |" for row in ([header, ["---"] * len(header), *rows])]
    return "\n".join([f"{title}:", "", *lines])


def comparison(of: Comparison, who: Sequence[str], seeds: int, *, hold: str, markdown: bool) -> str:
    """The table of one scenario."""
    header = ["in force", *(f"ART/1000 {h}" for h in HALVES), *RATIOS, "promoted, minutes"]
    rows = []
    for name in who:
        if name not in of.art:
            rows.append([name, *["-"] * (len(header) - 1)])
            continue
        arts = [f"{median(of.art[name][h]):.2f}" for h in HALVES]
        rows.append([name, *arts, *_ratios(of, name), _promoted(of, name, seeds)])
    title = (
        f"{of.scenario.name}, in the twin, hold = {hold}: "
        f"{of.scenario.requests_per_second:.0f} requests/s, "
        f"{seeds} seeds of {of.seconds:g} s; medians, paired ratios [95%], that of the worst seed"
    )
    return titled(title, header, rows, markdown=markdown)


def every_scenario(
    compared: Sequence[Comparison], who: Sequence[str], seeds: int, *, hold: str, markdown: bool
) -> str:
    """One row for each scenario and each of `who` but the heuristic, and what is above the aim."""
    header = ["scenario", "in force", f"ART/1000 of {BASE}", *RATIOS, "promoted, minutes"]
    rows = []
    seed_above: list[str] = []
    interval_above: list[str] = []
    for of in compared:
        for name in who:
            if name == BASE or name not in of.art:
                continue
            base = " ".join(f"{median(of.art[BASE][h]):.2f}" for h in HALVES)
            rows.append(
                [of.scenario.name, name, base, *_ratios(of, name), _promoted(of, name, seeds)]
            )
            for half in () if name in WITHOUT_GUARD else HALVES:
                worst, ratio = of.worst(name, half), of.ratio(name, half)
                said = f"{of.scenario.name}, {name}, {half} {ratio}"
                if worst is not None and worst > MOST_RATIO:
                    seed_above.append(f"{said}, worst {worst:.2f}")
                elif ratio is not None and not ratio.high <= MOST_RATIO:
                    interval_above.append(said)
    title = (
        f"Every scenario, in the twin, hold = {hold}: {seeds} seeds of {compared[0].seconds:g} s, "
        "the same requests for all; medians during and after, paired ratios [95%], the worst seed's"
    )
    table = titled(title, header, rows, markdown=markdown)
    return (
        f"{table}\n\nAbove {MOST_RATIO} in a seed: {'; '.join(seed_above) or 'none'}.\n"
        "Above it with the upper end of the interval, though in no seed: "
        f"{'; '.join(interval_above) or 'none'}."
    )


def _ratios(of: Comparison, who: str) -> list[str]:
    found = []
    for half in HALVES:
        worst = of.worst(who, half)
        found += [str(of.ratio(who, half)), "-" if worst is None else f"{worst:.2f}"]
    return found


def _promoted(of: Comparison, who: str, seeds: int) -> str:
    minutes = of.promotion_minutes(who)
    count = len(of.promoted.get(who, {}))
    return "-" if minutes is None else f"{minutes:.1f} ({count} of {seeds})"
