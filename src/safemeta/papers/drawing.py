"""Figures of papers: rows and columns of small panels in the library's style."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment import figures
from safemeta.papers.groups import Curve


@contextlib.contextmanager
def grid(title: str, subtitle: str, rows: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[Any, np.ndarray]]:
    """A figure and its axes `[rows, columns]`, with the rows' names at the left and the columns' at the top."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = max(8.0, 0.8 + 3.1 * len(columns)), 1.4 + 2.3 * len(rows)
    with matplotlib.rc_context({**figures.STYLE, "figure.dpi": 130}):
        drawing = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawing)
        drawing.text(0.1 / width, 1 - 0.1 / height, title, fontsize=14, fontweight="bold", va="top")
        drawing.text(0.1 / width, 1 - 0.4 / height, subtitle, fontsize=10, color="#555555", va="top")
        layout: Any = drawing.get_layout_engine()
        layout.set(rect=(0, 0, 1, 1 - 0.65 / height))
        axes = drawing.subplots(len(rows), len(columns), squeeze=False)
        for name, row in zip(rows, axes, strict=True):
            row[0].set_ylabel(name, fontweight="bold")
        for name, top in zip(columns, axes[0], strict=True):
            top.set_title(name)
        yield drawing, axes


def draw(axes: Any, curve: Curve | None, label: str, colour: str, line: str = "-") -> None:
    """A mean and the band of its interval; nothing if there is no such curve."""
    if curve is None:
        return
    if np.isfinite(curve.low).all():
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(curve.x, curve.mean, color=colour, linestyle=line, linewidth=1.6, label=label)


LEGEND_WIDTH, LETTER_WIDTH = 0.7, 0.062  # inches of an entry of the legend: its line and gaps, and each letter
STEPS, ADAPTATION = "environment steps", "adaptation step"


def finish(axes: Any, limits: Sequence[float], xlabel: str) -> None:
    """Limits, the name of the x axis, and a panel that says so if nothing was drawn."""
    if not axes.lines:
        axes.text(0.5, 0.5, "no finished runs", ha="center", va="center", transform=axes.transAxes, color=figures.FAINT)
        axes.set(xticks=[], yticks=[])
        return
    if limits:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        for limit in limits:
            figures.mark_limit(axes, limit, axes.get_ylim()[1])
    axes.set_xlabel(xlabel)
    if xlabel == STEPS:
        axes.xaxis.set_major_formatter(figures.millions())
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)


def bars(axes: Any, names: Sequence[str], values: Sequence[Any], colours: Sequence[str]) -> None:
    """Bars with their 95 % intervals."""
    for position, (value, colour) in enumerate(zip(values, colours, strict=True)):
        axes.bar(position, value.mean, color=colour)
        if value.low is not None and value.high is not None:
            axes.plot([position, position], [value.low, value.high], color=figures.INK, linewidth=1.4)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8.5)
    axes.set_ylim(bottom=0)


def save(drawing: Any, axes: np.ndarray, path: Path) -> Path:
    """One legend for all panels, below them; then the file."""
    seen: dict[str, Any] = {}
    for each in axes.ravel():
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    if seen:
        width = LEGEND_WIDTH + LETTER_WIDTH * max(map(len, seen))
        columns = min(len(seen), max(1, int(drawing.get_size_inches()[0] // width)))
        drawing.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=columns)
    return figures.save(drawing, path)
