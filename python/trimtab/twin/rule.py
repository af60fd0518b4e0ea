"""The per-request rule: `nginx/lua/resty/trimtab/rule.lua` in Python, expression by expression.

`tests/data/golden/rule.json` holds both to the same picks and rates; the Lua file says what the
formulas mean and where their constants come from. Plain floats, arrays and loops, so that numba
can compile it. Arrays are indexed from 0: `in_flight`, `work`, `rate`, `error`, `slots`, `sharing`,
`done`, `busy` and `last` by server, `server`, `weight`, `affinity` and `skip` by peer of one
upstream. Times are seconds, rates work-seconds per second of one busy slot, slots 0 when unknown.
"""

import math
from collections.abc import MutableSequence, Sequence
from typing import Final

__all__ = [
    "advance",
    "claim",
    "error_ratio",
    "forget",
    "limit",
    "pick",
    "rate",
    "score",
    "urgency",
]

ERROR_COST: Final = 20.0
SPREAD: Final = 0.1
SHARED_COST: Final = 2.0
ERROR_KEPT: Final = 0.95
IDLE_TAU_SECONDS: Final = 10.0
PRIOR_JOBS: Final = 2.0
LOOKAHEAD: Final = 0.5
SHORT_SECONDS: Final = 0.02
SHORT_SLACK: Final = 1.0
TRIAL_SLACK: Final = 2.0


def score(
    own: float,
    n: float,
    b: float,
    rate: float,
    error: float,
    k: float,
    sharing: float,
    weight: float,
) -> float:
    """Expected delay in seconds over weight, of a request of own work `own` at one server.

    `n` requests of `b` seconds of work in all are in flight there; `sharing` is not 0 where it
    shares its slots among them in place of a queue.
    """
    wait = 0.0
    if sharing != 0.0 and k >= 1.0:
        wait = SHARED_COST * own * max(0.0, n + 1 - k) / (k * rate)
    else:
        k = max(k, 1.0)
        if n + 1 > k:
            wait = (n + 1 - k) / n * b / (k * rate)
    return (own / rate * (1 + ERROR_COST * error + SPREAD * n / k) + wait) / weight


def pick(
    count: int,
    server: Sequence[int],
    weight: Sequence[float],
    affinity: Sequence[float],
    skip: Sequence[float],
    service: float,
    in_flight: Sequence[float],
    work: Sequence[float],
    rate: Sequence[float],
    error: Sequence[float],
    slots: Sequence[float],
    sharing: Sequence[float],
    uniform: float,
    scores: MutableSequence[float],
) -> int:
    """The peer of least score, or -1 when all are skipped; `scores` receives every score.

    `service` is v_j, `uniform` in [0, 1) decides between equal scores.
    """
    best, ties, first = math.inf, 0, -1
    for p in range(count):
        s = math.inf
        if skip[p] == 0:
            i = server[p]
            s = score(
                service * affinity[p],
                in_flight[i],
                work[i],
                rate[i],
                error[i],
                slots[i],
                sharing[i],
                weight[p],
            )
        scores[p] = s
        if s < best:
            best, ties, first = s, 1, p
        elif s == best and s < math.inf:
            ties += 1
    if ties < 2:
        return first
    chosen = math.floor(uniform * ties)
    for p in range(first, count):
        if scores[p] == best:
            if chosen == 0:
                return p
            chosen -= 1
    return first


def advance(
    i: int,
    now: float,
    n: float,
    slots: Sequence[float],
    done: MutableSequence[float],
    busy: MutableSequence[float],
    last: MutableSequence[float],
    tau: float,
) -> float:
    """Carry D and T of server i forward to `now`; the seconds that passed.

    `n` have been in flight since the last update; `tau` is the memory in seconds while busy.
    """
    dt = max(0.0, now - last[i])
    if dt > 0:
        if n > 0:
            kept = math.exp(-dt / tau)
            done[i] = done[i] * kept
            k = slots[i]
            busy[i] = busy[i] * kept + (min(n, k) if k > 0 else n) * dt
        else:
            kept = math.exp(-dt / IDLE_TAU_SECONDS)
            done[i] = done[i] * kept
            busy[i] = busy[i] * kept
        last[i] = now
    return dt


def rate(done: float, busy: float, prior: float, mean_service: float) -> float:
    """The rate of a server from D, T, the prior r0_i and the mean service time over classes."""
    a = PRIOR_JOBS * mean_service
    return (a + done) / (a / prior + busy)


def error_ratio(error: float, failed: bool) -> float:
    """The error ratio after one more try."""
    return ERROR_KEPT * error + (1 - ERROR_KEPT) * (1.0 if failed else 0.0)


def forget(error: float, seconds: float) -> float:
    """The error ratio after so many seconds without a request."""
    return error * math.exp(-seconds / IDLE_TAU_SECONDS)


def limit(slots: float, is_exact: bool, service: float) -> float:
    """Requests that a server may have in flight before others wait; infinite for unknown slots.

    `is_exact`: not an estimate that is tried out; `service` is the mean service time there.
    """
    if slots < 1:
        return math.inf
    if not is_exact:
        return slots + TRIAL_SLACK
    return slots + SHORT_SLACK if service < SHORT_SECONDS else slots


def urgency(
    now: float, arrival: float, deadline: float, service: float, mean_service: float
) -> float:
    """Logarithm of the ATC index (per square second) of a waiting request: larger is sooner."""
    slack = max(0.0, arrival + deadline - service - now)
    return -slack / (LOOKAHEAD * mean_service) - math.log(deadline * service)


def claim(
    count: int,
    server: Sequence[int],
    weight: Sequence[float],
    affinity: Sequence[float],
    skip: Sequence[float],
    service: float,
    in_flight: Sequence[float],
    work: Sequence[float],
    rate: Sequence[float],
    error: Sequence[float],
    slots: Sequence[float],
    sharing: Sequence[float],
    limit: Sequence[float],
    held: float,
    uniform: float,
    scores: MutableSequence[float],
) -> tuple[int, bool]:
    """The peer that a waiting request claims (-1: all are skipped), and whether it has room.

    `in_flight` and `work` include the claims of more urgent requests. Without room at the best of
    all it takes the best of the peers with room at which it would take no longer than the `held`
    seconds that it has waited.
    """
    p = pick(
        count, server, weight, affinity, skip, service, in_flight, work, rate, error, slots,
        sharing, uniform, scores,
    )  # fmt: skip
    if p < 0:
        return p, False
    i = server[p]
    if in_flight[i] < limit[i]:
        return p, True
    best, found = held, -1
    for q in range(count):
        if scores[q] < best:
            i = server[q]
            if in_flight[i] < limit[i]:
                best, found = scores[q], q
    if found >= 0:
        return found, True
    return p, False
