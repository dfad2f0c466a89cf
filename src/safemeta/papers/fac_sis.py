"""FAC-SIS (Ma et al., L4DC 2022): Figures 3 to 8, Tables 2 and 3.

Six navigation tasks (Figures 3, 4, 7): FAC-SIS beside FAC with three fixed indices and Lagrangian baselines with limit
0, all on the same number of environment steps. Its index over training (Figure 8, Table 2). Collision avoidance of a
unicycle: policies under five indices (Table 3), visited and infeasible states (Figure 5), the zero sublevel set beside
the Hamilton-Jacobi avoidable set (Figure 6). The last two also with the released code's sign of d_dot.

In the paper: five seeds, 2,000,000 gradient steps. Figures whose released plotting script alters the data before
drawing (exact zeros among it) are no targets; what is measured is reported as it is.
"""

from functools import partial
from pathlib import Path

import numpy as np

from safemeta.experiment.statistics import bootstrap_columns
from safemeta.papers import drawing, fac_sis_claims, fac_sis_custom, fac_sis_geometry
from safemeta.papers.fac_sis_plan import IN_FIGURE, LOOKS, METHODS, NAVIGATION, SIZES, STARTS, custom, navigation
from safemeta.papers.fac_sis_runs import WatchedGroup, WatchedTrial, gather
from safemeta.papers.groups import Curve, over_seeds
from safemeta.papers.plan import Plan, Request, Summary
from safemeta.papers.tables import Cell, Table

Groups = dict[str, dict[str, WatchedGroup]]  # task -> method -> group
SHARED = "mean over seeds with 95 % bootstrap intervals"


def plan(request: Request) -> Plan:
    """The runs that the figures need."""
    size = SIZES[request.budget]
    trials = tuple(navigation(request, size) + custom(request, size))
    return Plan(trials, partial(summarise, trials=trials, request=request))


def summarise(out: Path, *, trials: tuple[WatchedTrial, ...], request: Request) -> Summary:
    """Tables, figures and claims from what is finished."""
    found = gather(out, trials)
    tasks: Groups = {}
    for (method, task), group in found.items():
        tasks.setdefault(task, {})[method] = group
    driven = {task: tasks[task] for task in NAVIGATION if task in tasks}
    tables, pictures, claims = [], [], []
    for figure in ("3", "7"):
        shown = {task: driven[task] for task in IN_FIGURE[figure] if task in driven}
        if figure in request.figures and shown:
            tables.append(performance(figure, shown))
            pictures.append(draw_performance(out / f"figure-{figure}.png", figure, shown))
            claims += fac_sis_claims.performance(shown)
    if "4" in request.figures and driven:
        tables.append(violations(driven))
        pictures.append(draw_violations(out / "figure-4.png", driven))
        claims += fac_sis_claims.violations(driven)
    if {"8", "table-2"} & {*request.figures} and driven:
        tables.append(parameters(driven))
        pictures.append(draw_parameters(out / "figure-8.png", driven))
        claims += fac_sis_claims.parameters(driven)
    first = STARTS["1"]
    for place in (first, f"{first} flipped"):
        if "table-3" in request.figures and place in tasks:
            tables.append(fac_sis_custom.table_3(place, tasks[place]))
            claims += fac_sis_claims.table_3(place, tasks[place])
    visited = {start: tasks[name] for start, name in STARTS.items() if name in tasks}
    if "5" in request.figures and visited:
        tables.append(fac_sis_custom.overlap(visited))
        pictures.append(fac_sis_custom.draw_overlap(out / "figure-5.png", visited))
        claims += fac_sis_claims.overlap(visited)
    if "6" in request.figures:
        learned = tasks.get(first, {}).get("fac-sis-initial")
        compared = fac_sis_geometry.compare(
            SIZES[request.budget].reachability, learned.watched[0].index if learned else None
        )
        tables.append(fac_sis_geometry.table(compared))
        pictures.append(fac_sis_geometry.draw(out / "figure-6.png", compared))
        claims += fac_sis_claims.sets(compared.inclusions)
    return Summary(tuple(tables), tuple(pictures), tuple(claims))


def performance(figure: str, tasks: Groups) -> Table:
    """Return, cost and cost rate at the end, and the largest cost of an episode."""
    rows: list[tuple[Cell, ...]] = []
    for task, methods in tasks.items():
        for method, group in methods.items():
            costs = group.pooled("costs")
            paid = int((costs > 0).sum())
            rows.append((
                task, method, len(group.seeds), over_seeds(group.pooled("returns").mean(1)),
                over_seeds(costs.mean(1)), float(costs.max()), f"{paid} of {costs.size}",
                group.largest_training_cost, over_seeds(group.cost_rates()[1][-1]),
            ))  # fmt: skip
    columns = (
        "task", "method", "seeds", "return", "episode cost", "largest episode cost", "episodes with cost",
        "largest in the last tenth of training", "cost rate",
    )  # fmt: skip
    note = (
        "Final policies on fresh episodes, those of FAC and SAC without noise; means over seeds with 95 % bootstrap"
        " intervals. The largest costs are of single episodes. Cost rate: accumulated cost over environment steps."
    )
    return Table(f"figure-{figure}", f"Figure {figure}: safety and return", columns, tuple(rows), note)


def violations(tasks: Groups) -> Table:
    """Steps per episode that broke the safe-action constraint."""
    rows: list[tuple[Cell, ...]] = []
    for task, methods in tasks.items():
        for method, group in methods.items():
            own = group.pooled("own_violations")
            mine = None if own.min() < 0 else over_seeds(own.mean(1))
            rows.append((task, method, mine, over_seeds(group.pooled("violations").mean(1))))
    columns = ("task", "method", "under its own index", "under phi_F")
    note = (
        "Steps per episode with phi(s') > max(phi(s), 0), final policies on fresh episodes. The paper does not say"
        " under which index others than FAC are counted; its released code counts everybody under phi_F."
    )
    return Table("figure-4", "Figure 4: violated safe-action constraints", columns, tuple(rows), note)


def parameters(tasks: Groups) -> Table:
    """Final parameters of the learned index beside Table 2's."""
    rows: list[tuple[Cell, ...]] = []
    for task, methods in tasks.items():
        for method in ("fac-sis", "fac-sis-initial"):
            if method in methods:
                ends = {name: methods[method].at_end(name) for name in fac_sis_claims.SYNTHESISED}
                steps = int(sum(line["updates"] for line in methods[method].metrics[0]))
                cells = tuple(None if values is None else over_seeds(values) for values in ends.values())
                rows.append((task, method, steps, *cells))
    rows.append(("Table 2, synthesised", "paper", 2_000_000, *fac_sis_claims.SYNTHESISED.values()))
    note = "fac-sis starts from k = 1, sigma = 0.3, n = 2 (the box's end), fac-sis-initial from 1, 0.3, 1."
    columns = ("task", "method", "gradient steps", *fac_sis_claims.SYNTHESISED)
    return Table("table-2", "Table 2: the learned index", columns, tuple(rows), note)


def draw_performance(path: Path, figure: str, tasks: Groups) -> Path:
    """Rows are tasks; columns are return, episode cost and cost rate over training."""
    columns = ("return", "episode cost", "cost rate")
    subtitle = f"exploring policies in training, {SHARED}"
    with drawing.grid(f"FAC-SIS, Figure {figure}", subtitle, [_short(task) for task in tasks], columns) as (page, axes):
        for row, methods in zip(axes, tasks.values(), strict=True):
            for method in METHODS:
                if method in methods:
                    group = methods[method]
                    drawing.draw(row[0], group.training("return"), method, *LOOKS[method])
                    drawing.draw(row[1], group.training("cost"), method, *LOOKS[method])
                    drawing.draw(row[2], group.cost_rate_curve(), method, *LOOKS[method])
            for axis in row:
                drawing.finish(axis, (), drawing.STEPS)
            for axis in row[1:]:
                axis.set_ylim(bottom=0)
        return drawing.save(page, axes, path)


def draw_violations(path: Path, tasks: Groups) -> Path:
    """One panel for each task, of the methods that have an index."""
    subtitle = "steps per training episode that broke the present index's constraint; mean and 95 % interval"
    names = list(tasks)
    rows = [names[start : start + 2] for start in range(0, len(names), 2)]
    with drawing.grid("FAC-SIS, Figure 4", subtitle, [""] * len(rows), [""] * len(rows[0])) as (page, axes):
        for task, axis in zip(names, axes.ravel(), strict=False):
            for method, group in tasks[task].items():
                if group.watched[0].index is not None:
                    drawing.draw(axis, group.training("violations"), method, *LOOKS[method])
            axis.set_title(_short(task))
            drawing.finish(axis, (), drawing.STEPS)
            axis.set_ylim(bottom=0)
        for axis in axes.ravel()[len(names) :]:
            axis.set_visible(False)
        return drawing.save(page, axes, path)


def draw_parameters(path: Path, tasks: Groups) -> Path:
    """Rows are starts; columns are the parameters, over gradient steps."""
    from safemeta.experiment import figures

    starts = {"fac-sis": "from phi_h", "fac-sis-initial": "from n = 1"}
    starts = {method: name for method, name in starts.items() if any(method in each for each in tasks.values())}
    subtitle = f"{SHARED}; dashed: Table 2"
    with drawing.grid(
        "FAC-SIS, Figure 8: the index over training",
        subtitle,
        [*starts.values()] or ["-"],
        [*fac_sis_claims.SYNTHESISED],
    ) as (page, axes):
        for row, method in zip(axes, starts, strict=False):
            for axis, (name, final) in zip(row, fac_sis_claims.SYNTHESISED.items(), strict=True):
                for task, colour in zip(NAVIGATION, figures.PALETTE, strict=True):
                    if method in tasks.get(task, {}):
                        drawing.draw(axis, _over_updates(tasks[task][method], name), _short(task), colour)
                axis.axhline(final, color=figures.INK, linestyle="--", linewidth=1)
                drawing.finish(axis, (), "gradient steps")
                axis.xaxis.set_major_formatter(figures.millions())
        return drawing.save(page, axes, path)


def _over_updates(group: WatchedGroup, name: str) -> Curve:
    length = min(map(len, group.metrics))
    values = np.array([[line[name] for line in lines[:length]] for lines in group.metrics], float).T
    updates = np.cumsum([line["updates"] for line in group.metrics[0][:length]])
    return Curve(updates, values.mean(1), *bootstrap_columns(values))


def _short(task: str) -> str:
    return task.replace("-", " ")
