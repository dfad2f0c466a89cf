"""Outer updates: one step of what all tasks start from, on fixed data of a batch of tasks.

With F and G as `bilevel.py` defines them, the step solves `max dF . s` subject to `G + dG . s <= 0` within a trust
region (eq. 12 of the Meta-CPO paper), or leaves out the constraint, or goes up the one or down the other; or, as in
Meta-CRPO, it goes towards the policy that is nearest to the tasks' own.

dG is an average over a few tasks, and most of it is noise: on Point-Circle, through five inner steps, independent
batches' dG have cosines of -0.1 to 0.0 (`benchmarks/meta_signal.py`). What a step promises to take back is therefore
many times what it does take back. `Control` measures how much of dG is signal, and asks for as much more; what is left
over in spite of that is accumulated and asked for as well.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.directions import corrected, through_metric
from safemeta.algorithms.inner import InnerData, Vector, metric_at, replayed
from safemeta.algorithms.surrogate import Samples, state_weight, surrogate
from safemeta.nets import GaussianPolicy, with_parameters
from safemeta.solvers import accept_cpo, accept_trpo, backtrack, solve_rows, trust_region_step, values_and_gradients

MEMORY = 0.05  # weight of the newest measurement in the running means of `Control`
TASK_AXES = (1, 0, 0, 0)  # of `_by_task`


class MetaData(eqx.Module):
    """What the outer step depends on: per task the inner data, and the data of the adapted policy."""

    inner: InnerData  # leaves `[steps, tasks, ...]`
    samples: Samples  # `[tasks, ...]`
    violations: Float[Array, "tasks costs"]
    adapted: Float[Array, "tasks parameters"]


class Control(eqx.Module):
    """What outer steps "cpo" are asked to take back beside the measured G: the state of a controller."""

    correction: Float[Array, " costs"]  # accumulated excess, at most the limit
    across: Float[Array, " costs"]  # running mean of dG' . H^-1 dG'' of different tasks
    within: Float[Array, " costs"]  # the same of dG . H^-1 dG, noise included

    @staticmethod
    def create(costs: int) -> "Control":
        """Nothing accumulated, nothing measured."""
        return Control(*(jnp.zeros(costs) for _ in range(3)))

    def share(self, least: float) -> Float[Array, " costs"]:
        """How much of a promised change of each cost is no noise, between `least` and 1; 1 if it is not measured."""
        measured = self.within > 0
        return jnp.where(measured, jnp.clip(self.across / jnp.where(measured, self.within, 1), least, 1), 1)

    def measured(self, across: Float[Array, " costs"], within: Float[Array, " costs"]) -> "Control":
        """With one more pair of products, in means over some `1 / MEMORY` steps."""
        kept = 1 - MEMORY
        return Control(self.correction, kept * self.across + MEMORY * across, kept * self.within + MEMORY * within)

    def accumulated(
        self, excess: Float[Array, " costs"], limits: Float[Array, " costs"], feasible: Bool[Array, ""], gain: float
    ) -> "Control":
        """With an excess of costs more, see `directions.corrected`; never above the limits."""
        grown = jnp.minimum(corrected(self.correction, excess, feasible, gain), limits)
        return Control(grown, self.across, self.within)


def meta_objective(
    config: BilevelConfig, policy: GaussianPolicy, theta: Vector, meta: MetaData
) -> tuple[Float[Array, ""], Float[Array, " costs"]]:
    """F and G at `theta` (eq. 10), through the chain of inner steps on fixed data; see `bounded` for another G."""
    reward, costs = jax.vmap(partial(_of_task, config, policy, theta), in_axes=TASK_AXES)(*_by_task(meta))
    if config.bounded == "initial":
        return reward.mean(), own_costs(policy, theta, meta)
    return reward.mean(), costs.mean(0)


def _by_task(meta: MetaData) -> tuple[InnerData, Samples, Array, Array]:
    """What `_of_task` reads, with tasks along TASK_AXES."""
    return meta.inner, meta.samples, meta.violations, meta.adapted


def _of_task(
    config: BilevelConfig,
    policy: GaussianPolicy,
    theta: Vector,
    data: InnerData,
    samples: Samples,
    violations: Float[Array, " costs"],
    adapted: Vector,
) -> tuple[Float[Array, ""], Float[Array, " costs"]]:
    """One task's terms of F and G."""
    if config.meta_gradient == "exact":
        x = replayed(config, policy, theta, data)
    else:
        x = theta + jax.lax.stop_gradient(adapted - theta)
    # `old` only serves the divergence, which is not asked for here.
    values = surrogate(with_parameters(policy, x), with_parameters(policy, adapted)(samples.observation), samples)
    return values.reward, violations + values.costs


def meta_gradients(
    config: BilevelConfig, policy: GaussianPolicy, theta: Vector, meta: MetaData
) -> tuple[Float[Array, "signals parameters"], Float[Array, "costs parameters"] | None]:
    """Rows dF, dG; and what the difference of two halves of the tasks shows of dG's noise (None: there is one task).

    With gradients g' and g'' of m and n of the M tasks, `e = sqrt(m n) / M (g' - g'')` has the variance of dG's noise.
    """

    def stacked(function: Callable[[Vector], tuple[Array, Array]]) -> Callable[[Vector], Float[Array, " signals"]]:
        return lambda y: jnp.concatenate([jnp.atleast_1d(value) for value in function(y)])

    tasks = meta.violations.shape[0]
    if config.bounded == "initial" or tasks < 2:
        return values_and_gradients(stacked(lambda y: meta_objective(config, policy, y, meta)), theta)[1], None

    def one(*own: Any) -> Float[Array, "signals parameters"]:
        return values_and_gradients(stacked(lambda y: _of_task(config, policy, y, *own)), theta)[1]

    each = jax.vmap(one, in_axes=TASK_AXES)(*_by_task(meta))
    first = tasks // 2
    noise = each[:first, 1:].mean(0) - each[first:, 1:].mean(0)
    return each.mean(0), (first * (tasks - first)) ** 0.5 / tasks * noise


def own_costs(policy: GaussianPolicy, theta: Vector, meta: MetaData) -> Float[Array, " costs"]:
    """Of each cost what the meta-policy itself has above its limit, on the task of the batch where that is most."""
    first = jax.tree.map(lambda leaf: leaf[0], meta.inner)
    worst = jnp.argmax(first.violations, axis=0)

    def one(samples: Samples) -> Array:
        policy_now = with_parameters(policy, theta)
        return surrogate(policy_now, policy_now(samples.observation), samples).costs

    costs = first.violations + jax.vmap(one)(first.samples)
    return jnp.take_along_axis(costs, worst[None], axis=0)[0]


def outer_violations(config: BilevelConfig, meta: MetaData) -> Float[Array, " costs"]:
    """G before the outer step, as measured."""
    return meta.inner.violations[0].max(0) if config.bounded == "initial" else meta.violations.mean(0)


def nearest_update(
    config: BilevelConfig, policy: GaussianPolicy, theta: Vector, meta: MetaData, observations: Array, valid: Array
) -> tuple[Vector, Metrics]:
    """Meta-CRPO's outer step: towards the policy with the least mean `KL(adapted || meta)` over tasks.

    Khattar et al. (2023) take, online, a step down that distance per round. Here it is one Gauss-Newton step on the
    states that the adapted policies visit (`-outer_rate H^-1 grad`, H the Fisher metric), shortened until the distance
    falls. `observations` are `[..., time, observation]`, as in `outer_update`.
    """
    wanted = jax.vmap(lambda x, s: with_parameters(policy, x)(s.observation))(meta.adapted, meta.samples)
    visited, theirs = meta.samples.observation, meta.samples.valid
    weight = state_weight(theirs)

    def distance(y: Vector) -> Array:
        return jnp.sum(weight * jnp.where(theirs, wanted.kl(with_parameters(policy, y)(visited)), 0))

    before, gradient = jax.value_and_grad(distance)(theta)
    metric = metric_at(config, policy, theta, visited, theirs, config.fisher_states)
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
    control: Control | None = None,
) -> tuple[Vector, Control | None, Metrics]:
    """The outer step (eq. 12), its line search, and the controller's next state but for what it accumulates.

    `observations` are those of the meta-policy, `[..., time, observation]`, of which the `valid` ones count. A step
    "cpo" bounds `(G + correction) / share + dG . s`; without `control`, as in the paper, `G + dG . s`.
    """
    gradients, noise = meta_gradients(config, policy, theta, meta)
    violations = outer_violations(config, meta)
    metric = metric_at(config, policy, theta, observations, valid, config.fisher_states)
    rows, bounds, objective = gradients[:0], violations[:0], gradients[0]
    if config.outer == "cpo":
        rows, bounds = gradients[1:], violations
        if control is not None:
            if noise is not None:
                solving = {"iterations": config.cg_iterations, "damping": config.damping}
                seen = through_metric(rows, noise, metric, **solving)
                control = control.measured(jnp.diagonal(seen.effect), jnp.diagonal(seen.gram))
            bounds = (violations + control.correction) / control.share(config.least_share)
    elif config.outer == "switch":
        objective = jnp.where(jnp.all(violations <= 0), gradients[0], -gradients[1:][jnp.argmax(violations)])
    found = trust_region_step(
        objective,
        rows,
        bounds,
        metric,
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
    return search.parameters, control, metrics


def _shifted_objective(
    policy: GaussianPolicy, meta: MetaData, adapted: Float[Array, "tasks parameters"]
) -> tuple[Float[Array, ""], Float[Array, " costs"]]:
    def one(x: Vector, samples: Samples, violations: Array, start: Vector) -> tuple[Array, Array]:
        values = surrogate(with_parameters(policy, x), with_parameters(policy, start)(samples.observation), samples)
        return values.reward, violations + values.costs

    reward, costs = jax.vmap(one)(adapted, meta.samples, meta.violations, meta.adapted)
    return reward.mean(), costs.mean(0)
