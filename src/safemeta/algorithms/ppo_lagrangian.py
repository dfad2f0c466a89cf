"""PPO-Lagrangian: PPO's clipped objective on the reward less the costs at the prices of their multipliers.

Schulman et al. 2017 for PPO; Ray, Achiam, Amodei 2019 for the pair.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.critics import drawn_rows
from safemeta.algorithms.lagrange import LagrangeConfig, Multipliers, init_multipliers, priced
from safemeta.algorithms.on_policy import Batch, OnPolicyAlgorithm, OnPolicyConfig, State
from safemeta.algorithms.settings import at_least_one, positive
from safemeta.algorithms.surrogate import Samples
from safemeta.core import CMDP
from safemeta.nets import DiagonalGaussian, GaussianPolicy, parameters, with_parameters

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}


@dataclass(frozen=True)
class Config(OnPolicyConfig, LagrangeConfig):
    """Settings of `ppo-lagrangian`."""

    clip: float = 0.2  # of the importance ratio
    policy_learning_rate: float = 3e-4  # of Adam on the policy
    policy_steps: int = 400  # minibatches of the policy per iteration
    kl_limit: float = 0.02  # once the KL of a minibatch is above, the policy rests until the next iteration
    largest_gradient: float = 0.5  # global norm to which gradients are clipped

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        OnPolicyConfig.validate(self)
        LagrangeConfig.validate(self)
        at_least_one(self, "policy_steps")
        positive(self, "policy_learning_rate", "kl_limit", "largest_gradient")
        if not 0 < self.clip < 1:
            raise ValueError(f"clip must lie strictly between 0 and 1, not {self.clip}.")


class PPOState(State):
    """The policy, its critics, the multipliers, and the moments of the policy's optimizer."""

    multipliers: Multipliers
    optimizer: Any


def step(config: Config, state: PPOState, batch: Batch, key: PRNGKeyArray) -> tuple[PPOState, Metrics]:
    """Multipliers first, then the policy at the new prices."""
    multipliers, samples = priced(config, state.multipliers, batch.samples, batch.violations)
    policy, optimizer, metrics = clipped_update(config, state.policy, state.optimizer, samples, key)
    following = eqx.tree_at(lambda s: (s.policy, s.multipliers, s.optimizer), state, (policy, multipliers, optimizer))
    return following, metrics | {"multiplier": multipliers.value}


def clipped_objective(
    new: DiagonalGaussian,
    action: Float[Array, "rows action"],
    log_prob: Float[Array, " rows"],
    advantage: Float[Array, " rows"],
    clip: float,
) -> Float[Array, ""]:
    """`mean min(rho A, clip(rho, 1 - clip, 1 + clip) A)`, eq. 7 of PPO, with `rho = pi_new / pi_old`."""
    ratio = jnp.exp(new.log_prob(action) - log_prob)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage).mean()


def clipped_update(
    config: Config, policy: GaussianPolicy, optimizer: Any, samples: Samples, key: PRNGKeyArray
) -> tuple[GaussianPolicy, Any, Metrics]:
    """`policy_steps` steps of Adam on minibatches of valid rows, until their KL exceeds `kl_limit`.

    Advantages are divided by their standard deviation over the whole batch; they are centred already.
    """
    old = jax.lax.stop_gradient(policy(samples.observation))
    # Rows are drawn alike, so an advantage carries its row's weight, relative to the mean weight.
    total = samples.valid.sum()
    advantage = samples.advantage * samples.reward_weight * total / samples.valid.shape[0]
    spread = jnp.sqrt(jnp.sum(jnp.where(samples.valid, advantage**2, 0)) / total)
    data = (samples.observation, samples.action, samples.log_prob, advantage / (spread + 1e-8), old)
    batch_axes = samples.valid.ndim
    data = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[batch_axes:]), data)
    transform = _optimizer(config)

    def loss(x: Array, rows: Any) -> tuple[Array, Array]:
        observation, action, log_prob, wanted, before = rows
        new = with_parameters(policy, x)(observation)
        return -clipped_objective(new, action, log_prob, wanted, config.clip), new.kl(before).mean()

    def move(carried: tuple[Array, Any, Array], chosen: Array) -> tuple[tuple[Array, Any, Array], Array]:
        x, moments, resting = carried
        slope, kl = jax.grad(loss, has_aux=True)(x, jax.tree.map(lambda leaf: leaf[chosen], data))
        resting = resting | (kl > config.kl_limit)
        change, moved = transform.update(slope, moments, x)
        following = jax.tree.map(
            lambda now, new: jnp.where(resting, now, new), (x, moments), (optax.apply_updates(x, change), moved)
        )
        return (*following, resting), ~resting

    chosen = drawn_rows(key, samples.valid.ravel(), (config.policy_steps, config.minibatch))
    start = parameters(policy)
    (x, optimizer, _), taken = jax.lax.scan(move, (start, optimizer, jnp.asarray(False)), chosen)
    moved = with_parameters(policy, x)
    kl = moved(samples.observation).kl(policy(samples.observation))
    kl = jnp.sum(jnp.where(samples.valid, kl, 0)) / total
    return moved, optimizer, {"kl": kl, "policy_steps": taken.sum().astype(kl.dtype)}


def _optimizer(config: Config) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(config.largest_gradient), optax.adam(config.policy_learning_rate))


class Algorithm(OnPolicyAlgorithm):
    """See the module's docstring."""

    step = staticmethod(step)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> PPOState:
        start = super().init(key, cmdp)
        multipliers = init_multipliers(self.config, len(cmdp.cost_names))
        moments = _optimizer(self.config).init(parameters(start.policy))
        return PPOState(start.policy, start.critics, multipliers, moments)
