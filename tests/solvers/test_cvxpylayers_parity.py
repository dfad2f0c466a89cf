"""Solution and derivatives of the CPO layer against cvxpylayers, which differentiates Clarabel's conic solution."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_oracles import relative_error

from safemeta.solvers import Outcome, trust_region_step

cp = pytest.importorskip("cvxpy")
diffcp = pytest.importorskip("diffcp")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    cvxpylayers = pytest.importorskip("cvxpylayers.jax")

pytestmark = pytest.mark.filterwarnings("ignore")
RADIUS = 0.5


def layer(n: int, m: int):
    """`max g.x` within the unit ball and `b + A x <= 0`, as a differentiable layer."""
    x, g = cp.Variable(n), cp.Parameter(n)
    rows, offsets = cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(-g @ x), [cp.norm(x) <= np.sqrt(2 * RADIUS), rows @ x + offsets <= 0])
    arguments = {
        "solve_method": "Clarabel",
        "tol_gap_abs": 1e-11,
        "tol_gap_rel": 1e-11,
        "tol_feas": 1e-11,
        "mode": "dense",
    }
    return cvxpylayers.CvxpyLayer(problem, [g, rows, offsets], [x], solver="DIFFCP", solver_args=arguments)


def test_solution_and_derivatives_agree(rng):
    compare(rng, [(5, 2)], 10)


@pytest.mark.slow
def test_two_hundred_problems(rng):
    """Prints the largest errors (`pytest -m slow -s`)."""
    compare(rng, [(2, 1), (5, 2), (12, 3), (40, 5)], 50)


def compare(rng, sizes, repeats):
    """Feasible problems: the solution, and a random cotangent pulled back to g, A and b."""
    compared, unusable, worst_value, worst_derivative = 0, 0, 0.0, 0.0
    for n, m in sizes:
        theirs = layer(n, m)

        def ours(g, a, b):
            return trust_region_step(g, a, b, None, RADIUS).step

        value = jax.jit(lambda g, a, b: trust_region_step(g, a, b, None, RADIUS))
        pull = jax.jit(lambda g, a, b, cotangent, ours=ours: jax.vjp(ours, g, a, b)[1](cotangent))
        done = 0
        while done < repeats:
            g, a = rng.normal(size=n), rng.normal(size=(m, n))
            b = rng.uniform(-1, 0.4, size=m) * np.linalg.norm(a, axis=1)
            inputs = tuple(map(jnp.asarray, (g, a, b)))
            found = value(*inputs)
            if found.outcome != Outcome.SOLVED:
                continue
            cotangent = jnp.asarray(rng.normal(size=n))
            try:
                (step,), back = jax.vjp(lambda g, a, b, theirs=theirs: theirs(g, a, b), *inputs)
                reference = back((cotangent,))
            except diffcp.SolverError:  # not a problem to compare on
                unusable += 1
                assert unusable < 20
                continue
            done += 1
            worst_value = max(worst_value, relative_error(found.step, step))
            for mine, other in zip(pull(*inputs, cotangent), reference, strict=True):
                scale = max(np.abs(other).max(), np.abs(cotangent).max())
                worst_derivative = max(worst_derivative, float(np.abs(mine - other).max() / scale))
        compared += done
    print(f"\n{compared} compared, {unusable} unusable: solution {worst_value:.1e}, derivatives {worst_derivative:.1e}")
    assert worst_value < 1e-5
    assert worst_derivative < 1e-5
