"""The waiting room: `nginx/lua/resty/trimtab/room.lua` in Python, step by step.

`tests/data/golden/rule.json` holds both to the same binds. The Lua file says what the order means
and where its constants come from. Plain loops over arrays, so that numba can compile it: the
request of a class that waits first is in `first`, and `after` links those behind it.

A drain is calls of `bind` until it gives nobody; whoever it gives has left the room, and is counted
in the drain's view of the servers, though not yet at its server.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.twin import rule
from trimtab.twin.compiled import bare, compiled, compiled_module, inlined
from trimtab.twin.parts import Balancers, Control

__all__ = [
    "Room",
    "bare_room",
    "bind",
    "holds",
    "limit",
    "looks_at",
    "push",
    "remove",
    "room",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CLAIMS: Final = 32
DEADLINE_SERVICES: Final = 4.0
LOOK_SERVICES: Final = 1.0
TURNS: Final = 8
# limits.lua
MIN_RATE: Final = 1e-6
TRIAL_EVERY_SECONDS: Final = 8.0
TRIAL_SECONDS: Final = 1.0

NOBODY: Final = -1

fast_rule: Final = compiled_module(
    rule,
    (
        "score", "pick", "claim", "advance", "rate", "error_ratio", "forget", "limit", "urgency",
    ),
)  # fmt: skip
_claim, _limit, _urgency = fast_rule.claim, fast_rule.limit, fast_rule.urgency


class Room(NamedTuple):
    """The rooms of B balancers for C classes, M servers and N requests; -1 is nobody."""

    first: Integers  # (B, C)
    last: Integers
    unseen: Integers  # the first that has not looked at the room by itself, see `looks_at`
    waiting: Integers  # (B,)
    before: Integers  # (N,)
    after: Integers
    bound: Integers  # (B,): since the last turn of who is late
    cursor: Integers  # (B, C), this and the rest: of the present drain
    claims: Floats
    free: Floats  # (B,): requests that may go out before every server is at its limit
    in_flight: Floats  # (B·M,): with the claims and binds of this drain
    work: Floats
    limit: Floats
    scores: Floats  # (M,)


def room(balancers: int, classes: int, servers: int, requests: int) -> Room:
    """Empty rooms."""
    each, rows = (balancers, classes), balancers * servers
    return Room(
        first=np.full(each, NOBODY, dtype=np.int64),
        last=np.full(each, NOBODY, dtype=np.int64),
        unseen=np.full(each, NOBODY, dtype=np.int64),
        waiting=np.zeros(balancers, dtype=np.int64),
        before=np.full(requests, NOBODY, dtype=np.int64),
        after=np.full(requests, NOBODY, dtype=np.int64),
        bound=np.zeros(balancers, dtype=np.int64),
        cursor=np.full(each, NOBODY, dtype=np.int64),
        claims=np.zeros(each),
        free=np.zeros(balancers),
        in_flight=np.zeros(rows),
        work=np.zeros(rows),
        limit=np.zeros(rows),
        scores=np.zeros(servers),
    )


@compiled
def bare_room(of: Room) -> Room:
    """The same arrays, see `compiled.bare`."""
    return Room(
        first=bare(of.first),
        last=bare(of.last),
        unseen=bare(of.unseen),
        waiting=bare(of.waiting),
        before=bare(of.before),
        after=bare(of.after),
        bound=bare(of.bound),
        cursor=bare(of.cursor),
        claims=bare(of.claims),
        free=bare(of.free),
        in_flight=bare(of.in_flight),
        work=bare(of.work),
        limit=bare(of.limit),
        scores=bare(of.scores),
    )


@inlined
def limit(b: int, g: int, now: float, c: Control, k: Balancers) -> float:
    """The most that balancer b lets server g have in flight, as limits.lua has it."""
    is_exact = c.given[g] != 0 or now % TRIAL_EVERY_SECONDS >= TRIAL_SECONDS
    seconds = c.mean_service[b] / max(k.rate[g], MIN_RATE)
    most: float = _limit(c.slots[g], is_exact, seconds)
    return most


@inlined
def holds(b: int, j: int, c: Control) -> bool:
    """Whether requests of class j wait at balancer b: `hold` says so, and the slots are known of
    every server that may get one (hold = "auto" in limits.lua)."""
    if c.hold[j] == 0:
        return False
    opened = 0
    for p in range(c.server.shape[1]):
        if c.skip[b, j, p] == 0:
            opened += 1
            if c.slots[c.server[b, p]] < 1:
                return False
    return opened > 0


@inlined
def push(r: Room, b: int, j: int, job: int) -> None:
    """A request begins to wait, last in its class."""
    before = r.last[b, j]
    r.before[job] = before
    r.after[job] = NOBODY
    if before >= 0:
        r.after[before] = job
    else:
        r.first[b, j] = job
    r.last[b, j] = job
    if r.unseen[b, j] < 0:
        r.unseen[b, j] = job
    r.waiting[b] += 1


@inlined
def remove(r: Room, b: int, j: int, job: int) -> None:
    """A request ends its wait, wherever it stands."""
    before, after = r.before[job], r.after[job]
    if before >= 0:
        r.after[before] = after
    else:
        r.first[b, j] = after
    if after >= 0:
        r.before[after] = before
    else:
        r.last[b, j] = before
    if r.unseen[b, j] == job:
        r.unseen[b, j] = after
    r.waiting[b] -= 1


@inlined
def looks_at(b: int, j: int, at: Floats, r: Room, c: Control) -> float:
    """When the next of class j, if there is one, looks at the room by itself; whoever does that
    moves `unseen` on."""
    return float(at[r.unseen[b, j]] + LOOK_SERVICES * c.service[b, j])


@compiled
def next_look(b: int, at: Floats, r: Room, c: Control) -> int:
    """The class of which somebody looks at the room first; -1 where nobody will."""
    first, found = math.inf, NOBODY
    for j in range(r.unseen.shape[1]):
        if r.unseen[b, j] >= 0:
            when = looks_at(b, j, at, r, c)
            if when < first:
                first, found = when, j
    return found


@inlined
def _deadline(b: int, j: int, c: Control) -> float:
    given = c.deadline[j]
    seconds: float = given if given > 0 else DEADLINE_SERVICES * c.service[b, j]
    return seconds


@compiled
def _next(b: int, now: float, is_turn: bool, at: Floats, r: Room, c: Control) -> int:
    """The class whose cursor is next; -1 when there is none."""
    best, most, oldest, late = -1, -math.inf, math.inf, -1
    for j in range(r.first.shape[1]):
        job = r.cursor[b, j]
        if job >= 0:
            deadline, service = _deadline(b, j, c), c.service[b, j]
            value = _urgency(now, at[job], deadline, service, c.mean_service[b])
            if value > most:
                best, most = j, value
            if at[job] < oldest and now > at[job] + deadline - service:
                late, oldest = j, at[job]
    return late if is_turn and late >= 0 else best


@compiled
def bind(
    b: int, is_first: bool, now: float, uniform: float, at: Floats, r: Room, c: Control,
    k: Balancers,
) -> tuple[int, int]:  # fmt: skip
    """The next request that a drain binds, and its peer; (-1, -1) at the end of the drain. With
    `is_first` a drain begins: it looks at the servers."""
    if r.waiting[b] == 0:
        return NOBODY, NOBODY
    if is_first:
        r.free[b] = 0.0
        for p in range(c.server.shape[1]):
            g = c.server[b, p]
            r.in_flight[g] = k.in_flight[g]
            r.work[g] = k.work[g]
            r.limit[g] = limit(b, g, now, c, k)
            r.free[b] += max(0.0, r.limit[g] - k.in_flight[g])
        for j in range(r.first.shape[1]):
            r.cursor[b, j] = r.first[b, j]
            r.claims[b, j] = 0.0
    is_turn = r.bound[b] >= TURNS - 1
    while r.free[b] > 0:
        j = _next(b, now, is_turn, at, r, c)
        if j < 0:
            return NOBODY, NOBODY
        job = r.cursor[b, j]
        after = r.after[job]
        p, has_room = _claim(
            c.server.shape[1], c.server[b], c.weight[b, j], c.affinity[b, j], c.skip[b, j],
            c.service[b, j], r.in_flight, r.work, k.rate, k.error, c.slots, c.sharing, r.limit,
            now - at[job], uniform, r.scores,
        )  # fmt: skip
        if p >= 0:
            g = c.server[b, p]
            r.in_flight[g] += 1
            r.work[g] += c.service[b, j] * c.affinity[b, j, p]
            if not has_room:
                r.claims[b, j] += 1
                is_turn = False
        else:
            r.claims[b, j] = math.inf
        r.cursor[b, j] = after if r.claims[b, j] < CLAIMS else NOBODY
        if p >= 0 and has_room:
            r.free[b] -= 1
            r.bound[b] = 0 if is_turn else r.bound[b] + 1
            remove(r, b, j, job)
            return job, p
    return NOBODY, NOBODY
