"""The constrained trust-region step against Clarabel, closed forms, and what must hold whatever the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_oracles import TRUST_REGION_KINDS, Problem, random_problem, reference_step

from safemeta.solvers import Outcome, describe, trust_region_step
from safemeta.solvers.trust_region import _check_shapes


@jax.jit
def solve(objective, constraints, violations, matrix, radius):
    return trust_region_step(
        objective, constraints, violations, lambda v: matrix @ v, radius, iterations=600, tolerance=1e-14
    )


@jax.jit
def solve_single(objective, constraints, violations, matrix, radius):
    return trust_region_step(objective, constraints, violations, lambda v: matrix @ v, radius)


@jax.jit
def solve_euclidean(objective, constraints, violations, radius):
    return trust_region_step(objective, constraints, violations, None, radius)


def compare(problem: Problem) -> dict[str, float]:
    """Our step against Clarabel's: all errors relative to the sizes of what is compared."""
    ours = solve(*(jnp.asarray(part) for part in problem))
    reference = reference_step(problem)
    step = np.asarray(ours.step)
    left = problem.violations + problem.constraints @ step
    kinetic = step @ problem.matrix @ step / 2
    sizes = np.abs(problem.constraints) @ np.abs(step) + np.abs(problem.violations)
    errors = {"status": float(bool(ours.feasible) != (reference.status == "optimal"))}
    errors["radius"] = max(kinetic / problem.radius - 1, 0.0)
    if reference.status == "optimal":
        scale = np.sqrt(2 * problem.radius * problem.objective @ np.linalg.solve(problem.matrix, problem.objective))
        errors["objective"] = abs(problem.objective @ step - reference.value) / scale
        errors["constraint"] = float(np.max(left / np.where(sizes > 0, sizes, 1), initial=0.0))
        errors["outcome"] = float(ours.outcome != Outcome.SOLVED)
    else:
        served = np.any(problem.constraints != 0, axis=1)
        least = np.linalg.norm(np.maximum(left, 0)[served])
        errors["objective"] = abs(least - reference.value) / max(reference.value, np.abs(problem.violations).max())
        hopeless = np.any(~served & (problem.violations > 0))
        allowed = [Outcome.NO_COST_GRADIENT] if hopeless else [Outcome.RECOVERED, Outcome.INFEASIBLE]
        errors["outcome"] = float(int(ours.outcome) not in allowed)
    return errors


def check(problems: list[Problem]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for problem in problems:
        for name, error in compare(problem).items():
            worst[name] = max(worst.get(name, 0.0), error)
    assert worst["status"] == 0
    assert worst["outcome"] == 0
    assert worst["objective"] < 1e-6
    assert worst["constraint"] < 1e-8
    assert worst["radius"] < 1e-8
    return worst


@pytest.mark.parametrize(("n", "m"), [(10, 0), (20, 1), (2, 8), (6, 3), (60, 4)])
def test_agrees_with_clarabel(rng, n, m):
    check([random_problem(rng, n, m, kind) for kind in TRUST_REGION_KINDS for _ in range(3)])


@pytest.mark.slow
def test_agrees_with_clarabel_on_two_thousand_problems(rng):
    """All kinds, all m, n from 2 to 200. Prints the largest errors (`pytest -m slow -s`)."""
    problems = []
    for n in (2, 3, 5, 9, 20, 60, 200):
        for m in range(9):
            problems += [random_problem(rng, n, m, kind) for kind in TRUST_REGION_KINDS for _ in range(4)]
    worst = check(problems)
    print(f"\n{len(problems)} problems, largest relative errors: {worst}")
    assert len(problems) >= 2000


def test_without_constraints_it_is_the_natural_gradient_step():
    objective, diagonal = jnp.array([3.0, -4.0]), jnp.array([1.0, 4.0])
    found = trust_region_step(objective, jnp.zeros((0, 2)), jnp.zeros(0), lambda v: diagonal * v, 0.02)
    # x = sqrt(2 radius / g.H^-1 g) H^-1 g with g.H^-1 g = 9 + 4 = 13
    np.testing.assert_allclose(found.step, np.sqrt(0.04 / 13) * np.array([3.0, -1.0]), rtol=1e-12)
    assert found.objective_change == pytest.approx(np.sqrt(0.04 * 13))


def test_one_constraint_is_the_closed_form_of_cpo(rng):
    """Achiam et al. 2017, Theorem 2, with q = g.g, r = g.a, s = a.a, in the case where the constraint binds."""
    bound = 0
    for _ in range(50):
        g, a = rng.normal(size=(2, 7))
        c, delta = rng.uniform(-0.3, 0.3), 0.01
        found = solve_euclidean(jnp.asarray(g), jnp.asarray(a[None]), jnp.array([c]), delta)
        q, r, s = g @ g, g @ a, a @ a
        if c * c / s > 2 * delta and c > 0:
            expected = -np.sqrt(2 * delta / s) * a
            assert found.outcome == Outcome.RECOVERED
        else:
            multiplier = np.sqrt((q - r * r / s) / (2 * delta - c * c / s)) if c * c / s < 2 * delta else np.inf
            nu = (multiplier * c + r) / s if np.isfinite(multiplier) else -1.0
            if nu <= 0:
                multiplier, nu = np.sqrt(q / (2 * delta)), 0.0
            else:
                bound += 1
            expected = (g - nu * a) / multiplier
            assert found.multipliers[0] == pytest.approx(nu, abs=1e-9)
            assert found.radius_multiplier == pytest.approx(multiplier)
        np.testing.assert_allclose(found.step, expected, atol=1e-12)
    assert bound >= 10


def test_recovery_serves_all_violated_constraints(rng):
    """Two constraints out of reach: both violations fall, though the steps that suit them best differ."""
    constraints = jnp.array([[1.0, 0.2, 0.0], [0.1, 1.0, 0.0]])
    found = solve_euclidean(jnp.array([0.0, 0.0, 5.0]), constraints, jnp.array([3.0, 2.0]), 0.5)
    assert found.outcome == Outcome.RECOVERED
    assert not found.feasible
    assert np.all(found.predicted_violations < np.array([3.0, 2.0]) - 0.4)
    np.testing.assert_allclose(found.multipliers, found.predicted_violations, rtol=1e-10)
    stationary = found.radius_multiplier * found.step + constraints.T @ found.multipliers
    np.testing.assert_allclose(stationary, 0, atol=1e-9)
    assert np.linalg.norm(found.step) == pytest.approx(1.0)


def test_recovery_when_rows_differ_by_many_orders(rng):
    """The optimality condition of the recovery problem, in units of its largest row. (It once gave the zero step.)"""
    count, n, m = 200, 4, 5
    rows = rng.normal(size=(count, m, n)) * 10 ** rng.uniform(-7, 7, size=(count, m, 1))
    lengths = np.linalg.norm(rows, axis=2)
    violations = rng.uniform(-1, 0.9, size=(count, m)) * lengths
    violations[:, 0] = 1.5 * lengths[:, 0]  # beyond the unit ball
    solve_all = jax.jit(jax.vmap(lambda a, b: trust_region_step(jnp.ones(n), a, b, None, 0.5)))
    found = solve_all(jnp.asarray(rows), jnp.asarray(violations))
    assert np.all((found.outcome == Outcome.RECOVERED) | (found.outcome == Outcome.INFEASIBLE))
    assert np.all(np.linalg.norm(found.step, axis=1) <= 1 + 1e-12)
    left = np.maximum(found.predicted_violations, 0)
    balance = found.radius_multiplier[:, None] * found.step + np.einsum("cmi,cm->ci", rows, left)
    assert np.max(np.linalg.norm(balance, axis=1) / lengths.max(axis=1) ** 2) < 1e-7


def test_objective_in_the_cone_of_the_constraints_gives_the_shortest_optimal_step():
    constraints = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = solve_euclidean(jnp.array([2.0, 3.0, 0.0]), constraints, jnp.array([0.1, -0.2]), 0.5)
    np.testing.assert_allclose(found.step, [-0.1, 0.2, 0.0], atol=1e-14)
    np.testing.assert_allclose(found.multipliers, [2.0, 3.0], rtol=1e-12)
    assert found.radius_multiplier == 0
    assert found.outcome == Outcome.SOLVED


@pytest.mark.parametrize("radius", [0.5, 0.5 + 1e-9])
def test_a_constraint_that_just_touches_the_trust_region(radius):
    """The only feasible point is -a / |a|, whichever side of the tangent rounding puts it."""
    found = solve_euclidean(jnp.array([1.0, 1.0]), jnp.array([[2.0, 0.0]]), jnp.array([2.0]), radius)
    np.testing.assert_allclose(found.step, [-1.0, 0.0], atol=1e-4)
    assert found.step[0] <= -1 + 1e-8


def test_contradicting_constraints_are_infeasible_and_give_the_middle():
    constraints = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    found = solve_euclidean(jnp.array([1.0, 1.0]), constraints, jnp.array([0.1, 0.3]), 0.5)
    assert found.outcome == Outcome.INFEASIBLE
    np.testing.assert_allclose(found.predicted_violations, [0.2, 0.2], atol=1e-9)


def test_violated_without_gradient_is_reported_and_the_others_are_served():
    constraints = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    found = solve_euclidean(jnp.array([1.0, 1.0]), constraints, jnp.array([1.0, 0.5]), 0.5)
    assert found.outcome == Outcome.NO_COST_GRADIENT
    np.testing.assert_allclose(found.step, [-0.5, 0.0], atol=1e-12)
    assert "gradient" in describe(int(found.outcome))
    satisfied = solve_euclidean(jnp.array([1.0, 1.0]), constraints, jnp.array([-1.0, 0.5]), 0.5)
    assert satisfied.outcome == Outcome.SOLVED


def test_zero_objective_moves_only_as_far_as_the_constraints_ask():
    found = solve_euclidean(jnp.zeros(3), jnp.array([[0.0, 2.0, 0.0]]), jnp.array([0.4]), 0.5)
    np.testing.assert_allclose(found.step, [0, -0.2, 0], atol=1e-14)
    still = solve_euclidean(jnp.zeros(3), jnp.array([[0.0, 2.0, 0.0]]), jnp.array([-0.4]), 0.5)
    np.testing.assert_array_equal(still.step, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["objective", "constraints", "violations"])
def test_numbers_that_are_not_finite_give_the_zero_step(bad, place):
    inputs = {"objective": np.ones(3), "constraints": np.eye(2, 3), "violations": np.full(2, -0.1)}
    inputs[place].flat[0] = bad
    found = solve_euclidean(*(jnp.asarray(part) for part in inputs.values()), 0.5)
    assert found.outcome == Outcome.NOT_CONVERGED
    assert not found.feasible
    np.testing.assert_array_equal(found.step, 0)


def test_few_iterations_stay_within_radius_and_constraints_and_are_reported(rng):
    """With H solved badly the step is worse, but what it promises about radius and constraints is exact."""
    problem = random_problem(rng, 100, 2, "plain", condition=1e4)
    g, a, _, matrix, radius = (jnp.asarray(part) for part in problem)
    b = jnp.array([-0.01, 0.005])

    def few(tolerance):
        step = jax.jit(
            lambda *p: trust_region_step(*p, lambda v: matrix @ v, radius, iterations=4, tolerance=tolerance)
        )
        return step(g, a, b)

    found = few(0.0)
    assert found.residual > 0.05
    assert found.outcome == Outcome.SOLVED  # tolerance 0: a fixed number of iterations, and no complaint
    assert np.all(b + a @ found.step <= 1e-10)
    assert found.step @ matrix @ found.step / 2 == pytest.approx(float(radius), rel=1e-9)
    assert found.divergence == pytest.approx(float(radius), rel=1e-9)
    assert few(1e-8).outcome == Outcome.NOT_CONVERGED


def test_batches_equal_single_calls(rng):
    problems = [random_problem(rng, 6, 3, kind) for kind in TRUST_REGION_KINDS]
    stacked = [jnp.stack([jnp.asarray(problem[i]) for problem in problems]) for i in range(5)]
    together = jax.jit(jax.vmap(solve))(*stacked)
    for index, problem in enumerate(problems):
        alone = solve(*(jnp.asarray(part) for part in problem))
        size = np.abs(alone.step).max()
        np.testing.assert_allclose(together.step[index] / size, alone.step / size, atol=1e-9)
        assert together.outcome[index] == alone.outcome


@pytest.mark.parametrize("m", [4, *(pytest.param(m, marks=pytest.mark.slow) for m in (0, 1, 2, 3, 5, 6, 7, 8))])
def test_float32_stays_float32_and_close(rng, m):
    for kind in TRUST_REGION_KINDS:
        exact = random_problem(rng, 12, m, kind, condition=10.0)
        double = solve(*(jnp.asarray(part) for part in exact))
        single = solve_single(*(jnp.asarray(part, jnp.float32) for part in exact))
        assert single.step.dtype == single.multipliers.dtype == jnp.float32
        scale = np.abs(double.step).max()
        np.testing.assert_allclose(single.step / scale, double.step / scale, atol=2e-3, err_msg=kind)


def test_shapes_that_do_not_fit_are_refused():
    """The check itself: the tests' type checker would refuse these before it."""
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        _check_shapes(jnp.ones((2, 3)), jnp.ones((1, 3)), jnp.ones(1))
    with pytest.raises(ValueError, match="do not fit"):
        _check_shapes(jnp.ones(3), jnp.ones((1, 4)), jnp.ones(1))
    with pytest.raises(ValueError, match="at most 8"):
        _check_shapes(jnp.ones(3), jnp.ones((9, 3)), jnp.ones(9))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(TRUST_REGION_KINDS), power=st.floats(-6, 6))
def test_what_must_hold_whatever_the_numbers(seed, kind, power):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, 5, 3, kind)
    g, a, b, matrix, radius = (jnp.asarray(part) for part in problem)
    found = solve(g, a, b, matrix, radius)
    assert found.step @ matrix @ found.step / 2 <= radius * (1 + 1e-9)
    if found.feasible:
        sizes = jnp.abs(a) @ jnp.abs(found.step) + jnp.abs(b)
        assert np.all(found.predicted_violations <= 1e-9 * sizes)
        weight = jnp.abs(found.multipliers) * jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(g)
        assert np.all(found.multipliers * jnp.linalg.norm(a, axis=1) >= -1e-6 * jnp.linalg.norm(g))
        kkt = g - found.radius_multiplier * (matrix @ found.step) - a.T @ found.multipliers
        assert jnp.linalg.norm(kkt) <= 1e-6 * jnp.linalg.norm(g) * (1 + weight.sum())
    # The units of the objective do not matter, nor those of a constraint while it can be met.
    scaled = solve(10**power * g, a, b, matrix, radius)
    size = np.abs(found.step).max() + 1e-300
    np.testing.assert_allclose(scaled.step / size, found.step / size, atol=1e-7)
    if found.feasible:
        units = 10 ** jnp.linspace(-power, power, 3)
        scaled = solve(g, a * units[:, None], b * units, matrix, radius)
        np.testing.assert_allclose(scaled.step / size, found.step / size, atol=1e-7)
