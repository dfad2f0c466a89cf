"""A coordinatewise LSTM that turns gradients into updates (Andrychowicz et al. 2016, sections 2.1 and 3).

One small network serves every coordinate: each has a memory of its own, and none sees another. So the number of
weights does not depend on what is optimised, and an optimizer trained on ten coordinates runs on ten thousand.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Memory(eqx.Module):
    """What the LSTM remembers of each coordinate."""

    hidden: Float[Array, "*coordinates layers units"]
    cell: Float[Array, "*coordinates layers units"]


class LSTMCell(eqx.Module):
    """`c' = s(f) c + s(i) tanh(g)`, `h' = s(o) tanh(c')`; (i, f, g, o) = `[x, h] W + b`, s the logistic function.

    Glorot-uniform weights; the forget gate starts open (bias 1).
    """

    weight: Float[Array, "inputs gates"]
    bias: Float[Array, " gates"]

    @staticmethod
    def create(inputs: int, units: int, key: PRNGKeyArray) -> "LSTMCell":
        """Fresh weights."""
        weight = jax.nn.initializers.glorot_uniform()(key, (inputs + units, 4 * units))
        return LSTMCell(weight, jnp.zeros(4 * units).at[units : 2 * units].set(1))

    def __call__(
        self, x: Float[Array, "*coordinates inputs"], hidden: Array, cell: Array
    ) -> tuple[Float[Array, "*coordinates units"], Float[Array, "*coordinates units"]]:
        gates = jnp.concatenate([x, hidden], axis=-1) @ self.weight + self.bias
        enter, forget, candidate, leave = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        return jax.nn.sigmoid(leave) * jnp.tanh(cell), cell


class LearnedOptimizer(eqx.Module):
    """`[raw_k, h_{k+1}] = m_phi(gradient_k, h_k)` (FISAR, eq. 7; Sun, Kim, How), for every coordinate alike.

    The weights are the meta-parameters phi. `preprocessing` is Andrychowicz's p (None: the bare gradient enters),
    `output_scale` multiplies the linear output.
    """

    cells: tuple[LSTMCell, ...]
    weight: Float[Array, " units"]
    bias: Float[Array, ""]
    preprocessing: float | None = eqx.field(static=True, default=10.0)
    output_scale: float = eqx.field(static=True, default=1.0)

    @staticmethod
    def create(
        key: PRNGKeyArray,
        *,
        units: int = 20,
        layers: int = 2,
        preprocessing: float | None = 10.0,
        output_scale: float = 1.0,
    ) -> "LearnedOptimizer":
        """Fresh weights. The output layer starts small (standard deviation 0.1), so that the first updates do.

        Raises ValueError unless units, layers, preprocessing and output_scale are positive.
        """
        for name, value in (("units", units), ("layers", layers), ("output_scale", output_scale)):
            if not value > 0:
                raise ValueError(f"{name} of a learned optimizer must be positive, not {value}.")
        if preprocessing is not None and not preprocessing > 0:
            raise ValueError(f"preprocessing of a learned optimizer must be positive or None, not {preprocessing}.")
        inputs = (1 if preprocessing is None else 2, *(units,) * (layers - 1))
        keys = jax.random.split(key, layers + 1)
        cells = tuple(LSTMCell.create(size, units, k) for size, k in zip(inputs, keys[:-1], strict=True))
        weight = 0.1 * jax.random.normal(keys[-1], (units,))
        return LearnedOptimizer(cells, weight, jnp.zeros(()), preprocessing, output_scale)

    def fresh(self, gradient: Float[Array, "*coordinates"]) -> Memory:
        """The memory before the first step: zeros, of the shape and type that `gradient` asks for."""
        units = self.weight.shape[0]
        nothing = jnp.zeros((*gradient.shape, len(self.cells), units), jnp.result_type(gradient, self.weight))
        return Memory(nothing, nothing)

    def __call__(
        self, gradient: Float[Array, "*coordinates"], memory: Memory
    ) -> tuple[Float[Array, "*coordinates"], Memory]:
        """The raw direction, to be added after scaling by a step size, and the memory after it."""
        x = gradient[..., None] if self.preprocessing is None else preprocess(gradient, self.preprocessing)
        hidden, cell = [], []
        for index, layer in enumerate(self.cells):
            x, state = layer(x, memory.hidden[..., index, :], memory.cell[..., index, :])
            hidden.append(x)
            cell.append(state)
        raw = self.output_scale * (x @ self.weight + self.bias)
        return raw, Memory(jnp.stack(hidden, axis=-2), jnp.stack(cell, axis=-2))

    def imitating(
        self, gradients: Float[Array, "steps coordinates"], directions: Float[Array, "steps coordinates"]
    ) -> "LearnedOptimizer":
        """The same network with the linear output that comes nearest to `directions` on these gradients.

        Ridge regression on what the fresh LSTM makes of the gradients; nothing else is changed. `output_scale` then
        multiplies directions of the size of those that were imitated.
        """

        def advance(memory: Memory, gradient: Array) -> tuple[Memory, Array]:
            _, memory = self(gradient, memory)
            return memory, memory.hidden[..., -1, :]

        _, features = jax.lax.scan(advance, self.fresh(gradients[0]), gradients)
        x = features.reshape(-1, features.shape[-1])
        x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
        gram = x.T @ x + 1e-4 * x.shape[0] * jnp.eye(x.shape[1], dtype=x.dtype)
        output = jnp.linalg.solve(gram, x.T @ directions.reshape(-1))
        return eqx.tree_at(lambda n: (n.weight, n.bias), self, (output[:-1], output[-1]))


def preprocess(gradient: Float[Array, "*coordinates"], p: float) -> Float[Array, "*coordinates 2"]:
    """`(log|g| / p, sign g)` where `|g| >= e^-p`, else `(-1, e^p g)` (Andrychowicz et al., appendix A).

    Magnitude and sign come apart, so that gradients of very different scales look alike to the network.
    """
    threshold = math.exp(-p)
    magnitude = jnp.abs(gradient)
    return jnp.stack([jnp.log(jnp.maximum(magnitude, threshold)) / p, jnp.clip(gradient / threshold, -1, 1)], axis=-1)
