"""Many balancers, one window: differences of each one's reports, summed over all.

Reports in columns (`columns`) are subtracted and added as arrays, a balancer at a time; what that
cannot do exactly as `window` does (a counter that went back, peers that changed) goes through a
`Meter`, as do sources without columns. Both give the same numbers; a test compares them.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from trimtab.columns import Columns, Layout, Pairs, address_counters, pair_counters
from trimtab.model import Connections, Snapshot, Window
from trimtab.sums import merge
from trimtab.window import ROUNDING_RATIO, Meter

__all__ = ["Fleet"]

# Windows as objects take 3 kB a pair: so many are held at once, of however many balancers whose
# peers changed in the same second. (Of servers that were idle at all of them the mean rate then
# weighs the first balancers less.)
FOLD: Final = 4

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
                if len(windows) == FOLD:
                    windows = [merge(windows)]
        windows += [s.window() for s in sums.values() if s.instances]
        return merge(windows) if windows else None


def _comparable(last: Snapshot, snapshot: Snapshot) -> bool:
    """Whether both have columns of one layout, one after the other."""
    return (
        isinstance(last.pairs, Pairs)
        and isinstance(snapshot.pairs, Pairs)
        and last.pairs.columns.layout is snapshot.pairs.columns.layout
        and last.clock_seconds < snapshot.clock_seconds
        and snapshot.loaded_seconds is None
    )


class _Sum:
    """The sum of windows of balancers with one layout."""

    def __init__(self, layout: Layout) -> None:
        pairs, servers = layout.pairs, len(layout.addresses)
        self.layout = layout
        self.instances = 0
        self.seconds = 0.0
        # As in `Columns`; gauges are beside them.
        self.whole: Any = np.zeros(layout.whole["completions_at"].stop, np.int64)
        self.real: Any = np.zeros(layout.real["ejection_seconds"].stop)
        self.in_flight: Any = np.zeros(pairs)
        # Rate and error ratio by server, weighted by busy seconds, and not.
        self.weighted: Any = np.zeros((2, servers))
        self.plain: Any = np.zeros((2, servers))
        self.ejections: Any = np.zeros(servers, np.int64)
        self.down: Any = np.ones(servers, np.int64)
        self.ejection: list[str] = [""] * servers
        self.ejection_seconds: Any = np.zeros(servers)
        self.waiting: dict[str, float] = {}
        self.connections = dict.fromkeys(_GAUGES, 0)
        self.unfollowed = True
        # Of each balancer in turn: large arrays are not taken from the system a hundred times.
        self._whole: Any = np.empty_like(self.whole)
        self._real: Any = np.empty_like(self.real)
        self._nothing = Columns(layout, np.zeros_like(self.whole), np.zeros_like(self.real), ())

    def add(self, earlier: Snapshot, later: Snapshot) -> bool:
        """Add what happened between; False, and nothing is added, when a counter went back."""
        after: Columns = later.pairs.columns  # type: ignore[attr-defined]
        layout = self.layout
        waited = earlier.waiting
        if earlier.start == later.start:
            before: Columns = earlier.pairs.columns  # type: ignore[attr-defined]
        else:
            # nginx began anew: all that it counted belongs to the window.
            before, waited = self._nothing, {}
        rising, growing, times = layout.rising, layout.growing, layout.times
        whole = np.subtract(after.whole[rising], before.whole[rising], out=self._whole[rising])
        real = np.subtract(after.real[growing], before.real[growing], out=self._real[growing])
        if whole.min(initial=0) < 0:
            return False
        if real.min(initial=0.0) < 0:
            if (real[times] < -ROUNDING_RATIO * before.real[times]).any():
                return False
            np.maximum(real, 0.0, out=real)
        seconds = later.clock_seconds - earlier.clock_seconds
        self.whole[rising] += whole
        self.real[growing] += real
        # The integral is exact; a source without one leaves the mean of two readings.
        integral, in_flight = layout.real["in_flight_seconds"], layout.whole["in_flight"]
        known = after.real[integral] > 0
        if known.all():
            self.in_flight += real[integral] / seconds
        else:
            mean = (before.whole[in_flight] + after.whole[in_flight]) / 2
            self.in_flight += np.where(known, real[integral] / seconds, mean)
        gauges = after.real[layout.ratings].reshape(2, -1)
        self.weighted += gauges * real[layout.real["busy_seconds"]]
        self.plain += gauges
        self._add_ejections(before, after)
        for name, held in later.waiting.items():
            half = (waited.get(name, held) + held) / 2
            self.waiting[name] = self.waiting.get(name, 0.0) + half
        for gauge in _GAUGES:
            self.connections[gauge] += getattr(later.connections, gauge)
        self.unfollowed &= later.generation == 0
        self.seconds = max(self.seconds, seconds)
        self.instances += 1
        return True

    def _add_ejections(self, before: Columns, after: Columns) -> None:
        whole, real = self.layout.whole, self.layout.real
        now = after.whole[whole["ejections"]]
        self.ejections += np.maximum(now - before.whole[whole["ejections"]], 0)
        until = after.real[real["ejection_seconds"]]
        np.maximum(self.ejection_seconds, until, out=self.ejection_seconds)
        if any(after.ejection):
            both = zip(self.ejection, after.ejection, strict=True)
            self.ejection = [first or other for first, other in both]
        np.minimum(self.down, after.whole[whole["down"]], out=self.down)

    def window(self) -> Window:
        """The sum as a window."""
        fields = self.layout.fields(self.whole, self.real)
        # Gauges are means by busy time, and plain ones where nobody was busy.
        busy = fields["busy_seconds"]
        rate, error_ratio = np.where(
            busy > 0, self.weighted / np.where(busy > 0, busy, 1.0), self.plain / self.instances
        )
        fields |= {
            "rate": rate, "error_ratio": error_ratio, "down": self.down,
            "ejections": self.ejections, "ejection_seconds": self.ejection_seconds,
        }  # fmt: skip
        listed = {name: array.tolist() for name, array in fields.items()}
        in_flight = self.in_flight.tolist()
        return Window(
            seconds=self.seconds,
            pairs={
                name: {a: pair_counters(listed, r, in_flight[r]) for a, r in peers.items()}
                for name, peers in self.layout.rows.items()
            },
            addresses={
                address: address_counters(listed, n, self.ejection[n])
                for address, n in self.layout.servers.items()
            },
            waiting=self.waiting,
            connections=Connections(**self.connections),
            instances=self.instances,
            unfollowed=self.unfollowed,
        )
