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
from dataclasses import dataclass
from typing import Final

__all__ = ["NEUTRAL", "PROFILES", "WEIGHT_BOUND", "Profile", "profile_weights"]

# The bound of a residual weight to either side; the guard enforces the same.
WEIGHT_BOUND: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One way to lean on the balancing rule.

    `raw(rate, affinity)` gives the weight of a peer before it is normalised and bounded.
    """

    name: str
    summary: str
    raw: Callable[[float, float], float]


# The order is the order of the actions; the first is what everything else must beat.
# Exponents of at most a half: the rule divides by r_i and multiplies by a_ij once already, half of
# that again is a strong lean. Half as strong away from the fast ones is what balances risk: they
# are where everyone queues when the estimates are stale.
PROFILES: Final = (
    Profile(
        name="neutral",
        summary="W = 1: the balancing rule alone",
        raw=lambda _rate, _affinity: 1.0,
    ),
    Profile(
        name="affinity",
        summary="W ∝ a_ij^-1/2: classes lean to the servers that serve them best",
        raw=lambda _rate, affinity: affinity**-0.5,
    ),
    Profile(
        name="fast",
        summary="W ∝ r_i^1/2: all classes lean to fast servers, which queue more",
        raw=lambda rate, _affinity: rate**0.5,
    ),
    Profile(
        name="spread",
        summary="W ∝ r_i^-1/4: slow servers take more, fast ones keep room for bursts",
        raw=lambda rate, _affinity: rate**-0.25,
    ),
)
NEUTRAL: Final = 0


def profile_weights(
    profile: Profile,
    addresses: Sequence[str],
    rates: Mapping[str, float],
    affinity: Mapping[str, float],
) -> dict[str, float]:
    """W_ij of one upstream by address: geometric mean 1 before the bound, within [1/3, 3].

    What is not estimated counts as 1.
    """
    logs = {a: math.log(profile.raw(rates.get(a, 1.0), affinity.get(a, 1.0))) for a in addresses}
    middle = sum(logs.values()) / len(logs) if logs else 0.0
    bound = math.log(WEIGHT_BOUND)
    return {a: math.exp(min(max(v - middle, -bound), bound)) for a, v in logs.items()}
