"""Values as distributions on fixed atoms (C51: Bellemare, Dabney, Munos 2017).

`Z(s, a)` puts probability p_i on each of evenly spaced atoms z_i. Its target, that of `r + gamma Z(s', a')`, has atoms
elsewhere and is projected back. Nothing here stops a gradient: MetaL differentiates through the targets.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Support:
    """`atoms` evenly spaced values from `low` to `high`."""

    low: float
    high: float
    atoms: int

    @property
    def gap(self) -> float:
        """Between neighbouring atoms."""
        return (self.high - self.low) / (self.atoms - 1)

    def values(self, dtype: jnp.dtype) -> Float[Array, " atoms"]:
        """The atoms."""
        return jnp.linspace(self.low, self.high, self.atoms, dtype=dtype)

    def mean(self, logits: Float[Array, "*batch atoms"]) -> Float[Array, "*batch"]:
        """`sum_i p_i z_i`."""
        return jax.nn.softmax(logits) @ self.values(logits.dtype)

    def outside(
        self, values: Float[Array, "*batch from"], probabilities: Float[Array, "*batch from"]
    ) -> Float[Array, "*batch"]:
        """The probability of what the support cannot hold."""
        return jnp.sum(jnp.where((values < self.low) | (values > self.high), probabilities, 0), axis=-1)

    def project(
        self, values: Float[Array, "*batch from"], probabilities: Float[Array, "*batch from"]
    ) -> Float[Array, "*batch atoms"]:
        """`p_i = sum_j max(0, 1 - |clip(v_j) - z_i| / gap) p_j`: each value's mass goes to its two neighbours.

        Differentiable in the values, piecewise linearly: what is beyond the support has derivative 0.
        """
        beyond = (values <= self.low) | (values >= self.high)
        held = jnp.where(beyond, jax.lax.stop_gradient(jnp.clip(values, self.low, self.high)), values)
        distance = jnp.abs(held[..., None, :] - self.values(values.dtype)[:, None]) / self.gap
        return jnp.sum(jax.nn.relu(1 - distance) * probabilities[..., None, :], axis=-1)


def cross_entropy(target: Float[Array, "*batch atoms"], logits: Float[Array, "*batch atoms"]) -> Float[Array, "*batch"]:
    """`-sum_i target_i log softmax(logits)_i`."""
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)
