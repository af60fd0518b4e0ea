"""`trimtab explore`: walk the weights of a stock nginx and record what came of them.

The founding project's change_nginx_weight.py: every interval other weights, to gather data for
clustering. Each line of the output is a reading of the statistics with the weights that were in
force, see `sources.collected`. At the end the weights from before are in force again.
"""

import argparse
import contextlib
import math
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from trimtab import config
from trimtab.actuators.stock import Stock
from trimtab.config import Config
from trimtab.errors import ConfigError, SourceError
from trimtab.model import PeerWeight, UpstreamWeights, Weights
from trimtab.sources import vts
from trimtab.sources.collected import line
from trimtab.sources.collector import End, LineFile
from trimtab.sources.page import Page
from trimtab.sources.stock import page_urls

__all__ = ["add_arguments", "run", "walk"]

# Weights in nginx; the levels are meant as in 1,3,5.
MOST_LEVEL: Final = 1000

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _levels(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise argparse.ArgumentTypeError("weights with commas between them, as 1,3,5")
    levels = tuple(int(level) for level in text.split(","))
    if not all(1 <= level <= MOST_LEVEL for level in levels) or len(set(levels)) < 2:
        raise argparse.ArgumentTypeError(f"at least two different weights from 1 to {MOST_LEVEL}")
    return levels


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError("seconds, more than 0 and at most 86400")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--config", default="trimtab.toml", metavar="FILE", help="the TOML file (%(default)s)"
    )
    parser.add_argument(
        "--levels",
        type=_levels,
        default=(1, 3, 5),
        metavar="W,W,…",
        help="the weights that servers get (1,3,5)",
    )
    parser.add_argument(
        "--walk",
        choices=("permuted", "random"),
        default="permuted",
        help="each level in turn to each server, in shuffled order; or drawn anew (%(default)s)",
    )
    parser.add_argument(
        "--every",
        type=_seconds,
        metavar="SECONDS",
        help="how long weights stay; each change is a reload (reload_min_seconds in [stock])",
    )
    parser.add_argument(
        "--read",
        type=_seconds,
        default=0.5,
        metavar="SECONDS",
        help="how often statistics are read (%(default)s)",
    )
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N", help="for how long; until Ctrl-C when absent"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the walk (%(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("explore.json"),
        metavar="FILE",
        help="where readings are appended, one JSON object a line (%(default)s)",
    )
    parser.epilog = (
        "Stop `trimtab serve` meanwhile: it would change the same weights. `trimtab states` reads\n"
        "the output. Ctrl-C, SIGTERM and the end restore the weights from before."
    )


def walk(
    checked: Config, levels: tuple[int, ...], kind: str, randomness: random.Random
) -> Iterator[Weights]:
    """Weights without end. "permuted": in each upstream the levels, repeated as often as there are
    servers, in a shuffled order; "random": each server's drawn by itself. Never twice the same in
    a row where there is a choice."""
    last = None
    generation = 0
    while True:
        drawn: dict[str, dict[str, int]] = {}
        for upstream in checked.upstreams:
            addresses = [p.address for p in upstream.peers]
            if kind == "random":
                chosen = [randomness.choice(levels) for _ in addresses]
            else:
                chosen = [levels[n % len(levels)] for n in range(len(addresses))]
                randomness.shuffle(chosen)
            drawn[upstream.name] = dict(zip(addresses, chosen, strict=True))
        if drawn == last and any(len(servers) > 1 for servers in drawn.values()):
            continue
        last = drawn
        generation += 1
        yield Weights(
            upstreams={
                name: UpstreamWeights(
                    # Slots would multiply what is to be walked.
                    peers={a: PeerWeight(rate=float(w), slots=1.0) for a, w in servers.items()}
                )
                for name, servers in drawn.items()
            },
            generation=generation,
            reason="explore",
        )


def _plain(checked: Config) -> Config:
    """Weights as they are: no slots, and at full load the square-root rule changes nothing."""
    upstreams = tuple(
        replace(u, peers=tuple(replace(p, slots=None) for p in u.peers)) for u in checked.upstreams
    )
    return replace(checked, upstreams=upstreams, stock=replace(checked.stock, load_ratio=1 - 1e-9))


def run(arguments: argparse.Namespace) -> int:
    """Walk and record until the time is over or a signal comes; 0, or 128 and its number."""
    checked = config.load(arguments.config)
    if checked.nginx.mode != "stock":
        raise ConfigError(
            f"{arguments.config}: mode in [nginx] is {checked.nginx.mode!r}; `trimtab explore` is "
            "for stock mode, whose weights are in a file"
        )
    every = arguments.every or max(checked.stock.reload_min_seconds, arguments.read)
    urls = page_urls(checked)
    if len(urls) > 1:
        raise ConfigError(
            f"{arguments.config}: `trimtab explore` reads one nginx; leave one vts_url in [stock]"
        )
    nginx = Stock(_plain(checked))
    before = nginx.text()
    path = walk(checked, arguments.levels, arguments.walk, random.Random(arguments.seed))  # noqa: S311
    file = LineFile(arguments.output)
    try:
        with (
            Page(urls[0], ca_file=checked.stock.vts_ca_file, agent="trimtab-explore") as page,
            End(seconds=arguments.seconds) as end,
            _signals(end) as got,
        ):
            try:
                _explore(nginx, path, page, file, end, every, arguments.read)
            finally:
                print("restoring the weights from before", file=sys.stderr)
                nginx.apply_now(None) if before is None else nginx.restore(before)
    finally:
        file.close()
    print(f"{file.lines} readings are in {arguments.output}; the weights are those from before")
    return 128 + got[0] if got else 0


@contextlib.contextmanager
def _signals(end: End) -> Iterator[list[int]]:
    """Within it signals end the walk; the list gets their numbers. Restoring is not interrupted."""
    got: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not got:
            end.end()
        got.append(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explore(
    nginx: Stock,
    path: Iterator[Weights],
    page: Page,
    file: LineFile,
    end: End,
    every_seconds: float,
    read_seconds: float,
) -> None:
    """Change and read until `end`. A page that cannot be read is told and read again."""
    began = time.monotonic()
    step, due = 0, began
    failing = False
    while True:
        if time.monotonic() - began >= step * every_seconds:
            step += 1
            weights = next(path)
            nginx.apply_now(weights)
            print(f"{time.strftime('%H:%M:%S')} {_shown(weights)}", flush=True)
        try:
            file.write(line(vts.read(page), time.time()))
            failing = False
        except SourceError as error:
            if not failing:
                print(f"trimtab: {error}; trying on", file=sys.stderr)
            failing = True
        due = max(due + read_seconds, time.monotonic())
        if end.wait(due - time.monotonic()):
            return


def _shown(weights: Weights) -> str:
    return "; ".join(
        f"{name} {':'.join(f'{p.rate:g}' for p in upstream.peers.values())}"
        for name, upstream in weights.upstreams.items()
    )
