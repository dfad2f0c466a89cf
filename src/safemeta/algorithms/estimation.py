"""What on-policy learners estimate from a batch of episodes: returns, limited costs, advantages."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from safemeta.core import CMDP, Trajectory, generalized_advantage


class Advantages(eqx.Module):
    """Advantages of a batch, and the value targets `advantage + value` for the critic. The reward comes first."""

    reward: Float[Array, "*batch time"]
    costs: Float[Array, "*batch time costs"]
    target: Float[Array, "*batch time signals"]


def limited_costs(trajectory: Trajectory, cmdp: CMDP) -> Float[Array, "*batch costs"]:
    """The limited quantity of each episode, `sum_t w_t c_t` (see `CMDP.cost_weights`)."""
    weights = cmdp.cost_weights(trajectory.costs.dtype)[:, None]
    return jnp.sum(weights * trajectory.costs * trajectory.valid[..., None], axis=-2)


def effective_discount(cmdp: CMDP) -> float:
    """The discount for which `1 / (1 - discount)` is the total weight of a limited quantity.

    The dual-method paper bounds discounted costs, where a change of policy by `E[A_c]` per state changes the cost by
    `E[A_c] / (1 - discount)`. For other units of a limit the total of its weights takes that place.
    """
    if cmdp.limit_on == "discounted":
        return cmdp.discount
    return 0.0 if cmdp.limit_on == "per_step" else 1 - 1 / cmdp.horizon


def episode_return(trajectory: Trajectory) -> Float[Array, "*batch"]:
    """Undiscounted return of each episode."""
    return jnp.sum(trajectory.reward * trajectory.valid, axis=-1)


def advantages(
    trajectory: Trajectory,
    value: Float[Array, "*batch time signals"],
    last_value: Float[Array, "*batch signals"],
    cmdp: CMDP,
    smoothing: float,
) -> Advantages:
    """GAE of the reward and all costs at once, rows being episodes."""
    signal = jnp.concatenate([trajectory.reward[..., None], trajectory.costs], -1)
    # What follows the last step of an episode is `last_observation`, not the padding after it.
    following_valid = jnp.concatenate([trajectory.valid[..., 1:], jnp.zeros_like(trajectory.valid[..., :1])], -1)
    shifted = jnp.concatenate([value[..., 1:, :], value[..., :1, :]], -2)
    next_value = jnp.where(following_valid[..., None], shifted, last_value[..., None, :])

    def one_row(signal, value, next_value, terminated, truncated):
        return generalized_advantage(signal, value, next_value, terminated, truncated, cmdp.discount, smoothing)

    for _ in range(signal.ndim - 2):
        one_row = jax.vmap(one_row)
    advantage = one_row(signal, value, next_value, trajectory.terminated, trajectory.truncated)
    advantage = advantage * trajectory.valid[..., None]
    return Advantages(advantage[..., 0], advantage[..., 1:], advantage + value)
