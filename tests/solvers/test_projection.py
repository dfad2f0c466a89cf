"""FISAR's projection: against Clarabel, a duality certificate, the paper's matrix, and its false fixed points."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from solver_oracles import finite_differences, quadratic_program, relative_error, solve_conic

from safemeta.solvers import Outcome, project_update

KINDS = ("plain", "nearly parallel", "duplicate", "opposite", "zero row", "scales", "maybe empty", "empty")
euclidean = jax.jit(project_update)
closed_form = jax.jit(lambda raw, gradients, bounds: project_update(raw, gradients, bounds, metric="closed_form"))
batched = jax.jit(jax.vmap(project_update))


def random_polytope(rng, n, m, kind):
    """All kinds but the last two contain a point by construction; in some, rows touch that point."""
    rows, raw, inside = rng.normal(size=(m, n)), 2 * rng.normal(size=n), rng.normal(size=n)
    if kind == "nearly parallel" and m > 1:
        rows[1] = rng.choice([-1, 1]) * rows[0] + 10 ** rng.uniform(-8, -1) * rng.normal(size=n)
    if kind == "duplicate":
        rows[-1] = rows[0]
    if kind == "opposite" and m > 1:
        rows[1] = -rows[0]
    if kind == "scales":
        rows *= 10 ** rng.uniform(-4, 4, size=(m, 1))
    if kind == "zero row":
        rows[0] = 0
    slack = rng.uniform(0, 1, size=m) * rng.choice([0, 1], size=m) * np.linalg.norm(rows, axis=1)
    bounds = rows @ inside + slack
    if kind == "maybe empty":
        bounds = 0.5 * rng.normal(size=m)
    if kind == "empty" and m > 1:
        rows[1] = -rows[0] * rng.uniform(0.5, 2)
        bounds[:2] = -rng.uniform(0.1, 1, size=2)
    return raw, rows, bounds


def judge(problem, found, kind, m) -> tuple[float, float]:
    """(violation per unit of row length, relative error of the squared distance) where there is a solution."""
    raw, rows, bounds = problem
    lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-8)
    if kind == "empty" and m > 1:
        assert found.outcome == Outcome.INFEASIBLE
        assert not found.feasible
        return 0.0, 0.0
    reference, status = quadratic_program(raw, rows, bounds)
    if kind == "maybe empty" and status != "Solved":
        if status == "PrimalInfeasible":
            assert found.outcome == Outcome.INFEASIBLE
        return 0.0, 0.0
    assert found.outcome == Outcome.SOLVED
    update, duals = np.asarray(found.update), np.asarray(found.multipliers)
    distance = 0.5 * np.sum((update - raw) ** 2)
    # Weak duality: no feasible point is nearer than this, whatever Clarabel says.
    assert np.all(duals * lengths >= -1e-9)
    bound = duals @ (rows @ raw - bounds) - 0.5 * np.sum((rows.T @ duals) ** 2)
    error = (distance - bound) / max(distance, 1e-2)
    if status == "Solved":
        error = max(error, abs(distance - 0.5 * np.sum((reference - raw) ** 2)) / max(distance, 1e-2))
    return float(np.max((rows @ update - bounds) / lengths)), float(error)


def sweep(rng, sizes, repeats) -> tuple[int, float, float]:
    count, violation, error = 0, 0.0, 0.0
    for n, m in sizes:
        kinds = [kind for kind in KINDS for _ in range(repeats)]
        problems = [random_polytope(rng, n, m, kind) for kind in kinds]
        found = batched(*(jnp.asarray(np.stack(part)) for part in zip(*problems, strict=True)))
        for index, (problem, kind) in enumerate(zip(problems, kinds, strict=True)):
            left, gap = judge(problem, jax.tree.map(lambda leaf, i=index: leaf[i], found), kind, m)
            count, violation, error = count + 1, max(violation, left), max(error, gap)
    assert violation < 1e-8
    assert error < 1e-6
    return count, violation, error


def test_feasible_and_nearest_on_random_polytopes(rng):
    sweep(rng, [(3, 6), (10, 4), (12, 24)], 12)


@pytest.mark.slow
def test_feasible_and_nearest_on_ten_thousand_polytopes(rng):
    """m up to 2n. Prints the largest errors (`pytest -m slow -s`)."""
    sizes = [(n, m) for n in (2, 5, 12, 30) for m in sorted({1, 2, n // 2, n, 2 * n})]
    count, violation, error = sweep(rng, sizes, 75)
    print(f"\n{count} polytopes, largest violation {violation:.1e}, largest relative error of the distance {error:.1e}")
    assert count >= 10_000


def test_closed_form_is_the_papers_matrix(rng):
    """`x = raw - Qinv A' max(0, A raw - b)` with the n x n matrix of the text, whatever its delta."""
    for _ in range(20):
        rows, raw, bounds = rng.normal(size=(4, 9)), rng.normal(size=9), rng.normal(size=4)
        gram, delta = rows @ rows.T, 10 ** rng.uniform(-3, 2)
        inverse = np.linalg.inv(gram)
        q_inverse = delta * np.eye(9) + rows.T @ inverse @ (np.eye(4) - delta * gram) @ inverse @ rows
        expected = raw - q_inverse @ rows.T @ np.maximum(0, rows @ raw - bounds)
        found = closed_form(jnp.asarray(raw), jnp.asarray(rows), jnp.asarray(bounds))
        np.testing.assert_allclose(found.update, expected, atol=1e-9)
        assert not found.fell_back
        np.testing.assert_allclose(rows @ found.update, np.minimum(rows @ raw, bounds), atol=1e-12)


def test_one_constraint_is_the_same_in_both_metrics(rng):
    for _ in range(20):
        inputs = [jnp.asarray(part) for part in random_polytope(rng, 6, 1, "plain")]
        np.testing.assert_allclose(euclidean(*inputs).update, closed_form(*inputs).update, atol=1e-12)


def test_closed_form_pays_for_nearly_parallel_rows_and_falls_back_where_it_is_undefined():
    """The reference's example: rows (1, 0) and (1, e); the closed form moves by 0.5 / e, the nearest point by 1."""
    raw, bounds = jnp.array([1.0, 0.0]), jnp.array([0.0, 0.5])
    rows = jnp.array([[1.0, 0.0], [1.0, 0.01]])
    assert np.linalg.norm(closed_form(raw, rows, bounds).update - raw) == pytest.approx(50, rel=0.01)
    assert np.linalg.norm(euclidean(raw, rows, bounds).update - raw) == pytest.approx(1.0)
    nearly = closed_form(raw, rows.at[1, 1].set(1e-5), bounds)
    assert nearly.fell_back
    np.testing.assert_allclose(nearly.update, [0, 0], atol=1e-9)
    same = closed_form(jnp.array([2.0, 0.0]), jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0.0, 1.0]))
    assert same.fell_back
    np.testing.assert_allclose(same.update, [0, 0], atol=1e-12)


def quadratic_program_family(rng, n=10, m=3):
    """A convex QCQP with its optimum: min |Wx - y|^2, 1/2 (x-c)'M(x-c) <= r; the optimum without limits is outside."""
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    w, y = rotation @ np.diag(rng.uniform(0.5, 1.5, size=n)) @ rotation.T, rng.normal(size=n)
    centres = 0.3 * rng.normal(size=(m, n))
    factors = rng.normal(size=(m, n, n))
    shapes = factors @ factors.transpose(0, 2, 1) / n + 0.1 * np.eye(n)
    offset = np.linalg.solve(w, y) - centres
    limits = 0.25 * np.einsum("mi,mij,mj->m", offset, shapes, offset)
    # As cones, with lengths rather than their squares: of squares Clarabel may only find nearly optimal answers.
    x = cp.Variable(n)
    roots = np.linalg.cholesky(shapes).transpose(0, 2, 1)
    inside = [cp.norm(f @ (x - c)) <= np.sqrt(2 * r) for c, f, r in zip(centres, roots, limits, strict=True)]
    problem = cp.Problem(cp.Minimize(cp.norm(w @ x - y)), inside)
    assert solve_conic(problem) == "optimal"
    return (w, y, centres, shapes, limits, 1.5 * rng.normal(size=n)), problem.value**2


def flow(metric):
    """Follow the projected gradient flow until it rests; the value there, and the largest constraint."""

    def run(w, y, centres, shapes, limits, start):
        def constraints(x):
            offset = x - centres
            return 0.5 * jnp.einsum("mi,mij,mj->m", offset, shapes, offset) - limits

        def value(x):
            return jnp.sum((w @ x - y) ** 2)

        def move(state):
            x, _, count = state
            found = project_update(-jax.grad(value)(x), jax.jacrev(constraints)(x), -constraints(x), metric=metric)
            return x + 0.02 * found.update, jnp.linalg.norm(found.update), count + 1

        going = (start, jnp.asarray(jnp.inf), 0)
        x, speed, _ = jax.lax.while_loop(lambda s: (s[1] > 1e-9) & (s[2] < 20_000), move, going)
        return value(x), jnp.max(constraints(x)), speed

    return jax.jit(jax.vmap(run))


def test_false_fixed_points_of_the_closed_form_and_none_of_the_euclidean(rng):
    problems, optima = zip(*(quadratic_program_family(rng) for _ in range(16)), strict=True)
    inputs = [jnp.asarray(np.stack(part)) for part in zip(*problems, strict=True)]
    gaps = {}
    for metric in ("euclidean", "closed_form"):
        values, worst, speed = flow(metric)(*inputs)
        assert np.all(speed <= 1e-9)
        assert np.all(worst < 1e-8)
        gaps[metric] = np.asarray(values) / np.array(optima) - 1
    assert np.max(np.abs(gaps["euclidean"])) < 1e-6
    assert np.max(gaps["closed_form"]) > 1e-3  # it rests at points that are not optimal
    assert np.sum(gaps["closed_form"] > 1e-5) >= 2


@pytest.mark.parametrize("metric", ["euclidean", "closed_form"])
def test_derivatives(rng, metric):
    sizes = (5, 15, 3)
    weights = rng.normal(size=8)

    def outputs(flat):
        raw, rows, bounds = jnp.split(flat, np.cumsum(sizes)[:-1])
        found = project_update(raw, rows.reshape(3, 5), bounds, metric=metric)
        return jnp.concatenate([found.update, found.multipliers])

    points = np.concatenate([rng.normal(size=(12, 20)), rng.normal(size=(12, 3)) - 0.3], axis=1)
    reverse = jax.jit(jax.vmap(jax.jacrev(outputs)))
    forward = jax.jit(jax.vmap(jax.jacfwd(outputs)))
    second = jax.jit(jax.vmap(jax.jacfwd(jax.grad(lambda flat: weights @ outputs(flat)))))
    expected = finite_differences(jax.jit(jax.vmap(outputs)), points, 1e-5)
    expected_second = finite_differences(lambda p: weights @ np.asarray(reverse(p)), points, 1e-5)
    for index in range(12):
        assert relative_error(reverse(points)[index], expected[index]) < 1e-6
        assert relative_error(forward(points)[index], expected[index]) < 1e-6
        assert relative_error(second(points)[index], expected_second[index]) < 1e-4


def test_an_empty_polytope_gives_a_compromise_with_finite_derivatives():
    rows, bounds = jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([-1.0, 0.2])
    found = euclidean(jnp.array([3.0, 2.0]), rows, bounds)
    assert found.outcome == Outcome.INFEASIBLE
    np.testing.assert_allclose(found.update, [-0.6, 2.0], atol=1e-6)  # both bounds missed by 0.4
    gradient = jax.jit(jax.grad(lambda b: project_update(jnp.array([3.0, 2.0]), rows, b).update[0]))(bounds)
    np.testing.assert_allclose(gradient, [0.5, -0.5], atol=1e-6)


def test_a_violated_constraint_without_gradient_is_reported():
    rows = jnp.array([[1e-12, 0.0], [0.0, 1.0]])
    found = euclidean(jnp.ones(2), rows, jnp.array([-1.0, 0.5]))
    assert found.outcome == Outcome.NO_COST_GRADIENT
    np.testing.assert_allclose(found.update, [1.0, 0.5])
    assert euclidean(jnp.ones(2), rows, jnp.array([1.0, 0.5])).outcome == Outcome.SOLVED


def test_degenerate_shapes_and_numbers():
    nothing = euclidean(jnp.ones(3), jnp.zeros((0, 3)), jnp.zeros(0))
    np.testing.assert_array_equal(nothing.update, 1)
    assert nothing.outcome == Outcome.SOLVED
    bad = euclidean(jnp.array([jnp.nan, 1.0]), jnp.eye(2), jnp.zeros(2))
    assert bad.outcome == Outcome.NOT_CONVERGED
    np.testing.assert_array_equal(bad.update, 0)
    with pytest.raises(ValueError, match="euclidean"):
        project_update.__wrapped__(jnp.ones(2), jnp.eye(2), jnp.zeros(2), metric="manhattan")


def test_float32(rng):
    for kind in ("plain", "duplicate", "opposite"):
        problem = random_polytope(rng, 8, 5, kind)
        single = euclidean(*(jnp.asarray(part, jnp.float32) for part in problem))
        assert single.update.dtype == jnp.float32
        np.testing.assert_allclose(single.update, euclidean(*map(jnp.asarray, problem)).update, atol=2e-4)


def test_a_row_that_is_far_from_binding_sets_no_scale():
    """A bound of 1e13 once made the tolerance for the other rows as coarse as itself."""
    rows, raw = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), jnp.array([1.0, 2.0])
    found = euclidean(raw, rows, jnp.array([1e13, 0.5, 1e300]))
    assert found.outcome == Outcome.SOLVED
    np.testing.assert_allclose(found.update, [1.0, 0.5], atol=1e-14)


def test_rounding_on_the_bounds_moves_nothing():
    """The raw update lies on all rows to within rounding, and two of them are parallel but for 1e-7."""
    rows = np.array([[-1.0, 2**-23, -1, 2**-23], [2**-23, -1.875, 2**-23, 0], [2**-23, 1.0, 2**-23, 0]])
    raw = np.array([-1.0, -1.0, -1.0, -1.0])
    found = euclidean(*map(jnp.asarray, (raw, rows, rows @ raw)))
    assert found.outcome == Outcome.SOLVED
    np.testing.assert_allclose(found.update, raw, atol=1e-8)


vectors = arrays(np.float64, 4, elements=st.floats(-10, 10, width=32))


@settings(max_examples=150, deadline=None)
@given(raw=vectors, rows=arrays(np.float64, (6, 4), elements=st.floats(-3, 3, width=16)), inside=vectors)
def test_projection_is_idempotent_and_nearer_than_any_known_point(raw, rows, inside):
    bounds = rows @ inside
    found = euclidean(*map(jnp.asarray, (raw, rows, bounds)))
    lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-8)
    assert found.feasible
    assert np.all(rows @ found.update - bounds <= 1e-8 * lengths)
    assert np.linalg.norm(found.update - raw) <= np.linalg.norm(inside - raw) + 1e-8
    again = euclidean(found.update, *map(jnp.asarray, (rows, bounds)))
    np.testing.assert_allclose(again.update, found.update, atol=1e-7)
