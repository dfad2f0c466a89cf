"""Running mean and variance of observations."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
        """For observations `[size]`, which stay as they are until data come."""
        return Normalizer(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size), clip)

    @property
    def variance(self) -> Float[Array, " size"]:
        """Unbiased variance; one where fewer than two observations were seen."""
        return jnp.where(self.count > 1, self.sum_squares / jnp.maximum(self.count - 1, 1), 1.0)

    def merge(
        self, observations: Float[Array, "*batch size"], valid: Bool[Array, "*batch"] | None = None
    ) -> "Normalizer":
        """Statistics of everything seen so far and `observations`, of which only the `valid` ones count."""
        flat = observations.reshape(-1, observations.shape[-1])
        counts = jnp.ones((flat.shape[0], 1), bool) if valid is None else valid.reshape(-1, 1)
        added = counts.sum().astype(self.mean.dtype)
        mean = jnp.where(counts, flat, 0).sum(0) / jnp.maximum(added, 1)
        sum_squares = jnp.where(counts, (flat - mean) ** 2, 0).sum(0)
        total = jnp.maximum(self.count + added, 1)
        shift = mean - self.mean
        return Normalizer(
            self.count + added,
            self.mean + shift * added / total,
            self.sum_squares + sum_squares + shift**2 * self.count * added / total,
            self.clip,
        )

    def __call__(self, observation: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        scaled = (observation - self.mean) / jnp.sqrt(self.variance + 1e-8)
        return jnp.clip(scaled, -self.clip, self.clip)
