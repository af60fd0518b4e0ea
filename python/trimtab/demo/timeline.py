"""The timeline of a scenario: what becomes of each server, and when.

The emulator follows it in real time, the simulator in its own; both draw it from the same seed.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from trimtab.demo.scenario import Event, Scenario

__all__ = ["Change", "changes"]


@dataclass(frozen=True, slots=True)
class Change:
    """What a server (numbered from 0) is from `at_seconds` of the run on."""

    at_seconds: float
    server: int
    speed: float  # 0: hangs
    error_ratio: float
    down: bool


def changes(scenario: Scenario, seed: int, duration_seconds: float | None = None) -> list[Change]:
    """What happens to each server and when, in order of time; none for a server at rest.

    Noisy neighbours are drawn from `seed`, one stream an event and server.
    """
    duration = scenario.duration_seconds if duration_seconds is None else duration_seconds
    spans: list[list[tuple[float, float, Event]]] = [[] for _ in scenario.servers]
    for number, event in enumerate(scenario.events):
        for server in event.server or range(1, len(scenario.servers) + 1):
            begin, end = event.from_ratio * duration, event.to_ratio * duration
            if event.kind != "noisy":
                spans[server - 1].append((begin, end, event))
                continue
            random = np.random.default_rng([seed, number, server])
            at = begin + random.exponential(event.off_seconds)
            while at < end:
                quiet = at + random.exponential(event.on_seconds)
                spans[server - 1].append((at, min(quiet, end), event))
                at = quiet + random.exponential(event.off_seconds)
    found = []
    for i, of_server in enumerate(spans):
        # Ends before begins at one instant, so that spans that touch do not overlap.
        edges = sorted(
            [(end, 0, k) for k, (_, end, _) in enumerate(of_server)]
            + [(begin, 1, k) for k, (begin, _, _) in enumerate(of_server)]
        )
        active: dict[int, Event] = {}
        for at, of_edge in itertools.groupby(edges, key=lambda edge: edge[0]):
            for _, begins, k in of_edge:
                if begins:
                    active[k] = of_server[k][2]
                else:
                    active.pop(k)
            found.append(_change(at, i, scenario.servers[i].speed, list(active.values())))
    return sorted(found, key=lambda c: (c.at_seconds, c.server))


def _change(at: float, server: int, speed: float, active: list[Event]) -> Change:
    for event in active:
        if event.kind in ("slow", "noisy"):
            speed /= event.factor
        elif event.kind == "hang":
            speed = 0.0
    error = max((e.ratio for e in active if e.kind == "error"), default=0.0)
    return Change(at, server, speed, error, any(e.kind == "crash" for e in active))
