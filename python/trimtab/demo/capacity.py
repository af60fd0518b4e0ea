"""The capacity of a node: thread slots, service times and a slowness factor.

A node is a FIFO queue in front of k slots. A slot is a thread that takes one request at a time,
does its real work, and stays occupied until

    end = start + service time · slowness,    start = max(arrival, end of the slot's last request)

where the service time is drawn when the request arrives, and the real work is part of it. Since
`start` is the time when the slot was due to be free, not when the thread woke, lateness in waking
does not add up: a slot serves 1 / (mean service time · slowness) requests a second when it is
never idle. Work that takes longer than was drawn ends when it ends. Failed work ends at once.
"""

import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

__all__ = ["MEAN_SECONDS", "FullError", "Occupancy", "ServiceTimes", "Slots"]

# Mean service times at slowness 1. A compose writes what two reads read; the rest is for setting
# the network up and should not take long.
MEAN_SECONDS: Final = {
    "compose": 0.012,
    "home": 0.006,
    "user": 0.006,
    "register": 0.002,
    "follow": 0.002,
}

# Standard deviation over mean of the service times: between a constant (0) and memoryless (1).
VARIATION: Final = 0.5

# Requests that may wait in a node. Each one also holds a connection: 4096 of them are some 100 MB.
MAX_WAITING: Final = 4096


class FullError(Exception):
    """Too many requests wait already."""


class ServiceTimes:
    """Lognormal service times by kind of request, the same sequence for the same seed.

    Mean m and variation c: sigma² = ln(1 + c²), mu = ln(m) - sigma²/2. Each kind has a generator
    of its own, so that the order in which kinds arrive does not matter.
    """

    def __init__(
        self,
        seed: str,
        *,
        means: Mapping[str, float] = MEAN_SECONDS,
        variation: float = VARIATION,
    ) -> None:
        variance = math.log1p(variation**2)
        self._sigma = math.sqrt(variance)
        self._kinds = {
            kind: (random.Random(f"{seed} {kind}"), math.log(mean) - variance / 2)  # noqa: S311
            for kind, mean in means.items()
        }

    def draw(self, kind: str) -> float:
        """Seconds that the next request of this kind takes at slowness 1."""
        generator, mu = self._kinds[kind]
        return generator.lognormvariate(mu, self._sigma)


class Tool(Protocol):
    """What a slot works with, made in the slot's thread and closed there."""

    def close(self) -> None:
        """Free what it holds."""


T = TypeVar("T", bound=Tool)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What the slots do and have done.

    `late_seconds` sums how late requests ended after their computed end, `late_most_seconds` is
    the worst; `overrun` counts those whose real work alone took longer than was drawn.
    """

    busy: int
    waiting: int
    served: dict[str, int]
    failed: int
    occupied_seconds: float
    work_seconds: float
    late_seconds: float
    late_most_seconds: float
    overrun: int


@dataclass(slots=True)
class _Request(Generic[T]):
    kind: str
    job: Callable[[T], Any]
    deliver: Callable[[Any, Exception | None], object]
    seconds: float
    arrived: float


class Slots(Generic[T]):
    """k slots, each a thread with a tool of its own, fed from one FIFO queue."""

    def __init__(
        self,
        count: int,
        tool: Callable[[], T],
        *,
        slowness: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start the threads; an error of `tool` in one of them is raised here."""
        self.count = count
        self.slowness = slowness
        self._tool = tool
        self._clock = clock
        self._sleep = sleep
        self._queue: queue.SimpleQueue[_Request[T] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._busy = self._failed = self._overrun = 0
        self._served: dict[str, int] = {}
        self._occupied = self._work = self._late = self._late_most = 0.0
        opened: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(opened,), name=f"slot {i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()
        errors = [error for error in [opened.get() for _ in self._threads] if error]
        if errors:
            self.close()
            raise errors[0]

    def submit(
        self,
        kind: str,
        seconds: float,
        job: Callable[[T], Any],
        deliver: Callable[[Any, Exception | None], object],
    ) -> None:
        """Queue a request of `seconds` at slowness 1; raises FullError when too many wait.

        `deliver(result, error)` is called in the slot's thread when the request ends.
        """
        if self._queue.qsize() >= MAX_WAITING:
            raise FullError(f"{MAX_WAITING} requests are waiting already")
        self._queue.put(_Request(kind, job, deliver, seconds, self._clock()))

    def occupancy(self) -> Occupancy:
        """The present state and the totals since the start."""
        with self._lock:
            return Occupancy(
                busy=self._busy,
                waiting=self._queue.qsize(),
                served=dict(self._served),
                failed=self._failed,
                occupied_seconds=self._occupied,
                work_seconds=self._work,
                late_seconds=self._late,
                late_most_seconds=self._late_most,
                overrun=self._overrun,
            )

    def close(self) -> None:
        """End the threads after what they serve now; requests that wait get a FullError."""
        with suppress(queue.Empty):
            while request := self._queue.get_nowait():
                with suppress(Exception):
                    request.deliver(None, FullError("the node is stopping"))
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, opened: "queue.SimpleQueue[BaseException | None]") -> None:
        try:
            tool = self._tool()
        except BaseException as error:
            opened.put(error)
            return
        opened.put(None)
        free_at = 0.0
        while request := self._queue.get():
            free_at = self._serve(tool, request, free_at)
        with suppress(Exception):
            tool.close()

    def _serve(self, tool: T, request: _Request[T], free_at: float) -> float:
        """Serve one request; the time from which the slot counts as free."""
        with self._lock:
            self._busy += 1
        began = self._clock()
        start = max(request.arrived, free_at)
        end = start + request.seconds * self.slowness
        result: Any = None
        failure: Exception | None = None
        try:
            result = request.job(tool)
        except Exception as error:
            failure = error
        worked = now = self._clock()
        slept = failure is None and now < end
        while slept and now < end:
            self._sleep(end - now)
            now = self._clock()
        with self._lock:
            self._busy -= 1
            self._occupied += now - start
            self._work += worked - began
            if failure:
                self._failed += 1
            else:
                self._served[request.kind] = self._served.get(request.kind, 0) + 1
                self._late += now - end
                self._late_most = max(self._late_most, now - end)
                self._overrun += not slept
        with suppress(Exception):  # The receiver may be gone; the slot goes on.
            request.deliver(result, failure)
        return end if slept else now
