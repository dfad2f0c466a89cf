"""SAC-Lagrangian: a soft actor-critic that pays for its costs at the prices of their Lagrange multipliers.

`max_pi min_{lambda >= 0} J_r - sum_i lambda_i (J_ci - d_i)`: the policy pays `sum_i lambda_i Q_ci(s, a)`, each cost
critic regressing on `c_i + gamma (1 - terminated) Q_ci'(s', a')`; once per iteration the multipliers follow the
measured costs. One number per cost for all states, where `fac` has a multiplier for each.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.descent import descent, followed
from safemeta.algorithms.lagrange import LagrangeConfig, Multipliers, advance, init_multipliers, prices
from safemeta.algorithms.off_policy import OffPolicyAlgorithm, every
from safemeta.algorithms.replay import Batch
from safemeta.algorithms.sac import (
    FAST,
    SacConfig,
    SacLearner,
    SacState,
    critic_step,
    init_actor_critic,
    policy_step,
    regress,
)
from safemeta.core import Transition
from safemeta.nets import ActionValue

ITERATIONS = {"smoke": 2, "default": 100, "paper": 750}


@dataclass(frozen=True)
class Config(LagrangeConfig, SacConfig):
    """Settings of `sac-lagrangian`."""

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        SacConfig.validate(self)
        LagrangeConfig.validate(self)


PRESETS = {"fast": Config(**FAST)}


class State(SacState):
    """Actor-critic, a critic and a target per cost, multipliers."""

    critics: tuple[ActionValue, ...]
    targets: tuple[ActionValue, ...]
    optimizers: tuple[Any, ...]
    multipliers: Multipliers
    price: Float[Array, " costs"]  # what the policy pays


@dataclass(frozen=True)
class LagrangianLearner(SacLearner):
    """See the module's docstring."""

    config: Config

    def init(self, key: PRNGKeyArray) -> State:
        config, cmdp = self.config, self.cmdp
        actor_key, *keys = jax.random.split(key, 1 + len(cmdp.cost_names))
        critics, optimizers = zip(*(self.further_critic(k) for k in keys), strict=True)
        multipliers = init_multipliers(config, len(cmdp.cost_names))
        return State(
            actor=init_actor_critic(config, cmdp, actor_key),
            count=jnp.zeros((), jnp.int32),
            critics=critics,
            targets=jax.tree.map(lambda leaf: leaf, critics),
            optimizers=optimizers,
            multipliers=multipliers,
            price=multipliers.value,
        )

    def update(self, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """One step of all critics and, every `policy_interval`, of the policy and the target networks."""
        config, discount = self.config, self.cmdp.discount
        critic_key, cost_key, policy_key = jax.random.split(key, 3)
        actor, metrics = critic_step(config, discount, state.actor, batch, critic_key)
        targets = cost_targets(discount, state, batch, cost_key)
        optimizer = descent(config.critic_rate, config.gradient_clip)
        moved = [
            regress(optimizer, critic, own, batch, targets[:, index])
            for index, (critic, own) in enumerate(zip(state.critics, state.optimizers, strict=True))
        ]
        critics, optimizers, losses = zip(*moved, strict=True)
        metrics["cost_critic_loss"] = jnp.stack(losses).mean()
        state = eqx.tree_at(
            lambda s: (s.actor, s.critics, s.optimizers, s.count), state, (actor, critics, optimizers, state.count + 1)
        )
        count = state.count - 1
        state, paid = every(config.policy_interval, count, lambda s: self._policy(s, batch, policy_key), state)
        return state, metrics | paid

    def _policy(self, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        def price(observation: Array, action: Array) -> Array:
            costs = jnp.stack([critic(observation, action) for critic in state.critics], axis=-1)
            return costs @ state.price

        actor, metrics = policy_step(self.config, state.actor, price, batch, key)
        targets = followed(self.config.polyak, state.targets, state.critics)
        return eqx.tree_at(lambda s: (s.actor, s.targets), state, (actor, targets)), metrics

    def watch(self, state: State, step: Transition) -> Metrics:
        return {}

    def conclude(self, state: State, violations: Float[Array, "rows costs"]) -> tuple[State, Metrics]:
        """The multipliers' step."""
        violations = violations.mean(0)
        multipliers = advance(self.config, state.multipliers, violations)
        price = prices(self.config, multipliers, violations)
        metrics = {"multiplier": multipliers.value, "temperature": jnp.exp(state.actor.log_temperature)}
        return eqx.tree_at(lambda s: (s.multipliers, s.price), state, (multipliers, price)), metrics


def cost_targets(discount: float, state: State, batch: Batch, key: PRNGKeyArray) -> Float[Array, "batch costs"]:
    """`c + gamma (1 - terminated) Q_c'(s', a')`, a' drawn from the policy."""
    action, _ = state.policy.sample(batch.next_observation, key)
    values = jnp.stack([target(batch.next_observation, action) for target in state.targets], axis=-1)
    return batch.costs + discount * jnp.where(batch.terminated[:, None], 0, values)


class Algorithm(OffPolicyAlgorithm):
    """See the module's docstring."""

    learner = LagrangianLearner

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
