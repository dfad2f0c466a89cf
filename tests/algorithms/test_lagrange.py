"""Multipliers and the objectives that they make, against hand-written Adam, surrogates, and a solved saddle point."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import make_case, perturbed

from safemeta.algorithms.lagrange import (
    LagrangeConfig,
    Multipliers,
    advance,
    init_multipliers,
    lagrangian,
    prices,
    weighed,
)
from safemeta.algorithms.surrogate import surrogate

pytestmark = pytest.mark.usefixtures("x64")


def test_adam_on_each_cost_by_itself_projected_to_what_is_allowed(rng):
    config = LagrangeConfig(multiplier_learning_rate=0.1, initial_multiplier=0.3, largest_multiplier=0.8)
    scale = np.array([1.0, 100.0, 1.0])
    violations = rng.normal(size=(40, 3)) * scale + np.array([0.5, 0.0, -0.5]) * scale
    found = init_multipliers(config, 3)
    value, first, second = np.full(3, 0.3), np.zeros(3), np.zeros(3)
    for count, violation in enumerate(violations, 1):
        found = advance(config, found, jnp.asarray(violation))
        first = 0.9 * first - 0.1 * violation
        second = 0.999 * second + 0.001 * violation**2
        move = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        value = np.clip(value - 0.1 * move, 0, 0.8)
        np.testing.assert_allclose(found.value, value, rtol=1e-6, atol=1e-9)
    assert value[0] == 0.8
    assert value[2] == 0


def test_projected_gradient_is_in_the_limits_unit():
    config = LagrangeConfig(multiplier_update="gradient", multiplier_learning_rate=0.5, initial_multiplier=1.0)
    found = advance(config, init_multipliers(config, 2), jnp.array([3.0, -4.0]))
    np.testing.assert_allclose(found.value, [2.5, 0.0])


@pytest.mark.parametrize(("update", "rate", "tolerance"), [("gradient", 0.2, 1e-3), ("adam", 0.01, 0.1)])
def test_multipliers_find_the_price_of_a_solved_problem(update, rate, tolerance):
    """Maximise `-(x - 2)^2 - (y - 1)^2` with x <= 1 and y <= 3: the best answer to prices p is x = 2 - p_x / 2."""
    config = LagrangeConfig(multiplier_update=update, multiplier_learning_rate=rate)

    def proceed(state, _):
        x, y = 2 - state.value[0] / 2, 1 - state.value[1] / 2
        return advance(config, state, jnp.stack([x - 1, y - 3])), None

    found = jax.lax.scan(proceed, init_multipliers(config, 2), None, length=2000)[0]
    np.testing.assert_allclose(found.value, [2.0, 0.0], atol=tolerance)


def test_damping_settles_what_otherwise_goes_round_in_circles():
    """Policy and multiplier that only follow each other: `x` climbs `x - p (x - 1)`, which has no curvature."""

    def distance(damping):
        config = LagrangeConfig("gradient", multiplier_learning_rate=0.05, multiplier_damping=damping)

        def proceed(carried, _):
            x, state = carried
            violation = jnp.stack([x - 1])
            state = advance(config, state, violation)
            return (x + 0.05 * (1 - prices(config, state, violation)[0]), state), jnp.abs(x - 1)

        start = (jnp.zeros(()), Multipliers(jnp.ones(1), init_multipliers(config, 1).optimizer))
        return float(jax.lax.scan(proceed, start, None, length=2000)[1][-200:].max())

    assert distance(0.0) > 0.5
    assert distance(1.0) < 1e-3


def test_prices_are_never_negative_nor_above_what_is_allowed():
    config = LagrangeConfig(multiplier_damping=2.0, largest_multiplier=5.0)
    state = Multipliers(jnp.array([1.0, 1.0, 1.0]), None)
    np.testing.assert_allclose(prices(config, state, jnp.array([0.5, -3.0, 9.0])), [2.0, 0.0, 5.0])


@pytest.mark.parametrize("limit_on", ["discounted", "undiscounted", "per_step"])
def test_the_weighed_objective_is_the_reward_less_the_costs(rng, limit_on):
    """Its surrogate is made of the surrogates of its parts, also where episodes end early."""
    case = make_case(rng, limit_on=limit_on, ends=0.2)
    assert not np.asarray(case.samples.valid).all()
    old = case.policy(case.samples.observation)
    new = perturbed(case.policy, rng)
    parts = surrogate(new, old, case.samples)
    total = case.samples.cost_weight.sum(1).mean()  # what a limit sums, per episode
    ours = surrogate(new, old, weighed(case.samples, jnp.asarray(0.7), jnp.array([0.4, 2.0])))
    expected = 0.7 * parts.reward - jnp.array([0.4, 2.0]) @ parts.costs / total
    np.testing.assert_allclose(ours.reward, expected, rtol=1e-9)
    np.testing.assert_allclose(ours.costs, parts.costs, rtol=1e-12)


def test_advantages_are_mixed_as_usual_in_the_field_where_all_steps_count_alike(rng):
    case = make_case(rng, limit_on="undiscounted", ends=0.0)
    tasks = jax.tree.map(lambda leaf: leaf[None], case.samples)
    price = jnp.array([0.5, 2.0])
    reward, costs = np.asarray(case.samples.advantage), np.asarray(case.samples.cost_advantages)
    plain = lagrangian(LagrangeConfig(), tasks, price).advantage[0]
    np.testing.assert_allclose(plain, (reward - 0.5 * costs[..., 0] - 2 * costs[..., 1]) / 3.5, rtol=1e-9)
    standard = LagrangeConfig(standardize_reward=True)
    scaled = lagrangian(standard, tasks, price).advantage[0]
    np.testing.assert_allclose(scaled, (reward / reward.std() - costs @ [0.5, 2.0]) / 3.5, rtol=1e-6, atol=1e-7)
    loud = replace(tasks, advantage=1000 * tasks.advantage)
    np.testing.assert_allclose(lagrangian(standard, loud, price).advantage[0], scaled, rtol=1e-6, atol=1e-7)


BAD = {
    "multiplier_learning_rate": (0.0, float("nan")),
    "largest_multiplier": (0.0, float("inf")),
    "initial_multiplier": (-0.1, float("nan"), 2000.0),
    "multiplier_damping": (-0.1, float("inf")),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        LagrangeConfig(**{name: value}).validate()


def test_an_unknown_update_is_refused():
    config = LagrangeConfig()
    object.__setattr__(config, "multiplier_update", "newton")  # past the run-time checks of types
    with pytest.raises(ValueError, match="must be one of adam, gradient"):
        config.validate()
