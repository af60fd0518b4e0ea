"""What the twin's event loop works on: requests, what balancers are told, know and have counted.

Nothing happens here; the loop is in `engine`. All are tuples of arrays: N requests, K changes,
B balancers, C classes, M servers; server i at balancer b is at b·M + i, class j there at
(b·C + j)·M + i.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.model import BUCKET_BOUNDS_SECONDS, CONCURRENCY_LEVELS
from trimtab.twin import rivals
from trimtab.twin.compiled import bare, compiled

__all__ = [
    "BUCKETS",
    "COLUMNS",
    "LEVELS",
    "Balancers",
    "Control",
    "Counters",
    "Load",
    "Outcome",
    "balancers",
    "bare_balancers",
    "bare_control",
    "bare_counters",
    "bare_load",
    "bare_outcome",
    "control",
    "counters",
    "outcome",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

UNFINISHED: Final = 0

BUCKETS: Final = len(BUCKET_BOUNDS_SECONDS) + 1
LEVELS: Final = CONCURRENCY_LEVELS

# Columns of the counters of a pair.
REQUESTS: Final = 0
FAILURES: Final = 1  # tries that failed
FAILED_REQUESTS: Final = 2
SECONDS: Final = 3
SQUARED: Final = 4
TARDINESS: Final = 5
TARDY: Final = 6
UNQUEUED: Final = 7
UNQUEUED_SECONDS: Final = 8
UNQUEUED_SQUARED: Final = 9
IN_FLIGHT: Final = 10
IN_FLIGHT_SECONDS: Final = 11
SINCE: Final = 12
COLUMNS: Final = 13


class Load(NamedTuple):
    """N requests in order of arrival, and K changes of servers, as in `workload`.

    `balancer` (N,): who gets it. `uniform` (N, 4): for ties, failures, and rules that draw.
    """

    at: Floats
    kind: Integers
    work: Floats
    balancer: Integers
    uniform: Floats
    change_at: Floats
    change_server: Integers
    change_speed: Floats
    change_error: Floats
    change_down: Integers


class Control(NamedTuple):
    """What each of B balancers was told of C classes and M servers (see `model.PeerWeight`)."""

    weight: Floats  # (B, C, M)
    affinity: Floats  # (B, C, M)
    skip: Floats  # (B, C, M): 1 for drained
    told: Floats  # (B, C): v_j as told, 0 where it was not
    service: Floats  # (B, C): v_j in use
    prior: Floats  # (B·M,), see `Balancers`
    slots: Floats  # (B·M,): 0 for unknown
    sharing: Floats  # (B·M,): 1 where a server is said to share its slots
    given: Floats  # (B·M,): 1 where the slots are configured and not an estimate
    hold: Floats  # (C,): 1 where requests wait for a server that has room
    server: Integers  # (B, M): where the M servers are in (B·M,)
    mean_service: Floats  # (B,)
    tau: Floats  # (B,)
    deadline: Floats  # (C,): 0 for unknown
    hand_over: Floats  # (1,): seconds that a slot stands idle before a request that waited


class Balancers(NamedTuple):
    """What B balancers know by themselves of M servers: server i at balancer b is at b·M + i."""

    in_flight: Floats  # (B·M,)
    work: Floats
    done: Floats
    busy: Floats
    last: Floats
    rate: Floats
    error: Floats
    touched: Floats  # (B,)
    memory: Floats  # (B, M, rivals.MEMORY): of the rules in `rivals`


class Counters(NamedTuple):
    """What B balancers have counted."""

    pair: Floats  # (B·C·M, COLUMNS)
    buckets: Integers  # (B·C·M, BUCKETS)
    completions_at: Integers  # (B·M, LEVELS)
    seconds_at: Floats  # (B·M, LEVELS)
    sampled: Floats  # (B, C): tries behind `service`
    service: Floats  # (B, C): own estimate of v_j


class Outcome(NamedTuple):
    """What became of N requests: `status` is 0 for one that has not ended."""

    ended: Floats
    peer: Integers  # of the last try; -1: none
    status: Integers
    own: Floats  # v_j·a_ij that its balancer counts for it
    unqueued: Integers  # whether the last try found a free slot
    began: Floats  # of the last try
    cursor: Integers  # (2,): requests and changes that have been taken


def control(balancers: int, classes: int, servers: int) -> Control:
    """What a balancer has before anyone tells it anything; 10 ms as in registry.lua."""
    shape = (balancers, classes, servers)
    return Control(
        weight=np.ones(shape),
        affinity=np.ones(shape),
        skip=np.zeros(shape),
        told=np.zeros((balancers, classes)),
        service=np.full((balancers, classes), 0.01),
        prior=np.ones(balancers * servers),
        slots=np.zeros(balancers * servers),
        sharing=np.zeros(balancers * servers),
        given=np.zeros(balancers * servers),
        hold=np.zeros(classes),
        server=np.arange(balancers * servers).reshape(balancers, servers),
        mean_service=np.full(balancers, 0.01),
        tau=np.full(balancers, 0.3),
        deadline=np.zeros(classes),
        hand_over=np.zeros(1),
    )


def balancers(count: int, servers: int) -> Balancers:
    """Balancers that have seen nothing."""
    shape = count * servers
    return Balancers(
        in_flight=np.zeros(shape),
        work=np.zeros(shape),
        done=np.zeros(shape),
        busy=np.zeros(shape),
        last=np.zeros(shape),
        rate=np.ones(shape),
        error=np.zeros(shape),
        touched=np.zeros(count),
        memory=np.zeros((count, servers, rivals.MEMORY)),
    )


def counters(balancers: int, classes: int, servers: int) -> Counters:
    """All zero."""
    pairs = balancers * classes * servers
    return Counters(
        pair=np.zeros((pairs, COLUMNS)),
        buckets=np.zeros((pairs, BUCKETS), dtype=np.int64),
        completions_at=np.zeros((balancers * servers, LEVELS), dtype=np.int64),
        seconds_at=np.zeros((balancers * servers, LEVELS)),
        sampled=np.zeros((balancers, classes)),
        service=np.zeros((balancers, classes)),
    )


def outcome(requests: int) -> Outcome:
    """Nothing has happened."""
    return Outcome(
        ended=np.full(requests, np.nan),
        peer=np.full(requests, -1, dtype=np.int64),
        status=np.full(requests, UNFINISHED, dtype=np.int64),
        own=np.zeros(requests),
        unqueued=np.zeros(requests, dtype=np.int64),
        began=np.zeros(requests),
        cursor=np.zeros(2, dtype=np.int64),
    )


@compiled
def bare_load(of: Load) -> Load:
    """The same arrays, see `compiled.bare`."""
    return Load(
        at=bare(of.at),
        kind=bare(of.kind),
        work=bare(of.work),
        balancer=bare(of.balancer),
        uniform=bare(of.uniform),
        change_at=bare(of.change_at),
        change_server=bare(of.change_server),
        change_speed=bare(of.change_speed),
        change_error=bare(of.change_error),
        change_down=bare(of.change_down),
    )


@compiled
def bare_control(of: Control) -> Control:
    """The same arrays, see `compiled.bare`."""
    return Control(
        weight=bare(of.weight),
        affinity=bare(of.affinity),
        skip=bare(of.skip),
        told=bare(of.told),
        service=bare(of.service),
        prior=bare(of.prior),
        slots=bare(of.slots),
        sharing=bare(of.sharing),
        given=bare(of.given),
        hold=bare(of.hold),
        server=bare(of.server),
        mean_service=bare(of.mean_service),
        tau=bare(of.tau),
        deadline=bare(of.deadline),
        hand_over=bare(of.hand_over),
    )


@compiled
def bare_balancers(of: Balancers) -> Balancers:
    """The same arrays, see `compiled.bare`."""
    return Balancers(
        in_flight=bare(of.in_flight),
        work=bare(of.work),
        done=bare(of.done),
        busy=bare(of.busy),
        last=bare(of.last),
        rate=bare(of.rate),
        error=bare(of.error),
        touched=bare(of.touched),
        memory=bare(of.memory),
    )


@compiled
def bare_counters(of: Counters) -> Counters:
    """The same arrays, see `compiled.bare`."""
    return Counters(
        pair=bare(of.pair),
        buckets=bare(of.buckets),
        completions_at=bare(of.completions_at),
        seconds_at=bare(of.seconds_at),
        sampled=bare(of.sampled),
        service=bare(of.service),
    )


@compiled
def bare_outcome(of: Outcome) -> Outcome:
    """The same arrays, see `compiled.bare`."""
    return Outcome(
        ended=bare(of.ended),
        peer=bare(of.peer),
        status=bare(of.status),
        own=bare(of.own),
        unqueued=bare(of.unqueued),
        began=bare(of.began),
        cursor=bare(of.cursor),
    )
