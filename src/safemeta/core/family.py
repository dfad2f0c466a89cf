"""What task families have in common: their splits, and descriptors that scale ranges of parameters."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from safemeta.core.cmdp import Tasks

SPLITS = ("train", "validation", "test")
Spans = Mapping[str, tuple[float, float]]  # a task parameter's two ends, the second of which becomes 1


def check_split(split: Any) -> None:
    """Raise `ValueError` unless it is one of the three."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")


def tasks_within(
    spans: Spans, parameters: Mapping[str, Float[Array, " tasks"]], limits: tuple[float, ...], count: int
) -> Tasks:
    """`count` tasks of the same limits; descriptors scale each span to [-1, 1], and are 0 where nothing varies."""
    scaled = [
        (2 * parameters[name] - one - other) / (other - one) if other != one else jnp.zeros(count)
        for name, (one, other) in spans.items()
    ]
    dtype = next((parameters[name].dtype for name in spans), float)
    tiled = jnp.tile(jnp.asarray(limits, dtype), (count, 1))
    return Tasks(dict(parameters), tiled, jnp.stack(scaled or [jnp.zeros(count)], axis=-1))
