"""Gaussian policies against plain numpy, and their parameters as vectors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from safemeta.nets import GaussianPolicy, parameters, with_parameters
from safemeta.nets.policy import LOG_STD_RANGE

pytestmark = pytest.mark.usefixtures("x64")
KINDS = ("free", "state")
PARTS = ("all", "last")
OBSERVATION, ACTION, HIDDEN = 3, 2, (5, 4)


def make_policy(deviation="free", seed=0, scale=0.3) -> GaussianPolicy:
    """A policy whose every parameter differs from its initial value, with a normaliser that has seen data."""
    rng = np.random.default_rng(seed)
    policy = GaussianPolicy.create(
        OBSERVATION, ACTION, jax.random.key(seed), hidden=HIDDEN, deviation=deviation, initial_log_std=-0.7
    )
    seen = jnp.asarray(rng.normal(loc=2.0, scale=3.0, size=(50, OBSERVATION)))
    moved = jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape), policy.network)
    return GaussianPolicy(policy.normalizer.merge(seen), moved, deviation)


def numpy_moments(policy: GaussianPolicy, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log standard deviation, as the docstring has them."""
    statistics = policy.normalizer
    variance = np.asarray(statistics.sum_squares) / (float(statistics.count) - 1)
    x = np.clip((observation - np.asarray(statistics.mean)) / np.sqrt(variance + 1e-8), -5, 5)
    *hidden, last = policy.network.mlp.layers
    for layer in hidden:
        x = np.tanh(x @ np.asarray(layer.weight) + np.asarray(layer.bias))
    output = x @ np.asarray(last.weight) + np.asarray(last.bias)
    log_std = np.asarray(policy.network.log_std)
    if policy.deviation == "free":
        return output, np.broadcast_to(log_std, output.shape)
    return output[..., :ACTION], np.clip(log_std + output[..., ACTION:], *LOG_STD_RANGE)


@pytest.mark.parametrize("deviation", KINDS)
@pytest.mark.parametrize("batch", [(), (7,), (2, 3, 4)])
def test_distribution_is_that_of_numpy_on_any_batch(deviation, batch):
    policy = make_policy(deviation)
    observation = np.random.default_rng(1).normal(scale=10, size=(*batch, OBSERVATION))  # some are clipped
    found, (mean, log_std) = policy(jnp.asarray(observation)), numpy_moments(policy, observation)
    assert found.mean.shape == found.log_std.shape == (*batch, ACTION)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.log_std, log_std, rtol=1e-10, atol=1e-12)


def test_deviation_depends_on_the_state_only_where_it_is_said_to():
    observation = jnp.asarray(np.random.default_rng(1).normal(loc=2, scale=3, size=(20, OBSERVATION)))
    free, state = (make_policy(kind)(observation).log_std for kind in KINDS)
    np.testing.assert_array_equal(free, np.broadcast_to(free[0], free.shape))
    assert np.all(np.std(state, axis=0) > 1e-3)


@pytest.mark.parametrize(("shift", "bound"), [(100.0, LOG_STD_RANGE[1]), (-100.0, LOG_STD_RANGE[0])])
def test_state_dependent_deviation_stays_in_its_range(shift, bound):
    policy = make_policy("state")
    policy = eqx.tree_at(lambda p: p.network.log_std, policy, policy.network.log_std + shift)
    found = policy(jnp.zeros((4, OBSERVATION)))
    np.testing.assert_array_equal(found.log_std, bound)
    assert np.all(np.isfinite(found.log_prob(jnp.ones((4, ACTION)))))


@pytest.mark.parametrize("deviation", KINDS)
def test_a_fresh_policy_has_the_initial_deviation_and_a_small_mean(deviation):
    policy = GaussianPolicy.create(
        OBSERVATION, ACTION, jax.random.key(0), hidden=HIDDEN, deviation=deviation, initial_log_std=-1.25
    )
    found = policy(jnp.asarray(np.random.default_rng(0).normal(size=(50, OBSERVATION))))
    np.testing.assert_allclose(found.log_std, -1.25, atol=0.03)
    np.testing.assert_allclose(found.mean, 0, atol=0.03)


@pytest.mark.parametrize("deviation", KINDS)
def test_the_normaliser_is_not_differentiated_but_the_observation_is(deviation):
    policy = make_policy(deviation)
    observation = np.array([2.5, 0.3, 1.0])  # not clipped

    def log_prob(policy, observation):
        return policy(observation).log_prob(jnp.array([0.5, -1.0]))

    gradient = eqx.filter_grad(log_prob)(policy, jnp.asarray(observation))
    for leaf in jax.tree.leaves(gradient.normalizer):
        np.testing.assert_array_equal(leaf, 0)
    for leaf in jax.tree.leaves(gradient.network):
        assert np.any(leaf != 0)

    def density(x: np.ndarray) -> float:
        mean, log_std = numpy_moments(policy, x)
        return stats.norm(mean, np.exp(log_std)).logpdf([0.5, -1.0]).sum()

    differences = [
        (density(observation + 1e-6 * e) - density(observation - 1e-6 * e)) / 2e-6 for e in np.eye(OBSERVATION)
    ]
    found = jax.grad(lambda x: log_prob(policy, x))(jnp.asarray(observation))
    np.testing.assert_allclose(found, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("deviation", KINDS)
def test_act_reports_the_density_of_the_action_it_took(deviation):
    policy = make_policy(deviation)
    observation = np.random.default_rng(1).normal(loc=2, scale=3, size=(6, OBSERVATION))
    action, log_prob = jax.vmap(policy.act)(jnp.asarray(observation), jax.random.split(jax.random.key(0), 6))
    assert action.shape == (6, ACTION)
    mean, log_std = numpy_moments(policy, observation)
    np.testing.assert_allclose(log_prob, stats.norm(mean, np.exp(log_std)).logpdf(action).sum(-1), rtol=1e-10)
    assert np.all(np.abs((action - mean) / np.exp(log_std)) < 5)  # and the action is a draw from it


@pytest.mark.parametrize("deviation", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_parameters_go_out_and_in_unchanged(deviation, part):
    policy = make_policy(deviation)
    vector = parameters(policy, part)
    outputs = ACTION * (2 if deviation == "state" else 1)
    last = (HIDDEN[-1] + 1) * outputs
    earlier = (OBSERVATION + 1) * HIDDEN[0] + (HIDDEN[0] + 1) * HIDDEN[1]
    assert vector.shape == (last if part == "last" else earlier + last + ACTION,)
    assert eqx.tree_equal(with_parameters(policy, vector, part), policy)
    other = jnp.arange(vector.size, dtype=vector.dtype)
    np.testing.assert_array_equal(parameters(with_parameters(policy, other, part), part), other)


@pytest.mark.parametrize("deviation", KINDS)
def test_last_reaches_the_last_layer_alone(deviation):
    policy = make_policy(deviation)
    other = with_parameters(policy, parameters(policy, "last") + 1.0, "last")
    before, after = policy.network.mlp.layers, other.network.mlp.layers
    np.testing.assert_allclose(after[-1].weight, before[-1].weight + 1)
    np.testing.assert_allclose(after[-1].bias, before[-1].bias + 1)
    assert eqx.tree_equal(before[:-1], after[:-1])
    assert eqx.tree_equal(policy.network.log_std, other.network.log_std)
    assert eqx.tree_equal(policy.normalizer, other.normalizer)


def test_all_reaches_every_parameter_but_not_the_normaliser():
    policy = make_policy()
    other = with_parameters(policy, parameters(policy) + 1.0)
    for before, after in zip(jax.tree.leaves(policy.network), jax.tree.leaves(other.network), strict=True):
        np.testing.assert_allclose(after, before + 1)
    assert eqx.tree_equal(policy.normalizer, other.normalizer)


@pytest.mark.parametrize("part", PARTS)
def test_the_vector_can_be_differentiated(part):
    policy = make_policy("state")
    start = parameters(policy, part)
    observation, action = jnp.array([2.5, 0.3, 1.0]), jnp.array([0.5, -1.0])

    def log_prob(vector):
        return with_parameters(policy, vector, part)(observation).log_prob(action)

    direction = jnp.asarray(np.random.default_rng(0).normal(size=start.shape))
    slope = jax.jvp(log_prob, (start,), (direction,))[1]
    difference = (log_prob(start + 1e-6 * direction) - log_prob(start - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
