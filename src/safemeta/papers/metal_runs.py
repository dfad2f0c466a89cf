"""The jobs behind MetaL's figures: runs on the Real-World RL tasks at a safety coefficient, and what they came to.

Return R and violation J_C (the share of steps) are means over the last 100 episodes of training, as the paper has it,
with the noise of exploration. Beside them the final policy is measured without noise, on fresh episodes.
"""

import contextlib
import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment.files import write_json
from safemeta.experiment.jobs import Progress
from safemeta.papers.groups import Group
from safemeta.papers.trials import TEST_SEED, Trial

FILE = "final.json"
EPISODES = 8  # of an iteration: `tasks` x `episodes` of all runs here
LAST_EPISODES = 100  # of training, over which the paper averages
TRAINING_SHARE = 0.95  # of a run's time, roughly
PENALTY = 1000.0  # kappa
START_UP = 15.0  # s, mostly compilation
CARTPOLE = "realworld-cartpole"


@dataclasses.dataclass(frozen=True)
class Final:
    """A final policy without noise on fresh episodes: `[episodes]` each; costs are shares of steps."""

    returns: NDArray
    costs: NDArray


@dataclasses.dataclass(frozen=True)
class RobotTrial(Trial):
    """A run without judgements, at a safety coefficient; its final policy is measured on `episodes` episodes."""

    coefficient: float = 0.3
    episodes: int = 20

    def done(self, folder: Path) -> bool:
        """Whether it is trained and measured; `UserError` if the folder holds a run of other settings."""
        return super().done(folder) and self.final(folder) is not None

    def work(self, folder: Path, progress: Progress) -> None:
        """Train, or go on training, then measure."""
        from safemeta.experiment.run import CONFIG, remove_empty
        from safemeta.experiment.train import train

        reporter = progress.part(TRAINING_SHARE)
        with clipping_is_meant():
            if (folder / CONFIG).is_file():
                train(resume=folder, reporter=reporter)
            else:
                remove_empty(folder)
                train(out=folder, iterations=self.iterations, reporter=reporter, **self._given())
            self.measure(folder)

    def measure(self, folder: Path) -> None:
        """Save what the final policy does without noise; the last checkpoint but one, replay and all, is let go."""
        import jax

        from safemeta.experiment.checkpoint import Checkpoints
        from safemeta.experiment.run import load

        run = load(folder, "last")
        task_key, run_key = jax.random.split(jax.random.key(TEST_SEED + self.seed))
        tasks = run.world.sample(task_key, 1, "test")
        found = run.world.measure(run.trained, tasks, run_key, self.episodes)
        arrays = {"returns": found.episode_return[0], "costs": found.costs[0, :, 0]}
        content = {name: np.asarray(values, float).tolist() for name, values in arrays.items()}
        write_json(folder / FILE, {"settings": self._settings(), **content})
        checkpoints = Checkpoints(folder / "checkpoints")
        for old in checkpoints.iterations()[1:]:
            checkpoints.path(old).unlink(missing_ok=True)

    def final(self, folder: Path) -> Final | None:
        """What was measured with these settings."""
        try:
            content = json.loads((folder / FILE).read_bytes())
            if content["settings"] != self._settings():
                return None
            return Final(np.array(content["returns"]), np.array(content["costs"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _given(self) -> dict[str, Any]:
        return {**super()._given(), "task_options": {"safety_coeff": self.coefficient}}

    def _settings(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient, "episodes": self.episodes, "seed": TEST_SEED + self.seed}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Runs of one method on a functional task, at several coefficients and seeds: trained in one compiled program."""

    name: str
    trials: tuple[RobotTrial, ...]

    @property
    def seconds(self) -> float:
        return START_UP + sum(trial.seconds for trial in self.trials)

    @property
    def program(self) -> str:
        return self.name

    def config(self) -> Any:
        """The configurations of all runs."""
        return [trial.config() for trial in self.trials]

    def done(self, folder: Path) -> bool:
        """Whether all runs are trained and measured."""
        return not self._missing(folder)

    def work(self, folder: Path, progress: Progress) -> None:
        """Train what is missing, or go on with it, then measure."""
        from safemeta.experiment.lockstep import opened, train_together

        missing, reporter = self._missing(folder), progress.part(TRAINING_SHARE)
        folder.mkdir(exist_ok=True)
        with clipping_is_meant():
            runs = [opened(folder / trial.name, trial.config()) for trial in missing]
            train_together(runs, reporter)
            reporter = progress.part(1 - TRAINING_SHARE)
            reporter.begin("Measuring", len(missing))
            for number, trial in enumerate(missing):
                trial.measure(folder / trial.name)
                reporter.advance(number + 1, {})

    def _missing(self, folder: Path) -> list[RobotTrial]:
        return [trial for trial in self.trials if not trial.done(folder / trial.name)]


@contextlib.contextmanager
def clipping_is_meant() -> Iterator[None]:
    """No warnings that a support is too narrow: large fixed multipliers are clipped, as they are in Acme's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The critic's support")
        yield


@dataclasses.dataclass(frozen=True)
class RobotGroup(Group):
    """All finished seeds of a method at one place; `final` has one entry for each."""

    coefficient: float
    final: tuple[Final, ...]

    @property
    def threshold(self) -> float:
        """beta, as it was logged: a single-precision number."""
        return round(float(self.metrics[0][-1]["limit"]), 6)

    @property
    def reached(self) -> "Reached":
        """What training came to."""
        last = [lines[-math.ceil(LAST_EPISODES / EPISODES) :] for lines in self.metrics]
        returns, costs = (
            np.array([np.mean([line[name] for line in each]) for each in last]) for name in ("return", "cost")
        )
        return Reached.of(returns, costs, self.threshold)

    @property
    def without_noise(self) -> "Reached":
        """What the final policies come to."""
        returns, costs = (
            np.array([getattr(each, name).mean() for each in self.final]) for name in ("returns", "costs")
        )
        return Reached.of(returns, costs, self.threshold)

    def table(self, name: str) -> NDArray:
        """A metric over training, `[iterations, seeds]`."""
        length = min(map(len, self.metrics))
        return np.array([[line[name] for line in lines[:length]] for lines in self.metrics], float).T


@dataclasses.dataclass(frozen=True)
class Reached:
    """R, J_C and `psi = max(0, J_C - beta)` of every seed."""

    returns: NDArray
    costs: NDArray
    overshoot: NDArray

    @staticmethod
    def of(returns: NDArray, costs: NDArray, threshold: float) -> "Reached":
        """Of runs with the threshold beta."""
        return Reached(returns, costs, np.maximum(costs - threshold, 0))

    @property
    def penalised(self) -> NDArray:
        """`R - kappa psi`, kappa = 1000."""
        return self.returns - PENALTY * self.overshoot


def gather(out: Path, jobs: Iterable[RobotTrial | Bundle]) -> dict[tuple[str, float, str], RobotGroup]:
    """(task, coefficient, method) -> its finished runs; what failed or is not yet done is left out."""
    found: dict[tuple[str, float, str], list[tuple[RobotTrial, Final, Path]]] = {}
    for job in jobs:
        folder = out / "runs" / job.name
        runs = [(job, folder)] if isinstance(job, RobotTrial) else [(each, folder / each.name) for each in job.trials]
        for trial, place in runs:
            final = trial.final(place)
            if final is not None:
                found.setdefault((trial.task, trial.coefficient, trial.method), []).append((trial, final, place))
    return {key: _group(key, members) for key, members in found.items()}


def _group(key: tuple[str, float, str], members: Sequence[tuple[RobotTrial, Final, Path]]) -> RobotGroup:
    from safemeta.experiment import logs

    return RobotGroup(
        method=key[2],
        task=key[0],
        seeds=tuple(trial.seed for trial, _, _ in members),
        judged=(),
        metrics=tuple(logs.read(folder / logs.METRICS) for _, _, folder in members),
        timing=tuple([line["seconds"] for line in logs.read(folder / logs.TIMING)] for _, _, folder in members),
        coefficient=key[1],
        final=tuple(final for _, final, _ in members),
    )
