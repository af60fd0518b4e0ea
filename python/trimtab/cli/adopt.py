"""What an existing nginx configuration says of upstreams: read with crossplane, never changed.

`read` gives `Found`: upstreams with their servers, the locations that pass to them, where
statistics are shown, and a note for everything that could not be understood or kept.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trimtab.cli.nginx_variables import expand, target_of, variables
from trimtab.config import split_address
from trimtab.errors import ConfigError, DependencyError

__all__ = ["Found", "Group", "Server", "read"]

Directive = Mapping[str, Any]

# Methods that tie a client to a server, and what picks servers by itself: weights on least_conn
# would break what they are for.
_TIES: Final = "ties clients to servers, which weights would break"
_PICKS: Final = "picks the servers by itself"
_OTHERS: Final = {
    **dict.fromkeys(
        ("ip_hash", "hash", "sticky", "session_sticky", "sticky_cookie_insert", "jvm_route"), _TIES
    ),
    **dict.fromkeys(("consistent_hash", "ntlm"), _TIES),
    **dict.fromkeys(("balancer_by_lua_block", "balancer_by_lua_file", "balancer_by_lua"), _PICKS),
}
_METHODS: Final = ("least_conn", "random", "least_time", "fair")
_KEPT: Final = ("zone", "keepalive", "keepalive_timeout", "keepalive_requests", "keepalive_time")
_OTHER_PASSES: Final = ("grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "memcached_pass")
_TIMES: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A `server` line of an upstream; the port is always there."""

    address: str
    weight: int = 1


@dataclass(slots=True, kw_only=True)
class Group:
    """An `upstream` block, where it stands, and what passes to it."""

    name: str
    where: str
    servers: list[Server] = field(default_factory=list)
    left_alone: str = ""  # why Trimtab must not balance it
    locations: list[str] = field(default_factory=list)
    timeout_seconds: float | None = None
    retry_non_idempotent: bool = False


@dataclass(slots=True, kw_only=True)
class Found:
    """What was read. `notes` are sentences for the operator; `vts_url` is "" without a page."""

    groups: dict[str, Group] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pid_file: str = ""
    vts_zone: bool = False
    vts_url: str = ""
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Scope:
    """What holds at a place: variables by name, and the directives that blocks inherit."""

    variables: Mapping[str, tuple[str, ...]]
    timeout: str = ""
    retry: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()


def read(path: Path) -> Found:
    """Read a configuration and all that it includes.

    Raises ConfigError when it is not there or makes no sense at all, DependencyError without
    crossplane.
    """
    try:
        import crossplane
    except ImportError:
        raise DependencyError(
            "reading an nginx configuration needs crossplane: pip install 'trimtab[init]'"
        ) from None
    if not path.is_file():
        raise ConfigError(f"there is no nginx configuration {path}")
    # Without its checks, as it drops directives of modules that it does not know.
    payload = crossplane.parse(str(path), check_ctx=False, check_args=False, catch_errors=True)
    found = Found()
    for error in payload["errors"]:
        said = re.sub(r"^\[Errno \d+\] ", "", error["error"])
        found.notes.append(f"{error['file']}: {said}")
    files = payload["config"]
    found.files = sorted(file["file"] for file in files)
    try:
        tree = _together(files, 0, frozenset(), found)
        _read(tree, path, found)
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: its blocks are nested too deeply") from None
    return found


def _together(
    files: list[Any], number: int, within: frozenset[int], found: Found
) -> list[Directive]:
    """A file's directives, each with its file, and what it includes in the place of the include.
    (crossplane's own `combine` names the last included file for what follows an include.)"""
    name = files[number]["file"]

    def expanded(directives: list[Directive]) -> Iterator[Directive]:
        for directive in directives:
            if "includes" in directive:
                for other in directive["includes"]:
                    if other in within or other == number:
                        found.notes.append(f"{name}:{directive['line']}: a circle of includes")
                    else:
                        yield from _together(files, other, within | {number}, found)
            elif "block" in directive:
                yield {**directive, "file": name, "block": list(expanded(directive["block"]))}
            else:
                yield {**directive, "file": name}

    return list(expanded(files[number]["parsed"]))


def _read(tree: list[Directive], path: Path, found: Found) -> None:
    for directive in tree:
        if directive["directive"] == "pid" and directive["args"]:
            found.pid_file = directive["args"][0]
    http = [d for top in tree if top["directive"] == "http" for d in top.get("block", [])]
    if not http:
        raise ConfigError(
            f"{path} has no http block" + "".join(f"\n  {note}" for note in found.notes)
        )
    for directive in http:
        if directive["directive"] == "upstream":
            _group(directive, found)
    _walk(http, _Scope(variables(http, {})), "", found)


def _where(directive: Directive) -> str:
    return f"{directive.get('file', '?')}:{directive['line']}"


def _group(directive: Directive, found: Found) -> None:
    name = directive["args"][0] if directive["args"] else ""
    group = Group(name=name, where=_where(directive))
    for inner in directive.get("block", []):
        kind, arguments = inner["directive"], inner["args"]
        if kind == "server":
            _server(inner, group, found)
        elif kind in _OTHERS:
            group.left_alone = f"{kind} {_OTHERS[kind]}"
        elif kind in _METHODS:
            if kind != "least_conn":
                found.notes.append(f"{_where(inner)}: {kind} becomes least_conn with weights")
        elif kind not in _KEPT and kind != "#":
            shown = " ".join((kind, *arguments)).strip()
            found.notes.append(f"{_where(inner)}: `{shown}` in upstream {name} is not kept")
    # nginx ignores the case of these names.
    found.groups[name.lower()] = group


def _server(directive: Directive, group: Group, found: Found) -> None:
    address, *parameters = directive["args"] or [""]
    where = f"{_where(directive)}: server {address}"
    weight = 1
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key == "weight" and value.isdigit() and 1 <= int(value) <= 65535:
            weight = int(value)
        elif key in ("backup", "down"):
            found.notes.append(f"{where} is `{key}` and is left out")
            return
        elif key == "service":
            found.notes.append(f"{where}: `{parameter}` (SRV records) is not known: left out")
            return
        elif key not in ("max_fails", "fail_timeout"):
            found.notes.append(f"{where}: `{parameter}` is not kept")
    try:
        split_address(address)
    except ValueError:
        with_port = f"{address}:80"
        try:
            split_address(with_port)
        except ValueError:
            found.notes.append(f"{where} is not an address that Trimtab knows")
            return
        address = with_port
    if any(s.address == address for s in group.servers):
        found.notes.append(f"{where} is there twice; once is kept")
        return
    group.servers.append(Server(address=address, weight=weight))


def _walk(block: list[Directive], scope: _Scope, location: str, found: Found) -> None:
    """Servers and locations; `location` is that of the block, "" above one."""
    values: dict[str, Any] = {}
    for directive in block:
        kind, arguments = directive["directive"], directive["args"]
        if kind == "proxy_read_timeout" and arguments:
            values["timeout"] = arguments[0]
        elif kind == "proxy_next_upstream":
            values["retry"] = tuple(arguments)
        elif kind == "listen" and arguments and "listen" not in values:
            values["listen"] = tuple(arguments)
    scope = _Scope(
        scope.variables,
        values.get("timeout", scope.timeout),
        values.get("retry", scope.retry),
        values.get("listen", scope.listen),
    )
    for directive in block:
        kind, arguments = directive["directive"], directive["args"]
        inner = directive.get("block", [])
        if kind == "proxy_pass" and arguments:
            _pass(directive, scope, location, found)
        elif kind in _OTHER_PASSES and arguments:
            name = re.sub(r"^\w+://", "", arguments[0])
            if name.lower() in found.groups:
                found.notes.append(
                    f"{_where(directive)}: {kind} to {name}: only proxy_pass is balanced"
                )
        elif kind == "vhost_traffic_status_zone":
            found.vts_zone = True
        elif kind == "vhost_traffic_status_display":
            found.vts_url = found.vts_url or _page(scope.listen, location)
        elif kind in ("server", "location", "if", "limit_except"):
            inside = _Scope(
                variables(inner, scope.variables), scope.timeout, scope.retry, scope.listen
            )
            where = location
            if kind == "location" and arguments:
                where = " ".join(arguments)
            _walk(inner, inside, where, found)


def _pass(directive: Directive, scope: _Scope, location: str, found: Found) -> None:
    target = directive["args"][0]
    where = f"{_where(directive)}: proxy_pass {target}"
    for whole in sorted(expand(target, scope.variables)):
        scheme, name = target_of(whole)
        if "$" in name:
            found.notes.append(f"{where}: where it goes is only known at run time")
            continue
        group = found.groups.get(name.lower())
        if group is None:
            found.notes.append(
                f"{where} goes to {name} without an upstream; give it one to have it balanced"
            )
            continue
        if scheme == "https":
            found.notes.append(f"{where}: TLS to the servers stays as it is")
        if location and location not in group.locations:
            group.locations.append(location)
        # Where several differ, the longest: what one of them allows is no failure.
        given = (group.timeout_seconds, _seconds(scope.timeout))
        group.timeout_seconds = max((t for t in given if t), default=None)
        group.retry_non_idempotent |= "non_idempotent" in scope.retry


def _seconds(text: str) -> float | None:
    """nginx's time; None for what is none."""
    parts = re.findall(r"([0-9]+)(ms|[smhd]|)", text)
    if not text or "".join(n + unit for n, unit in parts) != text.replace(" ", ""):
        return None
    return float(sum(int(n) * _TIMES[unit] for n, unit in parts))


def _page(listen: tuple[str, ...], location: str) -> str:
    """The JSON page of a display; "" where the location is no plain prefix."""
    address, *options = listen or ("80",)
    path = location.rpartition(" ")[2]
    if location.startswith("~") or not path.startswith("/"):
        return ""
    # A location for the very page has the format in it.
    whole = path if path.endswith("/format/json") else f"{path.rstrip('/')}/format/json"
    scheme = "https" if "ssl" in options else "http"
    if address.startswith("unix:"):
        return f"{scheme}://{address}:{whole}"
    host, _, port = address.rpartition(":") if ":" in address else ("", "", address)
    if not port.isdigit():
        host, port = address, "443" if scheme == "https" else "80"
    if host in ("", "*", "0.0.0.0", "[::]"):  # noqa: S104
        host = "127.0.0.1"
    return f"{scheme}://{host}:{port}{whole}"
