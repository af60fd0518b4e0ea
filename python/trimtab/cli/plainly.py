"""The explanation in sentences: where the next request goes, and what decides it.

The numbers are those of `/explain.json`; what each is called there is in `trimtab.explain`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["sentences"]

# Rates within this factor of the mean server's are called neither fast nor slow.
ALIKE: Final = 1.25


def sentences(told: Mapping[str, Any], *, one: bool) -> Iterator[str]:
    """Of an explanation; with `one` it names a single peer, which may not be the next one."""
    if told.get("instance") is None:
        return
    peers = told["peers"]
    if one:
        for address, peer in peers.items():
            yield _standing(address, peer)
        return
    ranked = sorted((p for p in peers.items() if p[1]["rank"]), key=lambda p: p[1]["rank"])
    if not ranked:
        yield (
            "No server may be picked: all are drained or down. nginx picks as it would without "
            "Trimtab."
        )
        return
    address, best = ranked[0]
    taken = f"The next request goes to {address}, where {_takes(best)}."
    if len(ranked) == 1:
        yield f"{taken} No other server may be picked."
        return
    second, other = ranked[1]
    yield f"{taken} Next best is {second}, {_against(best, other)}."


def _takes(peer: Mapping[str, Any]) -> str:
    wait = peer["wait_seconds"]
    waiting = f", {_ms(wait)} of that waiting for a slot" if wait > 0 else ""
    return f"it should take {_ms(peer['own_seconds'] + wait)}{waiting}"


def _against(best: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Why `other` comes after `best`: what makes the most of the difference."""
    if other["score"] <= best["score"] * 1.01:
        return "as good; such ties are drawn"
    waits = other["wait_seconds"] - best["wait_seconds"]
    factors = (
        (
            f"its error ratio is {other['error_ratio']:.0%}",
            (1 + 20 * other["error_ratio"]) / (1 + 20 * best["error_ratio"]),
        ),
        (
            f"its weight W is {other['weight']:.2f} against {best['weight']:.2f}",
            best["weight"] / other["weight"],
        ),
        (
            f"it is slower (rate {other['rate']:.2f} against {best['rate']:.2f})",
            best["rate"] / other["rate"],
        ),
        (
            f"the class suits it less (a {other['affinity']:.2f} against {best['affinity']:.2f})",
            other["affinity"] / best["affinity"],
        ),
        (
            f"a slot is free there only in {_ms(other['wait_seconds'])}",
            1 + waits / other["own_seconds"],
        ),
    )
    why, size = max(factors, key=lambda f: f[1])
    # What is left then is what is in flight there.
    reason = why if size > 1.02 else f"it has {other['in_flight']:.0f} requests in flight"
    return f"whose score is {other['score'] / best['score']:.1f} times as large: {reason}"


def _standing(address: str, peer: Mapping[str, Any]) -> str:
    """Where one server stands, and what about it counts."""
    if peer["drain"]:
        return f"Server {address} gets no new request: an operator drained it."
    if peer["down"]:
        why = peer.get("ejection")
        told = f"it is ejected ({why}), and tried again by itself" if why else "it is marked down"
        return f"Server {address} gets no new request: {told}."
    facts = [_takes(peer)]
    if peer["rate"] > ALIKE:
        facts.append(f"it is fast (rate {peer['rate']:.2f}; the mean server is 1)")
    elif peer["rate"] < 1 / ALIKE:
        facts.append(f"it is slow (rate {peer['rate']:.2f}; the mean server is 1)")
    if peer["error_ratio"] >= 0.005:
        facts.append(f"errors make that count {1 + 20 * peer['error_ratio']:.1f} times")
    if abs(peer["weight"] - 1) > 0.005:
        facts.append(f"its weight makes that count {1 / peer['weight']:.2f} times")
    rank = peer["rank"]
    place = "takes the next request" if rank == 1 else f"is number {rank} in line"
    return f"Server {address} {place}: {'; '.join(facts)}."


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
