"""The control loop: when a step is made, and what happens if it fails.

What a step does is the controller's. The loop keeps time, counts, saves now and then, and says
when it is in trouble; it never ends because a step failed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from trimtab.actuators.board import Board
from trimtab.metrics import Metrics
from trimtab.traces import OFF, Traces

__all__ = ["Controls", "Loop", "following"]

_log: Final = logging.getLogger(__name__)

# Intervals between two saves: what a kill -9 may cost of learning, for a write of some kilobytes.
SAVE_INTERVALS: Final = 10

# A step that fails again and again for the same reason is logged this often.
REPEAT_SECONDS: Final = 60.0

# A step that fits the states takes seconds, on a busy machine tens of them.
STUCK_SECONDS: Final = 60.0

# A step under way at the end gets this long; fitting the states takes seconds.
STOP_SECONDS: Final = 10.0


class Controls(Protocol):
    """What the loop needs of a controller."""

    def step(self) -> object:
        """Observe, decide, act; called in a thread, never twice at once."""
        ...

    def status(self) -> dict[str, Any]:
        """What it knows and does, for JSON; safe to call beside `step`."""
        ...

    def save(self) -> object:
        """Write the state; never called beside `step`."""
        ...


class Loop:
    """Calls `controller.step()` every interval, in a thread of its own.

    Steps begin at multiples of the interval after the first (no drift); one that takes longer
    than the interval makes the next ones fall out, never queue up. A step that raises is logged
    and counted, and leaves the weights in force.

    Args:
        controller: what to call.
        board: for messages: which generation stays in force.
        metrics: counts the steps.
        interval_seconds: from the beginning of a step to that of the next.
        stale_seconds: without a successful step for this long the loop is in trouble.
        stamp: gives something else whenever there may be something new to save.
        clock: monotonic seconds.
        traces: gets a span a step.
    """

    def __init__(
        self,
        controller: Controls,
        board: Board,
        metrics: Metrics,
        *,
        interval_seconds: float,
        stale_seconds: float,
        stamp: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
        traces: Traces = OFF,
    ) -> None:
        self._traces = traces
        self._controller = controller
        self._board = board
        self._metrics = metrics
        self._interval = interval_seconds
        self._stale = stale_seconds
        self._save_seconds = SAVE_INTERVALS * interval_seconds
        self._stamp = stamp
        self._saved = stamp()
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loop")
        self._done_at = self._ended_at = self._saved_at = clock()
        self._failures = 0
        self._failure = ""
        self._failure_logged_at = -REPEAT_SECONDS
        self._save_failure = ""

    async def run(self, stopping: asyncio.Event) -> None:
        """Step until `stopping` is set, then save."""
        loop = asyncio.get_running_loop()
        next_at = self._clock()
        while not stopping.is_set():
            step = loop.run_in_executor(self._thread, self.step)
            await _either(step, stopping)
            if not step.done():
                break
            next_at, skipped = following(next_at, self._interval, self._clock())
            if skipped:
                self._metrics.skipped(skipped)
            if self._clock() - self._saved_at >= self._save_seconds:
                await loop.run_in_executor(self._thread, self.save)
            delay = next_at - self._clock()
            try:
                await asyncio.wait_for(stopping.wait(), max(delay, 0.0))
            except TimeoutError:
                continue
        # The thread takes them one after another, so a step under way ends before the save.
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await loop.run_in_executor(self._thread, self.save)
        except TimeoutError:
            _log.error("the last step did not end in %g s; its state is not saved", STOP_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def step(self) -> None:
        """One step; never raises."""
        started = time.perf_counter()
        try:
            with self._traces.step():
                self._controller.step()
        except Exception as error:
            self._ended_at = self._clock()
            self._metrics.stepped(time.perf_counter() - started, failed=True)
            self._failed(error)
            return
        self._metrics.stepped(time.perf_counter() - started, failed=False)
        self._done_at = self._ended_at = self._clock()
        if self._failures:
            _log.warning("the control loop works again after %d failed steps", self._failures)
        self._failures, self._failure = 0, ""

    def save(self) -> None:
        """Write the state if there is something new; never raises."""
        self._saved_at = self._clock()
        stamp = self._stamp()
        if stamp == self._saved:
            return
        try:
            self._controller.save()
        except Exception as error:
            # Once a change of state: a full disk fails every time.
            if str(error) != self._save_failure:
                _log.exception(
                    "the state was not saved; what is learned from here on is lost by a restart"
                )
            self._save_failure = str(error)
            return
        self._saved = stamp
        if self._save_failure:
            _log.warning("the state is saved again")
        self._save_failure = ""

    def trouble(self) -> str | None:
        """Why the loop is not healthy: no successful step for too long. None when it is."""
        age = self._clock() - self._done_at
        if age <= self._stale:
            return None
        reason = f"the last attempt failed: {self._failure}" if self._failure else "it still runs"
        return f"the control loop made no step for {age:.1f} s; {reason}; {self._keeping()}"

    @property
    def stuck(self) -> bool:
        """Whether no step ended for too long, well or not: what only a restart can mend."""
        return self._clock() - self._ended_at > self._stale + STUCK_SECONDS

    @property
    def failures(self) -> int:
        """Steps that failed since the last good one."""
        return self._failures

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        failure = f"{type(error).__name__}: {error}"
        now = self._clock()
        if failure != self._failure or now - self._failure_logged_at >= REPEAT_SECONDS:
            _log.error(
                "a step failed (%d in a row): %s; %s",
                self._failures,
                failure,
                self._keeping(),
                exc_info=error,
            )
            self._failure_logged_at = now
        self._failure = failure

    def _keeping(self) -> str:
        weights = self._board.current()
        return f"keeping generation {weights.generation}" if weights else "no weights yet"


def following(planned: float, interval: float, now: float) -> tuple[float, int]:
    """When the step after the one planned for `planned` begins, and how many fall out before it."""
    skipped = max(0, int((now - planned) // interval))
    return planned + (skipped + 1) * interval, skipped


async def _either(step: asyncio.Future[None], stopping: asyncio.Event) -> None:
    waiting = asyncio.ensure_future(stopping.wait())
    both: set[asyncio.Future[Any]] = {step, waiting}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
