"""Adaptation to unseen tasks, and its judgement: was every policy that was used on the way safe?

Policies are judged on fresh episodes, never on those that chose them.
"""

import dataclasses
import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment.config import check_count, check_seed
from safemeta.experiment.errors import UserError, from_value_error, simulation_failed, writing_failed
from safemeta.experiment.evaluate import (
    ADAPT_STREAM,
    MEASURE_STREAM,
    SAMPLE_STREAM,
    Interval,
    LargestCost,
    check_episodes,
    check_finite,
    check_shield,
    draw_tasks,
    interval,
    judging_episodes,
    largest_costs,
)
from safemeta.experiment.files import write_atomically, write_json
from safemeta.experiment.progress import default
from safemeta.experiment.run import Run, load
from safemeta.experiment.statistics import bootstrap_columns

# Of a .json, an .npz and a .png: plain, with a stated confidence, behind a shield, with both.
NAMES = ("adaptation", "adaptation-confident", "adaptation-shield", "adaptation-confident-shield")


@dataclasses.dataclass(frozen=True)
class AdaptationReport:
    """What adaptation gained and what it cost, on fresh episodes.

    Returns are means over tasks with bootstrap intervals over tasks; policy 0 is the meta-policy.
    `costs` and `returns` hold the means of every policy: `[steps + 1, tasks]` and `[steps + 1, tasks, costs]`.
    `cost_bounds`, `[steps, tasks, costs]`, are what policies 1, 2, ... cost at most, where a confidence was stated.
    """

    tasks: int
    steps: int
    episodes: int
    split: str
    seed: int
    limit_on: str
    return_by_step: tuple[Interval, ...]
    largest_cost: tuple[LargestCost, ...]
    outcomes: dict[str, int]
    returns: np.ndarray
    costs: np.ndarray
    limits: np.ndarray
    picture: Path | None = None
    shield: dict[str, Any] | None = None
    confidence: float | None = None
    cost_bounds: np.ndarray | None = None

    @property
    def before(self) -> Interval:
        """The meta-policy's return."""
        return self.return_by_step[0]

    @property
    def after_one(self) -> Interval:
        """The return after one step."""
        return self.return_by_step[1]

    @property
    def after(self) -> Interval:
        """The return after all steps."""
        return self.return_by_step[-1]

    @property
    def safe(self) -> bool:
        """Whether no policy's mean cost is above its limit."""
        return all(cost.above_limit == 0 for cost in self.largest_cost)

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays; `shield` and `confidence` only where there is one."""
        left_out = ["returns", "costs", "limits", "cost_bounds", "picture"]
        left_out += [name for name in ("shield", "confidence") if getattr(self, name) is None]
        content = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in left_out
        }
        content["return_by_step"] = [dataclasses.asdict(each) for each in self.return_by_step]
        content["largest_cost"] = [dataclasses.asdict(each) for each in self.largest_cost]
        shown = {"before": self.before, "after_1": self.after_one, f"after_{self.steps}": self.after}
        content["return"] = {name: dataclasses.asdict(each) for name, each in shown.items()}
        return content


def adapt(
    run: Run | Path | str,
    *,
    tasks: int = 20,
    steps: int = 20,
    episodes: int | None = None,
    split: str = "test",
    seed: int = 0,
    limit: float | None = None,
    checkpoint: str = "auto",
    confidence: float | None = None,
    shield: str | None = None,
    index: str | None = None,
    actions: int | None = None,
    reporter: Any = None,
) -> AdaptationReport:
    """Adapt the run's meta-policy to `tasks` unseen tasks for `steps` steps and judge every policy on the way.

    Saves `adaptation.json`, `adaptation.npz` and `plots/adaptation.png` in the run's folder. `limit` replaces the
    tasks' own limits, for adaptation and judgement alike. With `confidence`, a policy is used only where an upper bound
    of its costs, which fails with `1 - confidence`, is below the limits; otherwise a shorter step, or the last such
    policy stays (`algorithms/confidence.py`); files are then called `adaptation-confident`. With `shield="model"` every
    action, of the episodes that are learned from and of those that judge, passes a filter by the safety index of Table
    2 called `index`, with a grid of `actions` per axis; files are then called `adaptation-shield`. Raises `UserError`.
    """
    from safemeta.experiment.plots import draw_adaptation

    check_settings(tasks, steps, episodes, seed)
    check_shield(shield, index, actions)
    run = run if isinstance(run, Run) else load(run, checkpoint)
    check_meta(run.algorithm, f"'{run.folder}'")
    reporter = reporter or default()
    doubt = run.algorithm.doubt(run.state) if hasattr(run.algorithm, "doubt") else None
    if doubt:
        reporter.warn(doubt)
    world = run.world if shield is None else _shielded(run, shield, index, actions)
    report = adapt_policies(
        run.algorithm, run.state, world,
        tasks=tasks, steps=steps, episodes=episodes, split=split, seed=seed, limit=limit, confidence=confidence,
        reporter=reporter,
    )  # fmt: skip
    name = NAMES[(confidence is not None) + 2 * (shield is not None)]
    title = f"{run.name}, iteration {run.iteration}"
    try:
        write_json(run.folder / f"{name}.json", report.to_json())
        write_atomically(run.folder / f"{name}.npz", _packed(report))
        run.plots.mkdir(exist_ok=True)
        picture = draw_adaptation(report, run.plots / f"{name}.png", title=title, cost_names=run.world.cmdp.cost_names)
    except OSError as problem:
        raise writing_failed(problem, run.folder) from problem
    return dataclasses.replace(report, picture=picture)


def _shielded(run: Run, shield: str, index: str | None, actions: int | None) -> Any:
    """The run's world behind a shield."""
    from safemeta.experiment.shield import ShieldedWorld, shield_of

    return ShieldedWorld(run.world, shield_of(run, shield, index, actions))


def check_meta(algorithm: Any, run: str = "this run") -> None:
    """Raise `UserError` unless it is a meta-algorithm."""
    if not hasattr(algorithm, "adapt"):
        raise UserError(f"Only meta-algorithms, such as dual, can adapt; use 'safemeta evaluate' for {run}.")


def check_stated(algorithm: Any, confidence: float | None) -> None:
    """Raise `UserError` if a confidence is asked for and the algorithm cannot state one."""
    if confidence is not None and "confidence" not in inspect.signature(algorithm.adapt).parameters:
        raise UserError("This algorithm cannot adapt with a stated confidence; leave out --confidence.")


def check_settings(tasks: int, steps: int, episodes: int | None, seed: int) -> None:
    """Raise `UserError` unless all are sensible."""
    check_seed(seed)
    check_count("tasks", tasks)
    check_count("steps", steps)
    check_episodes(episodes)


def adapt_policies(
    algorithm: Any,
    state: Any,
    world: Any,
    *,
    tasks: int = 20,
    steps: int = 20,
    episodes: int | None = None,
    split: str = "test",
    seed: int = 0,
    limit: float | None = None,
    confidence: float | None = None,
    reporter: Any = None,
) -> AdaptationReport:
    """`adapt` without a run: any meta-algorithm, state and world; nothing is saved."""
    import jax

    from safemeta.experiment.shield import ShieldedWorld
    from safemeta.sim.failures import SimulationError

    check_meta(algorithm)
    check_stated(algorithm, confidence)
    reporter = reporter or default()
    shield = world.shield if isinstance(world, ShieldedWorld) else None
    episodes = judging_episodes(world, episodes, shielded=shield is not None)
    key = jax.random.key(seed)
    drawn = draw_tasks(world, jax.random.fold_in(key, SAMPLE_STREAM), tasks, split, limit)
    reporter.note(f"Adapting to {tasks} unseen tasks for {steps} steps ...")
    stated = {} if confidence is None else {"confidence": confidence}
    try:
        adaptation = algorithm.adapt(state, world, drawn, jax.random.fold_in(key, ADAPT_STREAM), steps, **stated)
    except ValueError as problem:
        raise from_value_error(problem) from problem
    except SimulationError as problem:
        raise simulation_failed(problem) from problem
    judging = jax.random.fold_in(key, MEASURE_STREAM)
    performances = judge(adaptation.policies, world, drawn, judging, steps, episodes, reporter)
    returns = np.stack([each.episode_return for each in performances]).astype(float)
    costs = np.stack([each.costs for each in performances]).astype(float)
    check_finite(returns, costs)
    limits, per_task = np.asarray(drawn.limits), returns.mean(-1)
    low, high = bootstrap_columns(per_task)
    return AdaptationReport(
        tasks=tasks,
        steps=steps,
        episodes=episodes,
        split=split,
        seed=seed,
        limit_on=world.cmdp.limit_on,
        return_by_step=tuple(map(interval, per_task.mean(-1), low, high)),
        largest_cost=largest_costs(world.cmdp.cost_names, costs, limits),
        outcomes=_count_outcomes(adaptation),
        returns=per_task,
        costs=costs.mean(2),
        limits=limits,
        shield=None if shield is None else shield.statistics(performances),
        confidence=confidence,
        cost_bounds=None if confidence is None else np.asarray(adaptation.cost_bounds),
    )


def judge(policies: Any, world: Any, tasks: Any, key: Any, steps: int, episodes: int, reporter: Any) -> list[Any]:
    """What the policies of each step achieved on fresh episodes, `[tasks, episodes]`.

    Each step's policies see other episodes, so that chance does not repeat along the curve. One compiled
    measurement serves all steps.
    """
    import equinox as eqx
    import jax

    def measure(policy: Any, tasks: Any, key: Any) -> Any:
        return world.measure(policy, tasks, key, episodes, per_task=True)

    if world.functional:
        measure = eqx.filter_jit(measure)
    performances = []
    reporter.begin("Judging on fresh episodes", steps + 1)
    try:
        for step in range(steps + 1):
            policy = jax.tree.map(lambda leaf, step=step: leaf[step] if eqx.is_array(leaf) else leaf, policies)
            performances.append(jax.device_get(measure(policy, tasks, jax.random.fold_in(key, step))))
            reporter.advance(step + 1, {})
    finally:
        reporter.end()
    return performances


def _count_outcomes(adaptation: Any) -> dict[str, int]:
    """How often each outcome of an adaptation step occurred."""
    outcome = np.asarray(adaptation.outcome).ravel()
    return {name: int((outcome == index).sum()) for index, name in enumerate(adaptation.outcome_names)}


def _packed(report: AdaptationReport) -> bytes:
    """The arrays as an npz without pickled objects."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"returns": report.returns, "costs": report.costs, "limits": report.limits}
    if report.cost_bounds is not None:
        arrays["cost_bounds"] = report.cost_bounds
    np.savez(buffer, **arrays)
    return buffer.getvalue()
