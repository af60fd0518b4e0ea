"""`trimtab load`: send an open-loop load and report response times."""

import argparse
import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from trimtab import terminal
from trimtab.errors import ConfigError
from trimtab.load.client import Progress
from trimtab.load.drive import TIMEOUT_SECONDS
from trimtab.load.files import check_writable, write_hdr, write_json, write_npz
from trimtab.load.founding import founding
from trimtab.load.laws import LAWS
from trimtab.load.plan import Target, probe, target
from trimtab.load.processes import MAX_PROCESSES, run_processes
from trimtab.load.report import show_progress, table
from trimtab.load.result import MAX_LAG_SECONDS, Result
from trimtab.load.schedule import ClassLoad, Schedule, build
from trimtab.load.spec import class_load, scaled
from trimtab.load.workloads import SOCIAL, SOCIAL_SHARES, WORK_LAWS, Request

__all__ = ["add_arguments", "run"]

EPILOG: Final = f"""\
what is sent, one of:
  a URL with a path          that request, at --rate
  --profile social           the three request types of the social network:
                             60% home timelines, 30% user timelines, 10% posts,
                             at --rate in all
  --profile founding         three streams of random periods (30 to 600 s at 100
                             to 2000 requests/s, a random law) and pauses (10
                             to 100 s)
  --class KEY=VALUE,...      any number of classes of your own:
      name=NAME rate=PER_SECOND          needed
      law={"|".join(LAWS)}            of the gaps (default exp)
      workload={"|".join(SOCIAL)}         a social-network request, or:
      path=/PATH method=GET body=TEXT    one request (default path: the URL's)
      deadline=SECONDS                   for the accumulated relative tardiness
      work=LAW:MEAN[:SHAPE]              header X-Trimtab-Work;
                                         {", ".join(WORK_LAWS)}
      steps=AT:RATE[:LAW]/AT:RATE...     other rates from AT seconds on;
                                         0 is a pause
      bursts=FACTOR:BURST:CALM[:shared]  two-state Markov bursts, mean lengths
                                         in seconds

The whole schedule is computed beforehand from --seed. Response times count from
the intended time of each request. A run whose send lag or rate is off is called
not valid: exit status 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("target", nargs="?", metavar="URL", help="where to, http://HOST:PORT/PATH")
    parser.add_argument("--url", "--target", dest="url", metavar="URL", help="the same")
    parser.add_argument("--profile", choices=("social", "founding"), help="a load made up before")
    parser.add_argument(
        "--class", dest="classes", action="append", default=[], metavar="KEY=VALUE,...",
        help="a request class; may be repeated",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, metavar="N", help="requests per second (default 100)")
    parser.add_argument("--law", metavar="LAW", help=f"{', '.join(LAWS)} (default exp)")
    parser.add_argument(
        "--duration", type=float, metavar="S",
        help="seconds (default 10; with --profile founding 3600)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--time-scale", type=float, default=1.0, metavar="X",
        help="multiplies the duration and every length in it (steps, bursts, periods), not rates",
    )  # fmt: skip
    parser.add_argument(
        "--rate-scale", type=float, default=1.0, metavar="X", help="multiplies every rate"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that send (default 1)"
    )
    parser.add_argument("--method", default="GET", help="of the URL's request (default GET)")
    parser.add_argument("--body", default="", help="of the URL's request")
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE",
        help="sent with every request; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--deadline", type=float, metavar="S", help="deadline of every class without its own"
    )
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_SECONDS, metavar="S",
        help=f"from the send to the whole answer (default {TIMEOUT_SECONDS:g})",
    )  # fmt: skip
    parser.add_argument(
        "--max-lag", type=float, default=MAX_LAG_SECONDS, metavar="S",
        help=f"bound of the 99th percentile of the send lag (default {MAX_LAG_SECONDS:g})",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="write every request's record")
    parser.add_argument("--hdr", type=Path, metavar="FILE", help="write an HdrHistogram log")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(arguments: argparse.Namespace) -> int:
    """Check everything, run the load, report it."""
    if (arguments.target is None) == (arguments.url is None):
        raise ConfigError("say once where to send the load, as in: trimtab load http://HOST:PORT/")
    where = target(arguments.url or arguments.target)
    schedule = _schedule(arguments, where)
    if not 1 <= arguments.processes <= MAX_PROCESSES:
        raise ConfigError(f"--processes {arguments.processes}: it must be 1 to {MAX_PROCESSES}")
    for value, name in ((arguments.timeout, "--timeout"), (arguments.max_lag, "--max-lag")):
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} {value:g}: it must be a number of seconds above 0")
    outputs: list[tuple[Path | None, Callable[[Result, Path], None]]] = [
        (arguments.json, write_json),
        (arguments.npz, write_npz),
        (arguments.hdr, write_hdr),
    ]
    for path, _ in outputs:
        if path is not None:
            check_writable(path)
    probe(where)
    with terminal.Progress(schedule.seconds) as bar:
        progress = None if arguments.quiet else show_progress(bar)
        result, caught = asyncio.run(_send(schedule, where, arguments, progress))
    print(table(result, terminal.columns()))
    for path, write in outputs:
        if path is not None:
            write(result, path)
    if caught is not None:
        return 128 + caught
    return 0 if result.valid else 1


async def _send(
    schedule: Schedule,
    where: Target,
    arguments: argparse.Namespace,
    progress: Callable[[Progress], None] | None,
) -> tuple[Result, int | None]:
    """The result, and the signal that ended the run early. A second signal gives up at once."""
    stop = asyncio.Event()
    caught: list[int] = []
    task = asyncio.current_task()

    def on_signal(number: int) -> None:
        if caught and task is not None:
            task.cancel()
        caught.append(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    try:
        result = await run_processes(
            schedule,
            where.url,
            processes=arguments.processes,
            timeout_seconds=arguments.timeout,
            max_lag_seconds=arguments.max_lag,
            on_progress=progress,
            stop=stop,
        )
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    return result, caught[0] if caught else None


def _schedule(arguments: argparse.Namespace, where: Target) -> Schedule:
    seconds = arguments.duration
    if seconds is None:
        seconds = 3600.0 if arguments.profile == "founding" else 10.0
    for value, name in (
        (seconds, "--duration"),
        (arguments.time_scale, "--time-scale"),
        (arguments.rate_scale, "--rate-scale"),
    ):
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} {value:g}: it must be a number above 0")
    if arguments.rate is not None and not 0 <= arguments.rate < float("inf"):
        raise ConfigError(f"--rate {arguments.rate:g}: it must be requests per second, 0 or more")
    if arguments.law is not None and arguments.law not in LAWS:
        raise ConfigError(f"unknown law {arguments.law!r}; the laws are {', '.join(LAWS)}")
    headers = tuple(_header(text) for text in arguments.header)
    classes = _classes(arguments, where, seconds * arguments.time_scale)
    classes = [_with(c, arguments.deadline, headers) for c in classes]
    schedule = build(classes, seconds=seconds * arguments.time_scale, seed=arguments.seed)
    if not len(schedule):
        raise ConfigError("the schedule holds no request: make the run longer or the rate higher")
    return schedule


def _classes(arguments: argparse.Namespace, where: Target, seconds: float) -> list[ClassLoad]:
    if arguments.profile and arguments.classes:
        raise ConfigError("--profile and --class exclude each other")
    rate = 100.0 if arguments.rate is None else arguments.rate
    law = arguments.law or "exp"
    scale = arguments.rate_scale
    if arguments.profile == "founding":
        return founding(
            seconds=seconds,
            seed=arguments.seed,
            time_scale=arguments.time_scale,
            rate_scale=scale,
            rate_per_second=None if arguments.rate is None else arguments.rate * scale,
            law=arguments.law,
        )
    if arguments.profile == "social":
        return [
            ClassLoad(
                name=name,
                rate_per_second=rate * share * scale,
                law=law,
                request=SOCIAL[name],
            )
            for name, share in SOCIAL_SHARES.items()
        ]
    if arguments.classes:
        if arguments.rate is not None:
            raise ConfigError("--rate is the rate of a URL or a profile; a class has rate=N")
        parsed = [class_load(text, path=where.path, law=law) for text in arguments.classes]
        return [scaled(c, arguments.time_scale, scale) for c in parsed]
    body = arguments.body.encode()
    request = Request(where.path, arguments.method.upper(), (), body)
    return [ClassLoad(name="requests", rate_per_second=rate * scale, law=law, request=request)]


def _with(
    load: ClassLoad, deadline: float | None, headers: tuple[tuple[str, str], ...]
) -> ClassLoad:
    """The class with the deadline, unless it has its own, and with headers on each request."""
    if load.deadline_seconds is None and deadline is not None:
        load = replace(load, deadline_seconds=deadline)
    if not headers:
        return load
    request = load.request
    if isinstance(request, Request):
        return replace(load, request=replace(request, headers=request.headers + headers))
    return replace(
        load,
        request=lambda rng, count: [
            replace(r, headers=r.headers + headers) for r in request(rng, count)
        ],
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ConfigError(f"--header {text!r}: it must be NAME:VALUE")
    return name.strip(), value.strip()
