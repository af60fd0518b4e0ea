"""Features: what a window says of the balancer's condition, as named numbers.

STATE   is made of these by `clusters`: requests in flight per server, response time, request
        rate, error ratio and bytes per class, active connections, requests held
ACTION  the weights; they are the control and so never among the features
REWARD  see `reward`
Source: the founding plan's statistics; in flight per server and response time per class are what
predicts the next interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.model import Window
from trimtab.responses import mean_seconds
from trimtab.sums import class_total

__all__ = ["Features", "demand", "features"]

# What clients ask for, whatever the balancer does with it; the other features follow the weights.
DEMAND: Final = ("requests_per_second/", "in_bytes_per_second/")

# With more servers than this, in flight is summarised: a mixture over a hundred columns would need
# more samples than an observation period has.
MOST_ADDRESSES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """One observation. Values are in the unit of their name, and NaN where nothing is known."""

    names: tuple[str, ...]
    values: tuple[float, ...]


def features(of: Window, upstreams: Sequence[str], addresses: Sequence[str]) -> Features:
    """The features of one window. Names depend on the arguments alone, not on the window.

    A class without a finished request has no response time and no error ratio (NaN).
    """
    found: dict[str, float] = {}
    held = dict.fromkeys(addresses, 0.0)
    for peers in of.pairs.values():
        for address, pair in peers.items():
            if address in held:
                held[address] += pair.in_flight
    if len(addresses) <= MOST_ADDRESSES:
        found.update({f"in_flight/{a}": n for a, n in held.items()})
    else:
        mean = sum(held.values()) / len(held)
        found["in_flight/mean"] = mean
        found["in_flight/max"] = max(held.values())
        found["in_flight/std"] = math.sqrt(sum((n - mean) ** 2 for n in held.values()) / len(held))
    for name in upstreams:
        total = class_total(of, name)
        mean_time = mean_seconds(total)
        bad = max(total.failures, total.responses[4])
        found[f"response_time_seconds/{name}"] = math.nan if mean_time is None else mean_time
        found[f"requests_per_second/{name}"] = total.requests / of.seconds
        found[f"error_ratio/{name}"] = (
            min(bad / total.requests, 1.0) if total.requests else math.nan
        )
        found[f"in_bytes_per_second/{name}"] = total.in_bytes / of.seconds
        found[f"out_bytes_per_second/{name}"] = total.out_bytes / of.seconds
    found["waiting"] = float(sum(of.waiting.values()))
    found["connections"] = float(of.connections.active)
    return Features(names=tuple(found), values=tuple(found.values()))


def demand(of: Features) -> Features:
    """The features that do not depend on the weights in force."""
    kept = [(n, v) for n, v in zip(of.names, of.values, strict=True) if n.startswith(DEMAND)]
    return Features(names=tuple(n for n, _ in kept), values=tuple(v for _, v in kept))
