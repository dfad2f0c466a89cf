"""MetaL (Calian, Mankowitz et al., ICLR 2021): Table 1, Figures 1 to 4, and one that the paper has not.

D4PG with no, fixed (RS-D4PG), learned (RC-D4PG) and meta-learned (MetaL) multipliers on the four tasks of the
Real-World RL suite at safety coefficients from 0.05 (said to be unsolvable) to 0.3 (solvable), and MetaL with other
outer losses. R and J_C are means over the last 100 training episodes; R_penalised = R - 1000 max(0, J_C - beta).

In the paper: eight seeds, 20,000 episodes, several thresholds of each task. They are in an appendix that is lost, as
are all settings; here each task has one threshold. Figure "slow" repeats Figure 4 at a lower rate of the multiplier.
"""

from functools import partial
from pathlib import Path

import numpy as np

from safemeta.experiment.figures import PALETTE
from safemeta.experiment.files import write_atomically
from safemeta.papers import metal_claims, metal_figures
from safemeta.papers.claims import Claim
from safemeta.papers.metal_claims import TABLE_1, Places, averaged, over_seeds
from safemeta.papers.metal_plan import (
    CARTPOLE,
    COMPARED,
    META_RATES,
    METHODS,
    OUTER_LOSSES,
    SHAPED,
    SIZES,
    SLOW_META_RATE,
    SLOW_RATE,
    SOLVABLE,
    TASKS,
    UNSOLVABLE,
    jobs,
    of_rate,
)
from safemeta.papers.metal_runs import Bundle, RobotGroup, RobotTrial, gather
from safemeta.papers.plan import Plan, Request, Summary
from safemeta.papers.tables import Cell, Table

MAIN = ("metal", "mesh-like", "rc-d4pg", "d4pg", *SHAPED)
ENOUGH = 800.0  # of 1000: a return at which a task counts as solved
INTERVALS = "Means over seeds with Student's 95 % intervals."
RATE_COLOURS = (PALETTE[4], PALETTE[0], PALETTE[3])  # of META_RATES
RC_LOOKS = {"rc-d4pg": ("rc-d4pg", PALETTE[1])}
SLOW_RATES = f"alpha_1 {SLOW_RATE:g}, meta-rate {SLOW_META_RATE:g}"
SLOW_LOOKS = {
    "metal": ("metal", PALETTE[0]),
    "metal slow": (f"metal, {SLOW_RATES}", PALETTE[4]),
    "rc-d4pg": ("rc-d4pg", PALETTE[1]),
    "rc-d4pg slow": (f"rc-d4pg, alpha_1 {SLOW_RATE:g}", PALETTE[3]),
}

Groups = dict[tuple[str, float, str], RobotGroup]  # task, coefficient, method


def plan(request: Request) -> Plan:
    """The runs that the figures need."""
    needed = tuple(jobs(request))
    return Plan(needed, partial(summarise, needed=needed, request=request))


def summarise(out: Path, *, needed: tuple[RobotTrial | Bundle, ...], request: Request) -> Summary:
    """Tables, figures and claims from what is finished."""
    found = gather(out, needed)
    tables, pictures, claims = [], [], []
    places = {task: at for task in TASKS if (at := places_of(found, task))}
    labels = {task: task.removeprefix("realworld-") for task in places}
    if {"table-1", "1", "2", "3"} & {*request.figures}:
        tables += [ends(found), learning(found)]
        columns = learning_curves(found)
        if columns:
            pictures.append(metal_figures.draw_learning(out / "learning-curves.png", columns))
            write_curves(out / "learning-curves.csv", columns)
    if "table-1" in request.figures:
        tables.append(table_1(places))
        for judge in (metal_claims.table_1, metal_claims.stand_in):
            claims += [claim for task, at in places.items() for claim in judge(labels[task], at)]
    panels = {(labels[task], f"coefficient {k:g}"): methods for task, at in places.items() for k, methods in at.items()}
    if "1" in request.figures and panels:
        title, shown = "MetaL, Figure 1: outer losses, and beside the baselines", (*OUTER_LOSSES, "rc-d4pg", "d4pg")
        pictures.append(metal_figures.draw_bars(out / "figure-1.png", title, panels, shown))
        claims += [claim for task, at in places.items() for claim in metal_claims.outer_losses(labels[task], at)]
    if "2" in request.figures and panels:
        title = "MetaL, Figure 2: safety coefficients"
        pictures.append(metal_figures.draw_bars(out / "figure-2.png", title, panels, MAIN))
    if {"1", "2", "3"} & {*request.figures}:
        claims += [claim for task, at in places.items() for claim in metal_claims.per_coefficient(labels[task], at)]
    easiest = {("", labels[task]): at[SOLVABLE] for task, at in places.items() if SOLVABLE in at}
    if "3" in request.figures and easiest:
        title = f"MetaL, Figure 3: coefficient {SOLVABLE:g} on each task"
        pictures.append(metal_figures.draw_bars(out / "figure-3.png", title, easiest, MAIN))
    if "4" in request.figures:
        names = {of_rate(rate): f"meta-rate {rate:g}" for rate in SIZES[request.budget].rates}
        looks = {of_rate(r): (f"metal, meta-rate {r:g}", c) for r, c in zip(META_RATES, RATE_COLOURS, strict=True)}
        table, picture = behaviour(out, "4", "how the multiplier's rate behaves", found, looks | RC_LOOKS)
        tables.append(table)
        pictures.append(picture)
        claims += [
            claim
            for method, rates in names.items()
            for claim in metal_claims.behaviour(rates, on_cartpole(found, method))
        ]
    if "slow" in request.figures:
        table, picture = behaviour(out, "slow", "a multiplier that rises ten times slower", found, SLOW_LOOKS)
        tables.append(table)
        pictures.append(picture)
        claims += slow_claims(found)
    return Summary(tuple(tables), tuple(pictures), tuple(claims))


def places_of(found: Groups, task: str) -> Places:
    """Coefficient -> method -> what it came to, of the methods of Table 1 and the ablation."""
    places: dict[float, dict[str, metal_claims.Reached]] = {}
    for (name, coefficient, method), group in found.items():
        if name == task and method in METHODS:
            places.setdefault(coefficient, {})[method] = group.reached
    return dict(sorted(places.items()))


def table_1(places: dict[str, Places]) -> Table:
    """Means over coefficients beside the paper's, which are over tasks and thresholds as well."""
    rows: list[tuple[Cell, ...]] = []
    for task, at in places.items():
        for method in MAIN:
            reached = averaged(at, method)
            if reached is not None:
                ours = tuple(map(over_seeds, (reached.penalised, reached.returns, reached.overshoot)))
                paper = TABLE_1.get(method, (None, None, None))
                rows.append((task, ", ".join(f"{k:g}" for k in at), method, reached.returns.size, *ours, *paper))
    columns = (
        "task", "coefficients", "method", "seeds", "penalised return", "return", "overshoot", "paper: penalised return",
        "paper: return", "paper: overshoot",
    )  # fmt: skip
    note = f"{INTERVALS} Last 100 training episodes, with the noise of exploration. The paper's: all tasks together."
    return Table("table-1", "Table 1: means over safety coefficients", columns, tuple(rows), note)


def ends(found: Groups) -> Table:
    """Every method at every place, in training and without noise."""
    rows: list[tuple[Cell, ...]] = []
    for (task, coefficient, method), group in sorted(
        found.items(), key=lambda item: (TASKS.index(item[0][0]), item[0][1])
    ):
        if method in METHODS:
            reached, quiet = group.reached, group.without_noise
            quantities = (
                reached.penalised,
                reached.returns,
                reached.costs,
                quiet.penalised,
                quiet.returns,
                quiet.costs,
            )
            multiplier, clipped = group.at_end("multiplier"), group.at_end("clipped_mass")
            cells = [
                *map(over_seeds, quantities),
                *(None if each is None else float(np.mean(each)) for each in (multiplier, clipped)),
            ]
            rows.append((task, coefficient, group.threshold, method, len(group.seeds), *cells))
    columns = (
        "task", "coefficient", "threshold", "method", "seeds", "penalised return", "return", "J_C",
        "penalised return without noise", "return without noise", "J_C without noise", "multiplier", "clipped mass",
    )  # fmt: skip
    note = (
        f"{INTERVALS} The first three: last 100 training episodes, with the noise of exploration, as the paper has it."
        " Without noise: final policies on fresh episodes. Clipped mass: of target atoms beyond the critic's support."
    )
    return Table("ends", "Figures 1 to 3: all methods", columns, tuple(rows), note)


def learning_curves(found: Groups) -> dict[str, dict[str, RobotGroup]]:
    """Task and coefficient -> the methods whose learning curves are shown."""
    columns: dict[str, dict[str, RobotGroup]] = {}
    for task in TASKS:
        for k in (UNSOLVABLE, SOLVABLE):
            groups = {method: found[task, k, method] for method in COMPARED if (task, k, method) in found}
            if groups:
                columns[f"{task.removeprefix('realworld-')}, coefficient {k:g}"] = groups
    return columns


def write_curves(path: Path, columns: dict[str, dict[str, RobotGroup]]) -> None:
    """The learning curves seed by seed, as a table."""
    lines = ["task,coefficient,method,seed,environment_steps,return,cost"]
    for group in (group for groups in columns.values() for group in groups.values()):
        lines += [
            f"{group.task},{group.coefficient:g},{group.method},{seed},{line['environment_steps']},"
            f"{line['return']:.1f},{line['cost']:.4f}"
            for seed, each in zip(group.seeds, group.metrics, strict=True)
            for line in each
        ]
    write_atomically(path, "\n".join([*lines, ""]).encode())


def learning(found: Groups) -> Table:
    """How soon D4PG, which heeds no cost, solves the tasks."""
    rows: list[tuple[Cell, ...]] = []
    for task in TASKS:
        group = found.get((task, SOLVABLE, "d4pg"))
        if group is None:
            continue
        returns, steps = group.table("return"), group.table("environment_steps")
        above = returns >= ENOUGH
        first = [float(steps[above[:, i].argmax(), i]) for i in range(len(group.seeds)) if above[:, i].any()]
        rows.append((
            task, len(group.seeds), len(first), max(first) if len(first) == len(group.seeds) else None,
            over_seeds(returns.max(0)), over_seeds(group.reached.returns), over_seeds(group.without_noise.returns),
        ))  # fmt: skip
    columns = (
        "task", "seeds", f"seeds that reach {ENOUGH:g}", "steps of the slowest", "best iteration", "last 100 episodes",
        "final policy without noise",
    )  # fmt: skip
    note = f"Returns, at most 1000; coefficient {SOLVABLE:g}, which changes costs alone. {INTERVALS}"
    return Table("learning", "D4PG without constraints", columns, tuple(rows), note)


def on_cartpole(found: Groups, method: str) -> dict[float, RobotGroup]:
    """A method's runs on cartpole, solvable and not, as far as there are any."""
    return {k: found[CARTPOLE, k, method] for k in (SOLVABLE, UNSOLVABLE) if (CARTPOLE, k, method) in found}


def slow_claims(found: Groups) -> list[Claim]:
    """The claims of Figure 4, and MetaL beside RC-D4PG, where multipliers rise slowly."""
    metal, rc = (on_cartpole(found, f"{name} slow") for name in ("metal", "rc-d4pg"))
    shared = {k: {"metal": metal[k].reached, "rc-d4pg": rc[k].reached} for k in metal if k in rc}
    return metal_claims.behaviour(SLOW_RATES, metal) + metal_claims.per_coefficient(f"cartpole, {SLOW_RATES}", shared)


def behaviour(out: Path, name: str, words: str, found: Groups, looks: dict[str, tuple[str, str]]) -> tuple[Table, Path]:
    """The multiplier and its rate over training on cartpole, of the methods in `looks` (label, colour)."""
    columns: dict[str, dict[str, RobotGroup]] = {}
    rows: list[tuple[Cell, ...]] = []
    for coefficient, word in ((SOLVABLE, "solvable"), (UNSOLVABLE, "unsolvable")):
        groups = {method: found[key] for method in looks if (key := (CARTPOLE, coefficient, method)) in found}
        columns[f"coefficient {coefficient:g} ({word})"] = groups
        for method, group in groups.items():
            learned = "log_rate" in group.metrics[0][0]
            log_rate = group.table("log_rate") if learned else None
            size = float(np.abs(group.table("meta_gradient")).mean()) if learned else None
            rows.append((
                coefficient, looks[method][0], len(group.seeds),
                None if log_rate is None else over_seeds(log_rate.max(0)),
                None if log_rate is None else over_seeds(log_rate[-1]),
                over_seeds(group.table("multiplier")[-1]), over_seeds(group.reached.costs),
                over_seeds(group.reached.returns), over_seeds(group.reached.penalised), size,
            ))  # fmt: skip
    titles = (
        "coefficient", "method", "seeds", "largest alpha", "last alpha", "last multiplier", "J_C", "return",
        "penalised return", "mean size of the meta-gradient",
    )  # fmt: skip
    note = f"{INTERVALS} alpha: alpha_lambda, which starts at 0. The meta-gradient's: of means over an iteration."
    table = Table(f"figure-{name}", f"Figure {name}: {words}", titles, tuple(rows), note)
    picture = metal_figures.draw_behaviour(out / f"figure-{name}.png", f"Figure {name}: {words}", columns, looks)
    return table, picture
