"""CPO's integral action: what was measured above the limit is asked back by later steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import reach, with_config, with_mean_action

from safemeta.algorithms import cpo
from safemeta.algorithms.on_policy import Batch
from safemeta.algorithms.surrogate import Samples
from safemeta.nets import GaussianPolicy

WORLD = reach(costs=2)


@pytest.fixture(scope="module")
def samples():
    """Steps of a policy whose second cost falls as its reward falls."""
    policy = with_mean_action(GaussianPolicy.create(3, 1, jax.random.key(0), hidden=(4,)), 0.2, -0.5)
    keys = jax.random.split(jax.random.key(1), 2 * 4 * 10).reshape(2, 4, 10)
    observation = jax.vmap(jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (3,)))))(keys)
    action, log_prob = jax.vmap(jax.vmap(jax.vmap(policy.act)))(observation, keys)
    advantage = action[..., 0] - action[..., 0].mean()
    costs = jnp.stack([-advantage, advantage], -1)
    weight = jnp.full((2, 4, 10), 1 / 40)
    valid = jnp.ones((2, 4, 10), bool)
    made = Samples(observation, action, log_prob, advantage, costs, weight, jnp.ones_like(weight), valid)
    return policy, made


def stepped(samples, violations, correction, gain):
    policy, made = samples
    algorithm = cpo.Algorithm(with_config(cpo.Config(integral_gain=gain), hidden=(4,), tasks=2, episodes=4))
    state = algorithm.init(jax.random.key(0), WORLD.cmdp)
    state = eqx.tree_at(lambda s: (s.policy, s.correction), state, (policy, jnp.asarray(correction)))
    batch = Batch(made, jnp.asarray(violations))
    following, metrics = eqx.filter_jit(cpo.step)(algorithm.config, state, batch, jax.random.key(3))
    change = jnp.mean(following.policy(made.observation).mean - policy(made.observation).mean)
    return np.asarray(following.correction), metrics, float(change)


def test_the_measured_excess_is_accumulated_and_given_back(samples):
    correction, metrics, _ = stepped(samples, [-5.0, 0.05], [0.0, 0.2], gain=0.5)
    assert metrics["feasible"] == 1
    np.testing.assert_allclose(correction, [0.0, 0.225], atol=1e-6)
    correction, _, _ = stepped(samples, [-5.0, -0.1], [0.0, 0.2], gain=0.5)
    np.testing.assert_allclose(correction, [0.0, 0.15], atol=1e-6)
    correction, _, _ = stepped(samples, [-5.0, -5.0], [0.0, 0.2], gain=0.5)
    np.testing.assert_array_equal(correction, [0.0, 0.0])  # never a bonus for having been below


def test_it_rests_while_a_step_does_all_it_can(samples):
    correction, metrics, change = stepped(samples, [-5.0, 50.0], [0.0, 0.2], gain=0.5)
    assert metrics["feasible"] == 0
    assert change < 0
    np.testing.assert_allclose(correction, [0.0, 0.2], atol=1e-6)


def test_a_correction_asks_for_a_lower_cost_than_the_measurement_alone(samples):
    _, _, plain = stepped(samples, [-5.0, -0.3], [0.0, 0.0], gain=0.0)
    _, _, corrected = stepped(samples, [-5.0, -0.3], [0.0, 0.4], gain=0.0)
    assert plain > 0 > corrected


def test_without_gain_it_is_the_papers(samples):
    correction, _, _ = stepped(samples, [-5.0, 0.5], [0.0, 0.0], gain=0.0)
    np.testing.assert_array_equal(correction, [0.0, 0.0])
    with pytest.raises(ValueError, match="integral_gain"):
        cpo.Config(integral_gain=-1.0).validate()
