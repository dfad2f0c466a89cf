"""Collision avoidance of FAC-SIS: Table 3 and Figure 5."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment import figures
from safemeta.experiment.evaluate import Interval, interval
from safemeta.experiment.statistics import binomial_interval, mean_interval
from safemeta.papers import drawing
from safemeta.papers.fac_sis_plan import CUSTOM
from safemeta.papers.fac_sis_runs import WatchedGroup
from safemeta.papers.tables import Cell, Table

# Table 3, per cent: success, phi_0 violations, infeasible; then the tracking error.
TABLE_3: dict[str, tuple[float, float, float, float | None]] = {
    "fac phi_0": (0, 100, 100, None),
    "fac phi_i": (85, 0, 15, 2.974),
    "fac phi_SIS": (99, 0, 1, 3.378),
    "fac phi_F": (100, 0, 0, 3.456),
    "fac phi_h": (70, 0, 30, 3.528),
}
SHOWN = {"fac phi_SIS": "phi of Table 2", "fac-sis-initial": "phi learned here"}
VISITED, BARRED = figures.PALETTE[0], figures.PALETTE[2]


def share(count: int, total: int) -> Interval:
    """A share with its exact (Clopper-Pearson) 95 % interval."""
    return Interval(count / total, *binomial_interval(count, total))


def rates(group: WatchedGroup) -> tuple[Interval, Interval, Interval]:
    """Of all seeds' trajectories: without cost and infeasible states; with cost; with infeasible states."""
    success, costs, infeasible = (group.pooled(name).ravel() for name in ("successes", "costs", "infeasible"))
    return (
        share(int(success.sum()), success.size),
        share(int((costs > 0).sum()), success.size),
        share(int((infeasible > 0).sum()), success.size),
    )


def tracking(group: WatchedGroup) -> Interval:
    """Mean of the tracking error with its t interval over trajectories."""
    return over_episodes(group.pooled("tracking_error"))


def over_episodes(values: NDArray) -> Interval:
    """Mean of `[seeds, episodes]` with its t interval over all episodes."""
    mean, low, high = mean_interval(np.reshape(values, (1, -1)))
    return interval(mean[0], low[0], high[0])


def table_3(place: str, methods: Mapping[str, WatchedGroup]) -> Table:
    """Success, violations, infeasible trajectories, tracking error."""
    rows: list[tuple[Cell, ...]] = []
    for method in CUSTOM:
        if method in methods:
            group = methods[method]
            found = rates(group)
            states = group.pooled("infeasible").sum() / (group.pooled("infeasible").size * group.horizon)
            said = TABLE_3.get(method)
            theirs = "-" if said is None else " / ".join("-" if value is None else f"{value:g}" for value in said)
            rows.append((
                method, group.pooled("costs").size, *found, float(states), tracking(group), theirs,
            ))  # fmt: skip
    columns = (
        "index", "trajectories", "success", "phi_0 violated", "infeasible", "share of infeasible states",
        "tracking error", "paper (%, %, %, error)",
    )  # fmt: skip
    flipped = place.endswith("flipped")
    note = (
        "Trajectories of policies trained with each index, all seeds together; exact binomial 95 % intervals, which"
        " take trajectories of one policy as independent. Success: never within the hazard, and in every state one of"
        " 17 x 17 actions keeps the safe-action constraint of the policy's own index. Tracking error: minus the mean"
        " reward (place, speed, a tenth of the heading error); the paper does not define its own, so that only orders"
        " compare."
    )
    words = ", d_dot with the released code's sign" if flipped else ""
    name = f"table-3{'-flipped' if flipped else ''}"
    return Table(name, f"Table 3: indices on collision avoidance{words}", columns, tuple(rows), note)


def overlap(visited: Mapping[str, Mapping[str, WatchedGroup]]) -> Table:
    """How many of the visited states are infeasible, by start distribution."""
    rows: list[tuple[Cell, ...]] = []
    for start, methods in visited.items():
        for method in SHOWN:
            if method in methods:
                group = methods[method]
                among, states = infeasible_states(group)
                trajectories = rates(group)[2]
                cells = group.watched[0]
                rows.append((start, method, states, among, trajectories, f"{len(cells.barred)} of {cells.searched}"))
    columns = (
        "start distribution", "index", "visited states", "of them infeasible", "trajectories with any",
        "infeasible states of the grid",
    )  # fmt: skip
    note = (
        "17 x 17 actions in each state, tried by the simulator. The grid has d 0.5 to 4 m, v -2 to 4 m/s and all"
        " directions, and is that of the first seed's index."
    )
    return Table("figure-5", "Figure 5: visited and infeasible states", columns, tuple(rows), note)


def infeasible_states(group: WatchedGroup) -> tuple[int, int]:
    """Visited states that are infeasible, and all visited."""
    counts = group.pooled("infeasible")
    return int(counts.sum()), int(counts.size * group.horizon)


def draw_overlap(path: Path, visited: Mapping[str, Mapping[str, WatchedGroup]]) -> Path:
    """Visited states over those in which no action keeps the constraint, in the plane of d and d_dot."""
    rows = [method for method in SHOWN if any(method in methods for methods in visited.values())]
    columns = [f"start distribution {start}" for start in visited]
    subtitle = "first seed; infeasible states of the grid cover their (d, d_dot) for some heading, not for all"
    with drawing.grid("FAC-SIS, Figure 5", subtitle, [""] * max(len(rows), 1), columns) as (page, axes):
        for row, method in zip(axes, rows, strict=False):
            row[0].set_ylabel(f"{SHOWN[method]}\nd_dot (m/s)")
            for axis, methods in zip(row, visited.values(), strict=True):
                if method in methods:
                    _draw_states(axis, methods[method])
        handles = {}
        for axis in axes.ravel():
            handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        if handles:
            legend = page.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, markerscale=2.5)
            for handle in legend.legend_handles:
                handle.set_alpha(1)
        return figures.save(page, path)


def _draw_states(axes: Any, group: WatchedGroup) -> None:
    from safemeta.tasks.collision_avoidance import HAZARD_RADIUS

    seen = group.watched[0]
    distance, rate, feasible = seen.distance.ravel(), seen.rate.ravel(), seen.feasible.ravel()
    plot = axes.scatter
    if len(seen.barred):
        plot(*seen.barred.T, s=9, marker="s", color=BARRED, linewidth=0, label="infeasible (grid)")
    plot(distance, rate, s=3, color=VISITED, alpha=0.25, linewidth=0, label="visited")
    if not feasible.all():
        plot(
            distance[~feasible], rate[~feasible], s=22, marker="x", color=figures.LIMIT_COLOUR, linewidth=1.2,
            label="visited and infeasible", zorder=4,
        )  # fmt: skip
    axes.axvline(HAZARD_RADIUS, color=figures.INK, linestyle="--", linewidth=1)
    lowest, highest = min(-4.3, float(rate.min())), max(2.0, float(rate.max()) + 0.8)
    axes.set(xlim=(0, 4), ylim=(lowest, highest), xlabel="d (m)")
    axes.text(
        0.98, 0.97,
        f"infeasible: {int((~feasible).sum())} of {feasible.size} visited,\n"
        f"{len(seen.barred)} of {seen.searched} of the grid",
        transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=figures.INK,
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5},
    )  # fmt: skip
