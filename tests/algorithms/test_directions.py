"""Directions and predicted effects against dense linear algebra, and the bias that cross-fitting removes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import dense_fisher, episodes_of, make_case, scores, signal_gradients, weights_of

from safemeta.algorithms.directions import directions
from safemeta.algorithms.estimation import Advantages
from safemeta.algorithms.surrogate import fisher_metric, halves_of, surrogate
from safemeta.nets import parameters, with_parameters

pytestmark = pytest.mark.usefixtures("x64")
DAMPING = 0.03


class Linear(NamedTuple):
    """Signals that are linear in the parameters, with other gradients on either half."""

    first: np.ndarray  # [signals, parameters]
    second: np.ndarray
    metric: np.ndarray


def linear(rng, signals=3, size=6) -> Linear:
    root = rng.normal(size=(size, size))
    return Linear(rng.normal(size=(signals, size)), rng.normal(size=(signals, size)), root @ root.T + np.eye(size))


def found_for(problem: Linear, cross_fit: bool, parts=None, iterations=30):
    """`directions` at a random point; `parts` groups the signals into several functions."""
    both = jnp.asarray(np.stack([problem.first, problem.second]))
    parts = parts or [slice(None)]
    at = jnp.ones(problem.first.shape[1])
    solve = jax.jit(
        lambda at: directions(
            [lambda x, part=part: both[:, part] @ x + 7.0 for part in parts],
            at,
            lambda v: jnp.asarray(problem.metric) @ v,
            cross_fit=cross_fit,
            iterations=iterations,
            damping=DAMPING,
        )
    )
    return solve(at)


def inverse(problem: Linear) -> np.ndarray:
    return np.linalg.inv(problem.metric + DAMPING * np.eye(len(problem.metric)))


def test_in_sample_is_dense_linear_algebra(rng):
    problem = linear(rng)
    found = found_for(problem, cross_fit=False)
    rows = (problem.first + problem.second) / 2
    np.testing.assert_allclose(found.solutions, rows @ inverse(problem), rtol=1e-8, atol=1e-10)
    gram = rows @ inverse(problem) @ rows.T
    np.testing.assert_allclose(found.gram, gram, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(found.effect, found.gram)


def test_cross_fitted_effects_are_the_symmetrised_product_of_the_halves(rng):
    problem = linear(rng)
    found = found_for(problem, cross_fit=True)
    product = problem.first @ inverse(problem) @ problem.second.T
    np.testing.assert_allclose(found.effect, (product + product.T) / 2, rtol=1e-8, atol=1e-10)
    plain = found_for(problem, cross_fit=False)
    np.testing.assert_allclose(found.gram, plain.gram, rtol=1e-9)
    np.testing.assert_allclose(found.solutions, plain.solutions, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("cross_fit", [False, True])
def test_signals_may_come_in_several_functions(rng, cross_fit):
    problem = linear(rng)
    together = found_for(problem, cross_fit)
    apart = found_for(problem, cross_fit, parts=[slice(0, 1), slice(1, 3)])
    for ours, expected in zip(apart, together, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("deviation", "part"), [("free", "all"), ("state", "last")])
def test_on_a_policy_it_is_what_single_samples_and_a_dense_fisher_matrix_give(rng, deviation, part):
    case = make_case(rng, deviation, episodes=4, ends=0.0, horizon=3)
    start, states = parameters(case.policy, part), case.samples.observation
    split = halves_of(case.policy(states), case.samples)

    def predictions(x):
        new = with_parameters(case.policy, x, part)
        value = jax.vmap(lambda o, s: surrogate(new, o, s))(*split)
        return jnp.concatenate([value.reward[:, None], value.costs], axis=1)

    weight = jnp.full(states.shape[:-1], 1 / 12)
    metric = fisher_metric(lambda x: with_parameters(case.policy, x, part)(states), start, weight)
    solve = jax.jit(lambda at: directions([predictions], at, metric, cross_fit=True, iterations=200, damping=DAMPING))
    found = solve(start)
    fisher = dense_fisher(case.policy, states, weight, part)
    solver = np.linalg.inv(fisher + DAMPING * np.eye(len(fisher)))

    # The advantages were centred on all episodes; half a batch leaves them as they are.
    kept = Advantages(case.samples.advantage, case.samples.cost_advantages, case.advantages.target)
    centred = case._replace(advantages=kept)
    halves = [uncentred_gradients(episodes_of(centred, slice(2 * h, 2 * h + 2)), part) for h in range(2)]
    product = halves[0] @ solver @ halves[1].T
    whole = signal_gradients(case, part)
    np.testing.assert_allclose(sum(halves) / 2, whole, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.gram, whole @ solver @ whole.T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.effect, (product + product.T) / 2, rtol=1e-7, atol=1e-9)


def uncentred_gradients(case, part) -> np.ndarray:
    """Policy gradients of advantages as they are, from whole episodes."""
    rows = scores(case.policy, case.trajectory.observation, case.trajectory.action, part)
    episodes, horizon = case.trajectory.reward.shape
    reward = np.einsum("etn,et->n", rows, case.advantages.reward) / (episodes * horizon)
    costs = np.einsum("etn,eti,t->in", rows, case.advantages.costs, weights_of(case.cmdp)) / episodes
    return np.concatenate([reward[None], costs])


def test_cross_fitting_is_unbiased_and_the_in_sample_product_is_not(rng):
    """Gradients of a linear-Gaussian problem: the truth plus independent noise on either half."""
    signals, size, draws, noise = 2, 20, 4000, 0.5
    truth, problem = 0.3 * rng.normal(size=(signals, size)), linear(rng, signals, size)
    observed = jnp.asarray(truth + noise * rng.normal(size=(draws, 2, signals, size)))
    matrix = jnp.asarray(problem.metric)

    @jax.jit
    @jax.vmap
    def estimate(both):
        found = directions(
            [lambda x: both @ x],
            jnp.zeros(size),
            lambda v: matrix @ v,
            cross_fit=True,
            iterations=100,
            damping=DAMPING,
        )
        return found.effect, found.gram

    effect, gram = (np.asarray(x) for x in estimate(observed))
    expected = truth @ inverse(problem) @ truth.T
    # The mean of two halves has half the variance; each direction of F^-1 adds its share to the diagonal.
    bias = noise**2 / 2 * np.trace(inverse(problem)) * np.eye(signals)
    error = effect.std(0) / np.sqrt(draws), gram.std(0) / np.sqrt(draws)
    assert np.all(np.abs(effect.mean(0) - expected) < 4 * error[0])
    assert np.all(np.abs(gram.mean(0) - expected - bias) < 4 * error[1])
    assert np.all(np.diagonal(gram.mean(0) - expected) > 50 * np.diagonal(error[1]))  # so the bias is no accident


def test_linearised_effects_are_those_of_the_solutions_also_after_few_iterations(rng):
    """Ten conjugate-gradient iterations are usual, and far from convergence: predictions may be a few percent off.

    The change of signal i along `solutions[j]`, and twice the KL, in units of what each signal can do alone.
    """
    size = 200
    rotation = np.linalg.qr(rng.normal(size=(size, size)))[0]
    metric = rotation * np.geomspace(1e-3, 10, size) @ rotation.T
    first = rng.normal(size=(3, size)) @ rotation.T * np.geomspace(0.01, 1, size) @ rotation.T
    problem = Linear(first, first, (metric + metric.T) / 2)
    found = found_for(problem, cross_fit=False, iterations=10)
    solutions = np.asarray(found.solutions)
    scale = np.sqrt(np.outer(*[np.diagonal(found.gram)] * 2))
    np.testing.assert_allclose(found.effect / scale, first @ solutions.T / scale, atol=0.02)
    damped = problem.metric + DAMPING * np.eye(size)
    np.testing.assert_allclose(found.gram / scale, solutions @ damped @ solutions.T / scale, atol=0.02)
    exact = first @ inverse(problem) @ first.T
    assert np.max(np.abs(found.gram - exact) / scale) > 0.05  # far from converged
