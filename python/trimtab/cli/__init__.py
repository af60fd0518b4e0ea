"""The command line: one module a command, imported only when that command runs.

A command module has `add_arguments(parser)` and `run(arguments) -> int`, the exit status.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

from trimtab import __version__
from trimtab.errors import TrimtabError

__all__ = ["main"]

COMMANDS: Final = {
    "run": "run the demo: three balancers under the same load, then a table",
    "up": "run the policy server and an nginx of its own, in the foreground",
    "serve": "run the policy server alone",
    "render": "write the nginx configuration, or the systemd unit",
    "check-config": "check a configuration file",
    "collect": "save a balancer's statistics, one JSON object a line",
    "load": "send an open-loop load and report response times",
    "demo": "run the demo backends: the social network, or emulated servers",
    "bench": "compare balancers on the same seeded load",
    "status": "show what the policy server knows and does",
    "states": "fit or show the states of a statistics file",
    "lua-path": "print the directory for nginx's lua_package_path",
}

EXIT_STATUSES: Final = """\
exit status:
  0  done
  1  something failed; the message says what and what happens next
  2  wrong arguments or configuration; nothing was started
  3  a program, module or package is missing; the message says how to install it
  130, 143  ended by Ctrl-C, by SIGTERM; everything that was started has been stopped
"""


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trimtab",
        description="Learned, deadline-aware load balancing for open-source NGINX.",
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trimtab {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            _module(name).add_arguments(sub)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"trimtab.cli.{command.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. A TrimtabError becomes one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in argv if a in COMMANDS), None)
    arguments = _parser(command).parse_args(argv)
    try:
        return int(_module(arguments.command).run(arguments) or 0)
    except TrimtabError as error:
        print(f"trimtab: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`trimtab status | head`): not our failure.
        sys.stderr.close()
        return 0
