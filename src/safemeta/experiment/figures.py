"""What all pictures share: typography, a palette that the colour-blind can tell apart, and how they are saved."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safemeta.experiment.errors import UserError
from safemeta.experiment.files import write_product

# Okabe and Ito (2008), and Tol's red for the limit, which no curve has.
PALETTE = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7F7F7F")
LIMIT_COLOUR = "#CC3311"
INK, FAINT = "#222222", "#8A8A8A"
FORMATS = ("png", "pdf", "svg")

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#BBBBBB",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EBEBEB",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 9.5,
    "text.color": INK,
    "svg.fonttype": "none",
    "figure.dpi": 160,
}


@contextlib.contextmanager
def canvas(title: str, subtitle: str, width: float, height: float) -> Iterator[tuple[Any, dict[str, float]]]:
    """An empty figure (inches) under a title and a line that says what is shown; and the edges of what is left free.

    Built without pyplot, which would keep global state and look for a display.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(width, height))
        FigureCanvasAgg(drawing)
        edge = 0.62 / width
        drawing.text(edge, 1 - 0.14 / height, title, fontsize=14, fontweight="bold", va="top")
        drawing.text(edge, 1 - 0.46 / height, subtitle, fontsize=10, color="#555555", va="top")
        edges = {"left": edge, "right": 1 - 0.25 / width, "top": 1 - 1.08 / height, "bottom": 0.58 / height}
        yield drawing, edges


@contextlib.contextmanager
def figure(title: str, subtitle: str, panels: int) -> Iterator[tuple[Any, list[Any]]]:
    """A figure with `panels` axes side by side under a title and a line that says what is shown."""
    with canvas(title, subtitle, 1.2 + 4.6 * panels, 4.5) as (drawing, edges):
        grid = drawing.add_gridspec(1, panels, **edges, wspace=0.2)
        yield drawing, [drawing.add_subplot(grid[0, index]) for index in range(panels)]


def save(drawing: Any, path: Path) -> Path:
    """Render completely, then write at once: a full disk leaves no half picture."""
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise UserError(f"Pictures are saved as {', '.join(FORMATS)}, so that '{path}' (--out) will not do.")
    buffer = io.BytesIO()
    drawing.savefig(buffer, format=suffix)
    return write_product(path, buffer.getvalue())


def mark_limit(axes: Any, limit: float, ceiling: float) -> None:
    """The limit as a dashed red line, everything above it shaded; the axis reaches at least above the line."""
    ceiling = max(ceiling, limit + 0.1 * abs(limit or 1.0))
    floor = axes.get_ylim()[0]
    top = ceiling + 0.1 * (ceiling - floor)
    axes.axhspan(limit, top, color=LIMIT_COLOUR, alpha=0.08, linewidth=0, zorder=0)
    axes.axhline(limit, color=LIMIT_COLOUR, linestyle=(0, (5, 3)), linewidth=1.6, zorder=3)
    axes.annotate(
        f"limit {limit:.4g}", (0, limit), xycoords=("axes fraction", "data"), xytext=(5, 4),
        textcoords="offset points", color=LIMIT_COLOUR, fontsize=9.5, fontweight="bold",
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}, zorder=6,
    )  # fmt: skip
    axes.set_ylim(floor, top)


def millions() -> Any:
    """A formatter of large numbers on an axis: 20 k, 1.5 M."""
    from matplotlib.ticker import FuncFormatter

    def shown(value: float, _: int) -> str:
        for size, unit in ((1e6, " M"), (1e3, " k")):
            if abs(value) >= size:
                return f"{value / size:g}{unit}"
        return f"{value:g}"

    return FuncFormatter(shown)
