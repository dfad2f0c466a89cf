"""Task families whose parameters are independent and uniform."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import LimitOn, Tasks

SPLITS = ("train", "validation", "test")
Spans = Mapping[str, tuple[float, float]]  # a task parameter's least and largest value


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
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
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
        return tasks_within(spans, dict(zip(spans, values.T, strict=True)), self.limits)


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
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        spans = (self.test if split == "test" else self.train).spans()
        uniform = jax.random.uniform(key, (len(spans), count))
        drawn = [low + (high - low) * part for (low, high), part in zip(spans.values(), uniform, strict=True)]
        return self.tasks(dict(zip(spans, drawn, strict=True)))

    def tasks(self, parameters: dict[str, Float[Array, " tasks"]]) -> Tasks:
        """The tasks with these parameters."""
        return tasks_within(self.train.spans(), parameters, self.limits)


def tasks_within(spans: Spans, parameters: dict[str, Float[Array, " tasks"]], limits: tuple[float, ...]) -> Tasks:
    """Tasks of the same limits, with descriptors that scale each span to [-1, 1]."""
    values = [parameters[name] for name in spans]
    descriptor = [
        (2 * value - low - high) / (high - low) if high > low else jnp.zeros_like(value)
        for value, (low, high) in zip(values, spans.values(), strict=True)
    ]
    tiled = jnp.tile(jnp.asarray(limits, values[0].dtype), (values[0].shape[0], 1))
    return Tasks(parameters, tiled, jnp.stack(descriptor, axis=-1))
