"""Upstream groups as the templates take them: servers, integer weights, sizes.

Pure: a configuration and weights in, plain data out. Writing is `nginx_conf`'s.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from trimtab.actuators.integer_weights import integer_weights
from trimtab.actuators.square_root import square_root_shares
from trimtab.config import Config, Upstream
from trimtab.learn.actions import STOCK_POWER
from trimtab.model import Weights

__all__ = [
    "BALANCERS",
    "SHARED_GROUP",
    "group",
    "shared_servers",
    "static_groups",
    "stock_groups",
]

BALANCERS: Final = ("trimtab", "round_robin", "least_conn", "random_two", "least_time")

SHARED_GROUP: Final = "trimtab_shared"

_METHODS: Final = {
    "round_robin": (),
    "least_conn": ("least_conn",),
    "random_two": ("random", "two", "least_conn"),
    # In the free nginx since 1.31; older ones refuse it.
    "least_time": ("least_time", "last_byte"),
}

# Idle connections a worker keeps to the peers of a group. Too small a pool costs 40% of the
# throughput, so plenty a peer, and twice its slots where these are more: as many as are there at
# high load. The cap bounds what a worker with a thousand peers holds open.
_KEEPALIVE_PER_PEER: Final = 32
_KEEPALIVE_PER_SLOT: Final = 2
_KEEPALIVE_BOUNDS: Final = (64, 1024)

# least_conn does best with weights that grow a little faster than capacities, as a request in
# flight at a slow server is there for longer. ART in the twin, means of three seeds of 120 s,
# powers 0, 0.5, 1, 1.25, 1.5, 2, 3: speeds 1:2:4 22.6, 11.0, 7.5, 6.6, 6.6, 8.7, 20.1; three
# classes 86.5, 42.1, 30.7, 29.5, 29.1, 32.8, 42.4; the fastest slowed four times 46.1, 37.3, 33.1,
# 32.4, 32.7, 37.8, 79.9; servers that share 58.6, 27.5, 19.2, 18.5, 18.2, 20.3 up to power 2. Of
# the two that are best in all, the one farther from the rise.
_LEAST_CONN_POWER: Final = STOCK_POWER

# Since http_500 and the like count as failures, nginx's own limit of one would take a server out
# for ten seconds after one bad answer.
_STOCK_MAX_FAILS: Final = 3


def _capacities(
    upstream: Upstream, weights: Weights | None, power: float
) -> dict[str, float | None]:
    """What each server can take, up to a common factor; None for one that is drained.

    least_conn takes the least n_i / w_i. The per-request rule compares about
    n_i·a_i / (k_i·r_i·W_i), so its learned numbers become w_i = W_i·(k_i·r_i / a_i)^`power`; slots
    k_i count only when all are known, as in the estimates. Without learned weights: the static
    ones.
    """
    learned = weights.upstreams.get(upstream.name) if weights else None
    if learned is None:
        return {p.address: float(p.weight) for p in upstream.peers}
    known = {p.address: learned.peers.get(p.address) for p in upstream.peers}
    slots = {
        p.address: p.slots or (w.slots if (w := known[p.address]) else None) for p in upstream.peers
    }
    by_slots = all(slots.values())
    return {
        address: None
        if w and w.drain
        else (w.weight if w else 1.0)
        * ((w.rate / w.affinity if w else 1.0) * ((slots[address] or 1) if by_slots else 1))
        ** power
        for address, w in known.items()
    }


def _servers(
    upstream: Upstream, weights: Weights | None, *, load_ratio: float | None = None
) -> list[dict[str, Any]]:
    """The `server` lines of a group; by the square-root rule when a load is given."""
    # The square-root rule is of capacities as they are.
    power = _LEAST_CONN_POWER if load_ratio is None else 1.0
    capacities = _capacities(upstream, weights, power)
    values = {a: c for a, c in capacities.items() if c is not None}
    if load_ratio is None and weights is None:
        # As the operator has written them.
        whole = {a: round(value) for a, value in values.items()}
    else:
        shares = values if load_ratio is None else square_root_shares(values, load_ratio)
        whole = integer_weights(shares)
    return [{"address": a, "weight": whole.get(a, 1), "down": a not in whole} for a in capacities]


def group(
    name: str,
    servers: list[dict[str, Any]],
    balancer: str,
    *,
    zone: bool,
    max_fails: int = 0,
    slots: Mapping[str, int | None] | None = None,
) -> dict[str, Any]:
    """One upstream block. `max_fails` 0 leaves nginx's own; `slots` are the known ones."""
    known = slots or {}
    connections = sum(
        max(_KEEPALIVE_PER_PEER, _KEEPALIVE_PER_SLOT * (known.get(s["address"]) or 0))
        for s in servers
    )
    low, high = _KEEPALIVE_BOUNDS
    return {
        "name": name,
        "servers": servers,
        "hook": balancer == "trimtab",
        "method": _METHODS.get(balancer, ()),
        "max_fails": max_fails,
        "keepalive": min(high, max(low, connections)),
        # nginx takes about half a kibibyte a peer, and needs some pages to begin with.
        "zone_kibibytes": 64 * math.ceil((64 + 2 * len(servers)) / 64) if zone else 0,
    }


def stock_groups(config: Config, weights: Weights | None) -> list[dict[str, Any]]:
    """The groups of stock mode, by the method of the configuration."""
    method = config.stock.method
    ratio = config.stock.load_ratio if method == "round_robin" else None
    return [
        group(
            upstream.name,
            _servers(upstream, weights, load_ratio=ratio),
            method,
            zone=True,
            max_fails=_STOCK_MAX_FAILS,
            slots=_slots(upstream),
        )
        for upstream in config.upstreams
    ]


def static_groups(config: Config, balancer: str, *, zone: bool) -> list[dict[str, Any]]:
    """A group for each upstream with its static weights."""
    return [
        group(u.name, _servers(u, None), balancer, zone=zone, slots=_slots(u))
        for u in config.upstreams
    ]


def _slots(upstream: Upstream) -> dict[str, int | None]:
    return {p.address: p.slots for p in upstream.peers}


def shared_servers(config: Config) -> list[dict[str, Any]]:
    """Every server once, with the weight that its first upstream gives it."""
    servers: dict[str, dict[str, Any]] = {}
    for upstream in config.upstreams:
        for server in _servers(upstream, None):
            servers.setdefault(server["address"], server)
    return list(servers.values())
