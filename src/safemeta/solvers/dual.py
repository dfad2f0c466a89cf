"""Multipliers of KL-penalised policy adaptation.

Xu and Zhu, "Safe Meta-Reinforcement Learning via Dual-Method-Based Policy Adaptation", problem 1, Propositions 1, 2:

    maximise over pi    E[A] - lam KL      subject to      E[A_ci] + (1 - discount) lam_ci KL <= d'_i,

with d'_i = (1 - discount)(limit_i + slack_i - J_ci) and expectations under the current policy's states. Its
solution is `pi^u ~ pi exp((A - sum_i u_i A_ci) / eta(u))` with `eta(u) = lam + (1 - discount) sum_i u_i lam_ci`
(Proposition 1), and u minimises the convex dual function (4), in its corrected form of appendix F.2.3:

    L(u) = E_{pi^u}[A - sum_i u_i A_ci] - eta(u) KL(pi^u | pi) + sum_i u_i d'_i .

Three policy classes, one problem in p dimensions: discrete (exact), Gaussian with a quadratic advantage (E.2.1), and
a parametric policy seen to second order (natural gradient). `newton` needs about 5 to 10 iterations;
`projected_gradient` is the paper's Algorithm 1, `u <- max(0, u - learning_rate dL/du)` from u = 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from safemeta.solvers._dual_newton import DualModel, Method, implicit, minimise
from safemeta.solvers.linear import rounding
from safemeta.solvers.outcome import Outcome


class DualSolution(NamedTuple):
    """Multipliers, temperature and evidence.

    With `kl_limit`, the limit on KL is one more constraint: its multiplier is kept apart and is part of `eta`.
    INFEASIBLE: no policy of the class meets every bound; the multipliers are at their cap, and the policy that belongs
    to them is (nearly) the one with the least bound on the costs.
    """

    multipliers: Float[Array, " p"]
    kl_multiplier: Float[Array, ""]
    eta: Float[Array, ""]
    gradient: Float[Array, " p"]  # dL/du: what is left of each budget, d'_i - (its use); negative: exceeded
    value: Float[Array, ""]
    outcome: Int[Array, ""]  # an `Outcome`: SOLVED, INFEASIBLE or NOT_CONVERGED
    iterations: Int[Array, ""]


class _Problem(NamedTuple):
    """What the three classes share; the limit on KL, if any, is the last constraint."""

    budget: Float[Array, " q"]
    weight: Float[Array, " q"]  # eta(u) = lam + weight.u
    lam: Float[Array, ""]


def dual_discrete(
    log_prob: Float[Array, "s a"],
    advantage: Float[Array, "s a"],
    cost_advantage: Float[Array, "p s a"],
    state_weight: Float[Array, " s"],
    budget: Float[Array, " p"],
    lam: float | Array,
    lam_cost: Float[Array, " p"],
    discount: float | Array,
    *,
    kl_limit: float | Array | None = None,
    method: Method = "newton",
    iterations: int | None = None,
    tolerance: float | None = None,
    learning_rate: float = 0.1,
    multiplier_limit: float = 1e6,
) -> DualSolution:
    """Multipliers for a discrete policy, exactly.

    `log_prob` is the current policy (normalised over actions; -inf is an action it never takes), `state_weight` the
    distribution of states, `budget` is d'. L, its gradient (eq. 5) and its Hessian
    `E_s Cov(A_ci + (1 - discount) lam_ci w, ...) / eta`, `w = (A - sum u A_c) / eta`, all under `pi^u`, are exact.
    `iterations` defaults to 50 (newton) or 2,000 (projected_gradient). `discrete_policy` gives the adapted policy.
    """
    dtype = advantage.dtype
    problem = _problem(budget, lam, lam_cost, discount, kl_limit, dtype)
    extra = problem.budget.shape[0] - cost_advantage.shape[0]
    costs = jnp.concatenate([cost_advantage, jnp.zeros((extra, *advantage.shape), dtype)])

    def model(multipliers: Array) -> DualModel:
        eta = problem.lam + problem.weight @ multipliers
        tilt = (advantage - jnp.tensordot(multipliers, costs, 1)) / eta
        log_mass = jax.nn.logsumexp(log_prob + tilt, axis=1)
        prob = state_weight[:, None] * jnp.exp(log_prob + tilt - log_mass[:, None])
        kl = jnp.sum(prob * tilt) - state_weight @ log_mass
        use = jnp.sum(prob * costs, axis=(1, 2)) + problem.weight * kl
        moved = costs + problem.weight[:, None, None] * tilt
        centred = moved - (jnp.sum(moved * prob, axis=2) / _positive(state_weight))[:, :, None]
        hessian = jnp.einsum("isa,jsa,sa->ij", centred, centred, prob) / eta
        value = eta * (state_weight @ log_mass) + multipliers @ problem.budget
        spread = jnp.sum(prob * jnp.abs(costs), axis=(1, 2)) + problem.weight * jnp.abs(kl)
        return DualModel(value, problem.budget - use, hessian, _positive(jnp.abs(problem.budget) + spread))

    return _solve(model, problem, kl_limit is not None, method, iterations, tolerance, learning_rate, multiplier_limit)


def discrete_policy(
    log_prob: Float[Array, "s a"],
    advantage: Float[Array, "s a"],
    cost_advantage: Float[Array, "p s a"],
    multipliers: Float[Array, " p"],
    eta: Float[Array, ""],
) -> Float[Array, "s a"]:
    """Proposition 1: the log-probabilities of `pi exp((A - sum_i u_i A_ci) / eta)`."""
    return jax.nn.log_softmax(log_prob + (advantage - jnp.tensordot(multipliers, cost_advantage, 1)) / eta, axis=1)


class QuadraticAdvantage(NamedTuple):
    """Per state, `offset + slope.x - 1/2 x.(curvature x)` with `x = action - mean`; leading axes are free.

    The paper's `-(a - g_Q)^2 / (2 delta_Q^2) + C` has curvature `1 / delta_Q^2` and slope `(g_Q - mean) / delta_Q^2`.
    """

    offset: Float[Array, "*k s"]
    slope: Float[Array, "*k s a"]
    curvature: Float[Array, "*k s a"]

    def combined(self, costs: "QuadraticAdvantage", multipliers: Float[Array, " p"]) -> "QuadraticAdvantage":
        """`A - sum_i u_i A_ci`."""
        return jax.tree.map(lambda ours, theirs: ours - jnp.tensordot(multipliers, theirs, 1), self, costs)


def dual_gaussian(
    std: Float[Array, "s a"],
    advantage: QuadraticAdvantage,
    cost_advantage: QuadraticAdvantage,
    state_weight: Float[Array, " s"],
    budget: Float[Array, " p"],
    lam: float | Array,
    lam_cost: Float[Array, " p"],
    discount: float | Array,
    *,
    kl_limit: float | Array | None = None,
    method: Method = "newton",
    iterations: int | None = None,
    tolerance: float | None = None,
    learning_rate: float = 0.1,
    multiplier_limit: float = 1e6,
) -> DualSolution:
    """Multipliers for a Gaussian policy and advantages that are quadratic in the action (E.2.1).

    `pi^u` is Gaussian with precision `1 / std^2 + h / eta`, h the combined curvature; where that is not positive the
    adapted policy does not exist, L is infinite, and the search keeps away. Costs carry a leading axis p.
    """
    dtype = std.dtype
    problem = _problem(budget, lam, lam_cost, discount, kl_limit, dtype)
    extra = problem.budget.shape[0] - cost_advantage.offset.shape[0]
    costs = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, jnp.zeros((extra, *leaf.shape[1:]), dtype)]), cost_advantage
    )

    def value(multipliers: Array) -> Array:
        eta = problem.lam + problem.weight @ multipliers
        offset, slope, curvature = advantage.combined(costs, multipliers)
        shrink = 1 + curvature * std**2 / eta  # old variance over new
        exists = jnp.all(shrink > 0)
        shrink = jnp.where(exists, shrink, 1)
        gain = (slope * std) ** 2 / (eta * shrink) - eta * jnp.log(shrink)
        total = state_weight @ (offset + jnp.sum(gain, axis=1) / 2) + multipliers @ problem.budget
        return jnp.where(exists, total, jnp.inf)

    sizes = jax.tree.map(jnp.abs, costs)
    spread = (sizes.offset + jnp.sum(sizes.slope * std + sizes.curvature * std**2, axis=2)) @ state_weight

    def model(multipliers: Array) -> DualModel:
        scale = _positive(jnp.abs(problem.budget) + jax.lax.stop_gradient(spread))
        return DualModel(value(multipliers), jax.grad(value)(multipliers), jax.hessian(value)(multipliers), scale)

    return _solve(model, problem, kl_limit is not None, method, iterations, tolerance, learning_rate, multiplier_limit)


def gaussian_policy(
    mean: Float[Array, "s a"],
    std: Float[Array, "s a"],
    advantage: QuadraticAdvantage,
    cost_advantage: QuadraticAdvantage,
    multipliers: Float[Array, " p"],
    eta: Float[Array, ""],
) -> tuple[Float[Array, "s a"], Float[Array, "s a"]]:
    """Mean and standard deviation of `pi^u`: variance `std^2 eta / (eta + h std^2)`, mean shifted by slope / eta of it.

    (The paper's printed (13) has eta in the wrong places; this follows from the lines before it.)
    """
    _, slope, curvature = advantage.combined(cost_advantage, multipliers)
    variance = std**2 * eta / (eta + curvature * std**2)
    return mean + variance * slope / eta, jnp.sqrt(variance)


def dual_quadratic(
    gram: Float[Array, "q q"],
    budget: Float[Array, " p"],
    lam: float | Array,
    lam_cost: Float[Array, " p"],
    discount: float | Array,
    *,
    kl_limit: float | Array | None = None,
    method: Method = "newton",
    iterations: int | None = None,
    tolerance: float | None = None,
    learning_rate: float = 0.1,
    multiplier_limit: float = 1e6,
) -> DualSolution:
    """Multipliers for a parametric policy, with expected advantages linear and KL quadratic in its parameters.

    The adapted parameters are `phi + F^-1 (g - sum_i u_i b_i) / eta(u)` (`quadratic_step`), where g and b_i are the
    gradients of E[A] and E[A_ci] at phi and F the Fisher information, so that

        L(u) = 1/2 v.S v / eta(u) + u.d' ,     v = (1, -u),   S = [g, b] F^-1 [g, b]' .

    `gram` is S [1 + p, 1 + p]: `rows @ solve_rows(metric, rows, ...).solution.T` with rows (g, b_1, ..., b_p).
    """
    dtype = gram.dtype
    problem = _problem(budget, lam, lam_cost, discount, kl_limit, dtype)
    count = problem.budget.shape[0]
    extra = count + 1 - gram.shape[0]
    full = jnp.pad((gram + gram.T) / 2, ((0, extra), (0, extra)))
    selectors = jnp.eye(count + 1, dtype=dtype)[1:]

    def model(multipliers: Array) -> DualModel:
        eta = problem.lam + problem.weight @ multipliers
        step = jnp.concatenate([jnp.ones(1, dtype), -multipliers]) / eta
        kl = step @ full @ step / 2
        use = full[1:] @ step + problem.weight * kl
        moved = selectors + problem.weight[:, None] * step
        hessian = moved @ full @ moved.T / eta
        spread = jnp.abs(full[1:] * step).sum(axis=1) + problem.weight * jnp.abs(kl)
        scale = _positive(jnp.abs(problem.budget) + spread)
        return DualModel(eta * kl + multipliers @ problem.budget, problem.budget - use, hessian, scale)

    return _solve(model, problem, kl_limit is not None, method, iterations, tolerance, learning_rate, multiplier_limit)


def quadratic_step(
    solutions: Float[Array, "q n"], multipliers: Float[Array, " p"], eta: Float[Array, ""]
) -> Float[Array, " n"]:
    """`F^-1 (g - sum_i u_i b_i) / eta`, from the rows `F^-1 g, F^-1 b_1, ...`."""
    return (solutions[0] - multipliers @ solutions[1:]) / eta


def _positive(size: Array) -> Array:
    """A divisor, or a scale to compare with: one where nothing is there."""
    return jnp.where(size > 0, size, 1)


def _problem(
    budget: Array,
    lam: float | Array,
    lam_cost: Array,
    discount: float | Array,
    kl_limit: float | Array | None,
    dtype: jnp.dtype,
) -> _Problem:
    budget = jnp.asarray(budget, dtype)
    weight = (1 - jnp.asarray(discount, dtype)) * jnp.broadcast_to(jnp.asarray(lam_cost, dtype), budget.shape)
    if kl_limit is not None:
        budget = jnp.append(budget, jnp.asarray(kl_limit, dtype))
        weight = jnp.append(weight, jnp.ones((), dtype))
    return _Problem(budget, weight, jnp.asarray(lam, dtype))


def _solve(
    model: Callable[[Array], DualModel],
    problem: _Problem,
    limited: bool,
    method: str,
    iterations: int | None,
    tolerance: float | None,
    learning_rate: float,
    multiplier_limit: float,
) -> DualSolution:
    dtype = problem.budget.dtype
    if method not in ("newton", "projected_gradient"):
        raise ValueError(f"method must be 'newton' or 'projected_gradient', got {method!r}")
    if iterations is None:
        iterations = 50 if method == "newton" else 2000
    tolerance = rounding(dtype, 0.65) if tolerance is None else tolerance

    def frozen(multipliers: Array) -> DualModel:
        return jax.lax.stop_gradient(model(jax.lax.stop_gradient(multipliers)))

    minimum = minimise(
        frozen,
        jnp.zeros_like(problem.budget),
        method=method,
        iterations=iterations,
        tolerance=tolerance,
        limit=multiplier_limit,
        learning_rate=learning_rate,
    )
    minimum = jax.lax.stop_gradient(minimum)
    multipliers = implicit(model, minimum)
    final = model(multipliers)
    count = problem.budget.shape[0] - limited
    # A dual without a minimum drifts off along a flat valley: it need not have met the cap within the iterations.
    largest = jnp.max(minimum.multipliers, initial=0)
    capped = (largest >= multiplier_limit) | (~minimum.converged & (largest >= 1e-2 * multiplier_limit))
    outcome = jnp.where(minimum.converged, Outcome.SOLVED, Outcome.NOT_CONVERGED)
    outcome = jnp.where(capped, Outcome.INFEASIBLE, outcome)
    return DualSolution(
        multipliers=multipliers[:count],
        kl_multiplier=multipliers[count] if limited else jnp.zeros((), dtype),
        eta=problem.lam + problem.weight @ multipliers,
        gradient=final.gradient[:count],
        value=final.value,
        outcome=outcome.astype(jnp.int32),
        iterations=minimum.iterations,
    )
