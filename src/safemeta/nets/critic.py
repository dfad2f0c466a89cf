"""Value functions of the reward and of every cost."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.nets.mlp import MLP


class Critic(eqx.Module):
    """One tanh MLP per signal (reward first, then the costs), evaluated together.

    Outputs are multiplied by `scale`, so that values of the order of `1 / (1 - discount)` are in reach of a network
    whose outputs are of order one.
    """

    networks: MLP  # array leaves have a leading signal axis
    scale: float = eqx.field(static=True, default=10.0)

    @staticmethod
    def create(
        inputs: int, signals: int, key: PRNGKeyArray, *, hidden: tuple[int, ...] = (64, 64), scale: float = 10.0
    ) -> "Critic":
        """Fresh weights, one output for each signal."""
        make = eqx.filter_vmap(lambda k: MLP.create(inputs, 1, hidden, k, output_gain=0.1))
        return Critic(make(jax.random.split(key, signals)), scale)

    def __call__(self, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch signals"]:
        values = eqx.filter_vmap(lambda network, x: network(x)[..., 0], in_axes=(eqx.if_array(0), None))(
            self.networks, inputs
        )
        return self.scale * jnp.moveaxis(values, 0, -1)
