"""What a run shows to people: progress while it runs, and a table after it."""

import math
from collections.abc import Callable
from typing import Final

from trimtab import terminal
from trimtab.load.client import Progress
from trimtab.load.records import Summary
from trimtab.load.result import Result

__all__ = ["show_progress", "table"]

HEADER: Final = (
    "class", "requests", "2xx/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms",
    "service p50", "service p99", "ART/1000", "failed",
)  # fmt: skip

# What a narrow terminal does without, in this order; the JSON result has everything.
_EXPENDABLE: Final = ("service p50", "service p99", "max ms", "2xx/s")


def show_progress(bar: terminal.Progress, label: str = "load") -> Callable[[Progress], None]:
    """What to call with the progress of a run, to draw it on `bar`."""

    def show(progress: Progress) -> None:
        note = (
            f"{progress.sent} of {progress.total} sent, {progress.in_flight} in flight, "
            f"{progress.failed} failed"
        )
        bar.update(progress.elapsed_seconds, label, note)

    return show


def _ms(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    value = 1000 * seconds
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _row(name: str, summary: Summary) -> list[str]:
    response, service = summary.response, summary.service
    return [
        name,
        str(summary.requests),
        f"{summary.throughput_per_second:.1f}",
        *map(_ms, (response.p50, response.p99, response.p999, response.max)),
        *map(_ms, (service.p50, service.p99)),
        "-" if summary.art_per_1000 is None else f"{summary.art_per_1000:.1f}",
        str(summary.failed),
    ]


def _failures(name: str, summary: Summary) -> list[str]:
    kinds = dict(summary.failures)
    if kinds.pop("status", 0):
        others = {k: v for k, v in summary.statuses.items() if not 200 <= k < 300}
        kinds = {**{f"status {k}": v for k, v in others.items()}, **kinds}
    text = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    return [f"{name} failed: {text}"] if text else []


def table(result: Result, columns: int | None = None) -> str:
    """The figures of a run as text: a table, then rates, lag, failures, peers and the verdict.

    The table is at most as wide as the terminal's `columns`; None: it has everything.
    """
    summaries = result.summaries()
    total = result.summary()
    rows = [_row(name, summary) for name, summary in summaries.items()]
    if len(summaries) > 1:
        rows.append(_row("all", total))
    lag = result.lag
    many = "es" if result.processes > 1 else ""
    lines = [
        terminal.fitted(HEADER, rows, [HEADER.index(name) for name in _EXPENDABLE], columns),
        "",
        f"{result.seconds:.4g} s from {result.processes} process{many}, "
        f"seed {result.schedule.seed}: offered {result.offered_per_second:.1f}/s, "
        f"sent {result.achieved_per_second:.1f}/s",
        f"send lag p50 {_ms(lag.p50)} ms, p99 {_ms(lag.p99)} ms "
        f"(bound {_ms(result.max_lag_seconds)} ms), max {_ms(lag.max)} ms",
    ]
    for name, summary in summaries.items():
        lines += _failures(name, summary)
    if total.peers:
        answered = sum(total.peers.values())
        shares = (f"{p} {100 * c / answered:.1f}%" for p, c in sorted(total.peers.items()))
        lines.append("answered by: " + ", ".join(shares))
    if result.not_sent:
        lines.append(f"interrupted: {result.not_sent} requests of the schedule were not sent")
    if result.valid:
        lines.append("the run is valid")
    else:
        lines.append("THE RUN IS NOT VALID: " + "; ".join(result.invalid_because))
    return "\n".join(lines)
