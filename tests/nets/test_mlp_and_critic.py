"""The perceptron and the critic against plain numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.nets import MLP, Critic

pytestmark = pytest.mark.usefixtures("x64")


def forward(layers, x: np.ndarray) -> np.ndarray:
    """A tanh perceptron with a linear output, from (weight, bias) pairs."""
    for weight, bias in layers[:-1]:
        x = np.tanh(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def layers_of(mlp: MLP, index: object = ...) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(layer.weight)[index], np.asarray(layer.bias)[index]) for layer in mlp.layers]


def with_noise(module, seed: int = 0, scale: float = 0.3):
    """All arrays moved, so that no bias is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape), module)


@pytest.mark.parametrize("hidden", [(5,), (7, 4), (6, 5, 4)])
@pytest.mark.parametrize("batch", [(), (9,), (2, 3, 4)])
def test_mlp_is_a_tanh_perceptron_on_any_batch(hidden, batch):
    mlp = with_noise(MLP.create(3, 2, hidden, jax.random.key(0)))
    x = np.random.default_rng(1).normal(size=(*batch, 3))
    found = mlp(jnp.asarray(x))
    assert found.shape == (*batch, 2)
    np.testing.assert_allclose(found, forward(layers_of(mlp), x), rtol=1e-12, atol=1e-14)


def test_mlp_starts_orthogonal_with_the_stated_gains_and_zero_bias():
    mlp = MLP.create(6, 2, (6, 4), jax.random.key(0), output_gain=0.01)
    for layer, gain in zip(mlp.layers, (2**0.5, 2**0.5, 0.01), strict=True):
        weight = np.asarray(layer.weight)
        np.testing.assert_allclose(weight.T @ weight, gain**2 * np.eye(weight.shape[1]), atol=1e-12)
        np.testing.assert_array_equal(layer.bias, 0)
    assert not np.allclose(mlp.layers[0].weight, MLP.create(6, 2, (6, 4), jax.random.key(1)).layers[0].weight)


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_critic_is_one_scaled_perceptron_per_signal(batch):
    critic = with_noise(Critic.create(3, 4, jax.random.key(0), hidden=(5, 6), scale=7.0))
    x = np.random.default_rng(1).normal(size=(*batch, 3))
    expected = [7.0 * forward(layers_of(critic.networks, signal), x)[..., 0] for signal in range(4)]
    found = critic(jnp.asarray(x))
    assert found.shape == (*batch, 4)
    np.testing.assert_allclose(found, np.stack(expected, -1), rtol=1e-12, atol=1e-13)


def test_critic_networks_of_different_signals_start_differently():
    networks = Critic.create(3, 2, jax.random.key(0), hidden=(5,)).networks
    for layer in networks.layers:
        assert not np.allclose(layer.weight[0], layer.weight[1])


def test_each_signal_of_the_critic_has_parameters_of_its_own():
    critic = with_noise(Critic.create(3, 3, jax.random.key(0), hidden=(5,)))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 3)))
    gradient = eqx.filter_grad(lambda c: c(x)[:, 1].sum())(critic)
    for leaf in jax.tree.leaves(eqx.filter(gradient, eqx.is_array)):
        assert np.any(leaf[1] != 0)
        np.testing.assert_array_equal(leaf[0], 0)
        np.testing.assert_array_equal(leaf[2], 0)
