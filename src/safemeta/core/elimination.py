"""Small systems of linear equations, solved in compiled code alone."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Numbers = Array | np.ndarray


def solve_without_pivots(matrix: Float[Numbers, "n n"], right: Float[Numbers, "n *k"]) -> Float[Array, "n *k"]:
    """`matrix^-1 right` by Gaussian elimination without row exchanges, all derivatives included.

    Stable for matrices that are symmetric and positive definite, or diagonally dominant by rows or columns; nothing
    else may be passed. Batches of `jnp.linalg.solve` hand each system to LAPACK on threads of XLA's pool, which on a
    CPU of two cores were seen to wait for each other for ever (jaxlib 0.10.2).
    """
    n = matrix.shape[0]
    matrix, columns = jnp.asarray(matrix), jnp.asarray(right).reshape(n, -1)
    index = jnp.arange(n)

    def forward(k: Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
        a, b = both
        factor = jnp.where(index > k, a[:, k] / a[k, k], 0)
        return a - factor[:, None] * a[k], b - factor[:, None] * b[k]

    def backward(i: Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
        a, x = both
        k = n - 1 - i
        found = (x[k] - jnp.where(index > k, a[k], 0) @ x) / a[k, k]
        return a, x.at[k].set(found)

    eliminated = jax.lax.fori_loop(0, n, forward, (matrix, columns))
    return jax.lax.fori_loop(0, n, backward, eliminated)[1].reshape(right.shape)
