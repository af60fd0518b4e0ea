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
from trimtab.twin import rivals, rule, stations
from trimtab.twin.compiled import compiled, compiled_module, inlined
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
from trimtab.twin.stations import Stations, bare_stations

__all__ = ["FAILED", "OK", "TRIMTAB", "run"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

OK: Final = 200
FAILED: Final = 500

TRIMTAB: Final = 0  # the code of our own rule; the others are in `rivals`

# As in counters.lua: servers without events are carried on this often.
TOUCH_SECONDS: Final = 0.05

# As in services.lua: memory of a class's mean service time, in samples.
SERVICE_MEMORY: Final = 200.0

FIRST_BUCKET_SECONDS: Final = BUCKET_BOUNDS_SECONDS[0]
FAILED_COUNTS: Final = FAILED_TARDINESS

_rule = compiled_module(rule, ("score", "pick", "advance", "rate", "error_ratio", "forget"))
_pick, _advance, _rate = _rule.pick, _rule.advance, _rule.rate
_error_ratio, _forget = _rule.error_ratio, _rule.forget
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
    if ok:
        k.done[g] += o.own[job]
        n.completions_at[g, min(max(int(present), 1), LEVELS) - 1] += 1
        if o.unqueued[job]:
            n.pair[q, UNQUEUED] += 1
            n.pair[q, UNQUEUED_SECONDS] += seconds
            n.pair[q, UNQUEUED_SQUARED] += seconds * seconds
            n.sampled[b, j] += 1
            nominal = seconds * c.prior[g] / c.affinity[b, j, i]
            share = max(1 / n.sampled[b, j], 1 / SERVICE_MEMORY)
            n.service[b, j] += (nominal - n.service[b, j]) * share
    else:
        n.pair[q, FAILURES] += 1
    k.error[g] = _error_ratio(k.error[g], not ok)
    _rerate(b, g, c, k)
    k.in_flight[g] = present - 1
    k.work[g] = k.work[g] - o.own[job] if present > 1 else 0.0
    _in_flight(n.pair, q, now, -1.0)


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
    job: int, now: float, code: int, load: Load, s: Stations, c: Control, k: Balancers,
    n: Counters, o: Outcome, skip: Floats, scores: Floats,
) -> None:  # fmt: skip
    """Tries of one request until a server takes it, or all have failed it."""
    b, j, m = load.balancer[job], load.kind[job], skip.shape[0]
    if now - k.touched[b] >= TOUCH_SECONDS:
        k.touched[b] = now
        for p in range(m):
            g = c.server[b, p]
            if now - k.last[g] >= TOUCH_SECONDS:
                _carry(b, g, now, c, k, n)
                _rerate(b, g, c, k)
    tries = 0
    while True:
        masked = c.skip[b, j]
        if tries > 0:
            masked = skip
        if code == TRIMTAB:
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
            _enter(s, i, job, load.work[job] * s.affinity[i, j], now)
            return
        _end_try(job, False, now, load, c, k, n, o)
        if code != TRIMTAB:
            rivals.finished(code, now, b, i, 0.0, 0.0, s.present[i], k.memory)
        if s.error[i] > 0 and not s.down[i]:
            # A 500 is an answer; a refused connection is none, and another server is tried.
            _end_request(job, False, now, load, c, n, o)
            return


@compiled
def _loop(
    until: float, code: int, load: Load, s: Stations, c: Control, k: Balancers, n: Counters,
    o: Outcome,
) -> None:  # fmt: skip
    m = s.slots.shape[0]
    total, changes = load.at.shape[0], load.change_at.shape[0]
    skip = np.zeros(m)
    scores = np.zeros(m)
    while True:
        server = 0
        for i in range(1, m):
            if s.next_end[i] < s.next_end[server]:
                server = i
        now = s.next_end[server]
        event = 0
        arriving, changing = o.cursor[0], o.cursor[1]
        if changing < changes and load.change_at[changing] < now:
            now = load.change_at[changing]
            event = 1
        if arriving < total and load.at[arriving] < now:
            now = load.at[arriving]
            event = 2
        if now > until or now == np.inf:
            return
        if event == 2:
            o.cursor[0] += 1
            _dispatch(arriving, now, code, load, s, c, k, n, o, skip, scores)
        elif event == 0:
            if code != TRIMTAB:
                rivals.moved(now, server, s.present[server], s.slots[server], k.memory)
            job = _leave(s, server, now)
            _end_try(job, True, now, load, c, k, n, o)
            if code != TRIMTAB:
                need = load.work[job] * s.affinity[server, load.kind[job]]
                rivals.finished(
                    code, now, load.balancer[job], server, now - o.began[job],
                    need / s.speed[server], s.present[server], k.memory,
                )  # fmt: skip
            _end_request(job, True, now, load, c, n, o)
        else:
            o.cursor[1] += 1
            i = load.change_server[changing]
            if code != TRIMTAB:
                rivals.moved(now, i, s.present[i], s.slots[i], k.memory)
            job = _change(
                s, i, load.change_speed[changing],
                load.change_error[changing], load.change_down[changing], now,
            )  # fmt: skip
            while job >= 0:
                following = s.following[job]
                _end_try(job, False, now, load, c, k, n, o)
                if code != TRIMTAB:
                    rivals.finished(
                        code, now, load.balancer[job], i, now - o.began[job], 0.0, 0,
                        k.memory,
                    )  # fmt: skip
                _end_request(job, False, now, load, c, n, o)
                job = following


@compiled
def run(
    until: float, code: int, load: Load, s: Stations, c: Control, k: Balancers, n: Counters,
    o: Outcome,
) -> None:  # fmt: skip
    """Let everything happen that happens before `until` or then."""
    _loop(
        until, code, bare_load(load), bare_stations(s), bare_control(c), bare_balancers(k),
        bare_counters(n), bare_outcome(o),
    )  # fmt: skip
