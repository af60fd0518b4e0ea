"""Counter arithmetic: exact, never negative, never double."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.model import (
    BUCKET_BOUNDS_SECONDS,
    CONCURRENCY_LEVELS,
    AddressCounters,
    Connections,
    PairCounters,
    Snapshot,
    Window,
)
from trimtab.responses import mean_seconds, percentile_seconds, std_seconds
from trimtab.sums import accumulate, class_total, merge
from trimtab.window import Meter, window

BUCKETS = len(BUCKET_BOUNDS_SECONDS) + 1


def pair(scale: int = 1, **changes) -> PairCounters:
    """Counters of `scale` equal requests of 10 ms, two of them at a time."""
    return replace(
        PairCounters(
            in_flight=2,
            requests=scale,
            responses=(0, scale, 0, 0, 0),
            in_bytes=100 * scale,
            out_bytes=1000 * scale,
            response_time_seconds=0.01 * scale,
            response_time_squared=0.0001 * scale,
            tardiness=0.5 * scale,
            tardy=scale,
            unqueued=scale,
            unqueued_seconds=0.008 * scale,
            unqueued_squared=0.000064 * scale,
            buckets=(0,) * 9 + (scale,) + (0,) * (BUCKETS - 10),
            in_flight_seconds=0.01 * scale,
        ),
        **changes,
    )


def snapshot(clock: float, start: int = 1, instance: str = "one", **peers) -> Snapshot:
    """One class, "c"; peers by name."""
    return Snapshot(instance=instance, start=start, clock_seconds=clock, pairs={"c": peers})


def numbers(of: PairCounters) -> list[float]:
    """Every number of a pair."""
    found: list[float] = []
    for f in fields(of):
        value = getattr(of, f.name)
        found.extend(value if isinstance(value, tuple) else [value])
    return found


COUNT = st.integers(0, 10**9)
SUM = st.floats(0, 1e9)


@st.composite
def any_pair(draw) -> PairCounters:
    """Counters as any source might give them, consistent or not."""
    return PairCounters(
        in_flight=draw(st.integers(0, 1000)),
        requests=draw(COUNT),
        responses=draw(st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT)),
        failures=draw(COUNT),
        in_bytes=draw(COUNT),
        out_bytes=draw(COUNT),
        response_time_seconds=draw(SUM),
        response_time_squared=draw(SUM),
        tardiness=draw(SUM),
        tardy=draw(COUNT),
        unqueued=draw(COUNT),
        unqueued_seconds=draw(SUM),
        unqueued_squared=draw(SUM),
        buckets=draw(st.sampled_from([(), (1,) * BUCKETS, (3,) * BUCKETS, (2,) * 5])),
        in_flight_seconds=draw(SUM),
    )


def test_increase_is_the_difference() -> None:
    """Counters between two snapshots of one life subtract, and in flight is the integral's mean."""
    found = window(snapshot(10.0, a=pair(100)), snapshot(12.0, a=pair(150)))
    assert found is not None
    assert found.seconds == 2.0
    got = found.pairs["c"]["a"]
    assert got.requests == 50
    assert got.responses == (0, 50, 0, 0, 0)
    assert got.response_time_seconds == pytest.approx(0.5)
    assert got.buckets[9] == 50
    assert got.in_flight == pytest.approx(0.01 * 50 / 2)


def test_gauge_stands_in_for_an_absent_integral() -> None:
    """A source without in-flight time gives the mean of its two readings."""
    found = window(
        snapshot(0.0, a=pair(1, in_flight=2, in_flight_seconds=0.0)),
        snapshot(1.0, a=pair(2, in_flight=5, in_flight_seconds=0.0)),
    )
    assert found is not None
    assert found.pairs["c"]["a"].in_flight == 3.5


@pytest.mark.parametrize("later", [10.0, 9.0, math.nan, math.inf])
def test_clock_that_does_not_advance_makes_no_window(later: float) -> None:
    """Without a finite, positive time there are no rates."""
    assert window(snapshot(10.0, a=pair(1)), snapshot(later, a=pair(2))) is None


def test_snapshots_of_two_balancers_are_a_mistake() -> None:
    """Subtracting one balancer from another is refused."""
    with pytest.raises(ValueError, match="two balancers"):
        window(snapshot(0.0), snapshot(1.0, instance="two"))


def test_new_start_begins_from_zero() -> None:
    """After a restart the later counters are the increase, even where they are larger."""
    found = window(snapshot(0.0, start=1, a=pair(100)), snapshot(1.0, start=2, a=pair(130)))
    assert found is not None
    assert found.pairs["c"]["a"].requests == 130


def test_counter_that_went_back_begins_from_zero() -> None:
    """A reset of one pair within a life takes that pair's later values, and the others' as ever."""
    found = window(snapshot(0.0, a=pair(100), b=pair(100)), snapshot(1.0, a=pair(30), b=pair(110)))
    assert found is not None
    assert found.pairs["c"]["a"].requests == 30
    assert found.pairs["c"]["a"].response_time_seconds == pytest.approx(0.3)
    assert found.pairs["c"]["b"].requests == 10


def test_reset_that_spares_buckets_and_times_counts_nothing_twice() -> None:
    """nginx-module-vts zeroes the requests of a group but not its buckets, and an old one not its
    times: those go on; where they did go back they began anew too."""
    before = PairCounters(requests=100, response_time_seconds=1.0, buckets=pair(100).buckets)
    old = PairCounters(requests=2, response_time_seconds=1.02, buckets=pair(102).buckets)
    new = PairCounters(requests=2, response_time_seconds=0.02, buckets=pair(102).buckets)
    for after in (old, new):
        found = window(snapshot(0.0, a=before), snapshot(1.0, a=after))
        assert found is not None
        got = found.pairs["c"]["a"]
        assert got.requests == 2
        assert sum(got.buckets) == 2
        assert got.response_time_seconds == pytest.approx(0.02)


def test_reset_without_buckets_takes_times_that_did_not_go_back_as_going_on() -> None:
    """Without buckets nothing tells whether times were zeroed; too little is better than twice."""
    before = PairCounters(requests=100, response_time_seconds=1.0)
    found = window(
        snapshot(0.0, a=before),
        snapshot(1.0, a=PairCounters(requests=2, response_time_seconds=1.02)),
    )
    assert found is not None
    assert found.pairs["c"]["a"].response_time_seconds == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("loaded", "disturbed"), [(None, False), (0.1, True), (2.9, True), (3.1, False)]
)
def test_window_after_a_reload_is_marked(loaded: float | None, disturbed: bool) -> None:
    """A window is disturbed by a configuration taken within it or up to two seconds before, and
    so are sums that hold it."""
    calm = window(snapshot(0.0, a=pair(1)), snapshot(1.0, a=pair(2)))
    later = replace(snapshot(1.0, a=pair(2)), loaded_seconds=loaded)
    found = window(snapshot(0.0, a=pair(1)), later)
    assert found is not None
    assert calm is not None
    assert found.disturbed is disturbed
    assert merge([calm, found]).disturbed is disturbed
    assert accumulate([found, calm]).disturbed is disturbed


def test_reading_in_mid_change_is_no_reset() -> None:
    """Sums of seconds that come out a little smaller count as no increase, not as a new life."""
    before = pair(1000)
    after = replace(before, in_flight_seconds=9.9999, response_time_seconds=9.9999)
    found = window(snapshot(0.0, a=before), snapshot(1.0, a=after))
    assert found is not None
    assert found.pairs["c"]["a"].response_time_seconds == 0.0
    assert found.pairs["c"]["a"].in_flight_seconds == 0.0
    assert found.pairs["c"]["a"].requests == 0


def test_level_seconds_that_step_back_are_no_reset() -> None:
    """Time at a concurrency, read in mid-change, may step back without counting all again."""
    zeros = (0.0,) * (CONCURRENCY_LEVELS - 2)
    before = AddressCounters(
        busy_seconds=100.0,
        completions_at=(50,) * CONCURRENCY_LEVELS,
        seconds_at=(90.0, 10.0, *zeros),
    )
    after = replace(before, busy_seconds=101.0, seconds_at=(91.001, 9.999, *zeros))
    found = window(
        Snapshot(instance="i", start=1, clock_seconds=0, pairs={}, addresses={"a": before}),
        Snapshot(instance="i", start=1, clock_seconds=1, pairs={}, addresses={"a": after}),
    )
    assert found is not None
    assert found.addresses["a"].seconds_at[:2] == (pytest.approx(1.001), 0.0)
    assert found.addresses["a"].completions_at == (0,) * CONCURRENCY_LEVELS


def test_ejections_of_a_window_are_those_in_it() -> None:
    """The count is the increase, the reason that of the end; a smaller count is a restart."""

    def at(clock: float, of: AddressCounters) -> Snapshot:
        return Snapshot(instance="i", start=1, clock_seconds=clock, pairs={}, addresses={"a": of})

    four = AddressCounters(ejections=4, ejection="stall", ejection_seconds=2.0)
    found = window(at(0, four), at(1, replace(four, ejections=6, ejection="errors")))
    back = window(at(0, four), at(1, AddressCounters(ejections=1)))
    assert found is not None
    assert back is not None
    assert (found.addresses["a"].ejections, found.addresses["a"].ejection) == (2, "errors")
    assert back.addresses["a"].ejections == 0


def test_new_peer_counts_whole_and_a_removed_one_not_at_all() -> None:
    """What only the later snapshot has is new; what only the earlier has is gone."""
    found = window(snapshot(0.0, old=pair(100)), snapshot(1.0, new=pair(7)))
    assert found is not None
    assert set(found.pairs["c"]) == {"new"}
    assert found.pairs["c"]["new"].requests == 7


def test_changed_buckets_are_unknown_for_one_window() -> None:
    """Buckets of another shape, or begun anew alone, say nothing; the sums go on."""
    for buckets in ((), (1, 2, 3), (0,) * BUCKETS):
        found = window(snapshot(0.0, a=pair(100)), snapshot(1.0, a=pair(120, buckets=buckets)))
        assert found is not None
        assert found.pairs["c"]["a"].buckets == ()
        assert found.pairs["c"]["a"].requests == 20


@given(before=any_pair(), after=any_pair(), restart=st.booleans())
def test_increase_is_never_negative_and_never_more_than_counted(
    before: PairCounters, after: PairCounters, restart: bool
) -> None:
    """Whatever two snapshots say, a window lies between zero and the later counters."""
    found = window(snapshot(0.0, a=before), snapshot(1.0, start=1 + restart, a=after))
    assert found is not None
    got = found.pairs["c"]["a"]
    assert all(n >= 0 and math.isfinite(n) for n in numbers(got))
    assert got.requests <= after.requests
    assert got.tardiness <= after.tardiness
    assert sum(got.buckets) <= sum(after.buckets)


@given(
    steps=st.lists(st.integers(0, 100), min_size=1, max_size=12),
    absent=st.sets(st.integers(0, 11)),
    late=st.sets(st.integers(0, 11)),
)
def test_meter_counts_everything_once(steps: list[int], absent: set[int], late: set[int]) -> None:
    """A peer that vanishes and returns with its old counts, and reports that come twice or late,
    leave the sum of the windows equal to what the peer has counted."""
    meter = Meter()
    meter.take(snapshot(0.0, a=pair(5), other=pair(1)))
    counted, seen, total = 5, 5, 0
    for n, step in enumerate(steps, 1):
        counted += step
        peers = {"other": pair(1)} if n in absent else {"a": pair(counted), "other": pair(1)}
        found = meter.take(snapshot(float(n), **peers))
        assert found is not None
        if n not in absent:
            total += found.pairs["c"]["a"].requests
            seen = counted
        if n in late:
            assert meter.take(snapshot(float(n), **peers)) is None
            assert meter.take(snapshot(n - 0.5, a=pair(1))) is None
    assert total == seen - 5


def test_meter_survives_a_reboot_of_the_balancer() -> None:
    """A new start with a clock that went back begins anew, without a window and without a loss
    afterwards."""
    meter = Meter()
    assert meter.take(snapshot(1000.0, a=pair(50))) is None
    assert meter.take(snapshot(3.0, start=2, a=pair(10))) is None
    found = meter.take(snapshot(4.0, start=2, a=pair(15)))
    assert found is not None
    assert found.pairs["c"]["a"].requests == 5


def test_merge_sums_balancers() -> None:
    """Counters and gauges of several balancers add up over the same time."""
    one = Window(
        seconds=1.0,
        pairs={"c": {"a": pair(10, in_flight=1.0)}},
        addresses={
            "a": AddressCounters(
                busy_seconds=1.0,
                rate=2.0,
                down=True,
                ejections=2,
                ejection="stall",
                ejection_seconds=0.5,
            )
        },
        waiting={"c": 2.0},
        connections=Connections(active=3),
    )
    two = Window(
        seconds=1.2,
        pairs={"c": {"a": pair(20, in_flight=3.0), "b": pair(1)}, "d": {"a": pair(2)}},
        addresses={"a": AddressCounters(busy_seconds=3.0, rate=4.0, ejections=1)},
        waiting={"c": 1.0},
        connections=Connections(active=4),
    )
    whole = merge([one, two])
    assert whole.seconds == 1.2
    assert whole.instances == 2
    assert whole.pairs["c"]["a"].requests == 30
    assert whole.pairs["c"]["a"].in_flight == 4.0
    assert whole.pairs["c"]["a"].buckets[9] == 30
    assert whole.pairs["d"]["a"].requests == 2
    assert whole.addresses["a"].busy_seconds == 4.0
    assert whole.addresses["a"].rate == pytest.approx(3.5)
    assert not whole.addresses["a"].down
    assert whole.addresses["a"].ejections == 3
    assert (whole.addresses["a"].ejection, whole.addresses["a"].ejection_seconds) == ("stall", 0.5)
    assert whole.waiting == {"c": 3.0}
    assert whole.connections.active == 7
    with pytest.raises(ValueError, match="no window"):
        merge([])


def test_accumulate_adds_time_and_averages_gauges() -> None:
    """Consecutive windows add their counters; in flight and waiting weigh by length."""
    one = Window(seconds=1.0, pairs={"c": {"a": pair(10, in_flight=4.0)}}, waiting={"c": 3.0})
    two = Window(
        seconds=3.0,
        pairs={"c": {"a": pair(5, in_flight=0.0)}},
        connections=Connections(active=9),
    )
    whole = accumulate([one, two])
    assert whole.seconds == 4.0
    assert whole.instances == 1
    assert whole.pairs["c"]["a"].requests == 15
    assert whole.pairs["c"]["a"].in_flight == pytest.approx(1.0)
    assert whole.waiting["c"] == pytest.approx(0.75)
    assert whole.connections.active == 9
    with pytest.raises(ValueError, match="no window"):
        accumulate([])


@given(st.lists(st.lists(any_pair(), min_size=2, max_size=2), min_size=1, max_size=4))
def test_sums_keep_every_request(groups: list[list[PairCounters]]) -> None:
    """Merging and accumulating lose and invent no request."""
    windows = [Window(seconds=1.0, pairs={"c": dict(zip("ab", g, strict=True))}) for g in groups]
    for whole in (merge(windows), accumulate(windows)):
        assert whole.requests == sum(w.requests for w in windows)
        assert class_total(whole, "c").failures == sum(p.failures for g in groups for p in g)


def test_statistics_of_a_pair() -> None:
    """Mean and deviation come from the sums, percentiles from the buckets."""
    two = PairCounters(
        requests=2, response_time_seconds=0.04, response_time_squared=0.01**2 + 0.03**2
    )
    assert mean_seconds(two) == pytest.approx(0.02)
    assert std_seconds(two) == pytest.approx(0.01)
    assert percentile_seconds(two, 0.5) is None
    assert mean_seconds(PairCounters()) is None
    assert std_seconds(PairCounters()) is None


@given(st.lists(st.floats(0.0002, 60.0), min_size=1, max_size=200), st.floats(0.0, 1.0))
def test_bucket_statistics_are_near_the_exact_ones(times: list[float], ratio: float) -> None:
    """A percentile from buckets lies in the bucket of the exact one; a deviation from them is
    within a bucket's width."""
    buckets = [0] * BUCKETS
    for t in times:
        buckets[sum(t > bound for bound in BUCKET_BOUNDS_SECONDS)] += 1
    counters = PairCounters(requests=len(times), buckets=tuple(buckets))
    exact = sorted(times)[max(math.ceil(ratio * len(times)) - 1, 0)]
    bucket = sum(exact > bound for bound in BUCKET_BOUNDS_SECONDS)
    low = BUCKET_BOUNDS_SECONDS[bucket - 1] if bucket else 0.0
    found = percentile_seconds(counters, ratio)
    assert found is not None
    assert low - 1e-12 <= found <= BUCKET_BOUNDS_SECONDS[bucket] + 1e-12
    mean = sum(times) / len(times)
    deviation = math.sqrt(sum((t - mean) ** 2 for t in times) / len(times))
    near = std_seconds(counters)
    assert near is not None
    assert near == pytest.approx(deviation, abs=0.35 * max(times) + 0.0005)


def test_percentile_beyond_the_last_bound_is_that_bound() -> None:
    """The last bucket is open; its lower bound is what is known."""
    late = PairCounters(requests=1, buckets=(0,) * (BUCKETS - 1) + (1,))
    assert percentile_seconds(late, 0.99) == BUCKET_BOUNDS_SECONDS[-1]


def test_class_total_of_an_unknown_class_is_zero() -> None:
    """A class without traffic sums to nothing."""
    assert class_total(Window(seconds=1.0, pairs={}), "c") == PairCounters()


@pytest.mark.parametrize(("generation", "unfollowed"), [(0, True), (3, False), (None, False)])
def test_window_of_a_balancer_without_learned_weights_is_marked(
    generation: int | None, unfollowed: bool
) -> None:
    """Generation 0 follows no learned weights; a source that does not know is believed to."""
    before, after = snapshot(0.0), replace(snapshot(1.0), generation=generation)
    got = window(before, after)
    assert got is not None
    assert got.unfollowed is unfollowed


def test_one_follower_is_enough_but_all_the_time() -> None:
    """Of several balancers one must follow the weights; of several windows each must be so."""
    followed = Window(seconds=1.0, pairs={})
    unfollowed = replace(followed, unfollowed=True)
    assert not merge([followed, unfollowed]).unfollowed
    assert merge([unfollowed, unfollowed]).unfollowed
    assert accumulate([followed, unfollowed]).unfollowed
