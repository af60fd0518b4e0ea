"""Sequences of dispatches and responses for the rule, drawn from a seed.

`generate` draws what happens, `replay` plays it on the Python rule; tests/nginx/rule.lua plays
the same on the Lua rule. `python tests/rule_sequences.py` writes tests/data/golden/rule.json anew:
do so only when the rule is meant to change.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.twin import parts, room, rule

GOLDEN = Path(__file__).parent / "data" / "golden" / "rule.json"
SEED = 20240229
TAU_SECONDS = 0.3


def generate(seed: int = SEED) -> dict[str, Any]:
    """Cases of servers, classes and operations in time order, without any answer.

    Operations: ["dispatch", now, class, uniform, skipped peers]; ["finish", now, index of the
    dispatch, failed]; ["idle", now] carries all servers on; ["urgency", now, arrival, class].
    """
    rng = random.Random(seed)
    shapes = [
        ("equal servers, so that ties are drawn", 4, 2, True, 300),
        ("unequal servers of known slots", 3, 3, False, 600),
        ("many servers, slots known here and there", 12, 3, False, 800),
    ]
    return {
        "tau": TAU_SECONDS,
        "cases": [_case(rng, *shape) for shape in shapes],
        "rooms": [_room(rng, *shape) for shape in ROOMS],
    }


# What, servers, classes, and operations.
ROOMS = [
    ("two servers, overloaded", 2, 2, 400),
    ("three classes, most with room", 4, 3, 600),
    ("one class, one server", 1, 1, 200),
]


def _room(rng: random.Random, what: str, servers: int, classes: int, count: int) -> dict[str, Any]:
    """A waiting room and what happens there, in time order, without any answer.

    Operations, each with a uniform number at the end: ["arrive", now, class]; ["finish", now, n]
    and ["leave", now, n] of the n-th (modulo their number) of those in flight, or waiting;
    ["look", now]. After each the room is drained.
    """
    drawn: dict[str, Any] = {
        "what": what,
        "slots": [float(rng.choice([1, 2, 4])) for _ in range(servers)],
        "given": [rng.random() < 0.8 for _ in range(servers)],
        "rate": [round(rng.uniform(0.4, 4), 3) for _ in range(servers)],
        "error": [rng.choice([0.0, 0.0, 0.1]) for _ in range(servers)],
        "sharing": [float(i % 3 == 1) for i in range(servers)],
        "mean_service": 0.02,
        "classes": [],
    }
    for _ in range(classes):
        mine = sorted(rng.sample(range(servers), max(1, servers - rng.randrange(2))))
        drawn["classes"].append(
            {
                "service": round(rng.uniform(0.005, 0.06), 4),
                "deadline": rng.choice([0.0, 0.03, 0.2]),
                "server": mine,
                "weight": [round(rng.uniform(0.5, 2), 3) for _ in mine],
                "affinity": [round(rng.uniform(0.5, 2), 3) for _ in mine],
                "skip": [float(servers > 1 and rng.random() < 0.1) for _ in mine],
            }
        )
    now = 1000.0
    operations: list[list[Any]] = []
    for _ in range(count):
        now = round(now + rng.expovariate(300), 6)
        kind = rng.random()
        if kind < 0.5:
            which: list[Any] = ["arrive", now, rng.randrange(classes)]
        elif kind < 0.9:
            which = ["finish", now, rng.randrange(1000)]
        elif kind < 0.95:
            which = ["leave", now, rng.randrange(1000)]
        else:
            which = ["look", now, 0]
        operations.append([*which, round(rng.random(), 9)])
    drawn["operations"] = operations
    return drawn


def replay_room(drawn: dict[str, Any]) -> list[list[list[int]]]:
    """What each operation binds: [number of the arrival, peer] in the order of the drain."""
    m, classes = len(drawn["slots"]), drawn["classes"]
    told, known = parts.control(1, len(classes), m), parts.balancers(1, m)
    told.slots[:], told.given[:] = drawn["slots"], drawn["given"]
    told.sharing[:], told.mean_service[:] = drawn["sharing"], drawn["mean_service"]
    known.rate[:], known.error[:] = drawn["rate"], drawn["error"]
    told.skip[:] = 1.0  # but for the servers of the class
    for j, kind in enumerate(classes):
        told.service[0, j], told.deadline[j] = kind["service"], kind["deadline"]
        for name in ("weight", "affinity", "skip"):
            getattr(told, name)[0, j, kind["server"]] = kind[name]
    arrivals = [o for o in drawn["operations"] if o[0] == "arrive"]
    at = np.array([o[1] for o in arrivals])
    waiting = room.room(1, len(classes), m, len(arrivals))
    in_flight: list[tuple[int, float]] = []
    held: list[tuple[int, int]] = []
    answers: list[list[list[int]]] = []
    arrived = 0
    for what, now, which, uniform in drawn["operations"]:
        bound: list[list[int]] = []
        if what == "arrive":
            room.push(waiting, 0, which, arrived)
            held.append((which, arrived))
            arrived += 1
        elif what == "finish" and in_flight:
            i, own = in_flight.pop(which % len(in_flight))
            known.in_flight[i] -= 1
            known.work[i] = known.work[i] - own if known.in_flight[i] else 0.0
        elif what == "leave" and held:
            j, number = held.pop(which % len(held))
            room.remove(waiting, 0, j, number)
        while True:
            number, i = room.bind(0, not bound, now, uniform, at, waiting, told, known)
            if number < 0:
                break
            j = arrivals[number][2]
            own = told.service[0, j] * told.affinity[0, j, i]
            known.in_flight[i] += 1
            known.work[i] += own
            in_flight.append((i, own))
            held.remove((j, number))
            bound.append([number, classes[j]["server"].index(i)])
        assert waiting.waiting[0] == len(held)
        answers.append(bound)
    return answers


def _case(
    rng: random.Random, what: str, servers: int, classes: int, equal: bool, count: int
) -> dict[str, Any]:
    each = range(servers)
    case: dict[str, Any] = {
        "what": what,
        "slots": [2.0 if equal else float(rng.choice([0, 1, 2, 4, 8])) for _ in each],
        "sharing": [float(not equal and i % 3 == 1) for i in each],
        "prior": [1.0 if equal else round(rng.uniform(0.5, 2), 3) for _ in each],
        "classes": [],
        "mean_service": 0.02,
    }
    for _ in range(classes):
        mine = sorted(rng.sample(range(servers), servers if equal else max(2, servers - 1)))
        case["classes"].append(
            {
                "service": 0.02 if equal else round(rng.uniform(0.005, 0.06), 4),
                "deadline": round(rng.uniform(0.02, 0.3), 3),
                "server": mine,
                "weight": [1.0 if equal else round(rng.uniform(0.3, 3), 3) for _ in mine],
                "affinity": [1.0 if equal else round(rng.uniform(0.3, 3), 3) for _ in mine],
            }
        )
    case["operations"] = _operations(rng, case["classes"], count)
    return case


def _operations(rng: random.Random, classes: list[dict[str, Any]], count: int) -> list[list[Any]]:
    operations: list[list[Any]] = []
    open_: list[int] = []
    now = 1000.0
    dispatched = 0
    for _ in range(count):
        # Mostly a few milliseconds; now and then a pause, in which estimates drift or stall.
        now = round(now + rng.expovariate(200) + (rng.random() < 0.02) * rng.uniform(1, 15), 6)
        kind = rng.random()
        j = rng.randrange(len(classes))
        if open_ and kind < 0.46:
            which = open_.pop(rng.randrange(len(open_)))
            operations.append(["finish", now, which, rng.random() < 0.1])
        elif kind < 0.94:
            peers = len(classes[j]["server"])
            skipped = rng.sample(range(peers), rng.choice([0, 0, 0, 1, peers - 1, peers]))
            operations.append(["dispatch", now, j, round(rng.random(), 9), sorted(skipped)])
            if len(skipped) < peers:
                open_.append(dispatched)
            dispatched += 1
        elif kind < 0.97:
            operations.append(["idle", now])
        else:
            operations.append(["urgency", now, round(now - rng.uniform(0, 0.5), 6), j])
    return operations


def replay(case: dict[str, Any], tau: float) -> list[list[float]]:
    """The answers: [pick, its score or 0], [rate, error ratio], [rates and error
    ratios …] or [index]."""
    servers = len(case["slots"])
    zeros = [0.0] * servers
    n, work, error = zeros[:], zeros[:], zeros[:]
    done, busy, last, rate = zeros[:], zeros[:], zeros[:], [1.0] * servers
    mean = case["mean_service"]
    tries: list[tuple[int, float]] = []
    answers: list[list[float]] = []

    def carry(i: int, now: float) -> None:
        idle = rule.advance(i, now, n[i], case["slots"], done, busy, last, tau)
        if n[i] == 0:
            error[i] = rule.forget(error[i], idle)
        rate[i] = rule.rate(done[i], busy[i], case["prior"][i], mean)

    for what, now, *rest in case["operations"]:
        if what == "dispatch":
            j = case["classes"][rest[0]]
            count = len(j["server"])
            skip = [1.0 if p in rest[2] else 0.0 for p in range(count)]
            scores = [0.0] * count
            p = rule.pick(
                count,
                j["server"],
                j["weight"],
                j["affinity"],
                skip,
                j["service"],
                n,
                work,
                rate,
                error,
                case["slots"],
                case["sharing"],
                rest[1],
                scores,
            )
            i = j["server"][p] if p >= 0 else -1
            own = j["service"] * j["affinity"][p] if p >= 0 else 0.0
            if p >= 0:
                carry(i, now)
                n[i] += 1
                work[i] += own
            tries.append((i, own))
            answers.append([p, scores[p] if p >= 0 else 0.0])
        elif what == "finish":
            i, own = tries[rest[0]]
            rule.advance(i, now, n[i], case["slots"], done, busy, last, tau)
            if not rest[1]:
                done[i] += own
            error[i] = rule.error_ratio(error[i], rest[1])
            rate[i] = rule.rate(done[i], busy[i], case["prior"][i], mean)
            n[i] -= 1
            work[i] = work[i] - own if n[i] else 0.0
            answers.append([rate[i], error[i]])
        elif what == "idle":
            for i in range(servers):
                carry(i, now)
            answers.append(rate + error)
        else:
            j = case["classes"][rest[1]]
            answers.append([rule.urgency(now, rest[0], j["deadline"], j["service"], mean)])
    return answers


def golden() -> dict[str, Any]:
    """The sequences with the Python rule's answers."""
    drawn = generate()
    for case in drawn["cases"]:
        case["answers"] = replay(case, drawn["tau"])
    for drawn_room in drawn["rooms"]:
        drawn_room["answers"] = replay_room(drawn_room)
    return drawn


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), separators=(",", ":")) + "\n")
