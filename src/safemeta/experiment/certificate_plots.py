"""The picture of a certificate: phi over distance and rate, along trajectories, and in the plane."""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from safemeta.experiment import figures
from safemeta.experiment.certificate_sets import REACH, SLICE_SPEED, Plane, Sets, planes
from safemeta.experiment.certified_episodes import Visited
from safemeta.experiment.figures import FAINT, INK, LIMIT_COLOUR, PALETTE
from safemeta.experiment.run_certificate import RunCertificate

LOW, HIGH = "#8DBBE0", "#EF9C82"  # energy; white is zero
BLUE, ORANGE = PALETTE[0], PALETTE[2]
MOST_DOTS = 6000
NEAR_HEADING = math.pi / 8  # of visited states that are shown at a heading


def draw_certificate(
    visited: Visited, certificate: RunCertificate, sets: Sets | None, report: Any, path: Path, *, title: str
) -> Path:
    """Draw and save; the plane's three pictures only where there are `sets`."""
    states, paths = report.states, report.trajectories
    subtitle = (
        f"{_described(certificate)}. {report.actions} actions tried in each of {states.visited} states:"
        f" {states.infeasible} without a safe one, {states.violations} violations;"
        f" {paths.success.count} of {paths.success.of} trajectories with neither hazard entry nor infeasible state"
    )
    height = 4.9 if sets is None else 10.6
    with figures.canvas(title, subtitle, 14.6, height) as (drawing, edges):
        edges["left"] = 0.85 / 14.6
        heights = [1.0] if sets is None else [1.0, 1.12]
        rows = drawing.add_gridspec(len(heights), 1, **edges, hspace=0.46, height_ratios=heights)
        upper = rows[0].subgridspec(1, 2, width_ratios=[1.75, 1], wspace=0.12)
        _draw_energy(drawing, drawing.add_subplot(upper[0]), visited, certificate, report.safe_distance)
        _draw_trajectories(drawing.add_subplot(upper[1]), visited)
        if sets is not None:
            top = rows[1].get_position(drawing).y1
            drawing.text(
                0.62 / 14.6, top + 0.86 / height, "Around the hazard", fontsize=12, fontweight="bold", va="top"
            )
            drawing.text(0.62 / 14.6, top + 0.62 / height, _compared(sets), fontsize=10, color="#555555", va="top")
            lower = rows[1].subgridspec(1, 3, wspace=0.12)
            panels = [drawing.add_subplot(lower[column]) for column in range(3)]
            for axes, plane in zip(panels, planes(sets), strict=True):
                _draw_plane(axes, plane, visited, report.safe_distance)
            panels[0].set_ylabel("y from the hazard (m)")
            _explain(panels[-1])
        return figures.save(drawing, path)


def _described(certificate: RunCertificate) -> str:
    rates = ", ".join(f"{each:.4g}" for each in certificate.k)
    kind = {"learned": "learned index", "fixed": "fixed index", "named": "index"}[certificate.source]
    name = "" if certificate.name is None else f" '{certificate.name}'"
    return f"{kind.capitalize()}{name}: sigma {certificate.sigma:.4g}, k {rates}, n {certificate.n:.4g}"


def _compared(sets: Sets) -> str:
    parts = [
        f"up to {each['top_speed']:g} m/s {each['sublevel_share']:.1%} have φ ≤ 0, {each['unsafe_inside']} of which are"
        " bound to collide"
        for each in sets.inclusions
    ]
    return f"Of the grid's states outside of the hazard: {'; '.join(parts)}"


def _draw_energy(drawing: Any, axes: Any, visited: Visited, certificate: RunCertificate, safe_distance: float) -> None:
    """Phi of one obstacle over (d, d'), its zero level, and where the policy went."""
    from matplotlib.colors import LinearSegmentedColormap

    points = visited.binding[visited.valid]
    reach = float(
        np.clip(np.quantile(points[:, 0], 0.98), 4 * certificate.safe_distance, 8 * certificate.safe_distance)
    )
    near = points[points[:, 0] <= reach]
    fastest = max(1.0, 1.1 * float(np.abs(near[:, 1]).max(initial=0.0)))
    distance, rate = np.meshgrid(np.linspace(0, reach, 161), np.linspace(-fastest, fastest, 161))
    energy = np.asarray(certificate.index.index(jnp.asarray(np.stack([distance, rate], axis=-1))[..., None, :]))
    span = float(np.median(np.abs(energy)))
    colours = LinearSegmentedColormap.from_list("energy", [LOW, "white", HIGH])
    filled = axes.imshow(
        energy, cmap=colours, vmin=-span, vmax=span, origin="lower", aspect="auto",
        extent=(0, reach, -fastest, fastest), interpolation="bilinear",
    )  # fmt: skip
    axes.grid(False)
    axes.contour(distance, rate, energy, [0.0], colors=INK, linewidths=1.8)
    axes.plot([], [], color=INK, linewidth=1.8, label="φ = 0")
    axes.axvspan(0, safe_distance, facecolor="none", edgecolor=FAINT, hatch="///", linewidth=0, alpha=0.6)
    axes.axvline(safe_distance, color=FAINT, linewidth=1.0)
    marks = visited.infeasible[visited.valid], visited.violated[visited.valid]
    _dots(axes, points, np.ones(len(points), bool), "visited", color=INK, s=2.5, alpha=0.35)
    _dots(axes, points, marks[1] & ~marks[0], "constraint violated", color=ORANGE, s=14, edgecolor=INK, linewidth=0.4)
    _dots(
        axes, points, marks[0], "no safe action", color=LIMIT_COLOUR, s=22, marker="X", edgecolor="white", linewidth=0.4
    )
    axes.set(xlim=(0, reach), ylim=(-fastest, fastest), xlabel="d, distance to the obstacle (m)")
    axes.set_title("Index φ over distance and its rate (hatched: nearer than the safe distance)")
    axes.set_ylabel("its rate (m/s); negative: closing in")
    axes.legend(loc="upper right", markerscale=1.5)
    bar = drawing.colorbar(filled, ax=axes, pad=0.015, fraction=0.04, extend="both")
    bar.outline.set_visible(False)
    bar.ax.set_title("φ", fontsize=10.5, pad=6)


def _draw_trajectories(axes: Any, visited: Visited) -> None:
    """Phi over the steps of all trajectories."""
    energy = np.where(visited.valid, visited.energy, np.nan)
    energy = energy[visited.valid.any(axis=1)]
    steps = np.arange(len(energy))
    low, middle, high = np.nanquantile(energy, [0.05, 0.5, 0.95], axis=1)
    largest = np.nanmax(energy, axis=1)
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.25, linewidth=0, label="5 to 95 % of trajectories")
    axes.plot(steps, middle, color=BLUE, linewidth=2.0, label="median")
    axes.plot(steps, largest, color=INK, linewidth=1.5, label="largest")
    axes.axhline(0, color=INK, linewidth=0.8)
    for marks, colour, marker, size in (
        (visited.violated, ORANGE, "o", 14),
        (visited.infeasible, LIMIT_COLOUR, "X", 22),
    ):
        when, which = np.nonzero(marks[: len(energy)])
        axes.scatter(
            when, energy[when, which], color=colour, marker=marker, s=size, zorder=4, edgecolor=INK, linewidth=0.3
        )
    peak = float(largest.max())
    top = max(0.2, 1.15 * peak)
    bottom = max(float(np.nanmin(energy)), min(-2.5 * top, peak - 2.5))
    axes.set_ylim(bottom, top + 0.15 * (top - bottom))  # room for the legend
    axes.set_xlim(0, max(int(np.flatnonzero(largest >= bottom)[-1]), 1))  # what comes after is far from all obstacles
    axes.set_title("φ along the trajectories")
    axes.set_xlabel("step")
    axes.legend(loc="upper center", ncols=3, fontsize=9, columnspacing=1.2, handlelength=1.6)


def _draw_plane(axes: Any, plane: Plane, visited: Visited, safe_distance: float) -> None:
    """{phi <= 0} and the avoidable set around the hazard, at one heading."""
    from matplotlib.patches import Circle

    axes.contourf(plane.x, plane.y, plane.energy, [-1e9, 0.0], colors=[BLUE], alpha=0.13)
    axes.contour(plane.x, plane.y, plane.energy, [0.0], colors=[BLUE], linewidths=1.8)
    value = np.ma.masked_invalid(plane.value)
    axes.contourf(plane.x, plane.y, value, [-1e9, 0.0], colors=[LIMIT_COLOUR], alpha=0.3)
    axes.contour(plane.x, plane.y, value, [0.0], colors=[LIMIT_COLOUR], linewidths=1.4, linestyles="--")
    axes.add_patch(Circle((0, 0), safe_distance, color="#777777", linewidth=0, zorder=3))
    x, y, heading = visited.observation[..., 0], visited.observation[..., 1], visited.observation[..., 3]
    relative = np.stack([x, y - visited.observation[..., 4]], axis=-1)
    turned = np.abs((heading - plane.heading + np.pi) % (2 * np.pi) - np.pi)
    shown = visited.valid & (turned < NEAR_HEADING) & (np.abs(relative).max(axis=-1) < REACH)
    _dots(axes, relative[shown], np.ones(int(shown.sum()), bool), "", color=INK, s=2.5, alpha=0.3)
    _dots(axes, relative[shown], visited.infeasible[shown], "", color=LIMIT_COLOUR, s=22, marker="X", zorder=5)
    tip = 0.32 * np.array([math.cos(plane.heading), math.sin(plane.heading)])
    axes.annotate("", tip, -tip, arrowprops={"arrowstyle": "-|>", "color": "white", "linewidth": 2}, zorder=4)
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xlabel="x from the hazard (m)")
    axes.set_title(f"Heading {math.degrees(plane.heading):.0f}°, {SLICE_SPEED:g} m/s")


def _explain(axes: Any) -> None:
    """The legend of the planes' pictures."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes.legend(
        handles=[
            Patch(facecolor=BLUE, alpha=0.3, label="φ ≤ 0"),
            Patch(facecolor=LIMIT_COLOUR, alpha=0.5, label="collision inevitable (Hamilton-Jacobi)"),
            Patch(facecolor="#777777", label="hazard"),
            Line2D([], [], color=INK, marker=".", linewidth=0, label="visited, heading within 22.5°, any speed"),
        ],
        loc="upper right",
        fontsize=9,
    )


def _dots(axes: Any, points: np.ndarray, marks: np.ndarray, label: str, **look: Any) -> None:
    """The marked points, thinned evenly where there are very many; nothing if there is none."""
    chosen = points[marks]
    if len(chosen) == 0:
        return
    every = -(-len(chosen) // MOST_DOTS)
    shown = f"{label} ({len(chosen)})" if label else None
    axes.scatter(*chosen[::every].T, label=shown, **{"linewidth": 0, "zorder": 4, **look})
