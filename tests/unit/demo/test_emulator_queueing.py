"""The emulated server's queue against queueing theory, in simulated time."""

import math
from typing import Any

import numpy as np
import pytest

from trimtab.demo.queueing import Job, Queue


def simulate(seed: int, count: int, load: float, works: str = "exp", **config: Any) -> list[Job]:
    """Poisson arrivals at `load` of the capacity, work of mean 1; all jobs, in order of ends."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / (load * config["slots"]), count)
    if works == "exp":
        drawn = rng.exponential(1.0, count)
    else:  # two points, variance 4: a law that only PS does not feel
        drawn = np.where(rng.random(count) < 0.8, 1e-9, 5.0)
    queue: Queue[Job] = Queue(**config)
    now, done = 0.0, []
    for gap, work in zip(gaps, drawn, strict=True):
        now += gap
        done += queue.advance(now)
        queue.arrive(now, Job(work))
    return done + queue.advance(1e9)  # long after the last


def mean_and_error(**config: Any) -> tuple[float, float]:
    """Mean response time over seeds, and its standard error."""
    means = []
    for seed in range(8):
        jobs = simulate(seed, 10_000, **config)
        means.append(np.mean([job.ended - job.arrived for job in jobs[500:]]))
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(len(means)))


def erlang_c_response(slots: int, load: float) -> float:
    """Mean response time of M/M/c with service rate 1."""
    offered = slots * load
    last = offered**slots / math.factorial(slots) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(slots)) + last)
    return 1 + waits / (slots * (1 - load))


@pytest.mark.parametrize(("slots", "load"), [(1, 0.6), (2, 0.7), (8, 0.8)])
def test_fifo_is_mmc(slots: int, load: float) -> None:
    """A FIFO server with c slots has the mean response time of M/M/c (Erlang C)."""
    mean, error = mean_and_error(load=load, slots=slots)
    assert abs(mean - erlang_c_response(slots, load)) < 4 * error


@pytest.mark.parametrize("works", ["exp", "two points"])
def test_ps_mean_depends_on_the_mean_work_only(works: str) -> None:
    """A processor-sharing core has E[T] = 1/(1 - load) whatever the law of work: M/G/1-PS."""
    mean, error = mean_and_error(load=0.7, slots=1, processor_sharing=True, works=works)
    assert abs(mean - 1 / 0.3) < 4 * error


def test_ps_with_cores_is_mmc_in_the_mean() -> None:
    """With exponential work, c shared cores have the number present, so E[T], of M/M/c."""
    mean, error = mean_and_error(load=0.75, slots=4, processor_sharing=True)
    assert abs(mean - erlang_c_response(4, 0.75)) < 4 * error


def test_fifo_by_hand() -> None:
    """Two slots: the third request starts when the first of the others ends."""
    queue: Queue[Job] = Queue(slots=2)
    jobs = [Job(3.0), Job(1.0), Job(1.5)]
    for job in jobs:
        queue.arrive(0.0, job)
    assert queue.advance(10.0) == [jobs[1], jobs[2], jobs[0]]
    assert [(j.started, j.ended) for j in jobs] == [(0.0, 3.0), (0.0, 1.0), (1.0, 2.5)]
    assert queue.busy_seconds == pytest.approx(5.5)


def test_ps_by_hand() -> None:
    """One core: 1 s of work beside 2 s of work ends at 2 s, the other at 3 s."""
    queue: Queue[Job] = Queue(slots=1, processor_sharing=True)
    for work in (1.0, 2.0):
        queue.arrive(0.0, Job(work))
    assert [job.ended for job in queue.advance(10.0)] == pytest.approx([2.0, 3.0])


def test_speed_change_acts_on_what_is_in_service() -> None:
    """Half the work at speed 1, a hang of 5 s, the rest at speed 1/4: an end to the digit."""
    queue: Queue[Job] = Queue(slots=1)
    queue.arrive(0.0, Job(2.0))
    queue.set_speed(1.0, 0.0)
    assert queue.next_end() == math.inf
    queue.advance(6.0)
    queue.set_speed(6.0, 0.25)
    assert [job.ended for job in queue.advance(99.0)] == pytest.approx([10.0])


def test_thrashing_slows_beyond_the_concurrency_down_to_the_floor() -> None:
    """Present 3 with a limit of 1 and ratio 1: a third of the speed; present 99: the floor."""
    config: dict[str, Any] = {"slots": 100, "thrash_beyond": 1, "thrash_ratio": 1.0}
    queue: Queue[Job] = Queue(**config, thrash_floor=0.1)
    for _ in range(3):
        queue.arrive(0.0, Job(1.0))
    assert queue.next_end() == pytest.approx(3.0)
    for _ in range(96):
        queue.arrive(0.0, Job(1.0))
    assert queue.next_end() == pytest.approx(10.0)


def test_lateness_of_the_caller_does_not_add_up() -> None:
    """Asked once at the end, the queue gives the same ends as asked at every one of them."""
    exact: Queue[Job] = Queue(slots=1)
    late: Queue[Job] = Queue(slots=1)
    for queue in (exact, late):
        for _ in range(50):
            queue.arrive(0.0, Job(0.01))
    often = [job.ended for k in range(1, 61) for job in exact.advance(k * 0.01)]
    assert often == pytest.approx([job.ended for job in late.advance(1.0)])
    assert often == pytest.approx([k * 0.01 for k in range(1, 51)])


def test_clear_gives_back_all_that_was_present() -> None:
    """A crash drops what was in service and what waited, and the queue works on."""
    queue: Queue[Job] = Queue(slots=1)
    jobs = {Job(1.0), Job(1.0)}
    for job in jobs:
        queue.arrive(0.0, job)
    assert set(queue.clear()) == jobs
    assert len(queue) == 0
    queue.arrive(5.0, Job(1.0))
    assert [job.ended for job in queue.advance(9.0)] == [6.0]
