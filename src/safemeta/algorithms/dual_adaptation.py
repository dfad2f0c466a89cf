"""One safe adaptation step: problem (1) of the dual-method paper, in three parametric forms.

Given data of the current policy on one task, problem (1) has the solution `pi^u ~ pi exp((A - sum_i u_i A_ci) /
eta(u))` (Proposition 1). A network has to represent it; `form` says how:

- "natural": to second order in the parameters. The multipliers are exact for that model (`solvers.dual_quadratic`), and
  the new parameters are `F^-1 (g - sum_i u_i b_i) / eta` away. This is Algorithm 3 with the natural gradient as
  theta_u.
- "fit": multipliers as above (Algorithm 3), then the network is fitted to pi^u on the same data by importance
  weights (E.2.2).
- "gaussian": advantages are modelled as quadratics in the action, pi^u is Gaussian in closed form (E.2.1), the
  multipliers are exact for it, and the network takes one Gauss-Newton step towards its mean and deviation.

Safety comes from what the paper does not have: a margin below the limit and a hard limit on KL. While the estimated
cost is above the limit less the margin, the step only lowers costs. With `cross_fit`, effects are predicted across
halves of the data (`directions.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from safemeta.algorithms.critics import CriticState, assess
from safemeta.algorithms.directions import Directions, constrained_step, directions, dual_step, without_objective
from safemeta.algorithms.dual_config import Config
from safemeta.algorithms.estimation import Advantages, effective_discount, episode_return, limited_costs
from safemeta.algorithms.gaussian_form import fit_quadratic_advantages
from safemeta.algorithms.surrogate import (
    Samples,
    Surrogate,
    fisher_metric,
    halves_of,
    make_samples,
    metric_states,
    state_weight,
    surrogate,
)
from safemeta.core import CMDP, Trajectory
from safemeta.nets import DiagonalGaussian, GaussianPolicy, parameters, with_parameters
from safemeta.solvers import (
    DualSolution,
    Metric,
    Outcome,
    backtrack,
    dual_gaussian,
    gaussian_policy,
    solve_rows,
)

OUTCOME_NAMES = ("improved", "cost lowered", "kept")
IMPROVED, LOWERED, KEPT = range(3)


class Evidence(NamedTuple):
    """What was known of a policy when it was adapted, and what the step was."""

    estimated_return: Float[Array, ""]
    estimated_costs: Float[Array, " costs"]
    multipliers: Float[Array, " costs"]
    eta: Float[Array, ""]  # temperature of the closed form
    kl: Float[Array, ""]
    outcome: Int[Array, ""]


def adapt_once(
    config: Config,
    cmdp: CMDP,
    policy: GaussianPolicy,
    critics: CriticState,
    trajectory: Trajectory,
    limits: Float[Array, " costs"],
    key: PRNGKeyArray,
) -> tuple[GaussianPolicy, Evidence, Advantages]:
    """Adapt one policy to one task from its own episodes `[episodes, time, ...]`."""
    advantages = assess(config.critic, critics, policy.normalizer, trajectory, cmdp, config.gae_smoothing)
    samples = make_samples(trajectory, advantages, cmdp)
    costs = limited_costs(trajectory, cmdp).mean(0)
    allowance = (1 - config.margin) * limits + config.slack - costs  # what the next policy's costs may rise by

    start = parameters(policy, config.adapt)
    old = jax.lax.stop_gradient(policy(samples.observation))
    metric = _metric(config, policy, samples, start)
    found = _directions(config, policy, old, samples, start, metric)
    multipliers, improving = dual_step(
        found,
        allowance,
        effective_discount(cmdp),
        kl_weight=config.kl_weight,
        cost_kl_weight=config.cost_kl_weight,
        kl_limit=config.kl_limit,
    )
    if config.form == "fit":
        improving = _fitted_step(config, policy, samples, multipliers, key)
    elif config.form == "gaussian":
        multipliers, improving = _gaussian_step(config, cmdp, policy, old, samples, allowance, metric, key)
    lowering, _ = constrained_step(without_objective(found), -config.lowering * allowance, config.kl_limit)
    safe = jnp.all(allowance >= 0) & (multipliers.outcome != Outcome.INFEASIBLE)
    step = jnp.where(safe, improving, lowering)

    # While one cost is lowered, another may use what it has left.
    room = jnp.where(jnp.any(allowance < 0), jnp.maximum(allowance, 0), 0)

    def evaluate(candidate: Array) -> Surrogate:
        return surrogate(with_parameters(policy, candidate, config.adapt), old, samples)

    def accept(values: Surrogate, fraction: Array) -> Array:
        # A cost surrogate judged on the samples that made the step flatters it: with cross-fitting it is not asked.
        rise = values.costs + config.cost_kl_weight * values.kl
        kept = (values.reward > 0) & (config.cross_fit | jnp.all(rise <= allowance))
        lowered = jnp.all(jnp.where(room > 0, rise, values.costs) <= room)
        finite = jnp.isfinite(values.reward) & jnp.all(jnp.isfinite(values.costs))
        return finite & (values.kl <= 1.5 * config.kl_limit) & jnp.where(safe, kept, lowered)

    search = backtrack(evaluate, start, step, accept, shrink=0.6, steps=8)
    outcome = jnp.where(search.accepted, jnp.where(safe, IMPROVED, LOWERED), KEPT)
    kl = jnp.where(search.accepted, search.values.kl, 0)
    evidence = Evidence(episode_return(trajectory).mean(), costs, multipliers.multipliers, multipliers.eta, kl, outcome)
    return with_parameters(policy, search.parameters, config.adapt), evidence, advantages


def _metric(config: Config, policy: GaussianPolicy, samples: Samples, start: Array) -> Metric:
    states, weight = metric_states(samples.observation, state_weight(samples.valid), config.fisher_states // 10)
    return fisher_metric(lambda x: with_parameters(policy, x, config.adapt)(states), start, weight)


def _directions(
    config: Config, policy: GaussianPolicy, old: DiagonalGaussian, samples: Samples, start: Array, metric: Metric
) -> Directions:
    split = parts_of(old, samples, config.cross_fit)

    def parts(x: Array) -> Array:
        new = with_parameters(policy, x, config.adapt)
        value = jax.vmap(lambda o, s: surrogate(new, o, s))(*split)
        return jnp.concatenate([value.reward[:, None], value.costs], axis=1)

    return directions(
        [parts], start, metric, cross_fit=config.cross_fit, iterations=config.cg_iterations, damping=config.damping
    )


def parts_of(old: DiagonalGaussian, samples: Samples, cross_fit: bool) -> tuple[DiagonalGaussian, Samples]:
    """One task's samples in two halves, or in one part where halves would leave out an episode for nothing."""
    if cross_fit or samples.valid.shape[0] % 2 == 0:
        return halves_of(old, samples)
    return jax.tree.map(lambda leaf: leaf[None], (old, samples))


def _gaussian_step(
    config: Config,
    cmdp: CMDP,
    policy: GaussianPolicy,
    old: DiagonalGaussian,
    samples: Samples,
    allowance: Array,
    metric: Metric,
    key: PRNGKeyArray,
) -> tuple[DualSolution, Array]:
    """Multipliers of the Gaussian closed form, and the step whose moments are nearest to it in the Fisher metric.

    To second order `KL(new || pi^u)` is `|J x - d|^2 / 2`, d being what mean and log deviation have to move by, in
    the metric M of the moments: its minimum is `F^-1 J' M d`, `F = J' M J`.
    """
    old, rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (old, samples))
    discount = effective_discount(cmdp)
    reward, costs = fit_quadratic_advantages(config, policy, rows, discount, key)
    std = jnp.exp(old.log_std)
    solution = dual_gaussian(
        std,
        reward,
        costs,
        rows.cost_weight / jnp.sum(rows.cost_weight),
        (1 - discount) * allowance,
        config.kl_weight,
        jnp.full(allowance.shape, config.cost_kl_weight),
        discount,
        kl_limit=config.kl_limit,
    )
    mean, deviation = gaussian_policy(old.mean, std, reward, costs, solution.multipliers, solution.eta)
    wanted = (mean - old.mean) / std**2, 2 * jnp.log(deviation / std)  # M d

    def along(x: Array) -> Array:
        new = with_parameters(policy, x, config.adapt)(rows.observation)
        products = jnp.sum(new.mean * wanted[0] + new.log_std * wanted[1], axis=-1)
        return jnp.sum(products * rows.valid) / jnp.sum(rows.valid)

    pull = jax.grad(along)(parameters(policy, config.adapt))
    solved = solve_rows(metric, pull[None], iterations=config.cg_iterations, damping=config.damping)
    return solution, solved.solution[0]


def _fitted_step(
    config: Config, policy: GaussianPolicy, samples: Samples, dual: DualSolution, key: PRNGKeyArray
) -> Array:
    """To the network fitted to pi^u by importance weights: Adam on minibatches of the same data (E.2.2)."""
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), samples)
    tilt = (rows.advantage - rows.cost_advantages @ dual.multipliers) / dual.eta
    start = parameters(policy, config.adapt)

    def loss(x: Array, chosen: Array) -> Array:
        new = with_parameters(policy, x, config.adapt)(rows.observation[chosen])
        log_ratio = new.log_prob(rows.action[chosen]) - rows.log_prob[chosen]
        return jnp.sum(jnp.exp(log_ratio) * (log_ratio - tilt[chosen]) * rows.valid[chosen])

    return _adam(config, loss, start, rows.valid.shape[0], key) - start


def _adam(config: Config, loss: Any, start: Array, count: int, key: PRNGKeyArray) -> Array:
    optimizer = optax.adam(config.fit_learning_rate)
    chosen = jax.random.randint(key, (config.fit_steps, config.minibatch), 0, count)

    def advance(carry, rows):
        x, moments = carry
        gradient = jax.grad(loss)(x, rows) / config.minibatch
        updates, moments = optimizer.update(gradient, moments)
        return (x + updates, moments), None

    (x, _), _ = jax.lax.scan(advance, (start, optimizer.init(start)), chosen)
    return x
