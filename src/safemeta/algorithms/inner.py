"""Inner updates: one step of a task's policy on fixed data, as a differentiable function of its parameters.

On the data D of one inner step every quantity is a function of the parameters x: with importance ratios
`rho = pi_x / pi_D` the predicted reward `L(x) = E_D[(rho - 1) A]`, the predicted costs `b(x) = J_c - d + E_D[sum_t w_t
(rho - 1) A_c]` (both in the units of the problem), and the Fisher metric H(x). The step solves the CPO problem

    max_s  grad L(x) . s   subject to  b(x) + grad b(x) s <= 0,  1/2 s . H(x) s <= radius

(eq. 9 of the Meta-CPO paper) and is differentiated with respect to x through the solver. Other inner updates read the
same L, b and H: "dual" solves problem (1) of the dual method, `max L - lambda KL` subject to `b + lambda_c KL <= 0`, in
second order.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.directions import Directions, constrained_step, dual_step, without_objective
from safemeta.algorithms.surrogate import Samples, Surrogate, fisher_metric, metric_states, state_weight, surrogate
from safemeta.nets import DiagonalGaussian, GaussianPolicy, with_parameters
from safemeta.solvers import (
    Metric,
    accept_cpo,
    accept_trpo,
    backtrack,
    solve_rows,
    trust_region_step,
    values_and_gradients,
)

Vector = Float[Array, " parameters"]


class InnerData(eqx.Module):
    """All that inner steps depend on, beside the parameters: of one task and step, or with leading axes `*steps`."""

    samples: Samples
    violations: Float[Array, "*steps costs"]  # estimated cost less what is allowed
    fraction: Float[Array, "*steps"]  # of the step that the line search took; a constant in the derivative
    discount: Float[Array, "*steps"]  # `effective_discount`: the units of the dual method's problem


class InnerStep(NamedTuple):
    """An inner step and what is known of it."""

    step: Vector
    multipliers: Float[Array, " costs"]
    feasible: Bool[Array, ""]


def signals(
    config: BilevelConfig, policy: GaussianPolicy, x: Vector, samples: Samples
) -> tuple[Float[Array, ""], Float[Array, " costs"]]:
    """Predicted change of the reward (mean advantage) and of each limited cost at parameters `x`.

    With `sampling="ratio"` the importance ratio stands in both derivatives: its second derivative holds the score
    terms through which the data's distribution depends on the parameters (low-variance curvature, Rothfuss et al.
    2019). With "ignored" the log-density takes its place: the same first derivative at the data's policy, the second
    as if the data fell from the sky, as in the Meta-CPO paper.
    """
    log_ratio = with_parameters(policy, x)(samples.observation).log_prob(samples.action) - samples.log_prob
    log_ratio = jnp.where(samples.valid, log_ratio, 0)
    change = jnp.expm1(log_ratio) if config.sampling == "ratio" else log_ratio
    reward = jnp.sum(samples.reward_weight * change * samples.advantage)
    weighted = (samples.cost_weight * change)[..., None] * samples.cost_advantages
    return reward, jnp.sum(weighted, axis=-2).mean(axis=0)


def metric_at(
    config: BilevelConfig, policy: GaussianPolicy, x: Vector, observations: Array, valid: Array, states: int
) -> Metric | None:
    """The Fisher metric at `x` on about so many valid states of `[..., time, observation]`; None: the Euclidean one."""
    if config.metric == "euclidean":
        return None
    some, weight = metric_states(observations, state_weight(valid), states)
    return fisher_metric(lambda y: with_parameters(policy, y)(some), x, weight)


def inner_step(config: BilevelConfig, policy: GaussianPolicy, x: Vector, data: InnerData) -> InnerStep:
    """The whole step of one inner update from parameters `x`, before any line search."""

    def predicted(y: Vector) -> Float[Array, " signals"]:
        reward, costs = signals(config, policy, y, data.samples)
        return jnp.concatenate([reward[None], costs])

    values, gradients = values_and_gradients(predicted, x)
    offsets = data.violations + values[1:]
    none = jnp.zeros_like(data.violations)
    if config.inner == "gradient":
        # Means over states of advantages of spread one: a limited cost is a sum over hundreds of steps, whose plain
        # gradient at such a rate throws the policy away.
        samples = data.samples
        spread = jnp.sqrt(jnp.sum(samples.reward_weight * samples.advantage**2)) + 1e-8
        of_costs = jnp.sum(samples.reward_weight[..., None] * samples.cost_advantages**2, axis=(0, 1))
        total = jnp.sum(samples.cost_weight, axis=-1).mean()
        weight = config.penalty * (offsets > 0) / (total * jnp.sqrt(of_costs) + 1e-8)
        step = config.inner_learning_rate * (gradients[0] / spread - weight @ gradients[1:])
        return InnerStep(step, none, jnp.all(offsets <= 0))
    observations, valid = data.samples.observation, data.samples.valid
    metric = metric_at(config, policy, x, observations, valid, config.fisher_states // 10)
    if config.inner == "dual":
        return _dual_step(config, metric, gradients, offsets, data.discount)
    rows, bounds, objective = gradients[:0], offsets[:0], gradients[0]
    if config.inner == "cpo":
        rows, bounds = gradients[1:], offsets
    elif config.inner == "crpo":  # up the reward while all costs are kept, else down the one that is violated most
        worst = jnp.argmax(offsets)
        objective = jnp.where(jnp.all(offsets <= 0), gradients[0], -gradients[1:][worst])
    found = trust_region_step(
        objective,
        rows,
        bounds,
        metric,
        config.inner_radius,
        iterations=config.cg_iterations,
        tolerance=0.0,
        damping=config.damping,
    )
    return InnerStep(found.step, found.multipliers if config.inner == "cpo" else none, found.feasible)


def _dual_step(
    config: BilevelConfig,
    metric: Metric | None,
    gradients: Float[Array, "signals parameters"],
    offsets: Float[Array, " costs"],
    discount: Float[Array, ""],
) -> InnerStep:
    """The dual method's step; while a cost is above its limit, the one that lowers it furthest."""
    solutions = gradients
    if metric is not None:
        found = solve_rows(metric, gradients, iterations=config.cg_iterations, tolerance=0.0, damping=config.damping)
        solutions = found.solution
    gram = gradients @ solutions.T
    gram = (gram + gram.T) / 2
    found = Directions(solutions, gram, gram)
    safe = jnp.all(offsets <= 0)
    # Each branch is differentiated; the one that is not taken must not be asked what it cannot do.
    solved, improving = dual_step(
        found,
        jnp.where(safe, -offsets, 0.0),
        discount,
        kl_weight=config.kl_weight,
        cost_kl_weight=config.cost_kl_weight,
        kl_limit=config.inner_radius,
    )
    lowering, _ = constrained_step(without_objective(found), offsets, config.inner_radius)
    return InnerStep(jnp.where(safe, improving, lowering), jnp.where(safe, solved.multipliers, 0.0), safe)


def inner_update(
    config: BilevelConfig,
    policy: GaussianPolicy,
    x: Vector,
    samples: Samples,
    violations: Float[Array, " costs"],
    discount: Float[Array, ""],
) -> tuple[Vector, InnerData, dict[str, Any]]:
    """The step, shortened until the evaluated surrogates accept it; and its data, for the derivative."""
    data = InnerData(samples, violations, jnp.ones((), x.dtype), discount)
    old: DiagonalGaussian = with_parameters(policy, x)(samples.observation)
    found = inner_step(config, policy, x, data)

    def evaluate(candidate: Vector) -> Surrogate:
        return surrogate(with_parameters(policy, candidate), old, samples)

    def accept(values: Surrogate, fraction: Array) -> Array:
        within = values.kl <= 1.5 * config.inner_radius
        if config.inner == "cpo":
            after = violations + values.costs
            radius = config.inner_radius
            return accept_cpo(values.reward, values.kl, after, violations, radius, feasible=found.feasible, slack=1.5)
        if config.inner == "trpo":
            return accept_trpo(values.reward, values.kl, config.inner_radius, slack=1.5)
        if config.inner == "crpo":
            lowered = values.costs[jnp.argmax(violations)] < 0
            return within & jnp.where(jnp.all(violations <= 0), values.reward > 0, lowered)
        if config.inner == "dual":
            rise = values.costs + config.cost_kl_weight * values.kl
            kept = (values.reward > 0) & jnp.all(rise <= -violations)
            room = jnp.maximum(-violations, 0)  # while one cost is lowered, another may use what it has left
            lowered = jnp.all(jnp.where(room > 0, rise, values.costs) <= room)
            return within & jnp.where(found.feasible, kept, lowered)
        return jnp.isfinite(values.kl)  # MAML's step has no trust region

    search = backtrack(evaluate, x, found.step, accept, shrink=0.7, steps=10)
    fraction = search.fraction.astype(x.dtype)
    facts = {
        "kl": jnp.where(search.accepted, search.values.kl, 0.0),
        "accepted": search.accepted,
        "feasible": found.feasible,
        "multipliers": found.multipliers,
    }
    taken = InnerData(samples, violations, jax.lax.stop_gradient(fraction), discount)
    return x + fraction * found.step, taken, facts


def replayed(config: BilevelConfig, policy: GaussianPolicy, x: Vector, data: InnerData) -> Vector:
    """The parameters after all inner steps on fixed data: the function that the meta-gradient differentiates.

    `data` has leaves `[steps, ...]`. The steps are one loop of the compiled program, which is no larger for more steps.
    """

    def step(x: Vector, each: InnerData) -> tuple[Vector, None]:
        return x + each.fraction * inner_step(config, policy, x, each).step, None

    return jax.lax.scan(step, x, data)[0]
