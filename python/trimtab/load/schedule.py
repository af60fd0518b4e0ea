"""When each request is sent: the whole schedule as absolute times, computed before the load runs.

Pure: seeds in, numpy arrays out. What is sent is in `workloads`, sending is in `client`.

Each class has random streams of its own, named after it, so a class draws the same numbers
whatever other classes there are, and a longer run begins like a shorter one. The laws of the gaps
are in `laws`.

Times come from a unit-rate renewal process on the class's own *operational* clock
Λ(t) = ∫₀ᵗ λ(u) du, whose gaps X₁, X₂, … follow the law with mean 1; the n-th request is at
t_n = Λ⁻¹(X₁ + … + X_n). So every law has the mean rate λ(t) under steps and bursts too, and with
exponential gaps the arrivals are the inhomogeneous (or Markov-modulated) Poisson process itself.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError
from trimtab.load.laws import LAWS, Draw, Floats, stream, unit_gaps
from trimtab.load.workloads import Request, Workload

__all__ = [
    "Bursts",
    "ClassLoad",
    "Draw",
    "Schedule",
    "Step",
    "build",
]


# Distinct requests drawn for a class: enough that no cache of a few entries helps, and a
# megabyte of compose bodies at most.
VARIANTS: Final = 1024
# The arrays of a request take about 60 bytes here and in the processes that send it: more than
# this many would need over 3 GB.
MAX_REQUESTS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class Step:
    """From `at_seconds` on, the rate (0 is a pause) and, when given, the law."""

    at_seconds: float
    rate_per_second: float
    law: str | None = None


@dataclass(frozen=True, slots=True)
class Bursts:
    """Two-state Markov bursts: calm and burst last exponential times of these means.

    The rate in a burst is `factor` times that in the calm; both are scaled so that the long-run
    mean is the class's rate. `shared`: all such classes burst together.
    """

    factor: float
    burst_seconds: float
    calm_seconds: float
    shared: bool = False

    @property
    def calm_multiplier(self) -> float:
        """The rate in the calm, relative to the class's rate."""
        whole = self.burst_seconds + self.calm_seconds
        return whole / (self.calm_seconds + self.factor * self.burst_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLoad:
    """The load of one request class.

    `request` is one request, or a workload that draws many. `work` draws the seconds of work that
    travel with each request in the header X-Trimtab-Work. `steps` change rate and law in time.
    """

    name: str
    rate_per_second: float
    law: str = "exp"
    request: Request | Workload = field(default_factory=Request)
    deadline_seconds: float | None = None
    work: Draw | None = None
    steps: tuple[Step, ...] = ()
    bursts: Bursts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Every request of a run, in the order of their times.

    `times` (seconds from the start), `class_index` (into `classes`), `variant` (into
    `requests[class_index]`) and `work_seconds` (NaN where a class has none) have shape (n,).
    """

    classes: tuple[ClassLoad, ...]
    seconds: float
    seed: int
    times: Floats
    class_index: NDArray[np.uint16]
    variant: NDArray[np.uint16]
    work_seconds: Floats
    requests: tuple[tuple[Request, ...], ...]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def offered_per_second(self) -> float:
        """Requests in the schedule over its length."""
        return len(self.times) / self.seconds

    @property
    def deadlines(self) -> Mapping[str, float | None]:
        """Class name to deadline in seconds, None where there is none."""
        return {c.name: c.deadline_seconds for c in self.classes}


def _burst_path(bursts: Bursts, rng: np.random.Generator, seconds: float) -> tuple[Floats, Floats]:
    """Change times (the first is 0) and the rate multiplier from each of them on."""
    means = (bursts.calm_seconds, bursts.burst_seconds)
    state = int(rng.random() < bursts.burst_seconds / sum(means))  # stationary from the start
    starts, states = [0.0], [state]
    while (end := starts[-1] + rng.exponential(means[states[-1]])) < seconds:
        starts.append(end)
        states.append(1 - states[-1])
    calm = bursts.calm_multiplier
    return np.array(starts), np.where(states, calm * bursts.factor, calm)


def _times(load: ClassLoad, seconds: float, seed: int) -> Floats:
    """Ascending times of one class in [0, seconds)."""
    steps = [Step(0.0, load.rate_per_second, load.law), *load.steps]
    steps = [s for s in steps if s.at_seconds < seconds]
    if load.bursts is not None:
        whose = ("bursts",) if load.bursts.shared else (load.name, "bursts")
        changes, multipliers = _burst_path(load.bursts, stream(seed, *whose), seconds)
    else:
        changes, multipliers = np.zeros(1), np.ones(1)
    law = load.law
    starts, rates, laws = [], [], []
    for step in steps:
        law = step.law or law
        starts.append(step.at_seconds)
        rates.append(step.rate_per_second)
        laws.append(law)
    rng = stream(seed, load.name, "arrivals")
    parts: list[Floats] = []
    # A run of steps with one law is one renewal process: a step must not restart the gap.
    for _, group in itertools.groupby(range(len(steps)), key=laws.__getitem__):
        run = list(group)
        begin = starts[run[0]]
        end = starts[run[-1] + 1] if run[-1] + 1 < len(steps) else seconds
        inside = changes[(changes > begin) & (changes < end)]
        edges = np.unique(np.concatenate([[starts[k] for k in run], inside]))
        edges = np.append(edges[edges < end], end)
        rate = np.array(rates)[np.searchsorted(starts, edges[:-1], side="right") - 1]
        rate = rate * multipliers[np.searchsorted(changes, edges[:-1], side="right") - 1]
        with np.errstate(over="ignore"):  # an endless run is refused below
            cumulative = np.concatenate([[0.0], np.cumsum(rate * np.diff(edges))])
        total = float(cumulative[-1])
        if total == 0:
            continue
        if total > MAX_REQUESTS:
            raise ConfigError(_too_many(total))
        arrivals = np.cumsum(unit_gaps(laws[run[0]], rng, total))
        arrivals = arrivals[arrivals < total]
        # side="right": of the edges with one Λ (a pause) the last, so nothing falls into it.
        segment = np.searchsorted(cumulative, arrivals, side="right") - 1
        parts.append(edges[segment] + (arrivals - cumulative[segment]) / rate[segment])
    return np.concatenate(parts) if parts else np.zeros(0)


def _too_many(count: float) -> str:
    return (
        f"the schedule would have {count:.0f} requests, of at most {MAX_REQUESTS}: "
        "make the run shorter or the rate lower"
    )


def _check(classes: Sequence[ClassLoad], seconds: float, seed: int) -> None:
    def positive(value: float, what: str) -> None:
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{what} is {value:g}; it must be a number above 0")

    positive(seconds, "the duration in seconds")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"the seed is {seed}; it must be a whole number from 0 to 2^64 - 1")
    if not classes:
        raise ConfigError("no request class is given: there is nothing to send")
    for load in classes:
        where = f"class {load.name!r}"
        if (
            not load.name
            or not load.name.isascii()
            or not all(c.isalnum() or c in "_.-" for c in load.name)
        ):
            raise ConfigError(f"{where}: a class name is of letters, digits, '_', '.' and '-'")
        if sum(c.name == load.name for c in classes) > 1:
            raise ConfigError(f"{where} is given twice")
        last = 0.0
        for step in (Step(0.0, load.rate_per_second, load.law), *load.steps):
            if not (math.isfinite(step.rate_per_second) and step.rate_per_second >= 0):
                raise ConfigError(
                    f"{where}: the rate is {step.rate_per_second:g}; "
                    "it must be a number of requests per second, 0 or more"
                )
            if step.law is not None and step.law not in LAWS:
                raise ConfigError(
                    f"{where}: unknown law {step.law!r}; the laws are {', '.join(LAWS)}"
                )
            if not (math.isfinite(step.at_seconds) and step.at_seconds >= last):
                raise ConfigError(f"{where}: the steps must be in the order of their times")
            last = step.at_seconds
        if load.deadline_seconds is not None:
            positive(load.deadline_seconds, f"{where}: the deadline in seconds")
        if load.bursts is not None:
            positive(load.bursts.factor, f"{where}: the factor of the bursts")
            positive(load.bursts.burst_seconds, f"{where}: the mean length of a burst")
            positive(load.bursts.calm_seconds, f"{where}: the mean length of a calm")


def build(classes: Sequence[ClassLoad], *, seconds: float, seed: int = 0) -> Schedule:
    """The schedule of these classes over `seconds`; the same arguments give the same arrays.

    Raises ConfigError for an unknown law, a rate or duration that makes no sense, two classes of
    one name, or more requests than memory is meant to hold.
    """
    _check(classes, seconds, seed)
    expected = sum(
        max([c.rate_per_second, *(s.rate_per_second for s in c.steps)]) * seconds for c in classes
    )
    times = []
    for load in classes:
        times.append(_times(load, seconds, seed))
        if sum(map(len, times)) > MAX_REQUESTS:
            raise ConfigError(_too_many(expected))
    variants, works, requests = [], [], []
    for load, own in zip(classes, times, strict=True):
        drawn: Sequence[Request]
        if isinstance(load.request, Request):
            drawn = (load.request,)
        else:
            drawn = load.request(stream(seed, load.name, "requests"), VARIANTS)
        requests.append(tuple(drawn))
        choice = stream(seed, load.name, "variants")
        variants.append(choice.integers(0, len(drawn), len(own)).astype(np.uint16))
        if load.work is None:
            works.append(np.full(len(own), np.nan))
        else:
            work = np.asarray(load.work(stream(seed, load.name, "work"), len(own)), dtype=float)
            if work.shape != own.shape or not np.all(np.isfinite(work) & (work >= 0)):
                raise ConfigError(f"class {load.name!r}: work must be seconds, 0 or more")
            works.append(work)
    index = np.repeat(np.arange(len(classes), dtype=np.uint16), [len(t) for t in times])
    flat = np.concatenate(times)
    order = np.lexsort((index, flat))
    return Schedule(
        classes=tuple(classes),
        seconds=float(seconds),
        seed=seed,
        times=flat[order],
        class_index=index[order],
        variant=np.concatenate(variants)[order],
        work_seconds=np.concatenate(works)[order],
        requests=tuple(requests),
    )
