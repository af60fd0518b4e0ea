"""The founding project's load: lengths, rates and laws of its periods."""

import itertools

import numpy as np
import pytest

from trimtab.errors import ConfigError
from trimtab.load.founding import founding
from trimtab.load.laws import LAWS
from trimtab.load.schedule import ClassLoad, Step, build


def walk(load: ClassLoad) -> list[Step]:
    """Periods and pauses in turn."""
    return [Step(0.0, load.rate_per_second, load.law), *load.steps]


def lengths(steps: list[Step], parity: int) -> np.ndarray:
    """Seconds of the periods (0) or the pauses (1)."""
    at = np.array([s.at_seconds for s in steps])
    return np.diff(at)[parity::2]


def test_periods_and_pauses_are_those_of_the_plan() -> None:
    """Periods of 30 to 600 s at 100 to 2000 requests/s after any law, pauses of 10 to 100 s."""
    for load in founding(seconds=200_000, seed=1):
        steps = walk(load)
        periods, pauses = lengths(steps, 0), lengths(steps, 1)
        assert len(periods) > 300
        assert 30 <= periods.min() < 60
        assert 570 < periods.max() <= 600
        assert 10 <= pauses.min() < 15
        assert 95 < pauses.max() <= 100
        rates = [s.rate_per_second for s in steps[::2]]
        assert 100 <= min(rates) < 150
        assert 1950 < max(rates) <= 2000
        assert {s.law for s in steps[::2]} == set(LAWS)
        assert {s.rate_per_second for s in steps[1::2]} == {0.0}


def test_each_stream_walks_on_its_own() -> None:
    """The three streams differ from each other, and repeat with their seed."""
    first = founding(seconds=5000, seed=1)
    assert [c.name for c in first] == ["compose", "home", "user"]
    assert len({c.steps for c in first}) == 3
    assert [c.steps for c in founding(seconds=5000, seed=1)] == [c.steps for c in first]
    assert [c.steps for c in founding(seconds=5000, seed=2)] != [c.steps for c in first]


def test_time_can_be_scaled() -> None:
    """A time scale shortens every length and leaves rates and laws as they are."""
    whole = founding(seconds=3600, seed=3)
    small = founding(seconds=36, seed=3, time_scale=0.01, rate_scale=0.5)
    for one, other in zip(whole, small, strict=True):
        for a, b in zip(walk(one), walk(other), strict=True):
            assert b.at_seconds == pytest.approx(0.01 * a.at_seconds)
            assert b.rate_per_second == pytest.approx(0.5 * a.rate_per_second)
            assert a.law == b.law


def test_rate_and_law_can_be_set() -> None:
    """A given rate and law hold in every period, whose lengths stay."""
    free = founding(seconds=3600, seed=3)
    for load, other in zip(
        founding(seconds=3600, seed=3, rate_per_second=2000, law="exp"), free, strict=True
    ):
        assert {s.rate_per_second for s in walk(load)[::2]} == {2000}
        assert {s.law for s in walk(load)[::2]} == {"exp"}
        assert [s.at_seconds for s in load.steps] == [s.at_seconds for s in other.steps]


def test_pauses_are_silent() -> None:
    """Nothing is sent in a pause of a stream, and every period sends its rate."""
    classes = founding(seconds=40, seed=5, time_scale=0.02, rate_scale=0.2)
    schedule = build(classes, seconds=40, seed=5)
    for number, load in enumerate(classes):
        times = schedule.times[schedule.class_index == number]
        steps = [*walk(load), Step(1e9, 0)]
        for step, after in itertools.pairwise(steps):
            end = min(after.at_seconds, 40)
            inside = int(((times >= step.at_seconds) & (times < end)).sum())
            expected = step.rate_per_second * max(0.0, end - step.at_seconds)
            assert abs(inside - expected) <= 6 * np.sqrt(expected) + 2 * (expected > 0)


@pytest.mark.parametrize(
    "arguments", [{"time_scale": 0.0}, {"rate_scale": -1.0}, {"law": "uniform"}]
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, object]) -> None:
    """Scales are above 0 and laws are known."""
    with pytest.raises(ConfigError):
        founding(seconds=10, seed=0, **arguments)  # type: ignore[arg-type]
