"""`trimtab pin`: fix the weight W of one peer in one upstream."""

import argparse

from trimtab.cli import admin_client

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("upstream", metavar="UPSTREAM")
    parser.add_argument("peer", metavar="PEER", help="its address, as configured")
    parser.add_argument("weight", metavar="WEIGHT", type=float, help="from 1/3 to 3; 1 is neutral")
    admin_client.add_order_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Send the order."""
    body = {
        "upstream": arguments.upstream,
        "peer": arguments.peer,
        "weight": arguments.weight,
    }
    return admin_client.order(arguments, "pin", body)
