"""MetaL's figures: bars of return and penalised return, what the multiplier does over training, learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment import figures
from safemeta.experiment.statistics import bootstrap_columns
from safemeta.papers import drawing
from safemeta.papers.groups import Curve
from safemeta.papers.metal_claims import Methods, over_seeds
from safemeta.papers.metal_plan import COLOURS, COMPARED
from safemeta.papers.metal_runs import Reached, RobotGroup

OVER_TRAINING = "exploring policies in training; mean over seeds and 95 % interval"
BARS = "pale: return R; full: penalised return, R - 1000 max(0, J_C - beta); lines: 95 % intervals over seeds"
QUANTITIES = {  # metric -> label
    "log_rate": r"$\alpha_\lambda$",
    "effective_rate": r"$\alpha_1 \exp(\alpha_\lambda)$",
    "multiplier": r"$\lambda$",
    "cost": r"$J_C$",
    "return": "return",
}
SCALES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "effective_rate": ("log", {}),
    "multiplier": ("symlog", {"linthresh": 0.1}),
}
LEARNING = {"return": "return", "cost": r"$J_C$"}


def draw_bars(path: Path, title: str, panels: Mapping[tuple[str, str], Methods], methods: Sequence[str]) -> Path:
    """One panel for each (row, column); in each, a bar for each of the methods that were run there."""
    rows, columns = (list(dict.fromkeys(key[index] for key in panels)) for index in (0, 1))
    with drawing.grid(title, BARS, rows, columns) as (figure, axes):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                found = panels.get((row, column), {})
                _bars(axes[i, j], {name: found[name] for name in methods if name in found})
            _share_scale([each for each in axes[i] if each.patches])
        return figures.save(figure, path)


def _bars(axes: Any, found: Mapping[str, Reached]) -> None:
    if not found:
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
        return
    for position, (name, reached) in enumerate(found.items()):
        colour = COLOURS[name]
        axes.bar(position, reached.returns.mean(), color=colour, alpha=0.3, width=0.8)
        axes.bar(position, reached.penalised.mean(), color=colour, width=0.8)
        for values, shift in ((reached.returns, 0.16), (reached.penalised, -0.16)):
            span = over_seeds(values)
            if span.low is not None and span.high is not None:
                axes.plot([position + shift] * 2, [span.low, span.high], color=figures.INK, linewidth=1.2)
    axes.axhline(0, color=figures.INK, linewidth=0.8)
    axes.set_xlim(-0.6, max(len(found), 3) - 0.4)
    axes.set_xticks(range(len(found)), list(found), rotation=40, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes.grid(axis="x", visible=False)


def _share_scale(axes: Sequence[Any]) -> None:
    """The same scale for all panels of a row."""
    lows, highs = zip(*(each.get_ylim() for each in axes), strict=True)
    for each in axes:
        each.set_ylim(min(lows), max(highs))


def draw_behaviour(
    path: Path, title: str, columns: Mapping[str, Mapping[str, RobotGroup]], looks: Mapping[str, tuple[str, str]]
) -> Path:
    """Rows are quantities, columns coefficients; a line for each method in `looks` (label, colour)."""
    rows = list(QUANTITIES.values())
    with drawing.grid(f"MetaL on cartpole, {title}", OVER_TRAINING, rows, list(columns)) as (figure, axes):
        for column, groups in zip(axes.T, columns.values(), strict=True):
            _curves(column, QUANTITIES, groups, looks)
        return drawing.save(figure, axes, path)


def draw_learning(path: Path, columns: Mapping[str, Mapping[str, RobotGroup]]) -> Path:
    """Return and violation over training; a column for each task and coefficient."""
    looks = {method: (method, COLOURS[method]) for method in COMPARED}
    title, rows = "MetaL and baselines: learning curves", list(LEARNING.values())
    with drawing.grid(title, OVER_TRAINING, rows, list(columns)) as (figure, axes):
        for column, groups in zip(axes.T, columns.values(), strict=True):
            _curves(column, LEARNING, groups, looks)
        return drawing.save(figure, axes, path)


def _curves(
    column: np.ndarray,
    quantities: Mapping[str, str],
    groups: Mapping[str, RobotGroup],
    looks: Mapping[str, tuple[str, str]],
) -> None:
    """A quantity in each of the axes, the last of which names what is across."""
    for axis, name in zip(column, quantities, strict=True):
        for method, (label, colour) in looks.items():
            if method in groups:
                drawing.draw(axis, curve(groups[method], name), label, colour)
        if name in SCALES:
            kind, options = SCALES[name]
            axis.set_yscale(kind, **options)
        else:
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
        limits = [group.threshold for group in groups.values()][:1] if name == "cost" else []
        drawing.finish(axis, limits, drawing.STEPS if axis is column[-1] else "")
        axis.xaxis.set_major_formatter(figures.millions())


def curve(group: RobotGroup, name: str) -> Curve | None:
    """A metric over environment steps; None if it was not logged."""
    if any(name not in lines[0] for lines in group.metrics):
        return None
    values, steps = group.table(name), group.table("environment_steps")[:, 0]
    return Curve(steps, values.mean(1), *bootstrap_columns(values))
