"""Gaussian policies."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import Normalizer
from safemeta.nets.distribution import DiagonalGaussian
from safemeta.nets.mlp import MLP

DeviationKind = Literal["free", "state"]
Part = Literal["all", "last"]
LOG_STD_RANGE = (-5.0, 2.0)  # of the state-dependent head: keeps densities finite in float32


class PolicyNetwork(eqx.Module):
    """The trainable part of a policy."""

    mlp: MLP
    log_std: Float[Array, " action"]


class GaussianPolicy(eqx.Module):
    """`a ~ N(mean(s), exp(log_std)^2)` with a tanh MLP on the normalised observation.

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
    ) -> "GaussianPolicy":
        """A fresh policy whose mean is about 0 everywhere."""
        outputs = action_size * (2 if deviation == "state" else 1)
        mlp = MLP.create(observation_size, outputs, hidden, key, output_gain=0.01)
        network = PolicyNetwork(mlp, jnp.zeros(action_size) + initial_log_std)
        return GaussianPolicy(Normalizer.create(observation_size), network, deviation)

    def __call__(self, observation: Float[Array, "*batch observation"]) -> DiagonalGaussian:
        """The action distribution; any batch axes."""
        output = self.network.mlp(jax.lax.stop_gradient(self.normalizer)(observation))
        if self.deviation == "free":
            return DiagonalGaussian(output, jnp.broadcast_to(self.network.log_std, output.shape))
        mean, offset = jnp.split(output, 2, axis=-1)
        return DiagonalGaussian(mean, jnp.clip(self.network.log_std + offset, *LOG_STD_RANGE))

    def mode(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        """The mean: the action without noise."""
        return self(observation).mean

    def act(
        self, observation: Float[Array, " observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        distribution = self(observation)
        action = distribution.sample(key)
        return action, distribution.log_prob(action)


def _part(policy: GaussianPolicy, part: Part) -> Any:
    return policy.network if part == "all" else policy.network.mlp.layers[-1]


def parameters(policy: GaussianPolicy, part: Part = "all") -> Float[Array, " parameters"]:
    """The parameters of a policy as one flat vector: all of its network, or the last layer alone."""
    return ravel_pytree(_part(policy, part))[0]


def with_parameters(policy: GaussianPolicy, vector: Float[Array, " parameters"], part: Part = "all") -> GaussianPolicy:
    """The policy whose `parameters(policy, part)` is `vector`."""
    _, rebuild = ravel_pytree(_part(policy, part))
    return eqx.tree_at(lambda p: _part(p, part), policy, rebuild(vector))
