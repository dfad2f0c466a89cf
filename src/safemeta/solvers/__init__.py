"""Constrained updates on flat vectors: steps, projections, multipliers, line search. Knows no RL and no networks."""

from safemeta.solvers.dual import (
    DualSolution,
    QuadraticAdvantage,
    discrete_policy,
    dual_discrete,
    dual_gaussian,
    dual_quadratic,
    gaussian_policy,
    quadratic_step,
)
from safemeta.solvers.invariant_step import InvariantStep, invariant_step
from safemeta.solvers.line_search import LineSearch, accept_cpo, accept_trpo, backtrack
from safemeta.solvers.linear import (
    Metric,
    Solves,
    conjugate_gradient,
    fisher_vector_product,
    hessian_vector_product,
    solve_rows,
    values_and_gradients,
)
from safemeta.solvers.optax_transform import SafeProjectionState, safe_projection
from safemeta.solvers.outcome import OUTCOME_NAMES, Outcome, describe
from safemeta.solvers.projection import Projection, project_update
from safemeta.solvers.trust_region import TrustRegionStep, trust_region_step

__all__ = [
    "OUTCOME_NAMES",
    "DualSolution",
    "InvariantStep",
    "LineSearch",
    "Metric",
    "Outcome",
    "Projection",
    "QuadraticAdvantage",
    "SafeProjectionState",
    "Solves",
    "TrustRegionStep",
    "accept_cpo",
    "accept_trpo",
    "backtrack",
    "conjugate_gradient",
    "describe",
    "discrete_policy",
    "dual_discrete",
    "dual_gaussian",
    "dual_quadratic",
    "fisher_vector_product",
    "gaussian_policy",
    "hessian_vector_product",
    "invariant_step",
    "project_update",
    "quadratic_step",
    "safe_projection",
    "solve_rows",
    "trust_region_step",
    "values_and_gradients",
]
