"""nginx configuration from a `Config`: the templates, and what makes values safe in them.

`render` is a pure function of its arguments. What makes values safe is in `safe_text`, finding
nginx and running it in `nginx_process`.
"""

import functools
import hashlib
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
from trimtab.actuators.groups import (
    BALANCERS,
    SHARED_GROUP,
    group,
    shared_servers,
    static_groups,
    stock_groups,
)
from trimtab.config import Config, Upstream, split_address
from trimtab.errors import ConfigError, TrimtabError
from trimtab.model import BUCKET_BOUNDS_SECONDS, Weights

__all__ = [
    "BALANCERS",
    "LAYOUTS",
    "MAX_OPEN_FILES",
    "RETRY_STATUSES",
    "TEMP_PATHS",
    "TOKEN_FILE",
    "Machine",
    "environment",
    "include_line",
    "local",
    "render",
    "render_upstreams",
    "write",
]

LAYOUTS: Final = ("per_class", "one_group")
RETRY_STATUSES: Final = (500, 502, 503, 504)
TEMP_PATHS: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

# Enough for ten thousand requests that wait, and a connection to a server for each second one.
MAX_OPEN_FILES: Final = 40_000

# Holds the token of calls to the policy server: for the eyes of who starts nginx.
TOKEN_FILE: Final = "policy_token.conf"  # noqa: S105

# Names of our own upstream groups.
_POLICY_GROUP: Final = "trimtab_policy"

# A connection to a server on the same network takes milliseconds; a SYN lost twice takes three
# seconds, and after five another server is the better hope.
_CONNECT_SECONDS: Final = 5.0

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
)

# With this many tries a request fails only if three servers in a row do; more would multiply the
# load of requests that fail everywhere.
_TRIES: Final = 3


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


def _policy_addresses(config: Config) -> list[str]:
    """Where the hook's bridge finds policy servers."""
    return [local(address) for address in config.nginx.policy_servers or (config.policy.listen,)]


def _check(config: Config, hook: bool) -> None:
    """What nginx needs beyond what `config` has checked."""
    seen: dict[str, str] = {}
    for upstream in config.upstreams:
        name = upstream.name
        if name.lower() in (_POLICY_GROUP, SHARED_GROUP):
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
        for address in config.nginx.policy_servers:
            _refuse_names(address, f"{config.path}: policy_servers in [nginx]")
        _refuse_names(config.nginx.internal_listen, f"{config.path}: internal_listen in [nginx]")


def _policy_tls(config: Config) -> dict[str, str] | None:
    """How the bridge speaks TLS to the policy server; None when it does not. Raises ConfigError."""
    nginx = config.nginx
    if config.policy.tls_certificate is None:
        return None
    if nginx.policy_ca is None:
        raise ConfigError(
            f"{config.path}: tls_certificate in [policy] is set, and policy_ca in [nginx] is not: "
            "name the authorities that nginx checks the policy server's certificate with (the "
            "certificate itself, when it is self-signed)"
        )
    if config.policy.tls_client_ca and nginx.policy_certificate is None:
        raise ConfigError(
            f"{config.path}: tls_client_ca in [policy] is set, so nginx needs policy_certificate "
            "and policy_key in [nginx]"
        )
    files = {
        "ca": nginx.policy_ca,
        "certificate": nginx.policy_certificate,
        "key": nginx.policy_key,
    }
    absolute = {name: str(path.absolute()) if path else "" for name, path in files.items()}
    return {"name": nginx.policy_name, **absolute}


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
        entry["hold"] = upstream.hold
        entry["max_waiting"] = upstream.max_waiting
        if upstream.max_wait_seconds is not None:
            entry["max_wait_seconds"] = upstream.max_wait_seconds
        entry |= {name: getattr(upstream, name) for name in _HEALTH}
        entry["tries"] = min(len(upstream.peers), _TRIES)
        for name in ("try_timeout_seconds", "check_path"):
            if (value := getattr(upstream, name)) is not None:
                entry[name] = value
        entry["peers"] = [
            {
                "address": p.address,
                **({"slots": p.slots} if p.slots else {}),
                **({"discipline": p.discipline} if p.discipline != "fifo" else {}),
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


def _vts_buckets() -> list[str]:
    """Our bucket bounds as VTS takes them: whole milliseconds, at most 32 of them."""
    rounded = sorted({round(bound, 3) for bound in BUCKET_BOUNDS_SECONDS if bound >= 0.001})
    return [f"{bound:.3f}".rstrip("0").rstrip(".") for bound in rounded[:32]]


def _values(
    config: Config, groups: list[dict[str, Any]], weights: Weights | None
) -> dict[str, Any]:
    """What upstreams.conf needs."""
    return {
        "config": config,
        "generation": weights.generation if weights else 0,
        "groups": groups,
        "policy_addresses": [],
        "source": config.path,
        "version": __version__,
        "weights_from": f"learned weights ({weights.reason})" if weights else "static weights",
    }


def _token(config: Config, groups: list[dict[str, Any]], weights: Weights | None) -> str:
    """Names what the workers of a configuration serve: epoch, generation, and the content."""
    content = json.dumps([groups, config.nginx.internal_listen, config.stock.vts_url])
    digest = hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16]
    epoch, generation = (weights.epoch, weights.generation) if weights else (0, 0)
    return f"{epoch}-{generation}-{digest}"


def include_line(file: Path) -> str:
    """What makes nginx read a file. Raises ConfigError for a path that nginx cannot take."""
    return f"include {safe_text.FILTERS['quoted'](str(file))};"


def render_upstreams(
    config: Config, weights: Weights | None = None, *, status: bool = True
) -> tuple[str, str]:
    """The upstream file of stock mode alone, for an nginx that includes it; and its token, which
    the workers that serve it tell at /trimtab/generation.

    Args:
        config: what to render.
        weights: learned weights; the static ones when None.
        status: whether the internal server shows the statistics, as far as the configuration
            wants that at all. False needs no VTS module.

    Raises:
        ConfigError: a value cannot be written safely.
    """
    _check(config, hook=False)
    groups = stock_groups(config, weights)
    token = _token(config, groups, weights)
    text = (
        environment()
        .get_template("upstreams.conf.j2")
        .render(
            {
                **_values(config, groups, weights),
                "stock": True,
                "token": token,
                "vts": status and not config.stock.vts_url,
            }
        )
    )
    return text, token


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
    balancer_token: str | None = None,
) -> Mapping[str, str]:
    """The files of an nginx of one's own, by file name; the same arguments give the same text.

    Args:
        config: what to render.
        directory: absolute; where the files will be, and all that nginx writes.
        machine: modules, user and paths; `nginx_process.machine` finds them.
        mode: "lua" or "stock"; the configuration's when None.
        balancer: one of `BALANCERS`. In lua mode "trimtab" is the hook, and with the others the
            hook only counts. In stock mode "trimtab" is the configuration's method with the
            weights.
        layout: "per_class" has a group for each upstream; "one_group" puts all peers in one.
        observe: False gives a plain nginx with neither Lua nor VTS, for comparison.
        access_log: write logs/access.log.
        retry_statuses: answers after which another server is tried; none for nginx's default.
        weights: learned weights, for stock mode; the static ones when None.
        balancer_token: what `bearer.balancer_token` gives; goes into `TOKEN_FILE`.

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
    hook, stock = observe and mode == "lua", observe and mode == "stock"
    own = stock and balancer == "trimtab"
    if balancer == "trimtab":
        if not observe:
            raise ConfigError("without the hook or VTS there is no balancer 'trimtab'")
        if layout == "one_group":
            raise ConfigError("the balancer 'trimtab' needs the layout per_class")
        balancer = "trimtab" if hook else config.stock.method
    if weights is not None and not own:
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
    zone = stock or (balancer != "trimtab" and config.nginx.worker_processes != 1)
    if own:
        groups = stock_groups(config, weights)
    elif layout == "one_group":
        groups = [group(SHARED_GROUP, shared_servers(config), balancer, zone=zone)]
    else:
        groups = static_groups(config, balancer, zone=zone)
    routes = [
        _route(u, g["name"], len(g["servers"]), retry_statuses)
        for u, g in zip(config.upstreams, cycle(groups), strict=False)
    ]
    pairs = sum(len(g["servers"]) for g in groups)
    values = {
        **_values(config, groups, weights),
        "access_log": access_log,
        "catches_all": any(u.location == "/" for u in config.upstreams),
        "directory": str(directory),
        "hook": hook,
        "stock": stock,
        "lua_directory": lua_directory,
        "machine": machine,
        "policy_addresses": _policy_addresses(config) if hook else [],
        "policy_tls": _policy_tls(config) if hook else None,
        "policy_token": balancer_token if hook else None,
        "token": _token(config, groups, weights) if stock else "",
        "routes": routes,
        # Long enough for any request, within reason: until then old and new workers share peers.
        "shutdown_seconds": min(120.0, max(10.0, *(u.timeout_seconds for u in config.upstreams))),
        "vts_buckets": _vts_buckets(),
        # A node has a histogram and a long key; a full zone would read as zeros for ever.
        "vts_zone_mebibytes": max(4, math.ceil(pairs / 128)),
        # A request may hold two connections, and some files are no connections.
        "worker_connections": machine.open_files * 2 // 5,
        # A status page of one's own needs nothing from us.
        "vts": stock and not config.stock.vts_url,
        "what": f"{mode} mode, balancer {balancer}, {layout}" if observe else f"plain {balancer}",
    }
    templates = environment()
    files = {
        name: templates.get_template(f"{name}.j2").render(values)
        for name in ("nginx.conf", "upstreams.conf")
    }
    if hook:
        files["trimtab.json"] = _hook_json(config, balancer == "trimtab")
        if balancer_token:
            token = safe_text.FILTERS["quoted"](f"Bearer {balancer_token}")
            files[TOKEN_FILE] = f"grpc_set_header Authorization {token};\n"
    return files


def write(files: Mapping[str, str], directory: Path) -> list[str]:
    """Write the files, each atomically, and the directory for logs; returns the names changed.
    `TOKEN_FILE` is for its owner's eyes only.

    Raises TrimtabError when the directory cannot be written.
    """
    changed = []
    try:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = directory / name
            mode = 0o600 if name == TOKEN_FILE else 0o666
            if path.is_file() and path.read_bytes() == text.encode():
                if name == TOKEN_FILE:
                    path.chmod(mode)
                continue
            beside = directory / f".{name}.{os.getpid()}"
            beside.unlink(missing_ok=True)
            made = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with open(made, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            changed.append(name)
    except OSError as error:
        raise TrimtabError(f"cannot write {directory}: {error}; nothing was started") from None
    return changed
