"""All seeds of one method on one family, read back from their run folders, with intervals."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment import logs
from safemeta.experiment.evaluate import Interval, interval
from safemeta.experiment.statistics import bootstrap, bootstrap_columns, bootstrap_nested
from safemeta.papers.trials import Judged, Judgement, Trial, stored

LAST = 0.1  # the share of training that counts as its end


@dataclasses.dataclass(frozen=True)
class Curve:
    """A mean with its 95 % interval (NaN where there is none) over `x`."""

    x: NDArray
    mean: NDArray
    low: NDArray
    high: NDArray


@dataclasses.dataclass(frozen=True)
class Group:
    """The finished seeds of a method. `judged` and `metrics` have one entry for each seed."""

    method: str
    task: str
    seeds: tuple[int, ...]
    judged: tuple[Judged, ...]
    metrics: tuple[list[dict[str, Any]], ...]
    timing: tuple[list[float], ...]  # seconds of each iteration

    def only(self, seeds: Sequence[int]) -> "Group":
        """The group with these of its seeds."""
        kept = [self.seeds.index(seed) for seed in seeds]
        fields = {
            name: tuple(getattr(self, name)[i] for i in kept) for name in ("seeds", "judged", "metrics", "timing")
        }
        return dataclasses.replace(self, **fields)

    @property
    def returns(self) -> NDArray:
        """`[steps + 1, seeds, tasks]`, means over episodes."""
        return np.stack([each.returns for each in self.judged], axis=1)

    @property
    def costs(self) -> NDArray:
        """The first cost, `[steps + 1, seeds, tasks]`."""
        return np.stack([each.costs[..., 0] for each in self.judged], axis=1)

    @property
    def limit(self) -> float:
        """The largest limit of the first cost at test time (in all papers' families it is the same for all tasks)."""
        return float(max(each.limits[:, 0].max() for each in self.judged))

    @property
    def policies(self) -> tuple[int, int, int]:
        """Policies judged, those above their limit, and those significantly above it, over seeds and costs."""
        costs = [cost for each in self.judged for cost in each.report["largest_cost"]]
        keys = ("policies", "above_limit", "significantly_above")
        judged, above, significantly = (sum(cost[key] for cost in costs) for key in keys)
        return judged, above, significantly

    @property
    def largest_cost(self) -> Interval:
        """The largest mean first cost of any policy of any seed, with the t interval of that policy's episodes."""
        worst = max((each.report["largest_cost"][0] for each in self.judged), key=lambda cost: cost["cost"]["mean"])
        return Interval(**worst["cost"])

    def over_steps(self, values: NDArray) -> Curve:
        """Mean over seeds and tasks of `[steps + 1, seeds, tasks]`."""
        low, high = bootstrap_nested(values)
        return Curve(np.arange(len(values)), values.mean((1, 2)), low, high)

    def largest_over_steps(self) -> Curve:
        """The first cost's largest value over tasks, mean over seeds."""
        largest = self.costs.max(2)
        return Curve(np.arange(len(largest)), largest.mean(1), *bootstrap_columns(largest))

    def training(self, *names: str) -> Curve | None:
        """The first of the named metrics that was logged, over environment steps, mean over seeds."""
        length = min(len(lines) for lines in self.metrics)
        if length == 0:
            return None
        name = next((name for name in names if name in self.metrics[0][0]), None)
        if name is None:
            return None
        table = np.array([[line[name] for line in lines[:length]] for lines in self.metrics], float).T
        steps = np.array([line["environment_steps"] for line in self.metrics[0][:length]], float)
        return Curve(steps, table.mean(1), *bootstrap_columns(table))

    def at_end(self, *names: str) -> NDArray | None:
        """Per seed, the mean of the first of the metrics that was logged over the last tenth of training."""
        curves = []
        for lines in self.metrics:
            name = next((name for name in names if lines and name in lines[0]), None)
            if name is None:
                return None
            last = max(1, round(LAST * len(lines)))
            curves.append(np.mean([line[name] for line in lines[-last:]]))
        return np.array(curves)

    @property
    def iteration_seconds(self) -> NDArray:
        """Per seed, the median time of an iteration but the first, which compiles; so does the first after a resume."""
        return np.array([float(np.median(seconds[1:] or seconds)) for seconds in self.timing])

    @property
    def test_seconds(self) -> NDArray:
        """Per seed, the time of adapting to one task, compilation apart (all tasks adapt side by side)."""
        return np.array([each.seconds / each.returns.shape[1] for each in self.judged])


def gather(out: Path, trials: Iterable[Trial], label: str = "test") -> dict[tuple[str, str], Group]:
    """(method, task) -> its finished trials; what failed or is not yet done is left out."""
    found: dict[tuple[str, str], list[tuple[Trial, Judged, Path]]] = {}
    for trial in trials:
        folder = out / "runs" / trial.name
        judgement = _labelled(trial.judgements, label)
        judged = None if judgement is None else stored(folder, judgement, trial.seed)
        if judged is not None:
            found.setdefault((trial.method, trial.task), []).append((trial, judged, folder))
    return {key: _group(key, members) for key, members in found.items()}


def _group(key: tuple[str, str], members: Sequence[tuple[Trial, Judged, Path]]) -> Group:
    return Group(
        method=key[0],
        task=key[1],
        seeds=tuple(trial.seed for trial, _, _ in members),
        judged=tuple(judged for _, judged, _ in members),
        metrics=tuple(logs.read(folder / logs.METRICS) for _, _, folder in members),
        timing=tuple([line["seconds"] for line in logs.read(folder / logs.TIMING)] for _, _, folder in members),
    )


def _labelled(judgements: Sequence[Judgement], label: str) -> Judgement | None:
    return next((each for each in judgements if each.label == label), None)


def over_seeds_and_tasks(values: NDArray) -> Interval:
    """Mean of `[seeds, tasks]` with its nested bootstrap interval."""
    low, high = bootstrap_nested(values[None])
    return interval(values.mean(), low[0], high[0])


def over_seeds(values: NDArray) -> Interval:
    """Mean over seeds with its bootstrap interval."""
    return interval(np.mean(values), *bootstrap(values))


def paired(first: Group, second: Group) -> tuple[Group, Group]:
    """Both with the seeds only that both have: seed by seed they were judged on the same tasks."""
    shared = [seed for seed in first.seeds if seed in second.seeds]
    return first.only(shared), second.only(shared)


def gain(better: NDArray, worse: NDArray) -> Interval:
    """(better - worse) / |mean of worse|: how much higher, as a share, with the interval of the paired difference.

    Both are `[seeds, tasks]` on the same tasks, or `[seeds]`.
    """
    difference = (better - worse) / max(abs(float(worse.mean())), 1e-9)
    return over_seeds_and_tasks(difference) if difference.ndim == 2 else over_seeds(difference)


def saving(ours: NDArray, theirs: NDArray) -> Interval:
    """1 - ours / theirs, seed by seed: the share of time that is saved."""
    return over_seeds(1 - ours / theirs)
