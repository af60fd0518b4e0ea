"""The rows of the benchmark's table."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from trimtab.bench.balancers.base import Balancer
from trimtab.bench.balancers.envoy import Envoy
from trimtab.bench.balancers.haproxy import Haproxy
from trimtab.bench.balancers.hook import Hook
from trimtab.bench.balancers.nginx import Nginx
from trimtab.bench.balancers.stock import StockMode
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
    Nginx(name="least-time", label="nginx least_time last_byte", method="least_time"),
    Haproxy(name="haproxy-leastconn", label="HAProxy leastconn", method="leastconn"),
    Haproxy(name="haproxy-random", label="HAProxy random(2)", method="random(2)"),
    Haproxy(
        name="haproxy-maxconn",
        label="HAProxy leastconn, maxconn = slots",
        method="leastconn",
        limited=True,
        hint="slots",
    ),
    Envoy(name="envoy-least-request", label="Envoy least request of two"),
    Envoy(name="envoy-full-scan", label="Envoy least request of all", full_scan=True),
    Hook(name="trimtab", label="Trimtab, hold = auto", hint="slots"),
    Hook(
        name="trimtab-immediate",
        label="Trimtab, hold = off",
        hold="off",
        hint="slots",
    ),
    Hook(
        name="trimtab-discipline",
        label="Trimtab, hold = off, told the discipline",
        discipline=True,
        hold="off",
        hint="slots, discipline",
    ),
    Hook(name="trimtab-hold", label="Trimtab, hold = on", hold="on", hint="slots"),
    Hook(
        name="trimtab-hasty",
        label="Trimtab, hold = auto, tries given up after 3 deadlines",
        try_deadlines=3.0,
        hint="slots",
    ),
    Hook(
        name="trimtab-refusing",
        label="Trimtab, hold = auto, no wait beyond half a deadline",
        wait_deadlines=0.5,
        hint="slots",
    ),
    Hook(name="trimtab-unknown", label="Trimtab, nothing given", slots=False),
    Hook(
        name="trimtab-alone",
        label="Trimtab without policy server",
        advised=False,
        hint="slots",
    ),
    StockMode(name="trimtab-stock", label="Trimtab, stock mode (least_conn, reloads)"),
)

# What ratios are to, unless told otherwise.
BASE: Final = "least-conn"

# Without a flag: what most people run, the peer that has the slots, and ours.
QUICK: Final = (
    "least-conn",
    "least-conn-shared",
    "haproxy-leastconn",
    "haproxy-maxconn",
    "trimtab-immediate",
    "trimtab",
)

# The peers of "the best peer": nothing that was given weights or limits.
PEERS: Final = (
    "round-robin",
    "least-conn",
    "least-conn-shared",
    "random-two",
    "least-time",
    "haproxy-leastconn",
    "haproxy-random",
    "envoy-least-request",
    "envoy-full-scan",
)


def chosen(names: Sequence[str], *, nginx: str = "") -> list[Balancer]:
    """The balancers of these names, in the table's order. Raises ConfigError.

    `nginx` is the program of the rows that the system's nginx is too old for.
    """
    known = {b.name: b for b in BALANCERS}
    for name in names:
        if name not in known:
            raise ConfigError(f"no balancer {name!r}; there are {', '.join(known)}")
    balancers = (b for b in BALANCERS if b.name in names)
    return [
        replace(b, binary=nginx)
        if nginx and isinstance(b, Nginx) and b.method == "least_time"
        else b
        for b in balancers
    ]
