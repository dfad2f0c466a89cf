"""Gaussian policies squashed into a box, as soft actor-critics use them."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.nets.distribution import DiagonalGaussian
from safemeta.nets.mlp import MLP

LOG_STD_RANGE = (-5.0, 1.0)  # released code of FAC-SIS


class SquashedPolicy(eqx.Module):
    """`a = scale * tanh(u)`, `u ~ N(mean(s), diag(std(s))^2)`; an MLP gives mean and log std.

    The density is that of a: `log p(a) = log N(u) - sum_j log(scale (1 - tanh(u_j)^2))`.
    """

    mlp: MLP
    scale: float = eqx.field(static=True, default=1.0)

    @staticmethod
    def create(
        observation_size: int,
        action_size: int,
        key: PRNGKeyArray,
        *,
        hidden: tuple[int, ...] = (256, 256),
        scale: float = 1.0,
    ) -> "SquashedPolicy":
        """Fresh weights."""
        return SquashedPolicy(MLP.create(observation_size, 2 * action_size, hidden, key, activation=jax.nn.elu), scale)

    def distribution(self, observation: Float[Array, "*batch observation"]) -> DiagonalGaussian:
        """Of u."""
        mean, log_std = jnp.split(self.mlp(observation), 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(log_std, *LOG_STD_RANGE))

    def sample(
        self, observation: Float[Array, "*batch observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "*batch action"], Float[Array, "*batch"]]:
        """An action, differentiable in the weights (reparameterised), and its log-density."""
        distribution = self.distribution(observation)
        u = distribution.sample(key)
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which does not cancel at large |u|
        shrinking = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u)) + math.log(self.scale)
        return self.scale * jnp.tanh(u), distribution.log_prob(u) - jnp.sum(shrinking, axis=-1)

    def mode(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        """`scale * tanh(mean)`: the action without noise."""
        return self.scale * jnp.tanh(self.distribution(observation).mean)

    def act(
        self, observation: Float[Array, " observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        """A `safemeta.core.Policy`: samples."""
        return self.sample(observation, key)


class ModePolicy(eqx.Module):
    """Another policy's action without noise, which is how off-policy learners are judged. A `safemeta.core.Policy`."""

    policy: SquashedPolicy

    def mode(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        """The other's mode."""
        return self.policy.mode(observation)

    def act(
        self, observation: Float[Array, " observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        """The action; there is no density, and 0 stands in its place."""
        action = self.policy.mode(observation)
        return action, jnp.zeros((), action.dtype)
