"""Safe meta-RL by the dual method (Xu and Zhu): safe policy adaptation and safe meta-policy training.

One meta-iteration (Algorithms 2 and 4): the meta-policy acts on a batch of tasks; each task's policy is adapted
from it in one step (`dual_adaptation.py`); the adapted policies act; the meta-gradient (eq. 6) `E_{pi^tau}[grad
f_phi Q^tau]` moves the meta-policy within a trust region. The meta-policy itself has to be safe on *every* task,
because it is the first policy used on a new one. `meta_update` says how that is kept:

- "switch", the paper's: a step up the meta-gradient while every sampled task is safe, else a step down the cost.
- "constrained": one step up the meta-gradient subject to the cost on the worst tasks of the batch. Narrow tasks are
  rare in a batch, so some of it are the hardest corner of the distribution.

The state remembers the best meta-policy whose cost, on validation tasks and on the hardest corner, was below the
limit by a margin and two standard errors; that one is used at test time.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from safemeta.algorithms.base import Adaptation, Metrics, named
from safemeta.algorithms.confidence import Cleared, Gathered, StatesConfidence, clear, with_clearances
from safemeta.algorithms.critics import CriticState, assess, init_critic, learn
from safemeta.algorithms.dual_adaptation import OUTCOME_NAMES, Evidence, adapt_once
from safemeta.algorithms.dual_config import ITERATIONS, PRESETS, Config
from safemeta.algorithms.dual_meta import MetaBatch, meta_step
from safemeta.algorithms.estimation import episode_return, limited_costs
from safemeta.algorithms.settings import init_policy
from safemeta.algorithms.surrogate import Samples, make_samples
from safemeta.core import CMDP, Tasks, World
from safemeta.nets import GaussianPolicy, parameters, with_parameters

__all__ = ["ITERATIONS", "PRESETS", "Algorithm", "Config", "State"]


class Candidate(eqx.Module):
    """A meta-policy and the critics that go with it."""

    policy: GaussianPolicy
    critics: CriticState


class Validation(eqx.Module):
    """Fresh episodes of a meta-policy on validation tasks and on the hardest corner."""

    mean_return: Float[Array, ""]
    largest_costs: Float[
        Array, " costs"
    ]  # per cost the largest mean over tasks, plus two standard errors on the corner
    safe: Bool[Array, ""]


class State(eqx.Module):
    """`current` is being trained; `best` is the best one validated as safe (`best_return` is -inf before any)."""

    current: Candidate
    best: Candidate
    best_return: Float[Array, ""]
    correction: Float[Array, " costs"]  # of the meta-step's constraints, see `dual_meta`
    checked: Validation  # the latest
    iteration: Int[Array, ""]


class Algorithm(StatesConfidence):
    """See the module's docstring; `config` documents every setting."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.config.validate()

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> State:
        policy_key, critic_key = jax.random.split(key)
        policy = init_policy(self.config, cmdp, policy_key)
        start = Candidate(policy, init_critic(self.config, cmdp, critic_key))
        nothing = jnp.zeros(len(cmdp.cost_names))
        unchecked = Validation(jnp.zeros(()), nothing, jnp.zeros((), bool))
        return State(start, start, jnp.zeros(()) - jnp.inf, nothing, unchecked, jnp.zeros((), jnp.int32))

    def iterate(self, state: State, world: World, key: PRNGKeyArray) -> tuple[State, Metrics]:
        return _iterate(self.config, world, state, key)

    def policy(self, state: State) -> GaussianPolicy:
        """The best meta-policy that was validated as safe; before there is one, the current one."""
        return _chosen(state).policy

    def doubt(self, state: State) -> str | None:
        """A sentence if no meta-policy was validated as safe, so that `policy` is only the last one."""
        if bool(jnp.isfinite(state.best_return)):
            return None
        return (
            "No meta-policy was validated as safe in training, so the last one is used, and limits may be broken; train"
            " longer."
        )

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        """Environment steps of one meta-iteration, validation apart."""
        return 2 * self.config.tasks * self.config.episodes * cmdp.horizon

    def _adapt(
        self, state: State, world: World, tasks: Tasks, key: PRNGKeyArray, steps: int, quantiles: Array | None
    ) -> Adaptation:
        return _adapt(self.config, world, _chosen(state), tasks, key, steps, quantiles)


def _chosen(state: State) -> Candidate:
    found = jnp.isfinite(state.best_return)
    return jax.tree.map(lambda best, now: jnp.where(found, best, now), state.best, state.current)


@eqx.filter_jit
def _iterate(config: Config, world: World, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
    cmdp = world.cmdp
    now = state.current
    task_key, before_key, adapt_key, after_key, cost_key, critic_key, check_key = jax.random.split(key, 7)
    tasks = _draw(config, world, task_key)
    before = world.collect(now.policy, tasks, before_key, config.episodes)
    adapted, evidence, before_advantages = jax.vmap(
        lambda rows, limits, k: adapt_once(config, cmdp, now.policy, now.critics, rows, limits, k)
    )(before, tasks.limits, jax.random.split(adapt_key, config.tasks))
    after = world.collect(adapted, tasks, after_key, config.episodes, per_task=True)
    after_advantages = jax.vmap(
        lambda rows: assess(config.critic, now.critics, now.policy.normalizer, rows, cmdp, config.gae_smoothing)
    )(after)

    adapted_log_prob = jax.vmap(lambda p, rows: p(rows.observation).log_prob(rows.action))(adapted, before)
    before_costs = limited_costs(before, cmdp)
    if config.cost_episodes:
        extra = world.measure(now.policy, tasks, cost_key, config.cost_episodes).costs
        before_costs = jnp.concatenate([before_costs, extra], axis=1)
    before_costs = before_costs.mean(1)
    batch = MetaBatch(
        before=before,
        before_advantages=before_advantages,
        after=after,
        after_advantages=after_advantages,
        evidence=evidence,
        adapted_log_prob=adapted_log_prob,
        costs=before_costs,
        limits=tasks.limits,
        correction=state.correction,
    )
    policy, correction, step_metrics = meta_step(config, cmdp, now.policy, batch)
    observations = jnp.concatenate([before.observation, after.observation], axis=1)
    targets = jnp.concatenate([before_advantages.target, after_advantages.target], axis=1)
    valid = jnp.concatenate([before.valid, after.valid], axis=1)
    normalizer = now.policy.normalizer
    critics = learn(config, now.critics, normalizer, observations, targets, critic_key, config.critic_steps, valid)
    policy = eqx.tree_at(lambda p: p.normalizer, policy, normalizer.merge(observations, valid))

    following = Candidate(policy, critics)
    iteration = state.iteration + 1
    due = iteration % config.validation_every == 0
    if config.validation_every == 1:
        checked = _validate(config, world, policy, check_key)
    else:
        checked = jax.lax.cond(due, lambda: _validate(config, world, policy, check_key), lambda: state.checked)
    better = due & checked.safe & (checked.mean_return > state.best_return)
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), following, state.best)
    best_return = jnp.where(better, checked.mean_return, state.best_return)

    after_costs = limited_costs(after, cmdp).mean(1)
    metrics = {
        "return_before": episode_return(before).mean(),
        "return_after": episode_return(after).mean(),
        "largest_cost_before": before_costs.max(0),
        "largest_cost_after": after_costs.max(0),
        "cost_before": before_costs[:, 0].mean(),
        "cost_after": after_costs[:, 0].mean(),
        "limit": tasks.limits[0, 0],
        "validation_return": checked.mean_return,
        "validation_largest_cost": checked.largest_costs[0],
        "validated": jnp.isfinite(best_return).astype(jnp.float32),
        "adaptation_kl": evidence.kl.mean(),
        "multiplier": evidence.multipliers[:, 0].mean(),
        "log_std": policy.network.log_std.mean(),
        **step_metrics,
    }
    return State(following, best, best_return, correction, checked, iteration), named(cmdp, metrics)


def _draw(config: Config, world: World, key: PRNGKeyArray) -> Tasks:
    """Random training tasks, the first `corner_tasks` of them replaced by the hardest corner."""
    tasks = world.sample(key, config.tasks, "train")
    hardest = _hardest(world)
    if hardest is None or not config.corner_tasks:
        return tasks
    return jax.tree.map(
        lambda drawn, corner: jnp.concatenate(
            [jnp.repeat(corner, config.corner_tasks, axis=0), drawn[config.corner_tasks :]]
        ),
        tasks,
        hardest,
    )


def _hardest(world: World) -> Tasks | None:
    corners = getattr(world, "corners", None)
    return None if corners is None else corners()[:1]


def _validate(config: Config, world: World, policy: GaussianPolicy, key: PRNGKeyArray) -> Validation:
    task_key, measure_key, corner_key = jax.random.split(key, 3)
    tasks = world.sample(task_key, config.validation_tasks, "validation")
    measured = world.measure(policy, tasks, measure_key, config.validation_episodes)
    costs = measured.costs.mean(1)
    allowed = (1 - config.validation_margin) * tasks.limits + config.slack
    safe = jnp.all(costs <= allowed)
    largest = costs.max(0)
    hardest = _hardest(world)
    if hardest is not None:
        corner = world.measure(policy, hardest, corner_key, config.corner_episodes).costs[0]
        bound = corner.mean(0) + 2 * corner.std(0, ddof=1) / config.corner_episodes**0.5
        safe = safe & jnp.all(bound <= (1 - config.validation_margin) * hardest.limits[0] + config.slack)
        largest = jnp.maximum(largest, bound)
    return Validation(measured.episode_return.mean(), largest, safe)


@eqx.filter_jit
def _adapt_step(
    config: Config,
    world: World,
    policies: Any,
    critics: Any,
    tasks: Tasks,
    key: PRNGKeyArray,
    gathered: Gathered | None,
) -> tuple[Any, Any, Gathered | None, Evidence, Cleared | None]:
    collect_key, adapt_key, critic_key = jax.random.split(key, 3)
    rows = world.collect(policies, tasks, collect_key, config.episodes, per_task=True)

    def one(policy, critic, rows, limits, k, learn_key, own) -> tuple[Any, ...]:
        adapted, evidence, advantages = adapt_once(config, world.cmdp, policy, critic, rows, limits, k)
        cleared = None
        if own is not None:
            own = own.add(make_samples(rows, advantages, world.cmdp), limited_costs(rows, world.cmdp))
            start, proposed = (parameters(each, config.adapt) for each in (policy, adapted))
            cleared, own = clear(lambda x: with_parameters(policy, x, config.adapt), start, proposed, own, limits)
            adapted = with_parameters(policy, cleared.parameters, config.adapt)
        data = rows.observation, advantages.target, learn_key, config.adapt_critic_steps, rows.valid
        critic = learn(config, critic, policy.normalizer, *data)
        return adapted, critic, own, evidence, cleared

    keys = jax.random.split(adapt_key, tasks.count), jax.random.split(critic_key, tasks.count)
    return jax.vmap(one)(policies, critics, rows, tasks.limits, *keys, gathered)


def _adapt(
    config: Config,
    world: World,
    start: Candidate,
    tasks: Tasks,
    key: PRNGKeyArray,
    steps: int,
    quantiles: Float[Array, " window"] | None,
) -> Adaptation:
    repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (tasks.count, *leaf.shape)), start)
    policies, critics = repeated.policy, repeated.critics
    gathered = None

    def data() -> tuple[Samples, Array]:
        rows = world.collect(policies, tasks, key, config.episodes, per_task=True)

        def one(policy, critic, rows):
            found = assess(config.critic, critic, policy.normalizer, rows, world.cmdp, config.gae_smoothing)
            return make_samples(rows, found, world.cmdp), limited_costs(rows, world.cmdp)

        return jax.vmap(one)(policies, critics, rows)

    if quantiles is not None:
        first = jax.vmap(lambda each: parameters(each, config.adapt))(policies)
        gathered = Gathered.nothing(data, first, quantiles)
    used, evidence, clearances = [policies], [], []
    for step in range(steps):
        policies, critics, gathered, found, cleared = _adapt_step(
            config, world, policies, critics, tasks, jax.random.fold_in(key, step), gathered
        )
        used.append(policies)
        evidence.append(found)
        clearances.append(cleared)
    # The last policy is judged too, on data of its own that adapts nothing.
    rows = world.collect(policies, tasks, jax.random.fold_in(key, steps), config.episodes, per_task=True)
    last_return, last_costs = episode_return(rows).mean(1), limited_costs(rows, world.cmdp).mean(1)
    costs = len(world.cmdp.cost_names)

    def stacked(pick: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jnp.stack([pick(e) for e in evidence]) if evidence else jnp.zeros(shape, dtype)

    nothing = (0, tasks.count)
    found = Adaptation(
        policies=jax.tree.map(lambda *leaves: jnp.stack(leaves), *used),
        estimated_return=jnp.concatenate([stacked(lambda e: e.estimated_return, nothing), last_return[None]]),
        estimated_costs=jnp.concatenate([stacked(lambda e: e.estimated_costs, (*nothing, costs)), last_costs[None]]),
        multipliers=stacked(lambda e: e.multipliers, (*nothing, costs)),
        kl=stacked(lambda e: e.kl, nothing),
        outcome=stacked(lambda e: e.outcome, nothing, jnp.int32),
        outcome_names=OUTCOME_NAMES,
    )
    return found if quantiles is None else with_clearances(found, clearances)
