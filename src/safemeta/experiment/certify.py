"""Does a safety index hold where a policy goes? Visited states, violations and intervals, and a picture of it all."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment.config import check_count, check_seed
from safemeta.experiment.errors import UserError, simulation_failed, writing_failed
from safemeta.experiment.evaluate import MEASURE_STREAM, SAMPLE_STREAM, Interval, check_finite, draw_tasks
from safemeta.experiment.files import write_json
from safemeta.experiment.progress import default
from safemeta.experiment.run import Run, load
from safemeta.experiment.statistics import binomial_interval

FILE, PICTURE = "certificate.json", "certificate.png"
TASKS, TASKS_ON_HOST = 100, 10


@dataclasses.dataclass(frozen=True)
class Share:
    """`count` of `of`, with its exact binomial 95 % interval (Clopper and Pearson 1934)."""

    count: int
    of: int
    share: float
    low: float
    high: float

    @staticmethod
    def where(marks: Any) -> "Share":
        """The share of true entries, of independent ones."""
        marks = np.asarray(marks, bool).ravel()
        count, of = int(marks.sum()), marks.size
        return Share(count, of, count / of, *binomial_interval(count, of))


@dataclasses.dataclass(frozen=True)
class StateCounts:
    """Of the states in which the policy acted. They are not independent, so that shares have no interval.

    `feasible`: an action of the grid, or the policy's own, keeps the constraint; `missed`: only its own does (a finer
    grid would find others). `violations`: the policy's own action broke it; `avoidable`: and another would not have.
    """

    visited: int
    feasible: int
    infeasible: int
    missed: int
    violations: int
    avoidable: int
    feasible_share: float
    violation_share: float
    safe_actions: float  # mean share of the grid's actions that keep the constraint


@dataclasses.dataclass(frozen=True)
class TrajectoryShares:
    """Of the trajectories: nearer to an obstacle than is safe, through an infeasible state, neither of both, costly."""

    hazard_entry: Share
    infeasible: Share
    success: Share
    cost: Share


@dataclasses.dataclass(frozen=True)
class CertificateReport:
    """The index `certificate` along the noiseless policy of a run, in `tasks * episodes` trajectories.

    `actions` is the number of actions that were tried in each state, `points` along each axis. `costs` are totals of an
    episode in the unit of the limit, by name. `reachability` is None on tasks whose avoidable set is not computed.
    """

    run: str
    iteration: int
    certificate: dict[str, Any]
    tasks: int
    episodes: int
    split: str
    seed: int
    points: int
    actions: int
    states: StateCounts
    trajectories: TrajectoryShares
    largest_index: float
    largest_violation: float
    smallest_distance: float
    safe_distance: float
    episode_return: Interval
    costs: dict[str, Interval]
    limit_on: str
    reachability: dict[str, Any] | None
    picture: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """As in `certificate.json`."""
        content = dataclasses.asdict(self)
        content["picture"] = None if self.picture is None else str(self.picture)
        return content


def certify(
    run: Run | Path | str,
    *,
    tasks: int | None = None,
    episodes: int = 1,
    actions: int | None = None,
    index: str | None = None,
    split: str = "test",
    seed: int = 0,
    checkpoint: str = "auto",
    reporter: Any = None,
) -> CertificateReport:
    """Judge a run's certificate by the states that its policy visits, and save `certificate.json` and a picture.

    In every visited state the simulator is asked what each of a grid of `actions` per axis would lead to: 17, or 5
    where it steps on the host. `tasks` tasks of `split` (100; 10 on the host), `episodes` trajectories of each.
    `index` names one of Table 2 to judge by instead of the run's own, for any run on a task with obstacles. Raises
    `UserError`.
    """
    import jax

    from safemeta.experiment.certificate_plots import draw_certificate
    from safemeta.experiment.certificate_sets import compare
    from safemeta.experiment.certified_episodes import visit
    from safemeta.experiment.run_certificate import certificate_of, grid_points
    from safemeta.sim.failures import SimulationError

    check_settings(tasks, episodes, actions, seed)
    run = run if isinstance(run, Run) else load(run, checkpoint)
    reporter = reporter or default()
    certificate = certificate_of(run, index)
    points = grid_points(run.world, actions)
    if tasks is None:
        tasks = TASKS_ON_HOST if getattr(run.world, "on_host", False) else TASKS
    key = jax.random.key(seed)
    drawn = draw_tasks(run.world, jax.random.fold_in(key, SAMPLE_STREAM), tasks, split, None)
    tried = points**run.world.cmdp.action_size
    reporter.note(f"Trying {tried} actions in every state of {tasks * episodes} trajectories ...")
    measuring = jax.random.fold_in(key, MEASURE_STREAM)
    try:
        visited = visit(run.world, run.trained, certificate, drawn, measuring, episodes, points)
    except SimulationError as problem:
        raise simulation_failed(problem) from problem
    check_finite(visited.reward, visited.energy, visited.next_energy)
    sets = compare(run.world, certificate.index)
    report = CertificateReport(
        run=str(run.folder),
        iteration=run.iteration,
        certificate=dataclasses.asdict(certificate),
        tasks=tasks,
        episodes=episodes,
        split=split,
        seed=seed,
        points=points,
        actions=tried,
        **findings(visited, run.world.cmdp, certificate.safe_distance),
        limit_on=run.world.cmdp.limit_on,
        reachability=None if sets is None else sets.to_json(),
    )
    title = f"Certificate: {run.name}, iteration {run.iteration}"
    picture = draw_certificate(visited, certificate, sets, report, run.plots / PICTURE, title=title)
    report = dataclasses.replace(report, picture=picture)
    try:
        write_json(run.folder / FILE, report.to_json())
    except OSError as problem:
        raise writing_failed(problem, run.folder) from problem
    return report


def check_settings(tasks: int | None, episodes: int, actions: int | None, seed: int) -> None:
    """Raise `UserError` unless all are sensible."""
    check_seed(seed)
    if tasks is not None:
        check_count("tasks", tasks)
    check_count("episodes", episodes)
    if actions is not None:
        check_count("actions along each axis", actions, least=2)


def findings(visited: Any, cmdp: Any, index_distance: float) -> dict[str, Any]:
    """The report's numbers, by name; `index_distance` is d_min, for tasks that name no safe distance."""
    valid, infeasible = visited.valid, visited.infeasible
    count = int(valid.sum())
    if count == 0:
        raise UserError("No trajectory has a single step, so that there is nothing to certify.", exit_code=1)
    violations, avoidable = int(visited.violated.sum()), int((visited.violated & visited.grid_feasible).sum())
    safe_distance = index_distance if cmdp.safe_distance is None else cmdp.safe_distance
    entry, stuck = visited.entered(safe_distance), infeasible.any(axis=0)
    costs = (visited.costs * valid[..., None]).sum(axis=0)
    weights = np.asarray(cmdp.cost_weights(), float)
    limited = np.einsum("t,trc->rc", weights, visited.costs * valid[..., None])
    energies = np.where(valid, np.maximum(visited.energy, visited.next_energy), -np.inf)
    distances = np.where(valid, np.minimum(visited.distance, visited.next_distance), np.inf)
    return {
        "states": StateCounts(
            visited=count,
            feasible=count - int(infeasible.sum()),
            infeasible=int(infeasible.sum()),
            missed=int(visited.missed.sum()),
            violations=violations,
            avoidable=avoidable,
            feasible_share=1 - int(infeasible.sum()) / count,
            violation_share=violations / count,
            safe_actions=float(visited.safe_share[valid].mean()),
        ),
        "trajectories": TrajectoryShares(
            hazard_entry=Share.where(entry),
            infeasible=Share.where(stuck),
            success=Share.where(~entry & ~stuck),
            cost=Share.where((costs > 0).any(axis=1)),
        ),
        "largest_index": float(energies.max()),
        "largest_violation": float(np.where(valid, visited.violation, -np.inf).max()),
        "smallest_distance": float(distances.min()),
        "safe_distance": float(safe_distance),
        "episode_return": Interval.over_tasks((visited.reward * valid).sum(axis=0)),
        "costs": {name: Interval.over_tasks(limited[:, column]) for column, name in enumerate(cmdp.cost_names)},
    }
