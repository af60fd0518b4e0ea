"""Balancing rules for the simulator: which server gets a request, as loops over arrays.

    random          a server with probability ∝ weight
    round_robin     nginx's smooth weighted round robin
    least_conn      fewest in flight / weight; ties by round robin among the tied, as nginx has it
    random_two      two different servers drawn by weight, then the fewer in flight / weight
    expected_delay  shortest expected delay, from the present speeds and the mean work by class
    least_work      earliest end, from the present speeds and the exact work of every request
    central_fifo    one queue in the balancer, first come first served
    central_edf     the same in the order of deadlines
    central_atc     the same in the order of the ATC index (apparent tardiness cost)

The first four see counts only, per class (one upstream group a class) or shared. The others know
which servers are slow, hang or fail: they are bounds, not rules to deploy. In a central queue each
request, in its order, claims the server on which it can expect to end soonest, the claims before
it counted; it goes there if there is a free slot, else it waits (so a request may wait for a fast
server while a slow one idles).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.twin.compiled import compiled

__all__ = ["CENTRAL", "CODES"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RANDOM: Final = 0
ROUND_ROBIN: Final = 1
LEAST_CONN: Final = 2
RANDOM_TWO: Final = 3
EXPECTED_DELAY: Final = 4
LEAST_WORK: Final = 5
CENTRAL: Final = 6  # this and above: one queue in the balancer
CENTRAL_FIFO: Final = 6
CENTRAL_EDF: Final = 7
CENTRAL_ATC: Final = 8

CODES: Final = {
    "random": RANDOM,
    "round_robin": ROUND_ROBIN,
    "least_conn": LEAST_CONN,
    "random_two": RANDOM_TWO,
    "expected_delay": EXPECTED_DELAY,
    "least_work": LEAST_WORK,
    "central_fifo": CENTRAL_FIFO,
    "central_edf": CENTRAL_EDF,
    "central_atc": CENTRAL_ATC,
}

# Look-ahead of the ATC index in mean service times; from 1 to 10 it makes no difference.
ATC_LOOK_AHEAD: Final = 3.0

# At most so many waiting requests make their claims when a slot is free: the rest would hardly
# get it, and in overload the queue is long.
CLAIMS: Final = 64


@compiled
def weighted_draw(up: Integers, weight: Floats, uniform: float, but: int) -> int:
    """A server that is up, other than `but`, with probability ∝ weight; -1 if there is none."""
    total = 0.0
    for i in range(up.shape[0]):
        if up[i] and i != but:
            total += weight[i]
    left = uniform * total
    last = -1
    for i in range(up.shape[0]):
        if up[i] and i != but:
            last = i
            left -= weight[i]
            if left < 0:
                return i
    return last


@compiled
def smooth_round_robin(candidate: Integers, weight: Floats, current: Floats) -> int:
    """nginx's: raise each candidate by its weight, take the highest, lower it by the sum."""
    total = 0.0
    best = -1
    for i in range(candidate.shape[0]):
        if candidate[i]:
            current[i] += weight[i]
            total += weight[i]
            if best < 0 or current[i] > current[best]:
                best = i
    if best >= 0:
        current[best] -= total
    return best


@compiled
def fewest(up: Integers, weight: Floats, count: Integers, current: Floats, tied: Integers) -> int:
    """least_conn; `tied` is scratch space of shape (M,)."""
    best = -1
    for i in range(up.shape[0]):
        tied[i] = 0
        if up[i] and (best < 0 or count[i] * weight[best] < count[best] * weight[i]):
            best = i
    if best < 0:
        return -1
    ties = 0
    for i in range(up.shape[0]):
        if up[i] and count[i] * weight[best] == count[best] * weight[i]:
            tied[i] = 1
            ties += 1
    return best if ties == 1 else smooth_round_robin(tied, weight, current)


@compiled
def by_count(
    code: int,
    up: Integers,
    weight: Floats,
    count: Integers,
    current: Floats,
    tied: Integers,
    uniform: Floats,
) -> int:
    """The rules that see counts only. `uniform` has two numbers. -1: no server is up."""
    if code == ROUND_ROBIN:
        return smooth_round_robin(up, weight, current)
    if code == LEAST_CONN:
        return fewest(up, weight, count, current, tied)
    first = weighted_draw(up, weight, uniform[0], -1)
    if code == RANDOM:
        return first
    second = weighted_draw(up, weight, uniform[1], first)
    if second < 0 or count[first] * weight[second] <= count[second] * weight[first]:
        return first
    return second


@compiled
def expected_end(
    own: float, speed: float, slots: int, sharing: int, present: int, backlog: float
) -> float:
    """Expected time from now to the end of one more request.

    `own` is its mean work there, `backlog` the mean work of the `present` ones. FIFO: what is
    beyond the free slots waits for a share of the backlog, as in the live rule. PS: its own work
    at the rate that n + 1 get.
    """
    if sharing:
        return own * max(1.0, (present + 1) / slots) / speed
    wait = 0.0
    if present + 1 > slots:
        wait = (present + 1 - slots) / present * backlog / slots
    return (own + wait) / speed


@compiled
def urgency(
    code: int, arrived: float, deadline: float, mean: float, overall_mean: float, now: float
) -> float:
    """Of the waiting requests the one with the least value of this goes first."""
    if code == CENTRAL_FIFO:
        return arrived
    if code == CENTRAL_EDF:
        return arrived + deadline
    slack = max(0.0, arrived + deadline - mean - now)
    return float(-np.exp(-slack / (ATC_LOOK_AHEAD * overall_mean)) / (deadline * mean))


@compiled
def claim(
    code: int, now: float, at: Floats, deadline: Floats, mean_work: Floats, overall_mean: float,
    first: Integers, following: Integers, slots: Integers, sharing: Integers, speed: Floats,
    affinity: Floats, open_: Integers, present: Integers, backlog: Floats, claims: Integers,
    place: Integers,
) -> bool:  # fmt: skip
    """Find a waiting request that can go to the server that it claims.

    `first` (C,) and `following` (N,) are the waiting requests of each class, `open_` (M,) the
    servers that serve, `backlog` (M,) the mean work present. True: `place` holds the class, the
    request before it in its class's list (-1: none), the request, and the server. `backlog` and
    `claims` (M,) are overwritten.
    """
    room = False
    for i in range(slots.shape[0]):
        claims[i] = 0
        if open_[i] and present[i] < slots[i]:
            room = True
    if not room:
        return False
    cursor = first.copy()
    previous = np.full(first.shape[0], -1, dtype=np.int64)
    for _ in range(CLAIMS):
        chosen = -1
        least = np.inf
        for j in range(first.shape[0]):
            if cursor[j] >= 0:
                value = urgency(code, at[cursor[j]], deadline[j], mean_work[j], overall_mean, now)
                if value < least:
                    least = value
                    chosen = j
        if chosen < 0:
            return False
        target = -1
        least = np.inf
        for i in range(slots.shape[0]):
            if open_[i]:
                value = expected_end(
                    mean_work[chosen] * affinity[i, chosen], speed[i], slots[i], sharing[i],
                    present[i] + claims[i], backlog[i],
                )  # fmt: skip
                if value < least:
                    least = value
                    target = i
        if present[target] < slots[target]:
            place[0], place[1], place[2], place[3] = (
                chosen, previous[chosen], cursor[chosen], target,
            )  # fmt: skip
            return True
        claims[target] += 1
        backlog[target] += mean_work[chosen] * affinity[target, chosen]
        previous[chosen] = cursor[chosen]
        cursor[chosen] = following[cursor[chosen]]
    return False
