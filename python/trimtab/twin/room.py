"""The waiting room: `nginx/lua/resty/trimtab/room.lua` in Python, step by step.

`tests/data/golden/rule.json` holds both to the same binds. The Lua file says what the order means
and where its constants come from.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from trimtab.twin import rule

__all__ = ["Class", "Room", "View", "Waiter"]

CLAIMS: Final = 32
DEADLINE_SERVICES: Final = 4.0
PATIENCE_SERVICES: Final = 1.0
TURNS: Final = 8


@dataclass(slots=True, kw_only=True)
class Waiter:
    """A waiting request; `arrival` in seconds on the room's clock."""

    arrival: float
    number: int = 0


@dataclass(slots=True, kw_only=True)
class Class:
    """One class as the rule sees it, and those of it who wait. `deadline` 0: not known."""

    service: float
    deadline: float
    server: Sequence[int]
    weight: Sequence[float]
    affinity: Sequence[float]
    skip: Sequence[float]
    waiting: deque[Waiter] = field(default_factory=deque)

    @property
    def deadline_seconds(self) -> float:
        """The deadline in use."""
        return self.deadline if self.deadline > 0 else DEADLINE_SERVICES * self.service

    def is_late(self, waiter: Waiter, now: float) -> bool:
        """Whether it can no longer be in time."""
        return now > waiter.arrival + self.deadline_seconds - self.service

    def urgency(self, waiter: Waiter, now: float, mean_service: float) -> float:
        """How urgent a waiting request of this class is, per square second."""
        return rule.urgency(now, waiter.arrival, self.deadline_seconds, self.service, mean_service)


@dataclass(slots=True, kw_only=True)
class View:
    """The servers as a drain finds them, each list by server; `in_flight` and `work` change."""

    in_flight: list[float]
    work: list[float]
    rate: Sequence[float]
    error: Sequence[float]
    slots: Sequence[float]
    sharing: Sequence[float]
    limit: Sequence[float]
    mean_service: float
    uniform: float

    @property
    def free(self) -> float:
        """Requests that may go out before every server is at its limit."""
        return sum(max(0.0, k - n) for k, n in zip(self.limit, self.in_flight, strict=True))


class Room:
    """First come first served within a class; the classes by the urgency of their heads, but every
    eighth turn at the latest is that of the oldest who is late."""

    def __init__(self, classes: Sequence[Class]) -> None:
        self._classes = classes
        self._bound = 0

    def __len__(self) -> int:
        return sum(len(c.waiting) for c in self._classes)

    def drain(self, view: View, now: float, bind: Callable[[Class, Waiter, int], None]) -> None:
        """Bind what can be bound: `bind` is called with class, waiter (removed), and peer."""
        cursor = [0] * len(self._classes)
        claims = [0.0] * len(self._classes)
        free = view.free
        is_turn = self._bound >= TURNS - 1
        while free > 0:
            j = self._next(cursor, claims, view, now, is_turn)
            if j < 0:
                return
            kind = self._classes[j]
            waiter = kind.waiting[cursor[j]]
            p, has_room = rule.claim(
                len(kind.server), kind.server, kind.weight, kind.affinity, kind.skip,
                kind.service, view.in_flight, view.work, view.rate, view.error, view.slots,
                view.sharing, view.limit, now - waiter.arrival > PATIENCE_SERVICES * kind.service,
                view.uniform, [0.0] * len(kind.server),
            )  # fmt: skip
            if p < 0:
                claims[j] = math.inf
                continue
            i = kind.server[p]
            view.in_flight[i] += 1
            view.work[i] += kind.service * kind.affinity[p]
            if has_room:
                free -= 1
                self._bound = 0 if is_turn else self._bound + 1
                is_turn = self._bound >= TURNS - 1
                del kind.waiting[cursor[j]]
                bind(kind, waiter, p)
            else:
                claims[j] += 1
                cursor[j] += 1
                is_turn = False

    def _next(
        self, cursor: list[int], claims: list[float], view: View, now: float, is_turn: bool
    ) -> int:
        """The class whose cursor is next; -1 when there is none."""
        best, most, oldest, late = -1, -1.0, math.inf, -1
        for c, each in enumerate(self._classes):
            if claims[c] < CLAIMS and cursor[c] < len(each.waiting):
                waiter = each.waiting[cursor[c]]
                value = each.urgency(waiter, now, view.mean_service)
                if value > most:
                    best, most = c, value
                if waiter.arrival < oldest and each.is_late(waiter, now):
                    late, oldest = c, waiter.arrival
        return late if is_turn and late >= 0 else best
