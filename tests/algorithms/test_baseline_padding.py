"""No on-policy learner may learn from steps after the end of an episode, whatever a simulator leaves there."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import make_case
from toy_worlds import Padded, reach, with_config, with_mean_action

from safemeta.algorithms import bilevel, cpo, crpo, ppo_lagrangian, trpo, trpo_lagrangian
from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.surrogate import metric_states, state_weight, surrogate

INNER = reach(limit=2.0, costs=2, ends_above=0.6)  # about one step in twenty ends the episode
SMALL = with_config(BilevelConfig(critic="neural", cg_iterations=4, fisher_states=30), inner_steps=1)
LEARNERS = {
    "trpo": trpo.Algorithm(with_config(trpo.Config(fisher_states=30))),
    "cpo": cpo.Algorithm(with_config(cpo.Config(fisher_states=30, cross_fit=True, critic="linear"))),
    "crpo": crpo.Algorithm(with_config(crpo.Config(fisher_states=30))),
    "trpo-lagrangian": trpo_lagrangian.Algorithm(with_config(trpo_lagrangian.Config(initial_multiplier=1.0))),
    "ppo-lagrangian": ppo_lagrangian.Algorithm(with_config(ppo_lagrangian.Config(policy_steps=5))),
    "bilevel, exact": bilevel.Algorithm(replace(SMALL, inner="gradient")),
    "bilevel, first": bilevel.Algorithm(replace(SMALL, inner="crpo", outer="switch", meta_gradient="first")),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_padding_reaches_neither_policy_nor_normaliser_nor_critics_nor_metrics(name):
    algorithm = LEARNERS[name]
    state = algorithm.init(jax.random.key(0), INNER.cmdp)
    state = replace(state, policy=with_mean_action(state.policy, 0.1))
    run = jax.jit(lambda garbage: algorithm.iterate(state, Padded(INNER, garbage), jax.random.key(1)))
    first, second = (run(jnp.asarray(garbage)) for garbage in (0.5, -150.0))
    assert max(first[1].get(kl, 0) for kl in ("kl", "meta_kl")) > 0
    for ours, expected in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
        assert np.all(np.isfinite(ours))


def test_the_toy_has_padding():
    policy = with_mean_action(LEARNERS["trpo"].init(jax.random.key(0), INNER.cmdp).policy, 0.1)
    valid = INNER.collect(policy, INNER.sample(jax.random.key(0), 2), jax.random.key(1), 4).valid
    assert 0.05 < np.mean(~valid) < 0.6


@pytest.mark.usefixtures("x64")
def test_weights_of_states_are_those_of_the_unpadded_tasks(rng):
    valid = rng.random((3, 4, 6)) < 0.5
    valid[..., 0] = True
    weight = np.asarray(state_weight(jnp.asarray(valid)))
    for task in range(3):
        np.testing.assert_allclose(weight[task][valid[task]], 1 / 3 / valid[task].sum(), rtol=1e-12)
    assert np.all(weight[~valid] == 0)
    states, kept = metric_states(jnp.asarray(rng.normal(size=(3, 4, 6, 2))), jnp.asarray(weight), 30)
    assert states.shape[:-1] == kept.shape
    np.testing.assert_allclose(kept.sum(), 1, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_an_overflow_after_the_end_is_no_nan(rng):
    """Importance ratios of garbage are infinite: masked they must be, since zero times infinity is NaN."""
    case = make_case(rng, ends=0.3)
    valid = np.asarray(case.samples.valid)
    assert not valid.all()
    action = np.where(valid[..., None], case.samples.action, 0)
    wild = replace(
        case.samples, action=jnp.asarray(action), log_prob=jnp.where(case.samples.valid, case.samples.log_prob, -1e5)
    )
    old = case.policy(case.samples.observation)
    found, plain = (surrogate(case.policy, old, samples) for samples in (wild, case.samples))
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-14)
