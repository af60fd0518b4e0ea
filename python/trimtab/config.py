"""The configuration file: TOML in, a checked `Config` out.

Every section is a frozen dataclass whose fields are its keys. `load` reports the first thing
wrong with file, key, and what is allowed; nothing else in the package reads TOML. The defaults
here are the documented ones.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from trimtab import checks
from trimtab.checks import is_loopback, split_address
from trimtab.errors import ConfigError
from trimtab.tables import (
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
    "State",
    "Stock",
    "Upstream",
    "is_loopback",
    "load",
    "parse",
    "split_address",
]

# The bounds of the gRPC messages (proto/trimtab/v1/policy.proto) hold for the configuration too.
MAX_UPSTREAMS: Final = 256
MAX_PEERS: Final = 4096
MAX_PAIRS: Final = 16384

# The proto's bound of a message; the largest report in bounds fits.
MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """[policy]: the policy server."""

    # Where balancers ask for weights and report: gRPC.
    listen: str = key(checks.address, default="127.0.0.1:18290")
    # Dashboard, /metrics, status and control calls: HTTP.
    admin_listen: str = key(checks.address, default="127.0.0.1:18291")
    # How often weights are computed, pulled by balancers, and statistics pushed.
    interval_seconds: float = key(number(0.05, 60), default=1.0)
    # How long a balancer uses weights without having heard from the policy server; then its static
    # weights. Long enough by default that a restart of the policy server goes unnoticed.
    time_to_live_seconds: float = key(number(0.2, 3600), default=10.0)
    # Where what was learned is kept; a relative one counts from where the command was started.
    state_directory: Path = key(checks.directory, default=Path("var/trimtab"))
    # Where the token of control calls (pin, drain, shadow) is: a file, or an environment variable
    # of the policy server. With neither, nothing can be changed over the admin address.
    token_file: Path | None = key(checks.file, default=None)
    token_variable: str | None = key(
        matching(checks.VARIABLE, "the name of an environment variable"), default=None
    )
    # The token that balancers must send with GetWeights and ReportStats: a file. `trimtab render`
    # and `up` write it into the nginx configuration, in a file of mode 0600. With none, whoever
    # reaches the gRPC address may ask and report.
    balancer_token_file: Path | None = key(checks.file, default=None)
    # TLS on the gRPC address: certificate (with what is between it and the authority) and key, PEM.
    tls_certificate: Path | None = key(checks.file, default=None)
    tls_key: Path | None = key(checks.file, default=None)
    # Mutual TLS: only balancers with a certificate of these authorities (PEM) get an answer.
    tls_client_ca: Path | None = key(checks.file, default=None)
    # Whether listen without TLS and admin_listen (which has none) may be reached from other
    # machines; refused otherwise, as tokens and figures would travel readable.
    plaintext_beyond_loopback: bool = key(boolean, default=False)
    # gRPC server reflection, for grpcurl and the like; needs trimtab[reflection].
    reflection: bool = key(boolean, default=False)
    # Larger gRPC messages are refused (RESOURCE_EXHAUSTED). The default, 8 MiB, is the most that
    # the protocol allows: a report of 16384 pairs. A report of 100 peers has about 60 kB.
    max_message_bytes: int = key(integer(65536, MAX_MESSAGE_BYTES), default=MAX_MESSAGE_BYTES)
    # gRPC calls under way on one connection; a balancer needs two.
    max_streams: int = key(integer(2, 10_000), default=128)
    # A silent gRPC connection is probed after this long, and closed 20 s later without an answer.
    keepalive_seconds: float = key(number(10, 7200), default=60.0)
    # A gRPC connection is closed, its calls answered, at this age; by default none is.
    max_connection_age_seconds: float | None = key(number(1, 2_592_000), default=None)
    # The log on standard error: lines for people, or a JSON object a line.
    log_format: str = key(one_of("text", "json"), default="text")
    # Where spans of control-loop steps and gRPC calls are sent, by OTLP over HTTP; needs
    # trimtab[otel]. By default nowhere.
    traces_url: str | None = key(checks.url, default=None)
    # Of gRPC calls, the share that is traced; steps always are.
    traces_ratio: float = key(number(0, 1), default=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """[nginx]: the balancer."""

    # "lua": the hook in nginx picks a peer per request. "stock": an nginx without Lua, by reloads.
    mode: str = key(one_of("lua", "stock"), default="lua")
    # Where clients come in.
    listen: tuple[str, ...] = key(checks.addresses, default=("127.0.0.1:18080",))
    # Status pages and the gRPC bridge of the Lua hook: keep it on loopback.
    internal_listen: str = key(checks.address, default="127.0.0.1:18081")
    # Of the rendered nginx; the hook counts over all of them.
    worker_processes: int | str = key(checks.workers, default=1)
    # The nginx that `trimtab up` starts and `trimtab render` checks the configuration with.
    binary: str = key(
        matching(checks.BINARY, "the name or path of an nginx binary"), default="nginx"
    )
    # Several policy servers (see [state]): the gRPC addresses to ask, in lua mode. By default that
    # of this file alone.
    policy_servers: tuple[str, ...] = key(checks.addresses, default=())
    # Name of this balancer in reports; stable over restarts.
    instance: str = key(
        matching(checks.NAME, "letters, digits, '_', '.' and '-'"), default_factory=checks.hostname
    )
    # For a policy server with TLS, in lua mode: the authorities (PEM) that its certificate must
    # come from (the certificate itself, when it is self-signed), and the name that it must have.
    policy_ca: Path | None = key(checks.file, default=None)
    policy_name: str = key(
        matching(checks.DNS_NAME, "a DNS name without wildcards"), default="localhost"
    )
    # With mutual TLS: certificate and key (PEM) that this balancer shows.
    policy_certificate: Path | None = key(checks.file, default=None)
    policy_key: Path | None = key(checks.file, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """[state]: several policy servers that share what they know; in lua mode, needs trimtab[redis].

    Without a url this server is alone, with its state in state_directory of [policy].
    """

    # "redis://HOST:PORT/DB", "rediss://…" (TLS) or "unix:///path?db=N".
    url: str | None = key(checks.redis_url, default=None)
    # A file with the password, instead of one in the url.
    password_file: Path | None = key(checks.file, default=None)
    # Of all names in Redis; the same at all servers of one group, and of no other.
    prefix: str = key(matching(checks.NAME, "letters, digits, '_', '.' and '-'"), default="trimtab")
    # After a crash of the leader another one leads within this time and a third of it.
    lease_seconds: float = key(number(0.3, 60), default=3.0)
    # What this server is called in the status of the others.
    name: str = key(
        matching(checks.NAME, "letters, digits, '_', '.' and '-'"), default_factory=checks.hostname
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """[stock]: an nginx without the Lua hook, steered by reloads; read in stock mode only.

    The files are by default those of `trimtab render`.
    """

    # Pages of nginx-module-vts, one for each nginx; that of internal_listen when there is none.
    vts_url: tuple[str, ...] = key(checks.urls, default=())
    # Authorities for https, instead of the system's.
    vts_ca_file: Path | None = key(checks.file, default=None)
    # What Trimtab owns: upstream groups, and the internal server.
    include_file: Path = key(checks.file, default=Path("var/render/upstreams.conf"))
    # The configuration that includes it, for `nginx -t`, and its pid file.
    main_file: Path = key(checks.file, default=Path("var/render/nginx.conf"))
    pid_file: Path = key(checks.file, default=Path("var/render/nginx.pid"))
    # What nginx multiplies the weights with; round_robin only where least_conn cannot be.
    method: str = key(one_of("least_conn", "round_robin"), default="least_conn")
    # For round_robin, which cannot see load: how loaded the servers are when it matters.
    load_ratio: float = key(number(0.05, 0.99), default=0.7)
    # Who reloads: we by a signal, a command of yours, or something that watches include_file.
    reload: str = key(one_of("signal", "command", "external"), default="signal")
    # The command, with reload = "command".
    reload_command: tuple[str, ...] = key(checks.argv, default=())
    # Instead of `nginx -t -c main_file`, for instance with sudo before it.
    check_command: tuple[str, ...] = key(checks.argv, default=())
    # The least time between two reloads: each cuts idle connections and costs tail latency.
    reload_min_seconds: float = key(number(0, 86400), default=30.0)
    # At most so many in an hour.
    reloads_per_hour: int = key(integer(1, 3600), default=60)
    # A reload is worth it when the share of a server changes by more than this. Estimates of a
    # steady server differ by some per cent from one reload to the next: with 0.1 there are fewer.
    material_ratio: float = key(number(0.01, 10), default=0.05)
    # How long new workers have to answer; after it the old configuration is restored.
    verify_seconds: float = key(number(0.1, 600), default=15.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """[learning]: how the brain learns."""

    # Whether profiles of weights are tried and learned; estimates and deadlines are there anyway.
    enabled: bool = key(boolean, default=True)
    # Length of the first observation, after which deadlines and states are fitted.
    observe_seconds: float = key(number(1, 86400), default=120.0)
    # One action is held, and one reward measured, for this long.
    decision_seconds: float = key(number(1, 86400), default=60.0)
    # Number of states. The default is 3^3: each of three classes at high, medium or low load. With
    # "bic" the Bayesian information criterion chooses it from what was observed, up to 27.
    clusters: int | str = key(checks.clusters, default=27)
    # Refit the states when more than this many observations lie outside 3 sigma of all of them.
    outlier_threshold: int = key(integer(1, 1_000_000), default=60)
    # Share of decisions that try a profile at random instead of the best known.
    exploration_ratio: float = key(number(0, 1), default=0.1)
    # A profile must win a switchback trial against neutral on live traffic to stay in force.
    prove: bool = key(boolean, default=True)
    # Share of decision windows that stay neutral under a promoted profile, so that its gain is
    # measured on: one in twenty, three minutes an hour. 0: none.
    holdback_ratio: float = key(number(0, 0.5), default=0.05)
    # Of those draws and of the fit of the states.
    seed: int = key(integer(0, 2**32 - 1), default=0)
    # What `trimtab train` wrote for these upstreams and peers: where learning starts from.
    trained: Path | None = key(checks.file, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """[[upstream.peer]]: one server."""

    # As nginx reaches it. The same address in several upstreams is one server.
    address: str = key(checks.address)
    # Requests that it serves at once, over all upstreams; estimated when absent.
    slots: int | None = key(integer(1, 65535), default=None)
    # What becomes of requests beyond the slots: they queue ("fifo"), or all share them ("ps", as
    # with threads or coroutines on a few cores). When absent, a queue until the policy server is
    # sure of the opposite. Matters where slots are given or estimated.
    discipline: str | None = key(one_of("fifo", "ps"), default=None)
    # Static weight: what holds when nothing was learned, or what was learned has expired.
    weight: int = key(integer(1, 65535), default=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """[[upstream]]: one request class and its servers."""

    # Of the nginx upstream, and of the class in metrics and reports.
    name: str = key(
        matching(checks.NAME, "letters, digits, '_', '.' and '-', as in an nginx upstream")
    )
    # Requests below this prefix belong to the class.
    location: str = key(
        matching(
            checks.LOCATION, 'a URI prefix, as "/api/", without spaces, quotes, ";", "{" or "$"'
        )
    )
    # p: larger is more urgent, and gives a tighter learned deadline.
    priority: float = key(number(1, 1000), default=1.0)
    # The response time to stay under. When absent it is learned: mean + (1 + 1/p) deviations.
    deadline_seconds: float | None = key(number(0.0001, 86400), default=None)
    # proxy_read_timeout and proxy_send_timeout.
    timeout_seconds: float = key(number(0.05, 86400), default=60.0)
    # In lua mode: a server that is silent for so long is given up for this request and another one
    # is tried, where one more try is allowed. By default timeout_seconds. It also bounds the time
    # between two parts of an answer, so it is not for classes that stream (docs/health.md).
    try_timeout_seconds: float | None = key(number(0.001, 86400), default=None)
    # Whether POST and the like may be tried again on another server (nginx's non_idempotent).
    retry_non_idempotent: bool = key(boolean, default=False)
    # In lua mode: whether requests that a server has caught when it fell silent are tried on
    # another one, once none of the last thousand waited as long for an answer (docs/health.md).
    retry_stalled: bool = key(boolean, default=True)
    # Whether requests wait in nginx until a server has room for them: where that is better, always
    # (where slots are known), never. In lua mode.
    hold: str = key(one_of("auto", "on", "off"), default="auto")
    # Requests of this class that may wait at once, over all workers; beyond: 503 with Retry-After.
    max_waiting: int = key(integer(0, 1_000_000), default=10_000)
    # The longest wait; what would wait longer is refused at once, with 503 and Retry-After. By
    # default timeout_seconds, which hardly any request reaches.
    max_wait_seconds: float | None = key(number(0.001, 86400), default=None)
    # A server is ejected after so many failures in a row (0: never) or at this error ratio (1:
    # never) while another peer does better, or when it has not answered for so long (0: never)
    # though requests wait there. docs/health.md says more of these keys, all of lua mode.
    eject_failures: int = key(integer(0, 1_000_000), default=3)
    eject_error_ratio: float = key(number(0.01, 1), default=0.5)
    eject_stall_seconds: float = key(number(0, 86400), default=0.1)
    # How long the first time; twice as long, up to the maximum, when it fails again soon after.
    eject_seconds: float = key(number(0.01, 86400), default=1.0)
    eject_max_seconds: float = key(number(0.01, 86400), default=60.0)
    # At most this share of the upstream's peers at once; of two or more one may always be.
    eject_max_ratio: float = key(number(0, 1), default=0.5)
    # A server that is new, or back, gets its whole weight only after so long (0: at once).
    slow_start_seconds: float = key(number(0, 86400), default=0.0)
    # A path that every server is asked for from time to time, beside the traffic; one that does not
    # answer with a status below 400 is ejected. Without it nobody is asked.
    check_path: str | None = key(
        matching(checks.CHECK_PATH, 'a path, as "/healthz", without spaces, quotes or ";"'),
        default=None,
    )
    # How often, how long an answer may take, and how many in a row eject a server or bring it back.
    check_interval_seconds: float = key(number(0.1, 86400), default=2.0)
    check_timeout_seconds: float = key(number(0.01, 3600), default=1.0)
    check_failures: int = key(integer(1, 1000), default=3)
    check_successes: int = key(integer(1, 1000), default=2)
    # Of the requests this share may be tried on another server, and so many a second beyond it;
    # when these are used up the first answer goes through.
    retry_ratio: float = key(number(0, 1), default=0.2)
    retries_per_second: float = key(number(0, 1_000_000), default=10.0)
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration file."""

    policy: Policy = field(default_factory=Policy)
    nginx: Nginx = field(default_factory=Nginx)
    state: State = field(default_factory=State)
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


def _check_reach(policy: Policy, path: str) -> None:
    """Nothing readable leaves the machine unless somebody said so."""
    if policy.plaintext_beyond_loopback:
        return
    if not is_loopback(policy.listen) and policy.tls_certificate is None:
        raise ConfigError(
            f"{path}: listen in [policy] is {policy.listen!r}, beyond loopback and without TLS; "
            "set tls_certificate and tls_key, or plaintext_beyond_loopback = true where the "
            "network is trusted"
        )
    if not is_loopback(policy.admin_listen):
        raise ConfigError(
            f"{path}: admin_listen in [policy] is {policy.admin_listen!r}, beyond loopback, and "
            "has no TLS; keep it on loopback or a unix socket with a proxy or ssh in front, or "
            "set plaintext_beyond_loopback = true where the network is trusted"
        )


def _check_whole(config: Config) -> None:
    """What holds between sections."""
    path = config.path
    for table, section_name, one, other in (
        (config.policy, "policy", "tls_certificate", "tls_key"),
        (config.nginx, "nginx", "policy_certificate", "policy_key"),
    ):
        if (getattr(table, one) is None) != (getattr(table, other) is None):
            raise ConfigError(
                f"{path}: {one} and {other} in [{section_name}] go together; give both or neither"
            )
    if config.policy.tls_client_ca and not config.policy.tls_certificate:
        raise ConfigError(f"{path}: tls_client_ca in [policy] needs tls_certificate and tls_key")
    _check_reach(config.policy, path)
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
    known: dict[tuple[str, str], int | str | None] = {}
    for upstream in config.upstreams:
        for peer in upstream.peers:
            for what in ("slots", "discipline"):
                value = getattr(peer, what)
                before = known.setdefault((peer.address, what), value)
                if before != value:
                    raise ConfigError(
                        f"{path}: the peer {peer.address!r} has {what} = {before} in one upstream "
                        f"and {value} in {upstream.name!r}; both are the server's, give the same "
                        "everywhere"
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
    if config.state.url is not None:
        if config.nginx.mode != "lua":
            raise ConfigError(f'{path}: url in [state] is for mode = "lua" in [nginx] only')
        if config.policy.time_to_live_seconds < 3 * config.state.lease_seconds:
            raise ConfigError(
                f"{path}: lease_seconds in [state] is {config.state.lease_seconds:g}; it must be "
                "at most a third of time_to_live_seconds in [policy] "
                f"({config.policy.time_to_live_seconds:g}), or weights expire before another "
                "server leads"
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
        "state": State,
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
