"""TRPO and CPO: one policy for a task or a family, one trust-region step per batch of fresh episodes."""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.critics import CriticState, assess, init_critic, learn
from safemeta.algorithms.directions import constrained_step, directions
from safemeta.algorithms.estimation import episode_return, limited_costs
from safemeta.algorithms.surrogate import (
    Samples,
    Surrogate,
    fisher_metric,
    halves_of,
    make_samples,
    surrogate,
    thinned,
)
from safemeta.core import CMDP, Tasks, Trajectory, World
from safemeta.nets import GaussianPolicy, parameters, with_parameters
from safemeta.solvers import accept_cpo, accept_trpo, backtrack


@dataclass(frozen=True)
class TrustRegionConfig:
    """Settings that TRPO (Schulman et al. 2015) and CPO (Achiam et al. 2017) share; values as usual in the field."""

    tasks: int = 10  # tasks per iteration, drawn anew each time
    episodes: int = 10  # episodes per task
    hidden: tuple[int, ...] = (64, 64)  # tanh layers of policy and critics
    deviation: Literal["free", "state"] = "free"  # standard deviation: one vector, or an output of the network
    initial_log_std: float = -0.5
    kl_radius: float = 0.01  # mean KL of one step
    critic: Literal["neural", "linear"] = "neural"
    critic_learning_rate: float = 1e-3
    critic_steps: int = 80  # minibatches per iteration
    minibatch: int = 500
    gae_smoothing: float = 0.95  # lambda of generalised advantage estimation
    cg_iterations: int = 10
    damping: float = 1e-2  # of the Fisher metric
    fisher_states: int = 5000  # states of the Fisher metric
    margin: float = 0.0  # CPO aims this share of the limit below it
    cross_fit: bool = False  # predict effects across halves of the episodes (directions.py)

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        for name in ("tasks", "episodes", "critic_steps", "minibatch", "cg_iterations", "fisher_states"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("kl_radius", "critic_learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, not {value}.")
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping must be a number that is zero or more, not {self.damping}.")
        if not math.isfinite(self.initial_log_std):
            raise ValueError(f"initial_log_std must be a finite number, not {self.initial_log_std}.")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin is a share of the limit: at least 0 and below 1, not {self.margin}.")
        if not 0 <= self.gae_smoothing <= 1:
            raise ValueError(f"gae_smoothing must lie between 0 and 1, not {self.gae_smoothing}.")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must name at least one layer of one unit or more, not {self.hidden}.")
        if self.cross_fit and self.episodes < 2:
            raise ValueError("cross_fit needs at least 2 episodes per task; got episodes = 1.")


class State(eqx.Module):
    """The policy and its critics."""

    policy: GaussianPolicy
    critics: CriticState


class TrustRegionAlgorithm:
    """TRPO where `constrained` is False (costs are logged and ignored), CPO where it is True."""

    constrained: bool = False

    def __init__(self, config: TrustRegionConfig) -> None:
        self.config = config
        config.validate()

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> State:
        policy_key, critic_key = jax.random.split(key)
        policy = GaussianPolicy.create(
            cmdp.observation_size,
            cmdp.action_size,
            policy_key,
            hidden=self.config.hidden,
            deviation=self.config.deviation,
            initial_log_std=self.config.initial_log_std,
        )
        return State(policy, init_critic(self.config, cmdp, critic_key))

    def iterate(self, state: State, world: World, key: PRNGKeyArray) -> tuple[State, Metrics]:
        return _iterate(self.config, self.constrained, world, state, key)

    def iterate_on(self, state: State, world: World, tasks: Tasks, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """One iteration on given tasks; with a functional world it may be vmapped over states and tasks."""
        return iterate_on(self.config, self.constrained, world, state, tasks, key)

    def policy(self, state: State) -> GaussianPolicy:
        return state.policy

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        """Environment steps of one iteration."""
        return self.config.tasks * self.config.episodes * cmdp.horizon


@eqx.filter_jit
def _iterate(
    config: TrustRegionConfig, constrained: bool, world: World, state: State, key: PRNGKeyArray
) -> tuple[State, Metrics]:
    task_key, key = jax.random.split(key)
    return iterate_on(config, constrained, world, state, world.sample(task_key, config.tasks, "train"), key)


def iterate_on(
    config: TrustRegionConfig, constrained: bool, world: World, state: State, tasks: Tasks, key: PRNGKeyArray
) -> tuple[State, Metrics]:
    """Collect, take one step, fit the critics, update the normaliser."""
    cmdp = world.cmdp
    collect_key, critic_key = jax.random.split(key)
    rows = world.collect(state.policy, tasks, collect_key, config.episodes)
    advantages = jax.vmap(
        lambda r: assess(config.critic, state.critics, state.policy.normalizer, r, cmdp, config.gae_smoothing)
    )(rows)
    samples = jax.vmap(lambda r, a: make_samples(r, a, cmdp))(rows, advantages)
    costs = limited_costs(rows, cmdp).mean(1)
    violations = (costs - (1 - config.margin) * tasks.limits).mean(0)
    policy, step_metrics = trust_region_update(config, constrained, state.policy, samples, violations)
    critics = learn(
        config,
        state.critics,
        state.policy.normalizer,
        rows.observation,
        advantages.target,
        critic_key,
        config.critic_steps,
    )
    policy = eqx.tree_at(lambda p: p.normalizer, policy, policy.normalizer.merge(rows.observation))
    return State(policy, critics), _metrics(cmdp, tasks, rows, costs, policy) | step_metrics


def _metrics(
    cmdp: CMDP, tasks: Tasks, rows: Trajectory, costs: Float[Array, "tasks costs"], policy: GaussianPolicy
) -> Metrics:
    metrics = {
        "return": episode_return(rows).mean(),
        "cost": costs[:, 0].mean(),
        "largest_cost": costs[:, 0].max(),
        "limit": tasks.limits[0, 0],
        "log_std": policy.network.log_std.mean(),
    }
    for index, name in enumerate(cmdp.cost_names[1:], 1):
        metrics[f"cost/{name}"] = costs[:, index].mean()
    return metrics


def trust_region_update(
    config: TrustRegionConfig,
    constrained: bool,
    policy: GaussianPolicy,
    samples: Samples,
    violations: Float[Array, " costs"],
) -> tuple[GaussianPolicy, Metrics]:
    """One step on samples `[tasks, episodes, time, ...]`; every task counts alike, also in the constraints."""
    old = jax.lax.stop_gradient(policy(samples.observation))
    split = jax.vmap(halves_of)(old, samples) if config.cross_fit else (old, samples)
    start = parameters(policy)

    def evaluate(x: Array) -> Surrogate:
        new = with_parameters(policy, x)
        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(lambda o, s: surrogate(new, o, s))(old, samples))

    def halves(x: Array) -> Float[Array, "2 signals"]:
        if not config.cross_fit:
            value = evaluate(x)
            signals = jnp.concatenate([value.reward[None], value.costs]) if constrained else value.reward[None]
            return jnp.stack([signals, signals])
        new = with_parameters(policy, x)
        value = jax.vmap(jax.vmap(lambda o, s: surrogate(new, o, s)))(*split)
        reward = value.reward.mean(0)[:, None]
        return jnp.concatenate([reward, value.costs.mean(0)], axis=1) if constrained else reward

    states = thinned(samples.observation, config.fisher_states)
    weight = jnp.full(states.shape[:-1], states.shape[-1] / states.size)
    metric = fisher_metric(lambda x: with_parameters(policy, x)(states), start, weight)
    found = directions(
        [halves], start, metric, cross_fit=config.cross_fit, iterations=config.cg_iterations, damping=config.damping
    )
    bounds = violations if constrained else violations[:0]
    step, solved = constrained_step(found, bounds, config.kl_radius)

    def accept(values: Surrogate, fraction: Array) -> Array:
        if not constrained:
            return accept_trpo(values.reward, values.kl, config.kl_radius, slack=1.5)
        return accept_cpo(
            values.reward,
            values.kl,
            violations + values.costs,
            violations,
            config.kl_radius,
            feasible=solved.feasible,
            slack=1.5,
        )

    search = backtrack(evaluate, start, step, accept, shrink=0.8, steps=10)
    metrics = {
        "kl": jnp.where(search.accepted, search.values.kl, 0.0),
        "feasible": solved.feasible.astype(jnp.float32),
        "accepted": search.accepted.astype(jnp.float32),
    }
    return with_parameters(policy, search.parameters), metrics
