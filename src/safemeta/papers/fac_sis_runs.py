"""The jobs behind FAC-SIS's figures: a run, and its final policy watched step by step.

All methods are watched alike: return and cost of fresh episodes, and how often a step broke the safe-action constraint
(eq. 1), under the run's own index where it has one and under phi_F, by which the released code counts for everybody. On
the custom environment each state that is visited is also searched for an action that keeps the constraint.
"""

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment.files import write_atomically, write_json
from safemeta.experiment.jobs import Progress
from safemeta.papers.groups import Curve, Group
from safemeta.papers.trials import TEST_SEED, TRAINING_SHARE, Trial

FILE, ARRAYS = "watched.json", "watched.npz"
WITH_INDEX = ("fac", "fac-sis")
ALL = "phi_F"  # the index that everybody is watched under


@dataclasses.dataclass(frozen=True)
class Watch:
    """How a final policy is watched: so many episodes; with `points`, `points^2` actions are tried in every state.

    `cells` are those of a grid over distance, speed and direction that is searched for infeasible states, if any.
    """

    episodes: int = 10
    points: int = 0
    cells: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class WatchedTrial(Trial):
    """A trial without judgements, then watched. `flipped`: collision avoidance with the released sign of d_dot."""

    watch: Watch = Watch()
    flipped: bool = False
    start: str = ""  # of collision avoidance

    def config(self) -> Any:
        """The run's complete configuration; `UserError` if there is no such algorithm, task or option."""
        from safemeta.experiment.config import TaskConfig
        from safemeta.experiment.train import resolve

        given = self._given()
        return resolve({**given, "task": TaskConfig.of(given["task"])} if self.flipped else given, self.iterations)

    def done(self, folder: Path) -> bool:
        """Whether it is trained and watched; `UserError` if the folder holds a run of other settings."""
        return super().done(folder) and self.found(folder) is not None

    def work(self, folder: Path, progress: Progress) -> None:
        """Train, or go on training, then watch."""
        from safemeta.experiment.run import CONFIG, load, remove_empty
        from safemeta.experiment.train import train

        given = self._given()
        own = {"task": given["task"]} if self.flipped else {}
        reporter = progress.part(TRAINING_SHARE)
        if (folder / CONFIG).is_file():
            train(resume=folder, reporter=reporter, **own)
        else:
            remove_empty(folder)
            train(out=folder, iterations=self.iterations, reporter=reporter, **given)
        save(load(folder, world=own.get("task")), self)

    def found(self, folder: Path) -> "Watched | None":
        """What was seen, if it was watched with these settings."""
        try:
            content = json.loads((folder / FILE).read_bytes())
            if content.pop("settings") != _settings(self):
                return None
            with np.load(io.BytesIO((folder / ARRAYS).read_bytes()), allow_pickle=False) as arrays:
                return Watched(**content, **{name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None

    def _given(self) -> dict[str, Any]:
        given = super()._given()
        if self.flipped:
            given["task"] = flipped_world(self.start, given.pop("horizon", None))
        return given


@dataclasses.dataclass(frozen=True)
class Watched:
    """Episodes of a final policy. `returns`, `costs`, ... are `[episodes]`; counts are of steps.

    `own_violations` and `infeasible` are -1 where there is no index, or nothing was searched; `distance`, `rate` and
    `feasible` are `[time, episodes]`, of the only obstacle, and empty on other tasks; `barred` is `[states, 2]`,
    (d, d_dot) of the grid's infeasible states.
    """

    horizon: int
    index: list[float] | None  # sigma, k, n
    searched: int  # states of the grid
    returns: NDArray
    costs: NDArray
    violations: NDArray  # of phi_F
    own_violations: NDArray
    infeasible: NDArray
    distance: NDArray
    rate: NDArray
    feasible: NDArray
    barred: NDArray

    @property
    def successes(self) -> NDArray:
        """Trajectories without cost and without infeasible states (Table 3)."""
        return (self.costs == 0) & (self.infeasible == 0)

    @property
    def tracking_error(self) -> NDArray:
        """Minus the reward per step: speed, a tenth of the heading, and the place's part."""
        return -self.returns / self.horizon


def flipped_world(start: str, horizon: int | None) -> Any:
    """Collision avoidance with the released code's sign of d_dot."""
    from safemeta.tasks.collision_avoidance import CollisionAvoidance, world

    true = world(horizon=horizon, start=start)
    return dataclasses.replace(true, environment=CollisionAvoidance(flipped_rate=True))


def save(run: Any, trial: WatchedTrial) -> None:
    """Watch a run's final policy and save what was seen."""
    content, arrays = watch(run, trial.watch, trial.seed)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(run.folder / ARRAYS, buffer.getvalue())
    write_json(run.folder / FILE, {"settings": _settings(trial), **content})  # last: it says that the other is whole


def watch(run: Any, settings: Watch, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of `Watched`, numbers and arrays."""
    import jax

    from safemeta.certificates import SafetyIndex
    from safemeta.papers.fac_sis_watcher import Watcher, infeasible_cells

    world, key = run.world, jax.random.key(TEST_SEED + seed)
    task_key, run_key = jax.random.split(key)
    tasks = world.sample(task_key, 1, "test")
    own = run.state.learner.index if run.config.algorithm in WITH_INDEX else None
    everybody = SafetyIndex.named("feasible", world.cmdp.safe_distance)
    points = settings.points if own is not None else 0
    state = (run.trained, own, everybody)
    _, records = world.interact(Watcher(points), state, tasks, run_key, settings.episodes)
    seen = {name: np.asarray(values) for name, values in records.items()}
    valid = seen["valid"]
    nothing = np.full(settings.episodes, -1)
    single = own is not None and points > 0 and seen["clearance"].shape[2] == 1
    clearance = seen["clearance"][:, :, 0] if single else np.zeros((0, settings.episodes, 2))
    barred, searched = np.zeros((0, 2)), 0
    if settings.cells is not None and own is not None:
        barred, searched = infeasible_cells(own, settings.cells)
    arrays = {
        "returns": (seen["reward"] * valid).sum(0),
        "costs": (seen["cost"] * valid).sum(0),
        "violations": ((seen["violation"] > 0) & valid).sum(0),
        "own_violations": nothing if own is None else ((seen["own_violation"] > 0) & valid).sum(0),
        "infeasible": (~seen["feasible"] & valid).sum(0) if points else nothing,
        "distance": clearance[..., 0],
        "rate": clearance[..., 1],
        "feasible": seen["feasible"] if single else np.zeros((0, settings.episodes), bool),
        "barred": barred,
    }
    index = None if own is None else [float(np.ravel(value)[0]) for value in own.clipped()]
    return {"horizon": world.cmdp.horizon, "index": index, "searched": searched}, arrays


def _settings(trial: WatchedTrial) -> dict[str, Any]:
    return json.loads(json.dumps({**dataclasses.asdict(trial.watch), "seed": TEST_SEED + trial.seed}))


@dataclasses.dataclass(frozen=True)
class WatchedGroup(Group):
    """All finished seeds of a method on a task; `watched` has one entry for each."""

    watched: tuple[Watched, ...]

    def only(self, seeds: Sequence[int]) -> "WatchedGroup":
        """The group with these of its seeds."""
        kept = [self.seeds.index(seed) for seed in seeds]
        fields = {
            name: tuple(getattr(self, name)[i] for i in kept) for name in ("seeds", "metrics", "timing", "watched")
        }
        return dataclasses.replace(self, **fields)

    def pooled(self, name: str) -> NDArray:
        """A quantity of every episode of every seed, `[seeds, episodes]`."""
        return np.stack([getattr(each, name) for each in self.watched])

    @property
    def horizon(self) -> int:
        return self.watched[0].horizon

    @property
    def largest_training_cost(self) -> float:
        """The largest cost of a single episode in the last tenth of training, over seeds, as it is."""
        return max(max(line["largest_cost"] for line in _last(lines)) for lines in self.metrics)

    def cost_rates(self) -> tuple[NDArray, NDArray]:
        """Environment steps `[iterations]`, and accumulated cost per step until then `[iterations, seeds]`.

        Episodes of these tasks all last the whole horizon, and iterations have equally many.
        """
        length = min(map(len, self.metrics))
        costs = np.array([[line["cost"] for line in lines[:length]] for lines in self.metrics], float).T
        steps = np.array([line["environment_steps"] for line in self.metrics[0][:length]], float)
        counted = self.horizon * np.arange(1, length + 1)[:, None]
        return steps, np.cumsum(costs, axis=0) / counted

    def cost_rate_curve(self) -> Curve:
        """Mean over seeds."""
        from safemeta.experiment.statistics import bootstrap_columns

        steps, rates = self.cost_rates()
        return Curve(steps, rates.mean(1), *bootstrap_columns(rates))


def _last(lines: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    return lines[-max(1, math.ceil(0.1 * len(lines))) :]


def gather(out: Path, trials: Iterable[WatchedTrial]) -> dict[tuple[str, str], WatchedGroup]:
    """(method, task) -> its finished trials; flipped ones have "flipped" behind the task."""
    from safemeta.experiment import logs

    found: dict[tuple[str, str], list[tuple[WatchedTrial, Watched, Path]]] = {}
    for trial in trials:
        folder = out / "runs" / trial.name
        seen = trial.found(folder)
        if seen is not None:
            found.setdefault((trial.method, place(trial)), []).append((trial, seen, folder))
    return {
        (method, task): WatchedGroup(
            method=method,
            task=task,
            seeds=tuple(trial.seed for trial, _, _ in members),
            judged=(),
            metrics=tuple(logs.read(folder / logs.METRICS) for _, _, folder in members),
            timing=tuple([line["seconds"] for line in logs.read(folder / logs.TIMING)] for _, _, folder in members),
            watched=tuple(seen for _, seen, _ in members),
        )
        for (method, task), members in found.items()
    }


def place(trial: WatchedTrial) -> str:
    """The task, and whether d_dot has the released sign."""
    return f"{trial.task} flipped" if trial.flipped else trial.task
