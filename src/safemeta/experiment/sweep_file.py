"""What a sweep's file asks for: every combination of algorithms, tasks, settings and seeds, as complete configurations.

The file is TOML. Settings have the names that `safemeta train` gives its options, with `-` or `_`. Of those that name
the same thing the last counts: the file itself, `[options]`, `[task.NAME]`, `[algorithm.NAME]`, then a point of the
grid, in the same order. Every `UserError` names file, table and key.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safemeta.algorithms import registry
from safemeta.experiment.config import RunConfig, check_seed, decode
from safemeta.experiment.errors import UserError, from_value_error, unknown, writing_failed
from safemeta.experiment.options import TrainOptions

TASK_OPTION = "task_option"
RUN = ("preset", "budget", "iterations", "checkpoint_every", "limit", "limit_on", "horizon")  # as `train` has them
TABLES = ("options", "algorithm", "task", "grid")
TOP = ("algorithms", "tasks", "seeds", "seeds_together", *RUN, TASK_OPTION, *TABLES)
TOGETHER = 4  # seeds in one compiled program; on processors more of them gain nothing
LARGEST = 10_000  # runs
LONGEST = 120  # characters of a folder's name

Settings = dict[str, "Setting"]  # "hidden", "limit", "task_option.safety_coeff", ...


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value and the table that it stands in."""

    value: Any
    table: str


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep: its folder's name and its configuration."""

    name: str
    config: RunConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a sweep, in groups that one process trains: seeds that share a compiled program, else one run."""

    groups: tuple[tuple[PlannedRun, ...], ...]

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """All runs, in the order of the file."""
        return tuple(run for group in self.groups for run in group)


def read_plan(file: Path | str, content: bytes | None = None, *, meet: bool = True) -> Plan:
    """The plan in a file, with every run's settings checked; `UserError` (one sentence) if any makes no sense.

    `content` is what the file holds, if that is known. Without `meet`, algorithms and tasks are not made, so that JAX
    is imported but not started; every run is then a group of its own.
    """
    path = Path(file)
    return _Reader(path, read_content(path) if content is None else content, meet).plan()


def read_content(path: Path) -> bytes:
    """What the file holds."""
    try:
        return path.read_bytes()
    except FileNotFoundError as problem:
        raise UserError(f"There is no file '{path}'.") from problem
    except OSError as problem:
        raise writing_failed(problem, path) from problem


class _Reader:
    """Reads one file."""

    def __init__(self, path: Path, content: bytes, meet: bool):
        self.path, self.meet = path, meet
        self.top = _normal(_parsed(path, content), self.fault("the file"))
        for key in self.top:
            if key not in TOP:
                raise self.wrong("the file", None, unknown("entry", _shown(key), map(_shown, TOP)))
        self.algorithms = self._names("algorithms", registry.get, registry.names())
        self.modules = {name: registry.load(name) for name in self.algorithms}
        self.fields = {
            name: {field.name for field in dataclasses.fields(module.config)} for name, module in self.modules.items()
        }
        from safemeta.tasks import registry as tasks

        self.tasks = self._names("tasks", tasks.family_of, tasks.names())

    def fault(self, table: str) -> str:
        """Where something is wrong."""
        return f"'{self.path}'" if table == "the file" else f"'{self.path}', {table}"

    def wrong(self, table: str, key: str | None, problem: Exception | str) -> UserError:
        """What is wrong with a key of a table, in one sentence."""
        where = self.fault(table) + ("" if key is None else f", {_shown(key)}")
        return UserError(f"{where}: {problem}")

    def plan(self) -> Plan:
        """The whole plan."""
        seeds, together = self._seeds(), self.top.get("seeds_together", TOGETHER)
        if isinstance(together, bool) or not isinstance(together, int) or together < 1:
            raise self.wrong("the file", "seeds_together", f"must be a whole number of at least 1, not {together!r}.")
        points = [
            (algorithm, task, base, grid)
            for algorithm, task in itertools.product(self.algorithms, self.tasks)
            for base, grid in [(self._base(algorithm, task), self._grid(algorithm, task))]
        ]
        count = sum(math.prod(len(values) for values in grid.values()) for *_, grid in points) * len(seeds)
        if count > LARGEST:
            raise self.wrong("the file", None, f"it asks for {count} runs; {LARGEST} are the most.")
        groups, names = [], set()
        for algorithm, task, base, grid in points:
            for values in itertools.product(*grid.values()):
                chosen = dict(zip(grid, values, strict=True))
                config = self._config(algorithm, task, base | chosen)
                size = together if self.meet and self._meet(algorithm, task, base | chosen, config) else 1
                name = _name(algorithm, task, {key: setting.value for key, setting in chosen.items()}, names)
                runs = [PlannedRun(f"{name}-s{seed}", dataclasses.replace(config, seed=seed)) for seed in seeds]
                groups += [tuple(runs[start : start + size]) for start in range(0, len(runs), size)]
        return Plan(tuple(groups))

    def _names(self, key: str, get: Any, allowed: Any) -> tuple[str, ...]:
        names = self.top.get(key)
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise self.wrong("the file", key, f'must be a list of names, such as ["{next(iter(allowed))}"].')
        for name in names:
            try:
                get(name)
            except ValueError as problem:
                raise self.wrong("the file", key, from_value_error(problem)) from problem
            if names.count(name) > 1:
                raise self.wrong("the file", key, f"'{name}' is named twice.")
        return tuple(names)

    def _seeds(self) -> tuple[int, ...]:
        seeds = self.top.get("seeds", 1)
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            if not 1 <= seeds <= LARGEST:
                raise self.wrong("the file", "seeds", f"must be 1 to {LARGEST} seeds or a list of them, not {seeds}.")
            return tuple(range(seeds))
        if not isinstance(seeds, list) or not seeds:
            raise self.wrong("the file", "seeds", f"must be a number of seeds or a list of them, not {seeds!r}.")
        for seed in seeds:
            try:
                check_seed(seed)
            except UserError as problem:
                raise self.wrong("the file", "seeds", problem) from problem
        if len(set(seeds)) < len(seeds):
            raise self.wrong("the file", "seeds", "a seed is named twice.")
        return tuple(seeds)

    def _table(self, content: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
        """A table of a table, {} if it is not there."""
        table = content.get(name, {})
        if not isinstance(table, Mapping):
            raise self.wrong(where, name, "must be a table.")
        return _normal(table, self.fault(f"[{_shown(name)}]" if where == "the file" else where))

    def _named(self, content: Mapping[str, Any], kind: str, name: str, where: str) -> dict[str, Any]:
        """The table of one algorithm or task; every such table must be of one that the sweep has."""
        there = self.algorithms if kind == "algorithm" else self.tasks
        tables = content.get(kind, {})
        if not isinstance(tables, Mapping):
            raise self.wrong(where, kind, "must be a table of tables.")
        title = kind if where == "the file" else f"grid.{kind}"
        for other in tables:
            if other not in there:
                raise self.wrong(f"[{title}.{other}]", None, unknown(f"{kind} of this sweep", other, there))
        return self._table(tables, name, f"[{title}.{name}]")

    def _base(self, algorithm: str, task: str) -> Settings:
        """What holds for this algorithm on this task, whatever the point of the grid."""
        top = {key: value for key, value in self.top.items() if key in (*RUN, TASK_OPTION)}
        return (
            self._settings(top, "the file", ())
            | self._settings(self._table(self.top, "options", "the file"), "[options]", self.algorithms)
            | self._settings(self._named(self.top, "task", task, "the file"), f"[task.{task}]", self.algorithms)
            | self._settings(
                self._named(self.top, "algorithm", algorithm, "the file"), f"[algorithm.{algorithm}]", (algorithm,)
            )
        )

    def _grid(self, algorithm: str, task: str) -> dict[str, list[Setting]]:
        """Values to be taken, key by key."""
        grid = self._table(self.top, "grid", "the file")
        shared = {key: value for key, value in grid.items() if key not in ("algorithm", "task")}
        for_task, for_algorithm = (
            self._named(grid, kind, name, "[grid]") for kind, name in (("task", task), ("algorithm", algorithm))
        )
        return (
            self._lists(shared, "[grid]", self.algorithms)
            | self._lists(for_task, f"[grid.task.{task}]", self.algorithms)
            | self._lists(for_algorithm, f"[grid.algorithm.{algorithm}]", (algorithm,))
        )

    def _lists(self, content: dict[str, Any], table: str, algorithms: tuple[str, ...]) -> dict[str, list[Setting]]:
        found = {}
        for key, values in self._flat(content, table).items():
            if not isinstance(values, list) or not values:
                raise self.wrong(table, key, f"must be a list of values to take, not {values!r}.")
            if len({json.dumps(value, default=str) for value in values}) < len(values):
                raise self.wrong(table, key, "a value is named twice.")
            found[key] = [self._setting(key, value, table, algorithms) for value in values]
        return found

    def _settings(self, content: dict[str, Any], table: str, algorithms: tuple[str, ...]) -> Settings:
        flat = self._flat(content, table)
        return {key: self._setting(key, value, table, algorithms) for key, value in flat.items()}

    def _flat(self, content: dict[str, Any], table: str) -> dict[str, Any]:
        """Options of the task beside the others."""
        own = self._table(content, TASK_OPTION, table)
        rest = {key: value for key, value in content.items() if key != TASK_OPTION}
        return rest | {f"{TASK_OPTION}.{key}": value for key, value in own.items()}

    def _setting(self, key: str, value: Any, table: str, algorithms: tuple[str, ...]) -> Setting:
        """A setting whose name and type are right for all algorithms that it is for."""
        if key.startswith(f"{TASK_OPTION}."):
            return Setting(value, table)  # the task reads it
        try:
            if key in RUN:
                value = getattr(decode(TrainOptions, {key: value}, "it"), key)
            for algorithm in algorithms if key not in RUN else ():
                if key not in self.fields[algorithm]:
                    raise unknown(f"option of {algorithm}", _shown(key), map(_shown, (*self.fields[algorithm], *RUN)))
                decode(self.modules[algorithm].config, {key: value}, "it")
        except UserError as problem:
            text = str(problem).removeprefix(f"it: '{key}' ")
            raise self.wrong(table, key, text) from problem
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong(table, key, f"must be a finite number, not {value}.")
        return Setting(value, table)

    def _config(self, algorithm: str, task: str, settings: Settings) -> RunConfig:
        """The run's configuration; an error names the setting that is wrong by itself, or else all of the grid's."""
        try:
            return _resolve(algorithm, task, settings)
        except UserError as problem:
            raise self._blame(algorithm, task, settings, problem, _resolve) from problem

    def _meet(self, algorithm: str, task: str, settings: Settings, config: RunConfig) -> bool:
        """What only shows once algorithm and task meet; whether seeds can share a program."""
        try:
            return _meet(config)
        except UserError as problem:
            raise self._blame(algorithm, task, settings, problem, lambda *parts: _meet(_resolve(*parts))) from problem

    def _blame(self, algorithm: str, task: str, settings: Settings, problem: UserError, check: Any) -> UserError:
        """The sentence with the setting that is wrong by itself, else with those without which all would be well."""

        def answer(tried: Settings) -> str | None:
            try:
                check(algorithm, task, tried)
            except UserError as other:
                return str(other)
            return None

        for key, setting in settings.items():
            if answer({key: setting}) == str(problem):
                return self.wrong(setting.table, key, problem)
        guilty = [
            key for key in settings if answer({other: settings[other] for other in settings if other != key}) is None
        ]
        if len(guilty) == 1:
            return self.wrong(settings[guilty[0]].table, guilty[0], problem)
        named = [f"{settings[key].table}, {_shown(key)} = {settings[key].value!r}" for key in guilty or settings]
        together = f" with {'; '.join(named)}" if named else ""
        return self.wrong("the file", None, f"{algorithm} on {task} cannot be run{together}: {problem}")


def _resolve(algorithm: str, task: str, settings: Settings) -> RunConfig:
    from safemeta.experiment.train import resolve

    given: dict[str, Any] = {"algorithm": algorithm, "task": task}
    for key, setting in settings.items():
        if key.startswith(f"{TASK_OPTION}."):
            given.setdefault("task_options", {})[key.removeprefix(f"{TASK_OPTION}.")] = setting.value
        else:
            given[key] = setting.value
    return resolve(given, given.pop("iterations", None))


def _meet(config: RunConfig) -> bool:
    """Make world and algorithm of a run, and see what its state would be; `UserError` if they do not fit.

    Whether seeds of it can be trained together.
    """
    import equinox as eqx
    import jax

    from safemeta.experiment.lockstep import can_be_trained_together
    from safemeta.experiment.run import build, make_world

    world, algorithm = make_world(config.task), build(config)
    try:
        eqx.filter_eval_shape(lambda key: algorithm.init(key, world.cmdp), jax.random.key(0))
    except ValueError as problem:
        raise from_value_error(problem) from problem
    except (TypeError, IndexError):
        pass  # an initialisation that needs numbers rather than shapes: the run itself will tell
    return can_be_trained_together(algorithm, world)


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as problem:
        raise UserError(f"'{path}' is not TOML: it is not text.") from problem
    except (ValueError, RecursionError) as problem:
        raise UserError(f"'{path}' is not TOML: {' '.join(str(problem).split())[:200].rstrip('.')}.") from problem


def _normal(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keys with underscores; those of algorithms and tasks, which are names, stay as they are."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name in found:
            raise UserError(f"{where}, {_shown(name)}: it is given twice.")
        found[name] = value
    return found


def _shown(key: str) -> str:
    """As on the command line."""
    head, _, rest = key.partition(".")
    return head.replace("_", "-") + (f".{rest}" if rest else "")


def _name(algorithm: str, task: str, chosen: Mapping[str, Any], names: set[str]) -> str:
    """A name that tells what is taken from the grid, of letters that every file system allows; never one of `names`."""
    words = [f"{_shown(key).removeprefix('task-option.')}={_word(value)}" for key, value in chosen.items()]
    name = "-".join([algorithm, task, *words])
    if len(name) > LONGEST or name in names:
        digest = hashlib.sha256(json.dumps([algorithm, task, chosen], default=str).encode()).hexdigest()[:10]
        name = f"{name[:LONGEST]}-{digest}"
    names.add(name)
    return name


def _word(value: Any) -> str:
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+]+", "-", text)
