"""The control loop: on time, never twice at once, and no failure ends it."""

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

import serving
from trimtab import loop as loop_module
from trimtab.actuators.board import Board
from trimtab.loop import Loop, following
from trimtab.metrics import Metrics
from trimtab.sources.reported import Reported


class Controller:
    """A settable double: what `step` and `save` do, and how often they were called."""

    def __init__(self) -> None:
        self.steps = 0
        self.saves = 0
        self.fails: Exception | None = None
        self.save_fails: Exception | None = None
        self.after_step = lambda: None

    def step(self) -> None:
        """Fail if told to."""
        self.steps += 1
        self.after_step()
        if self.fails:
            raise self.fails

    def status(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def save(self) -> None:
        """Fail if told to."""
        if self.save_fails:
            raise self.save_fails
        self.saves += 1


class Clock:
    """A clock that stands until it is set."""

    now = 50.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class Parts:
    """A loop over a double."""

    def __init__(self, interval_seconds: float = 1.0, clock: Any = None) -> None:
        config = serving.configuration()
        self.board = Board()
        self.board.apply(serving.weights(config, generation=41))
        self.metrics = Metrics(Reported(config), self.board)
        self.controller = Controller()
        self.clock = clock or Clock()
        self.stamp = 0
        self.loop = Loop(
            self.controller,
            self.board,
            self.metrics,
            interval_seconds=interval_seconds,
            stale_seconds=10.0,
            stamp=lambda: self.stamp,
            clock=self.clock,
        )

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None
        return value


@pytest.fixture
def parts() -> Parts:
    """A loop with a clock that stands."""
    return Parts()


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (10.0, (11.0, 0)),
        (10.9, (11.0, 0)),
        (11.0, (12.0, 1)),
        (13.5, (14.0, 3)),
        (9.0, (11.0, 0)),
    ],
)
def test_steps_begin_at_multiples_of_the_interval(now: float, expected: tuple[float, int]) -> None:
    """A late step moves no later one, and missed ones fall out instead of queueing up."""
    assert following(10.0, 1.0, now) == expected


def test_only_a_step_that_does_not_end_is_stuck(parts: Parts) -> None:
    """A loop whose steps fail is in trouble, and a restart would not help; one that hangs is
    stuck."""
    parts.controller.fails = ValueError("full disk")
    for _ in range(20):
        parts.clock.now += 10.0
        parts.loop.step()
    assert parts.loop.trouble() is not None
    assert not parts.loop.stuck
    parts.clock.now += 10.0 + loop_module.STUCK_SECONDS
    assert not parts.loop.stuck
    parts.clock.now += 0.1
    assert parts.loop.stuck


def test_failed_step_keeps_the_weights_and_goes_on(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is logged with its reason and what stays in force, counted, and survived."""
    parts.controller.fails = ValueError("singular matrix")
    parts.loop.step()
    (record,) = caplog.records
    assert record.getMessage() == (
        "a step failed (1 in a row): ValueError: singular matrix; keeping generation 41"
    )
    assert record.exc_info is not None
    assert parts.count("trimtab_steps_total", outcome="failed") == 1
    assert parts.loop.failures == 1
    parts.controller.fails = None
    parts.loop.step()
    assert caplog.messages[-1] == "the control loop works again after 1 failed steps"
    assert parts.count("trimtab_steps_total", outcome="done") == 1
    assert parts.loop.failures == 0


def test_same_failure_is_logged_once_a_minute(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that repeats does not fill the log; another one is logged at once."""
    parts.controller.fails = ValueError("one")
    for _ in range(5):
        parts.loop.step()
    assert len(caplog.records) == 1
    parts.controller.fails = ValueError("two")
    parts.loop.step()
    assert len(caplog.records) == 2
    parts.clock.now += 61
    parts.loop.step()
    assert "(7 in a row): ValueError: two" in caplog.messages[2]


def test_trouble_is_no_good_step_for_too_long(parts: Parts) -> None:
    """The loop is in trouble once no step succeeded for the stale time, and says why."""
    parts.loop.step()
    parts.clock.now += 10
    assert parts.loop.trouble() is None
    parts.clock.now += 0.5
    assert parts.loop.trouble() == (
        "the control loop made no step for 10.5 s; it still runs; keeping generation 41"
    )
    parts.controller.fails = OSError("no space left")
    parts.loop.step()
    assert "the last attempt failed: OSError: no space left;" in (parts.loop.trouble() or "")
    parts.controller.fails = None
    parts.loop.step()
    assert parts.loop.trouble() is None


def test_state_is_saved_only_if_there_is_something_new(parts: Parts) -> None:
    """Nothing new, nothing written."""
    parts.loop.step()
    parts.loop.save()
    assert parts.controller.saves == 0
    parts.stamp = 1
    parts.loop.save()
    parts.loop.save()
    assert parts.controller.saves == 1


def test_failed_save_is_logged_once_and_tried_again(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is one line when it begins and one when it ends."""
    caplog.set_level(logging.WARNING)
    parts.stamp = 1
    parts.controller.save_fails = OSError("disk full")
    parts.loop.save()
    parts.loop.save()
    parts.controller.save_fails = None
    parts.loop.save()
    assert caplog.messages == [
        "the state was not saved; what is learned from here on is lost by a restart",
        "the state is saved again",
    ]
    assert parts.controller.saves == 1


def test_loop_steps_until_it_is_stopped_and_saves() -> None:
    """Steps follow one another in one thread; at the end the state is saved."""
    parts = Parts(interval_seconds=0.001, clock=time.monotonic)
    stopping = asyncio.Event()
    threads: list[int] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def after() -> None:
            parts.stamp = 1
            threads.append(threading.get_ident())
            if parts.controller.steps == 5:
                loop.call_soon_threadsafe(stopping.set)

        parts.controller.after_step = after
        async with asyncio.timeout(serving.TIMEOUT):
            await parts.loop.run(stopping)

    asyncio.run(run())
    assert parts.controller.steps >= 5
    assert parts.controller.saves >= 1
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_loop_saves_in_between() -> None:
    """The state is written every ten intervals, and at the end."""
    clock = Clock()
    parts = Parts(interval_seconds=0.001, clock=clock)
    stopping = asyncio.Event()

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def after() -> None:
            clock.now += 0.004
            parts.stamp = parts.controller.steps
            if parts.controller.steps == 7:
                loop.call_soon_threadsafe(stopping.set)

        parts.controller.after_step = after
        async with asyncio.timeout(serving.TIMEOUT):
            await parts.loop.run(stopping)

    asyncio.run(run())
    # After 12 and 24 intervals, and at the end.
    assert parts.controller.saves == 3
    assert parts.count("trimtab_steps_skipped_total") > 0


def test_stop_does_not_wait_for_ever_for_a_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that hangs at the end is given up, with a word in the log."""
    monkeypatch.setattr(loop_module, "STOP_SECONDS", 0.05)
    parts = Parts()
    stopping = asyncio.Event()
    release = threading.Event()

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def hang() -> None:
            parts.stamp = 1
            loop.call_soon_threadsafe(stopping.set)
            release.wait(serving.TIMEOUT)

        parts.controller.after_step = hang
        try:
            async with asyncio.timeout(serving.TIMEOUT):
                await parts.loop.run(stopping)
        finally:
            release.set()

    asyncio.run(run())
    assert "the last step did not end in 0.05 s; its state is not saved" in caplog.messages
    assert parts.controller.saves == 0
