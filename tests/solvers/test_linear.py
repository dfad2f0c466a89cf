"""Solves with a metric known by its products: values, derivatives, Fisher information, orthonormal bases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_oracles import finite_differences, relative_error

from safemeta.solvers import conjugate_gradient, fisher_vector_product, hessian_vector_product, solve_rows
from safemeta.solvers.linear import orthonormal_rows


def positive_definite(rng, n, condition=100.0):
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return (rotation * np.geomspace(1, condition, n)) @ rotation.T


def test_solves_a_batch_of_rows_and_reports_true_residuals(rng):
    matrix, rows = positive_definite(rng, 30), rng.normal(size=(4, 30))
    rows[2] = 0
    solve = jax.jit(
        lambda r, **k: solve_rows(lambda v: matrix @ v, r, **k), static_argnames=("iterations", "tolerance")
    )
    full = solve(jnp.asarray(rows), iterations=200, tolerance=1e-13)
    np.testing.assert_allclose(full.solution, np.linalg.solve(matrix, rows.T).T, atol=1e-11)
    np.testing.assert_array_equal(full.solution[2], 0)
    few = solve(jnp.asarray(rows), iterations=5, tolerance=0.0)
    expected = np.linalg.norm(rows - few.solution @ matrix, axis=1) / np.maximum(np.linalg.norm(rows, axis=1), 1e-300)
    np.testing.assert_allclose(few.residual, np.where(np.arange(4) == 2, 0, expected), atol=1e-12)
    assert few.residual[0] > 1e-3
    np.testing.assert_allclose(few.image, few.solution @ matrix, atol=1e-10)


def test_conjugate_gradient_ends_in_n_steps_and_damping_is_added(rng):
    matrix, rhs = positive_definite(rng, 6), rng.normal(size=6)
    found = conjugate_gradient(lambda v: matrix @ v, jnp.asarray(rhs), iterations=12, damping=0.5)
    np.testing.assert_allclose(found, np.linalg.solve(matrix + 0.5 * np.eye(6), rhs), rtol=1e-9)
    identity = solve_rows(None, jnp.asarray(rhs[None]), damping=1.0)
    np.testing.assert_allclose(identity.solution[0], rhs / 2)


def test_derivatives_of_a_solve(rng):
    start = np.concatenate([rng.normal(size=4), 1 + rng.random(4), [0.3]])

    def solution(flat):
        scale, damping = flat[4:8], flat[8]
        metric = lambda v: scale * v + 0.1 * jnp.sum(v)  # noqa: E731
        return conjugate_gradient(metric, flat[:4], iterations=20, tolerance=1e-15, damping=damping)

    expected = finite_differences(jax.jit(solution), start)
    assert relative_error(jax.jit(jax.jacrev(solution))(start), expected) < 1e-9
    assert relative_error(jax.jit(jax.jacfwd(solution))(start), expected) < 1e-9


def policy(parameters, observations):
    mean = jnp.tanh(observations @ parameters[:8].reshape(4, 2)) * jnp.exp(parameters[8])
    return mean, jnp.broadcast_to(parameters[9:11], mean.shape)


def mean_kl(old, new):
    (mean, log_std), (new_mean, new_log_std) = old, new
    ratio = jnp.exp(2 * (log_std - new_log_std))
    distance = ((mean - new_mean) / jnp.exp(new_log_std)) ** 2
    return 0.5 * jnp.mean(jnp.sum(ratio + distance - 1, axis=-1)) + jnp.mean(jnp.sum(new_log_std - log_std, axis=-1))


def test_both_products_are_the_fisher_information(rng):
    """Against E[score score'], with the expectation over actions in closed form by quadrature."""
    observations, parameters = jnp.asarray(rng.normal(size=(6, 4))), jnp.asarray(0.3 * rng.normal(size=11))
    old = policy(parameters, observations)
    gauss = fisher_vector_product(lambda p: policy(p, observations), mean_kl, parameters, 0.1)
    hessian = hessian_vector_product(lambda p: mean_kl(old, policy(p, observations)), parameters, 0.1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    weights = weights / weights.sum()

    def log_density(p, row, first, second):
        mean, log_std = (part[row] for part in policy(p, observations))
        noise = (jnp.stack([first, second]) * jnp.exp(old[1][row]) + old[0][row] - mean) / jnp.exp(log_std)
        return -0.5 * jnp.sum(noise**2) - jnp.sum(log_std)

    score = jax.jit(jax.vmap(jax.grad(log_density), in_axes=(None, 0, 0, 0)))
    rows, first, second = (part.ravel() for part in np.meshgrid(np.arange(6), nodes, nodes, indexing="ij"))
    mass = (weights[None, :, None] * weights[None, None, :] / 6 * np.ones((6, 1, 1))).ravel()
    scores = score(parameters, rows, first, second)
    fisher = (scores * mass[:, None]).T @ scores + 0.1 * np.eye(11)
    for metric in (gauss, hessian):
        np.testing.assert_allclose(jax.vmap(metric)(jnp.eye(11)), fisher, atol=1e-10)


def test_derivative_of_the_fisher_product_is_that_of_the_fisher_information(rng):
    """The current policy moves with the parameters: nothing is held fixed behind the caller's back."""
    observations, start = jnp.asarray(rng.normal(size=(6, 4))), 0.3 * rng.normal(size=11)
    vector = jnp.asarray(rng.normal(size=11))

    def product(parameters):
        return fisher_vector_product(lambda p: policy(p, observations), mean_kl, parameters)(vector)

    expected = finite_differences(jax.jit(product), start)
    assert relative_error(jax.jit(jax.jacrev(product))(start), expected) < 1e-8
    assert relative_error(jax.jit(jax.jacfwd(product))(start), expected) < 1e-8


@pytest.mark.parametrize("angle", [1e-1, 1e-6, 1e-10])
def test_orthonormal_rows_survive_small_angles_and_drop_copies(rng, angle):
    matrix = positive_definite(rng, 20, condition=10.0)
    rows = rng.normal(size=(5, 20))
    rows[1] = rows[0] + angle * rng.normal(size=20)
    rows[3] = 2 * rows[0] - rows[2]
    rows[4] = 0
    euclidean = np.asarray(orthonormal_rows(jnp.asarray(rows)))
    expected = np.diag([1.0, 1, 1, 0, 0])
    if angle < 1e-9:  # the combination row 3 is then within rounding of the noise that row 1 adds
        euclidean, expected = euclidean[:3], expected[:3, :3]
    np.testing.assert_allclose(euclidean @ euclidean.T, expected, atol=1e-9)
    inner = np.asarray(orthonormal_rows(jnp.asarray(rows), jnp.asarray(rows @ matrix), dependent=1e-8))
    expected = np.diag([1.0, float(angle > 1e-8), 1, 0, 0])
    np.testing.assert_allclose(inner @ matrix @ inner.T, expected, atol=1e-6)
