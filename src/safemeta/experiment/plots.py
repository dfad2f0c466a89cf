"""The two pictures of a run: how adaptation went, and how training went."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment import figures
from safemeta.experiment.errors import UserError
from safemeta.experiment.figures import FAINT, INK, PALETTE
from safemeta.experiment.logs import METRICS
from safemeta.experiment.metrics import COSTS, FURTHER_COST, FURTHER_LIMIT, LIMITS, RETURNS, found
from safemeta.experiment.run import TASK_OPTION, RunLog, read_log, run_folders
from safemeta.experiment.statistics import bootstrap_columns

TRAINING = "training.png"


def draw_adaptation(report: Any, path: Path, *, title: str, cost_names: Sequence[str]) -> Path:
    """Return (left) and every cost (right) of all policies that were used, over the steps of adaptation.

    Thin lines are tasks. Costs are drawn against the limit; where tasks differ in their limit, what is drawn is the
    cost minus the limit.
    """
    count = sum(cost.policies for cost in report.largest_cost[:1])
    above = sum(cost.above_limit for cost in report.largest_cost)
    subtitle = (
        f"{report.tasks} unseen tasks, policies judged on {report.episodes} fresh episodes each;"
        f" {above} of {count} policies above the limit"
    )
    with figures.figure(f"Adaptation: {title}", subtitle, 1 + len(cost_names)) as (drawing, axes):
        _draw_returns(axes[0], report)
        for index, name in enumerate(cost_names):
            _draw_costs(axes[1 + index], report, index, name)
        for each in axes:
            each.set_xlabel("adaptation step (0 = meta-policy)")
            each.set_xlim(0, report.steps)
            each.xaxis.get_major_locator().set_params(integer=True)
        return figures.save(drawing, path)


def _draw_returns(axes: Any, report: Any) -> None:
    steps = np.arange(report.steps + 1)
    axes.plot(steps, report.returns, color=FAINT, linewidth=0.7, alpha=0.55)
    mean = np.array([each.mean for each in report.return_by_step])
    if report.before.low is not None:
        low = np.array([each.low for each in report.return_by_step])
        high = np.array([each.high for each in report.return_by_step])
        axes.fill_between(steps, low, high, color=PALETTE[0], alpha=0.25, linewidth=0, label="95 % interval")
    axes.plot(steps, mean, color=PALETTE[0], linewidth=2.4, label="mean over tasks")
    axes.plot([], [], color=FAINT, linewidth=0.9, label="one task")
    axes.set_title("Return of an episode")
    axes.legend(loc="best")


def _draw_costs(axes: Any, report: Any, index: int, name: str) -> None:
    steps = np.arange(report.steps + 1)
    limits = report.limits[:, index]
    shared = bool(np.ptp(limits) == 0)
    costs = report.costs[..., index] - (0 if shared else limits)
    axes.plot(steps, costs, color=FAINT, linewidth=0.7, alpha=0.55)
    axes.plot(steps, costs.max(1), color=INK, linewidth=2.4, label="largest of all tasks")
    axes.plot([], [], color=FAINT, linewidth=0.9, label="one task")
    worst = report.largest_cost[index]
    peak = costs[worst.step, worst.task]
    axes.plot(worst.step, peak, "o", color=INK, markersize=6, clip_on=False, zorder=5)
    to_the_right = worst.step < report.steps / 2
    limit = float(limits[0]) if shared else 0.0
    below = 0 <= limit - peak < 0.12 * max(limit, float(np.ptp(costs)))  # above it the words of the limit would hide it
    axes.annotate(
        f"{worst.cost.mean:.2f}", (worst.step, peak), xytext=(9 if to_the_right else -9, -10 if below else 5),
        textcoords="offset points", ha="left" if to_the_right else "right", fontsize=9.5, fontweight="bold", zorder=6,
    )  # fmt: skip
    unit = report.limit_on.replace("_", " ")
    axes.set_title(f"{name.replace('_', ' ').capitalize()}, {unit}{'' if shared else ', minus the limit'}")
    axes.set_ylim(bottom=min(0.0, float(costs.min())))
    figures.mark_limit(axes, limit, float(costs.max()))
    axes.legend(loc="lower right")


def plot(*runs: Any, out: Path | str | None = None) -> Path:
    """Training curves of one or more runs: returns, and every cost against its limit.

    `runs` are `Run`s, their folders, or folders of such folders, as a sweep leaves; of these, runs that have not begun
    are left out. Runs that differ only in their seed become one curve with a 95 % bootstrap interval over seeds. Saved
    as `plots/training.png` in the first folder that was named unless `out` names a file. Raises `UserError`.
    """
    if not runs:
        raise UserError("Name at least one run to plot.")
    logs = [read_log(folder) for folder in run_folders(runs)]
    if len(logs) > len(runs):
        logs = [log for log in logs if log.lines] or logs
    for log in logs:
        if not log.lines:
            raise UserError(f"'{log.folder}' has no metrics yet: {METRICS} is missing or empty.", exit_code=1)
    path = Path(out) if out is not None else Path(getattr(runs[0], "folder", runs[0])) / "plots" / TRAINING
    groups = groups_of(logs)
    titles = sorted({log.task for log in logs})
    seeds = "1 seed" if len(logs) == 1 else f"{len(logs)} runs; bands are 95 % bootstrap intervals over seeds"
    further = sorted({name for log in logs for name in log.lines[0] if name.startswith(FURTHER_COST)})
    with figures.figure(f"Training on {', '.join(titles)}", seeds, 2 + len(further)) as (drawing, axes):
        for number, (label, members) in enumerate(groups.items()):
            colour = PALETTE[number % len(PALETTE)]
            _draw_series(axes[0], members, RETURNS, label if len(groups) > 1 else "", colour)
            _draw_series(axes[1], members, COSTS, label if len(groups) > 1 else "", colour)
            for panel, name in zip(axes[2:], further, strict=True):
                _draw_series(panel, members, {name: ("mean", "-")}, label if len(groups) > 1 else "", colour)
        axes[0].set_title("Return of an episode")
        axes[1].set_title("First cost" if further else "Cost")
        _mark_limits(axes[1], logs)
        for panel, name in zip(axes[2:], further, strict=True):
            cost = name.removeprefix(FURTHER_COST)
            panel.set_title(f"Cost: {cost.replace('_', ' ')}")
            _mark_limits(panel, logs, FURTHER_LIMIT + cost)
        for each in axes:
            each.set_xlabel("environment steps")
            each.xaxis.set_major_formatter(figures.millions())
            if each.get_legend_handles_labels()[0]:
                each.legend(loc="best")
        return figures.save(drawing, path)


def groups_of(logs: list[RunLog]) -> dict[str, list[RunLog]]:
    """Label -> runs that differ in nothing but their seed (and length); a label names all that tells it apart."""
    groups: list[list[RunLog]] = []
    for log in logs:
        for group in groups:
            if group[0].settings == log.settings:
                group.append(log)
                break
        else:
            groups.append([log])
    names = {name for group in groups for name in group[0].settings}
    told_apart = [
        name
        for name in sorted(names)
        if name not in ("algorithm", "preset") and len({str(group[0].settings.get(name)) for group in groups}) > 1
    ]
    labelled = {}
    for group in groups:
        settings = group[0].settings
        # Options of another algorithm tell nothing: only what differs among runs of the same one is named.
        same = [other[0].settings for other in groups if other[0].label == group[0].label]
        same_task = [other for other in same if other["task"] == settings["task"]]
        shown = [
            f"{name.removeprefix(TASK_OPTION).replace('_', ' ')} {settings[name]}"
            for name in told_apart
            for others in (same_task if name.startswith(TASK_OPTION) else same,)
            if name in settings and (name == "task" or len({str(other.get(name)) for other in others}) > 1)
        ]
        labelled[", ".join([group[0].label, *shown])] = group
    return labelled


def _draw_series(axes: Any, logs: list[RunLog], wanted: dict[str, tuple[str, str]], label: str, colour: str) -> None:
    """All wanted metrics of one group of seeds."""
    there = found(logs[0].lines[0], wanted)
    largest = {name: look for name, look in there.items() if name.startswith("largest")}
    for name, (words, line) in (largest or there).items():  # a limit is about the largest; means would only clutter
        length = min(len(log.lines) for log in logs)
        table = np.array([[float(step.get(name, np.nan)) for step in log.lines[:length]] for log in logs])
        steps = np.array([step.get("environment_steps", step["iteration"]) for step in logs[0].lines[:length]])
        if len(logs) > 1:
            axes.fill_between(steps, *bootstrap_columns(table.T), color=colour, alpha=0.2, linewidth=0)
        shown = ", ".join(filter(None, (label, words)))
        axes.plot(steps, table.mean(0), color=colour, linestyle=line, linewidth=1.8, label=shown or None)


def _mark_limits(axes: Any, logs: list[RunLog], metric: str | None = None) -> None:
    wanted = LIMITS if metric is None else {metric: ("limit", "--")}
    limits = {float(log.lines[-1][name]) for log in logs for name in found(log.lines[-1], wanted)}
    limits |= {log.limit for log in logs if log.limit is not None}
    top = axes.get_ylim()[1]
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for limit in sorted(limits):
        figures.mark_limit(axes, limit, top)
