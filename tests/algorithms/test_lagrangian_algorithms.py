"""CRPO, TRPO-Lagrangian and PPO-Lagrangian: what one iteration must do, and what many come to on a solved problem."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import log_density, make_case, perturbed
from toy_worlds import HORIZON, reach, with_config, with_mean_action

from safemeta.algorithms import cpo, crpo, ppo_lagrangian, trpo, trpo_lagrangian
from safemeta.algorithms.on_policy import Batch, State
from safemeta.algorithms.ppo_lagrangian import clipped_objective, clipped_update
from safemeta.algorithms.surrogate import surrogate
from safemeta.nets import parameters

MODULES = (crpo, trpo_lagrangian, ppo_lagrangian)


def batch_of(case, violations):
    """One task's data as what a step sees."""
    return Batch(jax.tree.map(lambda leaf: leaf[None], case.samples), jnp.asarray(violations))


def moved(algorithm, case, violations):
    """The policy after one step of `algorithm` from the case's policy, and the metrics."""
    start = algorithm.init(jax.random.key(0), case.cmdp)
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, start)
    if hasattr(start, "optimizer"):
        moments = jax.tree.map(
            lambda leaf: jnp.zeros_like(parameters(case.policy)) if leaf.ndim else leaf, start.optimizer
        )
        start = replace(start, optimizer=moments)
    step = jax.jit(lambda *inputs: type(algorithm).step(algorithm.config, *inputs))
    after, metrics = step(replace(start, policy=case.policy), batch_of(case, violations), jax.random.key(1))
    return after.policy, metrics


def effect(case, policy):
    """Predicted change of reward and costs."""
    found = surrogate(policy, case.policy(case.samples.observation), case.samples)
    return np.append(found.reward, found.costs)


@pytest.mark.usefixtures("x64")
def test_crpo_is_trpo_while_costs_are_kept_and_lowers_the_worst_where_not(rng):
    case = make_case(rng, episodes=20)
    algorithm = crpo.Algorithm(crpo.Config(tolerance=0.5))
    kept, metrics = moved(algorithm, case, [0.4, -3.0])
    plain, _ = moved(trpo.Algorithm(), case, [0.4, -3.0])
    np.testing.assert_allclose(parameters(kept), parameters(plain), rtol=1e-8, atol=1e-10)
    assert metrics["feasible"] == 1
    lowered, metrics = moved(algorithm, case, [0.6, 0.7])
    assert metrics["feasible"] == 0
    assert metrics["accepted"] == 1
    assert effect(case, lowered)[2] < 0
    other, _ = moved(algorithm, case, [0.6, 0.55])
    assert effect(case, other)[1] < 0
    # It is TRPO's step on a reward of minus the cost's advantage, weighted in time as the limit does.
    weight = np.asarray(case.samples.cost_weight / case.samples.cost_weight.sum() * case.samples.valid.sum())
    inverted = replace(case.samples, advantage=jnp.asarray(-weight * np.asarray(case.samples.cost_advantages[..., 1])))
    same, _ = moved(trpo.Algorithm(), case._replace(samples=inverted), [0.0, 0.0])
    np.testing.assert_allclose(parameters(lowered), parameters(same), rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_trpo_lagrangian_is_trpo_where_nothing_has_a_price_and_lowers_costs_where_prices_are_high(rng):
    case = make_case(rng, episodes=20)
    plain, _ = moved(trpo.Algorithm(), case, [-1.0, -1.0])
    free, metrics = moved(trpo_lagrangian.Algorithm(), case, [-1.0, -1.0])
    np.testing.assert_allclose(parameters(free), parameters(plain), rtol=1e-5, atol=1e-8)
    assert np.all(np.asarray(metrics["multiplier"]) == 0)
    settings = {"initial_multiplier": 500.0, "multiplier_learning_rate": 100.0}
    dear, metrics = moved(trpo_lagrangian.Algorithm(trpo_lagrangian.Config(**settings)), case, [1.0, -1.0])
    np.testing.assert_allclose(metrics["multiplier"], [600.0, 400.0], rtol=1e-5)
    assert 600 * effect(case, dear)[1] + 400 * effect(case, dear)[2] < 0


@pytest.mark.usefixtures("x64")
def test_the_clipped_objective_is_ppos(rng):
    case = make_case(rng, episodes=30, ends=0.0)
    rows, new = case.samples, perturbed(case.policy, rng, 0.3)
    flat = [
        leaf.reshape(-1, *leaf.shape[2:]) for leaf in (rows.observation, rows.action, rows.log_prob, rows.advantage)
    ]
    observation, action, log_prob, advantage = flat
    ours = clipped_objective(new(observation), action, log_prob, advantage, 0.2)
    ratio = np.exp(log_density(new, observation, action) - np.asarray(log_prob))
    gain = np.asarray(advantage)
    expected = np.where(gain > 0, np.minimum(ratio, 1.2), np.maximum(ratio, 0.8)) * gain
    assert 0.2 < np.mean((ratio < 0.8) | (ratio > 1.2)) < 0.9
    np.testing.assert_allclose(ours, expected.mean(), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_ppo_rests_once_the_policy_has_moved_far_enough(rng):
    case = make_case(rng, episodes=50)
    fast = {"policy_learning_rate": 1e-2, "policy_steps": 200}
    free, metrics = moved(ppo_lagrangian.Algorithm(ppo_lagrangian.Config(kl_limit=10.0, **fast)), case, [-1.0, -1.0])
    assert metrics["policy_steps"] == 200
    short, resting = moved(ppo_lagrangian.Algorithm(ppo_lagrangian.Config(kl_limit=0.01, **fast)), case, [-1.0, -1.0])
    assert 1 <= resting["policy_steps"] < 50
    assert 0.005 < resting["kl"] < 0.03 < metrics["kl"]
    assert effect(case, free)[0] > effect(case, short)[0] > 0


@pytest.mark.parametrize("module", MODULES)
def test_iterations_are_repeatable_and_states_keep_their_structure(module):
    world = reach(costs=2, limit=3.0)
    algorithm = module.Algorithm(with_config(module.Config()))
    state = algorithm.init(jax.random.key(0), world.cmdp)
    assert isinstance(state, State)
    following, metrics = algorithm.iterate(state, world, jax.random.key(1))
    assert eqx.tree_equal((following, metrics), algorithm.iterate(state, world, jax.random.key(1)))
    assert jax.tree.structure(state) == jax.tree.structure(following)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(following), strict=True):
        assert (old.shape, old.dtype, jax.typeof(old).weak_type) == (new.shape, new.dtype, jax.typeof(new).weak_type)
        assert np.isfinite(new).all()
    expected = {"return", "cost", "cost/backwards", "limit", "kl"}
    if module is not crpo:
        expected |= {"multiplier", "multiplier/backwards"}
    assert metrics.keys() >= expected
    assert all(value.shape == () for value in metrics.values())
    assert algorithm.steps_per_iteration(world.cmdp) == 2 * 4 * HORIZON


# Goals are 0.8 to 1.2 away and not seen. With effort `m^2 + s^2 <= 0.4` per step the best mean is sqrt(0.4), the return
# `10 (1 - E(m - goal)^2)`, the variance of goals being 0.16 / 12.
LIMIT = 4.0
DAMPED = {"multiplier_update": "gradient", "multiplier_learning_rate": 0.03, "multiplier_damping": 1.0}
BEST = HORIZON * (1 - (1 - (LIMIT / HORIZON) ** 0.5) ** 2 - 0.16 / 12)


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (cpo, {"kl_radius": 0.05}),
        (crpo, {"kl_radius": 0.02}),
        (trpo_lagrangian, {"kl_radius": 0.03} | DAMPED),
        (ppo_lagrangian, {"policy_learning_rate": 3e-3, "policy_steps": 50} | DAMPED),
    ],
)
def test_learners_come_near_the_best_return_within_the_limit(module, settings):
    world = reach(LIMIT)
    algorithm = module.Algorithm(with_config(module.Config(**settings), tasks=4, episodes=20, critic_steps=20))
    state = algorithm.init(jax.random.key(0), world.cmdp)
    state = replace(state, policy=with_mean_action(state.policy, 0.0))
    costs = []
    for key in jax.random.split(jax.random.key(1), 80):
        state, metrics = algorithm.iterate(state, world, key)
        costs.append(float(metrics["cost"]))
    fresh = world.measure(algorithm.policy(state), world.sample(jax.random.key(2), 50), jax.random.key(3), 20)
    assert 0.9 * BEST < float(fresh.episode_return.mean()) < 1.02 * BEST
    assert 0.85 * LIMIT < float(fresh.costs.mean()) < 1.05 * LIMIT
    assert np.mean(costs[-20:]) < 1.05 * LIMIT  # of 80 episodes each


BAD = {
    crpo: {"tolerance": (-1.0, float("inf")), "kl_radius": (0.0,), "tasks": (0,)},
    trpo_lagrangian: {"initial_multiplier": (-1.0,), "kl_radius": (0.0,), "tasks": (0,)},
    ppo_lagrangian: {
        "initial_multiplier": (-1.0,),
        "tasks": (0,),
        "policy_steps": (0,),
        "clip": (0.0, 1.0, float("nan")),
        "policy_learning_rate": (0.0,),
        "kl_limit": (float("nan"),),
        "largest_gradient": (-1.0,),
    },
}


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [(module, name, value) for module, bad in BAD.items() for name, values in bad.items() for value in values],
)
def test_settings_that_make_no_sense_are_refused_in_one_sentence_that_names_them(module, name, value):
    with pytest.raises(ValueError, match=name) as caught:
        module.Algorithm(module.Config(**{name: value}))
    assert str(caught.value).endswith(".")


def test_clipped_updates_leave_out_padding(rng):
    """Rows after an end are never drawn: the update is that of the rows that happened."""
    case = make_case(rng, episodes=8, ends=0.3)
    valid = np.asarray(case.samples.valid)
    assert not valid.all()
    wild = replace(case.samples, action=jnp.where(valid[..., None], case.samples.action, jnp.nan))
    config = ppo_lagrangian.Config(policy_steps=3, minibatch=16)
    algorithm = ppo_lagrangian.Algorithm(config)
    state = algorithm.init(jax.random.key(0), case.cmdp)
    optimizer = jax.tree.map(
        lambda leaf: jnp.zeros_like(parameters(case.policy)) if leaf.ndim else leaf, state.optimizer
    )
    update = jax.jit(lambda samples: clipped_update(config, case.policy, optimizer, samples, jax.random.key(0)))
    found = [update(jax.tree.map(lambda leaf: leaf[None], samples)) for samples in (wild, case.samples)]
    assert eqx.tree_equal(*found)
