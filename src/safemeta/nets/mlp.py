"""The multilayer perceptron that policies and critics share."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Linear(eqx.Module):
    """`x W + b` on the last axis; inputs may have any batch axes."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    @staticmethod
    def create(inputs: int, outputs: int, gain: float, key: PRNGKeyArray) -> "Linear":
        """Orthogonal weights scaled by `gain`, zero bias."""
        weight = gain * jax.nn.initializers.orthogonal()(key, (inputs, outputs))
        return Linear(weight, jnp.zeros(outputs))

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return x @ self.weight + self.bias


class MLP(eqx.Module):
    """Hidden layers (tanh, unless said) and a linear output; hidden gain sqrt(2), output gain as given."""

    layers: tuple[Linear, ...]
    activation: Callable[[Array], Array] = eqx.field(static=True, default=jnp.tanh)

    @staticmethod
    def create(
        inputs: int,
        outputs: int,
        hidden: tuple[int, ...],
        key: PRNGKeyArray,
        output_gain: float = 1.0,
        activation: Callable[[Array], Array] = jnp.tanh,
    ) -> "MLP":
        """Orthogonal weights; `output_gain` is the last layer's."""
        sizes = (inputs, *hidden, outputs)
        gains = (2**0.5,) * len(hidden) + (output_gain,)
        keys = jax.random.split(key, len(gains))
        return MLP(
            tuple(
                Linear.create(before, after, gain, k)
                for before, after, gain, k in zip(sizes[:-1], sizes[1:], gains, keys, strict=True)
            ),
            activation,
        )

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
