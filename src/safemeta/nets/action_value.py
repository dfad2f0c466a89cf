"""Functions of observation and action, or of the observation alone, for off-policy learners."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.nets.mlp import MLP


class ActionValue(eqx.Module):
    """`Q(s, a)` or anything else of one number: an MLP on observation and action, the action divided by `scale`."""

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
    ) -> "ActionValue":
        """Fresh weights."""
        return ActionValue(MLP.create(observation_size + action_size, 1, hidden, key, activation=jax.nn.elu), scale)

    def __call__(
        self, observation: Float[Array, "*batch observation"], action: Float[Array, "*batch action"]
    ) -> Float[Array, "*batch"]:
        return self.mlp(jnp.concatenate([observation, action / self.scale], axis=-1))[..., 0]


class MultiplierNetwork(eqx.Module):
    """`lambda(s) = softplus(MLP(s)) > 0`: a Lagrange multiplier for the constraint of each state (FAC-SIS, eq. 3).

    `initial_bias` of the output: the released code starts from softplus(-10) = 4.5e-5.
    """

    mlp: MLP

    @staticmethod
    def create(
        observation_size: int, key: PRNGKeyArray, *, hidden: tuple[int, ...] = (256, 256), initial_bias: float = -10.0
    ) -> "MultiplierNetwork":
        """Fresh weights; `softplus(initial_bias)` is about what it gives at first."""
        mlp = MLP.create(observation_size, 1, hidden, key, activation=jax.nn.elu)
        return MultiplierNetwork(eqx.tree_at(lambda m: m.layers[-1].bias, mlp, jnp.full(1, initial_bias)))

    def __call__(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch"]:
        return jax.nn.softplus(self.mlp(observation)[..., 0])
