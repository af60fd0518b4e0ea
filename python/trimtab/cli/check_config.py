"""`trimtab check-config`: check a configuration file and say what it sets up."""

import argparse

from trimtab import config

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", help="the TOML file")


def run(arguments: argparse.Namespace) -> int:
    """Check the file; a ConfigError ends the command with status 2."""
    checked = config.load(arguments.file)
    addresses = {p.address for u in checked.upstreams for p in u.peers}
    print(
        f"{arguments.file}: fine; mode {checked.nginx.mode}, "
        f"{_counted(len(checked.upstreams), 'upstream')}, {_counted(len(addresses), 'server')}"
    )
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
