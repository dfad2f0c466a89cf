"""The meta-step of the dual method: one trust-region step of the meta-policy on the data of a batch of tasks."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.directions import Predictions, constrained_step, corrected, directions
from safemeta.algorithms.dual_adaptation import Evidence, parts_of
from safemeta.algorithms.dual_config import Config
from safemeta.algorithms.estimation import Advantages
from safemeta.algorithms.surrogate import (
    Samples,
    Surrogate,
    Vector,
    fisher_metric,
    make_samples,
    metric_states,
    surrogate,
)
from safemeta.core import CMDP, Trajectory
from safemeta.nets import DiagonalGaussian, GaussianPolicy, parameters, with_parameters
from safemeta.solvers import backtrack


class MetaBatch(NamedTuple):
    """Leaves are `[tasks, episodes, time, ...]`; the meta-policy collected `before`, the adapted ones `after`."""

    before: Trajectory
    before_advantages: Advantages
    after: Trajectory
    after_advantages: Advantages
    evidence: Evidence
    adapted_log_prob: Float[Array, "tasks episodes time"]  # of the actions in `before`, under the adapted policies
    costs: Float[Array, "tasks costs"]  # of the meta-policy
    limits: Float[Array, "tasks costs"]
    correction: Float[Array, " costs"]  # added to the measured violation, see `meta_step`


class _Problem(NamedTuple):
    """What the step maximises (the sum of the objectives) and bounds, as samples and their weights over tasks."""

    objectives: tuple[Samples, ...]
    costs: Samples
    task_weight: Float[Array, "tasks costs"]  # of each constraint
    violations: Float[Array, " costs"]  # empty where the step has no constraints


def meta_step(
    config: Config, cmdp: CMDP, policy: GaussianPolicy, batch: MetaBatch
) -> tuple[GaussianPolicy, Float[Array, " costs"], Metrics]:
    """The meta-policy after one step (its normaliser is left as it is), and the next correction.

    The linearised cost is believed too good, since it is predicted on the samples that made the step: without a
    correction the cost settles above its target. So the accumulated excess (`integral_gain` per iteration) is added
    to the measured violation, see `directions.corrected`; it never exceeds the limit.
    """
    problem = _constrained(config, cmdp, policy, batch)
    if config.meta_update == "switch":
        problem = _switched(config, batch, problem)
    start = parameters(policy)
    reference = jax.lax.stop_gradient(policy(problem.costs.observation))
    objective, costs = _predictions(policy, problem, config.meta_cross_fit)
    # As the divergence below counts them: every state alike.
    everything = problem.costs.valid / jnp.sum(problem.costs.valid)
    states, weight = metric_states(problem.costs.observation, everything, config.fisher_states)
    metric = fisher_metric(lambda x: with_parameters(policy, x)(states), start, weight)
    found = directions(
        [objective, costs] if problem.violations.size else [objective],
        start,
        metric,
        cross_fit=config.meta_cross_fit,
        iterations=config.cg_iterations,
        damping=config.damping,
    )
    step, solved = constrained_step(found, problem.violations, config.meta_kl)

    def evaluate(x: Array) -> tuple[Array, Array]:
        kl = with_parameters(policy, x)(problem.costs.observation).kl(reference)
        return objective(x).mean(), jnp.sum(kl * problem.costs.valid) / jnp.sum(problem.costs.valid)

    def accept(values: tuple[Array, Array], fraction: Array) -> Array:
        gain, kl = values
        # Keeping a constraint may cost some of the objective: a gain is asked for only where one was predicted.
        wanted = (gain > 0) | (solved.objective_change <= 0) | ~solved.feasible
        return jnp.isfinite(gain) & (kl <= 1.5 * config.meta_kl) & wanted

    search = backtrack(evaluate, start, step, accept, shrink=0.7, steps=8)
    correction = batch.correction
    if problem.violations.size:
        excess = problem.violations - correction
        correction = corrected(correction, excess, solved.feasible, config.integral_gain)
        correction = jnp.minimum(correction, batch.limits.mean(0))
    metrics = {
        "meta_kl": jnp.where(search.accepted, search.values[1], 0.0),
        "meta_feasible": solved.feasible.astype(jnp.float32),
        "meta_accepted": search.accepted.astype(jnp.float32),
    }
    return with_parameters(policy, search.parameters), correction, metrics


def _predictions(policy: GaussianPolicy, problem: _Problem, cross_fit: bool) -> tuple[Predictions, Predictions]:
    """Predicted objective, and constrained costs, of new parameters, from either half (or all) of a task's episodes."""

    def split(samples: Samples) -> tuple[DiagonalGaussian, Samples]:
        old = jax.lax.stop_gradient(policy(samples.observation))
        return jax.vmap(lambda o, s: parts_of(o, s, cross_fit))(old, samples)

    objectives = [split(samples) for samples in problem.objectives]
    bounded = split(problem.costs)

    def predict(x: Vector, pair: tuple[DiagonalGaussian, Samples]) -> Surrogate:
        """Leaves `[tasks, parts, ...]`."""
        new = with_parameters(policy, x)
        return jax.vmap(jax.vmap(lambda old, samples: surrogate(new, old, samples)))(*pair)

    def objective(x: Vector) -> Float[Array, "parts 1"]:
        return sum((predict(x, pair).reward.mean(0) for pair in objectives), start=jnp.zeros(()))[:, None]

    def costs(x: Vector) -> Float[Array, "parts costs"]:
        return jnp.einsum("tc,tpc->pc", problem.task_weight, predict(x, bounded).costs)

    return objective, costs


def _constrained(config: Config, cmdp: CMDP, policy: GaussianPolicy, batch: MetaBatch) -> _Problem:
    """Up the meta-gradient, subject to the meta-policy's cost on the worst tasks.

    A softmax over tasks of the excess over the limit says which tasks are the worst ones: the largest of several noisy
    estimates alone would be picked by its noise.
    """
    after = jax.vmap(lambda t, a: make_samples(t, a, cmdp))(batch.after, batch.after_advantages)
    # eq. 6: states and actions of the adapted policy, but the score function of the meta-policy.
    own = jax.lax.stop_gradient(policy(after.observation).log_prob(after.action))
    after = eqx.tree_at(lambda s: s.log_prob, after, own)
    before = jax.vmap(lambda t, a: make_samples(t, a, cmdp))(batch.before, batch.before_advantages)
    objectives = (after, before) if config.own_return else (after,)
    if config.meta_gradient == "full":
        objectives = (*objectives, _through_adaptation(cmdp, batch, before))
    excess = batch.costs - ((1 - config.meta_margin) * batch.limits + config.slack)
    weight = jax.nn.softmax(excess / (config.worst_temperature * jnp.maximum(batch.limits, 1e-6)), axis=0)
    return _Problem(objectives, before, weight, jnp.sum(weight * excess, axis=0) + batch.correction)


def _switched(config: Config, batch: MetaBatch, up: _Problem) -> _Problem:
    """CRPO's either-or: the meta-gradient if every sampled task is safe, else down the cost that is most exceeded."""
    excess = batch.costs - ((1 - config.meta_margin) * batch.limits + config.slack)
    unsafe = jnp.any(excess > 0, axis=1)
    worst = jnp.argmax(excess, axis=1)
    share = unsafe / jnp.maximum(unsafe.mean(), 1e-9)  # since the objective is a mean over all tasks
    cost = jnp.take_along_axis(up.costs.cost_advantages, worst[:, None, None, None], axis=-1)[..., 0]
    weight = up.costs.cost_weight / jnp.sum(up.costs.cost_weight, axis=(1, 2), keepdims=True)
    down = eqx.tree_at(lambda s: (s.advantage, s.reward_weight), up.costs, (-cost * share[:, None, None], weight))
    idle = eqx.tree_at(lambda s: s.advantage, down, jnp.zeros_like(down.advantage))
    instead = (down, *(idle for _ in up.objectives[1:]))
    chosen = jax.tree.map(lambda d, u: jnp.where(jnp.any(unsafe), d, u), instead, up.objectives)
    return _Problem(chosen, up.costs, up.task_weight[:, :0], up.violations[:0])


def _through_adaptation(cmdp: CMDP, batch: MetaBatch, before: Samples) -> Samples:
    """The second term of eq. 6, `eta^-1 grad Qbar Q^tau`, as a policy gradient on the meta-policy's data.

    With `Qbar = Q - sum_i u_i Q_ci`, `grad Qbar(s_t, a_t) = E sum_{k > t} discount^(k - t) grad log pi(a_k | s_k)
    Abar(s_k, a_k)`. Exchanging the sums gives each step k the weight `sum_{t < k} discount^(k - t) rho_t A(s_t, a_t)`,
    with importance weights `rho = pi^tau / pi_phi`; advantages take the place of Q, whose means over actions cancel.
    The multipliers are held fixed, as in the paper.
    """
    tau = batch.adapted_log_prob
    rho = jnp.exp(tau - before.log_prob)
    weight = jnp.moveaxis(rho * before.advantage * before.valid, -1, 0)

    def forward(carried: Array, following: Array) -> tuple[Array, Array]:
        return cmdp.discount * (carried + following), carried

    _, earlier = jax.lax.scan(forward, jnp.zeros_like(weight[0]), weight)
    combined = before.advantage - jnp.einsum("tepc,tc->tep", before.cost_advantages, batch.evidence.multipliers)
    advantage = combined * jnp.moveaxis(earlier, 0, -1) / batch.evidence.eta[:, None, None]
    return eqx.tree_at(lambda s: s.advantage, before, advantage)
