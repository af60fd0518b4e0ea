"""When a run may be believed, and what an interruption leaves of it."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.load.records import Ending, Records
from trimtab.load.result import Result
from trimtab.load.schedule import ClassLoad, Schedule, build

SCHEDULE = build([ClassLoad(name="a", rate_per_second=100, law="fixed")], seconds=10, seed=1)


def records(schedule: Schedule = SCHEDULE, lag: float = 0.0) -> Records:
    """All sent this late and answered 10 ms later."""
    count = len(schedule)
    send = schedule.times + lag
    return Records(
        classes=("a",),
        peers=(),
        class_index=schedule.class_index,
        intended=schedule.times,
        work_seconds=schedule.work_seconds,
        send=send,
        first_byte=send + 0.01,
        end=send + 0.01,
        status=np.full(count, 200, dtype=np.uint16),
        ending=np.zeros(count, dtype=np.uint8),
        peer=np.full(count, -1, dtype=np.int16),
        reused=np.zeros(count, dtype=bool),
        received_bytes=np.zeros(count, dtype=np.uint32),
    )


def result(data: Records, sent: np.ndarray | None = None, max_lag: float | None = None) -> Result:
    """The result of a run that recorded `data`."""
    return Result.of(
        SCHEDULE,
        data,
        url="http://x",
        started_at=0.0,
        processes=1,
        sent=np.ones(len(data), dtype=bool) if sent is None else sent,
        max_lag_seconds=max_lag,
    )


def test_a_punctual_run_is_valid() -> None:
    """Sent on time at the schedule's rate: valid, with nothing to say against it."""
    found = result(records())
    assert found.valid
    assert found.invalid_because == ()
    assert not found.interrupted
    assert found.achieved_per_second == pytest.approx(100, rel=0.01)


def test_lag_makes_a_run_invalid() -> None:
    """p99 of the send lag above the bound is a reason that names both; below it is none."""
    late = result(records(lag=0.011))
    assert not late.valid
    assert "11.00 ms, more than 10 ms" in late.invalid_because[0]
    assert result(records(lag=0.011), max_lag=0.012).valid
    assert result(records(lag=0.009)).valid


def test_one_late_send_in_a_thousand_is_allowed() -> None:
    """The bound is on the 99th percentile: five late sends in a thousand leave the run valid."""
    data = records()
    send = data.send.copy()
    send[:5] += 1.0
    assert result(replace(data, send=send)).valid


def test_a_generator_that_cannot_keep_up_makes_the_run_invalid() -> None:
    """Sends that go on 2% beyond the schedule mean a rate 2% too low, and the run says so."""
    data = records()
    slow = result(replace(data, send=data.intended * 1.02), max_lag=1.0)
    assert slow.achieved_per_second == pytest.approx(98, rel=0.005)
    assert "1.9% off, more than 1%" in slow.invalid_because[0]
    assert result(replace(data, send=data.intended * 1.005), max_lag=1.0).valid


def test_requests_that_could_not_be_sent_make_the_run_invalid() -> None:
    """Running out of descriptors or ports is the generator's failure, even once."""
    data = records()
    ending = data.ending.copy()
    ending[7] = Ending.LOCAL
    found = result(replace(data, ending=ending))
    assert "1 requests could not be sent" in found.invalid_because[0]


def test_failures_of_the_server_do_not_make_a_run_invalid() -> None:
    """A run in which every answer is an error measured just that."""
    data = records()
    assert result(replace(data, ending=np.full(len(data), Ending.STATUS, dtype=np.uint8))).valid


def test_an_interrupted_run_is_judged_up_to_the_interruption() -> None:
    """Rows that were not sent are counted apart, and the rate is that of the part that ran."""
    count = len(SCHEDULE)
    sent = np.arange(count) < count // 2
    found = result(records(), sent)
    assert found.interrupted
    assert found.not_sent == count - count // 2
    assert len(found.records) == count // 2
    assert found.seconds == pytest.approx(5, rel=0.01)
    assert found.offered_per_second == pytest.approx(100, rel=0.01)
    assert found.valid


def test_a_run_stopped_before_its_first_request_is_invalid() -> None:
    """Nothing sent is nothing measured."""
    found = result(records(), np.zeros(len(SCHEDULE), dtype=bool))
    assert found.invalid_because == ("nothing was sent",)
    assert found.summary().requests == 0


def test_runs_can_be_judged_by_deadlines_given_later() -> None:
    """Deadlines handed to a summary replace the schedule's, so that several runs share them."""
    found = result(records())
    assert found.summary().art is None
    assert found.summary(deadlines={"a": 0.005}).art_per_1000 == pytest.approx(1000, rel=0.01)
    assert found.summaries(deadlines={"a": 0.02})["a"].art == 0


def test_a_warm_up_can_be_left_out() -> None:
    """Records can be chosen by their intended time."""
    assert len(result(records()).intended_in(2, 10)) == pytest.approx(800, abs=2)
