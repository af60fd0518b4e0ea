"""How many slots servers have: as configured, and as completions by concurrency show.

`fits` has the likelihood; the sums that go into it are kept here, and forget exponentially.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from trimtab.fits import Slots, least_slots, slots
from trimtab.model import CONCURRENCY_LEVELS, Window
from trimtab.saved import finite

__all__ = ["Concurrency"]

# Slots change with a restart of the server, if ever: remember long, the likelihood needs it.
SLOTS_FORGET_SECONDS: Final = 600.0


class Concurrency:
    """Takes windows of one balancer in, gives the slots of servers.

    Args:
        given: configured slots by address; None where unknown. Also the list of known servers.
    """

    def __init__(self, given: Mapping[str, float | None]) -> None:
        self._given = dict(given)
        zeros = np.zeros(CONCURRENCY_LEVELS)
        self._done = {address: zeros.copy() for address in given}
        self._time = {address: zeros.copy() for address in given}
        self._found: dict[str, Slots] = {}

    def add(self, of: Window) -> None:
        """Take one window in."""
        keep = math.exp(-of.seconds / SLOTS_FORGET_SECONDS)
        for address, counters in of.addresses.items():
            if address not in self._done or len(counters.completions_at) != CONCURRENCY_LEVELS:
                continue
            if len(counters.seconds_at) != CONCURRENCY_LEVELS:
                continue
            self._done[address] = self._done[address] * keep + counters.completions_at
            self._time[address] = self._time[address] * keep + counters.seconds_at

        self._find()

    def _find(self) -> None:
        self._found = {
            address: found
            for address in self._done
            if (
                found := slots(
                    self._done[address].tolist(),
                    self._time[address].tolist(),
                    self._found.get(address),
                )
            )
        }

    def found(self) -> dict[str, Slots]:
        """By address the slots that were measured."""
        return dict(self._found)

    def least(self) -> dict[str, int]:
        """By address the slots that a server has at least, where they are not sure."""
        return {
            a: least_slots(self._done[a].tolist(), self._time[a].tolist())
            for a in self._done
            if not ((k := self._found.get(a)) and k.sure)
        }

    def exact(self) -> dict[str, int]:
        """By address the slots that are known to one, configured ones unless they are wrong."""
        exact: dict[str, int] = {}
        for address, given in self._given.items():
            found = self._found.get(address)
            if found and found.low == found.high and given in (None, found.value):
                exact[address] = found.value
            elif given and not (found and found.sure):
                exact[address] = round(given)
        return exact

    def of(self, address: str) -> float | None:
        """The slots of a server as far as they are known."""
        given, found = self._given.get(address), self._found.get(address)
        if given is None and found and found.sure:
            return float(found.value)
        return given

    def to_state(self) -> dict[str, Any]:
        """The sums as JSON-able data."""
        return {
            "done": {a: d.tolist() for a, d in self._done.items() if d.any()},
            "time": {a: t.tolist() for a, t in self._time.items() if t.any()},
            "slots": [[a, s.value, s.low, s.high] for a, s in self._found.items()],
        }

    def restored(self, state: Mapping[str, Any]) -> "Concurrency":
        """These servers with what `to_state` gave; see `Estimator.restore`."""
        other = Concurrency(self._given)
        for own, mine, key in (
            (other._done, self._done, "done"),
            (other._time, self._time, "time"),
        ):
            rows = {a: np.array([finite(v) for v in row]) for a, row in state[key].items()}
            if any(len(values) != CONCURRENCY_LEVELS for values in rows.values()):
                raise ValueError(f"a row of other than {CONCURRENCY_LEVELS} concurrency levels")
            own.update(mine)
            own.update({a: values for a, values in rows.items() if a in own})
        # Absent in states of version 0.1.
        other._found = {
            str(a): Slots(value=int(value), low=int(low), high=int(high))
            for a, value, low, high in state.get("slots", ())
            if a in self._given and 1 <= int(low) <= int(value) <= int(high)
        }
        other._find()
        return other
