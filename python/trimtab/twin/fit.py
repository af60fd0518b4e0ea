"""What the twin is fitted to: the servers and the load of a live system, from its statistics.

Two sources. The policy server's status has everything that the estimator knows: service times,
rates, affinities, slots, arrivals. A collector's file (nginx-module-vts) has only requests and mean
response times: less the mean wait these are service times; slots it cannot show, so they must be
given. Neither tells the law of service times, which is taken as exponential, nor how
arrivals cluster, which are taken as Poisson. Simulating is not done here.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trimtab.errors import StateError
from trimtab.estimate import Estimator
from trimtab.model import Window
from trimtab.responses import mean_seconds
from trimtab.sums import accumulate, class_total

__all__ = ["Fit", "FittedClass", "from_status", "from_windows"]

# Requests of a class below which its arrival rate (error 1/√n) says nothing: 10%.
LEAST_REQUESTS: Final = 100

# Mean and two standard deviations, were response times exponential: priority 1, unloaded.
DEADLINE_SERVICES: Final = 3.0

# A collector's file is fitted as a whole: nothing is forgotten within a day.
FORGET_SECONDS: Final = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedClass:
    """One upstream; `affinity` by address, 1 where nothing is known."""

    name: str
    requests_per_second: float
    service_seconds: float  # on a server of rate 1
    deadline_seconds: float
    affinity: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Servers by address, in the order of the statistics, and classes."""

    rates: Mapping[str, float]
    slots: Mapping[str, int]
    classes: tuple[FittedClass, ...]


def from_status(status: Mapping[str, Any], where: str = "status") -> Fit:
    """The fit of a policy server's status (its /status.json). Raises StateError with what lacks."""
    try:
        estimates = status["estimates"]
        upstreams = status["upstreams"]
        classes, rates, slots = [], dict[str, float](), dict[str, int]()
        for name, upstream in upstreams.items():
            service = upstream["service_time_seconds"]
            arrivals = estimates["arrivals_per_second"].get(name)
            if not service or not arrivals:
                raise StateError(
                    f"{where}: nothing is known of the service times of {name} yet; save the "
                    "status of a policy server that has seen a minute of its traffic"
                )
            for address, peer in upstream["peers"].items():
                rates[address] = float(peer["rate"])
                found = peer["slots"] or (peer["slots_estimate"] or {}).get("value")
                if not found:
                    raise StateError(
                        f"{where}: the slots of {address} are not known; wait until they are "
                        "estimated, or give slots in the configuration"
                    )
                slots[address] = max(1, round(float(found)))
            classes.append(
                FittedClass(
                    name=str(name),
                    requests_per_second=float(arrivals),
                    service_seconds=float(service),
                    deadline_seconds=float(
                        upstream["deadline_seconds"] or DEADLINE_SERVICES * service
                    ),
                    affinity={a: float(p["affinity"]) for a, p in upstream["peers"].items()},
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(
            f"{where}: not the status of a policy server ({type(error).__name__}: {error})"
        ) from None
    if not classes:
        raise StateError(f"{where}: no upstreams in it")
    return Fit(rates=rates, slots=slots, classes=tuple(classes))


def from_windows(
    windows: Iterable[Window],
    slots: Mapping[str, int | None],
    deadlines: Mapping[str, float | None],
    where: str = "statistics",
    sharing: Collection[str] = (),
) -> Fit:
    """The fit of a collector's windows.

    `slots` by address and `deadlines` by upstream come from the configuration and name what to
    fit; a class without a deadline gets three mean service times. `sharing` are the addresses of
    servers that share their slots. Raises StateError.
    """
    seen = list(windows)
    if not seen:
        raise StateError(f"{where}: no traffic in it, nothing to fit")
    unknown = [a for a, k in slots.items() if k is None]
    if unknown:
        raise StateError(
            f"{where}: a collector's file does not show slots; give slots for "
            f"{', '.join(unknown)} in the configuration"
        )
    whole = accumulate(seen)
    peers = {name: [a for a in whole.pairs.get(name, {}) if a in slots] for name in deadlines}
    estimator = Estimator(peers, slots, FORGET_SECONDS, sharing)
    for window in seen:
        estimator.update(window)
    estimates = estimator.estimates()
    classes = []
    for name, deadline in deadlines.items():
        total = class_total(whole, name)
        if total.requests < LEAST_REQUESTS:
            raise StateError(
                f"{where}: {total.requests} requests of {name}; at least {LEAST_REQUESTS} are "
                "needed to fit it"
            )
        # Nothing came of it: the response time is the best that there is, and too long.
        service = estimates.service_time_seconds.get(name) or mean_seconds(total)
        if not service:
            raise StateError(f"{where}: no response times of {name}")
        classes.append(
            FittedClass(
                name=name,
                requests_per_second=total.requests / whole.seconds,
                service_seconds=service,
                deadline_seconds=deadline or DEADLINE_SERVICES * service,
                affinity=estimates.affinity.get(name, {}),
            )
        )
    return Fit(
        rates={a: estimates.rates.get(a, 1.0) for a in slots},
        slots={a: k for a, k in slots.items() if k is not None},
        classes=tuple(classes),
    )
