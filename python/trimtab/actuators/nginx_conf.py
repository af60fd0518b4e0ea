"""nginx configuration from a `Config`: the templates, and what makes values safe in them.

`render` is a pure function of its arguments. What makes values safe is in `safe_text`, finding
nginx and running it in `nginx_process`.
"""

import functools
import ipaddress
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import jinja2

from trimtab import __version__, paths
from trimtab.actuators import safe_text
from trimtab.actuators.integer_weights import integer_weights
from trimtab.config import Config, Upstream, split_address
from trimtab.errors import ConfigError, TrimtabError
from trimtab.model import BUCKET_BOUNDS_SECONDS, Weights

__all__ = [
    "BALANCERS",
    "LAYOUTS",
    "MAX_OPEN_FILES",
    "RETRY_STATUSES",
    "TEMP_PATHS",
    "Machine",
    "environment",
    "local",
    "render",
    "write",
]

BALANCERS: Final = ("trimtab", "round_robin", "least_conn", "random_two")
LAYOUTS: Final = ("per_class", "one_group")
RETRY_STATUSES: Final = (500, 502, 503, 504)
TEMP_PATHS: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

# Enough for ten thousand requests that wait, and a connection to a server for each second one.
MAX_OPEN_FILES: Final = 40_000

# Names of our own upstream groups.
_POLICY_GROUP: Final = "trimtab_policy"
_SHARED_GROUP: Final = "trimtab_shared"

_METHODS: Final = {
    "round_robin": (),
    "least_conn": ("least_conn",),
    "random_two": ("random", "two", "least_conn"),
}

# A connection to a server on the same network takes milliseconds; a SYN lost twice takes three
# seconds, and after five another server is the better hope.
_CONNECT_SECONDS: Final = 5.0

# With this many tries a request fails only if three servers in a row do; more would multiply the
# load of requests that fail everywhere.
_TRIES: Final = 3

# Idle connections a worker keeps to the peers of a group. Too small a pool costs 40% of the
# throughput, so plenty a peer; the cap bounds what a worker with a thousand peers holds open.
_KEEPALIVE_PER_PEER: Final = 32
_KEEPALIVE_BOUNDS: Final = (64, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the configuration needs to know of the machine that it is for."""

    load_modules: tuple[str, ...] = ()  # paths, in the order of loading
    temp_paths: tuple[str, ...] = TEMP_PATHS  # kinds that this nginx was built with
    user: tuple[str, str] | None = None  # user and group of the workers, when root starts nginx
    open_files: int = MAX_OPEN_FILES  # that a worker may have
    lua_directory: str = ""  # holds resty/trimtab.lua; "" is the package's own


@functools.cache
def environment() -> jinja2.Environment:
    """Templates whose every written value must have gone through a filter of `safe_text`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.templates_directory()),
        undefined=jinja2.StrictUndefined,
        # HTML escaping would damage values; `only_safe` holds every one to a filter instead.
        autoescape=False,  # noqa: S701
        finalize=safe_text.only_safe,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(safe_text.FILTERS)
    return environment


def _refuse_names(address: str, key: str) -> None:
    """In lua mode Lua connects and nginx reports addresses, so names would match nothing."""
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise ConfigError(f"{key} is {address!r}; it must be {error}") from None
    if host.startswith("unix:"):
        return
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ConfigError(
            f"{key} is {address!r}, a host name; lua mode needs the IP address "
            f"(`getent hosts {host}` shows it), as nginx counts and connects by it"
        ) from None
    shown = f"[{ip}]" if ip.version == 6 else str(ip)
    if f"{shown}:{port}" != address:
        raise ConfigError(f"{key} is {address!r}; write it as nginx does: '{shown}:{port}'")


def local(address: str) -> str:
    """Where to connect on this machine to what listens on `address`."""
    host, port = split_address(address)
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, address)  # noqa: S104


def _check(config: Config, hook: bool) -> None:
    """What nginx needs beyond what `config` has checked."""
    seen: dict[str, str] = {}
    for upstream in config.upstreams:
        name = upstream.name
        if name.lower() in (_POLICY_GROUP, _SHARED_GROUP):
            raise ConfigError(f"{config.path}: the upstream name {name!r} is reserved; change it")
        if seen.setdefault(name.lower(), name) != name:
            raise ConfigError(
                f"{config.path}: the upstream names {name!r} and {seen[name.lower()]!r} "
                "are one to nginx, which ignores case; change one"
            )
        if hook:
            for peer in upstream.peers:
                key = f"{config.path}: address in [[upstream.peer]] of {name!r}"
                _refuse_names(peer.address, key)
    if hook:
        _refuse_names(config.policy.listen, f"{config.path}: listen in [policy]")
        _refuse_names(config.nginx.internal_listen, f"{config.path}: internal_listen in [nginx]")


def _servers(upstream: Upstream, weights: Weights | None) -> list[dict[str, Any]]:
    """The `server` lines of a group, with static weights or learned ones.

    least_conn takes the least n_i / w_i. The per-request rule compares about
    n_i·a_i / (k_i·r_i·W_i), so its learned numbers become w_i = W_i·k_i·r_i / a_i; slots k_i count
    only when all are known.
    """
    learned = weights.upstreams.get(upstream.name) if weights else None
    if learned is None:
        return [{"address": p.address, "weight": p.weight, "down": False} for p in upstream.peers]
    known = {p.address: learned.peers.get(p.address) for p in upstream.peers}
    slots = {
        p.address: p.slots or (w.slots if (w := known[p.address]) else None) for p in upstream.peers
    }
    by_slots = all(slots.values())
    values = {
        address: (w.weight * w.rate / w.affinity if w else 1.0)
        * ((slots[address] or 1) if by_slots else 1)
        for address, w in known.items()
        if not (w and w.drain)
    }
    whole = integer_weights(values)
    return [{"address": a, "weight": whole.get(a, 1), "down": a not in whole} for a in known]


def _group(name: str, servers: list[dict[str, Any]], balancer: str, zone: bool) -> dict[str, Any]:
    low, high = _KEEPALIVE_BOUNDS
    return {
        "name": name,
        "servers": servers,
        "hook": balancer == "trimtab",
        "method": _METHODS.get(balancer, ()),
        "keepalive": min(high, max(low, _KEEPALIVE_PER_PEER * len(servers))),
        # nginx takes about half a kibibyte a peer, and needs some pages to begin with.
        "zone_kibibytes": 64 * math.ceil((64 + 2 * len(servers)) / 64) if zone else 0,
    }


def _shared_servers(config: Config) -> list[dict[str, Any]]:
    """Every server once, with the weight that its first upstream gives it."""
    servers: dict[str, dict[str, Any]] = {}
    for upstream in config.upstreams:
        for server in _servers(upstream, None):
            servers.setdefault(server["address"], server)
    return list(servers.values())


def _route(upstream: Upstream, group: str, peers: int, statuses: Sequence[int]) -> dict[str, Any]:
    cases = ["error", "timeout", *(f"http_{status}" for status in statuses)]
    if upstream.retry_non_idempotent:
        cases.append("non_idempotent")
    return {
        "name": upstream.name,
        "location": upstream.location,
        "group": group,
        "connect_seconds": min(upstream.timeout_seconds, _CONNECT_SECONDS),
        "timeout_seconds": upstream.timeout_seconds,
        "next_upstream": cases,
        # With less, a try that has timed out would leave no time for another.
        "all_tries_seconds": 2 * upstream.timeout_seconds,
        "tries": min(peers, _TRIES),
    }


def _hook_json(config: Config, balance: bool) -> str:
    """`trimtab.json`, which `resty.trimtab` reads; what is not known is left out."""
    upstreams = []
    for upstream in config.upstreams:
        entry: dict[str, Any] = {"name": upstream.name, "priority": upstream.priority}
        if upstream.deadline_seconds is not None:
            entry["deadline_seconds"] = upstream.deadline_seconds
        entry["timeout_seconds"] = upstream.timeout_seconds
        entry["peers"] = [
            {"address": p.address, **({"slots": p.slots} if p.slots else {}), "weight": p.weight}
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


def _vts_buckets() -> list[str]:
    """Our bucket bounds as VTS takes them: whole milliseconds, at most 32 of them."""
    rounded = sorted({round(bound, 3) for bound in BUCKET_BOUNDS_SECONDS if bound >= 0.001})
    return [f"{bound:.3f}".rstrip("0").rstrip(".") for bound in rounded[:32]]


def render(
    config: Config,
    directory: Path,
    *,
    machine: Machine | None = None,
    mode: str | None = None,
    balancer: str = "trimtab",
    layout: str = "per_class",
    observe: bool = True,
    access_log: bool = False,
    retry_statuses: Sequence[int] = RETRY_STATUSES,
    weights: Weights | None = None,
) -> Mapping[str, str]:
    """The files of an nginx of one's own, by file name; the same arguments give the same text.

    Args:
        config: what to render.
        directory: absolute; where the files will be, and all that nginx writes.
        machine: modules, user and paths; `nginx_process.machine` finds them.
        mode: "lua" or "stock"; the configuration's when None.
        balancer: one of `BALANCERS`. In lua mode "trimtab" is the hook, and with the others the
            hook only counts. In stock mode "trimtab" is least_conn with the weights.
        layout: "per_class" has a group for each upstream; "one_group" puts all peers in one.
        observe: False gives a plain nginx with neither Lua nor VTS, for comparison.
        access_log: write logs/access.log.
        retry_statuses: answers after which another server is tried; none for nginx's default.
        weights: learned weights, for stock mode; the static ones when None.

    Raises:
        ConfigError: the arguments contradict each other, or a value cannot be written safely.
    """
    machine = machine or Machine()
    mode = mode or config.nginx.mode
    for name, value, allowed in (
        ("mode", mode, ("lua", "stock")),
        ("balancer", balancer, BALANCERS),
        ("layout", layout, LAYOUTS),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} {value!r}; allowed: {', '.join(allowed)}")
    hook, vts = observe and mode == "lua", observe and mode == "stock"
    if balancer == "trimtab":
        if not observe:
            raise ConfigError("without the hook or VTS there is no balancer 'trimtab'")
        if layout == "one_group":
            raise ConfigError("the balancer 'trimtab' needs the layout per_class")
        balancer = "trimtab" if hook else "least_conn"
    if weights is not None and not vts:
        raise ConfigError("learned weights are rendered in stock mode only; the hook pulls them")
    if not directory.is_absolute():
        raise ConfigError(f"the directory {str(directory)!r} is not absolute")
    if re.search(r"[*?\[]", str(directory)):
        raise ConfigError(f"the directory {str(directory)!r}: nginx would take it for a pattern")
    lua_directory = machine.lua_directory or (str(paths.lua_directory()) if hook else "")
    if re.search("[;?]", lua_directory):
        raise ConfigError(f"{lua_directory!r}: Lua's package path cannot hold a ';' or a '?'")
    _check(config, hook)

    # In one worker the counts are exact anyway.
    zone = vts or (balancer != "trimtab" and config.nginx.worker_processes != 1)
    if layout == "one_group":
        groups = [_group(_SHARED_GROUP, _shared_servers(config), balancer, zone)]
    else:
        groups = [_group(u.name, _servers(u, weights), balancer, zone) for u in config.upstreams]
    routes = [
        _route(u, group["name"], len(group["servers"]), retry_statuses)
        for u, group in zip(config.upstreams, cycle(groups), strict=False)
    ]
    pairs = sum(len(group["servers"]) for group in groups)
    values = {
        "access_log": access_log,
        "catches_all": any(u.location == "/" for u in config.upstreams),
        "config": config,
        "directory": str(directory),
        "generation": weights.generation if weights else 0,
        "groups": groups,
        "hook": hook,
        "lua_directory": lua_directory,
        "machine": machine,
        "policy_address": local(config.policy.listen) if hook else "",
        "routes": routes,
        # Long enough for any request, within reason: until then old and new workers share peers.
        "shutdown_seconds": min(120.0, max(10.0, *(u.timeout_seconds for u in config.upstreams))),
        "source": config.path,
        "version": __version__,
        "vts": vts,
        "vts_buckets": _vts_buckets(),
        # A node has a histogram and a long key; a full zone would read as zeros for ever.
        "vts_zone_mebibytes": max(4, math.ceil(pairs / 128)),
        "weights_from": f"learned weights ({weights.reason})" if weights else "static weights",
        # A request may hold two connections, and some files are no connections.
        "worker_connections": machine.open_files * 2 // 5,
        "what": f"{mode} mode, balancer {balancer}, {layout}" if observe else f"plain {balancer}",
    }
    templates = environment()
    files = {
        name: templates.get_template(f"{name}.j2").render(values)
        for name in ("nginx.conf", "upstreams.conf")
    }
    if hook:
        files["trimtab.json"] = _hook_json(config, balancer == "trimtab")
    return files


def write(files: Mapping[str, str], directory: Path) -> list[str]:
    """Write the files, each atomically, and the directory for logs; returns the names changed.

    Raises TrimtabError when the directory cannot be written.
    """
    changed = []
    try:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = directory / name
            if path.is_file() and path.read_bytes() == text.encode():
                continue
            beside = directory / f".{name}.{os.getpid()}"
            with beside.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            changed.append(name)
    except OSError as error:
        raise TrimtabError(f"cannot write {directory}: {error}; nothing was started") from None
    return changed
