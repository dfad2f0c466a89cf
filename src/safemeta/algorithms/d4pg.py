"""D4PG (Barth-Maron et al. 2018) on the shaped reward `r - sum_i lambda_i c_i`, with or without constraints.

`d4pg`, `rs-d4pg`, `rc-d4pg` and `metal` differ in the multipliers alone: none, fixed, learned, or learned at a rate
that is learned itself.

The critic gives the distribution of the return on fixed atoms and descends the cross-entropy to the projected
distribution of `R - lambda C + gamma^n Z_T(s_n, pi_T(s_n))` (n-step sums; T: target networks, copies that are renewed
every so many steps). The policy ascends the critic's mean. Rewards and costs are replayed apart, so that what was seen
under an old multiplier is priced anew.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.categorical import Support, cross_entropy
from safemeta.algorithms.d4pg_config import (
    FAST,
    FAST_MULTIPLIER_RATE,
    ConstrainedConfig,
    D4pgConfig,
    FixedConfig,
    support_doubt,
)
from safemeta.algorithms.descent import descend, fresh
from safemeta.algorithms.descent import descent as descent_at
from safemeta.algorithms.n_step import MultiStepBatch, SequenceReplay
from safemeta.algorithms.off_policy import LOSSES, OffPolicyAlgorithm, every
from safemeta.algorithms.off_policy import State as TrainingState
from safemeta.algorithms.prioritised import PrioritisedReplay
from safemeta.core import CMDP, InteractiveWorld, Tasks, Transition
from safemeta.nets import MLP, CategoricalValue, DeterministicPolicy

PENALTY = 1000.0  # kappa: return that a unit of overshoot costs (MetaL, section 5)
ITERATIONS = {"smoke": 2, "default": 100, "paper": 2500}  # paper: 20,000 episodes, 8 in an iteration
PRESETS = {"fast": D4pgConfig(**FAST)}
FIXED_PRESETS = {"fast": FixedConfig(**FAST)}
CONSTRAINED_PRESETS = {"fast": ConstrainedConfig(**FAST, multiplier_rate=FAST_MULTIPLIER_RATE)}


class Penalties(eqx.Module):
    """The last episodes' costs less their limits, in the unit that the limits bound."""

    excess: Float[Array, "episodes costs"]
    count: Int[Array, ""]  # episodes so far

    @staticmethod
    def create(episodes: int, costs: int) -> "Penalties":
        """Room for so many episodes, none as yet."""
        return Penalties(jnp.zeros((episodes, costs)), jnp.zeros((), jnp.int32))

    def add(self, rows: Float[Array, "rows costs"]) -> "Penalties":
        """These episodes in the place of the oldest."""
        size, kept = self.excess.shape[0], rows[-self.excess.shape[0] :]
        places = (self.count + jnp.arange(kept.shape[0])) % size
        return Penalties(self.excess.at[places].set(kept), self.count + kept.shape[0])

    def draw(self, key: PRNGKeyArray) -> Float[Array, " costs"]:
        """One of them; zero, which moves nothing, before the first."""
        held = jnp.minimum(self.count, self.excess.shape[0])
        drawn = self.excess[jax.random.randint(key, (), 0, jnp.maximum(held, 1))]
        return jnp.where(held > 0, drawn, 0)


class State(eqx.Module):
    """Networks, their targets and optimizers, and what the costs are priced at."""

    policy: DeterministicPolicy
    critic: CategoricalValue
    target_policy: DeterministicPolicy
    target_critic: CategoricalValue
    policy_optimizer: Any
    critic_optimizer: Any
    count: Int[Array, ""]  # gradient steps
    multiplier: Float[Array, " costs"]
    penalties: Penalties | None = None  # none where multipliers are not learned
    log_rate: Float[Array, " costs"] | None = None  # alpha_lambda of `metal`
    shaping: MLP | None = None  # of `mesh-like`
    meta_optimizer: Any = None


def renewed(state: State) -> tuple[State, Metrics]:
    """The state whose target networks are copies of the networks."""
    return eqx.tree_at(lambda s: (s.target_policy, s.target_critic), state, (state.policy, state.critic)), {}


@dataclass(frozen=True)
class D4pgLearner:
    """See the module's docstring: multipliers stay as they are."""

    config: D4pgConfig
    cmdp: CMDP

    def init(self, key: PRNGKeyArray) -> State:
        config, cmdp = self.config, self.cmdp
        policy_key, critic_key = jax.random.split(key)
        sizes = cmdp.observation_size, cmdp.action_size
        policy = DeterministicPolicy.create(*sizes, policy_key, hidden=config.hidden)
        critic = CategoricalValue.create(*sizes, config.atoms, critic_key, hidden=config.critic_hidden)
        return State(
            policy,
            critic,
            jax.tree.map(jnp.copy, policy),
            jax.tree.map(jnp.copy, critic),
            fresh(descent(config, config.policy_rate), policy),
            fresh(descent(config, config.critic_rate), critic),
            jnp.zeros((), jnp.int32),
            config.multipliers(len(cmdp.cost_names)),
        )

    def act(
        self, state: State, observation: Float[Array, "rows observation"], key: PRNGKeyArray
    ) -> Float[Array, "rows action"]:
        action = state.policy(observation)
        return jnp.clip(action + self.config.noise * jax.random.normal(key, action.shape, action.dtype), -1, 1)

    def update(self, state: State, batch: MultiStepBatch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """The policy's step on the critic as it was, the multipliers' and the critic's; target networks when due."""
        policy, optimizer, policy_metrics = policy_step(self.config, state, self.training(batch))
        state = eqx.tree_at(lambda s: (s.policy, s.policy_optimizer), state, (policy, optimizer))
        state, metrics = self.appraise(state, batch, key)
        state = eqx.tree_at(lambda s: s.count, state, state.count + 1)
        state, _ = every(self.config.target_period, state.count, renewed, state)
        return state, metrics | policy_metrics

    def training(self, batch: MultiStepBatch) -> MultiStepBatch:
        """The part of a batch that the networks learn from."""
        return batch

    def appraise(self, state: State, batch: MultiStepBatch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """The multipliers' step, if they take one, and the critic's at their new prices."""
        step = critic_step(self.config, state, state.multiplier, evidence(self.config, state, batch))
        return eqx.tree_at(lambda s: (s.critic, s.critic_optimizer), state, (step.critic, step.optimizer)), step.metrics

    def watch(self, state: State, step: Transition) -> Metrics:
        return {}

    def conclude(self, state: State, violations: Float[Array, "rows costs"]) -> tuple[State, Metrics]:
        return state, {"multiplier": state.multiplier, "overshoot": jnp.maximum(violations.mean(0), 0)}


@dataclass(frozen=True)
class ConstrainedLearner(D4pgLearner):
    """Multipliers that follow the costs of past episodes, one drawn per gradient step (RC-D4PG)."""

    config: ConstrainedConfig

    def init(self, key: PRNGKeyArray) -> State:
        penalties = Penalties.create(self.config.penalty_episodes, len(self.cmdp.cost_names))
        return eqx.tree_at(lambda s: s.penalties, super().init(key), penalties, is_leaf=lambda leaf: leaf is None)

    def appraise(self, state: State, batch: MultiStepBatch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        excess = drawn_excess(state, key)
        multiplier = multiplier_step(state.multiplier, self.config.multiplier_rate, excess)
        return super().appraise(eqx.tree_at(lambda s: s.multiplier, state, multiplier), batch, key)

    def conclude(self, state: State, violations: Float[Array, "rows costs"]) -> tuple[State, Metrics]:
        _, metrics = super().conclude(state, violations)
        assert state.penalties is not None
        return eqx.tree_at(lambda s: s.penalties, state, state.penalties.add(violations)), metrics


def drawn_excess(state: State, key: PRNGKeyArray) -> Float[Array, " costs"]:
    """`J_C - beta` of an episode of the penalty buffer."""
    assert state.penalties is not None
    return state.penalties.draw(key)


def multiplier_step(
    multiplier: Float[Array, " costs"], rate: Float[Array, " costs"] | float, excess: Float[Array, " costs"]
) -> Float[Array, " costs"]:
    """`lambda' = max(0, lambda - rate (beta - J_C))`: descent of `lambda (beta - J_C)`; `excess` is `J_C - beta`.

    relu, whose derivative at 0 is 0: where the multiplier stays at zero its rate has no effect.
    """
    return jax.nn.relu(multiplier + rate * excess)


class Evidence(eqx.Module):
    """A batch, and the distribution of what the target networks expect beyond it."""

    batch: MultiStepBatch
    probabilities: Float[Array, "batch atoms"]


def evidence(config: D4pgConfig, state: State, batch: MultiStepBatch) -> Evidence:
    """`Z_T(s_n, pi_T(s_n))`."""
    action = state.target_policy(batch.next_observation)
    return Evidence(batch, jax.nn.softmax(state.target_critic(batch.next_observation, action)))


class Fit(eqx.Module):
    """How the critic fits a batch."""

    losses: Float[Array, " batch"]  # each transition's, without weights
    clipped: Float[Array, ""]  # the targets' mass beyond the support


def critic_loss(
    critic: CategoricalValue, multiplier: Float[Array, " costs"], seen: Evidence, support: Support
) -> tuple[Float[Array, ""], Fit]:
    """Cross-entropy to the projected target, times the batch's weights; differentiable in critic and multiplier."""
    batch = seen.batch
    shaped = batch.reward - batch.costs @ multiplier
    values = shaped[:, None] + batch.discount[:, None] * support.values(shaped.dtype)
    target = support.project(values, seen.probabilities)
    losses = cross_entropy(target, critic(batch.observation, batch.action))
    return batch.mean(batch.weight * losses), Fit(losses, batch.mean(support.outside(values, seen.probabilities)))


class CriticStep(eqx.Module):
    """The critic after a step, and the gradient that it followed."""

    critic: CategoricalValue
    optimizer: Any
    gradient: Any
    metrics: Metrics


def critic_step(config: D4pgConfig, state: State, multiplier: Float[Array, " costs"], seen: Evidence) -> CriticStep:
    """One step of Adam on `critic_loss`, differentiable in the multiplier."""
    loss = eqx.filter_value_and_grad(critic_loss, has_aux=True)
    (value, fit), gradient = loss(state.critic, multiplier, seen, config.categories)
    critic, optimizer = descend(descent(config, config.critic_rate), gradient, state.critic_optimizer, state.critic)
    metrics = {"critic_loss": value, "clipped_mass": fit.clipped, LOSSES: fit.losses}
    return CriticStep(critic, optimizer, gradient, metrics)


def descent(config: D4pgConfig, rate: float) -> optax.GradientTransformation:
    """Adam on gradients clipped by their norm.

    The tiny number under Adam's root is far below its epsilon; without it, a parameter whose gradient has always been
    zero would have an infinite derivative, and the meta-gradient be NaN.
    """
    return descent_at(rate, config.gradient_clip, eps_root=1e-30)


def action_loss(
    action: Float[Array, "*batch action"], slope: Float[Array, "*batch action"], largest: float | None
) -> Float[Array, "*batch"]:
    """`|sg(dQ/da + a) - a|^2`, whose gradient is `-2 dQ/da da/dtheta`; the norm of dQ/da is clipped if so wanted."""
    if largest is not None:
        norm = jnp.sqrt(jnp.sum(slope**2, axis=-1, keepdims=True))
        slope = slope * jnp.minimum(1, largest / jnp.maximum(norm, 1e-20))
    return jnp.sum((jax.lax.stop_gradient(slope + action) - action) ** 2, axis=-1)


def policy_step(config: D4pgConfig, state: State, batch: MultiStepBatch) -> tuple[DeterministicPolicy, Any, Metrics]:
    """One step up the critic's mean at the policy's actions."""

    def total(action: Array) -> tuple[Array, Array]:
        values = config.categories.mean(state.critic(batch.observation, action))
        return values.sum(), values

    slope, values = jax.grad(total, has_aux=True)(state.policy(batch.observation))

    def loss(policy: DeterministicPolicy) -> Array:
        return batch.mean(action_loss(policy(batch.observation), slope, config.action_gradient_clip))

    optimizer = descent(config, config.policy_rate)
    policy, optimizer_state = descend(
        optimizer, eqx.filter_grad(loss)(state.policy), state.policy_optimizer, state.policy
    )
    return policy, optimizer_state, {"value": batch.mean(values)}


class Algorithm(OffPolicyAlgorithm):
    """`d4pg`: costs are ignored."""

    learner = D4pgLearner
    settings: type[D4pgConfig] = D4pgConfig

    def __init__(self, config: D4pgConfig | None = None) -> None:
        super().__init__(config or self.settings())

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> TrainingState:
        sentence = support_doubt(self.config, cmdp)
        if sentence:
            warnings.warn(sentence, UserWarning, stacklevel=2)
        return super().init(key, cmdp)

    def iterate_on(
        self, state: TrainingState, world: InteractiveWorld, tasks: Tasks, key: PRNGKeyArray
    ) -> tuple[TrainingState, Metrics]:
        """As of any off-policy learner; `penalised_return` is the return less 1000 times the overshoot of all costs."""
        state, metrics = super().iterate_on(state, world, tasks, key)
        overshoot = [value for name, value in metrics.items() if name.split("/")[0] == "overshoot"]
        return state, metrics | {"penalised_return": metrics["return"] - PENALTY * sum(overshoot)}

    def policy(self, state: TrainingState) -> DeterministicPolicy:
        return state.learner.policy

    def _replay(self, cmdp: CMDP) -> SequenceReplay:
        config = self.config
        rows = config.tasks * config.episodes
        sizes = rows, config.capacity, config.batch, config.n_step, cmdp.discount
        if config.replay == "prioritised":
            return PrioritisedReplay(*sizes, config.priority_exponent, config.importance_exponent)
        return SequenceReplay(*sizes)


class Fixed(Algorithm):
    """`rs-d4pg`: fixed multipliers."""

    settings = FixedConfig


class Constrained(Algorithm):
    """`rc-d4pg`: learned multipliers."""

    learner = ConstrainedLearner
    settings = ConstrainedConfig
