"""Golden bytes of the policy messages, made by Python's protobuf.

`python tests/nginx/wire/golden.py` writes `tests/data/golden/policy_*.{bin,json}`: the bytes, and
the table that they stand for in Lua (Duration in seconds, all defaults filled in, what is absent
left out). The Lua codec must turn each into the other.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from trimtab import packed
from trimtab.v1 import policy_pb2

DIRECTORY = Path(__file__).parents[2] / "data" / "golden"

MESSAGES = {
    "get_weights_request": policy_pb2.GetWeightsRequest,
    "get_weights_response": policy_pb2.GetWeightsResponse,
    "report_stats_request": policy_pb2.ReportStatsRequest,
    "report_stats_response": policy_pb2.ReportStatsResponse,
}

# The largest whole number up to which Lua's are exact.
HUGE = 2**53


def duration(seconds: float) -> Duration:
    """A span of `seconds`, rounded to nanoseconds."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def fill(message: Message, table: dict[str, Any]) -> Message:
    """Set the fields of `message` from a table in Lua's shape."""
    for name, value in table.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type is None:
            if field.is_repeated:
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        elif field.message_type.full_name == "google.protobuf.Duration":
            getattr(message, name).CopyFrom(duration(value))
        elif field.is_repeated:
            for entry in value:
                fill(getattr(message, name).add(), entry)
        else:
            getattr(message, name).SetInParent()
            fill(getattr(message, name), value)
    return message


def table(message: Message) -> dict[str, Any]:
    """The message in Lua's shape."""
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            out[field.name] = list(value) if field.is_repeated else value
        elif field.is_repeated:
            out[field.name] = [table(entry) for entry in value]
        elif not message.HasField(field.name):
            continue
        elif field.message_type.full_name == "google.protobuf.Duration":
            out[field.name] = value.seconds + value.nanos / 1e9
        else:
            out[field.name] = table(value)
    return out


def message_bytes(kind: str, value: dict[str, Any]) -> bytes:
    """Python's deterministic serialisation of a table in Lua's shape."""
    return fill(MESSAGES[kind](), value).SerializeToString(deterministic=True)


def random_count(rng: random.Random) -> int:
    """A count of any magnitude, often 0."""
    return rng.choice((0, 1, 127, 128, rng.getrandbits(rng.randint(1, 53)), HUGE))


def random_double(rng: random.Random) -> float:
    """A finite double of any magnitude, often 0, -0 or 1."""
    return rng.choice((0.0, -0.0, 1.0, rng.random(), rng.lognormvariate(0, 40), 5e-324, 1.7e308))


def random_table(rng: random.Random, descriptor: Any, entries: int) -> dict[str, Any]:
    """A random message in Lua's shape: fields left out at times, lists of up to `entries`."""
    out: dict[str, Any] = {}
    exact = {"responses": 5, "response_time_buckets": 36, "completions_at": 32, "seconds_at": 32}
    for field in descriptor.fields:
        if rng.random() < 0.2:
            continue
        makers = {
            field.TYPE_UINT64: lambda: random_count(rng),
            field.TYPE_DOUBLE: lambda: random_double(rng),
            field.TYPE_BOOL: lambda: rng.random() < 0.5,
            field.TYPE_STRING: lambda: "".join(
                chr(rng.randint(32, 126)) for _ in range(rng.choice((0, 1, 14, 127, 128, 255)))
            ),
        }
        if field.message_type is None:
            make = makers[field.type]
        elif field.message_type.full_name == "google.protobuf.Duration":

            def make() -> float:
                return rng.choice((0.0, 0.05, 1.0, round(rng.uniform(0, 1e5), 9)))
        else:

            def make(inner: Any = field.message_type) -> dict[str, Any]:
                return random_table(rng, inner, entries)

        if field.is_repeated:
            count = exact.get(field.name, rng.randint(0, entries))
            out[field.name] = [make() for _ in range(count)]
        else:
            out[field.name] = make()
    return out


def weights(upstreams: int, peers: int, seed: int = 1) -> dict[str, Any]:
    """A GetWeights answer as the policy server gives them."""
    rng = random.Random(seed)
    return {
        "epoch": 1_767_225_600_123,
        "generation": 42,
        "time_to_live": 10.0,
        "refresh_interval": 1.0,
        "upstreams": [
            {
                "upstream": f"upstream_{u}",
                "deadline": 0.15,
                "service_time": 0.021,
                "peers": [
                    {
                        "address": f"10.{p // 65536}.{p // 256 % 256}.{p % 256}:8080",
                        "weight": round(rng.uniform(0.1, 3), 6),
                        "affinity": round(rng.uniform(0.5, 2), 6),
                        "rate": round(rng.uniform(0.5, 4), 6),
                        "slots": rng.choice((0.0, 2.0, 16.0)),
                        "drain": rng.random() < 0.01,
                    }
                    for p in range(peers)
                ],
            }
            for u in range(upstreams)
        ],
    }


def report(upstreams: int, peers: int, seed: int = 1) -> dict[str, Any]:
    """A report as a balancer makes them after a while of traffic."""
    rng = random.Random(seed)
    addresses = [f"10.0.{p // 256}.{p % 256}:8080" for p in range(peers)]

    def pair(address: str) -> dict[str, Any]:
        buckets = [rng.randrange(1000) if 8 < b < 20 else 0 for b in range(36)]
        requests = sum(buckets)
        return {
            "address": address,
            "in_flight": rng.randrange(8),
            "requests": requests,
            "responses": [0, requests - 3, 0, 2, 1],
            "failures": 1,
            "in_bytes": requests * 300,
            "out_bytes": requests * 2100,
            "response_time_seconds": requests * 0.03,
            "response_time_squared": requests * 0.001,
            "tardiness": requests * 0.002,
            "tardy": requests // 50,
            "unqueued": requests // 2,
            "unqueued_seconds": requests * 0.01,
            "unqueued_squared": requests * 0.0001,
            "response_time_buckets": buckets,
            "in_flight_seconds": requests * 0.031,
            "retries": requests // 100,
            "retries_refused": requests // 200,
        }

    return {
        "instance": "edge-1",
        "start": 1_767_225_600_123,
        "sequence": 17,
        "clock_seconds": 123456.789,
        "upstreams": [
            {"upstream": f"upstream_{u}", "waiting": u, "peers": [pair(a) for a in addresses]}
            for u in range(upstreams)
        ],
        "addresses": [
            {
                "address": address,
                "busy_seconds": rng.uniform(0, 100),
                "completions_at": [rng.randrange(500) if n < 6 else 0 for n in range(32)],
                "seconds_at": [rng.uniform(0, 9) if n < 6 else 0.0 for n in range(32)],
                "rate": rng.uniform(0.5, 2),
                "error_ratio": 0.0,
                "down": address.endswith(".1:8080"),
                "ejections": rng.randrange(3),
                "ejection": "stall" if address.endswith(".1:8080") else "",
                "ejection_seconds": 0.75 if address.endswith(".1:8080") else 0.0,
            }
            for address in addresses
        ],
        "generation": 42,
        "connections": {"active": 9, "reading": 1, "writing": 5, "waiting": 3},
    }


def by_column(value: dict[str, Any]) -> dict[str, Any]:
    """The same report by column, and one that wants weights."""
    message: Any = fill(policy_pb2.ReportStatsRequest(), value)
    packed.gather(message)
    names = [upstream.upstream for upstream in message.upstreams]
    return table(message) | {"weights_wanted": {"upstreams": names, "epoch": 3, "generation": 7}}


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of each golden case -> message and table."""
    peer = {"address": "127.0.0.1:9001", "weight": 1.0, "affinity": 1.0, "rate": 1.0}
    out: dict[str, tuple[str, dict[str, Any]]] = {f"empty_{kind}": (kind, {}) for kind in MESSAGES}
    out |= {
        "request_first": ("get_weights_request", {"instance": "edge-1"}),
        "request_usual": (
            "get_weights_request",
            {
                "instance": "edge-1",
                "upstreams": ["compose_backend", "home_read_backend", ""],
                "epoch": 1_767_225_600_123,
                "generation": 7,
            },
        ),
        "request_huge": (
            "get_weights_request",
            {"instance": "x" * 255, "epoch": HUGE, "generation": HUGE - 1},
        ),
        "response_unchanged": (
            "get_weights_response",
            {
                "epoch": 1,
                "generation": 1,
                "time_to_live": 10.0,
                "refresh_interval": 0.5,
                "unchanged": True,
            },
        ),
        "response_spans": (
            "get_weights_response",
            {
                "time_to_live": 0.0,
                "refresh_interval": 1e-9,
                "upstreams": [
                    {"upstream": "a", "deadline": 0.999999999, "service_time": 86400.0},
                    {"upstream": "b", "deadline": 0.1, "peers": []},
                    {"upstream": "c"},
                    {},
                ],
            },
        ),
        "response_zeros": (
            "get_weights_response",
            {
                "upstreams": [
                    {
                        "upstream": "zeros",
                        "peers": [
                            {},
                            {"address": "a", "weight": 0.0, "slots": -0.0},
                            {"weight": -0.0, "affinity": -1.5, "rate": 5e-324},
                            peer | {"slots": 2.0, "drain": True},
                        ],
                    }
                ]
            },
        ),
        "response_1000_peers": ("get_weights_response", weights(1, 1000)),
        "report_usual": ("report_stats_request", report(3, 4)),
        "report_idle": (
            "report_stats_request",
            {
                "instance": "edge-1",
                "start": 1,
                "sequence": 1,
                "clock_seconds": -0.0,
                "upstreams": [{"upstream": "a", "peers": [{"address": "127.0.0.1:9001"}]}],
                "addresses": [{"address": "127.0.0.1:9001", "rate": 1.0}],
                "connections": {},
            },
        ),
        "report_huge": (
            "report_stats_request",
            {
                "instance": "edge-1",
                "start": HUGE,
                "sequence": HUGE - 1,
                "clock_seconds": math.ldexp(1.0, 1023),
                "upstreams": [
                    {
                        "upstream": "a",
                        "waiting": 2**31,
                        "peers": [
                            {
                                "address": "unix:/run/a.sock",
                                "in_flight": 2**31 - 1,
                                "requests": 2**32,
                                "responses": [2**7 - 1, 2**7, 2**14, 2**35 - 1, 2**49],
                                "in_bytes": HUGE - 1,
                                "out_bytes": HUGE,
                                "response_time_buckets": [2**b for b in range(36)],
                            }
                        ],
                    }
                ],
                "generation": 2**28,
                "connections": {"active": 1, "waiting": 2**21},
            },
        ),
        "report_columns": ("report_stats_request", by_column(report(3, 4))),
        "accepted": ("report_stats_response", {"accepted": True}),
        "refused": ("report_stats_response", {"unknown": ["a", "b" * 128, ""]}),
        "answered": ("report_stats_response", {"accepted": True, "weights": weights(2, 3)}),
    }
    return out


def files() -> dict[str, bytes]:
    """File name -> content of every golden file."""
    out = {}
    for name, (kind, value) in cases().items():
        data = message_bytes(kind, value)
        shape = table(MESSAGES[kind].FromString(data))
        text = json.dumps({"message": kind, "table": shape}, separators=(",", ":"))
        out[f"policy_{name}.bin"] = data
        out[f"policy_{name}.json"] = text.encode() + b"\n"
    return out


if __name__ == "__main__":
    for file_name, content in files().items():
        (DIRECTORY / file_name).write_bytes(content)
