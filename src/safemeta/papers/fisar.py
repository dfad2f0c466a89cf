"""FISAR (Sun, Kim, How): Figures 2 and 3.

Figure 3: an optimizer is meta-trained on random quadratic problems with one and with three constraints, in the
Euclidean metric and in the paper's closed form, and followed on 64 fresh problems beside standard optimizers, with the
same projection and without; the true optima are Clarabel's. The same optimizers are then compared by how many steps
they need, also on larger problems than the learned one has seen. Figure 2: policies on the point mass, by FISAR,
projected gradient ascent, the primal-dual method and CPO, at equal batches, and by FISAR's optimizer untrained.

The paper gives no numbers of its own but the number of runs (64 and 8), so claims are judged by what it says in words.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment import figures
from safemeta.experiment.evaluate import Interval
from safemeta.experiment.figures import PALETTE
from safemeta.experiment.statistics import bootstrap_columns
from safemeta.papers import drawing, fisar_claims
from safemeta.papers.fisar_point_mass import METHODS, TASK, PolicyJob, judged
from safemeta.papers.fisar_qcqp_job import QuadraticJob, read
from safemeta.papers.groups import Curve, over_seeds
from safemeta.papers.plan import Plan, Request, Summary
from safemeta.papers.tables import Table

KINDS = ((1, "euclidean"), (3, "euclidean"), (3, "closed_form"))  # for one constraint the metrics agree
SMOKE_KINDS = KINDS[1:2]  # most of such a job is compilation
QUADRATIC_SEEDS = {"smoke": 1, "laptop": 1, "paper": 3}  # of meta-training; problems are the paper's "runs"
SHOWN = {
    "learned": ("learned (FISAR)", PALETTE[0], "-"),
    "learned, true constraints": ("learned, true constraints kept", PALETTE[4], "-"),
    "projected sgd": ("projected SGD", PALETTE[1], "-"),
    "projected adam": ("projected Adam", PALETTE[2], "-"),
    "sgd without constraints": ("SGD, unconstrained", PALETTE[1], ":"),
    "adam without constraints": ("Adam, unconstrained", PALETTE[2], ":"),
    "rmsprop without constraints": ("RMSprop, unconstrained", PALETTE[3], ":"),
}
LOOKS = {  # colour and line
    "fisar": (PALETTE[0], "-"),
    "fisar, untrained": (PALETTE[0], ":"),
    "projected gradient": (PALETTE[1], "-"),
    "primal-dual": (PALETTE[2], "-"),
    "cpo": (PALETTE[3], "-"),
}
STEPS_SHOWN = 150
SETTLED = 50  # policy updates

Quadratic = dict[tuple[int, str], dict[str, Any]]  # (constraints, metric) -> the result of its first seed
Policies = dict[str, list[tuple[PolicyJob, Path]]]  # method -> its finished jobs


def plan(request: Request) -> Plan:
    """All jobs of the figures that were asked for."""
    quadratic: list[QuadraticJob] = []
    policies: list[PolicyJob] = []
    if "3" in request.figures:
        quadratic = [
            QuadraticJob(constraints, "euclidean" if metric == "euclidean" else "closed_form", seed, request.budget)
            for constraints, metric in (SMOKE_KINDS if request.budget == "smoke" else KINDS)
            for seed in request.seed_numbers[: QUADRATIC_SEEDS[request.budget]]
        ]
    if "2" in request.figures:
        policies = [PolicyJob(method, seed, request.budget) for method in METHODS for seed in request.seed_numbers]
    return Plan((*quadratic, *policies), partial(summarise, quadratic=tuple(quadratic), policies=tuple(policies)))


def summarise(out: Path, *, quadratic: Sequence[QuadraticJob], policies: Sequence[PolicyJob]) -> Summary:
    """Figures, tables and claims, from what is finished."""
    tables, pictures, claims = [], [], []
    if quadratic:
        results = [(job, read(out / "runs" / job.name, job)) for job in quadratic]
        found = [(job, result) for job, result in results if result is not None]
        first: Quadratic = {}
        for job, result in found:
            first.setdefault((job.constraints, job.metric), result)
        tables += [quadratic_table(found), speed_table(found)]
        pictures.append(draw_quadratic(out / "figure-3.png", first))
        claims += fisar_claims.quadratic(first)
    if policies:
        finished: Policies = {}
        for job in policies:
            folder = out / "runs" / job.name
            if judged(folder) is not None:
                finished.setdefault(job.method, []).append((job, folder))
        tables.append(policy_table(finished))
        pictures.append(draw_policies(out / "figure-2.png", finished))
        claims += fisar_claims.policies(
            {
                method: [result for _, folder in jobs if (result := judged(folder)) is not None]
                for method, jobs in finished.items()
            }
        )
    return Summary(tuple(tables), tuple(pictures), tuple(claims))


def quadratic_table(found: Sequence[tuple[QuadraticJob, dict[str, Any]]]) -> Table:
    """Where every optimizer ends on fresh problems."""
    rows = []
    for job, result in found:
        for name, numbers in result["figure"].items():
            if name == "optimum":
                continue
            rows.append((
                f"m = {job.constraints}, {job.metric}, seed {job.seed}",
                name,
                float(numbers["step"]),
                100 * float(numbers["objective_ratio"][0]) - 100,
                100 * float(numbers["objective_ratio"][1]) - 100,
                100 * float(numbers["largest_gap"][1]),
                float(numbers["largest_violation"][0]),
                float(numbers["largest_violation"][1]),
            ))  # fmt: skip
    columns = (
        "problems", "optimizer", "step", "mean objective above optimum at 100, %", "at the end, %",
        "largest gap at the end, %", "largest violation at 100", "at the end",
    )  # fmt: skip
    note = "Objectives without constraints lie below the constrained optimum; their violations are not small."
    return Table("figure-3", "Quadratic problems", columns, tuple(rows), note)


def speed_table(found: Sequence[tuple[QuadraticJob, dict[str, Any]]]) -> Table:
    """Steps until solved."""
    rows = []
    for job, result in found:
        for place, methods in result["speeds"].items():
            size, start = place.split()
            for method, numbers in methods.items():
                rows.append((
                    f"m = {job.constraints}, {job.metric}, seed {job.seed}", int(size), start,
                    method if method == "learned" else f"projected {method}", float(numbers["step"]),
                    100 * float(numbers["solved"]), Interval(**numbers["mean"]),
                ))  # fmt: skip
    columns = ("problems", "n", "start", "optimizer", "step", "solved, %", "steps")
    note = (
        "Steps until the objective is within 1 % of the optimum and no constraint is above 0.01, for good; unsolved"
        " problems count as twice the steps there were. From outside, violations decay by a tenth per step whatever the"
        " optimizer is. The learned one was trained at n = 10; the others' steps were tuned at each n and start."
    )
    return Table("speed", "Does learning help?", columns, tuple(rows), note)


def policy_table(finished: Policies) -> Table:
    """Final policies on fresh episodes."""
    rows = []
    for method, jobs in finished.items():
        results = [result for _, folder in jobs if (result := judged(folder)) is not None]
        returns = over_seeds(np.array([each.episode_return.mean for each in results]))
        costs = [over_seeds(np.array([each.costs[name].mean for each in results])) for name in ("outside", "obstacle")]
        largest = [max(each.costs[name].mean for each in results) for name in ("outside", "obstacle")]
        within = sum(fisar_claims.keeps(each) for each in results)
        rows.append((method, returns, costs[0], largest[0], costs[1], largest[1], f"{within} of {len(results)}"))
    columns = ("method", "return", "cost outside", "largest", "cost obstacle", "largest", "seeds within both limits")
    note = "Limits 1 and 2 (discounted steps). Rivals aim a tenth below them (margin 0.1), FISAR a fifth."
    return Table("figure-2", f"Final policies on {TASK}", columns, tuple(rows), note)


def draw_quadratic(path: Path, found: Quadratic) -> Path:
    """Objective and largest constraint value over steps, means over problems with intervals."""
    columns = [f"m = {m}, {metric.replace('_', ' ')}" for m, metric in found]
    counts = sorted({result["settings"]["amount"]["problems"] for result in found.values()})
    subtitle = (
        f"{', '.join(map(str, counts)) or 'no'} fresh problems, mean and 95 % interval;"
        " dashed: the true constrained optimum, and the boundary"
    )
    rows = ("objective", "largest constraint")
    with drawing.grid("FISAR on quadratic problems", subtitle, rows, columns or ["-"]) as (figure, axes):
        for column, result in enumerate(found.values()):
            for name, (label, colour, line) in SHOWN.items():
                numbers = result["figure"][name]
                for row, quantity in enumerate(("objective", "violation")):
                    drawing.draw(axes[row, column], _curve(numbers[quantity]), label, colour, line)
            axes[0, column].set_yscale("log")
            start = result["figure"]["learned"]["objective"]["mean"][0]
            axes[0, column].set_ylim(0.3 * result["figure"]["optimum"], 2 * start)
            axes[0, column].axhline(result["figure"]["optimum"], color="#222222", linestyle="--", linewidth=1)
            axes[1, column].set_yscale("symlog", linthresh=1e-2)
            axes[1, column].axhline(0, color="#222222", linestyle="--", linewidth=1)
            axes[1, column].set_xlabel("step")
            for axis in axes[:, column]:
                axis.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(found) + 1)
        return figures.save(figure, path)


def draw_policies(path: Path, finished: Policies) -> Path:
    """Return and costs over policy updates, means over seeds with intervals."""
    panels = {"return": "return", "cost outside": "cost", "cost obstacle": "cost/obstacle"}
    limits = {"cost outside": 1.0, "cost obstacle": 2.0}
    subtitle = (
        "64 episodes per update, mean over seeds and 95 % interval; FISAR after its optimizer was trained;"
        f" scales fit what follows update {SETTLED}"
    )
    with drawing.grid(f"Policies on {TASK}", subtitle, ("",), tuple(panels)) as (figure, axes):
        for axis, (title, metric) in zip(axes[0], panels.items(), strict=True):
            drawn: list[Curve] = []
            for method, jobs in finished.items():
                curves = [job.curve(folder, metric) for job, folder in jobs]
                length = min(len(values) for _, values in curves)
                table = np.stack([values[:length] for _, values in curves])
                low, high = bootstrap_columns(table.T)
                drawn.append(Curve(curves[0][0][:length], table.mean(0), low, high))
                drawing.draw(axis, drawn[-1], method, *LOOKS[method])
            if drawn:
                axis.set_ylim(*_span(drawn, limits.get(title)))
            drawing.finish(axis, [limits[title]] if title in limits else [], "policy update")
        return drawing.save(figure, axes, path)


def _span(curves: Sequence[Curve], limit: float | None) -> tuple[float, float]:
    """What an axis shows: all means after update `SETTLED` with some room, of costs from zero to twice the limit.

    Untrained policies lie so far away that with them all later differences would be a line's width.
    """
    later = np.concatenate([curve.mean[(curve.x >= SETTLED) | (curve.x == curve.x[-1])] for curve in curves])
    low, high = float(later.min()), float(later.max())
    if limit is not None:
        return 0.0, max(2 * limit, 1.1 * high)
    return low - 0.1 * (high - low), high + 0.1 * (high - low)


def _curve(numbers: dict[str, list[float]]) -> Curve:
    mean, low, high = (np.asarray(numbers[name][: STEPS_SHOWN + 1]) for name in ("mean", "low", "high"))
    return Curve(np.arange(len(mean)), mean, low, high)
