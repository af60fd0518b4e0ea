"""`trimtab status`: show what the policy server knows and does, from its admin endpoint.

A client only: it reads /status.json and draws it. What the fields mean is the controller's.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Set
from typing import Any, Final

from trimtab import terminal
from trimtab.cli import admin_client
from trimtab.errors import ConfigError, TrimtabError

__all__ = ["add_arguments", "fetch", "render", "run"]

# How often --watch looks; decisions are made each interval, half a second or more.
WATCH_SECONDS: Final = 2.0

# Of the journal this much is shown; --json has all.
DECISIONS: Final = 8

# Sized so that the peers' table fits 80 columns.
COLUMNS: Final = 80
ADDRESS_COLUMNS: Final = 21


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    admin_client.add_where(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the JSON as it is")
    how.add_argument(
        "--watch", action="store_true", help=f"draw anew every {WATCH_SECONDS:g} s until Ctrl-C"
    )
    parser.epilog = "NO_COLOR in the environment, or output to a file or pipe: no colour."


def run(arguments: argparse.Namespace) -> int:
    """Print the status; 0, or 1 when the server cannot be reached."""
    admin = admin_client.address(arguments)
    if arguments.json:
        print(json.dumps(fetch(admin), indent=2))
        return 0
    if not arguments.watch:
        print(render(fetch(admin), colour=_colour(), columns=_columns()))
        return 0
    while True:
        try:
            text = render(fetch(admin), colour=_colour(), columns=_columns())
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


def _columns() -> int:
    return max(terminal.columns() or COLUMNS, COLUMNS)


def fetch(admin: str) -> dict[str, Any]:
    """The status of the policy server at an admin address. Raises TrimtabError."""
    status = admin_client.get(admin, "/status.json")
    if not isinstance(status, dict) or not isinstance(status.get("upstreams"), dict):
        raise TrimtabError(f"what answers at {admin} is not a Trimtab policy server")
    return status


def render(status: Mapping[str, Any], *, colour: bool = False, columns: int = COLUMNS) -> str:
    """The status as text of at most 80 columns (a name longer than that aside); reasons of
    decisions take as many as there are."""
    paint = _Paint(colour)
    parts = ["\n".join(_head(status, paint))]
    window = status.get("window", {})
    pins = {(name, address) for name, address, _ in status.get("guard", {}).get("pins", ())}
    # Why balancers send it nothing, in the place of its weight.
    down = {
        a: str(server.get("ejection") or "down")
        for a, server in status.get("servers", {}).items()
        if server.get("down")
    }
    for name, upstream in status["upstreams"].items():
        pinned = {address for of, address in pins if of == name}
        lines = _upstream(name, upstream, window.get(name, {}), paint, pinned, down)
        parts.append("\n".join(lines))
    parts.append("\n".join(_instances(status, paint)))
    parts.append("\n".join(_decisions(status, paint, columns)))
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
    phase = status.get("phase", "?")
    if phase == "observing":
        phase += (
            f" ({_number(status.get('observed_seconds'), 0)}"
            f" of {_number(status.get('observe_seconds'), 0)} s)"
        )
    state = status.get("state") or {}
    words = [
        f"generation {_number(status.get('generation'), 0)}",
        phase,
        f"state {state.get('index', 'none yet')}",
        f"profile {status.get('profile', '?')}",
    ]
    if (uptime := server.get("uptime_seconds")) is not None:
        words.append(f"up {_span(uptime)}")
    yield paint.bold("  ".join(words))
    role = status.get("availability") or {}
    if role.get("role") == "leader":
        yield f"leader, token {role.get('token')}, lease {_number(role.get('lease_seconds'), 1)} s"
    elif role.get("role") == "follower":
        who = f"follower of {role['leader']}" if role.get("leader") else "follower; nobody leads"
        at = f" (admin {role['leader_admin']})" if role.get("leader") else ""
        behind = role.get("lag_seconds")
        lag = "" if behind is None else f", {_span(behind)} behind"
        yield f"{who}{at}{lag}"
    if away := role.get("away"):
        left = _span(role.get("remaining_seconds", 0.0))
        yield paint.alarm(f"{away}; weights are answered for {left} more")
    if status.get("guard", {}).get("shadow"):
        chosen = status.get("chosen", "?")
        yield paint.alarm(f"shadow: W stays 1; the profile would be {chosen}")
    if trouble := server.get("trouble"):
        yield paint.alarm(f"trouble: {trouble}")


def _upstream(
    name: str,
    upstream: Mapping[str, Any],
    recent: Mapping[str, Any],
    paint: _Paint,
    pinned: Set[str],
    down: Mapping[str, str],
) -> Iterator[str]:
    """`upstream` is the control in force, `recent` what its requests met lately; `pinned` are the
    peers whose weight the operator fixed here, `down` says why a balancer sends nothing to some."""
    deadline = upstream.get("deadline_seconds")
    yield paint.bold(name)
    yield (
        f"deadline {_milliseconds(deadline)}"
        f"  mean {_milliseconds(recent.get('response_time_seconds'))}"
        f"  p99 {_milliseconds(recent.get('p99_seconds'))}"
        f"  {_number(recent.get('requests_per_second', 0.0), 1)} requests/s"
        f"  {_number(recent.get('waiting', 0.0), 0)} waiting"
    )
    shares = recent.get("shares", {})
    traffic = recent.get("peers", {})
    header = ["peer", "weight", "affinity", "rate", "slots", "in flight", "share", "ms"]
    rows = []
    marked = set()
    for row, (address, peer) in enumerate(upstream.get("peers", {}).items()):
        met = traffic.get(address, {})
        response = met.get("response_time_seconds")
        drained = bool(peer.get("drain"))
        overdue = response is not None and deadline is not None and response > deadline
        if overdue or (address in down and not drained):
            marked.add(row)
        weight = _number(peer.get("weight")) + ("*" if address in pinned else "")
        share = shares.get(address)
        rows.append(
            [
                _cut(address, ADDRESS_COLUMNS),
                "drain" if drained else down.get(address, weight),
                _number(peer.get("affinity")),
                _number(peer.get("rate")),
                _number(peer.get("slots"), 0) + (" ps" if peer.get("sharing") else ""),
                _number(met.get("in_flight", 0.0), 1),
                "-" if share is None else f"{share:.0%}",
                "-" if response is None else _number(1000 * response, 1),
            ]
        )
    lines = terminal.table(header, rows).splitlines()
    yield from lines[:2]
    # Down, or later than the deadline on average: what a glance should find.
    yield from (paint.alarm(f"{x}!") if n in marked else x for n, x in enumerate(lines[2:]))
    if pinned:
        yield "* pinned by the operator"


def _instances(status: Mapping[str, Any], paint: _Paint) -> Iterator[str]:
    instances = status.get("instances", [])
    if not instances:
        yield paint.bold("balancers: none has reported")
        return
    yield paint.bold(f"balancers: {len(instances)}")
    for instance in instances:
        # A generation behind is usual for an interval after a change; none at all is not.
        alone = not instance.get("generation")
        uses = instance.get("generation") or "none (static weights)"
        text = (
            f"  {_cut(str(instance.get('name')), 40)}  reported "
            f"{_span(instance.get('age_seconds', 0))} ago, uses generation {uses}"
        )
        yield paint.alarm(text) if alone else text


def _decisions(status: Mapping[str, Any], paint: _Paint, columns: int) -> Iterator[str]:
    decisions = status.get("journal", [])[-DECISIONS:]
    yield paint.bold("last decisions: time, generation, reason" if decisions else "no decisions")
    for decision in decisions:
        when = decision.get("time")
        shown = time.strftime("%H:%M:%S", time.localtime(when)) if when else "?"
        generation = _number(decision.get("generation"), 0)
        changes = decision.get("changes", 0)
        times = f" ({changes} changes)" if changes > 1 else ""
        text = f"  {shown}  {generation:>5}  {decision.get('reason', '')}{times}"
        yield text if len(text) <= columns else f"{text[: columns - 1]}…"


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
