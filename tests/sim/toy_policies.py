"""Policies that are small enough to be followed by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp


class Noisy(eqx.Module):
    """`a ~ N(gain x, 1)`; the name is a leaf that is no array."""

    gain: jax.Array
    name: str = "noisy"

    def act(self, observation, key):
        action = self.gain * observation[:1] + jax.random.normal(key, (1,), observation.dtype)
        return action, -0.5 * jnp.sum((action - self.gain * observation[:1]) ** 2)
