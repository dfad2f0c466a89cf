"""Training: the outer loop, with checkpoints, resume, and a clean stop.

Iteration i uses the key `fold_in(key(seed), i)` and nothing else that is random, and a checkpoint holds the whole
state; so a resumed run computes what an unbroken one would have computed, bit for bit on the same machine.
"""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.algorithms import registry
from safemeta.experiment.config import BUDGETS, RunConfig, TaskConfig, check_count, decode, read_task_options
from safemeta.experiment.errors import Interrupted, UserError, from_value_error, unknown, writing_failed
from safemeta.experiment.metrics import SCORE
from safemeta.experiment.progress import default, told
from safemeta.experiment.run import (
    CONFIG,
    Run,
    check_world,
    create_folder,
    fresh,
    locked,
    read_config,
    read_config_file,
)
from safemeta.experiment.signals import StopSignals

DEFAULT_TASK = "point-circle"


def train(
    algorithm: str | None = None,
    task: Any = None,
    *,
    preset: str | None = None,
    seed: int | None = None,
    iterations: int | None = None,
    budget: str | None = None,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    config: Path | str | None = None,
    limit: float | None = None,
    limit_on: str | None = None,
    horizon: int | None = None,
    task_options: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    reporter: Any = None,
    **options: Any,
) -> Run:
    """Train `algorithm` on `task` and return the run.

    `task` is the name of a task family or a world, such as `safemeta.gymnasium_world` makes of an environment of your
    own; to resume a run on such a world, hand it over again. `task_options` are options of the task's family, as for
    `safemeta.make`.
    `options` are fields of the algorithm's `Config`; they change what `preset` (or the config's own defaults) says.
    `resume` continues a run folder, for which only `iterations` may be given too. `config` repeats the run that a
    `config.json` describes; everything given here overrides it. Raises `UserError` (one sentence).
    """
    world = None if task is None or isinstance(task, str) else task
    given = {
        "algorithm": algorithm, "task": task if world is None else TaskConfig.of(world), "preset": preset,
        "seed": seed, "budget": budget, "out": out, "config": config, "limit": limit, "limit_on": limit_on,
        "horizon": horizon, "task_options": task_options or None, "checkpoint_every": checkpoint_every, **options,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    reporter = reporter or default()
    _prepare(reporter)
    if resume is not None:
        run = reopen(Path(resume), iterations, given, reporter, world)
    else:
        out = given.pop("out", None)
        settings = resolve(given, iterations)
        with told(reporter):
            run = fresh(Path(), settings, world)
        run.folder = create_folder(settings, out)
    _train(run, reporter)
    return run


def resolve(given: Mapping[str, Any], iterations: int | None) -> RunConfig:
    """The complete configuration that the given settings ask for; `UserError` if they make no sense."""
    given = dict(given)
    base = read_config_file(Path(given.pop("config"))) if "config" in given else None
    name = given.pop("algorithm", base.algorithm if base else registry.DEFAULT)
    try:
        entry = registry.get(name)
    except ValueError as problem:
        raise from_value_error(problem) from problem
    task = _resolve_task(given, base.task if base else TaskConfig(DEFAULT_TASK))
    run = {key: given.pop(key) for key in ("seed", "checkpoint_every", "budget", "preset") if key in given}
    if run.get("budget", "default") not in BUDGETS:
        raise unknown("budget", str(run["budget"]), BUDGETS)
    module = entry.load()
    if base is not None and base.algorithm == name and "preset" not in run:
        run["preset"], options = base.preset, base.options
    else:
        options = default_options(module, run.get("preset"))
    if iterations is None:
        keep = base is not None and "budget" not in run
        iterations = base.iterations if keep and base else module.iterations[run.get("budget", "default")]
    if base is not None:
        run = {"seed": base.seed, "checkpoint_every": base.checkpoint_every, "budget": base.budget, **run}
    config = RunConfig(name, change(options, given), task, **{"seed": 0, **run}, iterations=iterations)
    config.validate()
    return config


def default_options(module: registry.AlgorithmModule, preset: str | None) -> Any:
    """The algorithm's `Config` under a preset's name, or its plain defaults."""
    if preset is None:
        return module.config()
    if preset not in module.presets:
        raise unknown(f"preset of {module.name}", preset, module.presets)
    return module.presets[preset]


def change(options: Any, given: Mapping[str, Any]) -> Any:
    """`options` with the given fields changed, names and types checked."""
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    for name in given:
        if name not in fields:
            raise unknown("option", name, fields)
    try:
        return decode(type(options), {**fields, **given}, "The options")
    except Interrupted:
        raise
    except UserError as problem:
        raise UserError(str(problem)) from problem  # here, unlike in a file, it is a matter of usage


def reopen(folder: Path, iterations: int | None, given: Mapping[str, Any], reporter: Any, world: Any = None) -> Run:
    """An existing run at its newest readable checkpoint, or at iteration 0 if it was stopped before the first.

    `given` are settings that came with it; only those that say what the run says anyway are let through.
    """
    from safemeta.experiment.checkpoint import Checkpoints
    from safemeta.experiment.files import write_json

    config = read_config(folder)
    if config.task.own and world is None:
        raise UserError(
            f"'{folder}' was trained on an environment of the user's own; continue it from Python:"
            f" safemeta.train(resume='{folder}', task=world)."
        )
    if world is not None:
        check_world(config.task, world)
        given = {name: value for name, value in given.items() if name != "task"}
    same = {"algorithm": config.algorithm, "task": config.task.name, "seed": config.seed}
    changed = [name.replace("_", "-") for name, value in given.items() if name not in same or same[name] != value]
    if changed:
        shown = ", ".join(changed)
        raise UserError(f"With --resume only --iterations can be given, not {shown}: a run keeps its settings.")
    if iterations is not None:
        check_count("iterations", iterations)
        config = dataclasses.replace(config, iterations=iterations)
    with told(reporter):
        run = fresh(folder, config, world)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "plots").mkdir(exist_ok=True)
    run.state, header, damaged = Checkpoints(folder / "checkpoints").restore_newest(run.state)
    for sentence in damaged:
        reporter.warn(sentence)
    if header is not None:
        run.iteration, run.best_score = header["iteration"], header.get("best_score")
    if run.iteration > config.iterations:
        raise UserError(
            f"'{folder}' has already been trained for {run.iteration} iterations, more than {config.iterations}."
        )
    if iterations is not None:
        write_json(folder / CONFIG, config.to_json())
    reporter.note(f"Resuming '{folder}' at iteration {run.iteration} of {config.iterations}.")
    return run


def _prepare(reporter: Any) -> None:
    from safemeta.experiment.compilation import enable_cache

    warning = enable_cache()
    if warning:
        reporter.warn(warning)


def _resolve_task(given: dict[str, Any], base: TaskConfig) -> TaskConfig:
    """Take the task's settings out of `given`."""
    name = given.pop("task", base.name)
    changed = {key: given.pop(key) for key in ("limit", "limit_on", "horizon", "task_options") if key in given}
    if isinstance(name, TaskConfig):  # the record of a world that was handed over
        if changed:
            raise UserError(f"Give the {', '.join(changed).replace('_', ' ')} where the world is made, not to train.")
        return name
    if "task_options" in changed:
        kept = base.options if name == base.name else {}
        changed["options"] = kept | read_task_options(name, changed.pop("task_options"))
    task = dataclasses.replace(base, name=name, **changed) if name == base.name else TaskConfig(name, **changed)
    task.validate()
    return task


def _train(run: Run, reporter: Any) -> None:
    """Iterate until `run.config.iterations`."""
    if run.iteration >= run.config.iterations:
        reporter.note(f"'{run.folder}' is already trained for {run.iteration} iterations.")
        return
    try:
        with locked(run.folder), StopSignals() as signals:
            Training(run, reporter, signals).run_to_end()
    except BrokenPipeError:  # whoever read our output has left; the state is saved
        raise
    except OSError as problem:
        sentence = str(writing_failed(problem, run.folder))
        raise UserError(f"{sentence} {_how_to_resume(run)}", exit_code=1) from problem


class Training:
    """The loop over one run and the files that it writes."""

    def __init__(self, run: Run, reporter: Any, signals: StopSignals):
        import jax

        from safemeta.experiment.checkpoint import Checkpoints
        from safemeta.experiment.finite import FiniteCheck
        from safemeta.experiment.logs import RunLogs

        self.run, self.reporter, self.signals = run, reporter, signals
        self.checkpoints = Checkpoints(run.folder / "checkpoints")
        self.key = jax.random.key(run.config.seed)
        self.steps = int(run.algorithm.steps_per_iteration(run.world.cmdp))
        self.saved: int | None = run.iteration if run.iteration else None
        self.check = FiniteCheck(run.state)
        self.logs = RunLogs(run.folder, run.iteration)
        if not self.logs.complete:
            reporter.warn(f"The metrics of '{run.folder}' before iteration {run.iteration} are incomplete.")

    def run_to_end(self) -> None:
        """All remaining iterations; whatever stops them, the last whole state is saved."""
        run = self.run
        self.reporter.begin("Training", run.config.iterations, run.iteration)
        try:
            while run.iteration < run.config.iterations:
                self.advance()
                if self.signals.received is not None:
                    self.stop()
            self.save()
        except KeyboardInterrupt as problem:
            self.save_quietly()
            raise Interrupted(f"Stopped at once. {_how_to_resume(run)}", exit_code=130) from problem
        except Interrupted:
            raise
        except (UserError, OSError):
            self.save_quietly()
            raise
        except Exception as problem:
            self.save_quietly()
            problem.add_note(_how_to_resume(run))
            raise
        finally:
            self.reporter.end()
            self.logs.close()

    def advance(self) -> None:
        """One iteration: compute it, and take what it gave."""
        import jax

        run, began = self.run, time.perf_counter()
        key = jax.random.fold_in(self.key, run.iteration)
        state, metrics = run.algorithm.iterate(run.state, run.world, key)
        metrics = jax.device_get(metrics)
        self.take(state, metrics, time.perf_counter() - began)

    def take(self, state: Any, metrics: Mapping[str, Any], seconds: float) -> None:
        """What an iteration gave: check, log, save if due."""
        from safemeta.experiment.finite import strong
        from safemeta.sim.failures import pending

        run = self.run
        state, number = strong(state), run.iteration + 1
        scalars = {name: np.asarray(value).item() for name, value in metrics.items()}
        fault = pending() or self.check.fault(state, scalars)
        if fault:
            self.save()
            raise UserError(
                f"Training stopped at iteration {number}: {fault}; the state before it is saved in"
                f" '{self.checkpoints.path(run.iteration)}'.",
                exit_code=1,
            ) from (fault if isinstance(fault, Exception) else None)
        scalars = {"environment_steps": self.steps * number, **scalars}
        self.logs.write(number, scalars, seconds)
        self.keep_best(state, number, scalars.get(SCORE))  # if this fails, the iteration is done again
        run.state, run.iteration = state, number
        if number % run.config.checkpoint_every == 0:
            self.save()
        self.reporter.advance(number, {"iteration": number, **scalars})

    def keep_best(self, state: Any, iteration: int, score: float | None) -> None:
        """Save a state under its own name whenever the metric `score` (higher is better) reaches a new height."""
        from safemeta.experiment.checkpoint import save

        if score is not None and (self.run.best_score is None or score > self.run.best_score):
            save(self.checkpoints.best, state, iteration=iteration, best_score=score)
            self.run.best_score = score

    def save(self) -> None:
        """A checkpoint of the current state, unless it has one. The logs come first: they must not lag behind."""
        if self.saved == self.run.iteration:
            return
        self.logs.sync()
        self.checkpoints.save(self.run.state, self.run.iteration, best_score=self.run.best_score)
        self.saved = self.run.iteration

    def save_quietly(self) -> None:
        """A last attempt to save while another error, which is the one to tell of, is on its way."""
        with contextlib.suppress(Exception):
            self.save()

    def stop(self) -> None:
        """Save and leave after a signal; the exit code is the shell's convention, 128 + number."""
        self.save()
        signal = self.signals.received
        assert signal is not None
        raise Interrupted(
            f"Stopped after iteration {self.run.iteration}. {_how_to_resume(self.run)}", exit_code=128 + signal
        )


def _how_to_resume(run: Run) -> str:
    if run.config.task.own:
        return f"Continue in Python with: safemeta.train(resume='{run.folder}', task=world)"
    return f"Continue with: safemeta train --resume {run.folder}"
