"""Weights as the small integers that nginx's `server … weight=N` takes.

nginx knows integers only. With a total N the largest-remainder method gives each peer the whole
part of its quota q_i = N·w_i / Σw and one more to those with the largest fractions; each is off by
less than one, so ratios are right within 1% once the smallest is a few hundred, and often long
before (1 : 2 : 4 needs a total of 7). The smallest total that will do is taken.
"""

import math
from collections.abc import Mapping
from typing import Final

__all__ = ["MAX_WEIGHT_RATIO", "integer_weights"]

# Smaller weights are lifted to this share of the largest: nginx must not see 0 (an error), and a
# peer with a ten-thousandth of another's traffic is out of use anyway.
MAX_WEIGHT_RATIO: Final = 10_000.0

# How far the ratio of two integers may be from the ratio of their weights.
_TOLERANCE: Final = 0.01

# With the smallest integer at 201 two errors below one each stay within the tolerance.
_ENOUGH: Final = 201


def _apportion(values: list[float], total: int) -> list[int]:
    """The largest-remainder integers for `values` that add up to `total` (or more: none is 0)."""
    scale = total / math.fsum(values)
    whole = [max(1, math.floor(value * scale)) for value in values]
    short = total - sum(whole)
    if short > 0:
        # Ties go to the earlier peer, so that the result depends on nothing but the input.
        order = sorted(range(len(values)), key=lambda i: (whole[i] - values[i] * scale, i))
        for i in order[:short]:
            whole[i] += 1
    return whole


def _close(values: list[float], whole: list[int]) -> bool:
    shares = [n / value for n, value in zip(whole, values, strict=True)]
    return max(shares) <= min(shares) * (1 + _TOLERANCE)


def integer_weights(weights: Mapping[str, float]) -> dict[str, int]:
    """Integers of at least 1 whose ratios are those of `weights` within 1%.

    Args:
        weights: peer to weight, finite and more than 0; no unit. Weights more than
            `MAX_WEIGHT_RATIO` below the largest count as that.

    Raises:
        ValueError: a weight is not a finite number above 0.
    """
    for peer, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"the weight of {peer!r} is {weight!r}; it must be more than 0")
    if not weights:
        return {}
    largest = max(weights.values())
    # In units of the smallest, so that a total of sum(values) gives that one the integer 1.
    values = [max(weight / largest, 1 / MAX_WEIGHT_RATIO) for weight in weights.values()]
    smallest = min(values)
    values = [value / smallest for value in values]
    unit = math.fsum(values)
    for multiple in range(1, _ENOUGH + 1):
        whole = _apportion(values, round(unit * multiple))
        if _close(values, whole):
            break
    # The greatest common divisor is left out: 2 : 4 says nothing that 1 : 2 does not.
    divisor = math.gcd(*whole)
    return {peer: n // divisor for peer, n in zip(weights, whole, strict=True)}
