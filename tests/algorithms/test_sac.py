"""Soft actor-critic: targets and losses by hand, and learning where the best actions are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import reach

from safemeta.algorithms import sac, sac_lagrangian
from safemeta.algorithms.replay import Batch
from safemeta.core import CMDP

TINY = CMDP(3, 2, 5, ("cost",), (1.0,))
QUICK = {
    "tasks": 4, "episodes": 2, "hidden": (32, 32), "batch": 64, "warm_up": 64, "steps_per_update": 8, "capacity": 4000,
    "policy_interval": 1, "policy_rate": (3e-3, 1e-3, 10**6), "critic_rate": (3e-3, 1e-3, 10**6),
    "temperature_rate": (1e-2, 1e-2, 10**6), "polyak": 0.05,
}  # fmt: skip


def some_batch(seed=0, count=6, observation=3, action=2):
    draw = np.random.default_rng(seed).normal
    return Batch(
        jnp.asarray(draw(size=(count, observation))),
        jnp.asarray(np.tanh(draw(size=(count, action)))),
        jnp.asarray(draw(size=count)),
        jnp.asarray(np.abs(draw(size=(count, 1)))),
        jnp.asarray(draw(size=(count, observation))),
        jnp.asarray([True, False] * (count // 2)),
        jnp.asarray([True] * (count - 2) + [False, True]),
        {},
        {},
        jnp.ones(count),
    )


def test_targets_take_the_lesser_critic_and_end_with_the_episode(x64):
    config = sac.SacConfig(hidden=(8,))
    actor = sac.init_actor_critic(config, TINY, jax.random.key(0))
    batch, key = some_batch(), jax.random.key(1)
    found = sac.soft_targets(0.9, actor, batch, key)
    action, log_prob = actor.policy.sample(batch.next_observation, key)
    for index in range(6):
        pair = jnp.concatenate([batch.next_observation[index], action[index]])
        values = [float(target.mlp(pair)[0]) for target in actor.targets]
        value = min(values) - float(jnp.exp(actor.log_temperature)) * float(log_prob[index])
        expected = float(batch.reward[index]) + (0.0 if batch.terminated[index] else 0.9 * value)
        assert float(found[index]) == pytest.approx(expected, abs=1e-9)


def test_the_policys_gradient_is_that_of_finite_differences(x64):
    config = sac.SacConfig(hidden=(6,))
    actor = sac.init_actor_critic(config, TINY, jax.random.key(0))
    batch, key = some_batch(), jax.random.key(2)

    def price(observation, action):
        return 0.7 * jnp.sum(action**2, axis=-1) * observation[:, 0]

    def loss(policy):
        return sac.policy_loss(policy, actor, price, batch, key)[0]

    gradient = eqx.filter_grad(loss)(actor.policy)
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), eqx.filter(gradient, eqx.is_array))
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)))
    step = 1e-6
    ends = [
        loss(eqx.apply_updates(actor.policy, jax.tree.map(lambda d, s=s: s * step * d, direction))) for s in (1, -1)
    ]
    assert float(along) == pytest.approx(float((ends[0] - ends[1]) / (2 * step)), rel=1e-6)


def test_rows_without_weight_change_nothing(x64):
    config = sac.SacConfig(hidden=(6,))
    actor = sac.init_actor_critic(config, TINY, jax.random.key(0))
    batch = some_batch()
    spoilt = eqx.tree_at(lambda b: (b.reward, b.observation), batch, (batch.reward.at[4].set(1e6), batch.observation))
    moved = [sac.critic_step(config, 0.9, actor, each, jax.random.key(1))[0].critics for each in (batch, spoilt)]
    for one, other in zip(jax.tree.leaves(moved[0]), jax.tree.leaves(moved[1]), strict=True):
        if eqx.is_array(one):
            np.testing.assert_array_equal(one, other)


def test_rates_fall_in_their_own_optimizers_steps():
    optimizer = sac.descent((1e-2, 1e-3, 10), clip=1e9)
    parameter = jnp.asarray(0.0)
    state = sac.fresh(optimizer, parameter)
    moves = []
    for _ in range(12):
        moved, state = sac.descend(optimizer, jnp.asarray(1.0), state, parameter)
        moves.append(float(parameter - moved))
    assert moves[0] == pytest.approx(1e-2, rel=1e-3)
    assert moves[5] == pytest.approx(5.5e-3, rel=1e-3)
    assert moves[11] == pytest.approx(1e-3, rel=1e-3)


def mean_action(algorithm, world, iterations):
    state = algorithm.init(jax.random.key(0), world.cmdp)
    for index in range(iterations):
        state, metrics = algorithm.iterate(state, world, jax.random.key(index))
    tasks = world.sample(jax.random.key(99), 4)
    rows = world.collect(algorithm.policy(state), tasks, jax.random.key(98), 1)
    return float(rows.action.mean()), metrics


def test_it_finds_the_goal_and_with_a_limit_the_best_that_is_allowed():
    free, _ = mean_action(
        sac_lagrangian.Algorithm(sac_lagrangian.Config(**QUICK, action_scale=2.0, multiplier_learning_rate=1e-9)),
        reach(limit=1e3),
        120,
    )
    assert free == pytest.approx(1.0, abs=0.15)  # goals are 0.8 to 1.2 and not seen
    held, metrics = mean_action(
        sac_lagrangian.Algorithm(sac_lagrangian.Config(**QUICK, action_scale=2.0, multiplier_learning_rate=0.05)),
        reach(limit=2.5),
        200,
    )
    assert held == pytest.approx(0.5, abs=0.12)  # ten efforts of 0.25; noise while training costs a little
    assert float(metrics["multiplier"]) > 0.3  # 2 (goal - a) = 2 lambda a at the optimum: lambda about 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps_per_update": 3}, "steps_per_update"),
        ({"polyak": 0.0}, "polyak"),
        ({"critic_rate": (1e-3, 0.0, 5)}, "critic_rate"),
        ({"hidden": ()}, "hidden"),
        ({"capacity": 8}, "capacity"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        sac_lagrangian.Algorithm(sac_lagrangian.Config(**{**QUICK, **change}))
