"""A request class as one line of text: `name=home,rate=300,law=zipf,workload=home`. Pure."""

from dataclasses import replace
from typing import Final

from trimtab.errors import ConfigError
from trimtab.load.schedule import Bursts, ClassLoad, Step
from trimtab.load.workloads import SOCIAL, Request, Work

__all__ = ["class_load", "scaled"]


def scaled(load: ClassLoad, time_scale: float, rate_scale: float) -> ClassLoad:
    """The class with every length in time, and every rate, multiplied."""
    bursts = load.bursts
    if bursts is not None:
        bursts = replace(
            bursts,
            burst_seconds=bursts.burst_seconds * time_scale,
            calm_seconds=bursts.calm_seconds * time_scale,
        )
    steps = tuple(
        Step(s.at_seconds * time_scale, s.rate_per_second * rate_scale, s.law) for s in load.steps
    )
    rate = load.rate_per_second * rate_scale
    return replace(load, rate_per_second=rate, steps=steps, bursts=bursts)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{what}: {text!r} is not a number") from None


_KEYS: Final = (
    "name", "rate", "law", "workload", "path", "method", "body", "deadline", "work", "steps",
    "bursts",
)  # fmt: skip


def class_load(text: str, *, path: str = "/", law: str = "exp") -> ClassLoad:
    """The class that a `--class` argument describes. Raises ConfigError."""
    given: dict[str, str] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals or key not in _KEYS:
            raise ConfigError(f"--class {text!r}: {item!r} is not KEY=VALUE of {', '.join(_KEYS)}")
        if key in given:
            raise ConfigError(f"--class {text!r}: {key} is given twice")
        given[key] = value
    for key in ("name", "rate"):
        if key not in given:
            raise ConfigError(f"--class {text!r} lacks {key}=")
    where = f"--class {given['name']}"
    workload = given.get("workload")
    if workload is not None and workload not in SOCIAL:
        raise ConfigError(f"{where}: unknown workload {workload!r}; they are {', '.join(SOCIAL)}")
    if workload is not None and {"path", "method", "body"} & given.keys():
        raise ConfigError(f"{where}: a workload has its own path, method and body")
    request = Request(
        given.get("path", path),
        given.get("method", "GET").upper(),
        (),
        given.get("body", "").encode(),
    )
    deadline = given.get("deadline")
    return ClassLoad(
        name=given["name"],
        rate_per_second=_number(given["rate"], f"{where}: rate"),
        law=given.get("law", law),
        request=request if workload is None else SOCIAL[workload],
        deadline_seconds=None if deadline is None else _number(deadline, f"{where}: deadline"),
        work=_work(given["work"], where) if "work" in given else None,
        steps=_steps(given["steps"], where) if "steps" in given else (),
        bursts=_bursts(given["bursts"], where) if "bursts" in given else None,
    )


def _work(text: str, where: str) -> Work:
    law, *numbers = text.split(":")
    if not 1 <= len(numbers) <= 2:
        raise ConfigError(f"{where}: work={text} must be work=LAW:MEAN or work=LAW:MEAN:SHAPE")
    return Work(law, *(_number(n, f"{where}: work") for n in numbers))


def _steps(text: str, where: str) -> tuple[Step, ...]:
    steps = []
    for item in text.split("/"):
        at, *rest = item.split(":")
        if not 1 <= len(rest) <= 2:
            raise ConfigError(f"{where}: steps={text} must be steps=AT:RATE[:LAW]/AT:RATE...")
        rate = _number(rest[0], f"{where}: steps")
        steps.append(Step(_number(at, f"{where}: steps"), rate, *rest[1:]))
    return tuple(steps)


def _bursts(text: str, where: str) -> Bursts:
    *numbers, last = text.split(":")
    shared = last == "shared"
    if not shared:
        numbers.append(last)
    if len(numbers) != 3:
        raise ConfigError(f"{where}: bursts={text} must be bursts=FACTOR:BURST:CALM[:shared]")
    factor, burst, calm = (_number(n, f"{where}: bursts") for n in numbers)
    return Bursts(factor, burst, calm, shared)
