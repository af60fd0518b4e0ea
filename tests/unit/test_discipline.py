"""Queue or sharing: what the requests that found a free slot give away."""

import numpy as np
import pytest

from trimtab.discipline import (
    BLOCK_SECONDS,
    LEAST_BLOCKS,
    MOST_BLOCK_SECONDS,
    Discipline,
    Disciplines,
    Excess,
    likelihood_ratio,
    likely_sharing,
    news,
)
from trimtab.model import CONCURRENCY_LEVELS, AddressCounters, PairCounters, Window

SERVICE = 0.02


def excess(stretch: float, blocks: int = 20, seed: int = 1, unqueued: int = 400) -> Excess:
    """A server of one slot at 70% load whose requests on a free slot took `stretch` services."""
    rng = np.random.default_rng(seed)
    one = Excess()
    for _ in range(blocks):
        done = rng.poisson(700)
        busy = done * SERVICE * rng.normal(1, 0.01)
        # Of the busy time half alone and half with one more waiting.
        one.add(
            BLOCK_SECONDS,
            1,
            [busy / 2, busy / 2],
            [done],
            [unqueued],
            [unqueued * SERVICE * stretch],
        )
    return one


def test_a_queue_has_none_and_sharing_has() -> None:
    """Requests on a free slot that take their service: a queue; half as much again: sharing."""
    queue, shares = excess(1.0).discipline(), excess(1.3).discipline()
    assert queue is not None
    assert shares is not None
    assert (queue.value, queue.sure) == ("fifo", True)
    assert (shares.value, shares.sure) == ("ps", True)
    # Q is half of B: 0.3·(2 + 0.5)/0.5.
    assert shares.ratio == pytest.approx(1.5, abs=0.1)


def test_few_blocks_or_nothing_queued_say_nothing() -> None:
    """Under two minutes, or with nothing beyond the slots, nothing is known."""
    assert excess(1.3, blocks=LEAST_BLOCKS - 1).discipline() is None
    idle = Excess()
    for _ in range(20):
        idle.add(BLOCK_SECONDS, 2, [10.0, 2.0], [700], [700], [14.0])
    assert idle.discipline() is None


def test_one_block_does_not_decide_for_all() -> None:
    """Where nearly all that was queued was so in one block, its word is not enough."""
    one = excess(1.0, blocks=6)
    one.add(BLOCK_SECONDS, 1, [0.1] * 9 + [19.0], [700], [20], [2.0])
    assert one.discipline() is None


def test_a_block_waits_for_each_class_and_not_for_ever() -> None:
    """A class of a tenth of the requests needs some on a free slot; without any there is no block,
    while one of a thousandth does not matter."""

    def blocks(minor: int) -> Discipline | None:
        one = Excess()
        for _ in range(20):
            one.add(MOST_BLOCK_SECONDS, 1, [20.0, 20.0], [2000, minor], [500, 0], [10.0, 0.0])
        return one.discipline()

    assert blocks(200) is None
    assert blocks(2) is not None


def test_other_slots_begin_anew() -> None:
    """What was counted for two slots says nothing once there are three."""
    one = excess(1.3)
    assert one.discipline() is not None
    one.add(1.0, 2, [0.5, 0.2], [30], [20], [0.4])
    assert one.discipline() is None


def window(stretch: float, failures: int = 0) -> Window:
    """A block's worth of a server of one slot."""
    levels = [7.0, 7.0, *[0.0] * (CONCURRENCY_LEVELS - 2)]
    counts = [300, 400, *[0] * (CONCURRENCY_LEVELS - 2)]
    pair = PairCounters(
        requests=700 + failures,
        failures=failures,
        unqueued=300,
        unqueued_seconds=300 * SERVICE * stretch,
    )
    server = AddressCounters(completions_at=tuple(counts), seconds_at=tuple(levels))
    return Window(seconds=BLOCK_SECONDS, pairs={"a": {"s:1": pair}}, addresses={"s:1": server})


def test_what_is_sure_stays_until_the_slots_are_in_doubt() -> None:
    """An hour without anything queued takes nothing back; unknown slots do."""
    servers = Disciplines({"s:1": ["a"]})
    for _ in range(10):
        servers.add(window(1.3), {"s:1": 1})
    assert servers.found()["s:1"].value == "ps"
    for _ in range(40):
        servers.add(window(1.3, failures=300), {"s:1": 1})
    assert servers.found()["s:1"].sure
    servers.add(window(1.3), {})
    assert servers.found() == {}


def test_sharing_that_turns_into_a_queue_is_seen() -> None:
    """Ten minutes of the opposite are believed."""
    servers = Disciplines({"s:1": ["a"]})
    for stretch in [1.3] * 10 + [1.0] * 40:
        servers.add(window(stretch), {"s:1": 1})
    assert servers.found()["s:1"].value == "fifo"


def test_news_is_told_once_and_says_who_stands() -> None:
    """What becomes sure is told, with the configuration's word where it is another one."""
    sure, unsure = Discipline(ratio=0.9, error=0.1), Discipline(ratio=0.3, error=0.4)
    assert list(news({}, {"s:1": unsure}, {})) == []
    assert list(news({"s:1": unsure}, {"s:1": sure}, {"s:1": None})) == [
        "s:1 shares its slots: a queue has 0, it 0.90 ± 0.10"
    ]
    (told,) = news({}, {"s:1": sure}, {"s:1": "fifo"})
    assert told.endswith("; the configuration says fifo, which stands")
    assert list(news({"s:1": sure}, {"s:1": sure}, {"s:1": "fifo"})) == []


def test_half_a_minute_says_which_is_likelier() -> None:
    """Of a server whose busy slots had half of that time requests beyond them: a stretch as of one
    that shares, none, one that may be either, and one that cannot be told as hardly any waited."""
    assert likelihood_ratio(1.2, 0.03, 10.0, 5.0) > 20
    assert likelihood_ratio(1.0, 0.03, 10.0, 5.0) < 1 / 3
    assert 1 / 3 < likelihood_ratio(1.1, 0.3, 10.0, 5.0) < 3
    assert likelihood_ratio(1.2, 0.03, 10.0, 0.1) == 1.0
    assert likelihood_ratio(1.2, float("inf"), 10.0, 5.0) == 1.0


def test_servers_beside_each_other_are_mostly_alike() -> None:
    """One of unclear kind is taken for what the others show; one that clearly queues is not; and
    nothing is likely where nothing is known."""
    assert likely_sharing({"a": 50.0, "b": 50.0, "c": 1.0, "d": 0.05}) == {"a", "b", "c"}
    assert likely_sharing({"a": 0.1, "b": 0.1, "c": 1.0}) == frozenset()
    assert likely_sharing({"a": 1.0, "b": 1.0}) == frozenset()
    assert likely_sharing({}) == frozenset()
