"""MetaL: the numbers of its theorem to nine digits, on the functions that the learner itself is made of."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_d4pg import CMDP_OF_TWO, random_state, some_steps

from safemeta.algorithms import d4pg, metal
from safemeta.algorithms.categorical import Support, cross_entropy
from safemeta.algorithms.d4pg import multiplier_step
from safemeta.algorithms.metal import meta_gradient
from safemeta.algorithms.sac import descend

pytestmark = pytest.mark.usefixtures("x64")

GAMMA, RATE, CRITIC_RATE, META_RATE = 0.99, 0.1, 0.05, 0.01
BETA = 0.115


def close(found, expected, places=1e-9):
    np.testing.assert_allclose(np.asarray(found, float).squeeze(), expected, rtol=0, atol=places)


def td_loss(theta, multiplier, part):
    """Of a linear critic `theta . x`; the value beyond is given."""
    x, reward, cost, beyond = part
    error = reward - multiplier[0] * cost + GAMMA * beyond - x @ theta
    return jnp.mean(error**2)


def looked_ahead(loss, theta, training, held, multiplier, excess, optimizer=None, log_rate=0.2, stop=()):
    """`meta_gradient` for the losses `loss(theta, multiplier, part)`; `stop` cuts one of its two paths."""
    optimizer = optimizer or optax.sgd(CRITIC_RATE)
    theta, excess = jnp.asarray(theta), jnp.asarray([excess])

    def inner(eta):
        following = multiplier_step(jnp.asarray([multiplier]), RATE * jnp.exp(eta), excess)
        gradient = jax.grad(loss)(theta, following, training)
        moved, _ = descend(optimizer, gradient, optimizer.init(theta), theta)
        return following, jax.lax.stop_gradient(moved) if "critic" in stop else moved, moved

    def outer(critic, following):
        return loss(critic, jax.lax.stop_gradient(following) if "multiplier" in stop else following, held), None

    run = jax.jit(lambda eta: meta_gradient(eta, inner, outer))
    at, step = jnp.asarray([log_rate]), 1e-6
    *found, (theta, _) = run(at)
    if not stop:  # against the outer loss itself
        close(found[0], float(run(at + step)[1] - run(at - step)[1]) / (2 * step), 1e-8)
    return *found, theta


ONE = (np.array([[1.5]]), np.ones(1), np.ones(1), np.array([1.1]))  # x, r, c, Q beyond


def test_a_scalar_critic_and_one_transition():
    gradient, value, multiplier, theta = looked_ahead(td_loss, [0.8], ONE, ONE, 0.5, 0.4 - BETA)
    close(multiplier, 0.534809978608)
    close(theta, 0.853128503209)
    close(value, 0.075348749359)
    close(gradient, -0.014810628165)
    close(0.2 - META_RATE * gradient, 0.200148106282)
    delta, cost = 0.274497266579, 1.0
    bracket = -2 * CRITIC_RATE * 1.5 * 1.5 + 1
    close(gradient, -2 * delta * cost * RATE * np.exp(0.2) * (0.4 - BETA) * bracket)  # Theorem 1
    slope = jax.grad(td_loss)(jnp.asarray([0.8]), multiplier, ONE)
    close(slope, -1.062570064177)
    close((1.0 - multiplier + GAMMA * 1.1 - 1.5 * 0.8), 0.354190021392)
    close(1.5 * theta, 1.279692754813)
    close(bracket, 0.775)
    close(step_of_rate(0.5, 0.4), 0.034809978608)
    close(step_of_price([0.8], ONE, 0.534809978608), -0.15)


def step_of_rate(multiplier, penalty):
    """d lambda' / d alpha_lambda at 0.2."""
    excess = jnp.asarray([penalty - BETA])
    return jax.jacfwd(lambda eta: multiplier_step(jnp.asarray([multiplier]), RATE * jnp.exp(eta), excess))(
        jnp.asarray([0.2])
    )


def step_of_price(theta, training, multiplier):
    """d theta' / d lambda' of a step of gradient descent."""
    sgd, theta = optax.sgd(CRITIC_RATE), jnp.asarray(theta)

    def moved(multiplier):
        return descend(sgd, jax.grad(td_loss)(theta, multiplier, training), sgd.init(theta), theta)[0]

    return jax.jacfwd(moved)(jnp.asarray([multiplier]))


@pytest.mark.parametrize(("stop", "expected"), [("critic", -0.019110487955), ("multiplier", 0.00429985979)])
def test_a_each_path_alone(stop, expected):
    close(looked_ahead(td_loss, [0.8], ONE, ONE, 0.5, 0.4 - BETA, stop=(stop,))[0], expected)


def test_a_without_a_violation_there_is_nothing_to_learn():
    free = (*ONE[:2], np.zeros(1), ONE[3])
    close(looked_ahead(td_loss, [0.8], free, free, 0.5, 0.4 - BETA)[0], 0.0, 0)


def test_a2_below_the_threshold():
    gradient, _, multiplier, _ = looked_ahead(td_loss, [0.8], ONE, ONE, 0.5, 0.05 - BETA)
    close(multiplier, 0.492060882072)
    close(gradient, 0.003785554944)
    close(0.2 - META_RATE * gradient, 0.199962144451)
    close(step_of_rate(0.5, 0.05), -0.007939117928)


def test_a3_a_multiplier_that_stays_at_zero():
    gradient, value, multiplier, _ = looked_ahead(td_loss, [0.8], ONE, ONE, 0.0, 0.05 - BETA)
    close(multiplier, 0.0, 0)
    close(gradient, 0.0, 0)
    close(value, 0.474686550625)


def test_b_two_weights_and_parts_of_two_transitions():
    training = (
        jnp.asarray([[1, 0.5], [0.2, -1]]),
        jnp.asarray([1, 0.4]),
        jnp.asarray([1.0, 0]),
        jnp.asarray([1.1, 0.7]),
    )
    held = (
        jnp.asarray([[0.6, 1.2], [-0.5, 0.3]]),
        jnp.asarray([0.9, 0.2]),
        jnp.asarray([1.0, 1]),
        jnp.asarray([0.9, 0.5]),
    )
    weights, excess = [0.8, -0.3], 0.4 - BETA
    gradient, value, multiplier, theta = looked_ahead(td_loss, weights, training, held, 0.5, excess)
    close(multiplier, 0.534809978608)
    close(theta, (0.85153950107, -0.309045249465))
    close(value, 0.853161375122)
    close(gradient, -0.060559042079)
    close(0.2 - META_RATE * gradient, 0.200605590421)
    close(jax.grad(td_loss)(jnp.asarray(weights), multiplier, training), (-1.030790021392, 0.180904989304))
    error = held[1] - multiplier * held[2] + GAMMA * held[3] - held[0] @ theta
    close(error, (1.116120620109, 0.678673346767))
    for stop, expected in (("critic", -0.062476739592), ("multiplier", 0.001917697513)):
        close(looked_ahead(td_loss, weights, training, held, 0.5, excess, stop=(stop,))[0], expected)
    inner = training[1] - multiplier * training[2] + GAMMA * training[3] - training[0] @ jnp.asarray(weights)
    close(inner, (0.904190021392, 0.633))
    close(step_of_price(weights, training, 0.534809978608), (-0.05, -0.025))


def categorical_loss(weights, multiplier, part):
    """Of Test C: one transition, five atoms."""
    support = Support(-2.0, 2.0, 5)
    probabilities = jax.nn.softmax(jnp.asarray([0, 0.1, 0.4, 0.2, -0.3]))
    values = 0.25 - multiplier[0] + 0.9 * support.values(weights.dtype)
    return cross_entropy(support.project(values, probabilities), 1.5 * weights)


WEIGHTS = (0.1, -0.2, 0.3, 0.0, 0.2)


def test_c_a_categorical_critic():
    gradient, value, multiplier, weights = looked_ahead(categorical_loss, WEIGHTS, None, None, 0.1, 0.4 - BETA)
    close(multiplier, 0.134809978608)
    close(weights, (0.094268873737, -0.193591510333, 0.300809143199, 0.006508988082, 0.192004505315))
    close(value, 1.639511861864)
    close(gradient, 0.001595052839)
    close(categorical_loss(jnp.asarray(WEIGHTS), multiplier, None), 1.643091624022)
    slope = jax.grad(categorical_loss)(jnp.asarray(WEIGHTS), multiplier, None)
    close(slope, (0.114622525269, -0.128169793336, -0.016182863981, -0.130179761646, 0.159909893693))
    for stop, expected in (("critic", 0.001723297269), ("multiplier", -0.000128244431)):
        close(looked_ahead(categorical_loss, WEIGHTS, None, None, 0.1, 0.4 - BETA, stop=(stop,))[0], expected)


def test_c_the_target_and_its_derivative():
    support = Support(-2.0, 2.0, 5)
    probabilities = jax.nn.softmax(jnp.asarray([0, 0.1, 0.4, 0.2, -0.3]))
    close(probabilities, (0.179881460452, 0.198799758793, 0.268351605351, 0.219707711938, 0.133259463466))

    def target(multiplier):
        return support.project(0.25 - multiplier + 0.9 * support.values(probabilities.dtype), probabilities)

    at = jnp.asarray(0.1 + RATE * np.exp(0.2) * (0.4 - BETA))
    shifted = (-1.684809978608, -0.784809978608, 0.115190021392, 1.015190021392, 1.915190021392)
    close(0.25 - at + 0.9 * support.values(probabilities.dtype), shifted)
    close(target(at), (0.123184619084, 0.212716875813, 0.280219902537, 0.258583506501, 0.125295096065))
    slope = jax.jacfwd(target)(at)
    close(slope, (0.179881460452, 0.018918298341, 0.069551846558, 0.084615570054, -0.352967175404))
    logits = 1.5 * jnp.asarray(WEIGHTS)
    close(jax.nn.softmax(logits), (0.19959963593, 0.127270346923, 0.26943132655, 0.171796998737, 0.23190169186))
    close(support.mean(logits), 0.109130763673)


def test_d_through_adam():
    adam = d4pg.descent(replace(d4pg.D4pgConfig(), gradient_clip=1e9), 1e-4)
    gradient, _, _, theta = looked_ahead(td_loss, [0.8], ONE, ONE, 0.5, 0.4 - BETA, optimizer=adam)
    close(theta - 0.8, 9.9999999059e-05, 1e-13)
    close(gradient, -0.024648251142)

    def update(multiplier):
        theta = jnp.asarray([0.8])
        slope = jax.grad(td_loss)(theta, multiplier, ONE)
        return descend(adam, slope, adam.init(theta), theta)[0]

    close(jax.jacfwd(update)(jnp.asarray([0.534809978608])), -2.657e-12, 1e-15)


def test_e_the_actors_loss():
    observation, slope = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 4.0])

    def loss(theta, largest):
        u = theta @ observation
        return d4pg.action_loss(jnp.tanh(jnp.stack([u, u / 2])), slope, largest)

    theta = jnp.asarray([0.1, -0.2])
    close(loss(theta, None), 25.0)
    close(jax.grad(loss)(theta, None), (-9.40215476, -18.80430952), 1e-8)
    close(0.5 * loss(theta, 1.0), 0.5)  # Acme has 1/2
    close(0.5 * jax.grad(loss)(theta, 1.0), (-0.94021548, -1.88043095), 1e-8)


@pytest.mark.parametrize(
    ("multiplier", "penalty", "slope", "following"),
    [
        (0.5, 0.4, -0.285, 0.5285),
        (0.5, 0.05, 0.065, 0.4935),
        (0.0, 0.05, 0.065, 0.0),
        (0.0, 0.4, -0.285, 0.0285),
        (0.003, 0.05, 0.065, 0.0),
    ],
)
def test_the_multipliers_step(multiplier, penalty, slope, following):
    close(jax.grad(lambda m: m * (BETA - penalty))(multiplier), slope)  # the Lagrange loss
    close(multiplier_step(jnp.asarray([multiplier]), 0.1, jnp.asarray([penalty - BETA])), following)


def test_a_multiplier_over_six_episodes():
    value = jnp.zeros(1)
    for penalty, expected in zip(
        (0.6, 0.5, 0.3, 0.1, 0, 0), (0.0485, 0.087, 0.1055, 0.104, 0.0925, 0.081), strict=True
    ):
        value = multiplier_step(value, 0.1, jnp.asarray([penalty - BETA]))
        close(value, expected)


def tiny(**changes):
    settings = {"tasks": 2, "hidden": (6,), "critic_hidden": (7,), "batch": 8, "warm_up": 16, "capacity": 400}
    settings |= {"steps_per_update": 2, "n_step": 3, "atoms": 11, "support": (-3.0, 3.0), "multiplier_rate": 0.3}
    return metal.Config(**{**settings, **changes})


@pytest.mark.parametrize(
    ("inner_step", "outer_loss"), [("adam", "critic"), ("sgd", "critic"), ("adam", "actor"), ("sgd", "both")]
)
def test_the_learners_meta_gradient_is_that_of_finite_differences(inner_step, outer_loss):
    """Two costs, networks, a whole update: the outer loss is read off as a metric at rates a little apart."""
    config = tiny(inner_step=inner_step, outer_loss=outer_loss, critic_rate=0.05)
    learner = metal.MetaLearner(config, CMDP_OF_TWO)
    state = random_state(learner.init(jax.random.key(0)))
    state, _ = learner.conclude(state, jnp.asarray([[0.4, -0.1]]))
    state = eqx.tree_at(lambda s: s.multiplier, state, jnp.asarray([0.2, 0.7]))
    batch = some_steps(config.batch)
    update = eqx.filter_jit(learner.update)
    _, metrics = update(state, batch, jax.random.key(1))
    step = 1e-5
    for index in (0, 1):
        ends = []
        for sign in (1, -1):
            moved = state.log_rate.at[index].add(sign * step)
            ends.append(update(eqx.tree_at(lambda s: s.log_rate, state, moved), batch, jax.random.key(1))[1])
        expected = float(ends[0]["outer_loss"] - ends[1]["outer_loss"]) / (2 * step)
        assert abs(expected) > 1e-7
        assert float(metrics["meta_gradient"][index]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_one_update_is_algorithm_1():
    """The multiplier moves first; the critic learns its new price from the training part alone."""
    config = tiny()
    learner = metal.MetaLearner(config, CMDP_OF_TWO)
    state, _ = learner.conclude(random_state(learner.init(jax.random.key(0))), jnp.asarray([[0.4, -0.1]]))
    batch = some_steps(config.batch)
    moved, _ = eqx.filter_jit(learner.update)(state, batch, jax.random.key(1))
    expected = np.maximum(0.3 * np.array([0.4, -0.1]), 0)
    close(moved.multiplier, expected)
    part = jax.tree.map(lambda leaf: leaf[config.held_out :], batch)
    step = eqx.filter_jit(lambda price: d4pg.critic_step(config, state, price, d4pg.evidence(config, state, part)))
    by_hand = step(jnp.asarray(expected))
    for one, other in zip(jax.tree.leaves(moved.critic), jax.tree.leaves(by_hand.critic), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    assert float(moved.log_rate[0]) != 0.0
    assert float(moved.log_rate[1]) == 0.0  # its multiplier stays at zero, where its rate has no effect


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"validation_share": 1.0}, "validation_share"),
        ({"meta_rate": 0.0}, "meta_rate"),
        ({"initial_log_rate": 9.0}, "initial_log_rate"),
        ({"multiplier_rate": -1.0}, "multiplier_rate"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        metal.MetaL(tiny(**change))
