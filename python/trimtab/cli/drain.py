"""`trimtab drain`: give a server no new requests, in any upstream."""

import argparse

from trimtab.cli import admin_client

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("peer", metavar="PEER", help="its address, as configured")
    admin_client.add_order_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Send the order."""
    return admin_client.order(arguments, "drain", {"peer": arguments.peer})
