"""nginx configuration from a `Config`: an nginx of one's own, and its files on disk.

`render` is a pure function of its arguments. The file of upstreams is `upstreams_conf`'s, that of
the hook `hook_file`'s; what makes values safe is in `safe_text`, finding nginx and running it in
`nginx_process`.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from trimtab import paths
from trimtab.actuators import safe_text
from trimtab.actuators.groups import (
    BALANCERS,
    SHARED_GROUP,
    group,
    shared_servers,
    static_groups,
    stock_groups,
)
from trimtab.actuators.hook_file import TRIES, hook_json
from trimtab.actuators.nginx_checks import check, policy_addresses, policy_tls
from trimtab.actuators.templates import environment
from trimtab.actuators.upstreams_conf import token_of_groups, values
from trimtab.config import Config, Upstream
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
    "render",
    "write",
]

LAYOUTS: Final = ("per_class", "one_group")
RETRY_STATUSES: Final = (500, 502, 503, 504)
TEMP_PATHS: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

# Enough for ten thousand requests that wait, and a connection to a server for each second one.
MAX_OPEN_FILES: Final = 40_000

# Holds the token of calls to the policy server: for the eyes of who starts nginx.
TOKEN_FILE: Final = "policy_token.conf"  # noqa: S105

# A connection to a server on the same network takes milliseconds; a SYN lost twice takes three
# seconds, and after five another server is the better hope.
_CONNECT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the configuration needs to know of the machine that it is for."""

    load_modules: tuple[str, ...] = ()  # paths, in the order of loading
    temp_paths: tuple[str, ...] = TEMP_PATHS  # kinds that this nginx was built with
    user: tuple[str, str] | None = None  # user and group of the workers, when root starts nginx
    open_files: int = MAX_OPEN_FILES  # that a worker may have
    lua_directory: str = ""  # holds resty/trimtab.lua; "" is the package's own


def _route(
    upstream: Upstream, group: str, peers: int, statuses: Sequence[int], *, balance: bool
) -> dict[str, Any]:
    cases = ["error", "timeout", *(f"http_{status}" for status in statuses)]
    if upstream.retry_non_idempotent:
        cases.append("non_idempotent")
    return {
        "name": upstream.name,
        "location": upstream.location,
        "group": group,
        # Who is never held is counted where the peer is picked; a hook less is time saved.
        "arrives": not balance or upstream.hold != "off",
        "connect_seconds": min(upstream.timeout_seconds, _CONNECT_SECONDS),
        "timeout_seconds": upstream.timeout_seconds,
        "next_upstream": cases,
        # With less, a try that has timed out would leave no time for another.
        "all_tries_seconds": 2 * upstream.timeout_seconds,
        "tries": min(peers, TRIES),
    }


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
    check(config, hook)

    # In one worker the counts are exact anyway.
    zone = stock or (balancer != "trimtab" and config.nginx.worker_processes != 1)
    if own:
        groups = stock_groups(config, weights)
    elif layout == "one_group":
        groups = [group(SHARED_GROUP, shared_servers(config), balancer, zone=zone)]
    else:
        groups = static_groups(config, balancer, zone=zone)
    routes = [
        _route(
            u, g["name"], len(g["servers"]), retry_statuses, balance=hook and balancer == "trimtab"
        )
        for u, g in zip(config.upstreams, cycle(groups), strict=False)
    ]
    pairs = sum(len(g["servers"]) for g in groups)
    wanted = {
        **values(config, groups, weights),
        "access_log": access_log,
        "catches_all": any(u.location == "/" for u in config.upstreams),
        "directory": str(directory),
        "hook": hook,
        "stock": stock,
        "lua_directory": lua_directory,
        "machine": machine,
        "policy_addresses": policy_addresses(config) if hook else [],
        "policy_tls": policy_tls(config) if hook else None,
        "policy_token": balancer_token if hook else None,
        "token": token_of_groups(config, groups, weights) if stock else "",
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
        name: templates.get_template(f"{name}.j2").render(wanted)
        for name in ("nginx.conf", "upstreams.conf")
    }
    if hook:
        files["trimtab.json"] = hook_json(config, balancer == "trimtab")
        if balancer_token:
            token = safe_text.FILTERS["quoted"](f"Bearer {balancer_token}")
            files[TOKEN_FILE] = f"grpc_set_header Authorization {token};\n"
    return files


def write(files: Mapping[str, str], directory: Path) -> list[str]:
    """Write the files, each atomically; returns the names changed. With a whole configuration the
    directory for its logs is made too. `TOKEN_FILE` is for its owner's eyes only.

    Raises TrimtabError when the directory cannot be written.
    """
    changed = []
    try:
        where = directory / "logs" if "nginx.conf" in files else directory
        where.mkdir(parents=True, exist_ok=True)
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
            try:
                with open(made, "w", encoding="utf-8", newline="\n") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
            changed.append(name)
    except OSError as error:
        written = f"written are only {', '.join(changed)}" if changed else "nothing was written"
        raise TrimtabError(
            f"cannot write {directory}: {error.strerror or error}; {written}"
        ) from None
    return changed
