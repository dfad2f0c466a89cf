"""The networks of D4PG: layers as Acme has them, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from safemeta.nets import CategoricalValue, DeterministicPolicy, LayerNormMLP


def by_hand(network, x):
    x = np.asarray(x) @ np.asarray(network.layers[0].weight)
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    x = np.tanh(np.asarray(network.scale) * x + np.asarray(network.offset))
    for layer in network.layers[1:]:
        x = x @ np.asarray(layer.weight) + np.asarray(layer.bias)
        x = np.where(x > 0, x, np.expm1(x))
    return x


def test_the_first_layer_is_normalised_and_the_others_are_elu(x64):
    network = LayerNormMLP.create(3, (7, 5), jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(4, 3))
    for row, found in zip(x, network(jnp.asarray(x)), strict=True):
        np.testing.assert_allclose(found, by_hand(network, row), atol=1e-12)


def test_weights_begin_within_their_bounds():
    network = LayerNormMLP.create(40, (300, 200), jax.random.key(0))
    for layer, outputs in zip(network.layers, (300, 200), strict=True):
        largest, bound = float(jnp.abs(layer.weight).max()), (3 * 0.333 / outputs) ** 0.5
        assert 0.99 * bound < largest <= bound
        assert not layer.bias.any()


def test_a_fresh_policy_hardly_acts_and_never_beyond_one():
    policy = DeterministicPolicy.create(4, 2, jax.random.key(0), hidden=(16, 16))
    observation = jax.random.normal(jax.random.key(1), (50, 4))
    assert float(jnp.abs(policy(observation)).max()) < 0.1
    loud = jax.tree.map(lambda leaf: 1000 * leaf, policy)
    assert float(jnp.abs(loud(observation)).max()) <= 1
    action, _ = policy.act(observation[0], jax.random.key(2))
    np.testing.assert_allclose(action, policy(observation)[0], atol=1e-6)


def test_a_categorical_critic_sees_observation_and_action():
    critic = CategoricalValue.create(4, 2, 11, jax.random.key(0), hidden=(16, 16))
    observation, action = jnp.ones((3, 4)), jnp.zeros((3, 2))
    assert critic(observation, action).shape == (3, 11)
    assert not np.allclose(critic(observation, action), critic(observation, action + 1))
    turned = observation.at[:, 0].set(-1)
    assert not np.allclose(critic(observation, action), critic(turned, action))
