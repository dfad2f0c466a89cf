"""Extended class-K functions: how fast a constraint's violation must fall, and how fast its margin may be used up."""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Shape = Literal["linear", "cubic", "saturating"]
SHAPES = {"linear": lambda u: u, "cubic": lambda u: u**3, "saturating": jnp.tanh}


@dataclass(frozen=True)
class ClassK:
    """`alpha(C) = rate * scale * h(C / scale)` in FISAR's condition `grad C . theta' <= -alpha(C)` (eq. 3).

    h is strictly increasing with h(0) = 0: u ("linear"; `scale` cancels), u^3 ("cubic": all but free well inside, and
    slow to reach the boundary, like 1 / sqrt(t)), or tanh u ("saturating": a large violation asks for no more than
    `rate * scale`, so that one far constraint does not drown the objective). `rate` is per unit of optimisation time,
    `scale` in units of C.

    With a step size beta, `beta alpha(C)` should not exceed C: a step beyond the boundary may follow otherwise. For
    "linear" and "saturating" this asks for `rate * beta <= 1`; for "cubic" for `rate * beta * (C / scale)^2 <= 1`.
    """

    shape: Shape = "linear"
    rate: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise ValueError(f"the shape of a class-K function is one of {', '.join(SHAPES)}, not {self.shape!r}.")
        for name, value in (("rate", self.rate), ("scale", self.scale)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the {name} of a class-K function must be a positive number, not {value}.")

    def __call__(self, values: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return self.rate * self.scale * SHAPES[self.shape](values / self.scale)
