"""Simulated bounds: how well the same requests could have been served by rules that know more.

None of these rules can be deployed as it is; beside measured balancers they say how much there is
left to win. The simulator has no network, no processor time and no noise, so a bound is a little
more than any real balancer can reach.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.model import FAILED_TARDINESS
from trimtab.twin.events import OK, Records, Rule, simulate
from trimtab.twin.workload import Changes, Requests, Servers

__all__ = ["BOUNDS", "Summary", "bounds", "in_deadlines", "summary"]

Floats = NDArray[np.float64]

BOUNDS: Final[Mapping[str, Rule]] = {
    "shortest expected delay knowing speeds": Rule(name="expected_delay"),
    "central queue in deadline order": Rule(name="central_edf"),
    "least work knowing every size": Rule(name="least_work"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to. Quantiles are of the response times of successful requests."""

    requests: int
    art_per_1000: float  # accumulated relative tardiness; a failure counts as at least 9
    p50_seconds: float
    p99_seconds: float
    error_ratio: float


def in_deadlines(requests: Requests, records: Records) -> Floats:
    """The response time of each request (N,) in deadlines of its class; of a failed one the time
    that has the tardiness of a failure, or its own if that is longer."""
    # A request that reached no server has no time at all; it is a failure like the others.
    times = np.nan_to_num(records.ended - requests.at, nan=0.0)
    relative = times / requests.deadline[requests.kind]
    failed = np.maximum(relative, 1 + FAILED_TARDINESS)
    return np.asarray(np.where(records.status == OK, relative, failed))


def summary(requests: Requests, records: Records, *, after_seconds: float = 0.0) -> Summary:
    """Summary of the requests that arrived at `after_seconds` or later."""
    chosen = requests.at >= after_seconds
    good = records.status[chosen] == OK
    tardiness = np.maximum(0.0, in_deadlines(requests, records)[chosen] - 1)
    served = (records.ended - requests.at)[chosen][good]
    p50, p99 = np.quantile(served, [0.5, 0.99]) if served.size else (np.nan, np.nan)
    count = int(chosen.sum())
    return Summary(
        requests=count,
        art_per_1000=float(1000 * tardiness.sum() / max(1, count)),
        p50_seconds=float(p50),
        p99_seconds=float(p99),
        error_ratio=float(1 - good.sum() / max(1, count)),
    )


def bounds(
    servers: Servers,
    requests: Requests,
    changes: Changes | None = None,
    *,
    after_seconds: float = 0.0,
) -> dict[str, Summary]:
    """Every rule of `BOUNDS` on the same requests, work and changes as a live run."""
    return {
        name: summary(
            requests, simulate(servers, requests, rule, changes), after_seconds=after_seconds
        )
        for name, rule in BOUNDS.items()
    }
