"""Lagrange multipliers, one per cost, and objectives that weigh the reward against costs.

The Lagrangian of `max J_r subject to J_ci <= d_i` is `J_r - sum_i lambda_i (J_ci - d_i)`. A learner climbs it in the
policy and, once per batch, descends it in `lambda >= 0`: a multiplier grows while its cost is above the limit and
shrinks while it is below. The policy's objective is divided by `1 + sum_i lambda_i`, which leaves its maximum where it
is and its size bounded (Stooke, Achiam, Abbeel 2020, section 5; so do OmniSafe and Safety Starter Agents).
"""

from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from safemeta.algorithms.settings import one_of, positive, zero_or_more
from safemeta.algorithms.surrogate import Samples


@dataclass(frozen=True)
class LagrangeConfig:
    """Settings of the multipliers; the rate, the start and Adam are OmniSafe's (PPO-Lagrangian, TRPO-Lagrangian).

    OmniSafe divides the reward's advantage by its standard deviation over the batch. That vanishes as a policy becomes
    deterministic, so that the price of a cost runs away from a multiplier that follows it; here it is a switch.
    """

    multiplier_update: Literal["adam", "gradient"] = "adam"  # "gradient": projected gradient, in the limit's unit
    multiplier_learning_rate: float = 0.035  # per iteration
    initial_multiplier: float = 0.001  # price of a unit of cost before the first update
    largest_multiplier: float = 1000.0  # multipliers rest there
    multiplier_damping: float = 0.0  # what is added to a multiplier per unit of present violation: a PID's P
    standardize_reward: bool = False  # prices in standard deviations of the reward's advantage

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        one_of(self, "multiplier_update", ("adam", "gradient"))
        positive(self, "multiplier_learning_rate", "largest_multiplier")
        zero_or_more(self, "initial_multiplier", "multiplier_damping")
        if self.initial_multiplier > self.largest_multiplier:
            raise ValueError(
                f"initial_multiplier must not exceed largest_multiplier, {self.largest_multiplier}; "
                f"got {self.initial_multiplier}."
            )


class Multipliers(eqx.Module):
    """The multipliers and the state of their optimizer (kept, though unused, with projected gradients)."""

    value: Float[Array, " costs"]
    optimizer: Any


def init_multipliers(config: LagrangeConfig, costs: int) -> Multipliers:
    """All multipliers at `initial_multiplier`."""
    value = jnp.zeros(costs) + config.initial_multiplier
    return Multipliers(value, optax.adam(config.multiplier_learning_rate).init(value))


def advance(config: LagrangeConfig, multipliers: Multipliers, violations: Float[Array, " costs"]) -> Multipliers:
    """One step of descent on the Lagrangian, whose gradient is `-violations`, projected to `[0, largest_multiplier]`.

    With "gradient": `lambda + rate violation`. With "adam" only the violation's size relative to its own past counts,
    so that one rate does for costs of any scale.
    """
    optimizer = multipliers.optimizer
    if config.multiplier_update == "adam":
        move, optimizer = optax.adam(config.multiplier_learning_rate).update(-violations, optimizer)
    else:
        move = config.multiplier_learning_rate * violations
    value: Any = optax.apply_updates(multipliers.value, move)
    return Multipliers(jnp.clip(value, 0, config.largest_multiplier), optimizer)


def priced(
    config: LagrangeConfig, multipliers: Multipliers, samples: Samples, violations: Float[Array, " costs"]
) -> tuple[Multipliers, Samples]:
    """The next multipliers, and the samples whose objective is the Lagrangian at their prices."""
    following = advance(config, multipliers, violations)
    return following, lagrangian(config, samples, prices(config, following, violations))


def prices(
    config: LagrangeConfig, multipliers: Multipliers, violations: Float[Array, " costs"]
) -> Float[Array, " costs"]:
    """What the policy's objective pays per unit of cost: the multipliers plus the damping, projected again.

    Descent and ascent that only follow each other go round in circles about a saddle point; a part in proportion to the
    violation itself damps them (Stooke, Achiam, Abbeel 2020).
    """
    damped = multipliers.value + config.multiplier_damping * violations
    return jnp.clip(damped, 0, config.largest_multiplier)


def lagrangian(config: LagrangeConfig, samples: Samples, price: Float[Array, " costs"]) -> Samples:
    """Samples `[tasks, ...]` with the advantage `(A - sum_i price_i A_ci) / (1 + sum_i price_i)`, costs weighted.

    With `standardize_reward`, A is divided by its standard deviation over all tasks first, so that prices do not depend
    on the reward's scale.
    """
    reward = jnp.ones(())
    if config.standardize_reward:
        squares = jnp.sum(samples.reward_weight * samples.advantage**2, axis=(-2, -1))
        reward = 1 / (jnp.sqrt(squares.mean()) + 1e-8)
    total = 1 + jnp.sum(price)
    return jax.vmap(lambda one: weighed(one, reward / total, price / total))(samples)


def weighed(samples: Samples, reward: Float[Array, ""], costs: Float[Array, " costs"]) -> Samples:
    """One task's samples whose objective is `reward E[A] - sum_i costs_i E_w[A_ci]`.

    `E_w` is the mean under the weights of the limits (`discount^t` for discounted ones), relative to those of the
    reward: an advantage in a late step changes a discounted cost by little. Where both are uniform the new advantage is
    plainly `reward A - sum_i costs_i A_ci`.
    """
    share = samples.cost_weight / jnp.sum(samples.cost_weight)
    relative = jnp.where(samples.valid, share / jnp.where(samples.valid, samples.reward_weight, 1), 0)
    advantage = reward * samples.advantage - relative * (samples.cost_advantages @ costs)
    return eqx.tree_at(lambda s: s.advantage, samples, advantage)
