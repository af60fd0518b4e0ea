"""Sums over records: percentiles, tardiness, kinds of failure, merging."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.load.records import (
    FIELDS,
    Ending,
    Records,
    merge,
    spread,
    summarise,
    tardiness,
)

NAN = math.nan


def records(
    responses: list[float],
    endings: list[Ending] | None = None,
    classes: list[int] | None = None,
    peers: list[int] | None = None,
    lag: float = 0.0,
) -> Records:
    """Records intended at 0, 1, 2, … s with these response times."""
    count = len(responses)
    intended = np.arange(count, dtype=float)
    ending = np.array(endings or [Ending.OK] * count, dtype=np.uint8)
    status = np.where(ending == Ending.OK, 200, np.where(ending == Ending.STATUS, 503, 0))
    return Records(
        classes=("a", "b"),
        peers=("p", "q"),
        class_index=np.array(classes or [0] * count, dtype=np.uint16),
        intended=intended,
        work_seconds=np.full(count, NAN),
        send=intended + lag,
        first_byte=intended + np.array(responses) / 2,
        end=intended + np.array(responses),
        status=status.astype(np.uint16),
        ending=ending,
        peer=np.array(peers or [0] * count, dtype=np.int16),
        reused=np.zeros(count, dtype=bool),
        received_bytes=np.zeros(count, dtype=np.uint32),
    )


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_sorted_times(values: list[float]) -> None:
    """A percentile is the smallest time that at least that share does not exceed."""
    ordered = sorted(values)
    found = spread(np.array(values))
    for share, got in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99), (1, found.max)):
        assert got == ordered[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values))


def test_percentiles_of_many_times_agree_with_numpy() -> None:
    """On 100 000 times every percentile lies within a rank of numpy's interpolated one."""
    values = np.random.default_rng(1).lognormal(-4, 1, 100_000)
    found = spread(values)
    for share, got in ((0.5, found.p50), (0.99, found.p99), (0.999, found.p999)):
        assert got == pytest.approx(np.quantile(values, share), rel=0.002)


def test_nothing_has_no_spread() -> None:
    """Without times the figures are NaN and the count 0, not an error."""
    assert spread(np.array([NAN])).count == 0
    assert math.isnan(spread(np.zeros(0)).p99)


def test_tardiness_is_relative_and_failures_cost_nine() -> None:
    """max(0, (t-d)/d), and for a failed request that or 9, whichever is larger."""
    times = np.array([0.05, 0.1, 0.3, 0.01, 5.0])
    failed = np.array([False, False, False, True, True])
    assert tardiness(times, failed, 0.1) == pytest.approx([0, 0, 2, 9, 49])


def test_a_summary_counts_every_request_once() -> None:
    """Succeeded, failed and cut add up to the requests, and kinds to the failed and cut."""
    endings = list(Ending)
    found = summarise(
        records([0.1] * len(endings), endings), seconds=10, deadlines={"a": None, "b": None}
    )
    assert found.requests == len(endings)
    assert found.succeeded == 1
    assert found.failed == len(endings) - 2
    assert found.failures == {e.name.lower(): 1 for e in Ending if e != Ending.OK}
    assert found.statuses == {200: 1, 503: 1}
    assert found.response.count == len(endings) - 1  # all but the one whose end is not known
    assert found.success.count == 1
    assert found.art is None
    assert found.goodput_per_second is None


def test_art_holds_each_class_to_its_own_deadline() -> None:
    """ART of all classes is the sum of the classes', those without a deadline left out."""
    data = records([0.3, 0.3, 0.09, 0.1], [Ending.OK] * 3 + [Ending.RESET], [0, 1, 0, 0])
    deadlines = {"a": 0.1, "b": 0.15}
    total = summarise(data, seconds=4, deadlines=deadlines)
    parts = [summarise(data.of(n), seconds=4, deadlines=deadlines) for n in "ab"]
    assert parts[0].art == pytest.approx(2 + 9)
    assert parts[1].art == pytest.approx(1)
    assert total.art == pytest.approx(12)
    assert total.art_per_1000 == pytest.approx(3000)
    assert total.tardy_ratio == pytest.approx(3 / 4)
    assert total.goodput_per_second == pytest.approx(1 / 4)
    assert total.deadline_seconds is None
    assert parts[0].deadline_seconds == 0.1
    assert summarise(data, seconds=4, deadlines={"a": None, "b": 0.15}).art == pytest.approx(1)


def test_a_cut_request_is_not_judged() -> None:
    """What an interruption hid counts neither as tardy nor into percentiles."""
    found = summarise(
        records([0.05, 99.0], [Ending.OK, Ending.CUT]), seconds=2, deadlines={"a": 0.1}
    )
    assert found.art == 0
    assert found.art_per_1000 == 0
    assert found.response.max == 0.05


def test_peers_are_counted_by_name() -> None:
    """Answers count for the peer that gave them, and those without a name for none."""
    found = summarise(records([0.1] * 4, peers=[0, 1, 1, -1]), seconds=4, deadlines={})
    assert found.peers == {"p": 1, "q": 2}


def test_service_time_counts_from_the_send() -> None:
    """Response time counts from the intended time; service time leaves the generator's lag out."""
    found = summarise(records([0.5], lag=0.2), seconds=1, deadlines={})
    assert found.response.p50 == pytest.approx(0.5)
    assert found.service.p50 == pytest.approx(0.3)


def test_merging_puts_rows_in_their_places() -> None:
    """Rows of several processes get their schedule's order, and peers one numbering."""
    whole = records([0.1, 0.2, 0.3, 0.4, 0.5], peers=[0, 1, -1, 0, 1])
    rows = [np.array([0, 2, 4]), np.array([1, 3])]
    parts = []
    for places in rows:
        columns = {
            f: getattr(whole, f)[places]
            for f in ("class_index", "intended", "work_seconds", *FIELDS)
        }
        parts.append(Records(classes=whole.classes, peers=whole.peers, **columns))
    # The second process met the peers in the other order.
    flipped = np.array([1, 0, -1], dtype=np.int16)[parts[1].peer]
    columns = {f: getattr(parts[1], f) for f in ("class_index", "intended", "work_seconds")}
    columns |= {f: getattr(parts[1], f) for f in FIELDS} | {"peer": flipped}
    parts[1] = Records(classes=whole.classes, peers=("q", "p"), **columns)
    merged = merge(list(zip(rows, parts, strict=True)), 5)
    assert merged.peers == whole.peers
    for name in ("intended", "end", "peer", "status"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name))
