"""Medians over seeds, and paired ratios with their 95% confidence intervals.

Two balancers that met the same requests are compared seed by seed: what is common to both, an
unlucky schedule above all, cancels. With n seeds the logarithms of the ratios are taken as normal,
so the interval is exp(m ± t·s/√n), m and s their mean and deviation, t the 97.5% point of Student's
distribution with n - 1 degrees of freedom (12.7 for 2 seeds, 4.3 for 3, 2.8 for 5).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["ART_FLOOR", "Ratio", "median", "paired_ratio"]

# Added to both sides of a ratio of ART per 1000 requests, which may be 0: one request in ten
# thousand that is late by its whole deadline. A ratio of smaller values says nothing.
ART_FLOOR: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A geometric mean of ratios and its 95% interval; NaN bounds when there is one pair only."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        text = _short(self.mean)
        interval = f"[{_short(self.low)}, {_short(self.high)}]"
        return text if math.isnan(self.low) else f"{text} {interval}"


def _short(ratio: float) -> str:
    # Of such a ratio nobody needs to know more; two seeds make intervals of many digits.
    return ">999" if ratio > 999 else f"{ratio:.2f}" if ratio < 99.5 else f"{ratio:.0f}"


def median(values: Mapping[int, float]) -> float:
    """Median over seeds; NaN when there are none."""
    return float(np.median(list(values.values()))) if values else math.nan


def paired_ratio(
    values: Mapping[int, float], base: Mapping[int, float], *, floor: float = 0.0
) -> Ratio | None:
    """Ratio of `values` to `base`, both by seed, over the seeds of both; None without any.

    `floor` is added to both sides.
    """
    logs = []
    for seed in sorted(values.keys() & base.keys()):
        above, below = values[seed] + floor, base[seed] + floor
        if above > 0 and below > 0 and math.isfinite(above) and math.isfinite(below):
            logs.append(math.log(above / below))
    if not logs:
        return None
    mean = float(np.mean(logs))
    half = math.nan
    if len(logs) > 1:
        from scipy.stats import t

        deviation = float(np.std(logs, ddof=1))
        half = float(t.ppf(0.975, len(logs) - 1)) * deviation / math.sqrt(len(logs))
    return Ratio(
        mean=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), pairs=len(logs)
    )
