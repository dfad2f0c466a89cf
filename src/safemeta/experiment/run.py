"""A run is a folder: `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, `plots/`."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safemeta.algorithms import registry
from safemeta.experiment import logs
from safemeta.experiment.config import RunConfig, TaskConfig, check_header
from safemeta.experiment.errors import Interrupted, UserError, from_value_error, writing_failed
from safemeta.experiment.files import write_json

CONFIG = "config.json"
TASK_OPTION = "task "  # before the name of an option of the task, among the settings of a run
INIT_STREAM = 2**32 - 1  # fold_in(key, i) belongs to iteration i, this one to `init`


@dataclass
class Run:
    """A run's folder together with what lives in it."""

    folder: Path
    config: RunConfig
    algorithm: Any
    world: Any
    state: Any
    iteration: int = 0
    best_score: float | None = None

    @property
    def plots(self) -> Path:
        """The folder of its pictures."""
        return self.folder / "plots"

    @property
    def name(self) -> str:
        """Algorithm, task and seed, for titles."""
        return f"{self.config.algorithm} on {self.config.task.name}, seed {self.config.seed}"

    @property
    def is_meta(self) -> bool:
        """Whether it can adapt to unseen tasks."""
        return hasattr(self.algorithm, "adapt")

    @property
    def policy(self) -> Any:
        """The policy of the current state (for a meta-learner: the meta-policy).

        `policy(observation)` is its action without noise; `policy.act(observation, key)` samples as in training.
        """
        from safemeta.experiment.export import ActingPolicy
        from safemeta.tasks.tabular import TabularEnvironment

        scores = isinstance(getattr(self.world, "environment", None), TabularEnvironment)  # not from a box
        return ActingPolicy(self.trained, bounded=not scores)

    @property
    def trained(self) -> Any:
        """The same policy as the algorithm has it: what worlds are handed."""
        return self.algorithm.policy(self.state)

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, one dictionary per iteration."""
        return logs.read(self.folder / logs.METRICS)


@dataclass(frozen=True)
class RunLog:
    """What a plot needs of a run: no algorithm, no JAX."""

    folder: Path
    label: str
    settings: dict[str, Any]  # all that makes the run what it is, except for its seed and length
    task: str
    limit: float | None
    lines: list[dict[str, Any]]


def read_log(run: Run | Path | str) -> RunLog:
    """The metrics of a run, given itself or its folder."""
    folder = run.folder if isinstance(run, Run) else Path(run)
    config = run.config if isinstance(run, Run) else read_config(folder)
    label = config.algorithm if config.preset is None else f"{config.algorithm} ({config.preset})"
    content = config.to_json()
    settings = {key: content[key] for key in ("algorithm", "preset")} | content["options"]
    task = {key: value for key, value in content["task"].items() if key != "options"}
    settings |= {"task" if key == "name" else key: value for key, value in task.items()}
    settings |= {TASK_OPTION + name: value for name, value in _options(config.task).items()}
    return RunLog(folder, label, settings, config.task.name, config.task.limit, logs.read(folder / logs.METRICS))


def _options(task: TaskConfig) -> dict[str, Any]:
    """All options of a task's family, those that were not given at their defaults; none of a family unknown here."""
    from safemeta.tasks import registry as tasks

    return tasks.all_options(task.name, task.options) if task.name in tasks.FAMILIES and not task.own else {}


def run_folders(runs: Sequence[Any]) -> list[Path]:
    """The folders of all runs; a folder that is none itself stands for the runs within it, two levels deep at most."""
    every: list[Path] = []
    for run in runs:
        folder = Path(getattr(run, "folder", run))
        within = sorted({*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}")}) if folder.is_dir() else []
        if not (folder / CONFIG).is_file() and within:
            every += [file.parent for file in within]
        else:
            read_config(folder)  # says what is wrong with it
            every.append(folder)
    return list(dict.fromkeys(every))


def make_world(task: TaskConfig) -> Any:
    """The task family and its simulator."""
    from safemeta.tasks import registry as tasks

    if task.own:
        raise UserError(
            f"'{task.name}' is an environment of the user's own, which has to be handed over in Python, as the `world`"
            " of safemeta.load or the `task` of safemeta.train."
        )
    try:
        return tasks.make(
            task.name, limit=task.limit, limit_on=task.limit_on, horizon=task.horizon, options=task.options
        )
    except ValueError as problem:
        raise from_value_error(problem) from problem


def fresh(folder: Path, config: RunConfig, world: Any = None) -> Run:
    """A run at iteration 0, its state drawn from the seed; nothing is written.

    `world` is needed where the configuration's task is the user's own, and must be as it was. What the configuration of
    an existing folder asks for in vain is the file's fault: exit code 1.
    """
    import jax

    from safemeta.experiment.finite import strong

    if world is not None:
        check_world(config.task, world)
    try:
        world = make_world(config.task) if world is None else world
        algorithm = build(config)
        key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
        try:
            state = strong(algorithm.init(key, world.cmdp))
        except ValueError as problem:
            raise from_value_error(problem) from problem
    except UserError as problem:
        if folder == Path() or config.task.own or isinstance(problem, Interrupted):
            raise
        raise UserError(f"'{folder / CONFIG}': {problem}", exit_code=1) from problem
    return Run(folder, config, algorithm, world, state)


def check_world(task: TaskConfig, world: Any) -> None:
    """Raise `UserError` unless `world` is what `task` records."""
    if not task.own:
        raise UserError(f"This run is on the task '{task.name}', which is known by its name: leave the world out.")
    now = TaskConfig.of(world)
    for part, wanted in vars(task).items():
        if getattr(now, part) != wanted:
            words = part.replace("_", " ")
            raise UserError(f"The run's world has the {words} {wanted}, the one given now has {getattr(now, part)}.")


def build(config: RunConfig) -> Any:
    """The algorithm of a configuration."""
    try:
        return registry.load(config.algorithm).algorithm(config.options)
    except ValueError as problem:
        raise from_value_error(problem) from problem


def create_folder(config: RunConfig, out: Path | str | None) -> Path:
    """Make the run's folder and write `config.json`; an existing run is never overwritten."""
    try:
        folder = _free_folder(config) if out is None else _named_folder(Path(out))
        write_json(folder / CONFIG, config.to_json())  # first: without it the folder is still empty, and free
        for part in ("checkpoints", "plots"):
            (folder / part).mkdir(exist_ok=True)
    except OSError as problem:
        raise writing_failed(problem, out or "runs") from problem
    return folder


def remove_empty(folder: Path) -> None:
    """Remove the folders that a run leaves if it is killed before it has written its configuration."""
    if folder.is_dir():
        for part in [*folder.iterdir(), folder]:
            try:
                part.rmdir()
            except OSError as problem:
                raise UserError(
                    f"'{folder}' is in the way and is no run; remove it or choose another --out."
                ) from problem


def read_config(folder: Path | str) -> RunConfig:
    """The configuration of an existing run; `UserError` if `folder` is none."""
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"There is no folder '{folder}'; give the folder of a run, such as runs/dual-point-circle-s0.")
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder; give the folder of a run, such as runs/dual-point-circle-s0.")
    if not (folder / CONFIG).is_file():
        raise UserError(f"'{folder}' is not a run: it has no {CONFIG}.")
    return read_config_file(folder / CONFIG)


def read_config_file(path: Path) -> RunConfig:
    """The configuration in a JSON file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as problem:
        raise UserError(f"There is no file '{path}'.") from problem
    except OSError as problem:
        raise writing_failed(problem, path) from problem
    except (ValueError, RecursionError) as problem:
        raise UserError(f"'{path}' is damaged: it is not JSON.", exit_code=1) from problem
    name = check_header(content, f"'{path}'")["algorithm"]
    try:
        options_type = registry.load(name).config
    except ValueError as problem:
        hint = "One of your own must be registered first: safemeta.register_algorithm."
        raise UserError(f"'{path}': {problem} {hint}", exit_code=1) from problem
    config = RunConfig.from_json(content, options_type, f"'{path}'")
    try:
        config.validate()
    except UserError as problem:
        raise UserError(f"'{path}': {problem}", exit_code=1) from problem
    return config


def load(folder: Path | str, checkpoint: str = "auto", world: Any = None) -> Run:
    """A trained run, ready to act, adapt or be evaluated.

    `checkpoint` is "best" (only where the algorithm names a best one), "last", or "auto": best if there is one. A run
    on an environment of your own needs its `world` again.
    """
    from safemeta.experiment.checkpoint import Checkpoints, restore

    if checkpoint not in ("auto", "best", "last"):
        raise UserError(f"The checkpoint must be auto, best or last, not '{checkpoint}'.")
    folder = Path(folder)
    run = fresh(folder, read_config(folder), world)
    checkpoints = Checkpoints(folder / "checkpoints")
    if checkpoint == "best" and not checkpoints.best.exists():
        raise UserError(f"'{folder}' has no best checkpoint; use --checkpoint last.")
    if checkpoint != "last" and checkpoints.best.exists():
        run.state, header = restore(checkpoints.best, run.state)
    else:
        iterations = checkpoints.iterations()
        if not iterations:
            raise UserError(
                f"'{folder}' has no checkpoint yet; train it with: safemeta train --resume {folder}", exit_code=1
            )
        run.state, header = restore(checkpoints.path(iterations[0]), run.state)
    run.iteration = header["iteration"]
    return run


@contextlib.contextmanager
def locked(folder: Path, doing: str = "training the run", patience: float = 0.0) -> Iterator[None]:
    """Keep two processes from working on the same folder. The system frees the lock of a process that dies.

    `doing` completes the sentence "Another process is ..."; it comes after `patience` seconds of waiting.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no such lock
        yield
        return
    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    begun = time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as problem:
                if time.monotonic() - begun >= patience:
                    raise UserError(f"Another process is {doing} '{folder}'.", exit_code=1) from problem
                time.sleep(0.1)
            except OSError:
                break  # file systems without locks
        yield
    finally:
        os.close(handle)


def _free_folder(config: RunConfig) -> Path:
    """`runs/<algorithm>-<task>-s<seed>`, with `-2`, `-3`, ... if that is taken."""
    base = f"{config.algorithm}-{config.task.name}-s{config.seed}"
    for number in range(1, 10_000):
        folder = Path("runs") / (base if number == 1 else f"{base}-{number}")
        folder.parent.mkdir(exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(f"There are 9999 runs called '{base}' in 'runs'; name a folder with --out.")


def _named_folder(folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"The folder '{folder}' exists and is not empty; choose another --out, or continue a run with --resume."
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file, so no run can be saved there; choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
