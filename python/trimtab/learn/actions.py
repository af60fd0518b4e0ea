"""Actions: a small set of weight profiles that are safe to try on live traffic.

STATE   the balancer's cluster of statistics (`clusters`), not used here
ACTION  the index of a profile: a rule that makes W_ij from the estimates r_i and a_ij
REWARD  see `reward`

Why they are safe: W_ij only divides the expected delay of a rule that sees what is in flight and
how fast each server is right now (weights × load). A profile leans on that rule and cannot
overrule it: all its weights lie within [1/3, 3], so no server is starved, and one that queues up
loses its attraction however large its weight. Raw shares are never learned: they collapse when a
server slows down.
Source: the measurements in docs/decisions (weights × load; profiles instead of raw weights).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "LEVELS",
    "NEUTRAL",
    "PROFILES",
    "STOCK_POWER",
    "WEIGHT_BOUND",
    "Profile",
    "actions",
    "profile_weights",
    "searched",
]

# The bound of a residual weight to either side; the guard enforces the same.
WEIGHT_BOUND: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One way to lean on the balancing rule.

    The weight of a peer, before it is normalised and bounded, is `raw(rate, affinity)` times its
    entry in `factors` (upstream -> address -> W; 1 where there is none); with `levels`, what makes
    the weight that nginx is told of servers of as many slots one of these, the nearest in
    proportion to the rates.
    """

    name: str
    summary: str
    raw: Callable[[float, float], float]
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    levels: tuple[float, ...] = ()


# Functions of a module, as a profile goes to other processes by their names.
def _neutral(_rate: float, _affinity: float) -> float:
    return 1.0


def _to_affinity(_rate: float, affinity: float) -> float:
    return float(affinity**-0.5)


def _to_fast(rate: float, _affinity: float) -> float:
    return float(rate**0.5)


def _from_fast(rate: float, _affinity: float) -> float:
    return float(rate**-0.25)


# The order is the order of the actions; the first is what everything else must beat.
# Exponents of at most a half: the rule divides by r_i and multiplies by a_ij once already, half of
# that again is a strong lean. Half as strong away from the fast ones is what balances risk: they
# are where everyone queues when the estimates are stale.
PROFILES: Final = (
    Profile(
        name="neutral",
        summary="W = 1: the balancing rule alone",
        raw=_neutral,
    ),
    Profile(
        name="affinity",
        summary="W ∝ a_ij^-1/2: classes lean to the servers that serve them best",
        raw=_to_affinity,
    ),
    Profile(
        name="fast",
        summary="W ∝ r_i^1/2: all classes lean to fast servers, which queue more",
        raw=_to_fast,
    ),
    Profile(
        name="spread",
        summary="W ∝ r_i^-1/4: slow servers take more, fast ones keep room for bursts",
        raw=_from_fast,
    ),
)
NEUTRAL: Final = 0

# In stock mode one more. Rendered weights are those of the estimates times W there, so the others
# are templates of weights: in proportion, steeper and flatter.
LEVELS: Final = Profile(
    name="levels",
    summary="weights of 1, 3 and 5 by speed, as the founding project had them",
    raw=_neutral,
    levels=(1.0, 3.0, 5.0),
)

# nginx's weight of a server in stock mode is W times its capacity to this power: see
# `actuators.groups`, which has what was measured.
STOCK_POWER: Final = 1.25


def actions(mode: str, given: Sequence[Profile] = ()) -> tuple[Profile, ...]:
    """All profiles in the order of the actions: the built-in ones, those that a trained file has,
    and in mode "stock" the levels."""
    return (*PROFILES, *given, *((LEVELS,) if mode == "stock" else ()))


def searched(name: str, summary: str, factors: Mapping[str, Mapping[str, float]]) -> Profile:
    """A profile of weights that were found elsewhere (in the twin), upstream -> address -> W.

    It joins the actions after `PROFILES`. Raises ValueError for a weight that is not within
    [1/3, 3], or not a number.
    """
    for upstream, peers in factors.items():
        for address, weight in peers.items():
            # What was searched at the bound may be a rounding beyond it.
            if not 1 / WEIGHT_BOUND - 1e-9 <= weight <= WEIGHT_BOUND + 1e-9:
                raise ValueError(f"a weight of {weight!r} for {address} in {upstream}")
    return Profile(name=name, summary=summary, raw=_neutral, factors=factors)


def profile_weights(
    profile: Profile,
    addresses: Sequence[str],
    rates: Mapping[str, float],
    affinity: Mapping[str, float],
    upstream: str = "",
) -> dict[str, float]:
    """W_ij of one upstream by address: geometric mean 1 before the bound, within [1/3, 3].

    What is not estimated counts as 1. `upstream` is the name under which a profile has factors.
    """
    factors = profile.factors.get(upstream, {})
    fastest = max((rates.get(a, 1.0) for a in addresses), default=1.0)

    def raw(address: str) -> float:
        rate = rates.get(address, 1.0)
        if profile.levels:
            wanted = rate / fastest * max(profile.levels)
            level = min(profile.levels, key=lambda level: abs(level - wanted))
            return float(level / rate**STOCK_POWER)
        return profile.raw(rate, affinity.get(address, 1.0)) * factors.get(address, 1.0)

    logs = {a: math.log(raw(a)) for a in addresses}
    middle = sum(logs.values()) / len(logs) if logs else 0.0
    bound = math.log(WEIGHT_BOUND)
    return {a: math.exp(min(max(v - middle, -bound), bound)) for a, v in logs.items()}
