"""A small finished run, for tests of what is made of one."""

import numpy as np

from trimtab.load.records import Ending, Records
from trimtab.load.result import Result
from trimtab.load.schedule import ClassLoad, build

__all__ = ["mixed"]


def mixed() -> Result:
    """Four requests of class a (two whole, a 503, a timeout), sent 20 ms late."""
    schedule = build(
        [ClassLoad(name="a", rate_per_second=1, law="fixed", deadline_seconds=0.1)], seconds=4
    )
    send = schedule.times + 0.02
    return Result.of(
        schedule,
        Records(
            classes=("a",),
            peers=("p", "q"),
            class_index=schedule.class_index,
            intended=schedule.times,
            work_seconds=schedule.work_seconds,
            send=send,
            first_byte=send + 0.01,
            end=send + np.array([0.05, 0.06, 0.01, 3.0]),
            status=np.array([200, 200, 503, 0], dtype=np.uint16),
            ending=np.array([Ending.OK, Ending.OK, Ending.STATUS, Ending.TIMEOUT], dtype=np.uint8),
            peer=np.array([0, 0, 1, 0], dtype=np.int16),
            reused=np.zeros(4, dtype=bool),
            received_bytes=np.zeros(4, dtype=np.uint32),
        ),
        url="http://x",
        started_at=0.0,
        processes=1,
        sent=np.ones(4, dtype=bool),
    )
