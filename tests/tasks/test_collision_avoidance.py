"""Collision avoidance: motion against an ODE solver, rates against finite differences, rewards against plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from safemeta.tasks import make
from safemeta.tasks.collision_avoidance import (
    STARTS,
    CollisionAvoidance,
    CollisionAvoidanceFamily,
    UnicycleState,
    advance,
    wrapped,
)

PARAMETERS = {name: jnp.asarray(span) for name, span in vars(STARTS["1"]).items()}


def state(x=0.0, y=0.0, speed=0.0, heading=math.pi / 2, hazard_y=0.75):
    return UnicycleState(*(jnp.asarray(value) for value in (x, y, speed, heading, hazard_y)))


def random_states(count, seed=0):
    rng = np.random.default_rng(seed)
    columns = rng.uniform((-2, -2, -2, -math.pi, -0.5), (2, 2, 2, math.pi, 1.5), (count, 5)).T
    return UnicycleState(*map(jnp.asarray, columns)), rng.uniform(-1.3, 1.3, (count, 2))


def slopes(row, action):
    _, _, v, heading = row
    return np.array([v * np.cos(heading), v * np.sin(heading), 4 * action[0], np.pi * action[1]])


def test_one_step_is_the_textbook_runge_kutta_step(x64):
    rows, actions = random_states(200)
    after = advance(rows, jnp.asarray(actions))
    for i, action in enumerate(np.clip(actions, -1, 1)):
        row = np.array([rows.x[i], rows.y[i], rows.speed[i], rows.heading[i]])
        k1 = slopes(row, action)
        k2 = slopes(row + 0.05 * k1, action)
        k3 = slopes(row + 0.05 * k2, action)
        k4 = slopes(row + 0.1 * k3, action)
        row = row + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        np.testing.assert_allclose([after.x[i], after.y[i], after.speed[i]], row[:3], atol=1e-13)
        turned = math.remainder(float(after.heading[i]) - row[3], 2 * math.pi)
        assert turned == pytest.approx(0, abs=1e-12)
        assert abs(after.heading[i]) <= math.pi
    np.testing.assert_array_equal(after.hazard_y, rows.hazard_y)


def test_many_steps_follow_the_differential_equation(x64):
    action = np.array([0.2, -0.6])
    now = state(0.3, -1.2, 1.5, 2.0)
    for _ in range(30):
        now = advance(now, jnp.asarray(action))
    exact = solve_ivp(lambda _, row: slopes(row, action), (0, 3), [0.3, -1.2, 1.5, 2.0], rtol=1e-11, atol=1e-12).y[
        :, -1
    ]
    np.testing.assert_allclose([now.x, now.y, now.speed], exact[:3], atol=2e-5)
    assert math.remainder(float(now.heading) - exact[3], 2 * math.pi) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("angle", "expected"), [(3.5, 3.5 - 2 * math.pi), (-3.5, 2 * math.pi - 3.5), (1.0, 1.0), (7, 7 - 2 * math.pi)]
)
def test_angles_are_wrapped(angle, expected):
    assert wrapped(jnp.asarray(float(angle))) == pytest.approx(expected, abs=1e-6)


def distance_after(rows, time):
    """Distance to the hazard of a car that drives straight on for a moment."""
    x = np.asarray(rows.x) + time * np.asarray(rows.speed) * np.cos(rows.heading)
    y = np.asarray(rows.y) + time * np.asarray(rows.speed) * np.sin(rows.heading)
    return np.hypot(x, y - np.asarray(rows.hazard_y))


def test_clearance_is_the_distance_and_its_rate_in_time(x64):
    rows, _ = random_states(2000)
    clearance = CollisionAvoidance().clearance(PARAMETERS, rows)
    assert clearance.shape == (2000, 1, 2)
    np.testing.assert_allclose(clearance[:, 0, 0], distance_after(rows, 0), rtol=1e-13)
    h = 1e-5
    rate = (distance_after(rows, h) - distance_after(rows, -h)) / (2 * h)
    np.testing.assert_allclose(clearance[:, 0, 1], rate, atol=1e-7)


def test_clearance_is_the_rate_along_a_driven_path(x64):
    # The same from the environment's own steps, with steering: central differences over neighbouring steps, O(h^2).
    now, distances, rates = state(-1.0, -1.5, 1.5, 1.5), [], []
    for t in range(60):
        clearance = CollisionAvoidance().clearance(PARAMETERS, now)
        distances.append(float(clearance[0, 0]))
        rates.append(float(clearance[0, 1]))
        now = advance(now, jnp.array([0.02 * math.sin(t), 0.05]))
    central = (np.array(distances[2:]) - np.array(distances[:-2])) / 0.2
    np.testing.assert_allclose(rates[1:-1], central, atol=0.02)
    assert min(rates) < -1 < 1 < max(rates)


def test_the_released_rate_has_the_wrong_sign_where_x_is_not_positive(x64):
    rows, _ = random_states(2000)
    right, released = (CollisionAvoidance(flipped_rate=f).clearance(PARAMETERS, rows)[:, 0] for f in (False, True))
    x, away = np.asarray(rows.x), np.asarray(rows.y - rows.hazard_y)
    angle = np.arctan(-away / (-x + 1e-8))  # as the reference states the code
    np.testing.assert_allclose(
        released[:, 1], np.asarray(rows.speed) * np.cos(np.asarray(rows.heading) - angle), atol=1e-4
    )
    np.testing.assert_allclose(released[:, 1], np.where(x > 0, 1, -1) * np.asarray(right[:, 1]), rtol=1e-12)
    np.testing.assert_array_equal(released[:, 0], right[:, 0])
    nominal = state(0.0, -1.5, 1.0)
    assert CollisionAvoidance().clearance(PARAMETERS, nominal)[0, 1] == pytest.approx(-1)
    assert CollisionAvoidance.released().clearance(PARAMETERS, nominal)[0, 1] == pytest.approx(1)


def test_clearance_at_the_hazards_very_centre_is_a_number():
    assert CollisionAvoidance().clearance(PARAMETERS, state(y=0.75, speed=1.0)).tolist() == [[0.0, 0.0]]


def released_reward(x, y, v, heading):
    """In plain Python, as the reference states the code; the bearing is in (0, 2 pi)."""
    ahead, aside = 0.0 - x, 5.0 - y
    bearing = math.atan2(aside, ahead) % (2 * math.pi)
    speed = min(max(math.hypot(ahead, aside) / 10, -1), 1)
    shift = abs(0.1 * speed * math.cos(bearing)) + abs(0.1 * speed * math.sin(bearing))
    return -(shift + abs(v - speed) + 0.1 * abs(heading - bearing))


def test_reward_of_the_released_code(x64):
    rows, _ = random_states(300, seed=1)
    rows = UnicycleState(3 * rows.x, 5 * rows.y, rows.speed, rows.heading, rows.hazard_y)  # beyond the goal, too
    ours = CollisionAvoidance.released().reward(rows)
    columns = (np.asarray(column).tolist() for column in (rows.x, rows.y, rows.speed, rows.heading))
    np.testing.assert_allclose(ours, [released_reward(*row) for row in zip(*columns, strict=True)], rtol=1e-12)


def test_reward_takes_the_angle_around_the_circle(x64):
    # Beyond the goal the bearing is 3 pi / 2, and so is a heading of -pi / 2: the car points at the goal.
    pose = state(0.0, 7.0, 0.4, -math.pi / 2)
    assert CollisionAvoidance().reward(pose) == pytest.approx(-0.1 * 0.4)
    # With the goal to the left of the car and a little behind, heading and bearing lie on either side of pi.
    beside = state(5.0, 5.5, math.hypot(5, 0.5) / 5, math.pi - 0.05)
    bearing = math.atan2(-0.5, -5.0)
    place = 0.02 * math.hypot(5, 0.5) * (abs(math.cos(bearing)) + abs(math.sin(bearing)))
    turn = bearing + 2 * math.pi - (math.pi - 0.05)
    assert CollisionAvoidance().reward(beside) == pytest.approx(-place - 0.1 * turn)
    naive = CollisionAvoidance(unwrapped_heading=True).reward(pose)
    assert naive == pytest.approx(-0.1 * 0.4 - 0.1 * 2 * math.pi)


@pytest.mark.parametrize(("x", "cost"), [(0.49, 1), (0.51, 0), (-0.49, 1), (-0.51, 0)])
def test_cost_is_one_inside_the_hazard(x, cost):
    _, step = CollisionAvoidance().step(PARAMETERS, state(x, 0.75), jnp.zeros(2))
    assert step.costs.tolist() == [cost]
    assert not step.terminated
    np.testing.assert_allclose(step.observation, [x, 0.75, 0, math.pi / 2, 0.75], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "x", "y", "hazard"),
    [
        ("collision-avoidance", (0, 0), (-1.5, -1.0), (0.5, 1.0)),
        ("collision-avoidance-2", (0, 0), (-1.5, -0.5), (0.5, 1.5)),
        ("collision-avoidance-3", (-0.5, 0.5), (-1.5, -0.5), (0.5, 1.0)),
    ],
)
def test_the_papers_start_distributions(name, x, y, hazard):
    world = make(name)
    parameters = jax.tree.map(lambda leaf: leaf[0], world.corners().parameters)
    keys = jax.random.split(jax.random.key(0), 4000)
    _, seen = jax.vmap(world.environment.reset, (None, 0))(parameters, keys)
    spans = (x, y, (1, 2), (math.pi / 4, 3 * math.pi / 4), hazard)
    for values, (low, high) in zip(np.asarray(seen).T, spans, strict=True):
        np.testing.assert_allclose(
            [values.min(), values.max(), values.mean()], [low, high, (low + high) / 2], atol=0.03
        )
    assert np.abs(np.nan_to_num(np.corrcoef(np.asarray(seen).T[1:])[np.triu_indices(4, 1)])).max() < 0.06


def test_splits_limits_and_horizon():
    family = CollisionAvoidanceFamily(STARTS["1"], STARTS["3"])
    for split, start in (("train", "1"), ("validation", "1"), ("test", "3")):
        tasks = family.sample(jax.random.key(0), 3, split)
        np.testing.assert_allclose(tasks.parameters["x"], [STARTS[start].x] * 3)
        assert (tasks.limits.tolist(), tasks.descriptor.tolist()) == ([[0.0]] * 3, [[0.0]] * 3)
    assert make("collision-avoidance").cmdp.horizon == 120
    with pytest.raises(ValueError, match=r"^unknown split 'x'"):
        family.sample(jax.random.key(0), 1, "x")
