"""`run`: send a schedule from the event loop of the caller.

`drive` does the sending; `processes` does the same from processes of its own.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from trimtab.load.drive import TIMEOUT_SECONDS, Drive, raise_descriptor_limit
from trimtab.load.plan import plan, target
from trimtab.load.records import Records
from trimtab.load.result import Result
from trimtab.load.schedule import Schedule

__all__ = ["PROGRESS_SECONDS", "Progress", "run"]

# Often enough for a bar that moves, too rare to matter beside the load.
PROGRESS_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is. Counts are of requests; `total` is what the schedule holds."""

    elapsed_seconds: float
    seconds: float
    total: int
    sent: int
    done: int
    failed: int

    @property
    def in_flight(self) -> int:
        """Sent and not ended."""
        return self.sent - self.done


async def run(
    schedule: Schedule,
    url: str,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_lag_seconds: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Send the schedule from this event loop and return what became of it.

    `on_progress` is called about twice a second. Whatever else this loop does delays the sends,
    and is seen in the send lag: `processes.run_processes` keeps the load out of the way.
    """
    where = target(url)
    raise_descriptor_limit()
    drive = Drive(plan(schedule, where), timeout_seconds=timeout_seconds)
    started_at = time.time()
    work = asyncio.ensure_future(drive.run(where, start=time.monotonic(), stop=stop))
    try:
        while True:
            done, _ = await asyncio.wait((work,), timeout=PROGRESS_SECONDS)
            if on_progress is not None:
                on_progress(
                    Progress(
                        elapsed_seconds=drive.elapsed_seconds,
                        seconds=schedule.seconds,
                        total=len(schedule),
                        sent=drive.sent,
                        done=drive.done,
                        failed=drive.failed,
                    )
                )
            if done:
                break
        await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    records = Records(
        classes=tuple(c.name for c in schedule.classes),
        peers=tuple(drive.peers),
        class_index=schedule.class_index,
        intended=schedule.times,
        work_seconds=schedule.work_seconds,
        **drive.columns,
    )
    return Result.of(
        schedule,
        records,
        url=where.url,
        started_at=started_at,
        processes=1,
        sent=np.arange(len(schedule)) < drive.sent,
        max_lag_seconds=max_lag_seconds,
    )
