"""Derivatives of the trust-region step against finite differences: all inputs, the metric's closure, both modes."""

import jax
import jax.numpy as jnp
import numpy as np
from solver_oracles import finite_differences, relative_error

from safemeta.solvers import Outcome, fisher_vector_product, trust_region_step

N, M = 4, 2
SIZES = (N, M * N, M, 1, N * N)


def outputs(flat):
    """Everything that is differentiable, as one vector, of all inputs as one vector. The metric is L L'."""
    g, a, b, r, factor = jnp.split(flat, np.cumsum(SIZES)[:-1])
    factor = factor.reshape(N, N)
    found = trust_region_step(
        g, a.reshape(M, N), b, lambda v: factor @ (factor.T @ v), r[0], iterations=100, tolerance=1e-15
    )
    scalars = jnp.stack([found.radius_multiplier, found.objective_change, found.divergence])
    return jnp.concatenate([found.step, found.multipliers, found.predicted_violations, scalars]), found


WEIGHTS = np.random.default_rng(5).normal(size=N + 2 * M + 3)


def problem(rng, violated):
    """Violations of the first `violated` constraints are out of reach; the others are about to bind."""
    factor = np.eye(N) + 0.15 * rng.normal(size=(N, N))
    violations = np.where(np.arange(M) < violated, 3.5, rng.uniform(-1, 0.2, size=M))
    return np.concatenate([rng.normal(size=N), rng.normal(size=M * N), violations, [0.3], factor.ravel()])


def test_first_and_second_derivatives(rng):
    """16 problems in one batch, solved and recovered, with up to two constraints active."""
    points = np.stack([problem(rng, (0, 0, 1, 2)[index % 4]) for index in range(16)])
    values = jax.jit(jax.vmap(outputs))
    found = values(points)[1]
    seen = set(zip(found.outcome.tolist(), found.active.sum(axis=1).tolist(), strict=True))
    assert {(Outcome.SOLVED, 0), (Outcome.SOLVED, 1), (Outcome.SOLVED, 2), (Outcome.RECOVERED, 1)} <= seen
    assert (Outcome.RECOVERED, 2) in seen

    reverse = jax.jit(jax.vmap(jax.jacrev(lambda flat: outputs(flat)[0])))
    forward = jax.jit(jax.vmap(jax.jacfwd(lambda flat: outputs(flat)[0])))
    second = jax.jit(jax.vmap(jax.jacfwd(jax.grad(lambda flat: outputs(flat)[0] @ WEIGHTS))))
    expected = finite_differences(lambda p: values(p)[0], points)
    expected_second = finite_differences(lambda p: WEIGHTS @ np.asarray(reverse(p)), points)
    for index in range(len(points)):
        assert relative_error(reverse(points)[index], expected[index]) < 1e-6
        assert relative_error(forward(points)[index], expected[index]) < 1e-6
        assert relative_error(second(points)[index], expected_second[index]) < 1e-4


def test_forward_over_forward_equals_reverse_over_reverse(rng):
    def value(flat):
        found = trust_region_step(flat[:3], flat[3:6][None], flat[6:7], lambda v: flat[7:10] * v, 0.3, tolerance=1e-14)
        return jnp.sum(jnp.sin(found.step))

    point = np.concatenate([rng.normal(size=6), [-0.1], [0.5, 1.0, 2.0]])
    forward = jax.jit(jax.jacfwd(jax.jacfwd(value)))(point)
    reverse = jax.jit(jax.jacrev(jax.jacrev(value)))(point)
    assert relative_error(forward, reverse) < 1e-9


def test_where_the_radius_does_not_bind():
    """At a vertex, and with the objective in the cone of the constraints: g enters the multipliers alone."""

    def step(flat):
        found = trust_region_step(flat[:2], flat[2:6].reshape(2, 2), flat[6:8], None, flat[8])
        return jnp.concatenate([found.step, found.multipliers, found.radius_multiplier[None], found.divergence[None]])

    values, derivative = jax.jit(step), jax.jit(jax.jacrev(step))
    for violations in ([0.1, -0.1], [-0.1, -0.05]):
        point = np.array([1.0, 1.0, 1.0, 0.2, 0.1, 1.0, *violations, 2.0])
        assert values(point)[4] == 0
        assert relative_error(derivative(point), finite_differences(values, point)) < 1e-8


def network(parameters, observations):
    """A small Gaussian policy as a function of flat parameters: 3 -> 4 -> 2 and two log standard deviations."""
    first, second, log_std = jnp.split(parameters, (12, 20))
    return jnp.tanh(observations @ first.reshape(3, 4)) @ second.reshape(4, 2), log_std


def mean_kl(old, new):
    (mean, log_std), (new_mean, new_log_std) = old, new
    variance, new_variance = jnp.exp(2 * log_std), jnp.exp(2 * new_log_std)
    terms = new_log_std - log_std + (variance + (mean - new_mean) ** 2) / (2 * new_variance) - 0.5
    return jnp.mean(jnp.sum(terms, axis=-1))


def cpo_step(parameters, observations, weights):
    """One CPO step of the network: objective, cost and Fisher metric all depend on the parameters."""
    count = observations.shape[0]

    def surrogate(candidate, signal):
        mean, log_std = network(candidate, observations)
        return jnp.mean(jnp.sum(jnp.sin(mean + jnp.exp(log_std)) * signal, axis=-1))

    gradients = [jax.grad(surrogate)(parameters, weights[i].reshape(count, 2)) for i in range(2)]
    metric = fisher_vector_product(lambda p: network(p, observations), mean_kl, parameters, 0.05)
    violation = surrogate(parameters, weights[1].reshape(count, 2))[None] - 0.08
    found = trust_region_step(gradients[0], gradients[1][None], violation, metric, 0.02, iterations=60, tolerance=1e-14)
    return parameters + found.step, found


def data(rng, count):
    """Observations, and signals of objective and cost that agree in part, so that the constraint binds."""
    weights = rng.normal(size=(2, 2 * count))
    weights[1] += weights[0]
    return jnp.asarray(rng.normal(size=(count, 3))), jnp.asarray(weights)


def test_gradient_through_a_fisher_metric_and_through_five_steps(rng):
    observations, weights = data(rng, 12)
    start = 0.4 * rng.normal(size=22)

    @jax.jit
    def chain(parameters):
        return jax.lax.scan(lambda p, _: cpo_step(p, observations, weights), parameters, length=5)

    def value(parameters):
        return jnp.sum(jnp.cos(chain(parameters)[0] + jnp.arange(22)))

    found = chain(start)[1]
    assert np.all(found.outcome == Outcome.SOLVED)
    assert np.all(found.active)  # the constraint binds: its derivatives are part of the test
    gradient = jax.jit(jax.grad(value))(start)
    assert relative_error(gradient, finite_differences(value, start, 1e-5)) < 1e-6


def test_second_derivative_through_a_fisher_metric(rng):
    observations, weights = data(rng, 8)
    start = 0.4 * rng.normal(size=22)
    direction = jnp.asarray(rng.normal(size=22))

    def value(parameters):
        return jnp.sum(jnp.cos(cpo_step(parameters, observations, weights)[0] + jnp.arange(22)))

    gradient = jax.jit(jax.grad(value))
    product = jax.jit(lambda p: jax.jvp(jax.grad(value), (p,), (direction,))[1])(start)
    size = 1e-4
    near = gradient(start + size * direction) - gradient(start - size * direction)
    far = gradient(start + 2 * size * direction) - gradient(start - 2 * size * direction)
    assert relative_error(product, (8 * near - far) / (12 * size)) < 1e-4


def test_gradients_stay_finite_where_the_problem_is_degenerate():
    """Zero objective, zero rows, duplicates, contradiction: some derivative is one-sided, none is NaN."""
    cases = [
        (np.zeros(2), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([-1.0, -1.0])),
        (np.ones(2), np.zeros((2, 2)), np.array([-1.0, 1.0])),
        (np.ones(2), np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0.0, 0.0])),
        (np.ones(2), np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0.2, 0.2])),
        (np.zeros(2), np.zeros((2, 2)), np.zeros(2)),
    ]
    gradient = jax.jit(jax.grad(lambda g, a, b: jnp.sum(trust_region_step(g, a, b, None, 0.1).step), argnums=(0, 1, 2)))
    for case in cases:
        for part in gradient(*map(jnp.asarray, case)):
            assert np.all(np.isfinite(part))
