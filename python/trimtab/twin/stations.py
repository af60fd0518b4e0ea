"""The servers of the twin: what is present at each, who ends next, what a change does to them.

Per server one number V, the integral of the rate at which each request in service progresses, is
enough: a request of work w that starts at V = v ends at V = v + w. On a FIFO server the slot and
the start of a request follow from what is there when it arrives, so its end in V is known at once;
on a processor-sharing one it starts at once. So a server is a list of requests sorted by their
ends in V, linked both ways: who comes to a queue, however long, ends near its end. (`events` does
the same in one piece for rules that know everything.)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.twin.compiled import bare, compiled, inlined
from trimtab.twin.workload import Servers

__all__ = ["Stations", "bare_stations", "change", "enter", "leave", "stations"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Stations(NamedTuple):
    """M servers and N requests; the first five as in `workload.Servers`, the rest is state."""

    slots: Integers
    sharing: Integers
    speed: Floats
    affinity: Floats
    thrash: Floats
    error: Floats  # share of requests that it answers at once with a failure
    down: Integers
    virtual: Floats  # V, as of `moved`
    moved: Floats
    rate: Floats
    next_end: Floats  # (M,) time of the next end; inf: none
    present: Integers
    head: Integers  # request that ends next; -1: none
    tail: Integers  # and the one that ends last
    free: Floats  # (M, most slots): V from which on each slot is free
    following: Integers  # (N,) the one that ends after it; -1: none
    preceding: Integers  # (N,) and before it
    ends: Floats  # (N,) in V


def stations(servers: Servers, requests: int) -> Stations:
    """Empty servers, room for that many requests."""
    m = len(servers.slots)
    return Stations(
        slots=servers.slots,
        sharing=servers.sharing,
        speed=servers.speed.copy(),
        affinity=servers.affinity,
        thrash=servers.thrash,
        error=np.zeros(m),
        down=np.zeros(m, dtype=np.int64),
        virtual=np.zeros(m),
        moved=np.zeros(m),
        rate=np.zeros(m),
        next_end=np.full(m, np.inf),
        present=np.zeros(m, dtype=np.int64),
        head=np.full(m, -1, dtype=np.int64),
        tail=np.full(m, -1, dtype=np.int64),
        free=np.zeros((m, int(servers.slots.max()))),
        following=np.full(requests, -1, dtype=np.int64),
        preceding=np.full(requests, -1, dtype=np.int64),
        ends=np.zeros(requests),
    )


@compiled
def bare_stations(of: Stations) -> Stations:
    """The same arrays, see `compiled.bare`."""
    return Stations(
        slots=bare(of.slots),
        sharing=bare(of.sharing),
        speed=bare(of.speed),
        affinity=bare(of.affinity),
        thrash=bare(of.thrash),
        error=bare(of.error),
        down=bare(of.down),
        virtual=bare(of.virtual),
        moved=bare(of.moved),
        rate=bare(of.rate),
        next_end=bare(of.next_end),
        present=bare(of.present),
        head=bare(of.head),
        tail=bare(of.tail),
        free=bare(of.free),
        following=bare(of.following),
        preceding=bare(of.preceding),
        ends=bare(of.ends),
    )


@inlined
def _settle(s: Stations, i: int, now: float) -> None:
    """The rate and the next end of server i, whose V is as of now."""
    present = s.present[i]
    rate = s.speed[i]
    if s.sharing[i] and present > s.slots[i]:
        rate *= s.slots[i] / present
    if present > s.thrash[i, 0]:
        rate *= max(s.thrash[i, 2], 1.0 / (1.0 + s.thrash[i, 1] * (present - s.thrash[i, 0])))
    s.rate[i] = rate
    s.next_end[i] = np.inf
    if s.head[i] >= 0 and rate > 0:
        s.next_end[i] = now + max(0.0, s.ends[s.head[i]] - s.virtual[i]) / rate


@inlined
def _empty(s: Stations, i: int) -> None:
    """An idle server starts again from V = 0, so that V keeps its precision."""
    s.virtual[i] = 0.0
    for k in range(s.slots[i]):
        s.free[i, k] = 0.0


@inlined
def enter(s: Stations, i: int, job: int, need: float, now: float) -> None:
    """A request of that work comes to server i."""
    virtual = s.virtual[i] + s.rate[i] * (now - s.moved[i])
    s.virtual[i] = virtual
    s.moved[i] = now
    end = virtual + need
    if not s.sharing[i]:
        slot = 0
        for k in range(1, s.slots[i]):
            if s.free[i, k] < s.free[i, slot]:
                slot = k
        if s.free[i, slot] > virtual:
            end = s.free[i, slot] + need
        s.free[i, slot] = end
    s.ends[job] = end
    previous = s.tail[i]
    place = -1
    while previous >= 0 and s.ends[previous] > end:
        place = previous
        previous = s.preceding[previous]
    s.following[job] = place
    s.preceding[job] = previous
    if previous < 0:
        s.head[i] = job
    else:
        s.following[previous] = job
    if place < 0:
        s.tail[i] = job
    else:
        s.preceding[place] = job
    s.present[i] += 1
    _settle(s, i, now)


@inlined
def leave(s: Stations, i: int, now: float) -> int:
    """The request that ends at server i, which is not empty, ends now; gives it."""
    job: int = s.head[i]
    s.virtual[i] = s.ends[job]
    s.moved[i] = now
    s.head[i] = s.following[job]
    s.present[i] -= 1
    if s.present[i] == 0:
        s.tail[i] = -1
        _empty(s, i)
    else:
        s.preceding[s.head[i]] = -1
    _settle(s, i, now)
    return job


@inlined
def change(s: Stations, i: int, speed: float, error: float, down: int, now: float) -> int:
    """Server i is like this from now on. When it goes down it loses what it has: gives the first
    of the lost ones, which `following` links; else -1."""
    s.virtual[i] += s.rate[i] * (now - s.moved[i])
    s.moved[i] = now
    s.speed[i] = speed
    s.error[i] = error
    s.down[i] = down
    lost = -1
    if down:
        lost = s.head[i]
        s.head[i] = s.tail[i] = -1
        s.present[i] = 0
        _empty(s, i)
    _settle(s, i, now)
    return lost
