"""Random quadratic problems: what their distribution promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.tasks.qcqp import QCQPFamily


@pytest.mark.parametrize(("size", "count"), [(10, 1), (10, 3), (2, 5), (1, 1)])
def test_every_problem_is_convex_bounded_feasible_and_cut_off(size, count):
    family = QCQPFamily(size, count)
    problems, starts = jax.vmap(family.sample)(jax.random.split(jax.random.key(0), 200))
    assert starts.shape == (200, size)
    values = np.linalg.eigvalsh(problems.weight)
    assert values.min() > 0.5 - 1e-4
    assert values.max() < 1.5 + 1e-4
    assert np.linalg.eigvalsh(problems.shapes).min() > 0.1 - 1e-4
    free = np.linalg.solve(problems.weight, problems.target[..., None])[..., 0]
    assert np.abs(jax.vmap(family.objective)(problems, jnp.asarray(free))).max() < 1e-4
    outside = jax.vmap(family.constraints)(problems, jnp.asarray(free))
    inside = jax.vmap(family.constraints)(problems, problems.centres.mean(1))
    assert np.all(np.asarray(inside).max(1) < 0)
    # All but the few whose radius had to grow, for the sake of feasibility, cut off the free optimum.
    assert np.mean(np.asarray(outside) > 0) > (0.999 if count == 1 else 0.9 if size > 2 else 0.3)


def test_values_against_the_formulas():
    family = QCQPFamily(4, 2)
    problem, x = family.sample(jax.random.key(3))
    w, y, c, m, r = (np.asarray(part) for part in jax.tree.leaves(problem))
    x = np.asarray(x)
    assert family.objective(problem, jnp.asarray(x)) == pytest.approx(np.linalg.norm(w @ x - y) ** 2, rel=1e-5)
    expected = [(x - c[i]) @ m[i] @ (x - c[i]) - r[i] for i in range(2)]
    np.testing.assert_allclose(family.constraints(problem, jnp.asarray(x)), expected, rtol=1e-5)


def test_feasible_starts_are_feasible_and_reach_the_boundary(x64):
    family = QCQPFamily(6, 3)
    problems, starts = jax.vmap(family.sample)(jax.random.split(jax.random.key(1), 50))

    def largest(fraction):
        points = jax.vmap(lambda p, x: family.feasible_start(p, x, fraction))(problems, starts)
        return np.asarray(jax.vmap(family.constraints)(problems, points)).max(1)

    assert largest(0.5).max() < 0
    at_end = largest(1.0)
    assert at_end.max() < 1e-10
    assert np.mean(np.abs(at_end) < 1e-10) > 0.5  # most random points are outside: the ray is cut at the boundary


def test_sizes_must_make_sense():
    with pytest.raises(ValueError, match="constraint"):
        QCQPFamily(3, 0)
