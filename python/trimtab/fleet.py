"""Many balancers, one window: differences of each one's reports, summed over all.

Reports in columns (`columns`) are subtracted and added as arrays, a balancer at a time; what that
cannot do exactly as `window` does (a counter that went back, peers that changed) goes through a
`Meter`, as do sources without columns. Both give the same numbers; a test compares them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.columns import COUNTS, PAIR_SUMS, Columns, Layout, Pairs, pair_counters
from trimtab.model import AddressCounters, Connections, Snapshot, Window
from trimtab.window import ROUNDING_RATIO, Meter, merge

__all__ = ["Fleet"]

_GAUGES = ("active", "reading", "writing", "waiting")


class Fleet:
    """Windows of all balancers together, one reading after another. Used by one thread.

    A balancer that is not in a reading is forgotten: it has expired, and begins anew if it returns.
    One that had nothing new since the last reading adds nothing, and its next window is longer.
    """

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def take(self, snapshots: Sequence[Snapshot]) -> Window | None:
        """The merged window since the last reading; None when no balancer had anything new."""
        meters = self._meters
        self._meters = {s.instance: meters.get(s.instance) or Meter() for s in snapshots}
        # A report may hold any finite double; what overflows is infinite, as in `window`.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._take(snapshots)

    def _take(self, snapshots: Sequence[Snapshot]) -> Window | None:
        sums: dict[Layout, _Sum] = {}
        windows = []
        for snapshot in snapshots:
            meter = self._meters[snapshot.instance]
            last = meter.last
            if last is snapshot:
                continue
            if last is not None and _comparable(last, snapshot):
                layout = snapshot.pairs.columns.layout  # type: ignore[attr-defined]
                if layout not in sums:
                    sums[layout] = _Sum(layout)
                if sums[layout].add(last, snapshot):
                    meter.go_on(snapshot)
                    continue
            one = meter.take(snapshot)
            if one is not None:
                windows.append(one)
        windows += [s.window() for s in sums.values() if s.instances]
        return merge(windows) if windows else None


def _comparable(last: Snapshot, snapshot: Snapshot) -> bool:
    """Whether both have columns of one layout, one after the other within one start."""
    return (
        isinstance(last.pairs, Pairs)
        and isinstance(snapshot.pairs, Pairs)
        and last.pairs.columns.layout is snapshot.pairs.columns.layout
        and last.start == snapshot.start
        and last.clock_seconds < snapshot.clock_seconds
        and snapshot.loaded_seconds is None
    )


class _Sum:
    """The sum of windows of balancers with one layout."""

    def __init__(self, layout: Layout) -> None:
        pairs = sum(len(peers) for _, peers in layout.upstreams)
        servers = len(layout.addresses)
        self.layout = layout
        self.instances = 0
        self.seconds = 0.0
        self.sums: Any = np.zeros((pairs, len(PAIR_SUMS)))
        self.in_flight: Any = np.zeros(pairs)
        self.rows: Any = 0
        self.completions: Any = 0
        self.level_seconds: Any = 0.0
        # By server: busy seconds and ejections; rate and error ratio weighted with the first of
        # these, and not.
        self.rising: Any = np.zeros((servers, 2))
        self.weighted: Any = np.zeros((servers, 2))
        self.plain: Any = np.zeros((servers, 2))
        self.down: Any = np.ones(servers, bool)
        self.ejection: list[str] = [""] * servers
        self.ejection_seconds: Any = np.zeros(servers)
        self.waiting: dict[str, float] = {}
        self.connections = dict.fromkeys(_GAUGES, 0)
        self.unfollowed = True

    def add(self, earlier: Snapshot, later: Snapshot) -> bool:
        """Add what happened between; False, and nothing is added, when a counter went back."""
        before: Columns = earlier.pairs.columns  # type: ignore[attr-defined]
        after: Columns = later.pairs.columns  # type: ignore[attr-defined]
        sums = after.sums - before.sums
        rows = after.rows - before.rows
        completions = after.completions - before.completions
        counts, times = sums[:, 1:COUNTS], sums[:, COUNTS:-1]
        if (
            counts.size
            and (
                counts.min() < 0
                or rows.min() < 0
                or (times < -ROUNDING_RATIO * before.sums[:, COUNTS:-1]).any()
            )
        ) or (completions.size and completions.min() < 0):
            return False
        seconds = later.clock_seconds - earlier.clock_seconds
        np.maximum(sums, 0.0, out=sums)
        self.sums += sums
        # The integral is exact; a source without one leaves the mean of two readings.
        self.in_flight += np.where(
            after.sums[:, -1] > 0,
            sums[:, -1] / seconds,
            (before.sums[:, 0] + after.sums[:, 0]) / 2,
        )
        self.rows = self.rows + rows
        self.completions = self.completions + completions
        self.level_seconds = self.level_seconds + np.maximum(after.seconds - before.seconds, 0.0)
        rising = np.maximum(after.gauges[:, :2] - before.gauges[:, :2], 0.0)
        self.rising += rising
        self.weighted += after.gauges[:, 2:4] * rising[:, :1]
        self.plain += after.gauges[:, 2:4]
        np.maximum(self.ejection_seconds, after.gauges[:, 4], out=self.ejection_seconds)
        if any(after.ejection):
            both = zip(self.ejection, after.ejection, strict=True)
            self.ejection = [first or other for first, other in both]
        self.down &= after.down
        for name, held in later.waiting.items():
            mean = (earlier.waiting.get(name, held) + held) / 2
            self.waiting[name] = self.waiting.get(name, 0.0) + mean
        for gauge in _GAUGES:
            self.connections[gauge] += getattr(later.connections, gauge)
        self.unfollowed &= later.generation == 0
        self.seconds = max(self.seconds, seconds)
        self.instances += 1
        return True

    def window(self) -> Window:
        """The sum as a window."""
        sums, rows, in_flight = self.sums.tolist(), self.rows.tolist(), self.in_flight.tolist()
        # Gauges are means by busy time, and plain ones where nobody was busy.
        busy = self.rising[:, :1]
        gauges = np.where(
            busy > 0, self.weighted / np.where(busy > 0, busy, 1.0), self.plain / self.instances
        ).tolist()
        return Window(
            seconds=self.seconds,
            pairs={
                name: {a: pair_counters(sums[r], rows[r], in_flight[r]) for a, r in peers.items()}
                for name, peers in self.layout.rows.items()
            },
            addresses={
                address: AddressCounters(
                    busy_seconds=float(self.rising[n, 0]),
                    completions_at=tuple(self.completions[n].tolist()),
                    seconds_at=tuple(self.level_seconds[n].tolist()),
                    rate=gauges[n][0],
                    error_ratio=gauges[n][1],
                    down=bool(self.down[n]),
                    ejections=int(self.rising[n, 1]),
                    ejection=self.ejection[n],
                    ejection_seconds=float(self.ejection_seconds[n]),
                )
                for address, n in self.layout.servers.items()
            },
            waiting=self.waiting,
            connections=Connections(**self.connections),
            instances=self.instances,
            unfollowed=self.unfollowed,
        )
