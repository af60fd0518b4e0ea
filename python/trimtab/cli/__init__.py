"""The command line: one module a command, imported only when that command runs.

A command module has `add_arguments(parser)` and `run(arguments) -> int`, the exit status; what
it needs beyond the standard library it imports in `run`, so that help and completion are quick.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any, Final, NoReturn

from trimtab import __version__
from trimtab.errors import TrimtabError

__all__ = ["main", "parser"]

COMMANDS: Final = {
    "run": "run the demo: three balancers under the same load, then a table",
    "up": "run the policy server and an nginx of its own, in the foreground",
    "serve": "run the policy server alone",
    "render": "write the nginx configuration, or the systemd unit",
    "apply": "put weights in force in a stock nginx, once",
    "init": "write a configuration, also from an existing nginx's",
    "explore": "walk the weights of a stock nginx and record its statistics",
    "check-config": "check a configuration file",
    "collect": "save a balancer's statistics, one JSON object a line",
    "load": "send an open-loop load and report response times",
    "demo": "run the demo backends: the social network, or emulated servers",
    "bench": "compare balancers on the same seeded load",
    "train": "train in the simulator, and write what the policy server starts from",
    "status": "show what the policy server knows and does",
    "explain": "say why requests go where they go",
    "pin": "fix the weight of a peer in an upstream",
    "unpin": "let a pinned weight be learned again",
    "drain": "give a server no new requests",
    "undrain": "give a drained server requests again",
    "shadow": "decide without applying what is learned, or apply it",
    "states": "fit or show the states of a statistics file",
    "lua-path": "print the directory for nginx's lua_package_path",
    "completion": "print the completion script for a shell",
}

EXIT_STATUSES: Final = """\
exit status:
  0  done
  1  something failed; the message says what and what happens next
  2  wrong arguments or configuration; nothing was started
  3  a program, module or package is missing; the message says how to install it
  130, 143  ended by Ctrl-C, by SIGTERM; everything that was started has been stopped
"""


class _Parser(argparse.ArgumentParser):
    """One that knows what was meant."""

    def error(self, message: str) -> NoReturn:
        """Print one sentence with the closest thing that exists; end with status 2."""
        words = re.findall(r"(?:arguments:|choice:) '?([\w-]+)", message)
        if words and "invalid choice" in message and self.prog == "trimtab":
            # The list of all commands is what --help shows, better.
            message = f"there is no command {words[0]!r}"
        close = get_close_matches(words[0], _known(self), 1) if words else []
        hint = f"did you mean {close[0]!r}?" if close else f"`{self.prog} --help` tells more"
        self.exit(2, f"{self.prog}: {message}; {hint}\n")


def _known(of: argparse.ArgumentParser) -> list[str]:
    """What may be written: options and choices, and the options of a command that has them."""
    known: list[str] = []
    for action in of._actions:
        known += [*action.option_strings, *(str(c) for c in action.choices or ())]
        if isinstance(action, argparse._SubParsersAction):
            known += [o for sub in action.choices.values() for o in _known(sub) if o[0] == "-"]
    return known


def parser(commands: Collection[str]) -> argparse.ArgumentParser:
    """The parser of the command line, with the arguments of `commands` (and the names of all)."""
    whole = _Parser(
        prog="trimtab",
        description="Learned, deadline-aware load balancing for open-source NGINX.",
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"trimtab {__version__}")
    subparsers = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in commands:
            _module(name).add_arguments(sub)
    return whole


def _of(whole: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            found: argparse.ArgumentParser = action.choices[command]
            return found
    return whole


def _module(command: str) -> Any:
    return importlib.import_module(f"trimtab.cli.{command.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. A TrimtabError becomes one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((a for a in argv if a in COMMANDS), None)
    whole = parser([command] if command else [])
    arguments, unknown = whole.parse_known_args(argv)
    if unknown:
        # The command's own usage helps, where argparse would show that of the whole.
        _of(whole, arguments.command).error(f"unrecognized arguments: {' '.join(unknown)}")
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
