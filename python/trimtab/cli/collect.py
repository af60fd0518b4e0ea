"""`trimtab collect`: save a balancer's statistics, one JSON object a line."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from trimtab.errors import ConfigError
from trimtab.sources.collector import INTERVAL_SECONDS, End, LineFile, collect

__all__ = ["add_arguments", "run"]

# A status page costs the balancer CPU time; and a process that ends should be seen to.
MIN_INTERVAL_SECONDS: Final = 0.01
MAX_INTERVAL_SECONDS: Final = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("url", help="the status page, as http://127.0.0.1:18081/status/format/json")
    parser.add_argument(
        "--output", "-o", type=Path, required=True, metavar="FILE", help="lines are added here"
    )
    parser.add_argument("--overwrite", action="store_true", help="empty FILE first")
    parser.add_argument(
        "--interval", type=float, default=INTERVAL_SECONDS, metavar="S",
        help=f"seconds between readings (default {INTERVAL_SECONDS:g})",
    )  # fmt: skip
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--pid", type=int, metavar="PID", help="end when this process ends")
    until.add_argument("--seconds", type=float, metavar="N", help="end after N seconds")


def run(arguments: argparse.Namespace) -> int:
    """Collect until the process ends, the time is over, or a signal comes."""
    parts = urlsplit(arguments.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{arguments.url!r} is not the http URL of a status page")
    if not MIN_INTERVAL_SECONDS <= arguments.interval <= MAX_INTERVAL_SECONDS:
        raise ConfigError(
            f"--interval {arguments.interval:g}: it must be from {MIN_INTERVAL_SECONDS:g} to "
            f"{MAX_INTERVAL_SECONDS:g} seconds"
        )
    if arguments.seconds is not None and not 0 < arguments.seconds < float("inf"):
        raise ConfigError(f"--seconds {arguments.seconds:g}: it must be a number above 0")
    if arguments.pid is not None and arguments.pid <= 0:
        raise ConfigError(f"--pid {arguments.pid}: it must be the number of a process")
    caught: list[int] = []
    with End(pid=arguments.pid, seconds=arguments.seconds) as end:

        def on_signal(number: int, _frame: object) -> None:
            caught.append(number)
            end.end()

        file = LineFile(arguments.output, overwrite=arguments.overwrite)
        before = [(n, signal.signal(n, on_signal)) for n in (signal.SIGINT, signal.SIGTERM)]
        try:
            lines = collect(
                arguments.url, file, end, interval_seconds=arguments.interval, notify=_say
            )
        finally:
            for number, handler in before:
                signal.signal(number, handler)
            file.close()
    _say(f"{lines} readings added to {arguments.output}")
    return 128 + caught[0] if caught else 0


def _say(text: str) -> None:
    print(f"collect: {text}", file=sys.stderr, flush=True)
