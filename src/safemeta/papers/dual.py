"""The dual method (Xu and Zhu): Figures 1, 2, 4, 5 and 6.

Four methods on seven scenarios. Figures 1 and 4: return and largest cost over tasks, in meta-training and over
adaptation steps on unseen tasks; Figures 2 and 5: computation time of the same runs; Figure 6: the allowed violation
delta_c. `dual` has safemeta's safe settings, in locomotion its preset for that; `dual-paper` the paper's (Table 2),
which also Figure 6 is drawn with.

All methods get the same tasks and episodes in an iteration, as in the paper: one inner step from `episodes` rollouts,
and as many of the adapted policy. In the paper: 300 meta-iterations of 10 tasks, 40 rollouts (locomotion) or 10
(navigation), 20 unseen tasks, 20 adaptation steps, 5 runs. How many episodes judge a policy is not given.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from safemeta.experiment.evaluate import Interval
from safemeta.experiment.figures import PALETTE
from safemeta.experiment.metrics import COSTS, RETURNS
from safemeta.papers import drawing
from safemeta.papers.claims import Claim
from safemeta.papers.dual_claims import claims_of, slack_claims
from safemeta.papers.groups import Group, gather, over_seeds, over_seeds_and_tasks
from safemeta.papers.plan import Plan, Request, Summary
from safemeta.papers.tables import Cell, Table
from safemeta.papers.trials import Judgement, Trial

METHODS: tuple[str, ...] = ("dual", "dual-paper", "meta-cpo", "meta-crpo", "maml")
COMPARED = ("dual", "meta-cpo", "meta-crpo", "maml")  # the paper's four
# Meta-CRPO is given all training tasks before it begins, as in the paper.
PRESETS = {"dual-paper": "paper", "meta-crpo": "offline"}
SLACKS = (1.0, 2.0, 3.0)
COLOURS: dict[str, str] = dict(zip(METHODS, PALETTE, strict=False))
# Figure -> families. Swimmer is in Figures 4 and 5, though their text does not name it.
IN_FIGURE = {
    "1": ("half-cheetah", "point-circle"),
    "2": ("half-cheetah", "point-circle"),
    "4": ("humanoid", "hopper", "swimmer", "car-circle-hazard", "point-button"),
    "5": ("humanoid", "hopper", "swimmer", "car-circle-hazard", "point-button"),
    "6": ("half-cheetah", "car-circle-hazard"),
}
# Table 2: lambda, which is lambda_c too.
KL_WEIGHT = {
    "half-cheetah": 1.0, "humanoid": 5.0, "hopper": 1.0, "swimmer": 0.2,
    "point-circle": 0.5, "car-circle-hazard": 0.5, "point-button": 0.5,
}  # fmt: skip
# Of Gymnasium: here `dual` has its preset "locomotion".
RUNNING = ("half-cheetah", "humanoid", "hopper", "swimmer")


@dataclasses.dataclass(frozen=True)
class Size:
    """How much to compute on one family. `seconds` is what a trial takes on two cores."""

    iterations: int
    tasks: int
    episodes: int
    test_tasks: int
    test_steps: int
    test_episodes: int
    seconds: float
    horizon: int | None = None
    methods: tuple[str, ...] = METHODS
    slacks: tuple[float, ...] = SLACKS


LOCOMOTION = Size(300, 10, 40, 20, 20, 20, seconds=4.0 * 3600)
NAVIGATION = Size(300, 10, 10, 20, 20, 20, seconds=4.0 * 3600)
# What the safe settings measure in addition, where the robots' physics takes its time.
FEW = {
    "cost_episodes": 5,
    "validation_every": 5, "validation_tasks": 8, "validation_episodes": 4, "corner_episodes": 40,
}  # fmt: skip
SIZES: dict[str, dict[str, Size]] = {
    "smoke": {
        "point-circle": Size(2, 2, 2, 2, 2, 2, seconds=12.0, horizon=100, methods=("dual", "meta-cpo"), slacks=())
    },
    "laptop": {
        "point-circle": Size(150, 10, 10, 20, 20, 50, seconds=75.0),
        "half-cheetah": Size(100, 5, 8, 10, 10, 10, seconds=80.0, slacks=(3.0,)),
        "swimmer": Size(100, 5, 8, 10, 10, 10, seconds=80.0, methods=COMPARED),
        "hopper": Size(100, 5, 8, 10, 10, 10, seconds=80.0, methods=COMPARED),
        "point-button": Size(30, 5, 4, 8, 10, 8, seconds=65.0, methods=COMPARED),
        "car-circle-hazard": Size(30, 5, 4, 8, 10, 8, seconds=105.0, slacks=(3.0,)),
        "humanoid": Size(10, 4, 5, 4, 5, 8, seconds=55.0, methods=COMPARED),
    },
    "paper": {name: LOCOMOTION if weight not in (0.5,) else NAVIGATION for name, weight in KL_WEIGHT.items()},
}


def plan(request: Request) -> Plan:
    """The trials that the figures need; those of Figures 2 and 5 are those of Figures 1 and 4."""
    trials = []
    for family, size in SIZES[request.budget].items():
        compared = any(family in IN_FIGURE[figure] for figure in request.figures if figure != "6")
        varied = "6" in request.figures and family in IN_FIGURE["6"] and bool(size.slacks)
        methods = size.methods if compared else ("dual-paper",) if varied else ()
        trials += [trial(family, size, method, seed) for method in methods for seed in request.seed_numbers]
        slacks = size.slacks if varied else ()
        trials += [trial(family, size, "dual-paper", seed, slack) for slack in slacks for seed in request.seed_numbers]
    found = tuple(trials)
    return Plan(found, partial(summarise, trials=found, request=request))


def trial(family: str, size: Size, method: str, seed: int, slack: float = 0.0) -> Trial:
    """One method on one family; `slack` is delta_c."""
    options: dict[str, Any] = {"tasks": size.tasks, "episodes": size.episodes}
    if method in ("meta-cpo", "meta-crpo"):
        options["inner_steps"] = 1
    if method in ("dual", "dual-paper") and size.tasks < LOCOMOTION.tasks:
        options |= FEW
    if method == "dual" and family not in RUNNING and size.tasks < LOCOMOTION.tasks:
        options["corner_tasks"] = 1
    if method == "dual-paper":
        options |= {"kl_weight": KL_WEIGHT[family], "cost_kl_weight": KL_WEIGHT[family], "slack": slack}
        options |= {"cost_episodes": 0, "corner_tasks": 0}
    shown = slack_name(slack) if slack else method
    return Trial(
        name=f"{shown}-{family}-s{seed}",
        method=shown,
        algorithm=method.removesuffix("-paper"),
        task=family,
        seed=seed,
        iterations=size.iterations,
        judgements=(Judgement("test", size.test_tasks, size.test_steps, size.test_episodes),),
        preset="locomotion" if method == "dual" and family in RUNNING else PRESETS.get(method),
        options=options,
        horizon=size.horizon,
        seconds=size.seconds,
    )


def slack_name(slack: float) -> str:
    """How a method with delta_c is called; without, it is `dual-paper`."""
    return f"dual-paper-delta-{slack:g}" if slack else "dual-paper"


def summarise(out: Path, *, trials: tuple[Trial, ...], request: Request) -> Summary:
    """Tables, figures and claims from what is finished."""
    groups = gather(out, trials)
    tables, pictures, claims = [], [], []
    for figure in request.figures:
        families = [family for family in IN_FIGURE[figure] if any(task == family for _, task in groups)]
        if not families:  # left out of a small budget, or not one run is finished
            continue
        found = {family: _of(groups, family, METHODS) for family in families}
        if figure in ("1", "4"):
            tables.append(performance(figure, found))
            pictures.append(draw_performance(out / f"figure-{figure}.png", f"Figure {figure}", found, COLOURS))
        elif figure in ("2", "5"):
            tables.append(times(figure, found))
            pictures.append(draw_times(out / f"figure-{figure}.png", f"Figure {figure}", found))
        else:
            names = tuple(slack_name(slack) for slack in (0.0, *SLACKS))
            found = {family: _of(groups, family, names) for family in families}
            tables.append(performance(figure, found))
            colours: dict[str, str] = dict(zip(names, PALETTE, strict=False))
            pictures.append(draw_performance(out / "figure-6.png", "Figure 6: allowed violation", found, colours))
            claims += slack_claims(found, slack_name)
        claims += claims_of(figure, found)
    return Summary(tuple(tables), tuple(pictures), tuple[Claim, ...](claims))


def _of(groups: dict[tuple[str, str], Group], family: str, methods: tuple[str, ...]) -> dict[str, Group]:
    return {method: groups[method, family] for method in methods if (method, family) in groups}


def performance(figure: str, found: dict[str, dict[str, Group]]) -> Table:
    """Return and largest cost, at the end of meta-training and in the test."""
    rows = []
    for family, methods in found.items():
        for method, group in methods.items():
            policies, above, significantly = group.policies
            largest = group.at_end(*COSTS)
            rows.append(
                (
                    family, method, len(group.seeds), _end(group, RETURNS),
                    None if largest is None else over_seeds(largest),
                    over_seeds_and_tasks(group.returns[0]), over_seeds_and_tasks(group.returns[-1]),
                    group.limit, group.largest_cost, f"{above} of {policies}, {significantly} significantly",
                )
            )  # fmt: skip
    columns = (
        "scenario", "method", "seeds", "return at the end of meta-training", "largest cost there",
        "test return before adaptation", "after", "limit", "largest cost of a policy", "policies above the limit",
    )  # fmt: skip
    note = (
        "Means with 95 % bootstrap intervals: over seeds in meta-training (on batches of training tasks), over seeds"
        " and unseen tasks in the test. Policies are judged on fresh episodes; the largest cost of all policies of all"
        " seeds is a mean with its t interval over episodes."
    )
    return Table(f"figure-{figure}", f"Figure {figure}: return and largest cost", columns, tuple(rows), note)


def times(figure: str, found: dict[str, dict[str, Group]]) -> Table:
    """Seconds of a meta-iteration and of adapting to one task."""
    rows: list[tuple[Cell, ...]] = []
    for family, methods in found.items():
        for method, group in methods.items():
            train, test = time_of(group)
            rows.append((family, method, len(group.seeds), train, test))
    columns = ("scenario", "method", "seeds", "seconds per meta-iteration", "seconds per task in the test")
    note = (
        "Medians over iterations, then means over seeds with 95 % bootstrap intervals; compilation apart. With"
        " --workers above 1 or other load the runs disturb each other's times."
    )
    return Table(f"figure-{figure}", f"Figure {figure}: computation time", columns, tuple(rows), note)


def time_of(group: Group) -> tuple[Interval, Interval]:
    """Seconds per meta-iteration and per task in the test."""
    return over_seeds(group.iteration_seconds), over_seeds(group.test_seconds)


def _end(group: Group, names: dict[str, tuple[str, str]]) -> Interval | None:
    values: NDArray | None = group.at_end(*names)
    return None if values is None else over_seeds(values)


def draw_performance(path: Path, title: str, found: dict[str, dict[str, Group]], colours: dict[str, str]) -> Path:
    """Rows are scenarios; columns are return and largest cost in meta-training, then in the test."""
    columns = ("training: return", "training: largest cost", "test: return", "test: largest cost")
    subtitle = "means over seeds (and tasks, where not the largest) with 95 % bootstrap intervals; dashed: the limit"
    with drawing.grid(f"Dual method, {title}", subtitle, tuple(found), columns) as (figure, axes):
        for row, methods in zip(axes, found.values(), strict=False):
            for method, group in methods.items():
                if method != "meta-crpo":  # offline it has no meta-training to show: its tasks are always the same
                    drawing.draw(row[0], group.training(*RETURNS), method, colours[method])
                    drawing.draw(row[1], group.training(*COSTS), method, colours[method])
                drawing.draw(row[2], group.over_steps(group.returns), method, colours[method])
                drawing.draw(row[3], group.largest_over_steps(), method, colours[method])
            limits = sorted({group.limit for group in methods.values()})
            for index, axis in enumerate(row):
                drawing.finish(axis, limits if index % 2 else (), drawing.ADAPTATION if index > 1 else drawing.STEPS)
        return drawing.save(figure, axes, path)


def draw_times(path: Path, title: str, found: dict[str, dict[str, Group]]) -> Path:
    """Bars of both times, a row for each scenario."""
    subtitle = "seconds, means over seeds with 95 % bootstrap intervals, compilation apart"
    columns = ("one meta-iteration", "one task in the test")
    with drawing.grid(f"Dual method, {title}", subtitle, tuple(found), columns) as (figure, axes):
        for row, methods in zip(axes, found.values(), strict=False):
            both = [time_of(group) for group in methods.values()]
            for index, axis in enumerate(row):
                values = [pair[index] for pair in both]
                drawing.bars(axis, tuple(methods), values, [COLOURS[method] for method in methods])
        return drawing.save(figure, axes, path)
