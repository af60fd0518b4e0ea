"""`trimtab bench learning --twin`: what learning adds to the heuristic, and what faults cost."""

import argparse
from typing import Final

from trimtab import terminal
from trimtab.bench.scenario import find, names
from trimtab.bench.statistics import median
from trimtab.errors import ConfigError, DependencyError
from trimtab.training.comparison import BASE, FAULTS, HALVES, LEARNERS, Comparison
from trimtab.training.course import Training
from trimtab.training.setting import configuration

__all__ = ["run"]

SCENARIOS: Final = ("three-classes", "affinity")

# Half an hour of learning and as long after it.
SECONDS: Final = 3600.0
SEEDS: Final = 5

# Of the training that comes first: as `trimtab train` by default.
TRAINING_SECONDS: Final = 3600.0
TRAINING_SEEDS: Final = 3
EVALUATIONS: Final = 120


def run(arguments: argparse.Namespace) -> int:
    """Train where the output directory has no trained files, compare, print; 0. Ctrl-C ends with
    130 and keeps the trained files."""
    seconds = SECONDS if arguments.duration is None else arguments.duration
    seeds = SEEDS if arguments.seeds is None else arguments.seeds
    if not 60 <= seconds <= 86400 or not 1 <= seeds <= 1000:
        raise ConfigError(
            f"--duration {seconds:g}, --seeds {seeds}: they must be from 60 to 86400 seconds, and "
            "from 1 to 1000"
        )
    wanted = arguments.scenario or SCENARIOS
    chosen = [find(name) for name in (names() if "all" in wanted else dict.fromkeys(wanted))]
    directory = arguments.output / "learning"
    who = (*LEARNERS, *FAULTS)
    blocks = []
    for scenario in chosen:
        with terminal.Progress(seconds * seeds * len(who), unit="simulated s") as bar:
            try:
                config = configuration(scenario)
                files = {}
                for method in ("table", "dqn"):
                    path = directory / f"{scenario.name}-{method}.json"
                    work = Training(
                        scenario,
                        config,
                        path,
                        seconds=TRAINING_SECONDS,
                        seeds=TRAINING_SEEDS,
                        evaluations=EVALUATIONS,
                        with_network=method == "dqn",
                    )
                    try:
                        if path.exists():
                            work.resume()
                        bar.say(f"{scenario.name}: trained file {path}")
                        work.run()
                        files[method] = path
                    except DependencyError as error:
                        bar.say(f"{scenario.name}, {method}: {error}")
                if "table" not in files:
                    raise DependencyError("nothing could be trained")
                compared = Comparison(scenario, config, files["table"], files.get("dqn"), seconds)
                compared.run(who, range(1, seeds + 1), lambda at, what: bar.update(at, what))
            except KeyboardInterrupt:
                return 130
        blocks.append(_table(compared, seeds, markdown=arguments.markdown))
        print(blocks[-1] + "\n", flush=True)
    (directory / "learning.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return 0


def _table(of: Comparison, seeds: int, *, markdown: bool) -> str:
    header = ["in force", *(f"ART/1000 {h}" for h in HALVES), *(f"to {BASE} {h}" for h in HALVES)]
    header.append("promoted, minutes")
    rows = []
    for who in (*LEARNERS, *FAULTS):
        if who not in of.art:
            rows.append([who, *["-"] * 5])
            continue
        arts = [f"{median(of.art[who][h]):.2f}" for h in HALVES]
        ratios = [str(of.ratio(who, h)) for h in HALVES]
        minutes = of.promotion_minutes(who)
        count = len(of.promoted.get(who, {}))
        told = "-" if minutes is None else f"{minutes:.1f} ({count} of {seeds})"
        rows.append([who, *arts, *ratios, told])
    title = (
        f"{of.scenario.name}, in the twin: {of.scenario.requests_per_second:.0f} requests/s, "
        f"{seeds} seeds of {of.seconds:g} s; medians, paired ratios [95%]"
    )
    if not markdown:
        return f"{title}\n{terminal.table(header, rows)}"
    lines = [f"| {' | '.join(row)} |" for row in ([header, ["---"] * len(header), *rows])]
    return "\n".join([f"{title}:", "", *lines])
