"""`trimtab states`: fit or show the states of a statistics file.

Reads what `trimtab collect` writes and what the founding project's get_stats.py wrote. Files with
no time in their lines were read every half second; where requests in flight are not told, their
mean follows from Little's law (response seconds per second).
"""

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from trimtab.errors import ConfigError, DependencyError, StateError, TrimtabError
from trimtab.learn.clusters import BIC, Clusters, fit_wanted
from trimtab.learn.features import Features, features
from trimtab.model import Connections, PairCounters, Snapshot, Window
from trimtab.sources.collected import NOT_2XX_3XX, Reading, read_lines
from trimtab.sums import accumulate
from trimtab.terminal import table
from trimtab.window import Meter

__all__ = ["WINDOW_SECONDS", "add_arguments", "observations", "run", "windows_of"]

FORMAT: Final = 1

# The founding collector's interval, and ours.
INTERVAL_SECONDS: Final = 0.5

# Long enough to hold some requests of each class, short enough to see a burst.
WINDOW_SECONDS: Final = 2.0

# A gap in a file (the balancer was down, the collector restarted) belongs to no window.
MOST_SECONDS: Final = 60.0

# A model of 256 states of some 100 features is 50 MB.
MOST_BYTES: Final = 256 * 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="fit|show", required=True)
    fitting = actions.add_parser("fit", help="fit states to a statistics file")
    fitting.add_argument("file", help="what `trimtab collect` wrote, one JSON object a line")
    fitting.add_argument("--out", metavar="MODEL", help="write the model there, as JSON")
    fitting.add_argument(
        "--clusters", default="27", metavar="K|bic",
        help="states at most (default 27), or bic to let the Bayesian information criterion choose "
        "up to 27; fewer when the observations do not allow them",
    )  # fmt: skip
    fitting.add_argument(
        "--window", type=float, default=WINDOW_SECONDS, metavar="S",
        help=f"seconds in an observation (default {WINDOW_SECONDS:g})",
    )  # fmt: skip
    fitting.add_argument("--seed", type=int, default=0, help="of the fit (default 0)")
    fitting.add_argument(
        "--picture", metavar="FILE", help="draw means and transitions, as FILE's ending says (.png)"
    )
    showing = actions.add_parser("show", help="show a model that fit has written")
    showing.add_argument("model", help="the file")


def run(arguments: argparse.Namespace) -> int:
    """Fit or show."""
    if arguments.action == "show":
        print(_described(_read(Path(arguments.model))))
        return 0
    most = _most(arguments.clusters)
    if not (math.isfinite(arguments.window) and 0 < arguments.window <= MOST_SECONDS):
        raise ConfigError(
            f"--window {arguments.window:g}: it must be above 0, at most {MOST_SECONDS:g} seconds"
        )
    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed {arguments.seed}: it must be from 0 to 4294967295")
    seen = observations(read_lines(arguments.file), arguments.window)
    if not seen:
        raise TrimtabError(
            f"{arguments.file}: no traffic in it, nothing to fit: it takes two readings at least, "
            f"{arguments.window:g} s apart, with requests between them"
        )
    model = _fitted(seen, most, arguments.seed)
    print(_described(model))
    if arguments.out:
        _write(Path(arguments.out), model)
        print(f"written to {arguments.out}")
    if arguments.picture:
        _draw(Path(arguments.picture), model)
        print(f"drawn in {arguments.picture}")
    return 0


def _draw(path: Path, model: dict[str, Any]) -> None:
    from trimtab.bench import state_picture

    clusters = Clusters.from_state(model["clusters"])
    share = dict(model["occupancy"])
    total = sum(share.values()) or 1
    try:
        state_picture.draw(
            sorted(clusters.identities, key=lambda i: -share.get(i, 0)),
            {i: n / total for i, n in share.items()},
            clusters.readable_means(),
            {(a, b): n for a, b, n in model["transitions"]},
            path,
        )
    except ImportError:
        raise DependencyError(
            "a picture needs the package matplotlib: pip install 'trimtab[plots]'"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--picture {path}: cannot be drawn: {error}") from None


def _snapshot(reading: Reading, clock_seconds: float) -> Snapshot:
    """A reading as the counters of one balancer; servers without a request counter are left out."""
    pairs: dict[str, dict[str, PairCounters]] = {}
    for group, servers in reading.groups.items():
        for server, n in servers.items():
            if "requestCounter" not in n:
                continue
            milliseconds = n.get("responseMsecCounter", n.get("requestMsecCounter", 0.0))
            bad = int(n.get(NOT_2XX_3XX, 0))
            pairs.setdefault(group, {})[server] = PairCounters(
                in_flight=float(n.get("inFlight", 0.0)),
                requests=int(n["requestCounter"]),
                failures=bad,
                in_bytes=int(n.get("inBytes", 0)),
                out_bytes=int(n.get("outBytes", 0)),
                response_time_seconds=milliseconds / 1000,
                in_flight_seconds=0.0 if "inFlight" in n else milliseconds / 1000,
            )
    return Snapshot(
        instance="file",
        start=1,  # the file does not tell it; counters that went back do
        clock_seconds=clock_seconds,
        pairs=pairs,
        connections=Connections(
            **{k: int(reading.connections.get(k, 0)) for k in ("active", "reading", "writing")}
        ),
    )


def windows_of(readings: Iterable[Reading], seconds: float) -> Iterator[Window]:
    """Windows of at least `seconds`; a gap or a clock that went back begins anew."""
    meter, collected = Meter(), list[Window]()
    last = 0.0
    for number, reading in enumerate(readings):
        now = number * INTERVAL_SECONDS if reading.time_seconds is None else reading.time_seconds
        if number and not 0 < now - last <= MOST_SECONDS:
            meter, collected = Meter(), []
        last = now
        window = meter.take(_snapshot(reading, now))
        if window is None:
            continue
        collected.append(window)
        if sum(w.seconds for w in collected) >= seconds * (1 - 1e-6):
            yield accumulate(collected)
            collected = []


def observations(readings: Iterable[Reading], seconds: float) -> list[Features]:
    """The features of each window of a file with traffic in it, all with the same names."""
    windows = [w for w in windows_of(readings, seconds) if w.requests]
    names = sorted({name for w in windows for name in w.pairs})
    addresses = sorted({a for w in windows for peers in w.pairs.values() for a in peers})
    return [features(w, names, addresses) for w in windows]


def _most(text: str) -> int | str:
    """The number of states at most, or "bic"."""
    if text == BIC:
        return BIC
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 256:
        raise ConfigError(f"--clusters {text}: it must be from 1 to 256, or bic")
    return int(text)


def _fitted(seen: Sequence[Features], most: int | str, seed: int) -> dict[str, Any]:
    clusters = fit_wanted(seen, most, seed=seed)
    path = [clusters.classify(f) for f in seen]
    moves = Counter((a.index, b.index) for a, b in pairwise(path))
    return {
        "format": FORMAT,
        "observations": len(seen),
        "outside": sum(s.outside for s in path),
        "clusters": clusters.to_state(),
        "occupancy": sorted(Counter(s.index for s in path).items()),
        "transitions": sorted([a, b, n] for (a, b), n in moves.items()),
    }


def _write(path: Path, model: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        beside.write_text(json.dumps(model) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise StateError(f"{path}: larger than {MOST_BYTES} bytes, not a model")
        model = json.loads(raw)
        if model["format"] != FORMAT:
            raise StateError(f"{path}: has format {model['format']!r}; this version reads {FORMAT}")
        Clusters.from_state(model["clusters"])
        {int(s): int(n) for s, n in model["occupancy"]}
        [(int(a), int(b), int(n)) for a, b, n in model["transitions"]]
        int(model["observations"]), int(model["outside"])
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"{path}: not a model that `trimtab states fit` wrote: {error}") from None
    return dict(model)


def _described(model: dict[str, Any]) -> str:
    """Number, shares, means in readable units, and the likeliest transitions."""
    clusters = Clusters.from_state(model["clusters"])
    share = dict(model["occupancy"])
    total = sum(share.values()) or 1
    means = clusters.readable_means()
    order = sorted(clusters.identities, key=lambda i: -share.get(i, 0))
    lines = [
        f"{len(order)} states from {model['observations']} observations; "
        f"{model['outside']} lie outside of all of them",
        "",
        "means (a column a state)",
        _wrapped("state", [str(i) for i in order], _mean_rows(means, order, share, total)),
        "transitions (from, share of all, to: probability)",
    ]
    moves: dict[int, list[tuple[int, int]]] = {}
    for a, b, n in model["transitions"]:
        moves.setdefault(a, []).append((n, b))
    for i in order:
        out = sum(n for n, _ in moves.get(i, []))
        likely = sorted(moves.get(i, []), reverse=True)[:5]
        to = ", ".join(f"{b}: {n / out:.2f}" for n, b in likely) or "none seen"
        lines.append(f"  {i:>3}  {share.get(i, 0) / total:5.1%}  to {to}")
    return "\n".join(lines)


def _mean_rows(
    means: dict[int, dict[str, float]], order: Sequence[int], share: dict[int, int], total: int
) -> list[tuple[str, list[str]]]:
    names = sorted(next(iter(means.values())))
    return [
        ("share", [f"{share.get(i, 0) / total:.1%}" for i in order]),
        *((name, [f"{means[i][name]:.4g}" for i in order]) for name in names),
    ]


# States side by side in one block of the table: fits 100 columns with long feature names.
BLOCK: Final = 6


def _wrapped(first: str, header: Sequence[str], rows: list[tuple[str, list[str]]]) -> str:
    blocks = []
    for at in range(0, len(header), BLOCK):
        chosen = slice(at, at + BLOCK)
        body = [[name, *cells[chosen]] for name, cells in rows]
        blocks.append(table([first, *header[chosen]], body, indent="  "))
    return "\n\n".join(blocks) + "\n"
