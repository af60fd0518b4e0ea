"""`trimtab status`: show what the policy server knows and does, from its admin endpoint.

A client only: it reads /status.json and draws it. What the fields mean is the controller's.
"""

import argparse
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from trimtab import config, terminal
from trimtab.errors import ConfigError, TrimtabError

__all__ = ["add_arguments", "fetch", "render", "run"]

# The server answers in milliseconds, or gives up itself after five seconds.
TIMEOUT_SECONDS: Final = 6.0

# 16384 pairs at about 300 bytes, several times over: what is larger is not ours.
MAX_STATUS_BYTES: Final = 32 * 1024 * 1024

# How often --watch looks; decisions are made each interval, half a second or more.
WATCH_SECONDS: Final = 2.0

# Decisions shown; the rest is in the journal.
DECISIONS: Final = 8

# Sized so that the peers' table fits 80 columns.
COLUMNS: Final = 80
ADDRESS_COLUMNS: Final = 21


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--config",
        default="trimtab.toml",
        metavar="FILE",
        help="the policy server's TOML file, for admin_listen (%(default)s)",
    )
    where.add_argument(
        "--admin", metavar="URL", help='its admin address: "HOST:PORT", "http://…" or "unix:/path"'
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the JSON as it is")
    how.add_argument(
        "--watch", action="store_true", help=f"draw anew every {WATCH_SECONDS:g} s until Ctrl-C"
    )
    parser.epilog = "NO_COLOR in the environment, or output to a file or pipe: no colour."


def run(arguments: argparse.Namespace) -> int:
    """Print the status; 0, or 1 when the server cannot be reached."""
    admin = arguments.admin or config.load(arguments.config).policy.admin_listen
    if arguments.json:
        print(json.dumps(fetch(admin), indent=2))
        return 0
    if not arguments.watch:
        print(render(fetch(admin), colour=_colour()))
        return 0
    while True:
        try:
            text = render(fetch(admin), colour=_colour())
        except ConfigError:
            raise
        except TrimtabError as error:
            # It may come back: a restart is what one watches.
            text = str(error)
        # Home and clear: nothing flickers, and nothing scrolls away above.
        print(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + text, flush=True)
        time.sleep(WATCH_SECONDS)


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(admin: str) -> http.client.HTTPConnection:
    if admin.startswith("unix:/"):
        return _UnixConnection(admin.removeprefix("unix:"))
    url = urlsplit(admin if "://" in admin else f"http://{admin}")
    try:
        port = url.port
    except ValueError:
        port = None
    if url.scheme != "http" or not url.hostname or port is None or url.path not in ("", "/"):
        raise ConfigError(
            f"--admin is {admin!r}; it must be HOST:PORT, http://HOST:PORT or unix:/path"
        )
    return http.client.HTTPConnection(url.hostname, port, timeout=TIMEOUT_SECONDS)


def fetch(admin: str) -> dict[str, Any]:
    """The status of the policy server at an admin address. Raises TrimtabError."""
    connection = _connection(admin)
    try:
        connection.request("GET", "/status.json", headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read(MAX_STATUS_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise TrimtabError(
            f"no policy server answers at {admin}: {error or type(error).__name__}; "
            "`trimtab serve` starts one (balancers go on with their static weights meanwhile)"
        ) from None
    finally:
        connection.close()
    if answer.status != 200:
        reason = body[:300].decode("utf-8", "replace").strip()
        raise TrimtabError(f"the server at {admin} answered {answer.status}: {reason}")
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or not isinstance(status.get("upstreams"), dict):
        raise TrimtabError(f"what answers at {admin} is not a Trimtab policy server")
    return status


def render(status: Mapping[str, Any], *, colour: bool = False) -> str:
    """The status as text of at most 80 columns (a name longer than that aside)."""
    paint = _Paint(colour)
    parts = ["\n".join(_head(status, paint))]
    parts += ["\n".join(_upstream(n, u, paint)) for n, u in status["upstreams"].items()]
    parts.append("\n".join(_instances(status, paint)))
    parts.append("\n".join(_decisions(status, paint)))
    return "\n\n".join(parts)


class _Paint:
    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._colour else text

    def alarm(self, text: str) -> str:
        return f"\x1b[31m{text}\x1b[0m" if self._colour else text


def _head(status: Mapping[str, Any], paint: _Paint) -> Iterator[str]:
    server = status.get("server", {})
    state = status.get("state")
    words = [
        f"generation {_number(status.get('generation'), 0)}",
        f"mode {status.get('mode', '?')}",
        f"state {'none yet' if state is None else state}",
    ]
    if (profile := status.get("profile")) is not None:
        words.append(f"profile {profile}")
    if (uptime := server.get("uptime_seconds")) is not None:
        words.append(f"up {_span(uptime)}")
    yield paint.bold("  ".join(words))
    if trouble := server.get("trouble"):
        yield paint.alarm(f"trouble: {trouble}")


def _upstream(name: str, upstream: Mapping[str, Any], paint: _Paint) -> Iterator[str]:
    deadline = upstream.get("deadline_seconds")
    yield (
        f"{paint.bold(name)}  deadline {_milliseconds(deadline)}"
        f"  service time {_milliseconds(upstream.get('service_time_seconds'))}"
        f"  waiting {_number(upstream.get('waiting', 0), 0)}"
    )
    header = ["peer", "weight", "affinity", "rate", "slots", "in flight", "share", "ms"]
    rows = []
    late = set()
    for row, (address, peer) in enumerate(upstream.get("peers", {}).items()):
        response = peer.get("response_time_seconds")
        if response is not None and deadline is not None and response > deadline:
            late.add(row)
        share = peer.get("share")
        rows.append(
            [
                _cut(address, ADDRESS_COLUMNS),
                "drain" if peer.get("drain") else _number(peer.get("weight")),
                _number(peer.get("affinity")),
                _number(peer.get("rate")),
                _number(peer.get("slots"), 0),
                _number(peer.get("in_flight"), 1),
                "-" if share is None else f"{share:.0%}",
                "-" if response is None else _number(1000 * response, 1),
            ]
        )
    lines = terminal.table(header, rows).splitlines()
    yield from lines[:2]
    # Later than the deadline on average: the one thing that a glance should find.
    yield from (paint.alarm(f"{x}!") if n in late else x for n, x in enumerate(lines[2:]))


def _instances(status: Mapping[str, Any], paint: _Paint) -> Iterator[str]:
    instances = status.get("instances", [])
    if not instances:
        yield paint.bold("balancers: none has reported")
        return
    yield paint.bold(f"balancers: {len(instances)}")
    for instance in instances:
        behind = instance.get("generation") != status.get("generation")
        uses = instance.get("generation") or "none (static weights)"
        text = (
            f"  {_cut(str(instance.get('name')), 40)}  reported "
            f"{_span(instance.get('age_seconds', 0))} ago, uses generation {uses}"
        )
        yield paint.alarm(text) if behind else text


def _decisions(status: Mapping[str, Any], paint: _Paint) -> Iterator[str]:
    decisions = status.get("decisions", [])[-DECISIONS:]
    yield paint.bold("last decisions" if decisions else "no decisions yet")
    for decision in decisions:
        when = decision.get("time")
        shown = time.strftime("%H:%M:%S", time.localtime(when)) if when else "?"
        generation = _number(decision.get("generation"), 0)
        yield f"  {shown}  {generation:>5}  {decision.get('reason', '')}"[:COLUMNS]


def _number(value: Any, digits: int = 2) -> str:
    if not isinstance(value, int | float):
        return "?"
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.0f}"


def _milliseconds(seconds: Any) -> str:
    return "unknown" if seconds is None else f"{1000 * seconds:.3g} ms"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def _cut(text: str, columns: int) -> str:
    """The end of an address tells peers apart, so the beginning goes."""
    return text if len(text) <= columns else "…" + text[1 - columns :]
