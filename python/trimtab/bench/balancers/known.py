"""The rows of the benchmark's table."""

from collections.abc import Sequence
from typing import Final

from trimtab.bench.balancers.base import Balancer
from trimtab.bench.balancers.haproxy import Haproxy
from trimtab.bench.balancers.hook import Hook
from trimtab.bench.balancers.nginx import Nginx
from trimtab.errors import ConfigError

__all__ = ["BALANCERS", "BASE", "PEERS", "QUICK", "chosen"]

BALANCERS: Final[tuple[Balancer, ...]] = (
    Nginx(name="round-robin", label="nginx round robin", method="round_robin"),
    Nginx(
        name="round-robin-weights",
        label="nginx round robin, true weights",
        method="round_robin",
        weighted=True,
        hint="weights",
    ),
    Nginx(name="least-conn", label="nginx least_conn, a group a class", method="least_conn"),
    Nginx(
        name="least-conn-shared",
        label="nginx least_conn, one group",
        method="least_conn",
        shared=True,
    ),
    Nginx(
        name="least-conn-weights",
        label="nginx least_conn, true weights",
        method="least_conn",
        weighted=True,
        hint="weights",
    ),
    Nginx(
        name="least-conn-500",
        label="nginx least_conn, next_upstream http_500",
        method="least_conn",
        retry_500=True,
    ),
    Nginx(name="random-two", label="nginx random two", method="random_two"),
    Haproxy(name="haproxy-leastconn", label="HAProxy leastconn", method="leastconn"),
    Haproxy(name="haproxy-random", label="HAProxy random(2)", method="random(2)"),
    Haproxy(
        name="haproxy-maxconn",
        label="HAProxy leastconn, maxconn = slots",
        method="leastconn",
        limited=True,
        hint="slots",
    ),
    Hook(name="trimtab", label="Trimtab", hint="slots"),
    Hook(name="trimtab-unknown", label="Trimtab, nothing given", slots=False),
    Hook(
        name="trimtab-alone",
        label="Trimtab without policy server",
        advised=False,
        hint="slots",
    ),
)

# What ratios are to, unless told otherwise.
BASE: Final = "least-conn"

# Without a flag: what most people run, the peer that has the slots, and ours.
QUICK: Final = (
    "least-conn",
    "least-conn-shared",
    "haproxy-leastconn",
    "haproxy-maxconn",
    "trimtab",
)

# The peers of "the best peer": nothing that was given weights or limits.
PEERS: Final = (
    "round-robin",
    "least-conn",
    "least-conn-shared",
    "random-two",
    "haproxy-leastconn",
    "haproxy-random",
)


def chosen(names: Sequence[str]) -> list[Balancer]:
    """The balancers of these names, in the table's order. Raises ConfigError."""
    known = {b.name: b for b in BALANCERS}
    for name in names:
        if name not in known:
            raise ConfigError(f"no balancer {name!r}; there are {', '.join(known)}")
    return [b for b in BALANCERS if b.name in names]
