"""How on-policy learners judge states: a neural critic that is carried along, or a linear one fitted to each batch."""

from typing import Any, Literal, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from safemeta.algorithms.estimation import Advantages, advantages
from safemeta.core import CMDP, Normalizer, Trajectory, discounted_returns
from safemeta.nets import Critic, LinearCritic

CriticKind = Literal["neural", "linear"]


class CriticConfig(Protocol):
    """The settings that critics need; every on-policy `Config` has them."""

    @property
    def critic(self) -> CriticKind:
        """Which kind."""
        ...

    @property
    def hidden(self) -> tuple[int, ...]:
        """Layers of a neural one."""
        ...

    @property
    def critic_learning_rate(self) -> float:
        """Of Adam."""
        ...

    @property
    def minibatch(self) -> int:
        """Control steps in each."""
        ...


class CriticState(eqx.Module):
    """A neural critic and the state of its optimizer (kept, though unused, where the critic is linear)."""

    critic: Critic
    optimizer: Any


def init_critic(config: CriticConfig, cmdp: CMDP, key: PRNGKeyArray) -> CriticState:
    """A fresh critic of the reward and of every cost."""
    critic = Critic.create(cmdp.observation_size, 1 + len(cmdp.cost_names), key, hidden=config.hidden)
    return CriticState(critic, optax.adam(config.critic_learning_rate).init(eqx.filter(critic, eqx.is_array)))


def assess(
    kind: CriticKind, state: CriticState, normalizer: Normalizer, trajectory: Trajectory, cmdp: CMDP, smoothing: float
) -> Advantages:
    """Advantages of one task's episodes `[episodes, time, ...]`, by the critic as it was before it saw them.

    The linear critic has no before: it is fitted to the Monte Carlo returns of this very batch.
    """
    inputs = normalizer(trajectory.observation)
    last = normalizer(trajectory.last_observation)
    if kind == "neural":
        return advantages(trajectory, state.critic(inputs), state.critic(last), cmdp, smoothing)
    signal = jnp.concatenate([trajectory.reward[..., None], trajectory.costs], -1)
    end = trajectory.terminated | trajectory.truncated
    returns = jax.vmap(discounted_returns, in_axes=(0, 0, None))(signal, end, cmdp.discount)
    both = jnp.concatenate([inputs, last[..., None, :]], axis=-2)
    features = LinearCritic.features(both, cmdp.horizon)
    critic = LinearCritic.fit(features[..., :-1, :], returns, trajectory.valid)
    value = critic(features)
    return advantages(trajectory, value[..., :-1, :], value[..., -1, :], cmdp, smoothing)


def drawn_rows(key: PRNGKeyArray, valid: Bool[Array, " rows"], shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Indices of valid rows, uniform and with replacement; those of the unpadded data with the same key.

    The k-th valid row is where the running count of valid rows first exceeds k.
    """
    running = jnp.cumsum(valid)
    return jnp.searchsorted(running, jax.random.randint(key, shape, 0, jnp.maximum(running[-1], 1)), side="right")


def learn(
    config: CriticConfig,
    state: CriticState,
    normalizer: Normalizer,
    observations: Float[Array, "*batch observation"],
    targets: Float[Array, "*batch signals"],
    key: PRNGKeyArray,
    steps: int,
    valid: Bool[Array, "*batch"] | None = None,
) -> CriticState:
    """`steps` Adam steps of the neural critic on the mean squared error in units of its scale.

    Minibatches are drawn with replacement, from the `valid` rows only.
    """
    if config.critic == "linear":
        return state
    optimizer = optax.adam(config.critic_learning_rate)
    x = observations.reshape(-1, observations.shape[-1])
    y = targets.reshape(-1, targets.shape[-1])
    chosen = drawn_rows(key, jnp.ones(x.shape[0], bool) if valid is None else valid.ravel(), (steps, config.minibatch))

    def loss(critic: Critic, rows: Array) -> Array:
        return jnp.mean(((critic(normalizer(x[rows])) - y[rows]) / critic.scale) ** 2)

    arrays, static = eqx.partition(state, eqx.is_array)

    def advance(arrays: CriticState, rows: Array) -> tuple[CriticState, None]:
        now = eqx.combine(arrays, static)
        updates, moments = optimizer.update(eqx.filter_grad(loss)(now.critic, rows), now.optimizer)
        return eqx.filter(CriticState(eqx.apply_updates(now.critic, updates), moments), eqx.is_array), None

    arrays, _ = jax.lax.scan(advance, arrays, chosen)
    return eqx.combine(arrays, static)
