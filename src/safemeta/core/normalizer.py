"""Running mean and variance of observations."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Normalizer(eqx.Module):
    """Running statistics (Chan et al. 1983, parallel update) and the map `clip((x - mean) / std, -clip, clip)`.

    A fresh normaliser is the identity up to clipping. `merge` is a pure function: freezing means not calling it.
    """

    count: Float[Array, ""]
    mean: Float[Array, " size"]
    sum_squares: Float[Array, " size"]
    clip: float = eqx.field(static=True, default=5.0)

    @staticmethod
    def create(size: int, clip: float = 5.0) -> "Normalizer":
        return Normalizer(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size), clip)

    @property
    def variance(self) -> Float[Array, " size"]:
        """Unbiased variance; one where fewer than two observations were seen."""
        return jnp.where(self.count > 1, self.sum_squares / jnp.maximum(self.count - 1, 1), 1.0)

    def merge(self, observations: Float[Array, "*batch size"]) -> "Normalizer":
        """Statistics of everything seen so far and `observations`."""
        flat = observations.reshape(-1, observations.shape[-1])
        added = jnp.asarray(flat.shape[0], self.mean.dtype)
        mean = flat.mean(0)
        sum_squares = ((flat - mean) ** 2).sum(0)
        total = self.count + added
        shift = mean - self.mean
        return Normalizer(
            total,
            self.mean + shift * added / total,
            self.sum_squares + sum_squares + shift**2 * self.count * added / total,
            self.clip,
        )

    def __call__(self, observation: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        scaled = (observation - self.mean) / jnp.sqrt(self.variance + 1e-8)
        return jnp.clip(scaled, -self.clip, self.clip)
