"""Diagonal Gaussian over actions."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class DiagonalGaussian(eqx.Module):
    """`N(mean, diag(exp(log_std))^2)`; batch axes broadcast, the last axis is the action."""

    mean: Float[Array, "*batch action"]
    log_std: Float[Array, "*#batch action"]

    def log_prob(self, action: Float[Array, "*batch action"]) -> Float[Array, "*batch"]:
        """`sum_j -((a_j - m_j) / s_j)^2 / 2 - log s_j - log(2 pi) / 2`."""
        scaled = (action - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * scaled**2 + self.log_std + 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """`sum_j log s_j + log(2 pi e) / 2`, in nats."""
        log_std = jnp.broadcast_to(self.log_std, self.mean.shape)
        return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: "DiagonalGaussian") -> Float[Array, "*batch"]:
        """`KL(self || other)` in nats."""
        difference = (self.mean - other.mean) * jnp.exp(-other.log_std)
        ratio = self.log_std - other.log_std
        return jnp.sum(0.5 * (difference**2 + jnp.exp(2 * ratio) - 1) - ratio, axis=-1)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch action"]:
        """`mean + std z` with standard normal z."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise
