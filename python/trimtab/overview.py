"""What the controller shows of itself: the view that a step leaves, and `status` made from it.

A view is immutable and made in the controller's thread; the rest is computed when somebody asks,
in any thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trimtab.config import Config
from trimtab.estimate import Estimates
from trimtab.journal import Entry
from trimtab.learn.actions import NEUTRAL, PROFILES
from trimtab.learn.reward import tardiness
from trimtab.model import PairCounters, Snapshot, Weights, Window
from trimtab.policy import Decision
from trimtab.responses import mean_seconds, percentile_seconds
from trimtab.servers import servers
from trimtab.sums import accumulate, class_total

__all__ = ["Change", "View", "classes", "discipline", "status", "upstreams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The last change of weights: when (seconds since 1970), and what was in force before."""

    time: float
    before: Weights | None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the last step left. `measured_at` is on the controller's clock, None before the first
    window; `recent` are the windows of about the last 10 s; `policy` and `guard` their status;
    `snapshots` the last reading; `events` counts what the journal was told, by kind."""

    phase: str
    observed_seconds: float
    weights: Weights | None
    estimates: Estimates
    deadlines: Mapping[str, float]
    decision: Decision
    profile: str
    reward: float | None
    art_per_1000: float | None
    recent: tuple[Window, ...]
    measured_at: float | None
    policy: Mapping[str, Any]
    guard: Mapping[str, Any]
    journal: tuple[Entry, ...]
    events: Mapping[str, int]
    snapshots: tuple[Snapshot, ...]
    change: Change | None


def status(view: View, config: Config, now: float) -> dict[str, Any]:
    """A view as JSON-able data; `now` on the controller's clock.

    {"phase": "observing" | "learning" | "fixed", "observed_seconds", "observe_seconds",
     "epoch", "generation", "reason" of that generation,
     "state": {"index", "log_likelihood", "outside"} or None,
     "profile": name of the one in force, "chosen": name (another one in shadow),
     "exploring": bool, "decision": why that profile, "changed": time of the last change or None,
     "reward", "art_per_1000": of the last decision window, or None,
     "statistics_age_seconds": since the last window, or None,
     "estimates": {"service_time_seconds": {upstream: s}, "rates": {address: r},
                   "arrivals_per_second": {upstream: n},
                   "burstiness", "service_cv2": {upstream: ratio}},
     "upstreams": {upstream: see `upstreams`}, the weights in force,
     "window": {upstream: see `classes`}, of about the last 10 s,
     "servers": {address: see `servers.servers`}, now,
     "clusters", "values", "outside", "observations": see `policy.Learned.status`,
     "guard": see `guard.Guard.status`,
     "profiles": {name: summary}, "events": {kind: how many},
     "journal": [see `journal.Entry`], oldest first}
    """
    weights, estimates = view.weights, view.estimates
    return {
        "phase": view.phase,
        "observed_seconds": view.observed_seconds,
        "observe_seconds": config.learning.observe_seconds,
        "epoch": weights.epoch if weights else 0,
        "generation": weights.generation if weights else 0,
        "reason": weights.reason if weights else "",
        "state": None,
        "profile": PROFILES[NEUTRAL].name if view.guard.get("shadow") else view.profile,
        "chosen": view.profile,
        "changed": view.change.time if view.change else None,
        "exploring": view.decision.exploring and view.profile == view.decision.profile,
        "decision": view.decision.reason,
        "reward": view.reward,
        "art_per_1000": view.art_per_1000,
        "statistics_age_seconds": None if view.measured_at is None else now - view.measured_at,
        "estimates": {
            "service_time_seconds": dict(estimates.service_time_seconds),
            "rates": dict(estimates.rates),
            "arrivals_per_second": dict(estimates.arrivals_per_second),
            "burstiness": dict(estimates.burstiness),
            "service_cv2": dict(estimates.service_cv2),
        },
        "upstreams": upstreams(weights, estimates),
        "window": classes(view.recent, [u.name for u in config.upstreams], view.deadlines),
        "servers": servers(view.snapshots),
        **view.policy,
        "guard": dict(view.guard),
        "profiles": view.policy.get("profiles") or {p.name: p.summary for p in PROFILES},
        "events": dict(view.events),
        "journal": [asdict(entry) for entry in view.journal],
    }


def classes(
    recent: Sequence[Window], names: Sequence[str], deadlines: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """By upstream what its requests met lately: "requests_per_second", "response_time_seconds"
    (mean), "p50_seconds", "p99_seconds", "art_per_1000", "error_ratio", "tardy_ratio",
    "in_flight", "waiting", "shares" by address, and "peers" by address with "in_flight" and
    "response_time_seconds". None where nothing is known."""
    if not recent:
        return {}
    window = accumulate(recent)
    return {name: _class(window, name, deadlines.get(name)) for name in names}


def _class(window: Window, name: str, deadline: float | None) -> dict[str, Any]:
    peers = window.pairs.get(name, {})
    total = class_total(window, name)
    art = sum(tardiness(p, deadline) for p in peers.values())
    bad = max(total.failures, total.responses[4])
    return {
        "requests_per_second": total.requests / window.seconds,
        "response_time_seconds": mean_seconds(total),
        "p50_seconds": percentile_seconds(total, 0.5),
        "p99_seconds": percentile_seconds(total, 0.99),
        "art_per_1000": _ratio(1000 * art, total),
        "error_ratio": min(bad / total.requests, 1.0) if total.requests else None,
        "tardy_ratio": _ratio(total.tardy, total),
        "in_flight": total.in_flight,
        "waiting": window.waiting.get(name, 0.0),
        "shares": {a: p.requests / total.requests for a, p in peers.items() if total.requests},
        "peers": {
            a: {"in_flight": p.in_flight, "response_time_seconds": mean_seconds(p)}
            for a, p in peers.items()
        },
    }


def _ratio(value: float, of: PairCounters) -> float | None:
    return value / of.requests if of.requests else None


def upstreams(weights: Weights | None, estimates: Estimates) -> dict[str, dict[str, Any]]:
    """By upstream what is in force: "deadline_seconds", "service_time_seconds", and "peers" by
    address with "weight", "affinity", "rate", "slots", "drain", "sharing" and what the estimates
    say: "evidence" (remembered requests), "slots_estimate" ({"value", "low", "high", "sure"} or
    None), "discipline_estimate" ({"value": "fifo" or "ps", "ratio", "error", "sure"}, see
    `discipline`, or None)."""
    if weights is None:
        return {}
    return {
        name: {
            "deadline_seconds": upstream.deadline_seconds,
            "service_time_seconds": upstream.service_time_seconds,
            "peers": {
                address: {
                    "weight": peer.weight,
                    "affinity": peer.affinity,
                    "rate": peer.rate,
                    "slots": peer.slots,
                    "drain": peer.drain,
                    "sharing": peer.sharing,
                    "evidence": estimates.evidence.get(name, {}).get(address, 0.0),
                    "slots_estimate": _slots(estimates, address),
                    "discipline_estimate": discipline(estimates, address),
                }
                for address, peer in upstream.peers.items()
            },
        }
        for name, upstream in weights.upstreams.items()
    }


def discipline(estimates: Estimates, address: str) -> dict[str, Any] | None:
    """The estimate of a server's discipline, as in `upstreams`."""
    found = estimates.disciplines.get(address)
    if found is None:
        return None
    return {
        "value": found.value,
        "ratio": found.ratio,
        "error": found.error,
        "sure": found.sure,
    }


def _slots(estimates: Estimates, address: str) -> dict[str, Any] | None:
    slots = estimates.slots.get(address)
    if slots is None:
        return None
    return {"value": slots.value, "low": slots.low, "high": slots.high, "sure": slots.sure}
