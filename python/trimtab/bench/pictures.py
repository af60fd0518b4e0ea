"""Pictures of a scenario: the tail of response times, ART over time, shares over time.

Drawn from the records of the runs (`runs/*.npz`), all seeds together. Needs matplotlib (the extra
`plots`); whoever calls must expect its absence, as `available` tells.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtab.bench.outcome import warm_up_seconds
from trimtab.bench.runner import Plan, Results
from trimtab.bench.verdict import OURS
from trimtab.demo.scenario import Scenario
from trimtab.load.records import Ending
from trimtab.model import FAILED_TARDINESS

__all__ = ["available", "draw"]

Floats = NDArray[np.float64]

# Ours in a colour that nothing else has, the peers in greys and muted colours, in fixed order.
_OURS: Final = "#d62728"
_PEERS: Final = (
    "#4c78a8", "#72b7b2", "#54a24b", "#b279a2", "#9d755d", "#bab0ac", "#eeca3b", "#79706e",
    "#439894", "#83bcb6", "#6b4c9a", "#a0a0a0",
)  # fmt: skip
# Other modes of ours, dashed.
_MODES: Final = ("#ff9896", "#e377c2", "#c49c94", "#8c564b")
_SERVERS: Final = "viridis"

# Seconds in one point of what is drawn over time: enough requests to mean something.
_BIN_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Runs:
    """The records of one balancer in one scenario, its seeds one after the other."""

    at: Floats  # intended
    response: Floats
    late: Floats  # relative tardiness
    server: NDArray[np.int64]  # -1: none


def available() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def _read(plan: Plan, scenario: Scenario, balancer: str, seeds: list[int]) -> _Runs:
    parts: list[tuple[Floats, ...]] = []
    deadlines = np.array([c.deadline_seconds for c in scenario.classes])
    for seed in seeds:
        path = plan.directory / "runs" / f"{scenario.name}.{balancer}.{seed}.npz"
        with np.load(path, allow_pickle=False) as data:
            response = data["end"] - data["intended"]
            late = np.maximum(0.0, response / deadlines[data["class_index"]] - 1)
            late = np.where(data["ending"] == Ending.OK, late, np.maximum(late, FAILED_TARDINESS))
            # Addresses differ from run to run, their order does not: ports rise with the server.
            ports = [int(p.rpartition(":")[2]) for p in data["peers"]]
            rank = np.append(np.argsort(np.argsort(ports)), -1).astype(np.int64)
            parts.append((data["intended"], response, late, rank[data["peer"]]))
    at, response, late, server = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Runs(at, response, late, server.astype(np.int64))


def _tail(axes: Any, runs: Mapping[str, _Runs], style: Mapping[str, dict[str, Any]]) -> None:
    """Share of requests slower than t, both axes logarithmic."""
    for name, of in runs.items():
        times = np.sort(of.response[~np.isnan(of.response)]) * 1000
        above = 1 - np.arange(len(times)) / len(times)
        # A thousand points, dense in the tail, look the same as all.
        picks = np.unique(
            (len(times) - np.geomspace(1, len(times), min(1000, len(times)))).astype(int)
        )
        axes.plot(times[picks], above[picks], **style[name])
    axes.set(xscale="log", yscale="log", xlabel="response time, ms", ylabel="share slower")
    axes.set_title("Tail of the response times")


def _over_time(
    axes: Any, runs: Mapping[str, _Runs], style: Mapping[str, dict[str, Any]], seconds: float
) -> None:
    """ART per 1000 requests by second of the run."""
    edges = np.arange(0.0, seconds + _BIN_SECONDS, _BIN_SECONDS)
    for name, of in runs.items():
        art, _ = np.histogram(of.at, edges, weights=of.late)
        count, _ = np.histogram(of.at, edges)
        axes.stairs(1000 * art / np.maximum(1, count), edges, **style[name])
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set(xlabel="time in the run, s", ylabel="ART per 1000 requests")
    axes.set_title("Tardiness over time")


def _shares(axes: Any, of: _Runs, scenario: Scenario, seconds: float, label: str) -> None:
    """Share of each server by second of the run."""
    from matplotlib import colormaps

    edges = np.arange(0.0, seconds + _BIN_SECONDS, _BIN_SECONDS)
    count = len(scenario.servers)
    counts = np.array([np.histogram(of.at[of.server == i], edges)[0] for i in range(count)])
    shares = counts / np.maximum(1, counts.sum(axis=0))
    colours = colormaps[_SERVERS](np.linspace(0.1, 0.9, count))
    below = np.zeros(len(edges) - 1)
    for i, share in enumerate(shares):
        axes.stairs(
            below + share, edges, baseline=below, fill=True, color=colours[i], label=f"{i + 1}"
        )
        below = below + share
    axes.set(xlabel="time in the run, s", ylabel="share of requests", ylim=(0, 1))
    axes.set_title(f"Shares of the servers: {label}")
    if count <= 6:  # more would hide the picture
        axes.legend(title="server", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def draw(plan: Plan, results: Results, scenario: Scenario) -> Path | None:
    """The pictures of a scenario as one PNG file; None when nothing was run."""
    seeds = {
        b.name: sorted(
            o.seed for o in results.outcomes if o.scenario == scenario.name and o.balancer == b.name
        )
        for b in plan.balancers
    }
    shown = [b for b in plan.balancers if seeds[b.name]]
    if not shown:
        return None
    from matplotlib.figure import Figure

    seconds = plan.seconds_of(scenario)
    runs = {b.name: _read(plan, scenario, b.name, seeds[b.name]) for b in shown}
    colours, modes = iter(_PEERS), iter(_MODES)
    style: dict[str, dict[str, Any]] = {}
    for b in shown:
        ours = b.name == OURS
        mode = b.name.startswith(OURS) and not ours
        colour = _OURS if ours else next(modes if mode else colours, "#444444")
        width = 2.0 if ours else 1.2
        style[b.name] = {"label": b.label, "color": colour, "linewidth": width}
        if mode:
            style[b.name]["linestyle"] = "--"
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _tail(left, runs, style)
    _over_time(middle, runs, style, seconds)
    middle.axvspan(0, warm_up_seconds(scenario, seconds), color="#000000", alpha=0.06)
    star = next((b for b in shown if b.name == OURS), shown[-1])
    _shares(right, runs[star.name], scenario, seconds, star.label)
    for axes in (left, middle):
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    path = plan.directory / f"{scenario.name}.png"
    figure.savefig(path, dpi=110)
    return path
