"""`trimtab init`: write a configuration: a commented start, or one for an existing nginx."""

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Final

from trimtab import config
from trimtab.cli import adopt
from trimtab.cli.adopt import Found, Group
from trimtab.errors import ConfigError, TrimtabError

__all__ = ["add_arguments", "run", "starter"]

_LOCATION: Final = re.compile(r"/[A-Za-z0-9_.~%/+:@,=-]*\Z")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="an nginx.conf to adopt: it is read with all that it includes, and not changed",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("trimtab.toml"),
        metavar="FILE",
        help="the TOML file to write (%(default)s)",
    )
    parser.add_argument(
        "--include",
        type=Path,
        metavar="FILE",
        help="with --from: the upstream file that nginx is to include (upstreams.conf beside it)",
    )
    parser.epilog = "A file that exists is never overwritten."


def run(arguments: argparse.Namespace) -> int:
    """Write the files. Raises ConfigError when one exists or nothing can be adopted."""
    output: Path = arguments.output
    if arguments.source is None:
        if arguments.include:
            raise ConfigError("--include goes with --from")
        _new(output, starter())
        print(f"wrote {output}; name your servers in it, then: trimtab check-config {output}")
        return 0
    include = (arguments.include or output.with_name("upstreams.conf")).absolute()
    for path in (output, include):
        if path.exists():
            raise ConfigError(f"{path} exists and is left as it is; move it away or name another")
    found = adopt.read(arguments.source)
    groups = _usable(found)
    _report(found, groups)
    if not groups:
        raise ConfigError(f"{arguments.source} has no upstream that Trimtab can balance")
    text = _adopted(found, groups, arguments.source.absolute(), include)
    checked = config.parse(text, str(output))
    from trimtab.actuators.templates import include_line
    from trimtab.actuators.upstreams_conf import render_upstreams

    upstreams, _ = render_upstreams(checked)
    line = include_line(include)
    _new(output, text)
    _new(include, upstreams)
    print(f"\nwrote {output} and {include}\n\nto do, in your own files:")
    if not found.vts_zone:
        print(
            "  * load nginx-module-vts, and add to the http block:\n"
            "        vhost_traffic_status_zone shared:vhost_traffic_status:8m;\n"
            "        vhost_traffic_status_histogram_buckets 0.001 0.002 0.004 0.008 0.016 0.032 "
            "0.064 0.128 0.256 0.512 1 2 4 8 16 32;"
        )
    for group in groups:
        print(f"  * remove `upstream {group.name}` at {group.where}")
    print(f"  * add to the http block:  {line}")
    print("  * have answers of failing servers tried elsewhere, in the locations above:")
    print("        proxy_next_upstream error timeout http_500 http_502 http_503 http_504;")
    print(f"then: nginx -t && trimtab apply --config {shlex.quote(str(output))}")
    return 0


def _new(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists and is left as it is; move it away or name another"
        ) from None
    except OSError as error:
        raise TrimtabError(f"cannot write {path}: {error.strerror}") from None


def _usable(found: Found) -> list[Group]:
    """The groups that Trimtab can balance; a note for each other one."""
    usable = []
    for group in found.groups.values():
        why = ""
        if not re.match(r"[A-Za-z_][A-Za-z0-9_.-]*\Z", group.name):
            why = "Trimtab knows only names of letters, digits, '_', '.' and '-'"
        elif group.left_alone:
            why = group.left_alone
        elif not group.servers:
            why = "it has no server that Trimtab could use"
        elif not group.locations:
            why = "no proxy_pass goes to it"
        if why:
            found.notes.append(f"{group.where}: upstream {group.name} is left alone: {why}")
        else:
            usable.append(group)
    return usable


def _report(found: Found, groups: list[Group]) -> None:
    number = len(found.files)
    print(f"read {number} file{'s' if number > 1 else ''}: {', '.join(found.files)}")
    for group in groups:
        print(f"upstream {group.name}  ({group.where})")
        print(f"    locations  {', '.join(group.locations)}")
        for server in group.servers:
            print(f"    server     {server.address}  weight {server.weight}")
    if found.vts_url:
        print(f"statistics at {found.vts_url}")
    if found.notes:
        print("not understood, or not kept:")
        for note in dict.fromkeys(found.notes):
            print(f"    {note}")


def _location(group: Group, taken: set[str]) -> str:
    """A location that the configuration takes: the first plain one, else a name for it."""
    for location in group.locations:
        plain = location.rpartition(" ")[2]
        if _LOCATION.match(plain) and plain not in taken and not location.startswith("~"):
            return plain
    return f"/@{group.name}"


def _adopted(found: Found, groups: list[Group], source: Path, include: Path) -> str:
    quote = json.dumps
    lines = [
        f"# Written by trimtab init from {source}.",
        "[nginx]",
        'mode = "stock"',
        "# Who asks for statistics and generations; nobody else may listen there.",
        'internal_listen = "127.0.0.1:18081"',
        "",
        "[stock]",
        f"include_file = {quote(str(include))}",
        f"main_file = {quote(str(source))}",
        f"pid_file = {quote(_pid_file(found))}",
    ]
    if found.vts_url:
        lines.append(f"vts_url = {quote(found.vts_url)}")
    taken: set[str] = set()
    for group in groups:
        location = _location(group, taken)
        taken.add(location)
        lines += ["", "[[upstream]]", f"name = {quote(group.name)}"]
        shown = ", ".join(re.sub(r"[^ -~]", "?", place) for place in group.locations)
        lines += [f"# serves {shown}", f"location = {quote(location)}"]
        lines.append("# 1 or more; the larger, the more urgent")
        lines.append("priority = 1")
        if group.timeout_seconds and 0.05 <= group.timeout_seconds <= 86400:
            lines.append(f"timeout_seconds = {group.timeout_seconds:g}")
        if group.retry_non_idempotent:
            lines.append("retry_non_idempotent = true")
        for server in group.servers:
            lines += ["[[upstream.peer]]", f"address = {quote(server.address)}"]
            if server.weight != 1:
                lines.append(f"weight = {server.weight}")
    return "\n".join(lines) + "\n"


def _pid_file(found: Found) -> str:
    """As configured, or as nginx was built; a relative one is below its prefix."""
    from trimtab.actuators import nginx_binary
    from trimtab.errors import DependencyError

    given, prefix = found.pid_file, "/usr/share/nginx"
    try:
        installation = nginx_binary.find("nginx")
    except DependencyError:
        given = given or "/run/nginx.pid"
    else:
        given = given or installation.argument("--pid-path") or "logs/nginx.pid"
        prefix = installation.argument("--prefix") or "/usr/local/nginx"
    return str(Path(prefix) / given)


def starter() -> str:
    """A configuration to begin with: the needed keys, and the others as comments with defaults."""
    return _STARTER


_STARTER: Final = """\
# Trimtab's configuration. Keys that are commented out show their defaults.

[policy]
# Where nginx asks for weights (gRPC), and where the dashboard and metrics are; or "unix:/path".
# listen = "127.0.0.1:18290"
# admin_listen = "127.0.0.1:18291"
# How often statistics are read and weights decided, and how long weights hold without news.
# interval_seconds = 1.0
# time_to_live_seconds = 10.0
# What was learned survives restarts here.
# state_directory = "var/trimtab"
# The token for pins and drains: a file, or the name of an environment variable.
# token_file = "/etc/trimtab/token"
# token_variable = "TRIMTAB_TOKEN"
# The token that balancers show, TLS and mutual TLS for them (docs/security.md).
# balancer_token_file = "/etc/trimtab/balancer-token"
# tls_certificate = "/etc/trimtab/server.pem"
# tls_key = "/etc/trimtab/server.key"
# tls_client_ca = "/etc/trimtab/balancers.pem"
# plaintext_beyond_loopback = false
# Limits of gRPC, and the format of the log: "text" or "json".
# reflection = false
# max_message_bytes = 8388608
# max_streams = 128
# keepalive_seconds = 60
# max_connection_age_seconds = 3600
# log_format = "text"
# Traces of the control loop and of gRPC calls, to an OpenTelemetry collector.
# traces_url = "http://127.0.0.1:4318/v1/traces"
# traces_ratio = 0.01

[nginx]
# "lua": an nginx with the Lua module, rendered by Trimtab. "stock": any nginx with
# nginx-module-vts, steered by reloads.
# mode = "lua"
# listen = ["127.0.0.1:18080"]
# Status pages; keep it on loopback.
# internal_listen = "127.0.0.1:18081"
# worker_processes = 1
# binary = "nginx"
# Its name in reports; the host's when absent.
# instance = "edge-1"
# For a policy server with TLS: its authority and name, and with mutual TLS what nginx shows.
# policy_ca = "/etc/trimtab/ca.pem"
# policy_name = "localhost"
# policy_certificate = "/etc/trimtab/nginx.pem"
# policy_key = "/etc/trimtab/nginx.key"
# Several policy servers to ask (docs/high-availability.md); that of this file when absent.
# policy_servers = ["10.0.0.5:18290", "10.0.0.6:18290"]

[state]
# Where several policy servers share what they know: Redis. This one is alone when absent. By `name`
# it tells the others what it is called; the host's name when absent.
# url = "redis://127.0.0.1:6379/0"
# password_file = "/etc/trimtab/redis-password"
# prefix = "trimtab"
# lease_seconds = 3

[stock]
# Read in stock mode only. Statistics; those of internal_listen when absent.
# vts_url = "http://127.0.0.1:18081/status/format/json"
# vts_ca_file = "/etc/ssl/own.pem"
# The file that Trimtab owns, the configuration that includes it, and nginx's pid file.
# include_file = "var/render/upstreams.conf"
# main_file = "var/render/nginx.conf"
# pid_file = "var/render/nginx.pid"
# method = "least_conn"
# For round_robin: how loaded the servers are when it matters.
# load_ratio = 0.7
# "signal", "command" (then reload_command), or "external" (something watches include_file).
# reload = "signal"
# reload_command = []
# check_command = []
# Limits on reloads, and the change of a share that is worth one.
# reload_min_seconds = 30
# reloads_per_hour = 60
# material_ratio = 0.05
# verify_seconds = 15

[learning]
# enabled = true
# observe_seconds = 120
# decision_seconds = 60
# States at most, or "bic" to have their number chosen from what was observed.
# clusters = 27
# outlier_threshold = 60
# exploration_ratio = 0.1
# A profile must beat neutral in a trial on live traffic; then this share of windows stays neutral.
# prove = true
# holdback_ratio = 0.05
# seed = 0
# What `trimtab train` wrote for these upstreams and peers: where learning starts from.
# trained = "trained.json"

# One [[upstream]] for each class of requests; the same servers may stand in several.
[[upstream]]
name = "reads"
location = "/"
# 1 or more; the larger, the more urgent.
priority = 1
# The response time to stay under; learned when absent.
# deadline_seconds = 0.150
# timeout_seconds = 60
# Lua mode: when another server is tried; not for answers that stream (timeout_seconds when absent).
# try_timeout_seconds = 1
# Whether POST and the like may be tried again on another server.
# retry_non_idempotent = false
# Lua mode: whether what a silent server has caught is tried on another one.
# retry_stalled = true
# Lua mode: whether requests wait in nginx until a server has room ("auto": where that is better),
# how many may, and how long (timeout_seconds when absent).
# hold = "auto"
# max_waiting = 10000
# max_wait_seconds = 60
# Lua mode: when a server is left out, for how long, and how many at most (docs/health.md).
# eject_failures = 3
# eject_error_ratio = 0.5
# eject_stall_seconds = 0.1
# eject_seconds = 1
# eject_max_seconds = 60
# eject_max_ratio = 0.5
# slow_start_seconds = 0
# Lua mode: a path that every server is asked for beside the traffic; nobody is when absent.
# check_path = "/healthz"
# check_interval_seconds = 2
# check_timeout_seconds = 1
# check_failures = 3
# check_successes = 2
# The share of requests that may be tried again, and so many a second beyond it.
# retry_ratio = 0.2
# retries_per_second = 10
[[upstream.peer]]
address = "127.0.0.1:9001"
# Requests that the server works on at once; estimated when absent.
# slots = 2
# Beyond them requests queue there ("fifo"), or all share them ("ps"); estimated when absent.
# discipline = "fifo"
# The static weight, which holds when nothing was learned.
# weight = 1
"""
