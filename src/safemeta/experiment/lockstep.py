"""Runs of the same settings trained side by side in one compiled program, each in a folder of its own as ever.

Seeds and tasks differ, nothing else. What a run leaves is what `safemeta train` would leave, but for rounding. Runs
that were killed go on from the newest checkpoint that all have, so that they end as if they had not been, bit for bit.
Those that are further apart than that go on together as soon as those that are behind have caught up.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from safemeta.algorithms.off_policy import OffPolicyAlgorithm
from safemeta.algorithms.vmapped import VmappedRuns
from safemeta.experiment.checkpoint import Checkpoints, restore
from safemeta.experiment.config import RunConfig
from safemeta.experiment.errors import Interrupted, UserError
from safemeta.experiment.progress import Quiet, Reporter
from safemeta.experiment.run import CONFIG, Run, create_folder, fresh, locked, remove_empty
from safemeta.experiment.signals import StopSignals
from safemeta.experiment.train import Training, reopen


def opened(folder: Path, config: RunConfig, reporter: Reporter | None = None) -> Run:
    """The run of that folder at its newest checkpoint, or a new one."""
    if (folder / CONFIG).is_file():
        return reopen(folder, None, {}, reporter or Quiet())
    remove_empty(folder)
    run = fresh(Path(), config)
    run.folder = create_folder(config, folder)
    return run


def can_be_trained_together(algorithm: Any, world: Any) -> bool:
    """Whether runs of these share a program: off-policy learners do, where tasks are stepped in compiled code."""
    compiled = world.functional and not getattr(world, "on_host", False)
    return compiled and isinstance(algorithm, OffPolicyAlgorithm)


def level(runs: Sequence[Run]) -> None:
    """Take those that are ahead back to where the last one is, if one interval of checkpoints is all that is lost.

    A process that is killed while it saves its runs leaves some a checkpoint ahead. If these waited for the others, the
    others would go on without them, in another program, which rounds differently.
    """
    goal = min(run.iteration for run in runs)
    ahead = [run for run in runs if run.iteration > goal]
    if any(run.iteration - goal > run.config.checkpoint_every for run in ahead):
        return
    try:
        found = [_at(run, goal) for run in ahead]
    except UserError:
        return
    for run, (state, best_score) in zip(ahead, found, strict=True):
        run.state, run.iteration, run.best_score = state, goal, best_score
        checkpoints = Checkpoints(run.folder / "checkpoints")
        for later in checkpoints.iterations():
            if later > goal:  # else it would count among those that are kept
                checkpoints.path(later).unlink()


def _at(run: Run, iteration: int) -> tuple[Any, float | None]:
    """The run's state and best score at an earlier iteration; `UserError` if it has no such checkpoint."""
    if iteration == 0:
        return fresh(run.folder, run.config, run.world if run.config.task.own else None).state, None
    state, header = restore(Checkpoints(run.folder / "checkpoints").path(iteration), run.state)
    return state, header.get("best_score")


def train_together(runs: Sequence[Run], reporter: Reporter) -> None:
    """All runs to their ends; whatever stops one stops all, and all whole states are saved."""
    if len({(run.config.algorithm, run.config.options, run.config.iterations) for run in runs}) > 1:
        raise ValueError("Runs that are trained together must have the same settings.")
    with contextlib.ExitStack() as stack, StopSignals() as signals:
        for run in runs:
            stack.enter_context(locked(run.folder))
        level(runs)
        trainings = [Training(run, Quiet(), signals) for run in runs]
        for each in trainings:
            stack.enter_context(contextlib.closing(each.logs))
        goal = runs[0].config.iterations
        reporter.begin("Training", goal * len(runs), sum(run.iteration for run in runs))
        try:
            while signals.received is None and any(run.iteration < goal for run in runs):
                chosen, until = next_group([run.iteration for run in runs], goal, _at_once())
                for words in _advance([trainings[index] for index in chosen], until, signals):
                    reporter.advance(sum(run.iteration for run in runs), words)
        except BaseException:
            for each in trainings:
                each.save_quietly()
            raise
        for each in trainings:
            each.save()
    if signals.received is not None:
        raise Interrupted("Stopped.", exit_code=128 + signals.received)


def next_group(iterations: Sequence[int], goal: int, at_once: int) -> tuple[list[int], int]:
    """Which runs are next, and until which iteration: those furthest behind, until they meet others or the goal."""
    first = min(iterations)
    behind = [index for index, iteration in enumerate(iterations) if iteration == first]
    return behind[:at_once], min([goal, *(iteration for iteration in iterations if iteration > first)])


def _at_once() -> int:
    """On processors, few: 16 runs of `d4pg` on cartpole took 10 % more time each than 4."""
    return 4 if jax.default_backend() == "cpu" else 1000


def _advance(trainings: Sequence[Training], goal: int, signals: StopSignals) -> Iterator[dict[str, float]]:
    """Runs that are all at the same iteration, until `goal` or a signal; what is worth telling of each iteration."""
    if len(trainings) == 1:
        while trainings[0].run.iteration < goal and signals.received is None:
            trainings[0].advance()
            yield {}
        return
    program = VmappedRuns(trainings[0].run.algorithm, trainings[0].run.world)
    states = program.join([each.run.state for each in trainings])
    while trainings[0].run.iteration < goal and signals.received is None:
        began = time.perf_counter()
        # As `OffPolicyAlgorithm.iterate` does it for one run.
        keys = [jax.random.split(jax.random.fold_in(each.key, each.run.iteration)) for each in trainings]
        drawn = [
            each.run.world.sample(task_key, program.algorithm.config.tasks, "train")
            for each, (task_key, _) in zip(trainings, keys, strict=True)
        ]
        tasks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
        states, metrics = program.iterate(states, tasks, jnp.stack([run_key for _, run_key in keys]))
        metrics = jax.device_get(metrics)
        seconds = (time.perf_counter() - began) / len(trainings)
        for index, each in enumerate(trainings):
            each.take(program.pick(states, index), {name: values[index] for name, values in metrics.items()}, seconds)
        yield {"return": float(metrics["return"].mean())}
