"""Service times from response times alone, of servers with requests waiting in them.

A source like nginx-module-vts tells how many requests a server answered and how long they took in
all, so by Little's law how many were there in the mean, L. Taking the server as an M/M/k queue of
utilisation ρ (Poisson arrivals, k slots, Erlang's C the probability that all are busy),

    L = k·ρ + C(k, ρ)·ρ/(1 − ρ)

which grows with ρ, so ρ follows from L by halving. kρ is the mean number being served, and the
mean wait before service is (L − kρ)/X at a throughput X, the same for every class of a first-come
first-served server; for k = 1 the service rate comes out as X + 1/R, R the mean response time.
A processor-sharing server of k cores holds as many, but stretches every class alike, by L/(kρ).

Balanced arrivals are smoother than Poisson, so queues are shorter than this says, and where k is
not known, 1 is taken for it. Both errors are alike on all servers with alike in flight, which is
what least_conn makes of them: ratios of service times, which weights are made of, come out close
to right (tests/unit/test_crowded.py).

No I/O, no memory: numbers in, numbers out.
"""

import math
from typing import Final

__all__ = ["serving"]

# Halvings of [0, 1): to a millionth, far below the noise of any counter.
_STEPS: Final = 20

# A server with more slots than this waits for none at any load of interest.
_MOST_SLOTS: Final = 1000


def _present(slots: int, utilisation: float) -> float:
    """L of an M/M/k queue."""
    offered = slots * utilisation
    # Erlang's B by its recurrence, which neither overflows nor cancels.
    blocked = 1.0
    for k in range(1, slots + 1):
        blocked = offered * blocked / (k + offered * blocked)
    waits = blocked / (1 - utilisation * (1 - blocked))
    return offered + waits * utilisation / (1 - utilisation)


def serving(in_flight: float, slots: float = 1.0) -> float:
    """Of `in_flight` requests at a server of `slots` places in the mean, how many are in service.

    At most `slots`; slots are rounded to a whole number from 1 to 1000.
    """
    k = min(max(round(slots), 1), _MOST_SLOTS)
    if not (math.isfinite(in_flight) and in_flight > 0):
        return 0.0
    if k == 1:
        return in_flight / (1 + in_flight)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _present(k, middle) < in_flight:
            low = middle
        else:
            high = middle
    return k * low if low > 0 else min(in_flight, k * high)
