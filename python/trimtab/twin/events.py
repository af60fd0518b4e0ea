"""The discrete-event simulator: requests, servers and a balancing rule in, what happened out.

Per server one number V, the integral of the rate at which each request in service progresses, is
enough (as in `demo.queueing`): a request of work w that starts at V = v ends at V = v + w. On a
FIFO server the slot and the start of a request follow from what is there when it arrives, so its
end in V is known at once; on a processor-sharing one it starts at once. So each server is a list
of requests sorted by their ends in V, and the next event is the least of a few times.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.twin import balancers
from trimtab.twin.compiled import compiled
from trimtab.twin.workload import Changes, Requests, Servers

__all__ = ["FAILED", "LOST", "OK", "UNAVAILABLE", "Records", "Rule", "simulate"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

OK: Final = 200
FAILED: Final = 500  # a failing server answered at once
LOST: Final = 502  # it was on a server that crashed
UNAVAILABLE: Final = 503  # no server was up, or it had not ended when everything had


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A balancing rule of `balancers.CODES`. `per_class`: in-flight counts and round-robin state
    are kept for each class apart, as nginx does with one upstream group a class. `weights` (M,):
    static weights, all 1 by default.
    """

    name: str
    per_class: bool = False
    weights: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What became of N requests, each field of shape (N,); times in seconds.

    `dispatched` is when a server got it, `started` when a slot did. `peer` is -1 and the times
    are NaN where it reached none.
    """

    dispatched: Floats
    started: Floats
    ended: Floats
    peer: Integers
    status: Integers


@compiled
def _rate(present: int, slots: int, sharing: int, speed: float, thrash: Floats) -> float:
    rate = speed
    if sharing and present > slots:
        rate *= slots / present
    if present > thrash[0]:
        rate *= max(thrash[2], 1.0 / (1.0 + thrash[1] * (present - thrash[0])))
    return rate


@compiled
def _earliest_end(
    own: float, speed: float, slots: int, sharing: int, virtual: float,
    free: Floats, head: int, following: Integers, ends: Floats,
) -> float:  # fmt: skip
    """Time to the end of one more request whose work `own` is known, as that of all present.

    FIFO: exact if nothing changes. PS: of each one present it shares at most its own work.
    """
    if not sharing:
        first = free[0]
        for k in range(1, slots):
            first = min(first, free[k])
        work: float = max(0.0, first - virtual) + own
        return work / speed
    shared = own
    job = head
    while job >= 0:
        shared += min(own, ends[job] - virtual)
        job = following[job]
    work = max(own, shared / slots)
    return work / speed


@compiled
def _run(
    at: Floats, kind: Integers, work: Floats, deadline: Floats, mean_work: Floats,
    slots: Integers, sharing: Integers, base_speed: Floats, affinity: Floats, thrash: Floats,
    change_at: Floats, change_server: Integers, change_speed: Floats, change_error: Floats,
    change_down: Integers, code: int, per_class: int, weight: Floats, uniform: Floats,
    dispatched: Floats, ended: Floats, peer: Integers, status: Integers, before: Integers,
) -> None:  # fmt: skip
    """Fill the last five; `before` is the request that had the slot before, -1 if none."""
    n, m, c = at.shape[0], slots.shape[0], deadline.shape[0]
    groups = c if per_class else 1
    speed = base_speed.copy()
    error = np.zeros(m)
    down = np.zeros(m, dtype=np.int64)
    up = np.ones(m, dtype=np.int64)
    virtual = np.zeros(m)
    moved = np.zeros(m)
    rate = np.zeros(m)
    next_end = np.full(m, np.inf)
    present = np.zeros(m, dtype=np.int64)
    by_class = np.zeros((m, c), dtype=np.int64)
    count = np.zeros((groups, m), dtype=np.int64)
    current = np.zeros((groups, m))
    tied = np.zeros(m, dtype=np.int64)
    head = np.full(m, -1, dtype=np.int64)
    following = np.full(n, -1, dtype=np.int64)
    ends = np.zeros(n)
    most = slots.max()
    free = np.zeros((m, most))
    holder = np.full((m, most), -1, dtype=np.int64)
    first = np.full(c, -1, dtype=np.int64)  # of the central queue, per class
    last = np.full(c, -1, dtype=np.int64)
    waiting = 0
    open_ = np.zeros(m, dtype=np.int64)
    backlog = np.zeros(m)
    claimed = np.zeros(4, dtype=np.int64)
    overall = 0.0
    for j in range(n):
        overall += mean_work[kind[j]]
    overall /= max(1, n)
    arriving, changing = 0, 0
    while True:
        server = 0
        for i in range(1, m):
            if next_end[i] < next_end[server]:
                server = i
        now = next_end[server]
        event = 0
        if changing < change_at.shape[0] and change_at[changing] < now:
            now = change_at[changing]
            event = 1
        if arriving < n and at[arriving] < now:
            now = at[arriving]
            event = 2
        if now == np.inf:
            break
        job = -1
        if event == 0:
            # The head of `server` ends.
            virtual[server] = ends[head[server]]
            moved[server] = now
            job = head[server]
            head[server] = following[job]
            ended[job] = now
            status[job] = OK
            present[server] -= 1
            by_class[server, kind[job]] -= 1
            count[kind[job] if per_class else 0, server] -= 1
            job = -1
        elif event == 1:
            server = change_server[changing]
            virtual[server] += rate[server] * (now - moved[server])
            moved[server] = now
            speed[server] = change_speed[changing]
            error[server] = change_error[changing]
            down[server] = change_down[changing]
            up[server] = 1 - down[server]
            changing += 1
            if down[server]:
                while head[server] >= 0:
                    job = head[server]
                    head[server] = following[job]
                    ended[job] = now
                    status[job] = LOST
                    present[server] -= 1
                    by_class[server, kind[job]] -= 1
                    count[kind[job] if per_class else 0, server] -= 1
                for k in range(slots[server]):
                    free[server, k] = virtual[server]
                    holder[server, k] = -1
                job = -1
        else:
            job = arriving
            arriving += 1
        if event != 2:
            # An idle server starts again from V = 0, so that V keeps its precision.
            if present[server] == 0:
                virtual[server] = 0.0
                for k in range(slots[server]):
                    free[server, k] = 0.0
            rate[server] = _rate(
                present[server], slots[server], sharing[server], speed[server], thrash[server]
            )
            next_end[server] = np.inf
            if head[server] >= 0 and rate[server] > 0:
                left = max(0.0, ends[head[server]] - virtual[server])
                next_end[server] = now + left / rate[server]
        while True:
            # Choose a request and a server for it; none of either ends the turn.
            target = -1
            if code >= balancers.CENTRAL:
                if job >= 0:
                    if first[kind[job]] < 0:
                        first[kind[job]] = job
                    else:
                        following[last[kind[job]]] = job
                    last[kind[job]] = job
                    waiting += 1
                    job = -1
                if waiting == 0:
                    break
                for i in range(m):
                    open_[i] = up[i] and speed[i] > 0 and error[i] == 0
                    backlog[i] = 0.0
                    for k in range(c):
                        backlog[i] += by_class[i, k] * mean_work[k] * affinity[i, k]
                if not balancers.claim(
                    code, now, at, deadline, mean_work, overall, first, following, slots,
                    sharing, speed, affinity, open_, present, backlog, tied, claimed,
                ):  # fmt: skip
                    break
                j, previous, job, target = claimed[0], claimed[1], claimed[2], claimed[3]
                if previous < 0:
                    first[j] = following[job]
                else:
                    following[previous] = following[job]
                if last[j] == job:
                    last[j] = previous
                waiting -= 1
            elif job < 0:
                break
            else:
                j = kind[job]
                group = j if per_class else 0
                if code < balancers.EXPECTED_DELAY:
                    target = balancers.by_count(
                        code, up, weight, count[group], current[group], tied, uniform[job]
                    )
                else:
                    least = np.inf
                    for i in range(m):
                        if speed[i] <= 0 or not up[i] or error[i] > 0:
                            continue
                        if code == balancers.EXPECTED_DELAY:
                            backlog[i] = 0.0
                            for k in range(c):
                                backlog[i] += by_class[i, k] * mean_work[k] * affinity[i, k]
                            value = balancers.expected_end(
                                mean_work[j] * affinity[i, j], speed[i], slots[i], sharing[i],
                                present[i], backlog[i],
                            )  # fmt: skip
                        else:
                            value = _earliest_end(
                                work[job] * affinity[i, j], speed[i], slots[i], sharing[i],
                                virtual[i] + rate[i] * (now - moved[i]),
                                free[i], head[i], following, ends,
                            )  # fmt: skip
                        if value < least:
                            least = value
                            target = i
            if target < 0:
                status[job] = UNAVAILABLE
                job = -1
                continue
            dispatched[job] = now
            peer[job] = target
            if error[target] > 0 and uniform[job, 2] < error[target]:
                ended[job] = now
                status[job] = FAILED
                job = -1
                continue
            # Put it on the server.
            i = target
            virtual[i] += rate[i] * (now - moved[i])
            moved[i] = now
            need = work[job] * affinity[i, kind[job]]
            if sharing[i]:
                ends[job] = virtual[i] + need
            else:
                slot = 0
                for k in range(1, slots[i]):
                    if free[i, k] < free[i, slot]:
                        slot = k
                if free[i, slot] > virtual[i]:
                    before[job] = holder[i, slot]
                    ends[job] = free[i, slot] + need
                else:
                    ends[job] = virtual[i] + need
                free[i, slot] = ends[job]
                holder[i, slot] = job
            previous = -1
            place = head[i]
            while place >= 0 and ends[place] <= ends[job]:
                previous = place
                place = following[place]
            following[job] = place
            if previous < 0:
                head[i] = job
            else:
                following[previous] = job
            present[i] += 1
            by_class[i, kind[job]] += 1
            count[kind[job] if per_class else 0, i] += 1
            rate[i] = _rate(present[i], slots[i], sharing[i], speed[i], thrash[i])
            next_end[i] = np.inf
            if rate[i] > 0:
                next_end[i] = now + max(0.0, ends[head[i]] - virtual[i]) / rate[i]
            job = -1


def simulate(
    servers: Servers,
    requests: Requests,
    rule: Rule,
    changes: Changes | None = None,
    *,
    seed: int = 0,
) -> Records:
    """Run all requests through the servers under the rule. The seed is for rules that draw."""
    changes = Changes() if changes is None else changes
    n, m = len(requests.at), len(servers.slots)
    weights = np.ones(m) if rule.weights is None else np.asarray(rule.weights, dtype=np.float64)
    dispatched, ended = np.full(n, np.nan), np.full(n, np.nan)
    peer = np.full(n, -1, dtype=np.int64)
    status = np.full(n, UNAVAILABLE, dtype=np.int64)
    before = np.full(n, -1, dtype=np.int64)
    _run(
        requests.at, requests.kind, requests.work, requests.deadline, requests.mean_work,
        servers.slots, servers.sharing, servers.speed, servers.affinity, servers.thrash,
        changes.at, changes.server, changes.speed, changes.error, changes.down,
        balancers.CODES[rule.name], int(rule.per_class), weights,
        np.random.default_rng(seed).random((n, 3)), dispatched, ended, peer, status, before,
    )  # fmt: skip
    started = np.where(before >= 0, ended[before], dispatched)
    return Records(dispatched=dispatched, started=started, ended=ended, peer=peer, status=status)
