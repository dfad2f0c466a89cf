"""What on-policy learners estimate from a batch of episodes: costs, advantages, critics."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import CMDP, Trajectory, generalized_advantage
from safemeta.nets import Critic


class Advantages(eqx.Module):
    """Advantages of a batch, and the value targets `advantage + value` for the critic. The reward comes first."""

    reward: Float[Array, "*batch time"]
    costs: Float[Array, "*batch time costs"]
    target: Float[Array, "*batch time signals"]


class CriticState(eqx.Module):
    """A critic and the state of its optimizer."""

    critic: Critic
    optimizer: Any


def limited_costs(trajectory: Trajectory, cmdp: CMDP) -> Float[Array, "*batch costs"]:
    """The limited quantity of each episode, `sum_t w_t c_t` (see `CMDP.cost_weights`)."""
    weights = cmdp.cost_weights(trajectory.costs.dtype)[:, None]
    return jnp.sum(weights * trajectory.costs * trajectory.valid[..., None], axis=-2)


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
    next_value = jnp.concatenate([value[..., 1:, :], last_value[..., None, :]], -2)

    def one_row(signal, value, next_value, terminated, truncated):
        return generalized_advantage(signal, value, next_value, terminated, truncated, cmdp.discount, smoothing)

    for _ in range(signal.ndim - 2):
        one_row = jax.vmap(one_row)
    advantage = one_row(signal, value, next_value, trajectory.terminated, trajectory.truncated)
    advantage = advantage * trajectory.valid[..., None]
    return Advantages(advantage[..., 0], advantage[..., 1:], advantage + value)


def fit_critic(
    state: CriticState,
    optimizer: optax.GradientTransformation,
    inputs: Float[Array, "samples inputs"],
    targets: Float[Array, "samples signals"],
    key: PRNGKeyArray,
    *,
    steps: int,
    minibatch: int,
) -> tuple[CriticState, Float[Array, ""]]:
    """`steps` Adam steps on the mean squared error in units of `critic.scale`; also the mean loss of the last quarter."""
    chosen = jax.random.randint(key, (steps, minibatch), 0, inputs.shape[0])

    def loss(critic, x, y):
        return jnp.mean(((critic(x) - y) / critic.scale) ** 2)

    def step(carry, rows):
        critic, moments = carry
        value, gradient = jax.value_and_grad(loss)(critic, inputs[rows], targets[rows])
        updates, moments = optimizer.update(gradient, moments, critic)
        return (optax.apply_updates(critic, updates), moments), value

    (critic, moments), losses = jax.lax.scan(step, (state.critic, state.optimizer), chosen)
    return CriticState(critic, moments), losses[-max(steps // 4, 1) :].mean()
