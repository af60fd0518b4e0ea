"""A picture of fitted states: their means side by side, and the transitions between them.

Needs matplotlib (the extra `plots`); whoever calls must expect its absence.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["draw"]


def draw(
    order: Sequence[int],
    shares: Mapping[int, float],
    means: Mapping[int, Mapping[str, float]],
    moves: Mapping[tuple[int, int], int],
    path: Path,
) -> None:
    """Write the picture of the states `order` (the commonest first) to `path`, as its ending says.

    Left the means, each feature in deviations from its mean over the states; right the share of
    the steps that went from a state (row) to another (column). Features that are the same in all
    states are left out. Raises OSError or ValueError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(next(iter(means.values())))
    values = np.array([[means[i][name] for i in order] for name in names], dtype=float)
    spread = np.nanstd(values, axis=1)
    shown = [n for n in range(len(names)) if spread[n] > 1e-9 * (1 + abs(values[n]).max())]
    away = (values[shown] - np.nanmean(values[shown], axis=1, keepdims=True)) / spread[shown, None]
    steps = np.array([[moves.get((a, b), 0) for b in order] for a in order], dtype=float)
    steps /= np.maximum(steps.sum(axis=1, keepdims=True), 1)
    figure = Figure(
        figsize=(6 + 0.7 * len(order), 2 + 0.25 * max(len(shown), len(order))), layout="constrained"
    )
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    ticks = range(len(order))
    labels = [f"{i}\n{shares.get(i, 0.0):.0%}" for i in order]
    image = left.imshow(away, aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5)
    figure.colorbar(image, ax=left, label="deviations")
    left.set_title("means")
    left.set_xlabel("state, share")
    left.set_xticks(ticks, labels, fontsize=7)
    left.set_yticks(range(len(shown)), [names[n] for n in shown], fontsize=7)
    image = right.imshow(steps, aspect="auto", cmap="Greys", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=right, label="share of the steps")
    right.set_title("transitions")
    right.set_xlabel("to")
    right.set_ylabel("from")
    right.set_xticks(ticks, labels, fontsize=7)
    right.set_yticks(ticks, [str(i) for i in order], fontsize=7)
    figure.savefig(path, dpi=120)
