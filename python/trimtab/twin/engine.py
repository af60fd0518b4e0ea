"""The twin's event loop: balancers that pick by Trimtab's per-request rule, and real servers.

What a balancer knows is what the hook in nginx knows: what it has in flight itself, its own
estimate of each server's rate, error ratios, and the weights that it was last given. The rule is
`rule`, the file that the golden sequences hold to the Lua one; what happens around it (when
estimates are carried on, what is counted) follows nginx/lua/resty/trimtab/counters.lua.

The loop stops at a given time and goes on from there, so that a controller can look and act in
between. Other rules are in `rivals`.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.model import BUCKET_BOUNDS_SECONDS, FAILED_TARDINESS
from trimtab.twin import rivals, services, stations
from trimtab.twin.compiled import compiled, inlined
from trimtab.twin.parts import (
    BUCKETS,
    FAILED_REQUESTS,
    FAILURES,
    IN_FLIGHT,
    IN_FLIGHT_SECONDS,
    LEVELS,
    REQUESTS,
    SECONDS,
    SINCE,
    SQUARED,
    TARDINESS,
    TARDY,
    UNFINISHED,
    UNQUEUED,
    UNQUEUED_SECONDS,
    UNQUEUED_SQUARED,
    Balancers,
    Control,
    Counters,
    Load,
    Outcome,
    bare_balancers,
    bare_control,
    bare_counters,
    bare_load,
    bare_outcome,
)
from trimtab.twin.room import (
    Room,
    bare_room,
    bind,
    fast_rule,
    holds,
    limit,
    looks_at,
    next_look,
    push,
)
from trimtab.twin.stations import Stations, bare_stations

__all__ = ["FAILED", "OK", "TRIMTAB", "run"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

OK: Final = 200
FAILED: Final = 500

TRIMTAB: Final = 0  # the code of our own rule; the others are in `rivals`

# As in counters.lua: servers without events are carried on this often.
TOUCH_SECONDS: Final = 0.05

FIRST_BUCKET_SECONDS: Final = BUCKET_BOUNDS_SECONDS[0]
FAILED_COUNTS: Final = FAILED_TARDINESS

_pick, _advance, _rate = fast_rule.pick, fast_rule.advance, fast_rule.rate
_error_ratio, _forget = fast_rule.error_ratio, fast_rule.forget
_sample, _refresh = services.sample, services.refresh
_enter, _leave, _change = stations.enter, stations.leave, stations.change


@inlined
def _carry(b: int, g: int, now: float, c: Control, k: Balancers, n: Counters) -> None:
    """The estimates of server g by its balancer b move on to now."""
    present = k.in_flight[g]
    dt = _advance(g, now, present, c.slots, k.done, k.busy, k.last, c.tau[b])
    if present > 0:
        n.seconds_at[g, min(int(present), LEVELS) - 1] += dt
    elif k.error[g] > 0:
        k.error[g] = _forget(k.error[g], dt)


@inlined
def _rerate(b: int, g: int, c: Control, k: Balancers) -> None:
    k.rate[g] = _rate(k.done[g], k.busy[g], c.prior[g], c.mean_service[b])


@inlined
def _in_flight(pair: Floats, q: int, now: float, by: float) -> None:
    pair[q, IN_FLIGHT_SECONDS] += pair[q, IN_FLIGHT] * (now - pair[q, SINCE])
    pair[q, IN_FLIGHT] += by
    pair[q, SINCE] = now


@compiled
def _bucket(seconds: float) -> int:
    if seconds <= FIRST_BUCKET_SECONDS:
        return 0
    return min(math.ceil(2 * math.log2(seconds / FIRST_BUCKET_SECONDS) - 1e-12), BUCKETS - 1)


@inlined
def _end_try(
    job: int, ok: bool, now: float, load: Load, c: Control, k: Balancers, n: Counters, o: Outcome
) -> None:
    """The try of a request at its peer is over."""
    b, j, i = load.balancer[job], load.kind[job], o.peer[job]
    g = c.server[b, i]
    q = (b * c.deadline.shape[0] + j) * c.server.shape[1] + i
    present = k.in_flight[g]
    _carry(b, g, now, c, k, n)
    seconds = now - o.began[job]
    is_first = False
    if ok:
        # In the v_j of today: see services.lua.
        k.done[g] += c.service[b, j] * c.affinity[b, j, i]
        n.completions_at[g, min(max(int(present), 1), LEVELS) - 1] += 1
        if o.unqueued[job]:
            n.pair[q, UNQUEUED] += 1
            n.pair[q, UNQUEUED_SECONDS] += seconds
            n.pair[q, UNQUEUED_SQUARED] += seconds * seconds
            nominal = seconds * c.prior[g] / c.affinity[b, j, i]
            is_first = _sample(b, j, nominal, n)
    else:
        n.pair[q, FAILURES] += 1
    k.error[g] = _error_ratio(k.error[g], not ok)
    _rerate(b, g, c, k)
    k.in_flight[g] = present - 1
    k.work[g] = k.work[g] - o.own[job] if present > 1 else 0.0
    _in_flight(n.pair, q, now, -1.0)
    if is_first:
        _refresh(b, c, k, n)


@inlined
def _end_request(
    job: int, ok: bool, now: float, load: Load, c: Control, n: Counters, o: Outcome
) -> None:
    """A request is over, with its peer as the last."""
    b, j, i = load.balancer[job], load.kind[job], o.peer[job]
    q = (b * c.deadline.shape[0] + j) * c.server.shape[1] + i
    o.ended[job] = now
    o.status[job] = OK if ok else FAILED
    seconds = now - load.at[job]
    n.pair[q, REQUESTS] += 1
    n.pair[q, SECONDS] += seconds
    n.pair[q, SQUARED] += seconds * seconds
    n.buckets[q, _bucket(seconds)] += 1
    late = 0.0
    if c.deadline[j] > 0:
        late = max(0.0, seconds / c.deadline[j] - 1)
    if not ok:
        n.pair[q, FAILED_REQUESTS] += 1
        late = max(late, FAILED_COUNTS)
    n.pair[q, TARDINESS] += late
    if late > 0:
        n.pair[q, TARDY] += 1


@inlined
def _dispatch(
    job: int, first: int, now: float, code: int, load: Load, s: Stations, c: Control,
    k: Balancers, n: Counters, o: Outcome, skip: Floats, scores: Floats,
) -> None:  # fmt: skip
    """Tries of one request until a server takes it, or all have failed it; `first` is the peer
    that it is bound to, -1 where it is free."""
    b, j, m = load.balancer[job], load.kind[job], skip.shape[0]
    tries = 0
    while True:
        masked = c.skip[b, j]
        if tries > 0:
            masked = skip
        if tries == 0 and first >= 0:
            i = first
        elif code == TRIMTAB:
            i = _pick(
                m, c.server[b], c.weight[b, j], c.affinity[b, j], masked, c.service[b, j],
                k.in_flight, k.work, k.rate, k.error, c.slots, c.sharing,
                load.uniform[job, 0], scores,
            )  # fmt: skip
        else:
            i = rivals.pick(
                code, now, b, masked, k.in_flight[b * m : b * m + m], k.memory, s.present,
                load.uniform[job], scores,
            )  # fmt: skip
        if i < 0:
            if tries == 0:
                # All are drained: an answer is better than none.
                i = int(load.uniform[job, 0] * m)
            else:
                _end_request(job, False, now, load, c, n, o)
                return
        if tries == 0:
            for p in range(m):
                skip[p] = c.skip[b, j, p]
        tries += 1
        skip[i] = 1.0
        # A try begins, as start() in counters.lua.
        g = c.server[b, i]
        _carry(b, g, now, c, k, n)
        _rerate(b, g, c, k)
        own = c.service[b, j] * c.affinity[b, j, i]
        o.unqueued[job] = k.in_flight[g] < max(1.0, c.slots[g])
        k.in_flight[g] += 1
        k.work[g] += own
        _in_flight(n.pair, (b * c.deadline.shape[0] + j) * m + i, now, 1.0)
        o.peer[job] = i
        o.own[job] = own
        o.began[job] = now
        if code != TRIMTAB:
            rivals.moved(now, i, s.present[i], s.slots[i], k.memory)
            rivals.started(b, i, k.memory)
        if not s.down[i] and not (s.error[i] > 0 and load.uniform[job, 1] < s.error[i]):
            need = load.work[job] * s.affinity[i, j]
            if first >= 0 and now > load.at[job] and s.present[i] < s.slots[i]:
                # It comes from the waiting room to a slot that stood idle meanwhile.
                need += c.hand_over[0] * s.speed[i]
            _enter(s, i, job, need, now)
            return
        _end_try(job, False, now, load, c, k, n, o)
        if code != TRIMTAB:
            rivals.finished(code, now, b, i, 0.0, 0.0, s.present[i], k.memory)
        if s.error[i] > 0 and not s.down[i]:
            # A 500 is an answer; a refused connection is none, and another server is tried.
            _end_request(job, False, now, load, c, n, o)
            return


@compiled
def _touch(b: int, now: float, c: Control, k: Balancers, n: Counters) -> None:
    """Servers without events are carried on now and then."""
    k.touched[b] = now
    for p in range(c.server.shape[1]):
        g = c.server[b, p]
        if now - k.last[g] >= TOUCH_SECONDS:
            _carry(b, g, now, c, k, n)
            _rerate(b, g, c, k)


@compiled
def _loop(
    until: float, code: int, load: Load, s: Stations, c: Control, k: Balancers, n: Counters,
    o: Outcome, r: Room,
) -> None:  # fmt: skip
    m, rooms = s.slots.shape[0], r.first.shape[0]
    total, changes = load.at.shape[0], load.change_at.shape[0]
    skip = np.zeros(m)
    scores = np.zeros(m)
    now, uniform = -np.inf, 0.0
    is_held = code == TRIMTAB and c.hold.any()
    # The rooms to look at before anything else happens, whether the look at the first of them has
    # begun, and whether a try has ended at once since, so that there is room again.
    looking, behind = 0, 0
    has_begun, has_failed = False, False
    while True:
        job, bound = -1, -1
        if looking < behind:
            job, bound = bind(looking, not has_begun, now, uniform, load.at, r, c, k)
            has_begun = job >= 0
            if job < 0:
                if not has_failed:
                    looking += 1
                has_failed = False
                continue
        else:
            server = 0
            for i in range(1, m):
                if s.next_end[i] < s.next_end[server]:
                    server = i
            then = s.next_end[server]
            event = 0
            arriving, changing = o.cursor[0], o.cursor[1]
            if changing < changes and load.change_at[changing] < then:
                then = load.change_at[changing]
                event = 1
            if arriving < total and load.at[arriving] < then:
                then = load.at[arriving]
                event = 2
            b, j = -1, -1
            for room in range(rooms if is_held else 0):
                if r.waiting[room] > 0:
                    kind = next_look(room, load.at, r, c)
                    if kind >= 0 and looks_at(room, kind, load.at, r, c) < then:
                        then = max(now, looks_at(room, kind, load.at, r, c))
                        event = 3
                        b, j = room, kind
            if then > until or then == np.inf:
                return
            now = then
            if event == 2:
                o.cursor[0] += 1
                job = arriving
                b, j, uniform = load.balancer[job], load.kind[job], load.uniform[job, 0]
                if now - k.touched[b] >= TOUCH_SECONDS:
                    _touch(b, now, c, k, n)
                if is_held and holds(b, j, c):
                    # As admit() in holding.lua: at once where the best peer has room.
                    if r.waiting[b] == 0:
                        bound = _pick(
                            m, c.server[b], c.weight[b, j], c.affinity[b, j], c.skip[b, j],
                            c.service[b, j], k.in_flight, k.work, k.rate, k.error, c.slots,
                            c.sharing, uniform, scores,
                        )  # fmt: skip
                        g = c.server[b, bound]
                        if k.in_flight[g] >= limit(b, g, now, c, k):
                            bound = -1
                    if bound < 0:
                        push(r, b, j, job)
                        job = -1
                if r.waiting[b] > 0:
                    looking, behind = b, b + 1
            elif event == 0:
                if code != TRIMTAB:
                    rivals.moved(now, server, s.present[server], s.slots[server], k.memory)
                ended = _leave(s, server, now)
                _end_try(ended, True, now, load, c, k, n, o)
                b, uniform = load.balancer[ended], load.uniform[ended, 0]
                if code != TRIMTAB:
                    need = load.work[ended] * s.affinity[server, load.kind[ended]]
                    rivals.finished(
                        code, now, b, server, now - o.began[ended], need / s.speed[server],
                        s.present[server], k.memory,
                    )  # fmt: skip
                _end_request(ended, True, now, load, c, n, o)
                if r.waiting[b] > 0:
                    looking, behind = b, b + 1
            elif event == 3:
                uniform = load.uniform[r.unseen[b, j], 0]
                r.unseen[b, j] = r.after[r.unseen[b, j]]
                if now - k.touched[b] >= TOUCH_SECONDS:
                    _touch(b, now, c, k, n)
                looking, behind = b, b + 1
            else:
                o.cursor[1] += 1
                i = load.change_server[changing]
                if code != TRIMTAB:
                    rivals.moved(now, i, s.present[i], s.slots[i], k.memory)
                lost = _change(
                    s, i, load.change_speed[changing],
                    load.change_error[changing], load.change_down[changing], now,
                )  # fmt: skip
                while lost >= 0:
                    following = s.following[lost]
                    _end_try(lost, False, now, load, c, k, n, o)
                    if code != TRIMTAB:
                        rivals.finished(
                            code, now, load.balancer[lost], i, now - o.began[lost], 0.0, 0,
                            k.memory,
                        )  # fmt: skip
                    _end_request(lost, False, now, load, c, n, o)
                    lost = following
                uniform = 0.0
                looking, behind = 0, rooms
        if job >= 0:
            _dispatch(job, bound, now, code, load, s, c, k, n, o, skip, scores)
            has_failed = has_failed or o.status[job] != UNFINISHED


@compiled
def run(
    until: float, code: int, load: Load, s: Stations, c: Control, k: Balancers, n: Counters,
    o: Outcome, r: Room,
) -> None:  # fmt: skip
    """Let everything happen that happens before `until` or then."""
    _loop(
        until, code, bare_load(load), bare_stations(s), bare_control(c), bare_balancers(k),
        bare_counters(n), bare_outcome(o), bare_room(r),
    )  # fmt: skip
