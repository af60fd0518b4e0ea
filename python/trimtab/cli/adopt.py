"""What an existing nginx configuration says of upstreams: read with crossplane, never changed.

`read` gives `Found`: upstreams with their servers, the locations that pass to them, where
statistics are shown, and a note for everything that could not be understood or kept.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trimtab.config import split_address
from trimtab.errors import ConfigError, DependencyError

__all__ = ["Found", "Group", "Server", "read"]

Directive = Mapping[str, Any]

# Methods that tie a client to a server: weights on least_conn would break what they are for.
_STICKY: Final = ("ip_hash", "hash", "sticky", "sticky_cookie_insert", "jvm_route")
_METHODS: Final = ("least_conn", "random", "least_time", "fair")
_KEPT: Final = ("zone", "keepalive", "keepalive_timeout", "keepalive_requests", "keepalive_time")
_OTHER_PASSES: Final = ("grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "memcached_pass")
_TIMES: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}
_MOST_LOOPS: Final = 8  # `set $a $b` may nest this deep; deeper is a loop


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
    sticky: str = ""
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
    listen: str = ""


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
    payload = crossplane.parse(
        str(path), combine=True, check_ctx=False, check_args=False, catch_errors=True
    )
    found = Found()
    for error in payload["errors"]:
        found.notes.append(f"{error['file']}: {error['error']}")
    if not payload["config"]:
        raise ConfigError(f"{path} cannot be read: {'; '.join(found.notes)}")
    tree: list[Directive] = payload["config"][0]["parsed"]
    found.files = sorted({d["file"] for d in _all(tree) if "file" in d} | {str(path)})
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
    _walk(http, _Scope(_variables(http, {})), "", found)
    return found


def _all(tree: list[Directive]) -> Iterator[Directive]:
    for directive in tree:
        yield directive
        yield from _all(directive.get("block", []))


def _where(directive: Directive) -> str:
    return f"{directive.get('file', '?')}:{directive['line']}"


def _group(directive: Directive, found: Found) -> None:
    name = directive["args"][0] if directive["args"] else ""
    group = Group(name=name, where=_where(directive))
    for inner in directive.get("block", []):
        kind, arguments = inner["directive"], inner["args"]
        if kind == "server":
            _server(inner, group, found)
        elif kind in _STICKY:
            group.sticky = kind
        elif kind in _METHODS:
            if kind != "least_conn":
                found.notes.append(f"{_where(inner)}: {kind} becomes least_conn with weights")
        elif kind not in _KEPT and kind != "#":
            shown = " ".join((kind, *arguments))
            found.notes.append(f"{_where(inner)}: `{shown}` in upstream {name} is not kept")
    found.groups[name] = group


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


def _variables(
    block: list[Directive], outer: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The variables that `set`, `map`, `geo` and `split_clients` make here, with all values."""
    variables = dict(outer)
    for directive in block:
        kind, arguments = directive["directive"], directive["args"]
        if kind == "set" and len(arguments) == 2:
            variables[arguments[0]] = (*variables.get(arguments[0], ()), arguments[1])
        elif kind in ("map", "geo", "split_clients") and arguments:
            inner = directive.get("block", [])
            values = (d["args"][-1] for d in inner if d["args"])
            variables[arguments[-1]] = tuple(dict.fromkeys(values))
        elif kind == "if":
            variables = _variables(directive.get("block", []), variables)
    return variables


def _expand(text: str, variables: Mapping[str, tuple[str, ...]], depth: int = 0) -> set[str]:
    """All that a text may become; what keeps a `$` is not known."""
    match = re.search(r"\$\{(\w+)\}|\$(\w+)", text)
    if match is None or depth > _MOST_LOOPS:
        return {text}
    values = variables.get(f"${match[1] or match[2]}")
    if values is None:
        return {text}
    return {
        whole
        for value in values
        for whole in _expand(
            text[: match.start()] + value + text[match.end() :], variables, depth + 1
        )
    }


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
            values["listen"] = arguments[0]
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
            if name in found.groups:
                found.notes.append(
                    f"{_where(directive)}: {kind} to {name}: only proxy_pass is balanced"
                )
        elif kind == "vhost_traffic_status_zone":
            found.vts_zone = True
        elif kind == "vhost_traffic_status_display":
            found.vts_url = found.vts_url or _page(scope.listen, location)
        elif kind in ("server", "location", "if", "limit_except"):
            inside = _Scope(
                _variables(inner, scope.variables), scope.timeout, scope.retry, scope.listen
            )
            where = location
            if kind == "location" and arguments:
                where = " ".join(arguments)
            _walk(inner, inside, where, found)


def _pass(directive: Directive, scope: _Scope, location: str, found: Found) -> None:
    target = directive["args"][0]
    where = f"{_where(directive)}: proxy_pass {target}"
    for whole in sorted(_expand(target, scope.variables)):
        name = re.sub(r"^https?://", "", whole).partition("/")[0]
        if "$" in name:
            found.notes.append(f"{where}: where it goes is only known at run time")
            continue
        group = found.groups.get(name)
        if group is None:
            found.notes.append(
                f"{where} goes to {name} without an upstream; give it one to have it balanced"
            )
            continue
        if whole.startswith("https://"):
            found.notes.append(f"{where}: TLS to the servers stays as it is")
        if location and location not in group.locations:
            group.locations.append(location)
        group.timeout_seconds = _seconds(scope.timeout) or group.timeout_seconds
        group.retry_non_idempotent |= "non_idempotent" in scope.retry


def _seconds(text: str) -> float | None:
    """nginx's time; None for what is none."""
    parts = re.findall(r"([0-9]+)(ms|[smhd]|)", text)
    if not text or "".join(n + unit for n, unit in parts) != text.replace(" ", ""):
        return None
    return float(sum(int(n) * _TIMES[unit] for n, unit in parts))


def _page(listen: str, location: str) -> str:
    """The JSON page of a display; "" where the location is no plain prefix."""
    host, _, port = listen.rpartition(":") if ":" in listen else ("", "", listen)
    if not port.isdigit():
        host, port = listen, "80"
    if host in ("", "*", "0.0.0.0", "[::]") or listen.startswith("unix:"):  # noqa: S104
        host = "127.0.0.1"
    path = location.rpartition(" ")[2]
    if location.startswith("~") or not path.startswith("/"):
        return ""
    # A location for the very page has the format in it.
    whole = path if path.endswith("/format/json") else f"{path.rstrip('/')}/format/json"
    return f"http://{host}:{port or '80'}{whole}"
