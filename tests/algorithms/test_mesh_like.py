"""The stand-in for MeSh: its shaping by hand, its meta-gradient by finite differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_d4pg import CMDP_OF_TWO, random_state, some_steps

from safemeta.algorithms import d4pg, mesh_like

pytestmark = pytest.mark.usefixtures("x64")

TINY = {
    "tasks": 2, "hidden": (6,), "critic_hidden": (7,), "batch": 8, "warm_up": 16, "capacity": 400, "critic_rate": 0.05,
    "n_step": 3, "atoms": 11, "support": (-3.0, 3.0), "multiplier_rate": 0.3, "shaping_hidden": (4,),
    "steps_per_update": 2, "meta_optimizer": "sgd", "meta_rate": 0.5,
}  # fmt: skip
BATCH, KEY = some_steps(8), jax.random.key(1)


@eqx.filter_jit
def update(learner, state):
    return learner.update(state, BATCH, KEY)


def learner_and_state(shaped=True, **changes):
    learner = mesh_like.MeshLikeLearner(mesh_like.Config(**{**TINY, **changes}), CMDP_OF_TWO)
    state = random_state(learner.init(jax.random.key(0)))
    state, _ = learner.conclude(state, jnp.asarray([[0.4, -0.1]]))
    state = eqx.tree_at(lambda s: s.multiplier, state, jnp.asarray([0.2, 0.7]))
    if shaped:  # a last layer that is not zero
        last = 0.5 * jnp.asarray(np.random.default_rng(3).normal(size=(4, 2)))
        state = eqx.tree_at(lambda s: s.shaping.layers[-1].weight, state, last)
    return learner, state


def test_the_shaping_by_hand():
    _, state = learner_and_state()
    reward, price = jnp.asarray([0.5, -1.0, 2.0]), jnp.asarray([0.0, 0.3, 1.5])
    found, scale, offset = mesh_like.shaped(state.shaping, reward, price)
    first, last = ((np.asarray(part.weight), np.asarray(part.bias)) for part in state.shaping.layers)
    for i in range(3):
        hidden = np.tanh(np.array([reward[i], price[i]]) @ first[0] + first[1])
        u, v = hidden @ last[0] + last[1]
        assert float(scale[i]) == pytest.approx(1 + np.tanh(u))
        assert float(offset[i]) == pytest.approx(0.1 * np.tanh(v))
        expected = (1 + np.tanh(u)) * float(reward[i] - price[i]) + 0.1 * np.tanh(v)
        assert float(found[i]) == pytest.approx(expected)


@pytest.mark.parametrize("inner_step", ["adam", "sgd"])
def test_the_meta_gradient_is_that_of_finite_differences(inner_step):
    """A step of plain descent at rate 0.5 shows the gradient; the outer loss is read off at shapings a little apart."""
    learner, state = learner_and_state(inner_step=inner_step)

    def outer_loss(weight):
        moved = eqx.tree_at(lambda s: s.shaping.layers[-1].weight, state, weight)
        return float(update(learner, moved)[1]["outer_loss"])

    weight, step = state.shaping.layers[-1].weight, 1e-4
    moved = update(learner, state)[0].shaping.layers[-1].weight
    for place in ((0, 0), (2, 0), (1, 1)):
        ends = [outer_loss(weight.at[place].add(sign * step)) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope) > 1e-9  # Adam's first step mutes it
        assert float(weight[place] - moved[place]) / 0.5 == pytest.approx(slope, rel=1e-4)


def test_at_first_the_step_is_that_of_rc_d4pg_on_the_training_part_and_later_on_shaped_rewards():
    for with_shaping in (False, True):
        learner, state = learner_and_state(shaped=with_shaping)
        moved, metrics = update(learner, state)
        multiplier = np.maximum(np.array([0.2, 0.7]) + 0.3 * np.array([0.4, -0.1]), 0)
        np.testing.assert_allclose(moved.multiplier, multiplier)
        part = jax.tree.map(lambda leaf: leaf[4:], BATCH)
        rewards = part.reward - part.costs @ jnp.asarray(multiplier)
        if with_shaping:
            rewards = mesh_like.shaped(state.shaping, part.reward, part.costs @ jnp.asarray(multiplier))[0]
        else:
            assert float(metrics["scale"]) == 1
            assert float(metrics["offset"]) == 0
        # the same as rewards without a price
        plain = eqx.tree_at(lambda b: (b.reward, b.costs), part, (rewards, 0 * part.costs))
        step = eqx.filter_jit(d4pg.critic_step)(
            learner.config, state, jnp.zeros(2), d4pg.evidence(learner.config, state, plain)
        )
        for one, other in zip(jax.tree.leaves(moved.critic), jax.tree.leaves(step.critic), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


def test_the_outer_loss_is_at_the_plain_shaped_reward():
    """It judges the critic after the step at `R - lambda' C` of the held-out part."""
    learner, state = learner_and_state()
    moved, metrics = update(learner, state)
    held = jax.tree.map(lambda leaf: leaf[:4], BATCH)
    seen = d4pg.evidence(learner.config, state, held)
    loss, fit = eqx.filter_jit(d4pg.critic_loss)(moved.critic, moved.multiplier, seen, learner.config.categories)
    assert float(metrics["outer_loss"]) == pytest.approx(float(loss), abs=1e-12)
    np.testing.assert_allclose(metrics["losses"][:4], fit.losses, atol=1e-12)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="shaping_hidden"):
        mesh_like.MeshLike(mesh_like.Config(**{**TINY, "shaping_hidden": ()}))
