"""Elimination without row exchanges against LAPACK, and its derivatives against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from safemeta.core import solve_without_pivots


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["definite", "by rows", "by columns"])
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_it_solves_the_systems_that_it_is_for(kind, n):
    rng = np.random.default_rng(n)
    matrix = rng.normal(size=(3, n, n))
    if kind == "definite":
        matrix = matrix @ matrix.swapaxes(1, 2) + 1e-3 * np.eye(n)
    else:
        chance = np.abs(matrix) / np.abs(matrix).sum(2, keepdims=True)
        matrix = np.eye(n) - 0.99 * (chance if kind == "by rows" else chance.swapaxes(1, 2))
    right = rng.normal(size=(3, n, 2))
    found = jax.jit(jax.vmap(solve_without_pivots))(matrix, right)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-9, atol=1e-9 * np.abs(found).max())
    np.testing.assert_array_equal(solve_without_pivots(matrix[0], right[0, :, 0]).shape, (n,))


@pytest.mark.usefixtures("x64")
def test_it_is_differentiated_both_ways():
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(4, 4)))
    matrix = matrix @ matrix.T + jnp.eye(4)
    check_grads(solve_without_pivots, (matrix, jnp.asarray(rng.normal(size=4))), order=2, modes=["fwd", "rev"])
