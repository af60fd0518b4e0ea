"""Totals only rise, and the history is what a graph needs of the last ten minutes."""

import pytest

from trimtab import traffic
from trimtab.model import BUCKET_BOUNDS_SECONDS, AddressCounters, PairCounters, Window
from trimtab.traffic import History, Totals

BUCKETS = (4, *[0] * (len(BUCKET_BOUNDS_SECONDS) - 1), 1)


def window(*, seconds: float = 1.0, requests: int = 5, ejections: int = 0) -> Window:
    """One class at two peers, `requests` at each, 1 of tardiness at each."""
    pair = PairCounters(
        requests=requests,
        responses=(0, requests, 0, 0, 0),
        response_time_seconds=requests * 0.1,
        tardiness=1.0,
        tardy=1,
        buckets=BUCKETS,
    )
    return Window(
        seconds=seconds,
        pairs={"u": {"a:1": pair, "b:1": pair}},
        addresses={"a:1": AddressCounters(ejections=ejections), "b:1": AddressCounters()},
    )


def test_totals_add_windows_up() -> None:
    """Two windows are counted by pair, and histogram and status classes by upstream."""
    totals = Totals()
    totals.take(window(), {})
    totals.take(window(requests=7), {})
    upstream = totals.status()["upstreams"]["u"]
    assert upstream["peers"]["a:1"]["requests"] == 12
    assert upstream["peers"]["b:1"]["tardiness"] == 2.0
    assert upstream["responses"] == [0, 24, 0, 0, 0]
    assert (upstream["buckets"][0], upstream["buckets"][-1]) == (16, 4)


def test_rows_that_are_not_known_and_idle_peers_change_no_sum() -> None:
    """A source without buckets leaves those of others alone; an idle peer is listed with zeros."""
    totals = Totals()
    totals.take(window(), {})
    bare = PairCounters(requests=1, responses=(), buckets=(), in_flight_seconds=0.5)  # type: ignore[arg-type]
    totals.take(Window(seconds=1.0, pairs={"u": {"a:1": bare, "c:1": PairCounters()}}), {})
    upstream = totals.status()["upstreams"]["u"]
    assert upstream["responses"] == [0, 10, 0, 0, 0]
    assert sum(upstream["buckets"]) == 10
    assert upstream["peers"]["a:1"]["requests"] == 6
    assert set(upstream["peers"]["c:1"].values()) == {0.0}


def test_ejections_add_up() -> None:
    """A server that was ejected once in one window and twice in another was so three times."""
    totals = Totals()
    for ejections in (0, 1, 0, 2):
        totals.take(window(ejections=ejections), {})
    assert totals.status()["ejections"] == {"a:1": 3, "b:1": 0}


def test_history_has_a_point_each_two_seconds() -> None:
    """Intervals are put together to points; rates are per second, ART per 1000 requests."""
    history = History()
    for n in range(5):
        history.take(window(), {}, 100.0 + n)
    points = history.status()["points"]
    assert [p["time"] for p in points] == [101.0, 103.0]
    assert points[0]["requests_per_second"] == 10
    assert points[0]["art_per_1000"] == pytest.approx(200)
    assert points[0]["classes"]["u"]["response_time_seconds"] == pytest.approx(0.1)


def test_history_is_bounded_and_knows_silence() -> None:
    """The oldest points go; without a request there is no ART, not one of zero."""
    history = History()
    for n in range(traffic.MOST_POINTS + 400):
        history.take(window(seconds=2.0, requests=0), {}, float(n))
    points = history.status()["points"]
    assert len(points) == 300
    assert points[-1]["art_per_1000"] is None
    assert points[-1]["classes"]["u"]["response_time_seconds"] is None
