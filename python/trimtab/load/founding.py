"""The founding project's load: three streams, each a walk of random periods and pauses.

A period lasts 30 to 600 s at a rate of 100 to 2000 requests a second after a law chosen at
random, and a pause of 10 to 100 s follows it; all drawn uniformly, each stream from its own
random numbers. Pure.
"""

from typing import Final

from trimtab.errors import ConfigError
from trimtab.load.laws import LAWS, stream
from trimtab.load.schedule import ClassLoad, Step
from trimtab.load.workloads import SOCIAL

__all__ = ["founding"]

PERIOD_SECONDS: Final = (30.0, 600.0)
PAUSE_SECONDS: Final = (10.0, 100.0)
RATES_PER_SECOND: Final = (100, 2000)


def founding(
    *,
    seconds: float,
    seed: int,
    time_scale: float = 1.0,
    rate_scale: float = 1.0,
    rate_per_second: float | None = None,
    law: str | None = None,
    deadline_seconds: float | None = None,
) -> list[ClassLoad]:
    """The classes compose, home and user for a run of `seconds`, of which each step is in the plan.

    `time_scale` multiplies the lengths of periods and pauses (not `seconds`), `rate_scale` the
    rates; `rate_per_second` and `law`, when given, hold in every period instead of random ones.
    Raises ConfigError for a scale that is not above 0 and for an unknown law.
    """
    for value, what in ((time_scale, "time scale"), (rate_scale, "rate scale")):
        if not 0 < value < float("inf"):
            raise ConfigError(f"the {what} is {value:g}; it must be a number above 0")
    if law is not None and law not in LAWS:
        raise ConfigError(f"unknown law {law!r}; the laws are {', '.join(LAWS)}")
    return [
        _walk(
            name,
            _steps(name, seconds, seed, time_scale, rate_scale, rate_per_second, law),
            deadline_seconds,
        )
        for name in SOCIAL
    ]


def _walk(name: str, steps: list[Step], deadline_seconds: float | None) -> ClassLoad:
    return ClassLoad(
        name=name,
        rate_per_second=steps[0].rate_per_second,
        law=steps[0].law or LAWS[0],
        request=SOCIAL[name],
        deadline_seconds=deadline_seconds,
        steps=tuple(steps[1:]),
    )


def _steps(
    name: str,
    seconds: float,
    seed: int,
    time_scale: float,
    rate_scale: float,
    fixed_rate: float | None,
    fixed_law: str | None,
) -> list[Step]:
    rng = stream(seed, name, "founding")
    low, high = RATES_PER_SECOND
    steps: list[Step] = []
    at = 0.0
    while at < seconds or not steps:
        # All four are drawn each time, so that an override leaves the other numbers as they are.
        length = rng.uniform(*PERIOD_SECONDS) * time_scale
        rate = float(rng.integers(low, high + 1)) * rate_scale
        law = LAWS[int(rng.integers(len(LAWS)))]
        pause = rng.uniform(*PAUSE_SECONDS) * time_scale
        steps.append(Step(at, rate if fixed_rate is None else fixed_rate, fixed_law or law))
        steps.append(Step(at + length, 0.0))
        at += length + pause
    return steps
