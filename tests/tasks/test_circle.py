"""Point-Circle: recorded numbers of the original, formulas by hand, and the distributions of its families."""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.tasks import circle, make, point


def task(radius, wall):
    return {"radius": jnp.asarray(radius), "wall": jnp.asarray(wall)}


def standing(x, y, yaw=0.0):
    return point.at_rest(jnp.asarray(x), jnp.asarray(y), jnp.asarray(yaw))


def test_reference_episode_of_the_original(x64):
    # Reference section 1.8: Meta-CPO's Stcircle0 with reset(seed=0), printed to 9 digits.
    position, yaw = (0.0195254016, 0.0860757465), 6.054871697856187
    actions = [(0.7, -0.3), (-0.02, 1.0), (1.0, 0.004)]
    positions = [(0.0202130465, 0.0862563574), (0.020877639, 0.085328004), (0.0220837831, 0.0849913291)]
    velocities = [  # along the axes that the robot had at reset; yaw rate
        (0.0569499431, 0.0214721567, -1.17097904),
        (0.0326631333, -0.0540248088, 2.82856864),
        (0.0874488189, -0.00770151297, 0.501690383),
    ]
    rewards = [-0.00263299299072, -0.00153967401595, -0.00405233044163]

    state = standing(*position, yaw)
    first = circle.observe(state, jnp.zeros(2))
    np.testing.assert_allclose(first[:12], [0, 0, 9.81, *[0] * 6, 0.113167609, -0.487024735, 0], atol=1e-9)
    lidar = np.zeros(16)  # the section counts bins from one
    lidar[11:14] = 0.972120363, 0.985289577, 0.0131692143
    np.testing.assert_allclose(first[12:], lidar, atol=3e-9)  # the start is printed to 10 digits

    environment = circle.PointCircle()
    for t, action in enumerate(actions):
        state, step = environment.step(task(1.25, 0.938), state, jnp.asarray(action))
        turned = state.yaw - yaw
        u = math.cos(turned) * state.forward - math.sin(turned) * state.left
        v = math.sin(turned) * state.forward + math.cos(turned) * state.left
        np.testing.assert_allclose([state.x, state.y], positions[t], atol=2e-10)
        np.testing.assert_allclose([u, v, state.yaw_rate], velocities[t], atol=1e-8)
        assert step.reward == pytest.approx(rewards[t], abs=1e-10)
        assert step.costs.tolist() == [0.0]
        assert not step.terminated
        if t == 0:
            np.testing.assert_allclose(step.observation[:3], [2.80826906, -15.2164396, 9.81], rtol=1e-8)
            np.testing.assert_allclose(step.observation[3:6], [0.0565600226, 0.0224791763, 0], atol=1e-9)
            lidar[11:14] = 0.945411146, 0.985234494, 0.0398233478
            np.testing.assert_allclose(step.observation[12:], lidar, atol=3e-9)


@pytest.mark.parametrize(
    ("x", "y", "yaw", "forward", "left", "radius", "expected"),
    [
        (1.0, 0.0, math.pi / 2, 1.5, 0.0, 1.0, 0.15),  # on the circle, full speed counter-clockwise
        (1.0, 0.0, -math.pi / 2, 1.5, 0.0, 1.0, -0.15),  # clockwise
        (2.0, 0.0, math.pi / 2, 1.0, 0.0, 1.0, 0.05),  # one metre outside: half
        (0.0, 0.5, math.pi, 1.0, 0.0, 1.5, 0.05),  # one metre inside
        (1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0),  # outwards
        (0.0, -1.0, 0.0, 0.6, 0.8, 1.0, 0.06),  # only the tangential part counts
        (0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0),  # the centre itself: 0 / 0 in the original
    ],
)
def test_reward_by_hand(x, y, yaw, forward, left, radius, expected):
    u = math.cos(yaw) * forward - math.sin(yaw) * left
    v = math.sin(yaw) * forward + math.cos(yaw) * left
    values = (jnp.asarray(value) for value in (x, y, u, v, radius))
    assert circle.circle_reward(*values) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("x", "cost"), [(0.69, 0), (0.71, 1), (-0.69, 0), (-0.71, 1), (0.0, 0)])
def test_cost_is_one_beyond_either_wall(x, cost):
    # Far out along y: the two walls bound x only.
    _, step = circle.PointCircle().step(task(1.0, 0.7), standing(x, 30.0), jnp.zeros(2))
    assert step.costs.tolist() == [cost]


def test_the_observation_tells_nothing_of_the_task():
    state = standing(0.3, -0.4, 1.0)
    one, other = (circle.PointCircle().step(task(*p), state, jnp.ones(2))[1] for p in ((1.0, 0.55), (1.5, 1.1)))
    np.testing.assert_array_equal(one.observation, other.observation)
    assert one.reward != other.reward


@pytest.mark.parametrize(("name", "half_width"), [("point-circle", 0.2), ("point-circle-1", 0.8)])
def test_starts_are_uniform_in_the_square_at_rest(name, half_width):
    environment = make(name).environment
    keys = jax.random.split(jax.random.key(0), 4000)
    state, observation = jax.vmap(environment.reset, in_axes=(None, 0))(task(1.0, 0.7), keys)
    for values, low, high in (
        (state.x, -half_width, half_width),
        (state.y, -half_width, half_width),
        (state.yaw, 0, 2 * math.pi),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
        assert values.std() == pytest.approx((high - low) / 12**0.5, rel=0.03)
    assert abs(np.corrcoef([state.x, state.y, state.yaw])[np.triu_indices(3, 1)]).max() < 0.06
    assert not state.forward.any()
    np.testing.assert_allclose(observation[:, :3], np.tile([0, 0, 9.81], (4000, 1)), rtol=1e-6)


def ranges(tasks):
    radius, wall = tasks.parameters["radius"], tasks.parameters["wall"]
    scale = wall / radius
    return [float(bound) for values in (radius, scale) for bound in (values.min(), values.max())]


@pytest.mark.parametrize(
    ("name", "split", "expected", "limit"),
    [
        ("point-circle", "train", (1.0, 1.5, 0.55, 0.75), 10),
        ("point-circle", "validation", (1.0, 1.5, 0.55, 0.75), 10),
        ("point-circle", "test", (1.0, 1.5, 0.55, 0.75), 10),
        ("point-circle-meta-cpo", "train", (1.0, 1.5, 0.65, 0.75), 10),
        ("point-circle-meta-cpo", "validation", (1.0, 1.5, 0.65, 0.75), 10),
        ("point-circle-meta-cpo", "test", (2.0, 2.5, 0.55, 0.65), 5),
        ("point-circle-1", "train", (1.5, 1.5, 0.75, 0.75), 25),
    ],
)
def test_distributions_and_limits(name, split, expected, limit):
    tasks = make(name).sample(jax.random.key(0), 3000, split)
    np.testing.assert_allclose(ranges(tasks), expected, atol=2e-3)
    assert tasks.limits.shape == (3000, 1)
    assert set(np.asarray(tasks.limits).ravel()) == {limit}
    radius = tasks.parameters["radius"]
    assert radius.mean() == pytest.approx((expected[0] + expected[1]) / 2, abs=0.02)
    if split != "test" or name == "point-circle":
        assert np.abs(tasks.descriptor).max() <= 1 + 1e-5


def test_validation_tasks_are_drawn_like_training_tasks():
    world = make("point-circle-meta-cpo")
    drawn = [world.sample(jax.random.key(1), 5, split) for split in ("train", "validation", "test")]
    assert eqx.tree_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0].parameters["wall"], drawn[2].parameters["wall"])


def test_meta_cpo_rounds_as_its_code_does(x64):
    parameters = make("point-circle-meta-cpo").sample(jax.random.key(0), 500).parameters
    radius, wall = np.asarray(parameters["radius"]), np.asarray(parameters["wall"])
    np.testing.assert_allclose(radius * 100, np.round(radius * 100), atol=1e-9)
    np.testing.assert_allclose(wall * 1000, np.round(wall * 1000), atol=1e-9)
    # Each wall must be the rounded product with some scale of two decimals in the range.
    scales = np.round(np.arange(0.65, 0.7501, 0.01), 2)
    assert np.abs(wall[:, None] - radius[:, None] * scales).min(1).max() <= 0.5e-3 + 1e-12


def test_the_dual_papers_tasks_are_not_rounded():
    radius = np.asarray(make("point-circle").sample(jax.random.key(0), 500).parameters["radius"])
    assert np.abs(radius * 100 - np.round(radius * 100)).max() > 0.4


def test_corners_start_with_the_narrowest_and_span_the_descriptor():
    corners = make("point-circle").corners()
    pairs = np.stack([corners.parameters["radius"], corners.parameters["wall"]], axis=-1)
    np.testing.assert_allclose(pairs, [(1.0, 0.55), (1.0, 0.75), (1.5, 0.825), (1.5, 1.125)], rtol=1e-6)
    np.testing.assert_allclose(corners.descriptor[0], [-1, -1], atol=1e-5)
    np.testing.assert_allclose(corners.descriptor[-1], [1, 1], atol=1e-5)
    assert corners.limits.tolist() == [[10.0]] * 4


def test_a_family_of_one_task_has_one_corner():
    corners = make("point-circle-1").corners()
    assert corners.parameters["wall"].tolist() == [1.125]
    assert corners.descriptor.tolist() == [[0.0, 0.0]]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"unknown split 'valid'; choose one of train, validation, test"):
        make("point-circle").sample(jax.random.key(0), 1, "valid")


# Full thrust F against drag and inertia on a circle of radius one: F^2 = (D v)^2 + (m v^2)^2, F = 0.015 N.
SPEED = math.sqrt((math.sqrt(0.01**4 + 4 * point.MASS**2 * 0.015**2) - 0.01**2) / (2 * point.MASS**2))


class Orbit(eqx.Module):
    """Full thrust, steering to stay on the circle of radius one, from the lidar and the velocimeter."""

    def act(self, observation, key):
        lidar, bins = observation[12:], 2 * jnp.pi * (jnp.arange(16) + 0.5) / 16
        angle = jnp.arctan2((lidar * jnp.sin(bins)).sum(), (lidar * jnp.cos(bins)).sum())  # of the centre
        distance = 6 * (1 - lidar.max())
        inwards = observation[3] * jnp.cos(angle) + observation[4] * jnp.sin(angle)
        lean = math.atan(point.MASS * SPEED / point.SLIDE_DAMPING)  # thrust points inwards by this angle
        target = math.pi / 2 - lean + 0.8 * (1 - distance) + 0.8 * inwards
        error = (angle - target + math.pi) % (2 * math.pi) - math.pi
        return jnp.stack([jnp.ones(()), 0.37 * (SPEED + 3 * error)]), jnp.zeros(())


def test_a_driver_on_the_circle_earns_and_pays_what_geometry_says():
    world = make("point-circle")
    world = replace(world, cmdp=replace(world.cmdp, limit_on="undiscounted"))
    tasks = world.corners()[:1]
    trajectory = world.collect(Orbit(), tasks, jax.random.key(0), 8)
    # In the second half the driver circles at r = 1: reward 0.1 v, and |x| > 0.55 for 4 acos(0.55) of each 2 pi.
    late = slice(250, None)
    assert trajectory.reward[..., late].mean() == pytest.approx(0.1 * SPEED, rel=0.02)
    assert trajectory.costs[..., late, 0].mean() == pytest.approx(4 * math.acos(0.55) / (2 * math.pi), abs=0.02)
    performance = world.measure(Orbit(), tasks, jax.random.key(0), 8)
    np.testing.assert_allclose(performance.costs, trajectory.costs.sum(-2), rtol=1e-6)
    np.testing.assert_allclose(performance.episode_return, trajectory.reward.sum(-1), rtol=1e-4)
    assert trajectory.observation.shape == (1, 8, 500, 28)
    assert trajectory.observation.dtype == jnp.float32
    assert trajectory.valid.all()
    assert trajectory.truncated[..., -1].all()
