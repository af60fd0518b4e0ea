"""The configuration file: TOML in, a checked `Config` out.

Every section is a frozen dataclass whose fields are its keys. `load` reports the first thing
wrong with file, key, and what is allowed; nothing else in the package reads TOML. The defaults
here are the documented ones.
"""

import ipaddress
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from trimtab.errors import ConfigError
from trimtab.tables import (
    MAX_NAME_BYTES,
    boolean,
    integer,
    key,
    matching,
    number,
    one_of,
    section,
    tables,
)

__all__ = [
    "Config",
    "Learning",
    "Nginx",
    "Peer",
    "Policy",
    "Stock",
    "Upstream",
    "load",
    "parse",
    "split_address",
]

# The bounds of the gRPC messages (proto/trimtab/v1/policy.proto) hold for the configuration too.
MAX_UPSTREAMS: Final = 256
MAX_PEERS: Final = 4096
MAX_PAIRS: Final = 16384

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_LOCATION: Final = re.compile(r"/[A-Za-z0-9_.~%/+:@,=-]*\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,62}\.?)*\Z")
_UNIX: Final = re.compile(r"unix:(/[A-Za-z0-9_.,+@=-]+)+\Z")
_BINARY: Final = re.compile(r"[A-Za-z0-9_./+-]+\Z")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT" or "[IPv6]:PORT"; ("unix:/path", 0) for a unix socket.

    Raises ValueError with what is allowed.
    """
    meaning = '"HOST:PORT", "[IPv6]:PORT" or "unix:/absolute/path"'
    if len(address) > MAX_NAME_BYTES:
        raise ValueError(meaning)
    if address.startswith("unix:"):
        if not _UNIX.match(address):
            raise ValueError(meaning)
        return address, 0
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(meaning)
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(meaning) from None
    elif not _HOST.match(host):
        raise ValueError(meaning)
    return host, int(port)


def _address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError('"HOST:PORT" or "unix:/absolute/path"')
    split_address(value)
    return value


def _addresses(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError('a list of addresses, as ["127.0.0.1:18080"]')
    return tuple(_address(v) for v in value)


def _workers(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    try:
        return integer(1, 512)(value)
    except ValueError:
        raise ValueError('a whole number from 1 to 512, or "auto"') from None


def _directory(value: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a directory")
    return Path(value)


def _file(value: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value or value.endswith("/"):
        raise ValueError("a file")
    return Path(value)


def _urls(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(
        isinstance(v, str) and re.match(r"https?://\S+\Z", v) for v in values
    ):
        raise ValueError('a URL, as "http://127.0.0.1:18081/status/format/json", or a list of them')
    if len(set(values)) < len(values):
        raise ValueError("a list of different URLs")
    return tuple(values)


def _argv(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and "\0" not in v for v in value):
        raise ValueError('a list of words, as ["sudo", "-n", "/usr/sbin/nginx", "-s", "reload"]')
    return tuple(value)


def _hostname() -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:64] or "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """[policy]: the policy server."""

    listen: str = key(_address, default="127.0.0.1:18290")
    admin_listen: str = key(_address, default="127.0.0.1:18291")
    interval_seconds: float = key(number(0.05, 60), default=1.0)
    # Ten intervals by default: long enough that a restart of the policy server goes unnoticed.
    time_to_live_seconds: float = key(number(0.2, 3600), default=10.0)
    state_directory: Path = key(_directory, default=Path("var/trimtab"))
    # Where the token of control calls (pin, drain, shadow) is: a file, or an environment variable
    # of the policy server. With neither, nothing can be changed over the admin address.
    token_file: Path | None = key(_file, default=None)
    token_variable: str | None = key(
        matching(_VARIABLE, "the name of an environment variable"), default=None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """[nginx]: the balancer."""

    mode: str = key(one_of("lua", "stock"), default="lua")
    listen: tuple[str, ...] = key(_addresses, default=("127.0.0.1:18080",))
    # Status pages and the gRPC bridge of the Lua hook: keep it on loopback.
    internal_listen: str = key(_address, default="127.0.0.1:18081")
    worker_processes: int | str = key(_workers, default=1)
    binary: str = key(matching(_BINARY, "the name or path of an nginx binary"), default="nginx")
    # Name of this balancer in reports; stable over restarts.
    instance: str = key(
        matching(_NAME, "letters, digits, '_', '.' and '-'"), default_factory=_hostname
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """[stock]: an nginx without the Lua hook, steered by reloads; read in stock mode only.

    The files are by default those of `trimtab render`.
    """

    # Pages of nginx-module-vts, one for each nginx; that of internal_listen when there is none.
    vts_url: tuple[str, ...] = key(_urls, default=())
    # Authorities for https, instead of the system's.
    vts_ca_file: Path | None = key(_file, default=None)
    # What Trimtab owns: upstream groups, and the internal server.
    include_file: Path = key(_file, default=Path("var/render/upstreams.conf"))
    # The configuration that includes it, for `nginx -t`, and its pid file.
    main_file: Path = key(_file, default=Path("var/render/nginx.conf"))
    pid_file: Path = key(_file, default=Path("var/render/nginx.pid"))
    method: str = key(one_of("least_conn", "round_robin"), default="least_conn")
    # For round_robin, which cannot see load: how loaded the servers are when it matters.
    load_ratio: float = key(number(0.05, 0.99), default=0.7)
    # Who reloads: we by a signal, a command of yours, or something that watches include_file.
    reload: str = key(one_of("signal", "command", "external"), default="signal")
    reload_command: tuple[str, ...] = key(_argv, default=())
    # Instead of `nginx -t -c main_file`, for instance with sudo before it.
    check_command: tuple[str, ...] = key(_argv, default=())
    # Each reload cuts idle connections and costs tail latency.
    reload_min_seconds: float = key(number(0, 86400), default=30.0)
    reloads_per_hour: int = key(integer(1, 3600), default=60)
    # A reload is worth it when the share of a server changes by more than this.
    material_ratio: float = key(number(0.01, 10), default=0.05)
    # For new workers to answer; after it the old configuration is restored.
    verify_seconds: float = key(number(0.1, 600), default=15.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """[learning]: how the brain learns."""

    enabled: bool = key(boolean, default=True)
    # Length of the first observation, after which deadlines and states are fitted.
    observe_seconds: float = key(number(1, 86400), default=120.0)
    # One action is held, and one reward measured, for this long.
    decision_seconds: float = key(number(1, 86400), default=60.0)
    # K = 3^3: each of three classes at high, medium or low load.
    clusters: int = key(integer(1, 256), default=27)
    # Refit the states when more than this many observations lie outside 3 sigma of all of them.
    outlier_threshold: int = key(integer(1, 1_000_000), default=60)
    exploration_ratio: float = key(number(0, 1), default=0.1)
    # A profile must win a switchback trial against neutral on live traffic to stay in force.
    prove: bool = key(boolean, default=True)
    # Share of decision windows that stay neutral under a promoted profile, so that its gain is
    # measured on: one in twenty, three minutes an hour. 0: none.
    holdback_ratio: float = key(number(0, 0.5), default=0.05)
    seed: int = key(integer(0, 2**32 - 1), default=0)
    # What `trimtab train` wrote for these upstreams and peers: where learning starts from.
    trained: Path | None = key(_file, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """[[upstream.peer]]: one server."""

    address: str = key(_address)
    slots: int | None = key(integer(1, 65535), default=None)
    weight: int = key(integer(1, 65535), default=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """[[upstream]]: one request class and its servers."""

    name: str = key(matching(_NAME, "letters, digits, '_', '.' and '-', as in an nginx upstream"))
    location: str = key(
        matching(_LOCATION, 'a URI prefix, as "/api/", without spaces, quotes, ";", "{" or "$"')
    )
    priority: float = key(number(1, 1000), default=1.0)
    deadline_seconds: float | None = key(number(0.0001, 86400), default=None)
    # proxy_read_timeout and proxy_send_timeout.
    timeout_seconds: float = key(number(0.05, 86400), default=60.0)
    # Whether POST and the like may be tried again on another server (nginx's non_idempotent).
    retry_non_idempotent: bool = key(boolean, default=False)
    # Whether requests wait in nginx until a server has room for them: where that is better, always
    # (where slots are known), never. In lua mode.
    hold: str = key(one_of("auto", "on", "off"), default="off")
    # Requests of this class that may wait at once, over all workers; beyond: 503 with Retry-After.
    max_waiting: int = key(integer(0, 1_000_000), default=10_000)
    # The longest wait; what would wait longer is refused at once, with 503 and Retry-After. By
    # default timeout_seconds, which hardly any request reaches.
    max_wait_seconds: float | None = key(number(0.001, 86400), default=None)
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration file."""

    policy: Policy = field(default_factory=Policy)
    nginx: Nginx = field(default_factory=Nginx)
    stock: Stock = field(default_factory=Stock)
    learning: Learning = field(default_factory=Learning)
    upstreams: tuple[Upstream, ...] = ()
    path: str = "<defaults>"


def _upstream(table: Any, position: int, path: str) -> Upstream:
    name = table.get("name", position) if isinstance(table, Mapping) else position
    where = f"[[upstream]] {name!r}"
    values = section(Upstream, table, where, path, ignore="peer")
    peers = [
        Peer(**section(Peer, entry, f"[[upstream.peer]] {n} of {where}", path))
        for n, entry in enumerate(tables(table.get("peer", []), "[[upstream.peer]]", path), 1)
    ]
    if not peers:
        raise ConfigError(f"{path}: {where} has no [[upstream.peer]]")
    if len(peers) > MAX_PEERS:
        raise ConfigError(f"{path}: {where} has {len(peers)} peers; at most {MAX_PEERS}")
    seen = set()
    for peer in peers:
        if peer.address in seen:
            raise ConfigError(f"{path}: {where} names the peer {peer.address!r} twice")
        seen.add(peer.address)
    return Upstream(**values, peers=tuple(peers))


def _check_whole(config: Config) -> None:
    """What holds between sections."""
    path = config.path
    for kind, values in (
        ("name", [u.name for u in config.upstreams]),
        ("location", [u.location for u in config.upstreams]),
    ):
        for value in values:
            if values.count(value) > 1:
                raise ConfigError(f"{path}: two [[upstream]] have the {kind} {value!r}")
    pairs = sum(len(u.peers) for u in config.upstreams)
    if len(config.upstreams) > MAX_UPSTREAMS or pairs > MAX_PAIRS:
        raise ConfigError(
            f"{path}: {len(config.upstreams)} upstreams with {pairs} peers in all; at most "
            f"{MAX_UPSTREAMS} and {MAX_PAIRS}"
        )
    slots: dict[str, int | None] = {}
    for upstream in config.upstreams:
        for peer in upstream.peers:
            if slots.setdefault(peer.address, peer.slots) != peer.slots:
                raise ConfigError(
                    f"{path}: the peer {peer.address!r} has slots = {slots[peer.address]} in one "
                    f"upstream and {peer.slots} in {upstream.name!r}; slots are the server's, give "
                    "the same everywhere"
                )
    if (config.stock.reload == "command") != bool(config.stock.reload_command):
        raise ConfigError(
            f'{path}: reload = "command" and reload_command in [stock] go together; give both '
            "or neither"
        )
    if config.policy.token_file and config.policy.token_variable:
        raise ConfigError(
            f"{path}: token_file and token_variable in [policy] are both set; keep one of them"
        )
    if config.policy.time_to_live_seconds < 2 * config.policy.interval_seconds:
        raise ConfigError(
            f"{path}: time_to_live_seconds in [policy] is {config.policy.time_to_live_seconds:g}; "
            "it must be at least twice interval_seconds "
            f"({config.policy.interval_seconds:g}), or weights expire between two refreshes"
        )


def parse(text: str, path: str = "<text>") -> Config:
    """The configuration in a TOML text. Raises ConfigError, which names `path`, key and remedy."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    sections: dict[str, Any] = {
        "policy": Policy,
        "nginx": Nginx,
        "stock": Stock,
        "learning": Learning,
    }
    for name in data:
        if name not in sections and name != "upstream":
            close = get_close_matches(name, [*sections, "upstream"], 1)
            hint = f" (did you mean [{close[0]}]?)" if close else ""
            allowed = ", ".join(f"[{s}]" for s in sections) + ", [[upstream]]"
            raise ConfigError(f"{path}: unknown section {name!r}{hint}; allowed: {allowed}")
    upstreams = tables(data.get("upstream", []), "[[upstream]]", path)
    config = Config(
        **{n: c(**section(c, data.get(n, {}), f"[{n}]", path)) for n, c in sections.items()},
        upstreams=tuple(_upstream(t, n, path) for n, t in enumerate(upstreams, 1)),
        path=path,
    )
    if not config.upstreams:
        raise ConfigError(f"{path}: there is no [[upstream]]; name at least one and its peers")
    _check_whole(config)
    return config


def load(path: str | Path) -> Config:
    """The configuration in a TOML file. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `trimtab init` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return parse(text, str(path))
