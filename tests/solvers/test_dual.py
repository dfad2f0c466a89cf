"""Multipliers of the KL-penalised problem against cvxpy, the paper's Algorithm 1, and finite differences."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_oracles import finite_differences, relative_error

from safemeta.solvers import (
    Outcome,
    QuadraticAdvantage,
    discrete_policy,
    dual_discrete,
    dual_gaussian,
    dual_quadratic,
    gaussian_policy,
    quadratic_step,
)

DISCOUNT = 0.9
STATES, ACTIONS, COSTS = 4, 5, 2


def discrete_problem(rng, tightness=1.0):
    """(log_prob, advantage, cost_advantage, state_weight, budget, lam, lam_cost) with mean-zero advantages."""
    prob = rng.dirichlet(np.ones(ACTIONS), size=STATES)
    signals = rng.normal(size=(1 + COSTS, STATES, ACTIONS))
    signals -= np.sum(signals * prob, axis=2, keepdims=True)
    budget = tightness * rng.uniform(-0.2, 0.3, size=COSTS)
    weight = rng.dirichlet(np.ones(STATES))
    lam, lam_cost = rng.uniform(0.3, 2), rng.uniform(0, 5, size=COSTS)
    return tuple(map(jnp.asarray, (np.log(prob), signals[0], signals[1:], weight, budget, lam, lam_cost)))


def reference_discrete(problem, kl_limit=None):
    """Problem (1) as a conic program: status, optimal value and policy."""
    log_prob, advantage, costs, weight, budget, lam, lam_cost = map(np.asarray, problem)
    policy = cp.Variable((STATES, ACTIONS))
    kl = cp.sum(cp.multiply(np.repeat(weight[:, None], ACTIONS, 1), cp.rel_entr(policy, np.exp(log_prob))))
    mean = [cp.sum(cp.multiply(weight[:, None] * signal, policy)) for signal in (advantage, *costs)]
    rules = [cp.sum(policy, axis=1) == 1]
    rules += [mean[1 + i] + (1 - DISCOUNT) * lam_cost[i] * kl <= budget[i] for i in range(COSTS)]
    rules += [kl <= kl_limit] if kl_limit is not None else []
    program = cp.Problem(cp.Maximize(mean[0] - lam * kl), rules)
    try:
        program.solve(solver=cp.CLARABEL)
    except cp.SolverError:
        return "failed", None, None
    return program.status, program.value, policy.value


solve_discrete = jax.jit(lambda *problem: dual_discrete(*problem, DISCOUNT))
solve_limited = jax.jit(lambda *problem: dual_discrete(*problem, DISCOUNT, kl_limit=0.02))


@pytest.mark.parametrize("kl_limit", [None, 0.02])
def test_discrete_policy_is_the_optimum_of_the_constrained_problem(rng, kl_limit):
    solve = solve_discrete if kl_limit is None else solve_limited
    seen = {"optimal": 0, "infeasible": 0}
    for index in range(24):
        problem = discrete_problem(rng, 1.0 if index % 3 else 6.0)
        status, value, policy = reference_discrete(problem, kl_limit)
        found = solve(*problem)
        if status == "optimal":
            assert found.outcome == Outcome.SOLVED
            assert found.value == pytest.approx(value, abs=1e-6)
            ours = np.exp(discrete_policy(*problem[:3], found.multipliers, found.eta))
            np.testing.assert_allclose(ours, policy, atol=1e-4)
            assert np.all(found.gradient >= -1e-8)  # what is left of each budget
            np.testing.assert_allclose(found.gradient * found.multipliers, 0, atol=1e-7)
        elif status == "infeasible":
            assert found.outcome == Outcome.INFEASIBLE
        seen[status] = seen.get(status, 0) + 1
    assert seen["optimal"] >= 10
    assert seen["infeasible"] >= 2


def test_gradient_is_equation_5(rng):
    """dL/du_i = -E[A_ci + (1 - discount) lam_ci KL] + d'_i, and it is the derivative of L."""
    problem = discrete_problem(rng)
    log_prob, advantage, costs, weight, budget, lam, lam_cost = map(np.asarray, problem)
    found = dual_discrete(*problem, DISCOUNT)
    policy = np.exp(discrete_policy(*problem[:3], found.multipliers, found.eta))
    kl = np.sum(weight[:, None] * policy * (np.log(policy) - log_prob))
    use = np.sum(weight[:, None] * policy * costs, axis=(1, 2)) + (1 - DISCOUNT) * lam_cost * kl
    np.testing.assert_allclose(found.gradient, budget - use, atol=1e-10)
    assert found.eta == pytest.approx(lam + (1 - DISCOUNT) * np.sum(found.multipliers * lam_cost))
    assert found.value == pytest.approx(
        np.sum(weight[:, None] * policy * advantage)
        - np.sum(found.multipliers * (use - (1 - DISCOUNT) * lam_cost * kl))
        - found.eta * kl
        + found.multipliers @ budget
    )


def test_algorithm_1_takes_the_papers_steps(rng):
    """Three iterations of `u <- max(0, u - rate dL/du)` from u = 0, written out; and where they lead."""
    problem = discrete_problem(rng)
    log_prob, _, costs, weight, budget, lam, lam_cost = map(np.asarray, problem)

    def gradient(u):
        eta = lam + (1 - DISCOUNT) * u @ lam_cost
        policy = np.asarray(discrete_policy(*problem[:3], jnp.asarray(u), jnp.asarray(eta)))
        kl = np.sum(weight[:, None] * np.exp(policy) * (policy - log_prob))
        return budget - np.sum(weight[:, None] * np.exp(policy) * costs, axis=(1, 2)) - (1 - DISCOUNT) * lam_cost * kl

    u = np.zeros(COSTS)
    for _ in range(3):
        u = np.maximum(0, u - 0.3 * gradient(u))
    three = dual_discrete(*problem, DISCOUNT, method="projected_gradient", iterations=3, learning_rate=0.3)
    np.testing.assert_allclose(three.multipliers, u, rtol=1e-10)
    assert three.outcome == Outcome.NOT_CONVERGED
    newton = solve_discrete(*problem)
    many = dual_discrete(*problem, DISCOUNT, method="projected_gradient", iterations=20_000, learning_rate=1.0)
    np.testing.assert_allclose(many.multipliers, newton.multipliers, atol=1e-6)
    assert newton.iterations <= 15
    assert many.iterations > newton.iterations


def quadratic_problem(rng, tightness=1.0, n=6):
    rows = rng.normal(size=(1 + COSTS, n))
    fisher = np.cov(rng.normal(size=(n, 40)))
    budget = tightness * rng.uniform(-0.2, 0.3, size=COSTS)
    return rows, fisher, budget, rng.uniform(0.3, 2), rng.uniform(0, 5, size=COSTS)


def test_natural_gradient_form_is_the_optimum_of_its_quadratic_program(rng):
    solve = jax.jit(lambda *problem: dual_quadratic(*problem, DISCOUNT))
    limited = jax.jit(lambda *problem: dual_quadratic(*problem, DISCOUNT, kl_limit=0.05))
    outcomes = set()
    for index in range(24):
        rows, fisher, budget, lam, lam_cost = quadratic_problem(rng, (1.0, 30.0)[index % 2])
        solutions = np.linalg.solve(fisher, rows.T).T
        inputs = [jnp.asarray(part) for part in (rows @ solutions.T, budget, lam, lam_cost)]
        for solver, cap in ((solve, None), (limited, 0.05)):
            x = cp.Variable(rows.shape[1])
            kl = 0.5 * cp.quad_form(x, cp.psd_wrap(fisher))
            rules = [rows[1 + i] @ x + (1 - DISCOUNT) * lam_cost[i] * kl <= budget[i] for i in range(COSTS)]
            program = cp.Problem(cp.Maximize(rows[0] @ x - lam * kl), rules + ([] if cap is None else [kl <= cap]))
            program.solve(solver=cp.CLARABEL)
            found = solver(*inputs)
            outcomes.add((program.status, int(found.outcome)))
            if program.status == "optimal":
                step = quadratic_step(jnp.asarray(solutions), found.multipliers, found.eta)
                np.testing.assert_allclose(step, x.value, atol=2e-4)  # as far as Clarabel goes
                assert found.value == pytest.approx(program.value, rel=1e-6)
    assert outcomes == {("optimal", int(Outcome.SOLVED)), ("infeasible", int(Outcome.INFEASIBLE))}


def gaussian_problem(rng, tightness=1.0):
    def model(*lead):
        return QuadraticAdvantage(
            jnp.asarray(0.1 * rng.normal(size=(*lead, STATES))),
            jnp.asarray(rng.normal(size=(*lead, STATES, 2))),
            jnp.asarray(rng.uniform(0.2, 1, size=(*lead, STATES, 2))),
        )

    std = jnp.asarray(rng.uniform(0.3, 1, size=(STATES, 2)))
    weight, budget = (
        jnp.asarray(rng.dirichlet(np.ones(STATES))),
        jnp.asarray(tightness * rng.uniform(0, 0.2, size=COSTS)),
    )
    costs = model(COSTS)._replace(curvature=jnp.asarray(rng.uniform(-0.1, 0.1, size=(COSTS, STATES, 2))))
    return (
        std,
        model(),
        costs,
        weight,
        budget,
        jnp.asarray(rng.uniform(1, 2)),
        jnp.asarray(rng.uniform(1, 5, size=COSTS)),
    )


def gaussian_evidence(problem, found, samples=400_000):
    """The adapted policy, its KL, and its expected signals by sampling: nothing of the dual's formula is used."""
    std, advantage, costs, weight, *_ = problem
    mean, new_std = gaussian_policy(jnp.zeros_like(std), std, advantage, costs, found.multipliers, found.eta)
    ratio = (new_std / std) ** 2
    kl = jnp.sum(weight * jnp.sum(ratio + (mean / std) ** 2 - 1 - jnp.log(ratio), axis=1)) / 2
    noise = jax.random.normal(jax.random.key(0), (samples // 2, *std.shape))
    actions = mean + new_std * jnp.concatenate([noise, -noise])

    def expected(model):
        value = model.offset[..., None, :] + jnp.einsum("...sa,ksa->...ks", model.slope, actions)
        value -= jnp.einsum("...sa,ksa->...ks", model.curvature, actions**2) / 2
        return jnp.mean(value, axis=-2) @ weight

    return kl, expected(advantage), expected(costs)


def test_gaussian_form_meets_its_budgets_and_has_no_duality_gap(rng):
    solve = jax.jit(lambda *problem: dual_gaussian(*problem, DISCOUNT))
    active = 0
    for _ in range(4):
        problem = gaussian_problem(rng)
        found = solve(*problem)
        assert found.outcome == Outcome.SOLVED
        kl, value, costs = gaussian_evidence(problem, found)
        *_, budget, lam, lam_cost = problem
        use = costs + (1 - DISCOUNT) * lam_cost * kl
        np.testing.assert_allclose(budget - use, found.gradient, atol=5e-3)  # sampling error
        np.testing.assert_allclose(found.gradient * found.multipliers, 0, atol=1e-8)
        assert np.all(found.gradient >= -1e-8)
        assert value - lam * kl == pytest.approx(float(found.value), abs=5e-3)
        active += int(np.sum(found.multipliers > 0))
    assert active >= 2


def test_gaussian_policy_is_the_product_of_density_and_tilt():
    """The printed (13) is wrong; the tilted density itself decides, on a grid."""
    std, mean, eta = 0.7, 0.3, 0.9
    advantage = QuadraticAdvantage(jnp.zeros(1), jnp.array([[0.8]]), jnp.array([[1.5]]))
    cost = QuadraticAdvantage(jnp.zeros((1, 1)), jnp.array([[[0.5]]]), jnp.array([[[-0.2]]]))
    new_mean, new_std = gaussian_policy(
        jnp.array([[mean]]), jnp.array([[std]]), advantage, cost, jnp.array([0.4]), jnp.array(eta)
    )
    grid = np.linspace(-8, 8, 40_001)
    x = grid - mean
    tilt = (0.8 * x - 0.75 * x**2) - 0.4 * (0.5 * x + 0.1 * x**2)
    density = np.exp(-(x**2) / (2 * std**2) + tilt / eta)
    density /= density.sum()
    assert new_mean[0, 0] == pytest.approx(density @ grid, abs=1e-9)
    assert new_std[0, 0] == pytest.approx(np.sqrt(density @ (grid - density @ grid) ** 2), abs=1e-9)


def test_derivatives_of_the_multipliers(rng):
    """First and second, with respect to everything, through multipliers, eta and value."""
    names = ("advantage", "cost_advantage", "budget", "lam", "lam_cost")
    problem = discrete_problem(rng)
    log_prob, weight = problem[0], problem[3]
    start = [np.asarray(problem[index]) for index in (1, 2, 4, 5, 6)]
    start[2] = np.array([-0.05, -0.1])
    cuts = np.cumsum([part.size for part in start])[:-1]
    assert len(names) == len(start)

    def outputs(flat):
        parts = [p.reshape(s.shape) for p, s in zip(jnp.split(flat, cuts), start, strict=True)]
        found = dual_discrete(log_prob, parts[0], parts[1], weight, parts[2], parts[3], parts[4], DISCOUNT)
        return jnp.concatenate([found.multipliers, found.eta[None], found.value[None]])

    point = np.concatenate([part.ravel() for part in start])
    weights = rng.normal(size=COSTS + 2)
    values, reverse = jax.jit(outputs), jax.jit(jax.jacrev(outputs))
    assert np.all(values(point)[:COSTS] > 1e-3)
    expected = finite_differences(values, point)
    assert relative_error(reverse(point), expected) < 1e-6
    assert relative_error(jax.jit(jax.jacfwd(outputs))(point), expected) < 1e-6
    second = jax.jit(jax.jacfwd(jax.grad(lambda flat: weights @ outputs(flat))))(point)
    assert relative_error(second, finite_differences(lambda p: weights @ np.asarray(reverse(p)), point)) < 1e-4


def test_float32_and_batches(rng):
    problems = [discrete_problem(rng) for _ in range(4)]
    stacked = [jnp.stack(part) for part in zip(*problems, strict=True)]
    together = jax.jit(jax.vmap(lambda *p: dual_discrete(*p, DISCOUNT)))(*stacked)
    single = jax.jit(jax.vmap(lambda *p: dual_discrete(*p, DISCOUNT)))(*(p.astype(jnp.float32) for p in stacked))
    assert single.multipliers.dtype == jnp.float32
    for index, problem in enumerate(problems):
        alone = solve_discrete(*problem)
        assert together.outcome[index] == single.outcome[index] == alone.outcome
        if alone.outcome == Outcome.SOLVED:
            np.testing.assert_allclose(together.multipliers[index], alone.multipliers, atol=1e-8)
            np.testing.assert_allclose(single.multipliers[index], alone.multipliers, rtol=2e-3, atol=2e-4)


def test_satisfied_constraints_cost_nothing_and_bad_methods_are_refused(rng):
    problem = list(discrete_problem(rng))
    problem[4] = jnp.array([50.0, 50.0])
    found = solve_discrete(*problem)
    np.testing.assert_array_equal(found.multipliers, 0)
    assert found.eta == problem[5]
    with pytest.raises(ValueError, match="projected_gradient"):
        dual_discrete.__wrapped__(*problem, DISCOUNT, method="adam")
