"""The networks of D4PG as Acme has them: an MLP whose first layer is normalised, a policy and a categorical critic."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.nets.mlp import Linear

EPSILON = 1e-5  # of the normalisation


class LayerNormMLP(eqx.Module):
    """`tanh(norm(x W_1))`, then ELU layers. Weights uniform within `sqrt(0.999 / outputs)`, biases 0."""

    layers: tuple[Linear, ...]
    scale: Float[Array, " first"]
    offset: Float[Array, " first"]

    @staticmethod
    def create(inputs: int, hidden: tuple[int, ...], key: PRNGKeyArray) -> "LayerNormMLP":
        """Fresh weights."""
        keys = jax.random.split(key, len(hidden))
        sizes = zip((inputs, *hidden[:-1]), hidden, keys, strict=True)
        layers = tuple(_uniform(before, after, k) for before, after, k in sizes)
        return LayerNormMLP(layers, jnp.ones(hidden[0]), jnp.zeros(hidden[0]))

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        x = self.layers[0](x)
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + EPSILON)
        x = jnp.tanh(self.scale * centred / deviation + self.offset)
        for layer in self.layers[1:]:
            x = jax.nn.elu(layer(x))
        return x


def _uniform(inputs: int, outputs: int, key: PRNGKeyArray) -> Linear:
    bound = math.sqrt(3 * 0.333 / outputs)
    return Linear(jax.random.uniform(key, (inputs, outputs), minval=-bound, maxval=bound), jnp.zeros(outputs))


def _normal(inputs: int, outputs: int, scale: float, key: PRNGKeyArray) -> Linear:
    """Variance `scale / inputs`, truncated at two standard deviations."""
    weight = jax.nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")(key, (inputs, outputs))
    return Linear(weight, jnp.zeros(outputs))


class DeterministicPolicy(eqx.Module):
    """`a = tanh(MLP(s))` within [-1, 1], near 0 at first. A `safemeta.core.Policy`."""

    torso: LayerNormMLP
    head: Linear

    @staticmethod
    def create(
        observation_size: int, action_size: int, key: PRNGKeyArray, *, hidden: tuple[int, ...] = (256, 256, 256)
    ) -> "DeterministicPolicy":
        """Fresh weights."""
        torso_key, head_key = jax.random.split(key)
        torso = LayerNormMLP.create(observation_size, hidden, torso_key)
        return DeterministicPolicy(torso, _normal(hidden[-1], action_size, 1e-4, head_key))

    def __call__(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        return jnp.tanh(self.head(self.torso(observation)))

    def mode(self, observation: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        """The action."""
        return self(observation)

    def act(
        self, observation: Float[Array, " observation"], key: PRNGKeyArray
    ) -> tuple[Float[Array, " action"], Float[Array, ""]]:
        """The action; there is no density, and 0 stands in its place."""
        action = self(observation)
        return action, jnp.zeros((), action.dtype)


class CategoricalValue(eqx.Module):
    """Logits of the distribution of the return of an action: one for each atom of a fixed support."""

    torso: LayerNormMLP
    head: Linear

    @staticmethod
    def create(
        observation_size: int,
        action_size: int,
        atoms: int,
        key: PRNGKeyArray,
        *,
        hidden: tuple[int, ...] = (512, 512, 256),
    ) -> "CategoricalValue":
        """Fresh weights."""
        torso_key, head_key = jax.random.split(key)
        torso = LayerNormMLP.create(observation_size + action_size, hidden, torso_key)
        return CategoricalValue(torso, _normal(hidden[-1], atoms, 1.0, head_key))

    def __call__(
        self, observation: Float[Array, "*batch observation"], action: Float[Array, "*batch action"]
    ) -> Float[Array, "*batch atoms"]:
        return self.head(self.torso(jnp.concatenate([observation, action], axis=-1)))
