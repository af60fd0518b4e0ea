"""Slots: how many, in which order, for how long."""

import queue
import statistics
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trimtab.demo import capacity
from trimtab.demo.capacity import MEAN_SECONDS, FullError, ServiceTimes, Slots

SOON = 20.0  # seconds that a thread may take on a busy machine


class Time:
    """A clock that only sleeping and working move."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 100.0
        self.late = late
        self.slept: list[float] = []

    def clock(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pass the time, and a little more."""
        self.slept.append(round(seconds, 9))
        self.now += seconds + self.late

    def work(self, seconds: float) -> None:
        """Pass the time in a job."""
        self.now += seconds


class NoTool:
    """For work that needs nothing."""

    def close(self) -> None:
        """Nothing to do."""


class Bench:
    """Slots with their answers collected in order."""

    def __init__(self, count: int, time: Time, slowness: float = 1.0) -> None:
        self.answers: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
        self.slots = Slots(count, NoTool, slowness=slowness, clock=time.clock, sleep=time.sleep)

    def submit(self, seconds: float, job: Callable[[], Any] = lambda: None) -> None:
        """Queue a job."""
        self.slots.submit(
            "home",
            seconds,
            lambda _: job(),
            lambda result, error: self.answers.put((result, error)),
        )

    def answer(self) -> tuple[Any, Exception | None]:
        """The next result and error."""
        return self.answers.get(timeout=SOON)


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches and closes them."""
    made: list[Bench] = []

    def make(*arguments: Any, **options: Any) -> Bench:
        made.append(Bench(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.slots.close()


def test_work_is_part_of_the_service_time(bench: Callable[..., Bench]) -> None:
    """A request of 10 ms whose work takes 4 ms sleeps for 6."""
    time = Time()
    slots = bench(1, time)

    slots.submit(0.010, lambda: time.work(0.004))
    slots.answer()

    assert time.slept == [0.006]


def test_slowness(bench: Callable[..., Bench]) -> None:
    """Service times are multiplied by the slowness, from the change on."""
    time = Time()
    slots = bench(1, time, slowness=4.0)

    slots.submit(0.010)
    slots.answer()
    slots.slots.slowness = 0.5
    slots.submit(0.010)
    slots.answer()

    assert time.slept == [0.040, 0.005]


def test_lateness_does_not_add_up(bench: Callable[..., Bench]) -> None:
    """A slot that wakes 2 ms late makes up for it in the next request that waited."""
    time = Time(late=0.002)
    slots = bench(1, time)
    go = threading.Event()

    slots.submit(0.010, lambda: go.wait(SOON))
    slots.submit(0.010)
    slots.submit(0.001)
    go.set()
    for _ in range(3):
        slots.answer()

    # 100.012, due at 100.010; then until 100.020, at 100.022; then until 100.021: no sleep.
    assert time.slept == [0.010, 0.008]
    occupancy = slots.slots.occupancy()
    assert occupancy.served == {"home": 3}
    assert occupancy.overrun == 1
    assert occupancy.late_most_seconds == pytest.approx(0.002)


def test_idle_time_is_not_owed(bench: Callable[..., Bench]) -> None:
    """A request that finds a slot idle starts when it arrives."""
    time = Time()
    slots = bench(1, time)

    slots.submit(0.010)
    slots.answer()
    time.now += 5.0
    slots.submit(0.010)
    slots.answer()

    assert time.slept == [0.010, 0.010]


def test_failed_work_ends_at_once(bench: Callable[..., Bench]) -> None:
    """A failure is delivered without sleeping, and the slot goes on."""
    time = Time()
    slots = bench(1, time)

    def fail() -> None:
        raise ValueError("no")

    slots.submit(0.010, fail)
    result, error = slots.answer()
    slots.submit(0.0, lambda: "next")

    assert (result, str(error)) == (None, "no")
    assert slots.answer() == ("next", None)
    assert time.slept == []
    assert slots.slots.occupancy().failed == 1


def test_slots_and_order(bench: Callable[..., Bench]) -> None:
    """Two slots serve two requests at once, and the others in order of arrival."""
    slots = bench(2, Time())
    started: queue.Queue[int] = queue.Queue()
    gates = [threading.Event() for _ in range(5)]

    def job(i: int) -> int:
        started.put(i)
        gates[i].wait(SOON)
        return i

    for i in range(5):
        slots.submit(0.0, lambda i=i: job(i))
    first = {started.get(timeout=SOON), started.get(timeout=SOON)}
    occupancy = slots.slots.occupancy()
    assert (first, occupancy.busy, occupancy.waiting) == ({0, 1}, 2, 3)
    assert started.empty()

    for done, next_one in ((1, 2), (2, 3), (0, 4)):
        gates[done].set()
        assert slots.answer() == (done, None)
        assert started.get(timeout=SOON) == next_one
    for gate in gates:
        gate.set()


def test_waiting_is_bounded(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request beyond the bound is refused, and fits in again once one has left."""
    monkeypatch.setattr(capacity, "MAX_WAITING", 2)
    slots = bench(1, Time())
    inside, go = threading.Event(), threading.Event()

    slots.submit(0.0, lambda: (inside.set(), go.wait(SOON)))
    inside.wait(SOON)
    slots.submit(0.0)
    slots.submit(0.0)
    with pytest.raises(FullError, match="2 requests are waiting"):
        slots.submit(0.0)

    go.set()
    for _ in range(3):
        slots.answer()
    slots.submit(0.0)
    assert slots.answer() == (None, None)


def test_close_answers_those_who_wait() -> None:
    """Closing finishes what is being served and refuses the rest."""
    bench = Bench(1, Time())
    inside, go = threading.Event(), threading.Event()
    bench.submit(0.0, lambda: (inside.set(), go.wait(SOON), "served")[-1])
    bench.submit(0.0)
    inside.wait(SOON)

    closing = threading.Thread(target=bench.slots.close)
    closing.start()
    refused = bench.answer()
    go.set()
    closing.join()

    assert isinstance(refused[1], FullError)
    assert bench.answer() == ("served", None)


def test_error_of_a_tool() -> None:
    """A tool that cannot be made is an error of the start, and no thread stays behind."""
    before = threading.active_count()

    def broken() -> NoTool:
        raise OSError("no such thing")

    with pytest.raises(OSError, match="no such thing"):
        Slots(3, broken)

    assert threading.active_count() == before


@pytest.mark.parametrize("variation", [0.0, 0.5, 1.5])
def test_service_times(variation: float) -> None:
    """Draws have the mean and the variation that were asked for."""
    times = ServiceTimes("seed", means={"home": 0.006}, variation=variation)

    draws = [times.draw("home") for _ in range(40_000)]

    # Four standard errors of a mean of 40 000; the deviation's own error is larger.
    assert statistics.fmean(draws) == pytest.approx(0.006, rel=4 * variation / 200 + 1e-9)
    assert statistics.pstdev(draws) == pytest.approx(0.006 * variation, rel=0.15, abs=1e-12)


def test_service_times_are_reproducible() -> None:
    """The same seed gives the same times for a kind, whatever other kinds arrive between."""
    one, other = ServiceTimes("1 a"), ServiceTimes("1 a")

    mixed = []
    for _ in range(50):
        other.draw("compose")
        mixed.append(other.draw("home"))

    assert [one.draw("home") for _ in range(50)] == mixed
    assert [ServiceTimes("1 b").draw("home")] != mixed[:1]
    assert set(MEAN_SECONDS) == {"compose", "home", "user", "register", "follow"}
