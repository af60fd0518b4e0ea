"""Service times that a balancer sees by itself: `nginx/lua/resty/trimtab/services.lua` in Python.

The Lua file says what the formulas mean and where their constants come from.
"""

from typing import Final

from trimtab.twin.compiled import compiled, inlined
from trimtab.twin.parts import Balancers, Control, Counters
from trimtab.twin.room import fast_rule

__all__ = ["refresh", "sample"]

# registry.lua and services.lua: what a class is taken for before anything is known, the least that
# is believed, and memory and prior in samples.
DEFAULT_SECONDS: Final = 0.01
MIN_SECONDS: Final = 1e-6
MEMORY: Final = 200.0
PRIOR_SAMPLES: Final = 20.0
# counters.lua: memory of the rate estimate in mean services, and its bounds.
TAU_SERVICES: Final = 30.0
MIN_TAU_SECONDS: Final = 0.1
MAX_TAU_SECONDS: Final = 10.0

_rate = fast_rule.rate


@inlined
def sample(b: int, j: int, nominal: float, n: Counters) -> bool:
    """A try of class j that found a free slot took this long; whether it is the first of them."""
    n.sampled[b, j] += 1
    share = max(1 / n.sampled[b, j], 1 / MEMORY)
    n.service[b, j] += (nominal - n.service[b, j]) * share
    return bool(n.sampled[b, j] == 1)


@compiled
def refresh(b: int, c: Control, k: Balancers, n: Counters) -> None:
    """Brings v_j up to date, and with them what was measured in them: D and the rates."""
    classes, servers = c.service.shape[1], c.server.shape[1]
    total, samples = 0.0, 0.0
    for j in range(classes):
        count, seconds = min(n.sampled[b, j], MEMORY), n.service[b, j]
        if c.told[b, j] > 0:
            count, seconds = MEMORY, c.told[b, j]
        total += seconds * count
        samples += count
    prior = max(total / samples, MIN_SECONDS) if samples > 0 else DEFAULT_SECONDS
    total, before, after = 0.0, 0.0, 0.0
    for j in range(classes):
        seconds = c.told[b, j]
        if seconds <= 0:
            count = n.sampled[b, j]
            seconds = (n.service[b, j] * count + prior * PRIOR_SAMPLES) / (count + PRIOR_SAMPLES)
        share = n.sampled[b, j] + 1
        before += share * c.service[b, j]
        after += share * seconds
        c.service[b, j] = seconds
        total += seconds
    mean = max(total / classes, MIN_SECONDS)
    c.mean_service[b] = mean
    c.tau[b] = min(max(TAU_SERVICES * mean, MIN_TAU_SECONDS), MAX_TAU_SECONDS)
    for p in range(servers):
        g = c.server[b, p]
        k.done[g] *= after / before
        k.rate[g] = _rate(k.done[g], k.busy[g], c.prior[g], mean)
