"""Exact evaluation and extremes over all policies, against definitions, random policies and a linear program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from safemeta.tasks.tabular import performance, visitation
from safemeta.tasks.tabular_exact import deterministic_policies, evaluate, extremes
from safemeta.tasks.tabular_families import random_cmdp

DISCOUNT = 0.8


@pytest.fixture
def cmdp(x64):
    return random_cmdp(jax.random.key(4), 4, 3, 2, 2)


def test_the_evaluation_is_consistent(cmdp):
    policy = jax.random.dirichlet(jax.random.key(0), jnp.ones(3), (4,))
    other = jax.random.dirichlet(jax.random.key(1), jnp.ones(3), (4,))
    found, there = evaluate(cmdp, policy, DISCOUNT), evaluate(cmdp, other, DISCOUNT)
    np.testing.assert_allclose(found.performance, performance(cmdp, policy, DISCOUNT), rtol=1e-12)
    np.testing.assert_allclose(found.state_weight.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(
        found.state_weight[:, None] * policy, (1 - DISCOUNT) * visitation(cmdp, policy, DISCOUNT), rtol=1e-12
    )
    np.testing.assert_allclose(jnp.einsum("sa,sax->sx", policy, found.advantage), 0, atol=1e-12)
    # The performance-difference lemma ties all of it together.
    change = jnp.einsum("s,sa,sax->x", there.state_weight, other, found.advantage) / (1 - DISCOUNT)
    np.testing.assert_allclose(there.performance - found.performance, change, rtol=1e-10)


def test_no_policy_exceeds_the_extremes_and_some_reach_them(cmdp):
    bounds = extremes(cmdp, DISCOUNT)
    random = jax.random.dirichlet(jax.random.key(2), jnp.full(3, 0.3), (5000, 4))
    found = jax.jit(jax.vmap(lambda policy: evaluate(cmdp, policy, DISCOUNT)))(random)
    largest = jnp.abs(found.advantage).max((0, 1, 2))
    least = found.state_weight.min(0)
    assert np.all(largest <= bounds.advantage + 1e-12)
    assert np.all(least >= bounds.least_visitation - 1e-12)
    assert np.all(largest > 0.8 * bounds.advantage)
    # The least visitation of a state is a linear program over visitations.
    flow = np.repeat(np.eye(4), 3, axis=1) - DISCOUNT * np.asarray(cmdp.transition).reshape(-1, 4).T
    for state in range(4):
        cost = (1 - DISCOUNT) * np.repeat(np.eye(4)[state], 3)
        solved = linprog(cost, A_eq=flow, b_eq=np.asarray(cmdp.initial), method="highs")
        assert bounds.least_visitation[state] == pytest.approx(solved.fun, rel=1e-8)


def test_deterministic_policies_are_listed_once_each():
    listed = deterministic_policies(3, 2)
    assert listed.shape == (8, 3, 2)
    assert np.all(listed.sum(-1) == 1)
    assert len({policy.tobytes() for policy in listed}) == 8
    with pytest.raises(ValueError, match="too many"):
        deterministic_policies(10, 4)
