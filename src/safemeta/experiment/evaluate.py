"""How good and how safe a trained policy is on unseen tasks, before any adaptation."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment.config import check_count, check_positive, check_seed
from safemeta.experiment.errors import UserError, from_value_error, simulation_failed
from safemeta.experiment.files import write_json
from safemeta.experiment.run import Run, load
from safemeta.experiment.statistics import bootstrap, mean_interval

FILE, SHIELDED_FILE = "evaluation.json", "evaluation-shield.json"
EPISODES, EPISODES_ON_HOST = 100, 20  # per policy and task, where no number is given
SAMPLE_STREAM, MEASURE_STREAM, ADAPT_STREAM = 0, 1, 2  # what fold_in(key(seed), .) is used for


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval (None where a single value allows none)."""

    mean: float
    low: float | None
    high: float | None

    @staticmethod
    def over_tasks(values: Any) -> "Interval":
        """Mean over tasks and its bootstrap interval."""
        return interval(np.mean(values), *bootstrap(values))


@dataclasses.dataclass(frozen=True)
class LargestCost:
    """Of one cost signal: the policy with the largest mean cost relative to its limit.

    The interval is Student's t interval of that policy's mean over its episodes; it does not account for the policy
    having been picked as the largest of many, which makes the number pessimistic.
    """

    name: str
    cost: Interval
    limit: float
    task: int
    step: int
    policies: int
    above_limit: int  # policies whose mean cost is above their limit
    significantly_above: int  # ... and whose whole interval is


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """The policy of a run on `tasks` unseen tasks, `episodes` episodes each.

    With a shield all numbers are those behind it, and `shield` says how often it stepped in and what there was without.
    """

    tasks: int
    episodes: int
    split: str
    seed: int
    limit_on: str
    episode_return: Interval
    largest_cost: tuple[LargestCost, ...]
    shield: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it; `shield` only where there is one."""
        content = dataclasses.asdict(self)
        return content if self.shield is not None else {k: v for k, v in content.items() if k != "shield"}


def evaluate(
    run: Run | Path | str,
    *,
    tasks: int = 20,
    episodes: int | None = None,
    split: str = "test",
    seed: int = 0,
    limit: float | None = None,
    checkpoint: str = "auto",
    shield: str | None = None,
    index: str | None = None,
    actions: int | None = None,
) -> EvaluationReport:
    """Measure the run's policy on `tasks` tasks of `split` and save `evaluation.json` in its folder.

    `episodes` per task: by default 100, or 20 where the world steps on the host or with a shield. `shield` ("model" or
    "critic") filters every action by the run's own safety index, or the one of Table 2 called `index`, with a grid of
    `actions` per axis (`experiment.shield`); the policy is then measured with and without it, from the same starts, and
    `evaluation-shield.json` is saved. Raises `UserError`.
    """
    import jax

    check_count("tasks", tasks)
    check_episodes(episodes)
    check_seed(seed)
    check_shield(shield, index, actions)
    run = run if isinstance(run, Run) else load(run, checkpoint)
    key = jax.random.key(seed)
    drawn = draw_tasks(run.world, jax.random.fold_in(key, SAMPLE_STREAM), tasks, split, limit)
    episodes = judging_episodes(run.world, episodes, shielded=shield is not None)
    limits, measuring = np.asarray(drawn.limits), jax.random.fold_in(key, MEASURE_STREAM)
    statistics: dict[str, Any] | None = None
    if shield is None:
        performance = _measured(run.world.measure, run.trained, drawn, measuring, episodes)
    else:
        from safemeta.experiment.shield import ShieldShares, shield_of

        filtering = shield_of(run, shield, index, actions)
        behind, free = (
            _measured(each.measure, run.world, run.trained, drawn, measuring, episodes)
            for each in (filtering, filtering.without())
        )
        performance = behind
        episode_return, largest_cost = _judged(run.world.cmdp, free, limits)
        without = {
            "episode_return": dataclasses.asdict(episode_return),
            "largest_cost": [dataclasses.asdict(each) for each in largest_cost],
            "violated": ShieldShares.of([free]).violated,
        }
        statistics = {**filtering.statistics([behind]), "without": without}
    episode_return, largest_cost = _judged(run.world.cmdp, performance, limits)
    report = EvaluationReport(
        tasks=tasks,
        episodes=episodes,
        split=split,
        seed=seed,
        limit_on=run.world.cmdp.limit_on,
        episode_return=episode_return,
        largest_cost=largest_cost,
        shield=statistics,
    )
    write_json(run.folder / (FILE if shield is None else SHIELDED_FILE), report.to_json())
    return report


def _measured(measure: Any, *arguments: Any) -> Any:
    """What `measure(*arguments)` gives; `UserError` if the simulation failed."""
    from safemeta.sim.failures import SimulationError

    try:
        return measure(*arguments)
    except SimulationError as problem:
        raise simulation_failed(problem) from problem


def _judged(cmdp: Any, performance: Any, limits: np.ndarray) -> tuple[Interval, tuple[LargestCost, ...]]:
    """Return over tasks, and the largest cost of each kind, of `[tasks, episodes]`."""
    returns, costs = np.asarray(performance.episode_return), np.asarray(performance.costs)
    check_finite(returns, costs)
    return Interval.over_tasks(returns.mean(-1)), largest_costs(cmdp.cost_names, costs[None], limits)


def check_shield(shield: str | None, index: str | None, actions: int | None) -> None:
    """Raise `UserError` on settings of a shield without one, and on a grid that makes no sense."""
    if shield is None and (index is not None or actions is not None):
        given = "index" if index is not None else "actions"
        raise UserError(f"--{given} is about a shield: add --shield model or --shield critic.")
    if actions is not None:
        check_count("actions along each axis", actions, least=2)


def check_episodes(episodes: int | None) -> None:
    """Raise `UserError` unless there are at least two, or no number is given."""
    if episodes is not None:
        check_count("episodes", episodes, least=2)


def judging_episodes(world: Any, episodes: int | None, shielded: bool = False) -> int:
    """The number that was given, or the default: fewer where every step takes longer."""
    if episodes is not None:
        return episodes
    return EPISODES_ON_HOST if shielded or getattr(world, "on_host", False) else EPISODES


def draw_tasks(world: Any, key: Any, count: int, split: str, limit: float | None) -> Any:
    """Unseen tasks, with every limit replaced if one is given."""
    import equinox as eqx
    import jax.numpy as jnp

    if limit is not None:
        check_positive("limit", limit)
    try:
        drawn = world.sample(key, count, split)
    except ValueError as problem:
        raise from_value_error(problem) from problem
    if limit is None:
        return drawn
    return eqx.tree_at(lambda tasks: tasks.limits, drawn, jnp.full_like(drawn.limits, limit))


def largest_costs(names: tuple[str, ...], costs: np.ndarray, limits: np.ndarray) -> tuple[LargestCost, ...]:
    """For each cost, its worst policy: `costs` is `[steps, tasks, episodes, costs]`, `limits` `[tasks, costs]`."""
    mean, low, high = mean_interval(costs, axis=2)
    found = []
    for index, name in enumerate(names):
        excess = mean[..., index] - limits[:, index]
        step, task = np.unravel_index(np.argmax(excess), excess.shape)
        found.append(
            LargestCost(
                name=name,
                cost=interval(mean[step, task, index], low[step, task, index], high[step, task, index]),
                limit=float(limits[task, index]),
                task=int(task),
                step=int(step),
                policies=excess.size,
                above_limit=int((excess > 0).sum()),
                significantly_above=int((low[..., index] > limits[:, index]).sum()),
            )
        )
    return tuple(found)


def interval(mean: Any, low: Any, high: Any) -> Interval:
    """An `Interval` of plain floats."""
    return Interval(float(mean), None if np.isnan(low) else float(low), None if np.isnan(high) else float(high))


def check_finite(*arrays: np.ndarray) -> None:
    """Raise `UserError` if a simulation failed, or a measured return or cost is NaN or infinite."""
    from safemeta.sim.failures import pending

    error = pending()
    if error is not None:
        raise simulation_failed(error)
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError("The policy's returns or costs are not finite, so it cannot be judged.", exit_code=1)
