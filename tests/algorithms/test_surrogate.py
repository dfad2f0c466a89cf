"""Surrogates and their gradients against loops over samples, finite differences and a plain numpy policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import (
    differences,
    kl,
    log_density,
    make_case,
    make_policy,
    perturbed,
    scores,
    signal_gradients,
    weights_of,
)

from safemeta.algorithms.estimation import Advantages
from safemeta.algorithms.surrogate import halves_of, make_samples, surrogate, thinned
from safemeta.core import CMDP, Trajectory
from safemeta.nets import GaussianPolicy, parameters, with_parameters

pytestmark = pytest.mark.usefixtures("x64")
UNITS = ("discounted", "undiscounted", "per_step")
KINDS = ("free", "state")


def signals(case, policy) -> jax.Array:
    found = surrogate(policy, case.policy(case.samples.observation), case.samples)
    return jnp.concatenate([found.reward[None], found.costs])


def test_weights_and_centring_equal_a_loop(rng):
    case = make_case(rng, limit_on="discounted")
    valid = np.asarray(case.trajectory.valid)
    assert not valid.all()
    steps = valid.sum()
    np.testing.assert_allclose(case.samples.reward_weight, valid / steps, rtol=1e-12)
    np.testing.assert_allclose(case.samples.cost_weight, weights_of(case.cmdp) * valid, rtol=1e-12)
    reward, costs = np.asarray(case.advantages.reward), np.asarray(case.advantages.costs)
    np.testing.assert_allclose(case.samples.advantage, reward - reward[valid].mean(), rtol=1e-10)
    for i in range(2):
        centre = np.average(costs[..., i], weights=weights_of(case.cmdp) * valid)
        np.testing.assert_allclose(case.samples.cost_advantages[..., i], costs[..., i] - centre, rtol=1e-10)


def test_the_reward_can_be_weighted_by_the_discount(rng):
    case = make_case(rng)
    samples = make_samples(case.trajectory, case.advantages, case.cmdp, "discounted")
    weight = 0.9 ** np.arange(case.cmdp.horizon) * np.asarray(case.trajectory.valid)
    np.testing.assert_allclose(samples.reward_weight, weight / weight.sum(), rtol=1e-12)
    centre = np.sum(samples.reward_weight * case.advantages.reward)
    np.testing.assert_allclose(samples.advantage, case.advantages.reward - centre, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("deviation", KINDS)
def test_the_policy_that_acted_changes_nothing(rng, deviation):
    case = make_case(rng, deviation)
    found = surrogate(case.policy, case.policy(case.samples.observation), case.samples)
    for value in (found.reward, found.costs, found.kl):
        np.testing.assert_allclose(value, 0, atol=1e-13)


@pytest.mark.parametrize("unit", UNITS)
def test_predictions_of_another_policy_equal_a_loop(rng, unit):
    case = make_case(rng, limit_on=unit)
    policy = perturbed(case.policy, rng)
    found = surrogate(policy, case.policy(case.samples.observation), case.samples)
    rows, weights = case.trajectory, weights_of(case.cmdp)
    ratio = np.exp(log_density(policy, rows.observation, rows.action) - np.asarray(rows.log_prob))
    valid = np.asarray(rows.valid)
    centred, costs = np.asarray(case.samples.advantage), np.asarray(case.samples.cost_advantages)
    np.testing.assert_allclose(found.reward, np.mean(((ratio - 1) * centred)[valid]), rtol=1e-9)
    expected = np.zeros(2)
    for e in range(valid.shape[0]):
        for t in range(valid.shape[1]):
            if valid[e, t]:
                expected += weights[t] * (ratio[e, t] - 1) * costs[e, t] / valid.shape[0]
    np.testing.assert_allclose(found.costs, expected, rtol=1e-9)


@pytest.mark.parametrize("deviation", KINDS)
def test_kl_is_the_mean_over_visited_states_of_the_new_policy_against_the_old(rng, deviation):
    case = make_case(rng, deviation)
    policy = perturbed(case.policy, rng, 0.2)
    found = surrogate(policy, case.policy(case.samples.observation), case.samples).kl
    valid = np.asarray(case.trajectory.valid)
    forward, backward = (
        kl(*pair, case.trajectory.observation)[valid].mean() for pair in ((policy, case.policy), (case.policy, policy))
    )
    np.testing.assert_allclose(found, forward, rtol=1e-10)
    assert abs(forward - backward) > 1e-3 * forward  # the direction is visible


@pytest.mark.parametrize(
    ("deviation", "part"), [("free", "all"), ("state", "all"), ("free", "last"), ("state", "last")]
)
@pytest.mark.parametrize("unit", ["discounted", "per_step"])
def test_gradient_at_the_old_policy_is_the_score_function_estimator(rng, deviation, part, unit):
    case = make_case(rng, deviation, limit_on=unit)
    start = parameters(case.policy, part)
    found = jax.jacrev(lambda x: signals(case, with_parameters(case.policy, x, part)))(start)
    np.testing.assert_allclose(found, signal_gradients(case, part), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("deviation", KINDS)
def test_gradient_anywhere_equals_central_differences(rng, deviation):
    case = make_case(rng, deviation)
    rows, valid = case.trajectory, np.asarray(case.trajectory.valid)
    weights = np.concatenate(
        [np.asarray(case.samples.reward_weight)[None], np.repeat(weights_of(case.cmdp) * valid[None] / 4, 2, axis=0)]
    )
    centred = np.concatenate([case.samples.advantage[None], np.moveaxis(case.samples.cost_advantages, -1, 0)])

    def by_numpy(vector):
        policy = with_parameters(case.policy, jnp.asarray(vector))
        ratio = np.exp(log_density(policy, rows.observation, rows.action) - np.asarray(rows.log_prob))
        return np.sum(weights * (ratio - 1) * centred, axis=(1, 2))

    at = np.asarray(parameters(perturbed(case.policy, rng)))
    found = jax.jacrev(lambda x: signals(case, with_parameters(case.policy, x)))(jnp.asarray(at))
    np.testing.assert_allclose(found, differences(by_numpy, at), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("unit", UNITS)
def test_gradient_of_a_predicted_cost_is_that_of_the_expected_cost(rng, unit):
    """`a ~ N(m, s^2)` in every state with cost a^2: the limited cost is `(m^2 + s^2) sum_t w_t`."""
    horizon, mean, log_std = 5, 0.4, -0.6
    std = np.exp(log_std)
    cmdp = CMDP(1, 1, horizon, ("effort",), (1.0,), 0.9, unit)
    policy = GaussianPolicy.create(1, 1, jax.random.key(0), hidden=(1,))
    zero = jnp.zeros_like(parameters(policy))
    # The vector ends with the last bias (the mean) and the log standard deviation.
    policy = with_parameters(policy, zero.at[-2].set(mean).at[-1].set(log_std))
    # Three points of a Gauss-Hermite rule, 0 four times as heavy as the others: exact up to the fifth power.
    noise = np.sqrt(3) * np.array([-1, 0, 0, 0, 0, 1])
    action = np.repeat((mean + std * noise)[:, None, None], horizon, axis=1)
    shape = action.shape[:2]
    rows = Trajectory(
        jnp.zeros((*shape, 1)),
        jnp.asarray(action),
        policy(jnp.zeros((*shape, 1))).log_prob(jnp.asarray(action)),
        jnp.zeros(shape),
        jnp.asarray(action**2),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, bool),
        jnp.ones(shape, bool),
        jnp.zeros((shape[0], 1)),
    )
    exact = Advantages(jnp.zeros(shape), jnp.asarray(action**2 - mean**2 - std**2), jnp.zeros((*shape, 2)))
    samples = make_samples(rows, exact, cmdp)
    old = policy(rows.observation)
    gradient = jax.grad(lambda x: surrogate(with_parameters(policy, x), old, samples).costs[0])(parameters(policy))
    total = weights_of(cmdp).sum()
    np.testing.assert_allclose(gradient[-2:], [2 * mean * total, 2 * std**2 * total], rtol=1e-10)


def test_halves_are_the_first_and_the_second_half_of_the_episodes(rng):
    case = make_case(rng, episodes=5)
    old = case.policy(case.samples.observation)
    halves_old, halves = halves_of(old, case.samples)
    for half, picked in enumerate((slice(0, 2), slice(2, 4))):  # the odd episode is left out
        np.testing.assert_array_equal(halves_old.mean[half], old.mean[picked])
        np.testing.assert_array_equal(halves.action[half], case.samples.action[picked])
        np.testing.assert_array_equal(halves.cost_weight[half], case.samples.cost_weight[picked])
        valid = np.asarray(case.samples.valid[picked])
        np.testing.assert_allclose(halves.reward_weight[half], valid / valid.sum(), rtol=1e-12)


def test_the_halves_of_whole_episodes_predict_their_mean(rng):
    case = make_case(rng, episodes=4, ends=0.0)
    policy = perturbed(case.policy, rng)
    old = case.policy(case.samples.observation)
    whole = surrogate(policy, old, case.samples)
    halves = jax.vmap(lambda o, s: surrogate(policy, o, s))(*halves_of(old, case.samples))
    for ours, expected in zip(jax.tree.leaves(halves), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours.mean(0), expected, rtol=1e-10)


@pytest.mark.parametrize("states", [12, 20, 60, 1000])
def test_thinned_states_are_about_as_many_as_asked_for_and_from_every_row(states):
    x = jnp.arange(6 * 10, dtype=float).reshape(2, 3, 10, 1)
    kept = np.asarray(thinned(x, states)).ravel()
    assert min(states, 60) <= kept.size <= 2 * states
    assert np.unique(kept).size == kept.size
    assert set(kept // 10) == set(range(6))


@pytest.mark.parametrize("rows", [10, 100, 1000])
def test_thinned_states_are_not_all_first_states(rows):
    """With many short episodes too: a Fisher metric of first states alone knows nothing of the rest."""
    x = jnp.broadcast_to(jnp.arange(10.0)[:, None], (rows, 10, 1))
    kept = np.asarray(thinned(x, 50))
    assert kept.size >= 50
    assert np.unique(kept).size >= 5


def test_score_oracle_agrees_with_differences(rng):
    """The oracle of the tests above is itself checked, against densities in numpy."""
    policy = make_policy(rng, "state")
    observation, action = rng.normal(size=(2, 3)), rng.normal(size=(2, 2))

    def by_numpy(vector):
        return log_density(with_parameters(policy, jnp.asarray(vector)), observation, action)

    expected = differences(by_numpy, np.asarray(parameters(policy)))
    np.testing.assert_allclose(scores(policy, observation, action), expected, rtol=1e-6, atol=1e-8)
