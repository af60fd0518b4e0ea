"""The square-root rule: shares for a balancer that cannot see what is in flight.

Plain weighted round robin sends a fixed share to each server, whatever is queued there. Of n
servers with capacities μ_i (requests a second) and an arrival rate λ, M/M/1 queues have the least
mean response time when server i gets

    λ_i = μ_i − √μ_i · (Σμ − λ) / Σ√μ

so that fast servers get more than their part. A server with λ_i ≤ 0 would get nothing; the rule
is then taken again over the others. With ρ = λ / Σμ only ratios of the μ_i matter.
Source: Kleinrock's square-root capacity assignment, read as an assignment of load.
"""

import math
from collections.abc import Mapping
from typing import Final

__all__ = ["square_root_shares"]

# A server that the rule gives nothing keeps this part of its proportional share, so that it is
# measured at all: it may have become faster.
LEAST_RATIO: Final = 0.02


def square_root_shares(capacities: Mapping[str, float], load_ratio: float) -> dict[str, float]:
    """Shares by server, more than 0, in the order of `capacities`; no unit.

    Args:
        capacities: μ_i up to a common factor; finite and more than 0.
        load_ratio: ρ, in (0, 1).

    Raises:
        ValueError: a capacity or the load is out of bounds.
    """
    if not 0 < load_ratio < 1:
        raise ValueError(f"a load of {load_ratio!r}; it must be between 0 and 1")
    for server, capacity in capacities.items():
        if not (math.isfinite(capacity) and capacity > 0):
            raise ValueError(f"the capacity of {server!r} is {capacity!r}")
    arrivals = load_ratio * math.fsum(capacities.values())
    used = dict(capacities)
    while True:
        spare = math.fsum(used.values()) - arrivals
        roots = math.fsum(math.sqrt(c) for c in used.values())
        shares = {s: c - math.sqrt(c) * spare / roots for s, c in used.items()}
        kept = {s: used[s] for s, share in shares.items() if share > 0}
        if len(kept) == len(used):
            break
        used = kept
    return {
        server: max(shares.get(server, 0.0), LEAST_RATIO * load_ratio * capacity)
        for server, capacity in capacities.items()
    }
