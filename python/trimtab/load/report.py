"""What a run shows to people: progress while it runs, and a table after it."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from trimtab.load.client import Progress
from trimtab.load.records import Spread, Summary
from trimtab.load.result import Result

__all__ = ["ProgressLine", "table"]

BAR_WIDTH: Final = 24
# Without a terminal a line now and then, for logs.
PLAIN_SECONDS: Final = 10.0


def _duration(seconds: float) -> str:
    whole = max(0, math.ceil(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class ProgressLine:
    """Shows `Progress`: a bar on a terminal, plain lines elsewhere. Call `close` at the end."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        label: str = "load",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._label = label
        self._clock = clock
        self._bar = self._stream.isatty()
        self._shown_at = -math.inf
        self._dirty = False

    def __call__(self, progress: Progress) -> None:
        """Show how far the run is."""
        left = progress.seconds - progress.elapsed_seconds
        text = (
            f"{_duration(left)} left, {progress.sent} of {progress.total} sent, "
            f"{progress.in_flight} in flight, {progress.failed} failed"
        )
        if self._bar:
            share = min(1.0, max(0.0, progress.elapsed_seconds / progress.seconds))
            done = int(share * BAR_WIDTH)
            line = f"{self._label} [{'#' * done}{'.' * (BAR_WIDTH - done)}] {text}"
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{line[:width]:<{width}}")
            self._stream.flush()
            self._dirty = True
        elif self._clock() >= self._shown_at + PLAIN_SECONDS:
            self._shown_at = self._clock()
            self._stream.write(f"{self._label}: {text}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the line of the bar."""
        if self._dirty:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{'':<{width}}\r")
            self._stream.flush()
            self._dirty = False


def _ms(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    value = 1000 * seconds
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _row(name: str, s: Summary) -> list[str]:
    def times(spread: Spread, *which: str) -> list[str]:
        return [_ms(getattr(spread, w)) for w in which]

    return [
        name,
        str(s.requests),
        f"{s.throughput_per_second:.1f}",
        *times(s.response, "p50", "p90", "p99", "p999", "max"),
        *times(s.service, "p50", "p99"),
        "-" if s.art_per_1000 is None else f"{s.art_per_1000:.1f}",
        str(s.failed),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            c.ljust(w) if k == 0 else c.rjust(w)
            for k, (c, w) in enumerate(zip(r, widths, strict=True))
        )
        for r in rows
    ]


def table(result: Result) -> str:
    """The figures of a run as text: a table, then rates, lag, failures, peers and the verdict."""
    summaries = result.summaries()
    total = result.summary()
    head = ["", "", "2xx", "response time, ms", "", "", "", "", "service, ms", "", "ART per", ""]
    names = ["class", "requests", "per s", "p50", "p90", "p99", "p99.9", "max", "p50", "p99"]
    rows = [[*names, "1000", "failed"], *(_row(n, s) for n, s in summaries.items())]
    if len(summaries) > 1:
        rows.append(_row("all", total))
    lines = _aligned(rows)
    widths = [max(len(r[k]) for r in rows) for k in range(len(head))]
    starts = [sum(widths[:k]) + 2 * k for k in range(len(head))]
    title = [" "] * (len(lines[0]) + 20)
    for k, text in enumerate(head):
        title[starts[k] : starts[k] + len(text)] = text
    lines.insert(0, "".join(title).rstrip())
    lag = result.lag
    lines += [
        "",
        f"{result.seconds:g} s from {result.processes} process"
        f"{'es' if result.processes > 1 else ''}, seed {result.schedule.seed}: "
        f"offered {result.offered_per_second:.1f}/s, sent {result.achieved_per_second:.1f}/s; "
        f"send lag p50 {_ms(lag.p50)}, p99 {_ms(lag.p99)}, max {_ms(lag.max)} ms",
    ]
    for name, summary in summaries.items():
        kinds = dict(summary.failures)
        if kinds.pop("status", 0):
            others = {k: v for k, v in summary.statuses.items() if not 200 <= k < 300}
            kinds = {**{f"status {k}": v for k, v in others.items()}, **kinds}
        if kinds:
            lines.append(f"{name} failed: " + ", ".join(f"{k} {v}" for k, v in kinds.items()))
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
