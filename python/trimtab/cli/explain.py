"""`trimtab explain`: why requests of an upstream go where they go, now and since the last change.

A client only: the policy server computes the scores by the rule that the balancer runs, from what
a balancer last reported. With --picks it is a client of nginx instead, which tells the picks that
it made.
"""

import argparse
import json
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from trimtab import terminal
from trimtab.cli import admin_client, picks, plainly
from trimtab.errors import TrimtabError

__all__ = ["add_arguments", "render", "run", "trial_text"]

# Sized so that the table fits 80 columns.
ADDRESS_COLUMNS: Final = 21
COLUMNS: Final = 80

_FORMULA: Final = """\
score = (own × (1 + 20 × err + 0.1 × n / k) + wait) / W, in ms; least is next
own = service time × a / rate; wait = until a slot is free; n in flight, k slots"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("upstream", metavar="UPSTREAM")
    parser.add_argument("peer", metavar="PEER", nargs="?", help="one peer only, in full")
    parser.add_argument("--balancer", metavar="NAME", help="as this one sees it (the first)")
    parser.add_argument(
        "--picks", nargs="?", const="", metavar="ADDRESS",
        help="the picks that nginx made last, with the scores then: asked at its internal_listen",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the JSON as it is")
    admin_client.add_where(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation; 0."""
    if arguments.picks is not None:
        upstream = picks.fetch(arguments)
        if arguments.json:
            print(json.dumps(upstream["picks"], indent=2))
        else:
            print(picks.render(upstream, terminal.columns()))
        return 0
    query = {"upstream": arguments.upstream}
    if arguments.peer:
        query["peer"] = arguments.peer
    if arguments.balancer:
        query["balancer"] = arguments.balancer
    admin = admin_client.address(arguments)
    told = admin_client.get(admin, f"/explain.json?{urlencode(query)}")
    if not isinstance(told, dict) or "peers" not in told:
        raise TrimtabError(f"what answers at {admin} is not a Trimtab policy server")
    print(json.dumps(told, indent=2) if arguments.json else render(told, full=bool(arguments.peer)))
    return 0


def render(told: Mapping[str, Any], *, full: bool = False) -> str:
    """The explanation as text of at most 80 columns; `full` lists each input of a peer."""
    parts = ["\n".join(_head(told))]
    if plain := " ".join(plainly.sentences(told, one=full)):
        parts.append("\n".join(textwrap.wrap(
            plain, COLUMNS, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )))  # fmt: skip
    parts.append(_peers(told))
    if full:
        parts += ["\n".join(_inputs(peer)) for peer in told["peers"].values()]
    parts.append(_FORMULA)
    parts.append("\n".join(_last(told)))
    return "\n\n".join(parts)


def _head(told: Mapping[str, Any]) -> Iterator[str]:
    state = "none yet" if told.get("state") is None else told["state"]
    words = (f"generation {told['generation']}", f"profile {told['profile']}", f"state {state}")
    yield f"{told['upstream']}: {', '.join(words)}"
    if told.get("shadow"):
        yield f"shadow: W stays 1; the profile would be {told['chosen']}"
    yield (
        f"deadline {_ms(told.get('deadline_seconds'))} ms, "
        f"service time {_ms(told.get('service_time_seconds'))} ms at rate 1"
    )
    if told.get("burstiness") is not None and told.get("service_cv2") is not None:
        yield (
            f"arrivals {told['burstiness']:.1f} times as uneven as Poisson's, "
            f"service times cv² {told['service_cv2']:.2f}"
        )
    if told.get("instance") is None:
        yield "no balancer reports: nothing in flight is known, rates are the priors"
        return
    others = told["instances"] - 1
    more = f" ({others} more: --balancer NAME)" if others else ""
    behind = told.get("in_use") != told["generation"]
    uses = f", which uses generation {told.get('in_use')}" if behind else ""
    yield f"as seen by {told['instance']}{uses}{more}"


def _peers(told: Mapping[str, Any]) -> str:
    header = ["peer", "next", "score", "W", "own", "wait", "a", "rate", "err", "n", "k"]
    rows = []
    order = sorted(told["peers"].items(), key=lambda p: (p[1]["rank"] or 1e9, p[0]))
    for address, peer in order:
        closed = "drain" if peer["drain"] else peer["down"] and (peer.get("ejection") or "down")
        status = closed or str(peer["rank"])
        rows.append(
            [
                # The end of an address tells peers apart.
                address[-ADDRESS_COLUMNS:],
                status,
                _ms(peer["score"]),
                f"{peer['weight']:.2f}",
                _ms(peer["own_seconds"]),
                _ms(peer["wait_seconds"]),
                f"{peer['affinity']:.2f}",
                f"{peer['rate']:.2f}",
                f"{peer['error_ratio']:.0%}",
                f"{peer['in_flight']:.0f}",
                f"{peer['slots']:.0f}" if peer["slots"] else "?",
            ]
        )
    return terminal.table(header, rows)


def _inputs(peer: Mapping[str, Any]) -> Iterator[str]:
    pinned = ", pinned by the operator" if peer["pinned"] else ""
    yield f"weight W        {peer['weight']:.3f}{pinned}"
    if peer["withheld"] is not None and not peer["pinned"]:
        yield f"  in shadow     {peer['withheld']:.3f} would be in force"
    yield f"affinity        {peer['affinity']:.3f}"
    yield f"rate            {peer['rate']:.3f} there and now, {peer['rate_prior']:.3f} estimated"
    yield f"slots           {peer['slots']:.0f}" if peer["slots"] else "slots           unknown"
    yield f"discipline      {_discipline(peer)}"
    yield (
        f"in flight       {peer['in_flight']:.0f}, {peer['in_flight_class']:.0f} of this class; "
        f"{_ms(peer['work_seconds'])} ms of work at rate 1"
    )
    yield f"error ratio     {peer['error_ratio']:.1%}"


def _discipline(peer: Mapping[str, Any]) -> str:
    """Whether the rule takes a server for a queue, and what was measured."""
    taken = "shares its slots (ps)" if peer.get("sharing") else "a queue (fifo)"
    found = peer.get("discipline_estimate")
    if not found:
        return f"taken for {taken}; not measured"
    sure = "" if found["sure"] else ", not sure"
    return (
        f"taken for {taken}; sharing measured {found['ratio']:.2f} ± {found['error']:.2f}: "
        f"{found['value']}{sure}"
    )


def _last(told: Mapping[str, Any]) -> Iterator[str]:
    change = told.get("last_change")
    if change is None:
        yield "no change of weights since the policy server started"
    else:
        when = _when(told.get("changed"))
        yield f"last change: generation {change['from']} to {change['to']} at {when}"
        reason = change["reason"]
        moved = "estimates moved" if reason == "estimates" else reason
        yield f"  because: {moved}"[:COLUMNS]
        for name, text in (("deadline_seconds", "deadline"), ("service_time_seconds", "service")):
            if name in change:
                before, after = change[name]
                yield f"  {text} {_ms(before)} to {_ms(after)} ms"
        for address, fields in change["peers"].items():
            moves = ", ".join(f"{f} {_value(b)} to {_value(a)}" for f, (b, a) in fields.items())
            yield f"  {address}: {moves}"[:COLUMNS]
    decision = told.get("last_decision")
    if decision:
        when = _when(decision["time"])
        yield f"last decision: generation {decision['generation']} at {when}"
        yield from textwrap.wrap(
            decision["reason"], COLUMNS, initial_indent="  ", subsequent_indent="  "
        )
    for profile, trial in told.get("trials", {}).items():
        yield f"  {profile}: {trial_text(trial)}"[:COLUMNS]


def trial_text(trial: Mapping[str, Any]) -> str:
    """One profile's trial in words: its stage, and what was measured."""
    if trial.get("gain") is None:
        return str(trial["stage"])
    error = "?" if trial["error"] is None else f"{trial['error']:.2f}"
    count = trial["switchbacks"]
    return f"{trial['stage']}, gain {trial['gain']:.2f} ± {error} in {count} switchbacks"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "unknown"}[value]
    return f"{value:.3g}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    ms = 1000 * seconds
    return f"{ms:.1f}" if ms < 1000 else f"{ms:.0f}"


def _when(seconds: float | None) -> str:
    return "?" if seconds is None else time.strftime("%H:%M:%S", time.localtime(seconds))
