"""`trimtab apply`: put weights in force in a stock nginx, once."""

import argparse
import sys
from typing import Any

from trimtab import config
from trimtab.cli.status import fetch
from trimtab.errors import ConfigError, TrimtabError
from trimtab.model import PeerWeight, UpstreamWeights, Weights

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--config", default="trimtab.toml", metavar="FILE", help="the TOML file (%(default)s)"
    )
    parser.add_argument(
        "--learned",
        action="store_true",
        help="the weights that the running policy server has in force, instead of the static ones",
    )
    parser.epilog = (
        "The file is checked, swapped, checked as a whole and reloaded; when new workers do not\n"
        "serve it the old one comes back. The limits on reloads do not hold for this command.\n"
        "In stock mode `trimtab serve` does the same by itself whenever weights change."
    )


def learned(status: dict[str, Any]) -> Weights:
    """The weights in force out of a policy server's status. Raises TrimtabError."""
    try:
        upstreams = {
            str(name): UpstreamWeights(
                peers={
                    str(address): PeerWeight(
                        weight=float(peer["weight"]),
                        affinity=float(peer["affinity"]),
                        rate=float(peer["rate"]),
                        slots=None if peer["slots"] is None else float(peer["slots"]),
                        drain=bool(peer["drain"]),
                    )
                    for address, peer in upstream["peers"].items()
                }
            )
            for name, upstream in status["upstreams"].items()
        }
        return Weights(
            upstreams=upstreams,
            epoch=int(status["epoch"]),
            generation=int(status["generation"]),
            reason=str(status["reason"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrimtabError(
            f"the policy server's status has no weights: {type(error).__name__}: {error}"
        ) from None


def run(arguments: argparse.Namespace) -> int:
    """Apply; a TrimtabError says what is in force instead."""
    checked = config.load(arguments.config)
    if checked.nginx.mode != "stock":
        raise ConfigError(
            f"{arguments.config}: mode in [nginx] is {checked.nginx.mode!r}; `trimtab apply` is "
            "for stock mode. In lua mode the hook fetches its weights"
        )
    weights = learned(fetch(checked.policy.admin_listen)) if arguments.learned else None
    from trimtab.actuators.stock import Stock

    done = Stock(checked).apply_now(weights)
    file = checked.stock.include_file
    if done == "written":
        print(f"wrote {file}; nginx does not run", file=sys.stderr)
    else:
        print(f"{'in force' if done == 'applied' else 'unchanged'}: {file}")
    return 0
