"""What one run of one balancer gave, and its file."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from trimtab.bench.machine import commit
from trimtab.demo.scenario import Scenario
from trimtab.errors import StateError
from trimtab.load.records import summarise
from trimtab.load.result import Result
from trimtab.load.schedule import Schedule

__all__ = ["Outcome", "digest", "read", "warm_up_seconds", "write"]

FORMAT: Final = 2

# A short run does not spend more than this part of itself on the warm-up.
_MOST_WARM_UP: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run: the figures of the requests after the warm-up, times in seconds.

    Percentiles are of the response times of all requests that ended, failures included. `shares`
    are of the requests that each server answered. `valid` is False when the load generator did
    not keep to its schedule. `requests_digest` tells runs of one scenario and seed apart when the
    scenario's file has changed; `workers` are the balancer's, `commit` is Trimtab's. `remarks` are
    what the balancer told of the run.
    """

    scenario: str
    balancer: str
    seed: int
    seconds: float
    warm_up_seconds: float
    requests: int
    art_per_1000: float
    p50_seconds: float
    p99_seconds: float
    p999_seconds: float
    error_ratio: float
    goodput_per_second: float
    shares: dict[str, float]
    classes: dict[str, dict[str, float]]
    cpu_seconds_per_request: float
    send_lag_p99_seconds: float
    lateness_p99_seconds: float
    valid: bool
    invalid_because: tuple[str, ...] = ()
    workers: int = 1
    requests_digest: str = ""
    commit: str = ""
    remarks: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        balancer: str,
        result: Result,
        *,
        servers: tuple[str, ...],
        cpu_seconds: float,
        lateness_p99_seconds: float,
        workers: int = 1,
        remarks: dict[str, float] | None = None,
    ) -> "Outcome":
        """The figures of a finished run; `servers` are the addresses in the scenario's order."""
        begin = warm_up_seconds(scenario, result.seconds)
        records = result.intended_in(begin, math.inf)
        length = result.seconds - begin
        deadlines = result.schedule.deadlines
        whole = summarise(records, seconds=length, deadlines=deadlines)
        answered = max(1, sum(whole.peers.get(s, 0) for s in servers))
        classes = {}
        for kind in scenario.classes:
            of_class = summarise(records.of(kind.name), seconds=length, deadlines=deadlines)
            classes[kind.name] = {
                "requests": of_class.requests,
                "art_per_1000": of_class.art_per_1000 or 0.0,
                "p50_seconds": of_class.response.p50,
                "p99_seconds": of_class.response.p99,
                "error_ratio": of_class.failed / max(1, of_class.requests),
            }
        return cls(
            scenario=scenario.name,
            balancer=balancer,
            seed=result.schedule.seed,
            seconds=result.seconds,
            warm_up_seconds=begin,
            requests=whole.requests,
            art_per_1000=whole.art_per_1000 or 0.0,
            p50_seconds=whole.response.p50,
            p99_seconds=whole.response.p99,
            p999_seconds=whole.response.p999,
            error_ratio=whole.failed / max(1, whole.requests),
            goodput_per_second=whole.goodput_per_second or 0.0,
            shares={
                f"server {n}": whole.peers.get(s, 0) / answered for n, s in enumerate(servers, 1)
            },
            classes=classes,
            cpu_seconds_per_request=cpu_seconds / max(1, len(result.records)),
            send_lag_p99_seconds=result.lag.p99,
            lateness_p99_seconds=lateness_p99_seconds,
            valid=result.valid,
            invalid_because=result.invalid_because,
            workers=workers,
            requests_digest=digest(scenario, result.schedule),
            commit=commit(),
            remarks=remarks or {},
        )


def digest(scenario: Scenario, drawn: Schedule) -> str:
    """What tells these requests, servers and events from others."""
    made = hashlib.sha256()
    for column in (drawn.times, drawn.class_index, drawn.work_seconds):
        made.update(column.tobytes())
    made.update(repr((scenario.servers, scenario.classes, scenario.events)).encode())
    return made.hexdigest()[:16]


def warm_up_seconds(scenario: Scenario, seconds: float) -> float:
    """How much of a run of this length is left out of the figures."""
    return min(scenario.warm_up_seconds, _MOST_WARM_UP * seconds)


def write(outcome: Outcome, path: Path) -> None:
    """Write it as JSON, at once: a reader finds all of it or nothing."""
    data: dict[str, Any] = {"format": FORMAT, **asdict(outcome)}
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def read(path: Path) -> Outcome:
    """The outcome in a file. Raises StateError when it is none of this format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        data["invalid_because"] = tuple(data["invalid_because"])
        return Outcome(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{path}: not the outcome of a run ({error}); delete it") from None
