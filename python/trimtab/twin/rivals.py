"""Balancing rules of others, for comparison in the twin; none is in use by Trimtab.

    random_two   the power of two choices: two servers at random, then the one with fewer in flight.
                 M. Mitzenmacher, "The power of two choices in randomized load balancing",
                 IEEE TPDS 12(10), 2001.
    peak_ewma    two at random, then the lesser cost: response time (peaks are taken whole, then
                 forgotten with a decay of 10 s) × (in flight + 1). Twitter Finagle's
                 "Peak EWMA"; constants of tower::load::PeakEwma and linkerd2-proxy.
    prequal      hot-cold lexicographic: a request probes three random servers, the pool keeps what
                 was probed within a second; servers with more in flight than the 0.84 quantile of
                 the pool are hot; of the cold the one of least latency, else the one with the
                 fewest in flight. Wydrowski et al., "Load is not what you should balance:
                 introducing Prequal", NSDI 2024. Its probes take no time here.
    grpc_wrr     weighted round robin, weight = requests per second over utilisation, both as the
                 server sees them, renewed each second. gRPC proposal A58 (static stride there;
                 nginx's smooth round robin here, which gives the same shares).
    c3           least R − s + q³·s: response time R and service time s, both averages with weight
                 0.1 for the last, q = 1 + own in flight × balancers + mean queue at the server.
                 Suresh et al., "C3: cutting tail latency in cloud data stores via adaptive replica
                 selection", NSDI 2015; without its rate control, which protects storage.

What a balancer keeps of a server is a row of `memory`; what a server keeps of itself and sends
along is in the row of balancer 0, which a real system would carry in headers or probes.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.twin.compiled import compiled

__all__ = ["CODES", "MEMORY", "finished", "moved", "pick", "started"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RANDOM_TWO: Final = 1
PEAK_EWMA: Final = 2
PREQUAL: Final = 3
GRPC_WRR: Final = 4
C3: Final = 5

CODES: Final = {
    "random_two": RANDOM_TWO,
    "peak_ewma": PEAK_EWMA,
    "prequal": PREQUAL,
    "grpc_wrr": GRPC_WRR,
    "c3": C3,
}

# tower's default for the memory of a response time.
DECAY_SECONDS: Final = 10.0

# Prequal's own parameters (its section 5): probes a request, age of a probe, and the quantile.
PROBES: Final = 3
PROBE_SECONDS: Final = 1.0
HOT_QUANTILE: Final = 0.84

# C3's weight of the last sample.
C3_SHARE: Final = 0.1

# A58: weight_update_period, and how long reports are believed to build up (blackout_period).
RENEW_SECONDS: Final = 1.0
BLACKOUT_SECONDS: Final = 10.0
# A58 leaves to the servers over what they average; as long as the blackout.
AVERAGED_SECONDS: Final = 10.0

# Columns of a balancer's row.
RTT: Final = 0
RTT_AT: Final = 1
PROBED_AT: Final = 2
PROBED_IN_FLIGHT: Final = 3
PROBED_LATENCY: Final = 4
QUEUE: Final = 5
SERVICE: Final = 6
CURRENT: Final = 7  # of the smooth round robin
WEIGHT: Final = 8
WEIGHT_AT: Final = 9
# Columns of a server itself, in the row of balancer 0.
LATENCY: Final = 10
SERVED: Final = 11
BUSY: Final = 12
BUSY_AT: Final = 13
SERVED_BEFORE: Final = 14  # at the last renewal of weights; a balancer's own
BUSY_BEFORE: Final = 15
RECENT: Final = 16  # served and busy seconds, over AVERAGED_SECONDS
RECENT_BUSY: Final = 17
MEMORY: Final = 18


@compiled
def _draw(skip: Floats, uniform: float, but: int) -> int:
    """One of the servers that are not skipped, other than `but`; -1 if there is none."""
    count = 0
    for i in range(skip.shape[0]):
        if skip[i] == 0 and i != but:
            count += 1
    if count == 0:
        return -1
    left = int(uniform * count)
    for i in range(skip.shape[0]):
        if skip[i] == 0 and i != but:
            if left == 0:
                return i
            left -= 1
    return -1


@compiled
def _least(skip: Floats, scores: Floats) -> int:
    best = -1
    for i in range(skip.shape[0]):
        if skip[i] == 0 and (best < 0 or scores[i] < scores[best]):
            best = i
    return best


@compiled
def _prequal(
    now: float, skip: Floats, mine: Floats, server: Floats, present: Integers, uniform: Floats,
    scores: Floats,
) -> int:  # fmt: skip
    m = skip.shape[0]
    first = int(uniform[0] * m)
    step = 1 + int(uniform[2] * max(1, m - 1))
    for p in range(min(PROBES, m)):
        # Three servers a random step apart: different ones where m is prime or large.
        i = (first + p * step) % m
        mine[i, PROBED_AT] = now
        mine[i, PROBED_IN_FLIGHT] = present[i]
        mine[i, PROBED_LATENCY] = server[i, LATENCY]
    pool = 0
    for i in range(m):
        if skip[i] == 0 and mine[i, PROBED_AT] > 0 and now - mine[i, PROBED_AT] <= PROBE_SECONDS:
            scores[pool] = mine[i, PROBED_IN_FLIGHT]
            pool += 1
    if pool == 0:
        return _draw(skip, uniform[0], -1)
    order = np.sort(scores[:pool])
    limit = order[min(pool - 1, int(HOT_QUANTILE * pool))]
    best = -1
    cold = False
    for i in range(m):
        if skip[i] != 0 or mine[i, PROBED_AT] <= 0 or now - mine[i, PROBED_AT] > PROBE_SECONDS:
            continue
        is_cold = mine[i, PROBED_IN_FLIGHT] < limit
        if best < 0 or (is_cold and not cold):
            best, cold = i, is_cold
        elif is_cold == cold:
            column = PROBED_LATENCY if cold else PROBED_IN_FLIGHT
            if mine[i, column] < mine[best, column]:
                best = i
    return best


@compiled
def _round_robin(now: float, skip: Floats, mine: Floats, server: Floats) -> int:
    m = skip.shape[0]
    if now - mine[0, WEIGHT_AT] >= RENEW_SECONDS:
        mine[0, WEIGHT_AT] = now
        total = 0.0
        known = 0
        for i in range(m):
            mine[i, RECENT] *= 1 - RENEW_SECONDS / AVERAGED_SECONDS
            mine[i, RECENT] += server[i, SERVED] - mine[i, SERVED_BEFORE]
            mine[i, RECENT_BUSY] *= 1 - RENEW_SECONDS / AVERAGED_SECONDS
            mine[i, RECENT_BUSY] += server[i, BUSY] - mine[i, BUSY_BEFORE]
            mine[i, SERVED_BEFORE] = server[i, SERVED]
            mine[i, BUSY_BEFORE] = server[i, BUSY]
            mine[i, WEIGHT] = 0.0
            if now >= BLACKOUT_SECONDS and mine[i, RECENT] > 0 and mine[i, RECENT_BUSY] > 0:
                mine[i, WEIGHT] = mine[i, RECENT] / mine[i, RECENT_BUSY]
                total += mine[i, WEIGHT]
                known += 1
        # A58: what has no weight gets the mean; with fewer than two, all are alike.
        for i in range(m):
            if known < 2:
                mine[i, WEIGHT] = 1.0
            elif mine[i, WEIGHT] == 0:
                mine[i, WEIGHT] = total / known
    best = -1
    total = 0.0
    for i in range(m):
        if skip[i] == 0:
            weight = mine[i, WEIGHT] if mine[i, WEIGHT] > 0 else 1.0
            mine[i, CURRENT] += weight
            total += weight
            if best < 0 or mine[i, CURRENT] > mine[best, CURRENT]:
                best = i
    if best >= 0:
        mine[best, CURRENT] -= total
    return best


@compiled
def pick(
    code: int, now: float, b: int, skip: Floats, in_flight: Floats, memory: Floats,
    present: Integers, uniform: Floats, scores: Floats,
) -> int:  # fmt: skip
    """The server that balancer b picks; -1 when all are skipped.

    `skip` (M,), `in_flight` (M,) of this balancer, `present` (M,) at the servers, `uniform` (4,)
    in [0, 1), of which the second is not ours; `scores` (M,) is scratch space.
    """
    mine, server = memory[b], memory[0]
    if code == PREQUAL:
        return _prequal(now, skip, mine, server, present, uniform, scores)
    if code == GRPC_WRR:
        return _round_robin(now, skip, mine, server)
    if code == C3:
        for i in range(skip.shape[0]):
            queue = 1 + in_flight[i] * memory.shape[0] + mine[i, QUEUE]
            scores[i] = mine[i, RTT] - mine[i, SERVICE] + queue**3 * mine[i, SERVICE]
        return _least(skip, scores)
    first = _draw(skip, uniform[0], -1)
    second = _draw(skip, uniform[2], first)
    if second < 0:
        return first
    if code == RANDOM_TWO:
        return second if in_flight[second] < in_flight[first] else first
    for p in range(2):
        i = first if p == 0 else second
        rtt = mine[i, RTT] * math.exp(-(now - mine[i, RTT_AT]) / DECAY_SECONDS)
        scores[i] = rtt * (in_flight[i] + 1)
    return second if scores[second] < scores[first] else first


@compiled
def moved(now: float, i: int, present: int, slots: int, memory: Floats) -> None:
    """The number present at server i is about to change, or has stayed until now."""
    server = memory[0, i]
    server[BUSY] += min(present, slots) * (now - server[BUSY_AT])
    server[BUSY_AT] = now


@compiled
def started(b: int, i: int, memory: Floats) -> None:
    """Balancer b sent a request to server i."""
    # Prequal counts what it sends on top of what it has probed.
    memory[b, i, PROBED_IN_FLIGHT] += 1


@compiled
def finished(
    code: int, now: float, b: int, i: int, seconds: float, own: float, left: int,
    memory: Floats,
) -> None:  # fmt: skip
    """A request of balancer b at server i took `seconds`, of which the server worked `own`; `left`
    are still there. A failure counts as served; none of these rules knows errors."""
    mine, server = memory[b, i], memory[0, i]
    server[SERVED] += 1
    server[LATENCY] += C3_SHARE * (seconds - server[LATENCY])
    if code == C3:
        known = mine[RTT] > 0
        share = C3_SHARE if known else 1.0
        mine[RTT] += share * (seconds - mine[RTT])
        mine[SERVICE] += share * (own - mine[SERVICE])
        mine[QUEUE] += share * (left - mine[QUEUE])
    else:
        kept = math.exp(-(now - mine[RTT_AT]) / DECAY_SECONDS)
        mine[RTT] = seconds if seconds > mine[RTT] else mine[RTT] * kept + seconds * (1 - kept)
        mine[RTT_AT] = now
