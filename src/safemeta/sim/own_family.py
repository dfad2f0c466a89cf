"""Task families of users' own environments: parameters that vary between an easy and a hard end, and limits."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import LimitOn, Tasks, check_split, tasks_within
from safemeta.sim.step import Family

LIMIT_UNITS = get_args(LimitOn)
Number = float | int
Ranges = Mapping[str, tuple[Number, Number]]  # parameter -> its easy and its hard end
Limits = Number | Sequence[Number] | Mapping[str, Number]
Span = tuple[str, float, float]


@dataclass(frozen=True)
class OwnFamily:
    """Tasks whose parameters are uniform, each between its easy and its hard end.

    The descriptor holds the parameters scaled so that the training range becomes [-1, 1], hard ends at 1 (0 where
    nothing varies). "validation" is distributed as "train".
    """

    train: tuple[Span, ...]
    test: tuple[Span, ...]
    limits: tuple[float, ...]

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        check_split(split)
        spans = self.test if split == "test" else self.train
        uniform = jax.random.uniform(key, (len(spans), count))
        return self._tasks([easy + (hard - easy) * u for (_, easy, hard), u in zip(spans, uniform, strict=True)], count)

    def corners(self) -> Tasks:
        """All combinations of hard and easy ends, the one of all hard ends first."""
        ends = [(hard, easy) if hard != easy else (hard,) for _, easy, hard in self.train]
        pairs = sorted(itertools.product(*[list(enumerate(each)) for each in ends]), key=lambda p: sum(i for i, _ in p))
        columns = zip(*[[value for _, value in corner] for corner in pairs], strict=True)
        return self._tasks([jnp.array(column, float) for column in columns], len(pairs))

    def _tasks(self, values: Sequence[Float[Array, " tasks"]], count: int) -> Tasks:
        spans = {name: (easy, hard) for name, easy, hard in self.train}
        return tasks_within(spans, dict(zip(spans, values, strict=True)), self.limits, count)


def check_episodes(horizon: int, discount: Number, limit_on: str) -> None:
    """Raise `ValueError` unless all three make sense."""
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon must be a whole number of at least 1 step, not {horizon}")
    if limit_on not in LIMIT_UNITS:
        raise ValueError(f"limit_on must be one of {', '.join(LIMIT_UNITS)}, not {limit_on!r}")
    if not 0 < discount <= 1:
        raise ValueError(f"discount must be above 0 and at most 1, not {discount}")


def chosen_tasks(
    tasks: Ranges | Family | None, test_tasks: Ranges | None
) -> tuple[Family | None, tuple[Span, ...], tuple[Span, ...]]:
    """A family that was given ready, and the checked ranges of training and test tasks; `ValueError` if they clash."""
    ready = tasks if tasks is not None and not isinstance(tasks, Mapping) else None
    train = _spans(tasks if isinstance(tasks, Mapping) else {})
    test = train if test_tasks is None else _spans(test_tasks)
    if ready is not None and test_tasks is not None:
        raise ValueError("test_tasks goes with ranges; a family has its own tasks of the split 'test'")
    if [span[0] for span in test] != [span[0] for span in train]:
        raise ValueError("test_tasks must name the same parameters as tasks, in the same order")
    return ready, train, test


def _spans(ranges: Ranges) -> tuple[Span, ...]:
    """Checked ranges."""
    spans = []
    for name, ends in ranges.items():
        if not (isinstance(ends, (tuple, list)) and len(ends) == 2 and all(math.isfinite(end) for end in ends)):
            raise ValueError(f"the range of {name!r} must be two numbers, its easy and its hard end, not {ends!r}")
        spans.append((str(name), float(ends[0]), float(ends[1])))
    return tuple(spans)


def limits_of(limits: Limits, names: tuple[str, ...]) -> tuple[float, ...]:
    """One limit for each cost; `ValueError` where that is not what was given."""
    if isinstance(limits, Mapping):
        if set(limits) != set(names):
            raise ValueError(f"limits are needed for {', '.join(names)}, not for {', '.join(map(str, limits))}")
        values = [limits[name] for name in names]
    else:
        values = list(limits) if isinstance(limits, Sequence) else [limits] * len(names)
    if len(values) != len(names):
        raise ValueError(f"{len(values)} limits were given for {len(names)} costs ({', '.join(names)})")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"a limit must be a number that is zero or more, not {value!r}")
    return tuple(map(float, values))
