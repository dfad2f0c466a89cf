"""Soft actor-critic (Haarnoja et al. 2018) with a price on actions: what `fac-sis`, `fac` and `sac-lagrangian` share.

Twin critics regress on `y = r + gamma (1 - terminated) (min_i Q_i'(s', a') - alpha log pi(a'|s'))`, a' drawn from the
policy, Q' slow copies. The policy descends `E[alpha log pi(a|s) - min_i Q_i(s, a) + price(s, a)]` through a
reparameterised action, and `log alpha` descends `-log alpha (log pi + H)`, H minus the number of action dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.descent import Rate, check_rate, descend, descent, followed, fresh
from safemeta.algorithms.off_policy import OffPolicyConfig
from safemeta.algorithms.replay import Batch
from safemeta.algorithms.settings import at_least_one, positive
from safemeta.core import CMDP
from safemeta.nets import ActionValue, SquashedPolicy

Price = Callable[[Float[Array, "batch observation"], Float[Array, "batch action"]], Float[Array, " batch"]]


@dataclass(frozen=True)
class SacConfig(OffPolicyConfig):
    """Settings of the actor-critic; defaults as in FAC-SIS (Table 4), the steps of the rates from its released code."""

    policy_rate: Rate = (3e-5, 1e-6, 1_000_000)  # of Adam: from, to, over how many of its steps
    critic_rate: Rate = (8e-5, 1e-6, 2_000_000)  # the same of the critics
    temperature_rate: Rate = (8e-5, 8e-6, 1_000_000)  # the same of the temperature's logarithm
    policy_interval: int = 3  # gradient steps of the critics per one of policy, temperature and target networks
    polyak: float = 0.005  # step of the target networks towards the critics
    initial_temperature: float = 1.0  # weight of the entropy in the policy's objective
    action_scale: float = 1.0  # actions reach from -scale to scale; environments clip them to [-1, 1]
    gradient_clip: float = 10.0  # global norm (released code; the paper's eq. 10 has 1)

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        at_least_one(self, "policy_interval")
        positive(self, "initial_temperature", "action_scale", "gradient_clip")
        if not 0 < self.polyak <= 1:
            raise ValueError(f"polyak must be above 0 and at most 1, not {self.polyak}.")
        for name, value in vars(self).items():
            if isinstance(value, tuple) and name.endswith("_rate"):
                check_rate(name, value)


class SoftActorCritic(eqx.Module):
    """Networks and optimizers of the actor-critic."""

    policy: SquashedPolicy
    critics: tuple[ActionValue, ActionValue]
    targets: tuple[ActionValue, ActionValue]
    log_temperature: Float[Array, ""]
    policy_optimizer: Any
    critic_optimizer: Any
    temperature_optimizer: Any


def init_actor_critic(config: SacConfig, cmdp: CMDP, key: PRNGKeyArray) -> SoftActorCritic:
    """Fresh networks; the targets begin as copies."""
    policy_key, *critic_keys = jax.random.split(key, 3)
    sizes = cmdp.observation_size, cmdp.action_size
    shape = {"hidden": config.hidden, "scale": config.action_scale}
    policy = SquashedPolicy.create(*sizes, policy_key, **shape)
    first, second = (ActionValue.create(*sizes, k, **shape) for k in critic_keys)
    critics, log_temperature = (first, second), jnp.log(jnp.asarray(config.initial_temperature))
    return SoftActorCritic(
        policy,
        critics,
        jax.tree.map(lambda leaf: leaf, critics),
        log_temperature,
        fresh(descent(config.policy_rate, config.gradient_clip), policy),
        tuple(fresh(descent(config.critic_rate, config.gradient_clip), critic) for critic in critics),
        fresh(descent(config.temperature_rate, config.gradient_clip), log_temperature),
    )


def soft_targets(discount: float, actor: SoftActorCritic, batch: Batch, key: PRNGKeyArray) -> Float[Array, " batch"]:
    """Y of the critics; episodes that only ran out of time bootstrap."""
    action, log_prob = actor.policy.sample(batch.next_observation, key)
    first, second = (target(batch.next_observation, action) for target in actor.targets)
    value = jnp.minimum(first, second) - jnp.exp(actor.log_temperature) * log_prob
    return batch.reward + discount * jnp.where(batch.terminated, 0, value)


def critic_step(
    config: SacConfig, discount: float, actor: SoftActorCritic, batch: Batch, key: PRNGKeyArray
) -> tuple[SoftActorCritic, Metrics]:
    """Both critics, towards the same target: `1/2 E[(Q - y)^2]`."""
    target = soft_targets(discount, actor, batch, key)
    optimizer = descent(config.critic_rate, config.gradient_clip)
    moved, states, losses = [], [], []
    for critic, state in zip(actor.critics, actor.critic_optimizer, strict=True):
        critic, state, loss = regress(optimizer, critic, state, batch, target)
        moved.append(critic)
        states.append(state)
        losses.append(loss)
    actor = eqx.tree_at(lambda a: (a.critics, a.critic_optimizer), actor, (tuple(moved), tuple(states)))
    return actor, {"critic_loss": (losses[0] + losses[1]) / 2, "value": batch.mean(target)}


def regress(
    optimizer: optax.GradientTransformation, critic: ActionValue, state: Any, batch: Batch, target: Array
) -> tuple[ActionValue, Any, Array]:
    """One step of a critic on `1/2 E[(Q(s, a) - target)^2]`, `target[batch]`: the critic, its optimizer, the loss."""

    def loss(critic: ActionValue) -> Array:
        return 0.5 * batch.mean((critic(batch.observation, batch.action) - target) ** 2)

    value, gradient = eqx.filter_value_and_grad(loss)(critic)
    return *descend(optimizer, gradient, state, critic), value


def policy_loss(
    policy: SquashedPolicy, actor: SoftActorCritic, price: Price, batch: Batch, key: PRNGKeyArray
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
    """`E[alpha log pi(a|s) - min Q(s, a) + price(s, a)]`, and mean log-density and price."""
    action, log_prob = policy.sample(batch.observation, key)
    first, second = (critic(batch.observation, action) for critic in actor.critics)
    paid = price(batch.observation, action)
    loss = jnp.exp(actor.log_temperature) * log_prob - jnp.minimum(first, second) + paid
    return batch.mean(loss), (batch.mean(log_prob), batch.mean(paid))


def policy_step(
    config: SacConfig, actor: SoftActorCritic, price: Price, batch: Batch, key: PRNGKeyArray
) -> tuple[SoftActorCritic, Metrics]:
    """Policy, temperature and targets."""
    (loss, (log_prob, paid)), gradient = eqx.filter_value_and_grad(policy_loss, has_aux=True)(
        actor.policy, actor, price, batch, key
    )
    policy, policy_state = descend(
        descent(config.policy_rate, config.gradient_clip), gradient, actor.policy_optimizer, actor.policy
    )
    entropy = -float(batch.action.shape[-1])
    log_temperature, temperature_state = descend(
        descent(config.temperature_rate, config.gradient_clip),
        -(log_prob + entropy),
        actor.temperature_optimizer,
        actor.log_temperature,
    )
    targets = followed(config.polyak, actor.targets, actor.critics)
    actor = SoftActorCritic(
        policy, actor.critics, targets, log_temperature, policy_state, actor.critic_optimizer, temperature_state
    )
    return actor, {"policy_loss": loss, "entropy": -log_prob, "price": paid}


FAST: dict[str, Any] = {  # for runs of minutes: small networks, rates ten times the paper's and more
    "hidden": (64, 64),
    "capacity": 200_000,
    "warm_up": 1000,
    "policy_interval": 2,
    "policy_rate": (3e-4, 1e-4, 100_000),
    "critic_rate": (3e-4, 1e-4, 200_000),
    "temperature_rate": (3e-4, 3e-4, 100_000),
}


class SacState(eqx.Module):
    """What every learner on the actor-critic has."""

    actor: SoftActorCritic
    count: Int[Array, ""]  # gradient steps of the critics

    @property
    def policy(self) -> SquashedPolicy:
        """The actor's."""
        return self.actor.policy


@dataclass(frozen=True)
class SacLearner:
    """An actor-critic that pays for its actions; how much is a subclass's affair."""

    config: SacConfig
    cmdp: CMDP

    def further_critic(self, key: PRNGKeyArray) -> tuple[ActionValue, Any]:
        """A fresh critic beside the twins, and its optimizer's state."""
        config, cmdp = self.config, self.cmdp
        shape = {"hidden": config.hidden, "scale": config.action_scale}
        critic = ActionValue.create(cmdp.observation_size, cmdp.action_size, key, **shape)
        return critic, fresh(descent(config.critic_rate, config.gradient_clip), critic)

    def act(
        self, state: SacState, observation: Float[Array, "rows observation"], key: PRNGKeyArray
    ) -> Float[Array, "rows action"]:
        """Draws."""
        return state.policy.sample(observation, key)[0]
