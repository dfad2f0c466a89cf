"""`config.json`: everything needed to run again, and its way to and from dataclasses."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from safemeta.experiment.errors import UserError, from_value_error, unknown

FORMAT = 1
LimitUnit = Literal["discounted", "undiscounted", "per_step"]
LIMIT_UNITS: tuple[LimitUnit, ...] = typing.get_args(LimitUnit)
MOST = 10**9  # of anything that is counted: beyond it memory or patience ends, or 32 bits
BUDGETS = ("default", "smoke", "paper")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A task family by name, and what was changed about it (None: the family's own).

    `options` are those of the family's own options that were given, as JSON values. `own` marks a world that was handed
    over in Python: what is said of it here is a record, from which it cannot be made again.
    """

    name: str  # of the family, or of the world that was handed over
    limit: float | None = None  # of every cost
    limit_on: LimitUnit | None = None  # what a limit bounds
    horizon: int | None = None  # control steps of an episode
    own: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(world: Any) -> "TaskConfig":
        """The record of a world that was handed over; `UserError` if it is none."""
        if not all(hasattr(world, part) for part in ("cmdp", "sample", "collect", "measure")):
            hint = ""
            if hasattr(world, "reset") and hasattr(world, "step"):
                hint = " (safemeta.gymnasium_world makes a world of a Gymnasium environment)"
            raise UserError(
                f"The task must be the name of a task family or a world, not a {type(world).__name__}{hint}."
            )
        cmdp = world.cmdp
        name = re.sub(r"[^\w.-]+", "-", getattr(world, "name", type(getattr(world, "environment", world)).__name__))
        limit = float(cmdp.limits[0]) if len(set(cmdp.limits)) == 1 else None
        return TaskConfig(name, limit, cmdp.limit_on, cmdp.horizon, own=True)

    def validate(self) -> None:
        """Raise `UserError` if a number makes no sense."""
        if self.own:
            return  # its maker has checked it
        if self.limit is not None:
            check_positive("limit", self.limit)
        if self.horizon is not None:
            check_count("horizon", self.horizon)
        if self.limit_on is not None and self.limit_on not in LIMIT_UNITS:
            raise unknown("unit of the limit", self.limit_on, LIMIT_UNITS)
        if self.options:
            read_task_options(self.name, self.options)

    def to_json(self) -> dict[str, Any]:
        """As in `config.json`, where options are left out if there are none."""
        content = dataclasses.asdict(self)
        return content if self.options else {key: value for key, value in content.items() if key != "options"}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What a run is: algorithm and options, task, seed and length."""

    algorithm: str  # its name in the registry
    options: Any  # the algorithm's own frozen Config
    task: TaskConfig  # what is trained on
    seed: int  # of everything random
    iterations: int  # how many there are in all
    budget: str = "default"  # whose number of iterations was asked for
    preset: str | None = None  # whose options these were before some were changed
    checkpoint_every: int = 10  # iterations

    def validate(self) -> None:
        """Raise `UserError` if any part makes no sense."""
        check_count("iterations", self.iterations)
        check_count("checkpoint-every", self.checkpoint_every)
        check_seed(self.seed)
        self.task.validate()
        for field in dataclasses.fields(self.options):
            for value in _leaves(getattr(self.options, field.name)):
                if isinstance(value, float) and not math.isfinite(value):
                    raise UserError(f"The option {field.name} must be a finite number, not {value}.")
                if isinstance(value, int) and abs(value) > MOST:
                    raise UserError(f"The option {field.name} must be at most {MOST}, not {_shown(value)}.")
        if hasattr(self.options, "validate"):
            try:
                self.options.validate()
            except ValueError as problem:
                raise from_value_error(problem) from problem

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`."""
        import safemeta

        return {
            "format": FORMAT,
            "safemeta": safemeta.__version__,
            "algorithm": self.algorithm,
            "preset": self.preset,
            "options": dataclasses.asdict(self.options),
            "task": self.task.to_json(),
            "seed": self.seed,
            "iterations": self.iterations,
            "budget": self.budget,
            "checkpoint_every": self.checkpoint_every,
        }

    @staticmethod
    def from_json(content: Any, options_type: type, where: str) -> "RunConfig":
        """The inverse of `to_json`; `where` names the file in error sentences."""
        head = check_header(content, where)
        rest = {key: value for key, value in head.items() if key not in ("format", "safemeta", "options", "task")}
        return dataclasses.replace(
            decode(RunConfig, {**rest, "options": None, "task": {"name": ""}}, where),
            options=decode(options_type, head["options"], f"{where}, options"),
            task=decode(TaskConfig, head["task"], f"{where}, task"),
        )


def _leaves(value: Any) -> Iterator[Any]:
    """What an option holds: itself, or the parts of a tuple."""
    if isinstance(value, tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def read_task_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a task, given as values or text, as JSON values; `UserError` on what is not allowed."""
    from safemeta.tasks import registry

    try:
        return registry.read_options(name, given)
    except ValueError as problem:
        raise from_value_error(problem) from problem


def check_header(content: Any, where: str) -> dict[str, Any]:
    """`content` if it looks like a run's configuration, else a `UserError` with exit code 1."""
    if not isinstance(content, dict) or "format" not in content or "algorithm" not in content:
        raise UserError(f"{where} is not the configuration of a safemeta run.", exit_code=1)
    if content["format"] != FORMAT:
        raise UserError(f"{where} has format {content['format']!r}; this safemeta reads format {FORMAT}.", exit_code=1)
    for key in ("algorithm", "options", "task", "seed", "iterations"):
        if key not in content:
            raise UserError(f"{where} lacks the entry '{key}'.", exit_code=1)
    if not isinstance(content["algorithm"], str):
        raise UserError(f"{where}: 'algorithm' must be a name.", exit_code=1)
    return content


def decode(cls: type, content: Any, where: str) -> Any:
    """Build the dataclass `cls` from a JSON object, checking names and types of all entries."""
    if not isinstance(content, Mapping):
        raise UserError(f"{where} must be a JSON object, not {_shown(content)}.", exit_code=1)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in content:
        if key not in fields:
            problem = unknown("entry", str(key), fields)
            raise UserError(f"{where}: {problem}", exit_code=1)
    values = {key: _convert(hints[key], value, f"{where}: '{key}'") for key, value in content.items()}
    try:
        return cls(**values)
    except TypeError as problem:
        missing = [
            name
            for name, field in fields.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        raise UserError(f"{where} lacks the entry '{', '.join(missing)}'.", exit_code=1) from problem


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or a `UserError`."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, where)
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        parts = typing.get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_convert(parts[0], part, where) for part in value)
        if len(parts) == len(value):
            return tuple(_convert(part, each, where) for part, each in zip(parts, value, strict=True))
    elif origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else decode(hint, value, where)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise UserError(f"{where} must be {_described(hint)}, not {_shown(value)}.", exit_code=1)


def _convert_union(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    others = [hint for hint in hints if hint is not type(None)]
    for hint in others[:-1]:
        try:
            return _convert(hint, value, where)
        except UserError:
            continue
    return _convert(others[-1], value, where)


def _described(hint: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if hint in words:
        return words[hint]
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "a list of the right length"
    if typing.get_origin(hint) is dict:
        return "a JSON object"
    return f"a {getattr(hint, '__name__', hint)}"


def _shown(value: Any) -> str:
    huge = isinstance(value, int) and abs(value) > 10**100  # Python does not even print it, beyond 4,300 digits
    text = "a number of hundreds of digits" if huge else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def check_count(name: str, value: Any, least: int = 1, most: int = MOST) -> None:
    """Raise `UserError` unless `value` is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"The number of {name} must be a whole number of at least {least}, not {_shown(value)}.")
    if value > most:
        raise UserError(f"The number of {name} must be at most {most}, not {_shown(value)}.")


def check_seed(value: Any) -> None:
    """Raise `UserError` unless `value` can seed JAX's random keys."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise UserError(f"The seed must be a whole number from 0 to {2**32 - 1}, not {_shown(value)}.")


def check_positive(name: str, value: Any) -> None:
    """Raise `UserError` unless `value` is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UserError(f"The {name} must be a finite number above 0, not {value}.")
