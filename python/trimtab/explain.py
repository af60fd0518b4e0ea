"""Why requests of a class go where they go: the rule's inputs and scores at this instant.

Computed by the Python twin of the rule that the balancer runs, from the weights in force and from
what one balancer last reported: requests in flight, rates, errors. A balancer sees its own requests
only, so the explanation is of one balancer. Late binding is not in it: with a waiting room the
least score says where a request would go, and room there when.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from trimtab.errors import ConfigError
from trimtab.model import AddressCounters, PeerWeight, Snapshot, UpstreamWeights, Weights
from trimtab.overview import View, discipline
from trimtab.twin import rule

__all__ = ["explain", "unknown"]

# Until v_j is known the scores compare servers all the same; only their unit is arbitrary.
SERVICE_UNKNOWN_SECONDS: Final = 0.01


def explain(
    view: View,
    upstream: str,
    address: str | None = None,
    instance: str | None = None,
) -> dict[str, Any]:
    """The explanation of an upstream, or of one of its peers, at one balancer (the first).

    {"upstream", "instance": name or None when none reports, "instances": how many do,
     "generation", "in_use": the generation that this balancer uses,
     "reason" of that generation, "changed": when, seconds since 1970,
     "profile", "chosen", "shadow", "decision", "state", "deadline_seconds",
     "service_time_seconds", "burstiness", "service_cv2" (see `estimate.Estimates`, or None),
     "peers": {address: {"weight", "pinned", "withheld" W in shadow or None, "affinity", "rate",
        "rate_prior", "slots" (0: unknown), "sharing" (whether it shares them, as far as is known),
        "discipline_estimate" (see `overview.upstreams`), "error_ratio", "drain", "down",
        "ejection" (why; "" when it is not ejected), "in_flight" over all classes,
        "in_flight_class", "work_seconds", "own_seconds", "wait_seconds", "score",
        "rank" (1 is picked next; None: not picked)}},
     "last_change": {"from", "to": generations, "reason", "peers": {address: {field: [before,
        after]}}, "deadline_seconds", "service_time_seconds": [before, after] if it changed},
     "last_decision": the journal's entry, or None,
     "trials": {profile: see `trials.Trials.status`}}

    Raises ConfigError for a name that is not known, with the closest one that is.
    """
    weights = view.weights or Weights(upstreams={})
    control = weights.upstreams.get(upstream)
    if control is None:
        raise ConfigError(unknown("upstream", upstream, weights.upstreams))
    if address is not None and address not in control.peers:
        raise ConfigError(unknown(f"peer of {upstream}", address, control.peers))
    by_name = {s.instance: s for s in view.snapshots}
    if instance is not None and instance not in by_name:
        raise ConfigError(unknown("balancer that reports", instance, by_name))
    snapshot = by_name[instance] if instance else (view.snapshots or (None,))[0]
    peers = _peers(weights, upstream, control, snapshot)
    for name, facts in peers.items():
        facts["discipline_estimate"] = discipline(view.estimates, name)
        facts["pinned"] = any([upstream, name] == pin[:2] for pin in view.guard.get("pins", ()))
        facts["withheld"] = view.guard.get("withheld", {}).get(upstream, {}).get(name)
    decisions = [e for e in view.journal if e.kind == "decision"]
    last = decisions[-1] if decisions else None
    shadow = bool(view.guard.get("shadow"))
    return {
        "upstream": upstream,
        "instance": snapshot.instance if snapshot else None,
        "instances": len(view.snapshots),
        "generation": weights.generation,
        "in_use": snapshot.generation if snapshot else None,
        "reason": weights.reason,
        "changed": view.change.time if view.change else None,
        "profile": "neutral" if shadow else view.profile,
        "chosen": view.profile,
        "shadow": shadow,
        "decision": view.decision.reason,
        "state": view.decision.state,
        "deadline_seconds": control.deadline_seconds,
        "service_time_seconds": control.service_time_seconds,
        "burstiness": view.estimates.burstiness.get(upstream),
        "service_cv2": view.estimates.service_cv2.get(upstream),
        "peers": {a: f for a, f in peers.items() if address in (None, a)},
        "last_change": _change(view, upstream, address),
        "last_decision": (
            {"time": last.time, "generation": last.generation, "reason": last.reason}
            if last
            else None
        ),
        "trials": dict(view.guard.get("trials", {})),
    }


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none of `known`: the closest one, or what there is."""
    names = sorted(known)
    close = get_close_matches(name, names, 1)
    if close:
        return f"no {kind} is called {name!r}; did you mean {close[0]!r}?"
    listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"no {kind} is called {name!r}; there are: {listed or 'none'}"


def _service(control: UpstreamWeights | None) -> float:
    known = control.service_time_seconds if control else None
    return known or SERVICE_UNKNOWN_SECONDS


def _peers(
    weights: Weights,
    upstream: str,
    control: UpstreamWeights,
    snapshot: Snapshot | None,
) -> dict[str, dict[str, Any]]:
    pairs = snapshot.pairs if snapshot else {}
    found: dict[str, dict[str, Any]] = {}
    for address, peer in control.peers.items():
        in_flight = work = 0.0
        for name, peers in pairs.items():
            pair = peers.get(address)
            of = weights.upstreams.get(name)
            if pair is None or of is None:
                continue
            in_flight += pair.in_flight
            there = of.peers.get(address, PeerWeight())
            work += pair.in_flight * _service(of) * there.affinity
        mine = pairs.get(upstream, {}).get(address)
        found[address] = _facts(
            peer,
            snapshot.addresses.get(address) if snapshot else None,
            own=_service(control) * peer.affinity,
            in_flight=in_flight,
            work=work,
        ) | {"in_flight_class": mine.in_flight if mine else 0.0}
    order = sorted(
        (a for a, f in found.items() if not (f["drain"] or f["down"])),
        key=lambda a: found[a]["score"],
    )
    ranks = {address: rank for rank, address in enumerate(order, 1)}
    for address, facts in found.items():
        facts["rank"] = ranks.get(address)
    return found


def _facts(
    peer: PeerWeight,
    server: AddressCounters | None,
    *,
    own: float,
    in_flight: float,
    work: float,
) -> dict[str, Any]:
    rate = server.rate if server and server.rate > 0 else peer.rate
    error = server.error_ratio if server else 0.0
    slots = peer.slots or 0.0
    score = rule.score(own, in_flight, work, rate, error, slots, float(peer.sharing), peer.weight)
    # The rule's own terms: without what is in flight no wait is left in the score.
    served = own / rate * (1 + rule.ERROR_COST * error + rule.SPREAD * in_flight / max(slots, 1.0))
    return {
        "weight": peer.weight,
        "affinity": peer.affinity,
        "rate": rate,
        "rate_prior": peer.rate,
        "slots": slots,
        "sharing": peer.sharing,
        "error_ratio": error,
        "drain": peer.drain,
        "down": bool(server and server.down),
        "ejection": server.ejection if server else "",
        "in_flight": in_flight,
        "work_seconds": work,
        "own_seconds": own / rate,
        "wait_seconds": max(0.0, score * peer.weight - served),
        "score": score,
    }


def _differs(before: Any, after: Any) -> bool:
    """Whether a reader would see it: by half a percent, or at all where it is no measurement."""
    if isinstance(before, float) and isinstance(after, float):
        return abs(after - before) > 0.005 * abs(before)
    return bool(before != after)


def _change(view: View, upstream: str, address: str | None) -> dict[str, Any] | None:
    if view.change is None or view.weights is None:
        return None
    before, after = view.change.before, view.weights
    was = before.upstreams.get(upstream) if before else None
    now = after.upstreams[upstream]
    peers: dict[str, dict[str, list[Any]]] = {}
    for name, peer in now.peers.items():
        old = was.peers.get(name) if was else None
        if old is None or address not in (None, name):
            continue
        fields = ("weight", "affinity", "rate", "slots", "drain", "sharing")
        differs = {
            f: [getattr(old, f), getattr(peer, f)]
            for f in fields
            if _differs(getattr(old, f), getattr(peer, f))
        }
        if differs:
            peers[name] = differs
    spans: Mapping[str, list[Any]] = {
        f: [getattr(was, f), getattr(now, f)]
        for f in ("deadline_seconds", "service_time_seconds")
        if was and getattr(was, f) != getattr(now, f)
    }
    return {
        "from": before.generation if before else 0,
        "to": after.generation,
        "reason": after.reason,
        "peers": peers,
        **spans,
    }
