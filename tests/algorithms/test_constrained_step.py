"""The constrained step in the span of the directions against cvxpy in the full space."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.algorithms.directions import Directions, constrained_step

pytestmark = pytest.mark.usefixtures("x64")
SIZE = 8
take = jax.jit(constrained_step)


def problem(rng, costs, scale=1.0):
    """Gradients `[1 + costs, SIZE]`, a metric, and the directions that belong to them."""
    root = rng.normal(size=(SIZE, SIZE))
    metric = root @ root.T / SIZE + 0.3 * np.eye(SIZE)
    rows = rng.normal(size=(1 + costs, SIZE)) * scale
    solutions = rows @ np.linalg.inv(metric)
    gram = rows @ solutions.T
    return rows, metric, Directions(*(jnp.asarray(x) for x in (solutions, gram, gram)))


def reach(rows, metric, radius):
    """How far the radius can move each cost."""
    return np.sqrt(2 * radius * np.einsum("ij,jk,ik->i", rows[1:], np.linalg.inv(metric), rows[1:]))


def solved(objective, constraints=()):
    value = cp.Problem(objective, list(constraints)).solve(solver=cp.CLARABEL)
    assert np.isfinite(value)
    return value


@pytest.mark.parametrize("radius", [1e-3, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_without_costs_it_is_the_step_of_trpo(rng, radius, scale):
    rows, metric, found = problem(rng, 0, scale)
    step, evidence = take(found, jnp.zeros(0), radius)
    natural = np.linalg.solve(metric, rows[0])
    # The ridge of 1e-5 shortens it by half of that.
    np.testing.assert_allclose(step, np.sqrt(2 * radius / (rows[0] @ natural)) * natural, rtol=1e-5)
    assert bool(evidence.feasible)


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_feasible_steps_are_the_optimum_of_the_full_problem(rng, costs):
    bound = 0
    for _ in range(12):
        radius = 10 ** rng.uniform(-3, 0)
        rows, metric, found = problem(rng, costs)
        violations = rng.uniform(-0.8, 0.3, size=costs) * reach(rows, metric, radius)
        x = cp.Variable(SIZE)
        within = cp.sum_squares(np.linalg.cholesky(metric).T @ x) <= 2 * radius
        slack = cp.Variable(costs)
        if solved(cp.Minimize(cp.max(slack)), [within, violations + rows[1:] @ x <= slack]) > -1e-6:
            continue  # infeasible: the subject of another test
        best = solved(cp.Maximize(rows[0] @ x), [within, violations + rows[1:] @ x <= 0])
        step, evidence = take(found, jnp.asarray(violations), radius)
        step = np.asarray(step)
        assert bool(evidence.feasible)
        largest = np.sqrt(2 * radius * rows[0] @ np.linalg.solve(metric, rows[0]))
        assert rows[0] @ step >= best - 1e-4 * largest
        assert step @ metric @ step / 2 <= radius * (1 + 1e-6)
        assert np.all(violations + rows[1:] @ step <= 1e-8)
        bound += best < 0.999 * largest
    assert bound >= 4  # and in several of them a cost held the step


@pytest.mark.parametrize("costs", [1, 2])
def test_infeasible_problems_give_the_step_of_least_violation(rng, costs):
    for _ in range(8):
        radius = 10 ** rng.uniform(-3, 0)
        rows, metric, found = problem(rng, costs)
        violations = rng.uniform(1.1, 2.0, size=costs) * reach(rows, metric, radius)
        x = cp.Variable(SIZE)
        within = cp.sum_squares(np.linalg.cholesky(metric).T @ x) <= 2 * radius
        unit = np.abs(violations).max()
        least = solved(cp.Minimize(cp.sum_squares(cp.pos((violations + rows[1:] @ x) / unit))), [within])
        step, evidence = take(found, jnp.asarray(violations), radius)
        step = np.asarray(step)
        assert not bool(evidence.feasible)
        remaining = np.sum(np.maximum((violations + rows[1:] @ step) / unit, 0) ** 2)
        before = np.sum((violations / unit) ** 2)
        assert remaining <= least + 1e-4 * before
        assert least < 0.95 * before
        assert step @ metric @ step / 2 <= radius * (1 + 1e-6)


def test_with_cross_fitted_effects_it_is_the_optimum_of_the_problem_in_coefficients(rng):
    held = 0
    for _ in range(12):
        _, _, found = problem(rng, 2)
        gram = np.asarray(found.gram)
        other = rng.normal(size=(3, 3)) * np.sqrt(np.outer(*[np.diagonal(gram)] * 2))
        effect = 0.5 * gram + 0.15 * (other + other.T)
        radius = 10 ** rng.uniform(-3, 0)
        violations = -rng.uniform(0.05, 0.5, size=2) * np.sqrt(2 * radius * np.diagonal(gram)[1:])
        c = cp.Variable(3)
        within = cp.sum_squares(np.linalg.cholesky(gram).T @ c) <= 2 * radius
        best = solved(cp.Maximize(effect[0] @ c), [within, violations + effect[1:] @ c <= 0])
        free = solved(cp.Maximize(effect[0] @ c), [within])
        step, evidence = take(found._replace(effect=jnp.asarray(effect)), jnp.asarray(violations), radius)
        coefficients = np.linalg.lstsq(np.asarray(found.solutions).T, np.asarray(step), rcond=None)[0]
        assert effect[0] @ coefficients >= best - 1e-3 * free
        assert coefficients @ gram @ coefficients / 2 <= radius * (1 + 1e-6)
        assert np.all(violations + effect[1:] @ coefficients <= 1e-8)
        np.testing.assert_allclose(evidence.objective_change, effect[0] @ coefficients, rtol=1e-8, atol=1e-12)
        held += best < 0.99 * free
    assert held >= 3


def test_a_signal_without_gradient_does_no_harm(rng):
    """A cost that was never incurred: its gradient is exactly zero."""
    rows, metric, _ = problem(rng, 1)
    rows[1] = 0
    solutions = rows @ np.linalg.inv(metric)
    gram = jnp.asarray(rows @ solutions.T)
    step, evidence = take(Directions(jnp.asarray(solutions), gram, gram), jnp.array([-1.0]), 0.01)
    natural = np.linalg.solve(metric, rows[0])
    np.testing.assert_allclose(step, np.sqrt(0.02 / (rows[0] @ natural)) * natural, rtol=1e-5)
    assert bool(evidence.feasible)


def test_nothing_to_gain_and_nothing_to_mend_is_no_step(rng):
    _, _, found = problem(rng, 1)
    idle = found._replace(effect=found.effect.at[0].set(0.0))
    step, evidence = take(idle, jnp.array([-0.1]), 0.01)
    np.testing.assert_allclose(step, 0, atol=1e-12)
    assert bool(evidence.feasible)


def test_float32_agrees(rng):
    _, _, found = problem(rng, 2)
    violations = np.array([0.01, -0.2])
    exact, _ = take(found, jnp.asarray(violations), 0.05)
    single = Directions(*(leaf.astype(jnp.float32) for leaf in found))
    step, _ = take(single, jnp.asarray(violations, jnp.float32), 0.05)
    assert step.dtype == jnp.float32
    np.testing.assert_allclose(step, exact, atol=1e-3 * np.abs(exact).max())
