"""What all balancers say of each server now, for those who look.

Of a thousand balancers with a hundred servers each that is a hundred thousand rows: reports in
columns are summed as arrays, a report at a time; others an object at a time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.columns import Columns, Layout, Pairs
from trimtab.model import Snapshot

__all__ = ["servers"]


def servers(snapshots: Sequence[Snapshot]) -> dict[str, dict[str, Any]]:
    """By address what the balancers' last reports say of it: "in_flight" (their sum, over all
    upstreams), "rate" (their mean) and "error_ratio" (their worst), None where nobody says, and
    "down": how many of them send it nothing, "ejected": how many have it ejected, "ejection": why
    the first of these has, and "ejection_seconds": until when at most."""
    found: dict[str, dict[str, Any]] = {}
    sums: dict[Layout, _Sum] = {}
    for snapshot in snapshots:
        if isinstance(snapshot.pairs, Pairs):
            columns = snapshot.pairs.columns
            if columns.layout not in sums:
                sums[columns.layout] = _Sum(columns.layout)
            sums[columns.layout].add(columns)
        else:
            _add(found, snapshot)
    for of in sums.values():
        of.put(found)
    for server in found.values():
        said = server.pop("said")
        if said:
            server["rate"] /= said
        else:
            server["rate"] = None
    return found


def _server(found: dict[str, dict[str, Any]], address: str) -> dict[str, Any]:
    return found.setdefault(
        address,
        {
            "in_flight": 0.0,
            "rate": 0.0,
            "error_ratio": None,
            "down": 0,
            "ejected": 0,
            "ejection": "",
            "ejection_seconds": 0.0,
            "said": 0,  # how many balancers
        },
    )


def _add(found: dict[str, dict[str, Any]], snapshot: Snapshot) -> None:
    for peers in snapshot.pairs.values():
        for address, pair in peers.items():
            _server(found, address)["in_flight"] += pair.in_flight
    for address, counters in snapshot.addresses.items():
        server = _server(found, address)
        server["said"] += 1
        server["rate"] += counters.rate
        server["error_ratio"] = max(server["error_ratio"] or 0.0, counters.error_ratio)
        server["down"] += counters.down
        server["ejected"] += bool(counters.ejection)
        server["ejection"] = server["ejection"] or counters.ejection
        server["ejection_seconds"] = max(server["ejection_seconds"], counters.ejection_seconds)


class _Sum:
    """Reports of one layout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        count = len(layout.addresses)
        self._said = 0
        self._in_flight: Any = np.zeros(layout.pairs)
        self._rate: Any = np.zeros(count)
        self._error: Any = np.zeros(count)
        self._down: Any = np.zeros(count, np.int64)
        self._until: Any = np.zeros(count)
        # Few are ejected.
        self._ejected: dict[str, list[str]] = {}

    def add(self, of: Columns) -> None:
        """One more."""
        whole, real = self._layout.whole, self._layout.real
        self._said += 1
        self._in_flight += of.whole[whole["in_flight"]]
        self._down += of.whole[whole["down"]] != 0
        # A rate is any finite double: their sum may be infinite.
        with np.errstate(over="ignore"):
            self._rate += of.real[real["rate"]]
        np.maximum(self._error, of.real[real["error_ratio"]], out=self._error)
        np.maximum(self._until, of.real[real["ejection_seconds"]], out=self._until)
        if any(of.ejection):
            for address, why in zip(self._layout.addresses, of.ejection, strict=True):
                if why:
                    self._ejected.setdefault(address, []).append(why)

    def put(self, found: dict[str, dict[str, Any]]) -> None:
        """Add the sum to what was found."""
        in_flight = self._in_flight.tolist()
        for rows in self._layout.rows.values():
            for address, row in rows.items():
                _server(found, address)["in_flight"] += in_flight[row]
        columns = (self._rate, self._error, self._down, self._until)
        listed = zip(self._layout.addresses, *(c.tolist() for c in columns), strict=True)
        for address, rate, error, down, until in listed:
            server = _server(found, address)
            ejected = self._ejected.get(address, [])
            server["said"] += self._said
            server["rate"] += rate
            server["error_ratio"] = max(server["error_ratio"] or 0.0, error)
            server["down"] += down
            server["ejected"] += len(ejected)
            server["ejection"] = server["ejection"] or next(iter(ejected), "")
            server["ejection_seconds"] = max(server["ejection_seconds"], until)
