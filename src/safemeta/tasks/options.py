"""Options of task families: what a user may choose about a task by name and value. Imports no JAX.

Values come as Python values or, from the command line, as text; they are kept as JSON values.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

MOST = 1e9  # of anything that is counted
Kind = Literal["switch", "count", "number", "range", "names"]


@dataclass(frozen=True)
class Option:
    """One option: `default` and what is read are JSON values.

    A "switch" is true or false, a "count" a whole number, a "number" finite, a "range" a number or two, low and high,
    from which every task draws its own, and "names" are one or more of `choices`. Numbers lie within `low` and `high`;
    with `above`, `low` itself is not allowed.
    """

    name: str
    kind: Kind
    default: Any
    description: str
    low: float = 0.0
    high: float = math.inf
    above: bool = False
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.kind == "switch":
            return "true or false"
        if self.kind == "names":
            return f"one or more of {', '.join(self.choices)}, separated by commas"
        number = "a whole number" if self.kind == "count" else "a number"
        bounds = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        if self.highest < math.inf:
            bounds += f" and at most {self.highest:g}"
        return f"{number} {bounds}" + (", or two of them, low,high" if self.kind == "range" else "")

    @property
    def highest(self) -> float:
        """The largest number that is allowed."""
        return min(self.high, MOST) if self.kind == "count" else self.high

    def read(self, value: Any) -> Any:
        """The value as it is kept; `ValueError` (one sentence with what is allowed) if it is not allowed."""
        found = self._read(value)
        if found is None:
            raise ValueError(f"the task option {self.name} must be {self.allowed}, not {value!r}")
        return found

    def _read(self, value: Any) -> Any:
        """The value as it is kept, None if it is not allowed."""
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        if self.kind == "names":
            good = all(part in self.choices for part in parts) and len({*map(str, parts)}) == len(parts) > 0
            return (parts[0] if len(parts) == 1 else list(parts)) if good else None
        if self.kind == "switch":
            return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value))
        numbers = [number for number in map(self._number, parts) if number is not None]
        if len(numbers) != len(parts) or not 0 < len(numbers) <= (2 if self.kind == "range" else 1):
            return None
        if numbers[0] > numbers[-1]:
            return None
        return numbers[0] if numbers[0] == numbers[-1] else numbers

    def _number(self, value: Any) -> float | int | None:
        kind = int if self.kind == "count" else float
        if isinstance(value, bool) or not isinstance(value, (str, int) if kind is int else (str, int, float)):
            return None
        try:
            number = kind(value)
        except (ValueError, OverflowError):
            return None
        small = number <= self.low if self.above else number < self.low
        return None if small or not math.isfinite(number) or number > self.highest else number


def read(task: str, options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values as they are kept; `ValueError` on a name that is none of `options` and on bad values."""
    known = {option.name: option for option in options}
    for name in given:
        if not known:
            raise ValueError(f"the task {task} has no options, so that {name!r} cannot be set")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise ValueError(f"unknown option {name!r} of the task {task}; {hint}")
    return {name: known[name].read(value) for name, value in given.items()}


def span(value: float | list[float]) -> tuple[float, float]:
    """The two ends of a "range"."""
    low, high = value if isinstance(value, list) else (value, value)
    return low, high


def several(value: str | list[str]) -> tuple[str, ...]:
    """The "names"."""
    return tuple(value) if isinstance(value, list) else (value,)
