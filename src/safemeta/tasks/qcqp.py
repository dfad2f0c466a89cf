"""Convex quadratic problems with quadratic constraints (FISAR, section 5.1; Sun, Kim, How).

    minimise |W x - y|^2   subject to   C_i(x) = (x - c_i)' M_i (x - c_i) - r_i <= 0,   i = 1..m

The paper prints m = 1 and no distribution; sizes and distributions are safemeta's. Pure functions of one problem and
one point: `vmap` them for batches. No simulator is involved, since nothing happens in time.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class QCQP(eqx.Module):
    """The numbers of one problem."""

    weight: Float[Array, "*batch n n"]  # W, symmetric
    target: Float[Array, "*batch n"]  # y
    centres: Float[Array, "*batch m n"]
    shapes: Float[Array, "*batch m n n"]  # M_i, symmetric and positive definite
    radii: Float[Array, "*batch m"]  # r_i


@dataclass(frozen=True)
class QCQPFamily:
    """Random problems in which every constraint cuts off the unconstrained optimum `x* = W^-1 y`.

    W = U diag(s) U' with U orthogonal and s uniform in [0.5, 1.5]; y ~ N(0, I); c_i ~ 0.3 N(0, I); M_i = B B' / n +
    0.1 I with B Gaussian; r_i is half of `(x* - c_i)' M_i (x* - c_i)`, but at least twice what the mean of the centres
    needs, so that this point is strictly inside all constraints whatever is drawn. Starts are 1.5 N(0, I).
    """

    size: int = 10
    constraint_count: int = 1

    def __post_init__(self):
        if self.size < 1 or self.constraint_count < 1:
            raise ValueError(f"a QCQP needs a size and a constraint, not {self.size} and {self.constraint_count}")

    def sample(self, key: PRNGKeyArray) -> tuple[QCQP, Float[Array, " n"]]:
        """One problem and a start, which as a rule is infeasible."""
        n, m = self.size, self.constraint_count
        keys = jax.random.split(key, 6)
        basis, _ = jnp.linalg.qr(jax.random.normal(keys[0], (n, n)))
        spectrum = jax.random.uniform(keys[1], (n,), minval=0.5, maxval=1.5)
        weight = (basis * spectrum) @ basis.T
        target = jax.random.normal(keys[2], (n,))
        free = (basis / spectrum) @ (basis.T @ target)
        centres = 0.3 * jax.random.normal(keys[3], (m, n))
        factors = jax.random.normal(keys[4], (m, n, n))
        shapes = factors @ jnp.swapaxes(factors, 1, 2) / n + 0.1 * jnp.eye(n)
        radii = jnp.maximum(0.5 * _forms(shapes, free - centres), 2 * _forms(shapes, centres.mean(0) - centres))
        return QCQP(weight, target, centres, shapes, radii), 1.5 * jax.random.normal(keys[5], (n,))

    def objective(self, problem: QCQP, x: Float[Array, " n"]) -> Float[Array, ""]:
        """`|W x - y|^2`."""
        return jnp.sum((problem.weight @ x - problem.target) ** 2)

    def constraints(self, problem: QCQP, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """`C(x)`: feasible where no entry is positive."""
        return _forms(problem.shapes, x - problem.centres) - problem.radii

    def feasible_start(self, problem: QCQP, x: Float[Array, " n"], fraction: Array | float) -> Float[Array, " n"]:
        """The point `fraction` of the way from the mean of the centres towards `x`, to x or to the first boundary."""
        inside = problem.centres.mean(0)
        way, offset = x - inside, inside - problem.centres
        # C_i on the ray is a s^2 + 2 b s + c with c < 0: one positive root.
        a = _forms(problem.shapes, jnp.broadcast_to(way, offset.shape))
        b = jnp.einsum("mi,mij,j->m", offset, problem.shapes, way)
        c = self.constraints(problem, inside)
        boundary = jnp.min((-b + jnp.sqrt(b**2 - a * c)) / a)
        return inside + fraction * jnp.minimum(boundary, 1) * way


def _forms(shapes: Float[Array, "m n n"], x: Float[Array, "m n"]) -> Float[Array, " m"]:
    return jnp.einsum("mi,mij,mj->m", x, shapes, x)
