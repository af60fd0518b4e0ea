"""What a number in a saved state may be."""

import math
from typing import Any

__all__ = ["finite"]


def finite(value: Any) -> float:
    """The value as a float. Raises TypeError or ValueError unless it is finite and at least 0."""
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is not a finite number of at least 0")
    return number
