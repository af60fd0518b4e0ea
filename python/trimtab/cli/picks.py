"""The picks that an nginx made last, and why: for `trimtab explain --picks`.

Read from the nginx itself, over its internal address, so it works without a policy server.
"""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from trimtab import config, terminal
from trimtab.cli import admin_client
from trimtab.errors import ConfigError, TrimtabError
from trimtab.explain import unknown

__all__ = ["fetch", "render"]

# Where the hook's status page is (conf-templates/nginx.conf.j2).
PATH: Final = "/trimtab/status"


def fetch(arguments: argparse.Namespace) -> dict[str, Any]:
    """The status of the upstream that the arguments name, as the hook has it.

    `arguments.picks` is nginx's internal address, or "" for that of the configuration. Raises
    ConfigError for an upstream that is not there, TrimtabError where no hook answers.
    """
    where = arguments.picks
    if not where:
        if arguments.admin:
            raise ConfigError("--picks needs nginx's internal address where --admin is given")
        where = config.load(arguments.config).nginx.internal_listen
    try:
        told = admin_client.get(where, PATH)
    except TrimtabError as error:
        raise TrimtabError(f"no nginx with the hook tells its picks at {where}: {error}") from None
    upstreams = told.get("upstreams") if isinstance(told, dict) else None
    if not isinstance(upstreams, list):
        raise TrimtabError(f"what answers at {where} is not an nginx with the hook")
    found: dict[str, dict[str, Any]] = {u["upstream"]: u for u in upstreams}
    if arguments.upstream not in found:
        raise ConfigError(unknown("upstream", arguments.upstream, found))
    return found[arguments.upstream]


def render(upstream: Mapping[str, Any], width: int | None = None) -> str:
    """The picks as a table, the newest first: a line each, with the best of the others. What has
    no room in `width` columns is left out and named."""
    picks = upstream["picks"]
    name = upstream["upstream"]
    if not picks:
        return f"{name}: no request was picked for since nginx started"
    rows = []
    for pick in picks:
        retry = f", try {pick['tries'] + 1:.0f}" if pick["tries"] else ""
        candidates = sorted(pick["candidates"], key=lambda c: c["score_seconds"])
        mine = [c for c in candidates if c["address"] == pick["address"]]
        others = [c for c in candidates if c["address"] != pick["address"]]
        row = [
            f"{pick['age_seconds']:.1f}",
            f"{1000 * pick['waited_seconds']:.1f}{retry}",
            pick["address"],
            *(_scored(mine[0]) if mine else ("probe", "")),
            *((others[0]["address"], *_scored(others[0])) if others else ("-", "", "")),
            f"+{len(others) - 1}" if len(others) > 1 else "",
        ]
        rows.append(row)
    head = ["s ago", "waited ms", "picked", "score", "n", "best other", "score", "n", "more"]
    return (
        f"{name}: its last picks, a sample\n\n"
        + terminal.fitted(head, rows, (8, 7, 4), width)
        + "\n\nscores in ms, with n in flight; probe: it had been ejected, and was tried."
        "\nThe least score is picked, or waited for; who has waited for a service time"
        "\ntakes the least of the servers with room."
    )


def _scored(candidate: Mapping[str, Any]) -> tuple[str, str]:
    return f"{1000 * candidate['score_seconds']:.1f}", f"{candidate['in_flight']:.0f}"
