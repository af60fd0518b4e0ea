"""`make soak`: minutes of load with faults at random, then who lost what. Exit status 1 when any
request was lost that no killed process answers for, or memory grew, or anything else is wrong."""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from trimtab import terminal
from trimtab.errors import TrimtabError
from trimtab.load.processes import run_processes
from trimtab.load.result import Result
from trimtab.load.schedule import ClassLoad, build
from trimtab.load.workloads import Request, Work

from .faults import FAULTS, Scene, unavailable
from .judge import Disturbance, backward, growth_ratio, judge, lives
from .stage import CLASSES, POSTS, SHARES, Stage, staged

# A request may find a server that hangs (3 s to nginx's timeout), and then another.
CLIENT_TIMEOUT_SECONDS = 20.0

# Between two faults: reports, weights and estimates are themselves again.
CALM_SECONDS = (1.0, 3.0)

# For the observation to end: ten seconds, and what a busy machine needs. Then memory is judged.
WARM_UP_SECONDS = 60.0

# What may come and go with connections and the allocator's pieces, without a leak.
FLAT_RATIO = 1.15

# Of a process's life: it reads its packages and its state, and takes its first connections.
YOUNG_SECONDS = 15.0


class Load:
    """The load in a thread of its own, so that faults can be made meanwhile."""

    def __init__(self, stage: Stage, seed: int, rate: float, seconds: float) -> None:
        classes = [
            ClassLoad(
                name=name,
                rate_per_second=rate * SHARES[name],
                request=Request(path=f"/{name}", method="POST" if name == POSTS else "GET"),
                work=Work("exp", mean),
            )
            for name, mean in CLASSES.items()
        ]
        self._schedule = build(classes, seconds=seconds, seed=seed)
        self._url = f"http://{stage.config.nginx.listen[0]}"
        self._result: Result | BaseException | None = None
        self._started = threading.Event()
        self.progress: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._started.wait(60)

    def _run(self) -> None:
        try:
            self._result = asyncio.run(
                run_processes(
                    self._schedule,
                    self._url,
                    timeout_seconds=CLIENT_TIMEOUT_SECONDS,
                    on_progress=self._progress,
                )
            )
        except BaseException as error:
            self._result = error
        self._started.set()

    def _progress(self, progress: Any) -> None:
        self.progress = progress
        if progress.sent:
            self._started.set()

    @property
    def running(self) -> bool:
        """Whether requests are still under way."""
        return self._thread.is_alive()

    def since(self) -> float:
        """Seconds since the load began, by the clock of its records."""
        return time.time() - self._begin

    _begin = 0.0

    def began(self) -> None:
        """Take the load's own word for its beginning, to a tenth of a second."""
        self._begin = time.time() - self.progress.elapsed_seconds

    def result(self) -> Result:
        """Wait for the end."""
        self._thread.join()
        if isinstance(self._result, BaseException):
            raise self._result
        assert self._result is not None
        return self._result


class Watch:
    """Memory and generations, looked at twice a second."""

    def __init__(self, stage: Stage) -> None:
        self.memory: dict[str, list[tuple[float, int, float]]] = {}
        self.generations: list[tuple[int, int]] = []
        self._stage = stage
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def elapsed(self) -> float:
        """Seconds since it began to look."""
        return time.monotonic() - self._start

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            at = self.elapsed()
            for role, pid, size in self._stage.memory():
                self.memory.setdefault(role, []).append((at, pid, size))
            if (seen := self._stage.weights()) is not None:
                self.generations.append(seen)

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()


def say(text: str) -> None:
    """A line, at once."""
    print(text, flush=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="of load (180)")
    parser.add_argument("--seed", type=int, default=1, help="of load and faults (1)")
    parser.add_argument("--rate", type=float, default=250.0, help="requests a second (250)")
    parser.add_argument("--hold", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--workers", type=int, default=2, help="of nginx (2)")
    parser.add_argument("--faults", nargs="*", choices=FAULTS, metavar="NAME", default=list(FAULTS))
    parser.add_argument("--without", nargs="+", choices=FAULTS, metavar="NAME", default=[])
    parser.add_argument("--directory", type=Path, default=Path("var/soak"), help="(var/soak)")
    parser.add_argument("--json", type=Path, help="also write what was found there")
    return parser.parse_args(argv)


def warmed(stage: Stage, watch: Watch) -> float:
    """Wait until the observation is over; when that was, in the watch's seconds."""
    give_up = time.monotonic() + WARM_UP_SECONDS
    while time.monotonic() < give_up and stage.phase() in ("observing", ""):
        time.sleep(0.2)
    # Beyond the watch's next look.
    at = watch.elapsed()
    time.sleep(1.0)
    return at


def disturb(
    stage: Stage, load: Load, random: Random, names: list[str], until: float
) -> tuple[list[Disturbance], Counter[str], list[str]]:
    """Make the faults in turn, in an order that changes each round; what they may have lost, how
    many of each, and what went wrong with them."""
    seen: list[Disturbance] = []
    broken: list[str] = []
    made: Counter[str] = Counter()
    while names:
        for name in random.sample(names, len(names)):
            time.sleep(random.uniform(*CALM_SECONDS))
            if load.since() > until or not load.running:
                return seen, made, broken
            at = load.since()
            try:
                what, disturbances = FAULTS[name](Scene(stage, random, load.since))
            except (OSError, TrimtabError) as error:
                # Half an hour of findings must not go with one fault that could not be made.
                broken.append(f"at {at:.1f} s the fault {name} was not made: {error}")
                say(broken[-1])
                continue
            failed = 0 if load.progress is None else load.progress.failed
            say(f"{at:6.1f} s  {what} ({failed} failed so far)")
            seen += disturbances
            made[name] += 1
            # A service manager would see to it that it lives.
            if stage.policy is not None and not stage.policy.running:
                say(f"{load.since():6.1f} s  the policy server has ended; starting it again")
                stage.start_policy()
    return seen, made, broken


def largest(samples: list[tuple[float, int, float]]) -> list[tuple[float, float]]:
    """(seconds, bytes of the role's largest process then)."""
    of: dict[float, float] = {}
    for at, _, size in samples:
        of[at] = max(size, of.get(at, 0))
    return list(of.items())


def by_minute(samples: list[tuple[float, float]]) -> list[float]:
    """The largest megabytes of each minute."""
    minutes: dict[int, float] = {}
    for at, size in samples:
        minutes[int(at // 60)] = max(size, minutes.get(int(at // 60), 0))
    return [round(minutes[minute] / 1e6, 1) for minute in sorted(minutes)]


def at_rest(stage: Stage) -> list[str]:
    """What is not as it should be when nothing happens any more."""
    wrong = []
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        status = stage.status()
        wrong = []
        if status is None:
            wrong = ["nginx does not answer"]
        else:
            flying = {a["address"]: a["in_flight"] for a in status["addresses"] if a["in_flight"]}
            if flying:
                wrong.append(f"still in flight: {flying}")
            if status["weights"]["source"] != "learned":
                wrong.append("the weights in force are not the policy server's")
        if not wrong:
            break
        time.sleep(0.2)
    return wrong


def main(argv: list[str] | None = None) -> int:
    """Run it; the exit status."""
    options = arguments(argv)
    with staged(options.directory.absolute(), hold=options.hold, workers=options.workers) as stage:
        reasons = unavailable(stage)
        for name in (n for n in options.faults if n in reasons):
            say(f"left out: {name} {reasons[name]}")
        if "disk-full" in options.faults and not stage.mounted:
            say("no tmpfs can be mounted here: a full disk is one for the policy server alone")
        names = [n for n in options.faults if n not in reasons and n not in options.without]
        watch = Watch(stage)
        try:
            load = Load(stage, options.seed, options.rate, options.seconds)
            load.began()
            warm = warmed(stage, watch)
            last = options.seconds - CALM_SECONDS[1]
            disturbances, made, broken = disturb(stage, load, Random(options.seed), names, last)
            result = load.result()
        finally:
            watch.stop()
        wrong = broken + at_rest(stage)
    losses = judge(result.records, disturbances, POSTS)
    wrong += [f"lost: {told}" for told in losses.unexplained]
    wrong += backward(watch.generations)
    rows = []
    memory = {}
    for role, samples in watch.memory.items():
        series = largest(samples)
        grown = growth_ratio(series, warm)
        oldest = lives(samples, YOUNG_SECONDS)[:1]
        rows.append(
            [
                role,
                f"{max(s for _, s in series) / 1e6:.1f}",
                f"{grown:.3f}",
                f"{oldest[0].end - oldest[0].begin:.0f}" if oldest else "–",
                f"{oldest[0].bytes_per_minute / 1e6:+.3f}" if oldest else "–",
            ]
        )
        memory[role] = {
            "megabytes_by_minute": by_minute(series),
            "last_third_over_first": round(grown, 4),
            "longest_life": [asdict(each) for each in oldest],
        }
        if grown > FLAT_RATIO:
            wrong.append(f"the memory of the {role} grew to {grown:.2f} of its beginning")
    say("")
    heads = ("process", "MB at most", "last third / first", "longest life s", "its MB a minute")
    say(terminal.table(heads, rows))
    for role, found in memory.items():
        say(f"{role}, MB by minute: {' '.join(f'{m:.0f}' for m in found['megabytes_by_minute'])}")
    say(f"\nfaults: {sum(made.values())}, " + ", ".join(f"{n} {c}" for n, c in made.items()))
    say(
        f"requests: {losses.requests}, lost by killed workers {losses.by_killed_worker}, by "
        f"killed or hanging servers (POST) {losses.by_server}, on kept connections that a reload "
        f"of nginx closed {losses.by_reload}, by Trimtab {losses.lost}"
    )
    for told in wrong[:20]:
        say(f"WRONG: {told}")
    if options.json:
        found = {
            "seconds": options.seconds,
            "seed": options.seed,
            "hold": options.hold,
            "faults": dict(made),
            "requests": losses.requests,
            "lost_by_killed_workers": losses.by_killed_worker,
            "lost_by_servers": losses.by_server,
            "lost_by_reloads": losses.by_reload,
            "lost": losses.lost,
            "memory": memory,
            "wrong": wrong,
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
