"""Task families whose parameters are independent and uniform."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import LimitOn, Tasks

SPLITS = ("train", "validation", "test")


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
        descriptor = [
            (2 * values[:, index] - p.low - p.high) / (p.high - p.low) if p.high > p.low else 0 * values[:, index]
            for index, p in enumerate(self.parameters)
        ]
        limits = jnp.tile(jnp.asarray(self.limits, values.dtype), (values.shape[0], 1))
        parameters = {p.name: values[:, index] for index, p in enumerate(self.parameters)}
        return Tasks(parameters, limits, jnp.stack(descriptor, axis=-1))
