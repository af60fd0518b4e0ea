"""One emulated server as a queue in exact virtual time. No clock and no I/O in here.

All requests in service progress at the same rate, so one number V, the integral of that rate, is
enough: a request that starts with work w when V = v ends when V reaches v + w. With n present:

    fifo   min(n, slots) in service, the rest waits in order; rate = speed·thrash(n)
    ps     all n in service on `slots` cores; rate = speed·min(1, slots/n)·thrash(n)

    thrash(n) = max(floor, 1/(1 + ratio·(n - beyond))) beyond the stated number, else 1

The caller gives the time with every call. Ends and starts happen at their exact times even when
the caller comes late, so lateness of timers never adds up.
"""

import heapq
import math
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Job", "Queue"]


class Job:
    """A request at a server; `work_seconds` is what it needs there at speed 1."""

    __slots__ = ("arrived", "ended", "started", "work_seconds")

    def __init__(self, work_seconds: float) -> None:
        self.work_seconds = work_seconds
        self.arrived = math.nan
        self.started = math.nan
        self.ended = math.nan


J = TypeVar("J", bound=Job)


class Queue(Generic[J]):
    """Jobs in, the same jobs out at their exact ends. Times never go back."""

    def __init__(
        self,
        *,
        slots: int,
        processor_sharing: bool = False,
        speed: float = 1.0,
        thrash_beyond: int | None = None,
        thrash_ratio: float = 0.0,
        thrash_floor: float = 1.0,
    ) -> None:
        self._slots = slots
        self._sharing = processor_sharing
        self._speed = speed
        self._thrash_beyond = math.inf if thrash_beyond is None else thrash_beyond
        self._thrash_ratio = thrash_ratio
        self._thrash_floor = thrash_floor
        self._virtual = 0.0
        self._now = -math.inf
        self._rate = 0.0
        self._order = 0
        self._serving: list[tuple[float, int, J]] = []  # heap by virtual end
        self._waiting: deque[J] = deque()
        self.busy_seconds = 0.0  # sum over slots (cores)

    def __len__(self) -> int:
        """Jobs present, in service or waiting."""
        return len(self._serving) + len(self._waiting)

    def _set_rate(self) -> None:
        present = len(self)
        rate = self._speed
        if self._sharing and present > self._slots:
            rate *= self._slots / present
        if present > self._thrash_beyond:
            excess = present - self._thrash_beyond
            rate *= max(self._thrash_floor, 1 / (1 + self._thrash_ratio * excess))
        self._rate = rate

    def _move(self, now: float) -> None:
        """Let time pass to `now`, before which nothing ends."""
        if now > self._now:
            if self._serving:
                self._virtual += self._rate * (now - self._now)
                self.busy_seconds += min(len(self._serving), self._slots) * (now - self._now)
            self._now = now

    def _start(self, job: J) -> None:
        job.started = self._now
        self._order += 1
        heapq.heappush(self._serving, (self._virtual + job.work_seconds, self._order, job))

    def next_end(self) -> float:
        """When the next job ends if nothing else happens; inf if none does."""
        if not self._serving or self._rate == 0.0:
            return math.inf
        left = self._serving[0][0] - self._virtual
        return self._now + left / self._rate if left > 0 else self._now

    def advance(self, now: float) -> list[J]:
        """Let time pass to `now`; the jobs that ended, in order, with their exact times."""
        ended = []
        while (end := self.next_end()) <= now:
            self._move(end)
            virtual, _, job = heapq.heappop(self._serving)
            self._virtual = virtual if self._serving or self._waiting else 0.0
            job.ended = end
            ended.append(job)
            if self._waiting:
                self._start(self._waiting.popleft())
            self._set_rate()
        self._move(now)
        return ended

    def arrive(self, now: float, job: J) -> None:
        """Take a job at `now`; call `advance(now)` first."""
        self._move(now)
        job.arrived = now
        if self._sharing or len(self._serving) < self._slots:
            self._start(job)
        else:
            self._waiting.append(job)
        self._set_rate()

    def set_speed(self, now: float, speed: float) -> None:
        """Change the speed at `now` (0: hang); call `advance(now)` first."""
        self._move(now)
        self._speed = speed
        self._set_rate()

    def clear(self) -> list[J]:
        """Drop every job; those that were present, in no particular order."""
        dropped = [job for _, _, job in self._serving] + list(self._waiting)
        self._serving.clear()
        self._waiting.clear()
        self._set_rate()
        return dropped
