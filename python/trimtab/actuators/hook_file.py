"""`trimtab.json`: what the hook in nginx is told of upstreams and peers."""

import json
from typing import Any, Final

from trimtab.actuators.nginx_checks import local
from trimtab.config import Config

__all__ = ["TRIES", "hook_json"]

# Keys of an upstream that the hook takes as they are.
_HEALTH: Final = (
    "eject_failures",
    "eject_error_ratio",
    "eject_stall_seconds",
    "eject_seconds",
    "eject_max_seconds",
    "eject_max_ratio",
    "slow_start_seconds",
    "check_interval_seconds",
    "check_timeout_seconds",
    "check_failures",
    "check_successes",
    "retry_ratio",
    "retries_per_second",
    "retry_non_idempotent",
    "retry_stalled",
)

# With this many tries a request fails only if three servers in a row do; more would multiply the
# load of requests that fail everywhere.
TRIES: Final = 3


def hook_json(config: Config, balance: bool) -> str:
    """`trimtab.json`, which `resty.trimtab` reads; what is not known is left out."""
    upstreams = []
    for upstream in config.upstreams:
        entry: dict[str, Any] = {"name": upstream.name, "priority": upstream.priority}
        if upstream.deadline_seconds is not None:
            entry["deadline_seconds"] = upstream.deadline_seconds
        entry["timeout_seconds"] = upstream.timeout_seconds
        entry["hold"] = upstream.hold
        entry["max_waiting"] = upstream.max_waiting
        if upstream.max_wait_seconds is not None:
            entry["max_wait_seconds"] = upstream.max_wait_seconds
        entry |= {name: getattr(upstream, name) for name in _HEALTH}
        entry["tries"] = min(len(upstream.peers), TRIES)
        for name in ("try_timeout_seconds", "check_path"):
            if (value := getattr(upstream, name)) is not None:
                entry[name] = value
        entry["peers"] = [
            {
                "address": p.address,
                **({"slots": p.slots} if p.slots else {}),
                **({"discipline": p.discipline} if p.discipline else {}),
                "weight": p.weight,
            }
            for p in upstream.peers
        ]
        upstreams.append(entry)
    whole = {
        "format": 1,
        "instance": config.nginx.instance,
        "interval_seconds": config.policy.interval_seconds,
        "bridge": local(config.nginx.internal_listen),
        "balance": balance,
        "upstreams": upstreams,
    }
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"
