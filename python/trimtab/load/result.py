"""A finished run: its records, whether it may be believed, and its figures per class."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from trimtab.load.records import Bools, Ending, Records, Spread, Summary, spread, summarise
from trimtab.load.schedule import Schedule

__all__ = ["MAX_LAG_SECONDS", "MAX_RATE_ERROR", "Result"]

# A run is valid when 99% of its sends were at most this late. Lag counts into response times, so
# it must be small beside the deadlines judged with them (tens to hundreds of milliseconds).
MAX_LAG_SECONDS: Final = 0.01
# … and when the rate that was sent differs from the schedule's by at most 1%.
MAX_RATE_ERROR: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run gave. After an interruption `seconds` and `records` cover only what was sent.

    `not_sent` counts the requests of the schedule that the interruption left out.
    """

    schedule: Schedule
    records: Records
    url: str
    started_at: float  # seconds since the epoch
    seconds: float
    processes: int
    not_sent: int
    max_lag_seconds: float

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        records: Records,
        *,
        url: str,
        started_at: float,
        processes: int,
        sent: Bools,
        max_lag_seconds: float | None = None,
    ) -> "Result":
        """The result of a run that sent the rows of the mask `sent`, shape (n,)."""
        not_sent = int((~sent).sum())
        seconds = schedule.seconds
        if not_sent:
            # Up to the first request that was left out the run followed its schedule.
            seconds = max(float(records.intended[~sent].min()), math.ulp(1.0))
            records = records.where(sent & (records.intended < seconds))
        return cls(
            schedule=schedule,
            records=records,
            url=url,
            started_at=started_at,
            seconds=seconds,
            processes=processes,
            not_sent=not_sent,
            max_lag_seconds=MAX_LAG_SECONDS if max_lag_seconds is None else max_lag_seconds,
        )

    @property
    def interrupted(self) -> bool:
        """The run was stopped before its schedule was through."""
        return self.not_sent > 0 or bool(self.records.cut.any())

    @property
    def offered_per_second(self) -> float:
        """The rate of the schedule."""
        return len(self.records) / self.seconds

    @property
    def achieved_per_second(self) -> float:
        """Requests that left this machine, over the time it took to send them.

        A generator that cannot keep up is still sending after the end of the schedule.
        """
        left = int((self.records.ending != Ending.LOCAL).sum())
        last = float(self.records.send.max()) if len(self.records) else 0.0
        return left / max(self.seconds, last)

    @property
    def lag(self) -> Spread:
        """The spread of the send lag."""
        return spread(self.records.send_lag_seconds)

    @property
    def invalid_because(self) -> tuple[str, ...]:
        """Why the run must not be believed, one sentence a reason; empty for a valid run."""
        reasons = []
        if not len(self.records):
            return ("nothing was sent",)
        offered, achieved = self.offered_per_second, self.achieved_per_second
        error = abs(achieved - offered) / offered
        if error > MAX_RATE_ERROR:
            reasons.append(
                f"sent {achieved:.1f} requests/s where the schedule has {offered:.1f} "
                f"({100 * error:.1f}% off, more than {100 * MAX_RATE_ERROR:g}%)"
            )
        lag = self.lag.p99
        if lag > self.max_lag_seconds:
            reasons.append(
                f"p99 of the send lag is {1000 * lag:.2f} ms, more than "
                f"{1000 * self.max_lag_seconds:g} ms: the generator itself was late"
            )
        local = int((self.records.ending == Ending.LOCAL).sum())
        if local:
            reasons.append(
                f"{local} requests could not be sent for lack of descriptors, ports or memory"
            )
        return tuple(reasons)

    @property
    def valid(self) -> bool:
        """Whether the load was what the schedule says."""
        return not self.invalid_because

    def summary(
        self, name: str | None = None, *, deadlines: Mapping[str, float | None] | None = None
    ) -> Summary:
        """The figures of one class, or of all together.

        `deadlines` (class name to seconds) replaces the schedule's, for judging several runs
        alike.
        """
        records = self.records if name is None else self.records.of(name)
        return summarise(
            records,
            seconds=self.seconds,
            deadlines=self.schedule.deadlines if deadlines is None else deadlines,
        )

    def summaries(
        self, *, deadlines: Mapping[str, float | None] | None = None
    ) -> dict[str, Summary]:
        """The figures of each class, in the schedule's order."""
        return {c.name: self.summary(c.name, deadlines=deadlines) for c in self.schedule.classes}

    def intended_in(self, begin: float, end: float) -> Records:
        """The records intended in [begin, end), say without the warm-up."""
        chosen = (self.records.intended >= begin) & (self.records.intended < end)
        return self.records.where(np.asarray(chosen))
