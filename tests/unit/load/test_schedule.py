"""The schedule: rates, steps, bursts, seeds, and what is refused."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ConfigError
from trimtab.load.laws import LAWS
from trimtab.load.schedule import Bursts, ClassLoad, Schedule, Step, build
from trimtab.load.workloads import Request, Work, compose, home

A = ClassLoad(name="a", rate_per_second=200)
B = ClassLoad(name="b", rate_per_second=50, law="zipf", request=compose, work=Work("exp", 0.01))


def own(schedule: Schedule, name: str) -> np.ndarray:
    """The times of one class."""
    index = [c.name for c in schedule.classes].index(name)
    return schedule.times[schedule.class_index == index]


def same(first: Schedule, second: Schedule) -> bool:
    """Whether two schedules send the same at the same times."""
    return first.requests == second.requests and all(
        np.array_equal(getattr(first, f), getattr(second, f), equal_nan=True)
        for f in ("times", "class_index", "variant", "work_seconds")
    )


@pytest.mark.parametrize("law", LAWS)
def test_every_law_gives_the_rate(law: str) -> None:
    """Over 200 s each law sends its rate within three standard errors."""
    times = build([replace(A, law=law)], seconds=200, seed=3).times
    variation = {"exp": 1.0, "fixed": 0.0, "norm": 0.458, "zipf": 1.154}[law]
    assert abs(len(times) - 40_000) <= 3 * variation * np.sqrt(40_000) + 1


def test_the_same_seed_gives_the_same_schedule() -> None:
    """Times, requests and work depend on the seed alone, and another seed gives others."""
    first = build([A, B], seconds=5, seed=1)
    assert same(first, build([A, B], seconds=5, seed=1))
    assert not same(first, build([A, B], seconds=5, seed=2))


def test_a_class_has_streams_of_its_own() -> None:
    """Adding, reordering or changing another class leaves a class's times and work as they were."""
    alone = build([B], seconds=5, seed=1)
    mixed = build([replace(A, rate_per_second=77), B], seconds=5, seed=1)
    assert np.array_equal(own(alone, "b"), own(mixed, "b"))
    chosen = mixed.class_index == 1
    assert np.array_equal(alone.work_seconds, mixed.work_seconds[chosen])
    assert np.array_equal(alone.variant, mixed.variant[chosen])


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    """The first five seconds of a run of fifty are those of a run of five."""
    short, long = build([A, B], seconds=5, seed=4), build([A, B], seconds=50, seed=4)
    count = len(short)
    assert np.array_equal(short.times, long.times[:count])
    assert np.array_equal(short.work_seconds, long.work_seconds[:count], equal_nan=True)
    assert np.array_equal(short.variant, long.variant[:count])


def test_steps_change_the_rate() -> None:
    """Each step has its rate, and a pause is empty to its last instant."""
    load = ClassLoad(
        name="s", rate_per_second=100, law="fixed", steps=(Step(10, 0), Step(20, 300), Step(30, 5))
    )
    times = build([load], seconds=40, seed=0).times
    counts, _ = np.histogram(times, bins=[0, 10, 20, 30, 40])
    assert counts[1] == 0
    assert np.allclose(counts[[0, 2, 3]], [1000, 3000, 50], atol=1)
    assert np.diff(times[(times > 20) & (times < 30)]) == pytest.approx(1 / 300)


def test_a_step_does_not_restart_the_gap() -> None:
    """Gaps that span a step of one law are kept: many small steps still give the mean rate."""
    steps = tuple(Step(k * 0.1, 2.0) for k in range(1, 1000))
    load = ClassLoad(name="s", rate_per_second=2, law="fixed", steps=steps)
    assert abs(len(build([load], seconds=100, seed=1)) - 200) <= 1


def test_a_step_may_change_the_law() -> None:
    """From a step with a law on, gaps follow it."""
    load = ClassLoad(name="s", rate_per_second=100, steps=(Step(50, 100, "fixed"),))
    times = build([load], seconds=100, seed=1).times
    late = np.diff(times[times > 50.1])
    assert late == pytest.approx(0.01)
    assert np.diff(times[times < 50]).std() == pytest.approx(0.01, rel=0.1)


def test_bursts_keep_the_mean_rate() -> None:
    """Bursts move requests together without changing how many there are in the long run."""
    bursts = Bursts(factor=5, burst_seconds=1, calm_seconds=4)
    counts = [
        len(build([replace(A, bursts=bursts)], seconds=2000, seed=seed)) / 2000 for seed in range(3)
    ]
    # 400 cycles a run; the rate's deviation over cycles is about its mean.
    assert np.mean(counts) == pytest.approx(200, rel=0.06)


def test_bursts_have_their_factor() -> None:
    """Inside bursts the rate is the factor times the calm's; both are known from the mean rate."""
    bursts = Bursts(factor=5, burst_seconds=5, calm_seconds=20)
    times = build([replace(A, bursts=bursts)], seconds=2000, seed=1).times
    per_second = np.histogram(times, bins=np.arange(0, 2001))[0]
    calm = 200 * bursts.calm_multiplier
    # The seconds wholly in one state cluster around its rate.
    assert np.median(per_second[per_second < 250]) == pytest.approx(calm, rel=0.05)
    assert np.median(per_second[per_second > 400]) == pytest.approx(5 * calm, rel=0.05)


def test_shared_bursts_come_together() -> None:
    """Classes with shared bursts have them at the same times, others do not."""

    def correlation(shared: bool) -> float:
        bursts = Bursts(5, 5, 20, shared)
        schedule = build(
            [replace(A, bursts=bursts), replace(A, name="b", bursts=bursts)], seconds=1000, seed=2
        )
        counts = [np.histogram(own(schedule, n), bins=np.arange(0, 1001))[0] for n in "ab"]
        return float(np.corrcoef(*counts)[0, 1])

    assert correlation(True) > 0.9
    assert abs(correlation(False)) < 0.3


def test_classes_are_merged_in_time() -> None:
    """Rows ascend in time, and each points to a request and the work of its own class."""
    schedule = build([A, B, ClassLoad(name="h", rate_per_second=9, request=home)], seconds=20)
    assert (np.diff(schedule.times) >= 0).all()
    assert np.isnan(schedule.work_seconds[schedule.class_index != 1]).all()
    assert (schedule.work_seconds[schedule.class_index == 1] > 0).all()
    assert [len(r) for r in schedule.requests] == [1, 1024, 1024]
    assert schedule.variant[schedule.class_index == 0].max() == 0
    assert schedule.variant[schedule.class_index == 1].max() > 900
    assert schedule.offered_per_second == pytest.approx(len(schedule) / 20)


@settings(max_examples=60, deadline=None)
@given(
    law=st.sampled_from(LAWS),
    rate=st.floats(0, 200),
    steps=st.lists(
        st.tuples(st.floats(0, 12), st.floats(0, 300), st.sampled_from([None, *LAWS])), max_size=5
    ),
    bursty=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_whatever_the_steps_times_ascend_within_the_run(
    law: str, rate: float, steps: list[tuple[float, float, str | None]], bursty: bool, seed: int
) -> None:
    """Times ascend in [0, seconds), and none falls where the rate is zero."""
    plan = tuple(Step(*s) for s in sorted(steps, key=lambda s: s[0]))
    load = ClassLoad(
        name="x",
        rate_per_second=rate,
        law=law,
        steps=plan,
        bursts=Bursts(3, 0.5, 2) if bursty else None,
    )
    times = build([load], seconds=10, seed=seed).times
    assert (np.diff(times) >= 0).all()
    assert times.size == 0 or (times[0] >= 0 and times[-1] <= 10)
    edges = [Step(0, rate), *plan, Step(10, 0)]
    for step, after in itertools.pairwise(edges):
        if step.rate_per_second == 0:
            inside = (times > step.at_seconds + 1e-9) & (times < after.at_seconds - 1e-9)
            assert not inside.any()


BAD = {
    "unknown law 'poisson'": ([replace(A, law="poisson")], 1.0),
    "unknown law 'x'": ([replace(A, steps=(Step(0.5, 1, "x"),))], 1.0),
    "rate is -1": ([replace(A, rate_per_second=-1)], 1.0),
    "rate is nan": ([replace(A, rate_per_second=float("nan"))], 1.0),
    "duration": ([A], 0.0),
    "is given twice": ([A, A], 1.0),
    "a class name is": ([replace(A, name="a b")], 1.0),
    "nothing to send": ([], 1.0),
    "in the order": ([replace(A, steps=(Step(2, 1), Step(1, 1)))], 5.0),
    "deadline": ([replace(A, deadline_seconds=0)], 1.0),
    "mean length of a calm": ([replace(A, bursts=Bursts(2, 1, 0))], 1.0),
    "at most 50000000": ([replace(A, rate_per_second=1e6)], 1e6),
    "would have inf requests": ([replace(A, rate_per_second=1e308)], 1e308),
    "work must be": ([replace(A, work=lambda _, n: np.full(n, -1.0))], 1.0),
}


@pytest.mark.parametrize("message", BAD)
def test_what_makes_no_sense_is_refused(message: str) -> None:
    """Each wrong argument is a ConfigError that names it."""
    classes, seconds = BAD[message]
    with pytest.raises(ConfigError, match=message):
        build(classes, seconds=seconds)


def test_a_seed_is_a_whole_number() -> None:
    """A negative seed is refused, not passed on to numpy."""
    with pytest.raises(ConfigError, match="seed is -1"):
        build([A], seconds=1, seed=-1)


def test_a_rate_of_zero_sends_nothing() -> None:
    """A schedule may be empty."""
    assert len(build([ClassLoad(name="z", rate_per_second=0, request=Request())], seconds=5)) == 0
