"""Weights as the body of an envelope and back: what the leader publishes and followers check."""

import math
from collections.abc import Mapping
from typing import Any, Final

from trimtab.bounds import MessageError, check_text
from trimtab.config import MAX_PAIRS, MAX_PEERS, MAX_UPSTREAMS
from trimtab.envelope import pack, unpack
from trimtab.errors import StateError
from trimtab.model import PeerWeight, UpstreamWeights, Weights

__all__ = ["name", "read", "write"]

_WHAT: Final = "the weights in Redis"

# As the hook in nginx takes them (weights.lua); the guard's own bounds are narrower.
LEAST, MOST = 1e-6, 1e6
MOST_SECONDS: Final = 86400.0

# A generation and an epoch are whole numbers that a double holds.
MOST_NUMBER: Final = 2**53

MOST_REASON: Final = 2000


def name(weights: Weights | None) -> str:
    """What tells one set of weights from another; "" for none."""
    return f"{weights.epoch}:{weights.generation}" if weights else ""


def write(weights: Weights) -> bytes:
    """The envelope. Raises StateError."""
    upstreams = {
        n: {
            "deadline_seconds": u.deadline_seconds,
            "service_time_seconds": u.service_time_seconds,
            "peers": {
                a: [p.weight, p.affinity, p.rate, p.slots, p.drain, p.sharing]
                for a, p in u.peers.items()
            },
        }
        for n, u in weights.upstreams.items()
    }
    body = {
        "epoch": weights.epoch,
        "generation": weights.generation,
        "reason": weights.reason[:MOST_REASON],
        "upstreams": upstreams,
    }
    return pack(body, _WHAT)


def read(raw: bytes) -> Weights:
    """The weights in an envelope. Raises StateError for what is damaged or out of bounds."""
    body = unpack(raw, _WHAT)
    try:
        upstreams = {n: _upstream(n, u) for n, u in body["upstreams"].items()}
        pairs = sum(len(u.peers) for u in upstreams.values())
        if not 0 < len(upstreams) <= MAX_UPSTREAMS or pairs > MAX_PAIRS:
            raise ValueError(f"{len(upstreams)} upstreams with {pairs} peers")
        return Weights(
            upstreams=upstreams,
            epoch=_whole(body["epoch"]),
            generation=_whole(body["generation"]),
            reason=str(body["reason"])[:MOST_REASON],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{_WHAT}: {type(error).__name__}: {error}") from None


def _upstream(name: str, told: Mapping[str, Any]) -> UpstreamWeights:
    _text(name)
    peers = told["peers"]
    if not 0 < len(peers) <= MAX_PEERS:
        raise ValueError(f"{len(peers)} peers in {name}")
    return UpstreamWeights(
        peers={a: _peer(a, p) for a, p in peers.items()},
        deadline_seconds=_seconds(told["deadline_seconds"]),
        service_time_seconds=_seconds(told["service_time_seconds"]),
    )


def _peer(address: str, told: Any) -> PeerWeight:
    _text(address)
    # Version 0.1 did not say who shares.
    weight, affinity, rate, slots, drain, sharing = [*told, False] if len(told) == 5 else told
    if not isinstance(drain, bool) or not isinstance(sharing, bool):
        raise ValueError(f"drain and sharing of {address} are {drain!r} and {sharing!r}")
    return PeerWeight(
        weight=_number(weight, LEAST, MOST),
        affinity=_number(affinity, LEAST, MOST),
        rate=_number(rate, LEAST, MOST),
        slots=None if slots is None else _number(slots, 1.0, 65535.0),
        drain=drain,
        sharing=sharing,
    )


def _text(value: str) -> None:
    try:
        check_text(value, "a name")
    except MessageError as error:
        raise ValueError(str(error)) from None


def _seconds(value: Any) -> float | None:
    return None if value is None else _number(value, 1e-9, MOST_SECONDS)


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{value!r} is not from {low:g} to {high:g}")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MOST_NUMBER:
        raise ValueError(f"{value!r} is no epoch or generation")
    return value
