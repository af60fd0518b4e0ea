"""`trimtab lua-path`: print the directory for nginx's `lua_package_path`."""

import argparse

from trimtab.paths import lua_directory

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def run(arguments: argparse.Namespace) -> int:  # noqa: ARG001
    """Print the directory."""
    print(lua_directory())
    return 0
