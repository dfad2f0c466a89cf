"""The coordinatewise LSTM: against the equations in NumPy, and what coordinatewise means."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.nets import LearnedOptimizer
from safemeta.nets.learned_optimizer import preprocess


def logistic(x):
    return 1 / (1 + np.exp(-x))


def in_numpy(network: LearnedOptimizer, gradients: np.ndarray) -> np.ndarray:
    """Raw directions `[steps, n]`, coordinate by coordinate, gate by gate."""
    units = network.weight.shape[0]
    raw = np.zeros_like(gradients)
    for coordinate in range(gradients.shape[1]):
        h, c = np.zeros((len(network.cells), units)), np.zeros((len(network.cells), units))
        for step, g in enumerate(gradients[:, coordinate]):
            p = network.preprocessing
            if p is None:
                x = np.array([g])
            else:
                large = abs(g) >= math.exp(-p)
                x = np.array([math.log(abs(g)) / p, math.copysign(1, g)] if large else [-1, math.exp(p) * g])
            for index, cell in enumerate(network.cells):
                gates = np.concatenate([x, h[index]]) @ np.asarray(cell.weight) + np.asarray(cell.bias)
                i, f, g_new, o = (gates[k * units : (k + 1) * units] for k in range(4))
                c[index] = logistic(f) * c[index] + logistic(i) * np.tanh(g_new)
                h[index] = x = logistic(o) * np.tanh(c[index])
            raw[step, coordinate] = network.output_scale * (x @ np.asarray(network.weight) + float(network.bias))
    return raw


@pytest.mark.parametrize("preprocessing", [None, 3.0])
def test_it_is_the_lstm_of_the_equations(x64, preprocessing):
    key = jax.random.key(0)
    network = LearnedOptimizer.create(key, units=5, layers=2, preprocessing=preprocessing, output_scale=0.3)
    gradients = np.random.default_rng(0).normal(size=(6, 4)) * [1, 1e-3, 30, 0.1]
    memory, found = network.fresh(jnp.asarray(gradients[0])), []
    for gradient in gradients:
        raw, memory = network(jnp.asarray(gradient), memory)
        found.append(raw)
    np.testing.assert_allclose(np.stack(found), in_numpy(network, gradients), rtol=1e-10, atol=1e-12)


def test_every_coordinate_is_treated_alike_and_alone():
    network = LearnedOptimizer.create(jax.random.key(1))
    gradient = jax.random.normal(jax.random.key(2), (7,))
    order = jnp.array([3, 0, 6, 1, 5, 2, 4])
    raw, memory = network(gradient, network.fresh(gradient))
    shuffled, _ = network(gradient[order], network.fresh(gradient))
    np.testing.assert_allclose(shuffled, raw[order], atol=1e-7)
    jacobian = jax.jacobian(lambda g: network(g, memory)[0])(gradient)
    assert np.all(np.asarray(jacobian - jnp.diag(jnp.diagonal(jacobian))) == 0)
    assert np.all(np.diagonal(jacobian) != 0)
    table, _ = network(gradient.reshape(1, 7), network.fresh(gradient.reshape(1, 7)))
    np.testing.assert_allclose(table[0], raw, atol=1e-7)  # any shape of coordinates


def test_memory_matters_and_starts_empty():
    network = LearnedOptimizer.create(jax.random.key(1))
    gradient = jnp.array([0.3, -2.0])
    first, memory = network(gradient, network.fresh(gradient))
    again, _ = network(gradient, network.fresh(gradient))
    second, _ = network(gradient, memory)
    np.testing.assert_array_equal(first, again)
    assert np.all(np.abs(second - first) > 1e-4)


def test_preprocessing_by_hand():
    p = 2.0
    found = preprocess(jnp.array([1.0, -math.e, 1e-3, 0.0]), p)
    expected = [[0, 1], [0.5, -1], [-1, math.e**2 * 1e-3], [-1, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    slopes = jax.vmap(jax.jacobian(lambda g: preprocess(g, p)))(jnp.array([1.0, 1e-3, 0.0]))
    np.testing.assert_allclose(slopes, [[1 / p, 0], [0, math.e**2], [0, math.e**2]], rtol=1e-5)


def test_what_makes_no_sense_is_refused():
    for settings in ({"units": 0}, {"layers": 0}, {"output_scale": 0.0}, {"preprocessing": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            LearnedOptimizer.create(jax.random.key(0), **settings)
