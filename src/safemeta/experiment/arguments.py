"""A command line from dataclasses (through tyro), whose every error is one sentence.

tyro converts values and writes the help. What it reports in boxes of several lines is found here first: unknown
options, missing and ill-typed values.
"""

import contextlib
import dataclasses
import io
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from safemeta.experiment.errors import UserError, nearest

HELP = ("-h", "--help")
ALGORITHM = "algorithm"  # the part whose switches come in pairs, since a preset may set them either way


@dataclasses.dataclass(frozen=True)
class Parsed:
    """Values of each part, the positional words, and the names of the options that were given, part by part."""

    parts: tuple[Any, ...]
    words: tuple[str, ...]
    given: tuple[frozenset[str], ...]


def parse(arguments: Sequence[str], defaults: Mapping[str, Any], *, program: str, description: str) -> Parsed:
    """Parse options of several dataclass instances, whose values are the defaults.

    `defaults` maps a part's name to the instance. Prints the help and raises `SystemExit(0)` where it is asked for;
    raises `UserError` on bad input.
    """
    known: dict[str, tuple[int, str, Any]] = {}
    for index, (part_name, part) in enumerate(defaults.items()):
        for name, hint in flags(type(part)).items():
            if name in known:
                raise AssertionError(f"two parts of '{program}' have an option --{name}")
            known[name] = (index, name.replace("-", "_"), hint)
            if hint is bool and part_name == ALGORITHM:
                known.setdefault(f"no-{name}", (index, name.replace("-", "_"), hint))
    if any(argument in HELP for argument in arguments):
        _print_help(defaults, program, description)
    words, options, given = [], [], [set() for _ in defaults]
    texts: dict[str, list[str]] = {}  # of options that are lists of texts: they add up where they are repeated
    waiting = list(arguments)
    while waiting:
        token = waiting.pop(0)
        if not _is_option(token):
            words.append(token)
            continue
        name, attached, value = token.partition("=")
        key, hint = _recognise(name, known)
        index, field, _ = known[key]
        given[index].add(field.split(".")[0])
        values = _values(name, hint, [value] if attached else None, waiting)
        if hint == tuple[str, ...]:
            texts.setdefault(name.replace("_", "-"), []).extend(values)
        else:
            options += [name.replace("_", "-"), *values]
    for name, values in texts.items():
        options += [name, *values]
    parts = _convert(defaults, options, program)
    return Parsed(parts, tuple(words), tuple(map(frozenset, given)))


def flags(cls: type, prefix: str = "") -> dict[str, Any]:
    """Option name (without dashes) -> type, nested dataclasses as `outer.inner`."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name.replace("_", "-")
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= flags(hint, f"{name}.")
        else:
            found[name] = hint
    return found


def peek(arguments: Sequence[str], option: str) -> str | None:
    """The value of `--option` if it is there; needed before all options are known."""
    for position, token in enumerate(arguments):
        name, attached, value = token.partition("=")
        if name == f"--{option}":
            if attached:
                return value
            following = arguments[position + 1 : position + 2]
            return following[0] if following and not _is_option(following[0]) else None
    return None


def _recognise(name: str, known: dict[str, tuple[int, str, Any]]) -> tuple[str, Any]:
    """The option's key and type; `UserError` with the nearest match if there is none."""
    key = name[2:].replace("_", "-") if name.startswith("--") else ""
    if key in known:
        return key, known[key][2]
    match = nearest(name.lstrip("-"), known)
    hint = f"did you mean --{match}?" if match else "see --help for those there are."
    raise UserError(f"Unknown option {name}; {hint}")


def _values(name: str, hint: Any, attached: list[str] | None, waiting: list[str]) -> list[str]:
    """Take the option's values from `waiting`, checking scalars."""
    hint = _without_none(hint)
    if hint is bool:
        if attached is not None:
            raise UserError(f"The option {name} takes no value.")
        return []
    if typing.get_origin(hint) is tuple:
        values = attached or []
        while not attached and waiting and not _is_option(waiting[0]):
            values.append(waiting.pop(0))
        _check_tuple(name, typing.get_args(hint), values)
        return values
    if attached is None:
        if not waiting or _is_option(waiting[0]):
            raise UserError(f"The option {name} needs {_described(hint)}.")
        attached = [waiting.pop(0)]
    _check(name, hint, attached[0])
    return attached


def _check(name: str, hint: Any, value: str) -> None:
    """Raise `UserError` unless `value` reads as `hint`."""
    if typing.get_origin(hint) is Literal:
        allowed = [str(choice) for choice in typing.get_args(hint)]
        if value not in allowed:
            match = nearest(value, allowed)
            hint = f"; did you mean '{match}'?" if match else "."
            raise UserError(f"The option {name} must be one of {', '.join(allowed)}, not '{value}'{hint}")
        return
    if value == "" and hint is str:
        raise UserError(f"The option {name} needs a value that is not empty.")
    if hint in (int, float):
        try:
            hint(value)
        except ValueError as problem:
            raise UserError(f"The option {name} needs {_described(hint)}, not '{value}'.") from problem


def _check_tuple(name: str, parts: tuple[Any, ...], values: Sequence[str]) -> None:
    """Raise `UserError` unless the values fit the tuple's element types."""
    if parts[-1] is Ellipsis:
        parts = (parts[0],) * len(values)
    if len(values) != len(parts) or not values:
        wanted = f"{len(parts)} values" if parts else "at least one value"
        raise UserError(f"The option {name} needs {wanted}, not {len(values)}.")
    for part, value in zip(parts, values, strict=True):
        _check(name, part, value)


def _convert(defaults: Mapping[str, Any], options: list[str], program: str) -> tuple[Any, ...]:
    """Let tyro build the parts."""
    import tyro

    combined, default = _combine(defaults)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), contextlib.redirect_stdout(box):
            values = tyro.cli(combined, args=options, default=default, prog=program)
    except SystemExit as problem:
        raise UserError(_flatten(box.getvalue()) or f"'{' '.join(options)}' cannot be understood.") from problem
    return tuple(getattr(values, name) for name in defaults)


def _print_help(defaults: Mapping[str, Any], program: str, description: str) -> None:
    import tyro

    combined, default = _combine(defaults)
    tyro.cli(combined, args=["--help"], default=default, prog=program, description=description)


def _combine(defaults: Mapping[str, Any]) -> tuple[Any, Any]:
    """One dataclass of all parts, without prefixes in the names of options."""
    import tyro

    fields: list[Any] = []
    for name, part in defaults.items():
        hint = Annotated[type(part), tyro.conf.arg(name="")]
        fields.append((name, hint if name == ALGORITHM else tyro.conf.FlagCreatePairsOff[hint]))
    combined = dataclasses.make_dataclass("Options", fields, frozen=True)
    return combined, combined(**defaults)


def _flatten(box: str) -> str:
    """The text in tyro's box as one line, without the pointer to the help."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    text = " ".join(re.sub(r"[╭╮╰╯│─]|--+(?!\w)", " ", text).split())
    text = re.sub(r"^(Parsing error|Value error|Missing argument|Invalid choice|Unrecognized options)\s*", "", text)
    return re.split(r"\s*(?:Argument helptext:|For full helptext)", text)[0]


def _is_option(token: str) -> bool:
    """Whether a token is an option rather than a value; negative numbers are values."""
    return len(token) > 1 and token[0] == "-" and not re.fullmatch(r"-(\d.*|\.\d.*|inf|nan|infinity)", token.lower())


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [each for each in typing.get_args(hint) if each is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return {int: "a whole number", float: "a number"}.get(hint, "a value")
