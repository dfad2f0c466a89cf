"""Gaussian policies."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import Normalizer
from safemeta.nets.distribution import DiagonalGaussian
from safemeta.nets.mlp import MLP

DeviationKind = Literal["free", "state"]
LOG_STD_RANGE = (-5.0, 2.0)  # of the state-dependent head: keeps densities finite in float32


class PolicyNetwork(eqx.Module):
    """The trainable part of a policy.

    `context` is an input that does not come from the environment: a vector in which the policy can be adapted to a
    task (Zintgraf et al. 2019, CAVIA). It may be empty.
    """

    mlp: MLP
    log_std: Float[Array, " action"]
    context: Float[Array, " context"]


class GaussianPolicy(eqx.Module):
    """`a ~ N(mean(s, context), exp(log_std)^2)` with a tanh MLP on the normalised observation.

    `deviation="free"`: one log standard deviation per action, independent of the state.
    `deviation="state"`: the network gives it too (dual-method paper, D.2), as an offset to `log_std`.
    """

    normalizer: Normalizer
    network: PolicyNetwork
    deviation: DeviationKind = eqx.field(static=True, default="free")

    @staticmethod
    def create(
        observation_size: int,
        action_size: int,
        key: PRNGKeyArray,
        *,
        hidden: tuple[int, ...] = (64, 64),
        deviation: DeviationKind = "free",
        initial_log_std: float = -0.5,
        context_size: int = 0,
    ) -> "GaussianPolicy":
        outputs = action_size * (2 if deviation == "state" else 1)
        mlp = MLP.create(observation_size + context_size, outputs, hidden, key, output_gain=0.01)
        network = PolicyNetwork(mlp, jnp.full(action_size, initial_log_std), jnp.zeros(context_size))
        return GaussianPolicy(Normalizer.create(observation_size), network, deviation)

    def __call__(self, observation: Float[Array, "*batch observation"]) -> DiagonalGaussian:
        """The action distribution; any batch axes."""
        inputs = jax.lax.stop_gradient(self.normalizer)(observation)
        context = self.network.context
        if context.size:
            inputs = jnp.concatenate([inputs, jnp.broadcast_to(context, (*inputs.shape[:-1], context.size))], -1)
        output = self.network.mlp(inputs)
        if self.deviation == "free":
            return DiagonalGaussian(output, jnp.broadcast_to(self.network.log_std, output.shape))
        mean, offset = jnp.split(output, 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(self.network.log_std + offset, *LOG_STD_RANGE))

    def act(
        self, observation: Float[Array, " observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        distribution = self(observation)
        action = distribution.sample(key)
        return action, distribution.log_prob(action)


def parameters(policy: GaussianPolicy, part: Literal["all", "context"] = "all") -> Float[Array, " parameters"]:
    """The parameters of a policy as one flat vector: all of its network, or its context alone."""
    return policy.network.context if part == "context" else ravel_pytree(policy.network)[0]


def with_parameters(
    policy: GaussianPolicy, vector: Float[Array, " parameters"], part: Literal["all", "context"] = "all"
) -> GaussianPolicy:
    """The policy whose `parameters(policy, part)` is `vector`."""
    if part == "context":
        return eqx.tree_at(lambda p: p.network.context, policy, vector)
    return eqx.tree_at(lambda p: p.network, policy, ravel_pytree(policy.network)[1](vector))
