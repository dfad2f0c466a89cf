"""Task families whose parameters are independent and uniform."""

import itertools
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import LimitOn, Tasks, check_split, tasks_within
from safemeta.core.family import Spans


def limits_of_violations(limit: float, limit_on: LimitOn, costs: int) -> tuple[float, ...]:
    """The same limit for each of `costs` that are 0 or 1.

    Raises `ValueError` where it is a share of steps and not within [0, 1].
    """
    if limit_on == "per_step" and not 0 <= limit <= 1:
        raise ValueError(f"limit must be within [0, 1], a share of the steps, not {limit:g}")
    return (limit,) * costs


@dataclass(frozen=True)
class Uniform:
    """A task parameter between `low` and `high`; `harder` is 1 where more of it is harder, -1 where less is."""

    name: str
    low: float
    high: float
    harder: int = 1


@dataclass(frozen=True)
class UniformFamily:
    """Independent uniform task parameters, the same in every split, with one limit for each cost.

    The descriptor holds the parameters in their order, each scaled to [-1, 1], and 0 where nothing varies.
    """

    parameters: tuple[Uniform, ...]
    limits: tuple[float, ...]

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        check_split(split)
        low, high = (jnp.array([getattr(p, end) for p in self.parameters], float) for end in ("low", "high"))
        return self._tasks(low + (high - low) * jax.random.uniform(key, (count, len(self.parameters)), low.dtype))

    def corners(self) -> Tasks:
        """Every combination of extreme parameters, the hardest first."""
        spans = [sorted({p.low, p.high}, key=lambda end, p=p: -p.harder * end) for p in self.parameters]
        ranked = sorted(
            itertools.product(*(list(enumerate(span)) for span in spans)),
            key=lambda ends: sum(rank for rank, _ in ends),
        )
        return self._tasks(jnp.array([[end for _, end in ends] for ends in ranked], float))

    def _tasks(self, values: Float[Array, "tasks parameters"]) -> Tasks:
        spans = {p.name: (p.low, p.high) for p in self.parameters}
        return tasks_within(spans, dict(zip(spans, values.T, strict=True)), self.limits, values.shape[0])


class Ranges:
    """A dataclass whose fields are ranges, each of one task parameter."""

    def spans(self) -> Spans:
        """All ranges by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class RangesFamily:
    """Tasks with independent uniform parameters within `train` ("train", "validation") or `test`, and their limits.

    The descriptor holds the parameters in the order of the ranges, each scaled to [-1, 1] over the training range, and
    0 where nothing varies.
    """

    train: Ranges
    test: Ranges
    limits: tuple[float, ...]

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        """So many independent tasks; `ValueError` on an unknown split."""
        check_split(split)
        spans = (self.test if split == "test" else self.train).spans()
        uniform = jax.random.uniform(key, (len(spans), count))
        drawn = [low + (high - low) * part for (low, high), part in zip(spans.values(), uniform, strict=True)]
        return self.tasks(dict(zip(spans, drawn, strict=True)))

    def tasks(self, parameters: dict[str, Float[Array, " tasks"]]) -> Tasks:
        """The tasks with these parameters."""
        spans = self.train.spans()
        return tasks_within(spans, parameters, self.limits, parameters[next(iter(spans))].shape[0])
