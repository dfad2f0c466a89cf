"""Critics: what a perfect one says, how the linear one is fitted, and what learning does to the neural one."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import make_cmdp, make_policy, make_trajectory

from safemeta.algorithms.critics import CriticState, assess, drawn_rows, init_critic, learn
from safemeta.core import CMDP, Normalizer, Trajectory
from safemeta.nets import Critic
from safemeta.nets.linear_critic import LinearCritic

pytestmark = pytest.mark.usefixtures("x64")


class Settings(NamedTuple):
    critic: str = "neural"
    hidden: tuple[int, ...] = (16,)
    critic_learning_rate: float = 3e-3
    minibatch: int = 64


def alternating(horizon: int, end: str) -> Trajectory:
    """A state that flips between +1 and -1; reward 3 in the one and 1 in the other, cost 0 and 2.."""
    state = (-1.0) ** np.arange(horizon + 1)
    state = np.stack([state, -state])[..., None]  # two episodes, one from either state
    up = state[:, :-1, 0] > 0
    last = np.broadcast_to(np.arange(horizon) == horizon - 1, up.shape)
    return Trajectory(
        observation=jnp.asarray(state[:, :-1]),
        action=jnp.zeros((*up.shape, 1)),
        log_prob=jnp.zeros(up.shape),
        reward=jnp.asarray(np.where(up, 3.0, 1.0)),
        costs=jnp.asarray(np.where(up, 0.0, 2.0))[..., None],
        terminated=jnp.asarray(last if end == "terminated" else ~last & last),
        truncated=jnp.asarray(last if end == "truncated" else ~last & last),
        valid=jnp.ones(up.shape, bool),
        last_observation=jnp.asarray(state[:, -1]),
    )


def perfect(discount: float) -> CriticState:
    """A network whose value is exact in both states of the endless chain: `scale (b + k tanh(w s))`."""
    cmdp = CMDP(1, 1, 1, ("cost",), (1.0,), discount)
    state = init_critic(Settings(hidden=(1,)), cmdp, jax.random.key(0))
    # V(+) = x + discount V(-) and V(-) = y + discount V(+), for the reward (3, 1) and the cost (0, 2).
    here, other = np.array([3.0, 0.0]), np.array([1.0, 2.0])
    up, down = (np.array(pair) / (1 - discount**2) for pair in (here + discount * other, other + discount * here))
    scale, bend = state.critic.scale, np.tanh(1 / np.sqrt(1 + 1e-8))
    values = [np.ones(2), np.zeros(2), (up - down) / 2 / bend / scale, (up + down) / 2 / scale]

    def leaves(state):
        return [leaf for layer in state.critic.networks.layers for leaf in (layer.weight, layer.bias)]

    shaped = [jnp.asarray(value).reshape(old.shape) for value, old in zip(values, leaves(state), strict=True)]
    return eqx.tree_at(leaves, state, shaped)


@pytest.mark.parametrize("smoothing", [0.0, 0.95, 1.0])
def test_with_a_perfect_network_nothing_is_better_or_worse_than_expected(smoothing):
    cmdp = CMDP(1, 1, 12, ("cost",), (1.0,), 0.9)
    found = assess("neural", perfect(0.9), Normalizer.create(1), alternating(12, "truncated"), cmdp, smoothing)
    np.testing.assert_allclose(found.reward, 0, atol=1e-9)
    np.testing.assert_allclose(found.costs, 0, atol=1e-9)
    np.testing.assert_allclose(found.target[0, 0], [(3 + 0.9) / 0.19, 1.8 / 0.19], rtol=1e-9)


def test_a_network_that_is_wrong_by_a_constant_is_told_so():
    state = perfect(0.9)
    wrong = eqx.tree_at(lambda s: s.critic.networks.layers[-1].bias, state, state.critic.networks.layers[-1].bias + 0.1)
    cmdp = CMDP(1, 1, 12, ("cost",), (1.0,), 0.9)
    found = assess("neural", wrong, Normalizer.create(1), alternating(12, "truncated"), cmdp, 0.0)
    # delta = x + 0.9 (V + 1) - (V + 1) = -0.1, since the scale is 10.
    np.testing.assert_allclose(found.reward, -0.1, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.95])
def test_the_linear_critic_is_perfect_where_values_are_in_its_span(smoothing):
    """Without discount and with an end, the value is linear in the clock and the state."""
    cmdp = CMDP(1, 1, 12, ("cost",), (1.0,), 1.0)
    unused = init_critic(Settings(critic="linear"), cmdp, jax.random.key(0))
    rows = jax.tree.map(lambda leaf: leaf[:1], alternating(12, "terminated"))  # one start: parity and state agree
    found = assess("linear", unused, Normalizer.create(1), rows, cmdp, smoothing)
    # The ridge (1e-5) leaves a little.
    np.testing.assert_allclose(found.reward, 0, atol=0.03)
    np.testing.assert_allclose(found.costs, 0, atol=0.03)
    ahead = np.cumsum([1.0, 3.0] * 6)[::-1]  # reward 3 and 1 in turn, twelve steps of it
    np.testing.assert_allclose(found.target[0, :, 0], ahead, atol=0.1)


def test_the_linear_critic_is_fitted_to_the_returns_of_the_same_batch(rng):
    cmdp = make_cmdp(horizon=8)
    rows = make_trajectory(rng, make_policy(rng), cmdp, (5,), ends=0.1)
    normalizer = Normalizer.create(3).merge(rows.observation)
    unused = init_critic(Settings(critic="linear"), cmdp, jax.random.key(0))
    found = assess("linear", unused, normalizer, rows, cmdp, 0.0)

    signal = np.concatenate([rows.reward[..., None], rows.costs], -1)
    returns = np.zeros_like(signal)
    for t in reversed(range(8)):
        end = np.asarray(rows.terminated | rows.truncated)[:, t, None]
        following = 0 if t == 7 else returns[:, t + 1]
        returns[:, t] = signal[:, t] + 0.9 * np.where(end, 0, following)
    seen = np.concatenate([rows.observation, rows.last_observation[:, None]], axis=1)
    features = np.asarray(LinearCritic.features(normalizer(jnp.asarray(seen)), 8))
    x, y = features[:, :-1][np.asarray(rows.valid)], returns[np.asarray(rows.valid)]
    weight = np.linalg.solve(x.T @ x + len(x) * 1e-5 * np.eye(x.shape[1]), x.T @ y)
    value = features @ weight
    delta = signal + 0.9 * np.where(rows.terminated[..., None], 0, value[:, 1:]) - value[:, :-1]
    expected = np.where(rows.valid[..., None], delta, 0)
    np.testing.assert_allclose(found.reward, expected[..., 0], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.costs, expected[..., 1:], rtol=1e-7, atol=1e-9)


def test_the_critic_sees_normalised_observations(rng):
    cmdp = make_cmdp(horizon=4)
    rows = make_trajectory(rng, make_policy(rng), cmdp, (3,))
    state = init_critic(Settings(), cmdp, jax.random.key(0))
    normalizer = Normalizer.create(3).merge(rows.observation)
    found = assess("neural", state, normalizer, rows, cmdp, 0.0)
    value = state.critic(normalizer(rows.observation))
    advantage = jnp.concatenate([found.reward[..., None], found.costs], -1)
    np.testing.assert_allclose(found.target - advantage, value, rtol=1e-9, atol=1e-12)
    plain = assess("neural", state, Normalizer.create(3), rows, cmdp, 0.0)
    assert not np.allclose(found.reward, plain.reward)


def regression(seed=0):
    """A fixed problem: two signals of three inputs, of the size of the critic's scale."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, 30, 3))
    return jnp.asarray(x), jnp.asarray(np.stack([10 * x[..., 0], 5 * np.sin(x[..., 1]) - 3], -1))


def loss(state: CriticState, x, y) -> float:
    return float(np.mean(((np.asarray(state.critic(Normalizer.create(3)(x))) - y) / state.critic.scale) ** 2))


def test_learning_reduces_the_loss_and_is_deterministic():
    cmdp, (x, y) = make_cmdp(costs=1), regression()
    start = init_critic(Settings(), cmdp, jax.random.key(0))
    fit = eqx.filter_jit(lambda key: learn(Settings(), start, Normalizer.create(3), x, y, key, 300))
    after = fit(jax.random.key(1))
    assert loss(after, x, y) < 0.1 * loss(start, x, y)
    assert eqx.tree_equal(after, fit(jax.random.key(1)))
    assert not eqx.tree_equal(after, fit(jax.random.key(2)))
    assert jax.tree.structure(after) == jax.tree.structure(start)
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(start)]


def test_learning_in_two_parts_goes_on_where_the_first_part_stopped():
    """The optimizer's state is part of what is carried: with it forgotten, Adam's first step would be another one."""
    cmdp, (x, y) = make_cmdp(costs=1), regression()
    settings = Settings(minibatch=10_000)  # every minibatch holds all of the few rows below
    x, y = x[:1, :1], y[:1, :1]
    start = init_critic(settings, cmdp, jax.random.key(0))
    key = jax.random.key(1)
    together = learn(settings, start, Normalizer.create(3), x, y, key, 6)
    apart = learn(settings, start, Normalizer.create(3), x, y, key, 3)
    apart = learn(settings, apart, Normalizer.create(3), x, y, key, 3)
    for ours, expected in zip(jax.tree.leaves(apart), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-12)


def test_the_first_step_is_adams_on_the_mean_squared_error():
    cmdp, (x, y) = make_cmdp(costs=1), regression()
    x, y = x[:1, :1], y[:1, :1]
    settings = Settings(minibatch=4)
    start = init_critic(settings, cmdp, jax.random.key(0))
    after = learn(settings, start, Normalizer.create(3), x, y, jax.random.key(1), 1)

    def squared_error(critic: Critic):
        return jnp.sum(((critic(Normalizer.create(3)(x)) - y) / 10.0) ** 2) / 2

    gradient = jax.tree.leaves(eqx.filter_grad(squared_error)(start.critic))
    for old, new, slope in zip(jax.tree.leaves(start.critic), jax.tree.leaves(after.critic), gradient, strict=True):
        # Adam's first step is the learning rate times `g / (|g| + 1e-8)`, with moments that are 0.1 g and 0.001 g^2.
        np.testing.assert_allclose(new - old, -3e-3 * slope / (np.abs(slope) + 1e-8), rtol=1e-5, atol=1e-10)


def test_a_linear_critic_leaves_the_network_alone():
    cmdp, (x, y) = make_cmdp(costs=1), regression()
    start = init_critic(Settings(), cmdp, jax.random.key(0))
    settings = Settings(critic="linear")
    assert eqx.tree_equal(learn(settings, start, Normalizer.create(3), x, y, jax.random.key(1), 5), start)


@pytest.mark.parametrize("garbage", [1e6, np.nan])
def test_learning_from_padded_rows_is_learning_from_the_rows_that_happened(rng, garbage):
    """The same minibatches with the same key, so the very same critic."""
    cmdp, (x, y) = make_cmdp(costs=1), regression()
    start = init_critic(Settings(), cmdp, jax.random.key(0))
    valid = rng.random(x.shape[:2]) < 0.5
    padded = [jnp.where(jnp.asarray(valid)[..., None], leaf, garbage) for leaf in (x, y)]
    key = jax.random.key(1)
    ours = learn(Settings(), start, Normalizer.create(3), *padded, key, 20, jnp.asarray(valid))
    expected = learn(Settings(), start, Normalizer.create(3), x[valid], y[valid], key, 20)
    assert eqx.tree_equal(ours, expected)
    assert not eqx.tree_equal(ours, learn(Settings(), start, Normalizer.create(3), x, y, key, 20))


def test_rows_are_drawn_uniformly_from_the_valid_ones(rng):
    valid = rng.random(50) < 0.3
    drawn = np.asarray(drawn_rows(jax.random.key(0), jnp.asarray(valid), (40, 1000)))
    counts = np.bincount(drawn.ravel(), minlength=50)
    assert np.all(counts[~valid] == 0)
    expected = 40_000 / valid.sum()
    assert np.all(np.abs(counts[valid] - expected) < 5 * np.sqrt(expected))
