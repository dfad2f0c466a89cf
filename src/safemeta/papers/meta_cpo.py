"""Meta-CPO (Cho and Sun, AAAI 2024): Figure 5.

Four methods on three navigation families: meta-training (first row; CPO and TRPO, which are no meta-learners, in the
second), and the test on unseen tasks from Table 1's test ranges, over adaptation steps (third row). In
Car-Circle-Hazard the limit is 10 in training and 5 in the test; in the other two it stays 10.

The paper gives M = 5 tasks, K = 5 inner steps, networks of (32, 16) and 3 seeds. From the released code: 8 episodes
of 500 steps for each policy, 50 steps in the test, 1,000 iterations. CPO and TRPO get as many environment steps as the
meta-learners, on tasks of the same distribution, and go on with their own steps in the test (`continuation.py`).
"""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment.evaluate import Interval
from safemeta.experiment.figures import PALETTE
from safemeta.experiment.metrics import COSTS, RETURNS
from safemeta.papers import drawing
from safemeta.papers.claims import CONTRADICTED, NOT_REPRODUCED, REPRODUCED, Claim, Verdict, at_least, shown, within
from safemeta.papers.groups import Group, gather, over_seeds, over_seeds_and_tasks, paired
from safemeta.papers.plan import Plan, Request, Summary
from safemeta.papers.tables import Table
from safemeta.papers.trials import Judgement, Trial

META, PLAIN = ("meta-cpo", "meta-trpo"), ("cpo", "trpo")
METHODS = (*META, *PLAIN)
COLOURS = dict(zip(METHODS, PALETTE, strict=False))
# family -> limit in the test where it is not the family's own (whose test limit is 5)
FAMILIES = {"point-circle-meta-cpo": 10.0, "car-circle-hazard-meta-cpo": None, "point-button-meta-cpo": 10.0}
TIGHTER = "car-circle-hazard-meta-cpo"
HIDDEN = (32, 16)
SAID = "not given as a number"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much to compute on one family. `seconds` is what a trial takes on two cores."""

    iterations: int
    tasks: int
    inner_steps: int
    episodes: int
    test_tasks: int
    test_steps: int
    test_episodes: int
    seconds: float
    horizon: int | None = None
    methods: tuple[str, ...] = METHODS


PAPER = Size(1000, 5, 5, 8, 20, 50, 20, seconds=3.0 * 3600)
SIZES: dict[str, dict[str, Size]] = {
    # All that a smoke run does is compile; meta-trpo compiles what meta-cpo does.
    "smoke": {
        "point-circle-meta-cpo": Size(
            2, 2, 1, 2, 2, 2, 2, seconds=20.0, horizon=100, methods=("meta-cpo", "cpo", "trpo")
        ),
    },
    "laptop": {
        "point-circle-meta-cpo": Size(200, 5, 5, 8, 20, 50, 50, seconds=170.0),
        "car-circle-hazard-meta-cpo": Size(50, 5, 3, 4, 10, 10, 10, seconds=280.0),
        "point-button-meta-cpo": Size(60, 5, 3, 4, 10, 10, 10, seconds=160.0),
    },
    "paper": dict.fromkeys(FAMILIES, PAPER),
}


def plan(request: Request) -> Plan:
    """All trials of Figure 5."""
    sizes = SIZES[request.budget]
    found = [
        trial(task, size, method, seed)
        for task, size in sizes.items()
        for method in size.methods
        for seed in request.seed_numbers
    ]
    return Plan(tuple(found), partial(summarise, trials=tuple(found), tasks=tuple(sizes)))


def trial(task: str, size: Size, method: str, seed: int) -> Trial:
    """One method on one family."""
    options = {"tasks": size.tasks, "episodes": size.episodes, "hidden": HIDDEN, "critic": "linear"}
    iterations = size.iterations
    if method in META:
        options["inner_steps"] = size.inner_steps
    else:
        iterations *= size.inner_steps + 1  # as many environment steps
    test = Judgement("test", size.test_tasks, size.test_steps, size.test_episodes, FAMILIES[task])
    return Trial(
        name=f"{method}-{task}-s{seed}",
        method=method,
        algorithm=method,
        task=task,
        seed=seed,
        iterations=iterations,
        judgements=(test,),
        options=options,
        horizon=size.horizon,
        seconds=size.seconds,
    )


def summarise(out: Path, *, trials: tuple[Trial, ...], tasks: tuple[str, ...]) -> Summary:
    """Figure 5, its table and its claims, from what is finished."""
    groups = gather(out, trials)
    by_task = {task: {method: groups[method, task] for method in METHODS if (method, task) in groups} for task in tasks}
    claims = [claim for task, found in by_task.items() for claim in claims_of(task, found)]
    return Summary((table(by_task),), (draw(out / "figure-5.png", by_task),), tuple(claims))


def table(by_task: dict[str, dict[str, Group]]) -> Table:
    """The end of training and of the test."""
    rows = []
    for task, found in by_task.items():
        for method, group in found.items():
            policies, above, significantly = group.policies
            rows.append(
                (
                    task, method, len(group.seeds), _end(group, RETURNS), _end(group, MEAN_COSTS),
                    over_seeds_and_tasks(group.returns[0]), over_seeds_and_tasks(group.returns[-1]),
                    over_seeds_and_tasks(group.costs[-1]), group.limit, group.largest_cost,
                    f"{above} of {policies}, {significantly} significantly",
                )
            )  # fmt: skip
    columns = (
        "family", "method", "seeds", "return at the end of training", "its cost", "test return before adaptation",
        "after", "cost after", "limit", "largest cost of a policy", "policies above the limit",
    )  # fmt: skip
    note = (
        "Means with 95 % bootstrap intervals: over seeds in training, over seeds and unseen tasks in the test."
        " Policies are judged on fresh episodes; a largest cost is a mean with its t interval over episodes."
    )
    return Table("figure-5", "Figure 5: meta-training and meta-test", columns, tuple(rows), note)


MEAN_COSTS = {name: look for name, look in COSTS.items() if not name.startswith("largest")}


def _end(group: Group, names: dict[str, tuple[str, str]]) -> Interval | None:
    values = group.at_end(*names)
    return None if values is None else over_seeds(values)


def draw(path: Path, by_task: dict[str, dict[str, Group]]) -> Path:
    """The paper's figure: two columns for each family."""
    columns = [f"{task.removesuffix('-meta-cpo')}: {what}" for task in by_task for what in ("return", "cost")]
    rows = ("meta-training", "training, no meta", "meta-test")
    subtitle = "means over seeds (and unseen tasks in the last row) with 95 % bootstrap intervals; dashed: the limit"
    with drawing.grid("Meta-CPO, Figure 5", subtitle, rows, columns) as (figure, axes):
        for index, found in enumerate(by_task.values()):
            left, right = axes[:, 2 * index], axes[:, 2 * index + 1]
            for row, methods in enumerate((META, PLAIN)):
                members = [group for method, group in found.items() if method in methods]
                for group in members:
                    drawing.draw(left[row], group.training(*RETURNS), group.method, COLOURS[group.method])
                    drawing.draw(right[row], group.training(*MEAN_COSTS), group.method, COLOURS[group.method])
                limits = {line["limit"] for group in members for lines in group.metrics for line in lines[-1:]}
                drawing.finish(left[row], (), drawing.STEPS)
                drawing.finish(right[row], sorted(limits), drawing.STEPS)
            for group in found.values():
                drawing.draw(left[2], group.over_steps(group.returns), group.method, COLOURS[group.method])
                drawing.draw(right[2], group.over_steps(group.costs), group.method, COLOURS[group.method])
            drawing.finish(left[2], (), drawing.ADAPTATION)
            drawing.finish(right[2], sorted({group.limit for group in found.values()}), drawing.ADAPTATION)
        return drawing.save(figure, axes, path)


def claims_of(task: str, found: dict[str, Group]) -> list[Claim]:
    """The claims on one family for which there are runs."""
    claims = []
    if "meta-cpo" in found:
        claims.append(meta_cpo_is_safe(task, found["meta-cpo"]))
    if "trpo" in found:
        claims.append(
            trpo_violates(task, found["trpo"], [found[each] for each in ("meta-cpo", "cpo") if each in found])
        )
    if {"cpo", "meta-cpo"} <= found.keys():
        claims.append(cpo_is_unstable(task, found["cpo"], found["meta-cpo"]))
    for meta, plain in zip(META, PLAIN, strict=True):
        if _comparable(found, meta, plain):
            claims.append(meta_is_better(task, found[meta], found[plain]))
    if task == TIGHTER and len(found) > 1 and "meta-cpo" in found:
        claims.append(others_fail(task, [found[each] for each in METHODS[1:] if each in found]))
    return claims


def _comparable(found: dict[str, Group], first: str, second: str) -> bool:
    return first in found and second in found and bool(set(found[first].seeds) & set(found[second].seeds))


def meta_cpo_is_safe(task: str, group: Group) -> Claim:
    """After adaptation the mean cost over unseen tasks is within the limit; in Car-Circle-Hazard a tighter one."""
    cost = over_seeds_and_tasks(group.costs[-1])
    tighter = " although it was trained with 10" if task == TIGHTER else ""
    _, above, significantly = group.policies
    return Claim(
        f"{task}: after adaptation to unseen tasks Meta-CPO's cost is within the limit of {group.limit:g}{tighter}",
        within(cost, group.limit),
        shown(cost),
        f"below {group.limit:g} (Figure 5, third row)",
        f"Mean over seeds and tasks. On the way {above} policies were above the limit, {significantly} significantly;"
        " the paper claims nothing of single tasks.",
    )


def trpo_violates(task: str, trpo: Group, others: list[Group]) -> Claim:
    """TRPO reaches high returns in training and breaks the limit."""
    cost, reward = trpo.at_end(*MEAN_COSTS), trpo.at_end(*RETURNS)
    assert cost is not None
    assert reward is not None
    limit = float(trpo.metrics[0][-1]["limit"])
    ends = {group.method: group.at_end(*RETURNS) for group in others}
    means = {name: float(end.mean()) for name, end in ends.items() if end is not None}
    return Claim(
        f"{task}: in training TRPO converges to high returns and violates the constraint significantly",
        violates(over_seeds(cost), limit, over_seeds(reward).mean, list(means.values())),
        f"cost {shown(over_seeds(cost))}, limit {limit:g}; return {shown(over_seeds(reward))}",
        f"{SAID} (Figure 5, second row)",
        " ".join(f"The return of {name} is {mean:.4g}." for name, mean in means.items()),
    )


def violates(cost: Interval, limit: float, reward: float, others: list[float]) -> Verdict:
    """Reproduced: the cost's interval is above the limit and the return the highest; contradicted: it is below."""
    low = cost.mean if cost.low is None else cost.low
    if low > limit and all(reward >= other for other in others):
        return REPRODUCED
    return CONTRADICTED if cost.high is not None and cost.high < limit else NOT_REPRODUCED


def excess(group: Group) -> NDArray:
    """`[seeds, tasks]`: the mean over steps of how far a policy's cost is above the limit (0 if it is not)."""
    return np.maximum(group.costs - group.limit, 0).mean(0)


def cpo_is_unstable(task: str, cpo: Group, meta: Group) -> Claim:
    """CPO violates the limit more than Meta-CPO while it is tested."""
    first, second = map(excess, paired(cpo, meta))
    difference = over_seeds_and_tasks(first - second)
    return Claim(
        f"{task}: in the test CPO is unstable where Meta-CPO is not",
        at_least(difference),
        f"excess of the cost over the limit {shown(over_seeds_and_tasks(first))} against"
        f" {shown(over_seeds_and_tasks(second))}",
        f"{SAID} (Figure 5, third row)",
        "Instability is measured as the mean excess of all policies used in the test; the verdict is on the difference"
        f" of the two on the same tasks, {shown(difference)}.",
    )


def meta_is_better(task: str, meta: Group, plain: Group) -> Claim:
    """The meta-learner's return after adaptation is higher than that of its plain counterpart."""
    first, second = (group.returns[-1] for group in paired(meta, plain))
    difference = over_seeds_and_tasks(first - second)
    return Claim(
        f"{task}: {meta.method} outperforms {plain.method} on unseen tasks",
        at_least(difference),
        f"return {shown(over_seeds_and_tasks(first))} against {shown(over_seeds_and_tasks(second))}",
        f"{SAID} (Figure 5, third row)",
        f"The verdict is on the paired difference, {shown(difference)}.",
    )


def others_fail(task: str, others: list[Group]) -> Claim:
    """With the tighter limit every other method's policies break it."""
    counts = {group.method: group.policies for group in others}
    return Claim(
        f"{task}: with the limit lowered from 10 to 5, all methods but Meta-CPO are unstable or fail",
        all_fail([significantly for _, _, significantly in counts.values()]),
        "; ".join(f"{name}: {above} of {policies} policies above" for name, (policies, above, _) in counts.items()),
        f"{SAID} (Figure 5 b)",
        "Failing means that at least one policy used in the test is significantly above the limit.",
    )


def all_fail(significantly: list[int]) -> Verdict:
    """Reproduced: every method has policies significantly above the limit; contradicted: none has."""
    if all(significantly):
        return REPRODUCED
    return NOT_REPRODUCED if any(significantly) else CONTRADICTED
