"""`trimtab shadow`: decide and tell without applying learned weights, or enforce them."""

import argparse

from trimtab.cli import admin_client

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("state", choices=["on", "off"], help="on: every W goes to 1, pins aside")
    admin_client.add_order_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Send the order."""
    return admin_client.order(arguments, "shadow", {"on": arguments.state == "on"})
