"""Reports of balancers: only a later one counts, silent ones are forgotten, room is bounded."""

import dataclasses
import threading

import pytest

import serving
from trimtab.errors import SourceError
from trimtab.model import PairCounters, Snapshot
from trimtab.sources import reported
from trimtab.sources.reported import Reported


class Clock:
    """A clock that stands until it is set."""

    now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def snapshot(
    instance: str = "a", start: int = 7, requests: int = 0, upstreams: tuple[str, ...] = ("u0",)
) -> Snapshot:
    """A snapshot with one peer in each upstream."""
    pairs = {u: {"10.0.0.1:80": PairCounters(requests=requests)} for u in upstreams}
    return Snapshot(instance=instance, start=start, clock_seconds=1.0, pairs=pairs)


@pytest.fixture
def clock() -> Clock:
    """The source's clock."""
    return Clock()


@pytest.fixture
def source(clock: Clock) -> Reported:
    """A source that forgets after 10 s."""
    return Reported(serving.configuration(policy="time_to_live_seconds = 10"), clock)


def test_newest_snapshot_of_each_balancer_is_read(source: Reported) -> None:
    """A read gives the last accepted snapshot of each balancer, by name."""
    assert source.read() == ()
    b, a1, a2 = snapshot("b"), snapshot("a", requests=1), snapshot("a", requests=2)
    assert source.put(b, 1)
    assert source.put(a1, 1)
    assert source.put(a2, 2)
    assert not source.put(a1, 1)
    assert source.read() == (a2, b)
    assert source.accepted == 3


@pytest.mark.parametrize(
    ("start", "sequence"), [(7, 5), (7, 4), (7, 0), (6, 6)], ids=["same", "late", "zero", "start"]
)
def test_stale_reports_change_nothing(source: Reported, start: int, sequence: int) -> None:
    """A repetition, an older sequence and an older start are ignored."""
    first = snapshot(requests=9)
    assert source.put(first, 5)
    assert not source.put(snapshot(start=start, requests=1), sequence)
    assert source.read() == (first,)


def test_larger_start_begins_anew(source: Reported) -> None:
    """Counters that began again replace the old ones whatever their sequence."""
    source.put(snapshot(start=7), 500)
    later = snapshot(start=8)
    assert source.put(later, 1)
    assert source.read() == (later,)


def test_silent_balancers_are_forgotten(source: Reported, clock: Clock) -> None:
    """A balancer that did not report for a time to live is not read any more."""
    source.put(snapshot("a"), 1)
    clock.now += 6
    source.put(snapshot("b"), 1)
    clock.now += 5
    assert [s.instance for s in source.read()] == ["b"]
    assert [i.name for i in source.instances()] == ["b"]


def test_stale_reports_do_not_keep_a_balancer_alive(source: Reported, clock: Clock) -> None:
    """Only accepted reports count as a sign of life."""
    source.put(snapshot("a"), 1)
    clock.now += 6
    assert not source.put(snapshot("a"), 1)
    clock.now += 5
    assert source.read() == ()


def test_smaller_start_is_taken_after_silence(source: Reported, clock: Clock) -> None:
    """A balancer whose wall clock went back is heard again once its old life has expired."""
    source.put(snapshot(start=9), 5)
    clock.now += 10.5
    back = snapshot(start=3)
    assert source.put(back, 1)
    assert source.read() == (back,)


def test_instances_tell_age_and_generation(source: Reported, clock: Clock) -> None:
    """The list of balancers carries what an operator asks about each."""
    source.put(dataclasses.replace(snapshot(), generation=41), 3)
    clock.now += 2
    (instance,) = source.instances()
    assert instance == reported.Instance(
        name="a", start=7, sequence=3, generation=41, age_seconds=2.0
    )


def test_number_of_balancers_is_bounded(
    source: Reported, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more balancer than there is room for is refused, until a silent one is forgotten."""
    monkeypatch.setattr(reported, "MAX_INSTANCES", 2)
    source.put(snapshot("a"), 1)
    clock.now += 6
    source.put(snapshot("b"), 1)
    with pytest.raises(SourceError, match="'c' was not taken: at most 2 balancers are held"):
        source.put(snapshot("c"), 1)
    assert source.put(snapshot("b"), 2), "known balancers go on"
    clock.now += 5
    assert source.put(snapshot("c"), 1)
    assert [s.instance for s in source.read()] == ["b", "c"]


def test_number_of_pairs_is_bounded(source: Reported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the pairs of all balancers, and replacing a report frees its own."""
    monkeypatch.setattr(reported, "MAX_PAIRS_HELD", 3)
    source.put(snapshot("a", upstreams=("u0", "u1")), 1)
    with pytest.raises(SourceError, match="at most 3 upstream-peer pairs"):
        source.put(snapshot("b", upstreams=("u0", "u1")), 1)
    assert source.put(snapshot("a", upstreams=("u0", "u1", "u2")), 2)
    assert source.put(snapshot("a", upstreams=("u0",)), 3)
    assert source.put(snapshot("b", upstreams=("u0", "u1")), 1)


def test_concurrent_reports_leave_the_latest() -> None:
    """Of reports that arrive in many threads in any order the latest of each balancer stays."""
    source = Reported(serving.configuration())
    gate = threading.Barrier(8)

    def report(first: int) -> None:
        gate.wait()
        for sequence in range(first, 401, 8):
            for name in "ab":
                source.put(snapshot(name, requests=sequence), sequence)
            source.read()

    threads = [threading.Thread(target=report, args=(n + 1,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [s.pairs["u0"]["10.0.0.1:80"].requests for s in source.read()] == [400, 400]
