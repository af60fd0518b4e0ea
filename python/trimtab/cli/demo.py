"""`trimtab demo`: the demo social network, or the emulated servers of a scenario file."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from trimtab.demo.social import NodeSettings

__all__ = ["add_arguments", "run", "settings"]

DEFAULT_PORT: Final = 19001
DEFAULT_NODES: Final = 3
# Three nodes of speeds 1 : 2 : 4, unless told otherwise.
DEFAULT_SLOWNESS: Final = [4.0, 2.0, 1.0]

EPILOG: Final = """\
Without options: three nodes of speeds 1 : 2 : 4 on 127.0.0.1:19001 to 19003.
Ends at Ctrl-C.
  trimtab demo --nodes 3 --slowness 4,2,1 --port 19001
  trimtab demo --node 127.0.0.1:19001 --slots 2 --slowness 4
  trimtab demo --scenario FILE --port 19100
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from trimtab.demo.capacity import VARIATION
    from trimtab.demo.graph import USERS
    from trimtab.demo.social import DEFAULT_DATABASE, check_slowness

    parser.epilog = EPILOG
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--node", metavar="HOST:PORT", help="run this one node, in this process")
    what.add_argument(
        "--nodes",
        type=_one(_whole(1, 64)),
        help=f"run so many nodes, one process each ({DEFAULT_NODES})",
    )
    what.add_argument("--scenario", metavar="FILE", help="run the emulated servers of a scenario")
    parser.add_argument(
        "--port",
        type=_one(_whole(1, 65535)),
        help=f"port of the first of several nodes ({DEFAULT_PORT}), or of a scenario's control",
    )
    parser.add_argument(
        "--slots", type=_list(_whole(1, 256)), default=[2], metavar="N[,N...]", help="a node (2)"
    )
    parser.add_argument(
        "--slowness",
        type=_list(check_slowness),
        metavar="F[,F...]",
        help="factors on service times, one for all nodes or one each (4,2,1; 1 with --node)",
    )
    parser.add_argument(
        "--variation",
        type=_one(_number(0, 10)),
        default=VARIATION,
        help=f"standard deviation over mean of the service times ({VARIATION})",
    )
    parser.add_argument(
        "--database", type=Path, default=DEFAULT_DATABASE, help=f"the store ({DEFAULT_DATABASE})"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete the database and build it anew"
    )
    parser.add_argument(
        "--users",
        type=_one(_whole(0, 100_000)),
        default=USERS,
        help=f"users of a new database's seeded graph ({USERS}; 0: an empty network)",
    )
    parser.add_argument(
        "--seed", type=_one(_whole(0, 2**63 - 1)), default=1, help="of graph and service times (1)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted; the exit status, 130 or 143."""
    if arguments.scenario:
        from trimtab.demo import emulator

        port = {} if arguments.port is None else {"port_base": arguments.port}
        return emulator.run(arguments.scenario, seed=arguments.seed, **port)

    from trimtab.demo import build, social, supervisor

    nodes = settings(arguments)
    if arguments.fresh:
        first = nodes[0]
        build.ensure(first.database, seed=first.seed, users=first.users, fresh=True).release()
    return social.run(nodes[0]) if arguments.node else supervisor.run(nodes)


def settings(arguments: argparse.Namespace) -> "list[NodeSettings]":
    """The nodes that the arguments ask for. Raises ConfigError when they contradict each other."""
    from trimtab.demo.social import NodeSettings, loopback

    if arguments.node:
        if arguments.port is not None:
            raise ConfigError("--port goes with --nodes; --node names its own port")
        addresses = [arguments.node]
        slowness = arguments.slowness or [1.0]
    else:
        default = DEFAULT_SLOWNESS if arguments.nodes in (None, DEFAULT_NODES) else [1.0]
        slowness = arguments.slowness or default
        # So many factors are so many nodes, when the number is not given.
        count = arguments.nodes or (len(slowness) if len(slowness) > 1 else DEFAULT_NODES)
        first = DEFAULT_PORT if arguments.port is None else arguments.port
        if first + count - 1 > 65535:
            raise ConfigError(f"{count} nodes from port {first} go beyond port 65535")
        addresses = [f"127.0.0.1:{first + i}" for i in range(count)]
    for address in addresses:
        loopback(address)
    return [
        NodeSettings(
            address=address,
            slots=slots,
            slowness=factor,
            variation=arguments.variation,
            database=arguments.database,
            seed=arguments.seed,
            users=arguments.users,
        )
        for address, slots, factor in zip(
            addresses,
            _each("--slots", arguments.slots, len(addresses)),
            _each("--slowness", slowness, len(addresses)),
            strict=True,
        )
    ]


def _each(option: str, values: list[Any], count: int) -> list[Any]:
    if len(values) not in (1, count):
        raise ConfigError(f"{option} has {len(values)} values: give one, or {count} for {count}")
    return values * count if len(values) == 1 else values


def _whole(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return convert


def _number(least: float, most: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise ValueError(f"a number from {least:g} to {most:g}")
        return value

    return convert


def _one(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type whose message is the converter's."""

    def checked(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {error}") from None

    return checked


def _list(convert: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    one = _one(convert)
    return lambda text: [one(part) for part in text.split(",")]
