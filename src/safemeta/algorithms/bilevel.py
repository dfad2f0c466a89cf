"""The bilevel loop: an inner learner changes a task's policy, an outer learner changes what it starts from.

One meta-iteration (Meta-CPO, Algorithm 1): for M tasks at once, K times: collect with the task's policy, estimate, take
an inner step (`inner.py`). Collect once more with the adapted policies phi_i. With

    F(theta) = mean_i E[A_i(phi_i(theta))],   G(theta) = mean_i (J_c,i - d_i + E[A_c,i(phi_i(theta))])

on those data, the meta-gradients dF and dG (eq. 11) go back through all K steps, each differentiated through its
constrained problem; the outer step maximises dF subject to G + dG . s <= 0 within a trust region around theta (eq. 12),
and is shortened until F and G, evaluated through the chain of inner steps, accept it. Three parts are to choose:
`inner`, `outer` and `meta_gradient`. Named systems: meta-cpo = (cpo, cpo, exact), meta-trpo = (trpo, trpo, exact),
maml = (gradient, trpo, exact or first), meta-crpo = (crpo, nearest); every other combination runs as `bilevel`. There
the dual method is (dual, switch, first) with `bounded = initial`; the algorithm `dual` adds what makes it safe.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Adaptation, Metrics, named
from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.critics import CriticState, assess, init_critic, learn
from safemeta.algorithms.directions import corrected
from safemeta.algorithms.estimation import Advantages, effective_discount, episode_return, limited_costs
from safemeta.algorithms.inner import InnerData, Vector, inner_update, metric_at, replayed
from safemeta.algorithms.settings import init_policy
from safemeta.algorithms.surrogate import Samples, make_samples, state_weight, surrogate
from safemeta.core import CMDP, Tasks, Trajectory, World
from safemeta.nets import GaussianPolicy, parameters, with_parameters
from safemeta.solvers import accept_cpo, accept_trpo, backtrack, solve_rows, trust_region_step, values_and_gradients

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}
OUTCOME_NAMES = ("improved", "recovered", "kept")
IMPROVED, RECOVERED, KEPT = range(3)


class State(eqx.Module):
    """The meta-policy and the critics, which all tasks share."""

    policy: GaussianPolicy
    critics: CriticState
    kept: "Kept | None" = None  # with `keep_tasks`
    correction: Float[Array, " costs"] | None = None  # of the outer step "cpo": what is added to a measured excess


class Kept(eqx.Module):
    """What stays from one iteration to the next where the tasks do."""

    key: Array  # of the tasks, as `jax.random.key_data`
    adapted: Float[Array, "tasks parameters"]


class MetaData(eqx.Module):
    """What the outer step depends on: per task the inner data, and the data of the adapted policy."""

    inner: list[InnerData]  # K of them, leaves `[tasks, ...]`
    samples: Samples  # `[tasks, ...]`
    violations: Float[Array, "tasks costs"]
    adapted: Float[Array, "tasks parameters"]


class Algorithm:
    """See the module's docstring; `config` documents every setting."""

    def __init__(self, config: BilevelConfig | None = None) -> None:
        self.config = config or BilevelConfig()
        self.config.validate()

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> State:
        policy_key, critic_key = jax.random.split(key)
        policy = init_policy(self.config, cmdp, policy_key)
        kept = None
        if self.config.keep_tasks:
            start = parameters(policy)
            own = jnp.broadcast_to(start, (self.config.tasks, start.shape[0]))
            kept = Kept(jax.random.key_data(jax.random.fold_in(key, 2)), own)
        correction = jnp.zeros(len(cmdp.cost_names)) if self.config.outer == "cpo" else None
        return State(policy, init_critic(self.config, cmdp, critic_key), kept, correction)

    def iterate(self, state: State, world: World, key: PRNGKeyArray) -> tuple[State, Metrics]:
        return _iterate(self.config, world, state, key)

    def policy(self, state: State) -> GaussianPolicy:
        """The meta-policy."""
        return state.policy

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        """Environment steps of one meta-iteration."""
        return (self.config.inner_steps + 1) * self.config.tasks * self.config.episodes * cmdp.horizon

    def adapt(self, state: State, world: World, tasks: Tasks, key: PRNGKeyArray, steps: int) -> Adaptation:
        """Inner steps from the meta-policy, each on `episodes` fresh episodes of the newest policy."""
        return _adapt(self.config, world, state, tasks, key, steps)


@eqx.filter_jit
def _iterate(config: BilevelConfig, world: World, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
    cmdp = world.cmdp
    task_key, inner_key, after_key, critic_key = jax.random.split(key, 4)
    if state.kept is not None:
        task_key = jax.random.wrap_key_data(state.kept.key)
    tasks = world.sample(task_key, config.tasks, "train")
    theta = parameters(state.policy)
    x = jnp.broadcast_to(theta, (tasks.count, theta.shape[0])) if state.kept is None else state.kept.adapted
    seen: list[tuple[Trajectory, Advantages]] = []
    data: list[InnerData] = []
    facts: dict[str, Any] = {}
    for step in range(config.inner_steps):
        rows, estimates = _collect(config, world, state, x, tasks, jax.random.fold_in(inner_key, step))
        x, used, facts = _inner(config, cmdp, state, x, rows, estimates, tasks)
        seen.append((rows, estimates))
        data.append(used)
    after, estimates = _collect(config, world, state, x, tasks, after_key)
    seen.append((after, estimates))
    samples = jax.vmap(lambda r, a: make_samples(r, a, cmdp))(after, estimates)
    after_costs = limited_costs(after, cmdp).mean(1)
    meta = MetaData(data, samples, after_costs - (1 - config.margin) * tasks.limits, x)
    before = seen[0][0]
    start = config, state.policy, theta, meta, before.observation, before.valid
    correction = state.correction
    if config.outer == "nearest":
        moved, outer_facts = nearest_update(*start)
    else:
        moved, outer_facts = outer_update(*start, correction)
    if correction is not None:
        feasible = outer_facts["meta_feasible"] > 0
        correction = corrected(correction, outer_violations(config, meta), feasible, config.integral_gain)
        outer_facts["correction"] = correction

    observations = jnp.stack([rows.observation for rows, _ in seen])
    targets = jnp.stack([found.target for _, found in seen])
    valid = jnp.stack([rows.valid for rows, _ in seen])
    normalizer = state.policy.normalizer
    critics = learn(config, state.critics, normalizer, observations, targets, critic_key, config.critic_steps, valid)
    policy = with_parameters(state.policy, moved)
    policy = eqx.tree_at(lambda p: p.normalizer, policy, normalizer.merge(observations, valid))
    before_costs = limited_costs(before, cmdp).mean(1)
    metrics = {
        "return_before": episode_return(before).mean(),
        "return_after": episode_return(after).mean(),
        "largest_cost_before": before_costs[:, 0].max(),
        "largest_cost_after": after_costs[:, 0].max(),
        "cost_before": before_costs.mean(0),
        "cost_after": after_costs.mean(0),
        "limit": tasks.limits[0, 0],
        "inner_kl": facts["kl"].mean(),
        "inner_accepted": facts["accepted"].mean(),
        "inner_feasible": facts["feasible"].mean(),
        "log_std": policy.network.log_std.mean(),
        **outer_facts,
    }
    kept = None if state.kept is None else Kept(state.kept.key, x)
    return State(policy, critics, kept, correction), named(cmdp, metrics)


def _collect(
    config: BilevelConfig, world: World, state: State, x: Float[Array, "tasks parameters"], tasks: Tasks, key: Any
) -> tuple[Trajectory, Advantages]:
    policies = jax.vmap(lambda each: with_parameters(state.policy, each))(x)
    rows = world.collect(policies, tasks, key, config.episodes, per_task=True)

    def estimate(own: Trajectory) -> Advantages:
        return assess(config.critic, state.critics, state.policy.normalizer, own, world.cmdp, config.gae_smoothing)

    return rows, jax.vmap(estimate)(rows)


def _inner(
    config: BilevelConfig,
    cmdp: CMDP,
    state: State,
    x: Float[Array, "tasks parameters"],
    rows: Trajectory,
    estimates: Advantages,
    tasks: Tasks,
) -> tuple[Float[Array, "tasks parameters"], InnerData, dict[str, Any]]:
    violations = limited_costs(rows, cmdp).mean(1) - (1 - config.margin) * tasks.limits
    samples = jax.vmap(lambda r, a: make_samples(r, a, cmdp))(rows, estimates)
    discount = jnp.full(tasks.count, effective_discount(cmdp), x.dtype)
    return jax.vmap(lambda *each: inner_update(config, state.policy, *each))(x, samples, violations, discount)


def meta_objective(
    config: BilevelConfig, policy: GaussianPolicy, theta: Vector, meta: MetaData
) -> tuple[Float[Array, ""], Float[Array, " costs"]]:
    """F and G at `theta` (eq. 10), through the chain of inner steps on fixed data; see `bounded` for another G."""

    def one(data: list[InnerData], samples: Samples, violations: Array, adapted: Vector) -> tuple[Array, Array]:
        if config.meta_gradient == "exact":
            x = replayed(config, policy, theta, data)
        else:
            x = theta + jax.lax.stop_gradient(adapted - theta)
        # `old` only serves the divergence, which is not asked for here.
        values = surrogate(with_parameters(policy, x), with_parameters(policy, adapted)(samples.observation), samples)
        return values.reward, violations + values.costs

    reward, costs = jax.vmap(one)(meta.inner, meta.samples, meta.violations, meta.adapted)
    if config.bounded == "initial":
        return reward.mean(), own_costs(policy, theta, meta)
    return reward.mean(), costs.mean(0)


def own_costs(policy: GaussianPolicy, theta: Vector, meta: MetaData) -> Float[Array, " costs"]:
    """Of each cost what the meta-policy itself has above its limit, on the task of the batch where that is most."""
    first = meta.inner[0]
    worst = jnp.argmax(first.violations, axis=0)

    def one(samples: Samples) -> Array:
        policy_now = with_parameters(policy, theta)
        return surrogate(policy_now, policy_now(samples.observation), samples).costs

    costs = first.violations + jax.vmap(one)(first.samples)
    return jnp.take_along_axis(costs, worst[None], axis=0)[0]


def outer_violations(config: BilevelConfig, meta: MetaData) -> Float[Array, " costs"]:
    """G before the outer step, as measured."""
    return meta.inner[0].violations.max(0) if config.bounded == "initial" else meta.violations.mean(0)


def nearest_update(
    config: BilevelConfig, policy: GaussianPolicy, theta: Vector, meta: MetaData, observations: Array, valid: Array
) -> tuple[Vector, Metrics]:
    """Meta-CRPO's outer step: towards the policy with the least mean `KL(adapted || meta)` over tasks.

    Khattar et al. (2023) take, online, a step down that distance per round. Here it is one Gauss-Newton step on the
    states that the adapted policies visit (`-outer_rate H^-1 grad`, H the Fisher metric), shortened until the distance
    falls.
    """
    wanted = jax.vmap(lambda x, s: with_parameters(policy, x)(s.observation))(meta.adapted, meta.samples)
    visited, theirs = meta.samples.observation, meta.samples.valid
    weight = state_weight(theirs)

    def distance(y: Vector) -> Array:
        return jnp.sum(weight * jnp.where(theirs, wanted.kl(with_parameters(policy, y)(visited)), 0))

    before, gradient = jax.value_and_grad(distance)(theta)
    metric = metric_at(config, policy, theta, visited, theirs)
    step = -config.outer_rate * gradient
    if metric is not None:
        solved = solve_rows(metric, gradient[None], iterations=config.cg_iterations, damping=config.damping)
        step = -config.outer_rate * solved.solution[0]
    search = backtrack(distance, theta, step, lambda now, fraction: now < before, shrink=0.5, steps=6)
    old = with_parameters(policy, theta)(observations)
    kl = with_parameters(policy, search.parameters)(observations).kl(old)
    return search.parameters, {
        "meta_kl": jnp.sum(jnp.where(valid, kl, 0)) / jnp.sum(valid),
        "meta_accepted": search.accepted.astype(theta.dtype),
        "distance": before,
    }


def outer_update(
    config: BilevelConfig,
    policy: GaussianPolicy,
    theta: Vector,
    meta: MetaData,
    observations: Array,
    valid: Array,
    correction: Float[Array, " costs"] | None = None,
) -> tuple[Vector, Metrics]:
    """The outer step (eq. 12) and its line search; `observations` (the `valid` ones) are those of the meta-policy.

    `correction` is added to the costs that a step "cpo" bounds.
    """

    def stacked(y: Vector) -> Float[Array, " signals"]:
        reward, costs = meta_objective(config, policy, y, meta)
        return jnp.concatenate([reward[None], costs])

    _, gradients = values_and_gradients(stacked, theta)
    violations = outer_violations(config, meta)
    rows, bounds, objective = gradients[:0], violations[:0], gradients[0]
    if config.outer == "cpo":
        added = jnp.zeros_like(violations) if correction is None else correction
        rows, bounds = gradients[1:], violations + added
    elif config.outer == "switch":
        objective = jnp.where(jnp.all(violations <= 0), gradients[0], -gradients[1:][jnp.argmax(violations)])
    found = trust_region_step(
        objective,
        rows,
        bounds,
        metric_at(config, policy, theta, observations, valid),
        config.outer_radius,
        iterations=config.cg_iterations,
        tolerance=0.0,
        damping=config.damping,
    )
    old = with_parameters(policy, theta)(observations)

    def evaluate(y: Vector) -> tuple[Array, Array, Array]:
        if config.meta_gradient == "exact":
            reward, costs = meta_objective(config, policy, y, meta)
        else:  # the same shift of all adapted policies, without its dependence on theta
            shifted = eqx.tree_at(lambda m: m.adapted, meta, meta.adapted + (y - theta))
            reward, costs = _shifted_objective(policy, meta, shifted.adapted)
            if config.bounded == "initial":
                costs = own_costs(policy, y, meta)
        kl = with_parameters(policy, y)(observations).kl(old)
        return reward, costs, jnp.sum(jnp.where(valid, kl * state_weight(valid), 0))

    def accept(values: tuple[Array, Array, Array], fraction: Array) -> Array:
        reward, costs, kl = values
        if config.outer == "cpo":
            shifted = costs + (bounds - violations)
            return accept_cpo(reward, kl, shifted, bounds, config.outer_radius, feasible=found.feasible, slack=1.5)
        if config.outer == "trpo":
            return accept_trpo(reward, kl, config.outer_radius, slack=1.5)
        worst = jnp.argmax(violations)
        better = jnp.where(jnp.all(violations <= 0), reward > 0, costs[worst] < violations[worst])
        return better & (kl <= 1.5 * config.outer_radius)

    search = backtrack(evaluate, theta, found.step, accept, shrink=0.5, steps=6)
    metrics = {
        "meta_kl": jnp.where(search.accepted, search.values[2], 0.0),
        "meta_accepted": search.accepted.astype(theta.dtype),
        "meta_feasible": found.feasible.astype(theta.dtype),
        "meta_violation": violations.max(),
    }
    return search.parameters, metrics


def _shifted_objective(
    policy: GaussianPolicy, meta: MetaData, adapted: Float[Array, "tasks parameters"]
) -> tuple[Float[Array, ""], Float[Array, " costs"]]:
    def one(x: Vector, samples: Samples, violations: Array, start: Vector) -> tuple[Array, Array]:
        values = surrogate(with_parameters(policy, x), with_parameters(policy, start)(samples.observation), samples)
        return values.reward, violations + values.costs

    reward, costs = jax.vmap(one)(adapted, meta.samples, meta.violations, meta.adapted)
    return reward.mean(), costs.mean(0)


@eqx.filter_jit
def _adapt_step(
    config: BilevelConfig, world: World, state: State, x: Float[Array, "tasks parameters"], tasks: Tasks, key: Any
) -> tuple[Float[Array, "tasks parameters"], dict[str, Any]]:
    rows, estimates = _collect(config, world, state, x, tasks, key)
    moved, _, facts = _inner(config, world.cmdp, state, x, rows, estimates, tasks)
    improved = jnp.where(facts["feasible"], IMPROVED, RECOVERED)
    facts["outcome"] = jnp.where(facts["accepted"], improved, KEPT)
    facts |= {"return": episode_return(rows).mean(1), "costs": limited_costs(rows, world.cmdp).mean(1)}
    return moved, facts


def _adapt(
    config: BilevelConfig, world: World, state: State, tasks: Tasks, key: PRNGKeyArray, steps: int
) -> Adaptation:
    theta = parameters(state.policy)
    x = jnp.broadcast_to(theta, (tasks.count, theta.shape[0]))
    used, facts = [x], []
    for step in range(steps + 1):  # the last only estimates the last policy
        moved, found = _adapt_step(config, world, state, x, tasks, jax.random.fold_in(key, step))
        facts.append(found)
        if step < steps:
            x = moved
            used.append(x)

    def stacked(name: str, count: int) -> Array:
        return jnp.stack([found[name] for found in facts])[:count]

    policies = [jax.vmap(lambda each: with_parameters(state.policy, each))(each) for each in used]
    return Adaptation(
        policies=jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *policies),
        estimated_return=stacked("return", steps + 1),
        estimated_costs=stacked("costs", steps + 1),
        multipliers=stacked("multipliers", steps),
        kl=stacked("kl", steps),
        outcome=stacked("outcome", steps).astype(jnp.int32),
        outcome_names=OUTCOME_NAMES,
    )
