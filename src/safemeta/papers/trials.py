"""A trial: one algorithm trained on one family with one seed, then judged on unseen tasks.

A trial is a run folder like any other (`safemeta adapt`, `plot` and `video` work on it), with `judged/LABEL.json` and
`.npz` beside what training leaves.
"""

import dataclasses
import io
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment.errors import UserError, writing_failed
from safemeta.experiment.files import write_atomically, write_json
from safemeta.experiment.jobs import Progress

JUDGED = "judged"
TEST_SEED = 1000  # the judging seed of training seed i is this plus i: other tasks for each, the same for all methods
TRAINING_SHARE = 0.6  # of a trial's time, roughly


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A test on unseen tasks: adapt for `steps` steps, judge every policy on fresh episodes.

    `limit` replaces the family's own limit at test time. An algorithm that cannot adapt goes on with its own steps on
    each task (`continuation.py`).
    """

    label: str = "test"
    tasks: int = 20
    steps: int = 20
    episodes: int = 20  # that judge a policy
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Trial:
    """See the module's docstring. `method` is the name in figures and tables."""

    name: str
    method: str
    algorithm: str
    task: str
    seed: int
    iterations: int
    judgements: tuple[Judgement, ...]
    preset: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    horizon: int | None = None
    seconds: float = 60.0

    @property
    def program(self) -> str:
        """Seeds share what is compiled."""
        return f"{self.method} {self.task}"

    def config(self) -> Any:
        """The run's complete configuration; `UserError` if there is no such algorithm, task or option."""
        from safemeta.experiment.train import resolve

        return resolve(self._given(), self.iterations)

    def done(self, folder: Path) -> bool:
        """Whether every judgement is there; `UserError` if the folder holds a run of other settings."""
        from safemeta.experiment.run import CONFIG, read_config

        if not (folder / CONFIG).is_file():
            return False
        if read_config(folder) != self.config():
            raise UserError(
                f"'{folder}' holds a run of other settings than this reproduction's; choose another --out or remove it."
            )
        return all(stored(folder, each, self.seed) is not None for each in self.judgements)

    def work(self, folder: Path, progress: Progress) -> None:
        """Train, or go on training, then make the judgements that are missing."""
        from safemeta.experiment.run import CONFIG, load, remove_empty
        from safemeta.experiment.train import train

        reporter = progress.part(TRAINING_SHARE)
        if (folder / CONFIG).is_file():
            train(resume=folder, reporter=reporter)
        else:
            remove_empty(folder)
            train(out=folder, iterations=self.iterations, reporter=reporter, **self._given())
        for judgement in self.judgements:
            reporter = progress.part((1 - TRAINING_SHARE) / len(self.judgements))
            if stored(folder, judgement, self.seed) is None:
                judge(load(folder), judgement, self.seed, reporter)

    def _given(self) -> dict[str, Any]:
        given = {"algorithm": self.algorithm, "task": self.task, "seed": self.seed, **self.options}
        given |= {key: getattr(self, key) for key in ("preset", "horizon") if getattr(self, key) is not None}
        return given


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a judgement found. `returns` is `[steps + 1, tasks]`, `costs` `[..., costs]`, `limits` `[tasks, costs]`.

    `report` is `AdaptationReport.to_json()`; `seconds` is how long the adaptation of all tasks took, compilation apart.
    """

    report: dict[str, Any]
    seconds: float
    returns: np.ndarray
    costs: np.ndarray
    limits: np.ndarray


def judge(run: Any, judgement: Judgement, seed: int, reporter: Any) -> Judged:
    """Make a judgement and save it in the run's folder."""
    from safemeta.experiment.adapt import adapt_policies
    from safemeta.papers.continuation import learner_at_test

    algorithm, state = learner_at_test(run)
    timed = Timed(algorithm)
    report = adapt_policies(
        timed, state, run.world, tasks=judgement.tasks, steps=judgement.steps, episodes=judgement.episodes,
        seed=TEST_SEED + seed, limit=judgement.limit, reporter=reporter,
    )  # fmt: skip
    judged = Judged(report.to_json(), timed.seconds, report.returns, report.costs, report.limits)
    buffer = io.BytesIO()
    np.savez(buffer, returns=judged.returns, costs=judged.costs, limits=judged.limits)
    try:
        (run.folder / JUDGED).mkdir(exist_ok=True)
        write_atomically(_path(run.folder, judgement, "npz"), buffer.getvalue())
        content = {"settings": _settings(judgement, seed), "seconds": judged.seconds, "report": judged.report}
        write_json(_path(run.folder, judgement, "json"), content)  # last: it says that the other is whole
    except OSError as problem:
        raise writing_failed(problem, run.folder) from problem
    return judged


def stored(folder: Path, judgement: Judgement, seed: int) -> Judged | None:
    """The judgement that the folder holds, if it was made with these settings."""
    try:
        content = json.loads(_path(folder, judgement, "json").read_bytes())
        if content["settings"] != _settings(judgement, seed):
            return None
        packed = io.BytesIO(_path(folder, judgement, "npz").read_bytes())
        with np.load(packed, allow_pickle=False) as arrays:
            return Judged(content["report"], content["seconds"], arrays["returns"], arrays["costs"], arrays["limits"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None  # absent or damaged: to be made anew


class Timed:
    """A meta-algorithm whose `adapt` is timed; one step beforehand compiles what there is to compile."""

    def __init__(self, algorithm: Any):
        self.algorithm = algorithm
        self.seconds = 0.0

    def adapt(self, state: Any, world: Any, tasks: Any, key: Any, steps: int) -> Any:
        import jax

        jax.block_until_ready(self.algorithm.adapt(state, world, tasks, key, 1))
        began = time.perf_counter()
        found = jax.block_until_ready(self.algorithm.adapt(state, world, tasks, key, steps))
        self.seconds = time.perf_counter() - began
        return found


def _settings(judgement: Judgement, seed: int) -> dict[str, Any]:
    return {**dataclasses.asdict(judgement), "seed": TEST_SEED + seed}


def _path(folder: Path, judgement: Judgement, suffix: str) -> Path:
    return folder / JUDGED / f"{judgement.label}.{suffix}"
