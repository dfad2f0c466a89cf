"""Point mass: dynamics against plain Python, signals by hand, distributions, and that the obstacle is in the way."""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.tasks import make
from safemeta.tasks.point_mass import PointMass, PointMassFamily, PointMassRange, PointMassState, advance

STANDARD = {name: span[0] for name, span in PointMassRange().spans().items()}


def task(**changes):
    return {name: jnp.asarray(value) for name, value in (STANDARD | changes).items()}


def state(x, y, u=0.0, v=0.0):
    return PointMassState(jnp.array([x, y]), jnp.array([u, v]))


def test_motion_is_that_of_a_plain_loop(x64):
    rng = np.random.default_rng(0)
    x, y, u, v = -1.5, -1.4, 0.0, 0.0
    now, capped = state(x, y), 0
    for _ in range(100):
        action = rng.uniform(-0.5, 1.5, 2)
        u, v = (s + 0.1 * min(max(a, -1.0), 1.0) for s, a in zip((u, v), action, strict=True))
        speed = math.hypot(u, v)
        if speed > 1:
            u, v, capped = u / speed, v / speed, capped + 1
        x, y = x + 0.1 * u, y + 0.1 * v
        now = advance(now, jnp.asarray(action))
        np.testing.assert_allclose([*now.position, *now.velocity], [x, y, u, v], rtol=1e-12)
    assert 10 < capped < 100


def test_the_reward_can_be_differentiated_from_rest(x64):
    def after_three(actions):
        now = state(-1.5, -1.4)
        for action in actions:
            now, step = PointMass().step(task(), now, action)
        return step.reward

    actions = jnp.zeros((3, 2))
    gradient = jax.grad(after_three)(actions)
    for i, j in np.ndindex(3, 2):
        nudge = jnp.zeros((3, 2)).at[i, j].set(1e-6)
        slope = (after_three(actions + nudge) - after_three(actions - nudge)) / 2e-6
        assert gradient[i, j] == pytest.approx(float(slope), abs=1e-8)
    assert (gradient[0] > gradient[2]).all()


@pytest.mark.parametrize(
    ("x", "y", "reward", "costs"),
    [
        (1.5, 1.5, 0.0, (0, 0)),
        (1.5, -1.5, -3.0, (0, 0)),
        (0.3, 0.39, -math.hypot(1.2, 1.11), (0, 1)),
        (0.3, 0.41, -math.hypot(1.2, 1.09), (0, 0)),
        (-2.01, 0.0, -math.hypot(3.51, 1.5), (1, 0)),
        (0.0, 2.01, -math.hypot(1.5, 0.51), (1, 0)),
        (1.99, -1.99, -math.hypot(0.49, 3.49), (0, 0)),
    ],
)
def test_reward_and_costs_by_hand(x, y, reward, costs):
    _, step = PointMass().step(task(), state(x, y), jnp.zeros(2))
    assert step.reward == pytest.approx(reward, abs=1e-6)
    assert tuple(step.costs.tolist()) == costs
    np.testing.assert_allclose(step.observation, [x, y, 0, 0], rtol=1e-6)


def test_signals_are_those_of_the_new_position():
    _, step = PointMass().step(task(), state(1.95, 0.0, 1.0, 0.0), jnp.zeros(2))
    assert step.costs.tolist() == [1, 0]
    np.testing.assert_allclose(step.observation, [2.05, 0, 1, 0], rtol=1e-6)


def test_the_task_moves_goal_and_obstacle_and_is_not_seen():
    moved = task(goal_x=0.0, goal_y=-1.0, obstacle_x=1.0, obstacle_y=1.0, radius=0.2, half_width=1.0)
    _, step = PointMass().step(moved, state(1.1, 1.1), jnp.zeros(2))
    assert step.reward == pytest.approx(-math.hypot(1.1, 2.1), rel=1e-6)
    assert step.costs.tolist() == [1, 1]


class Straight(eqx.Module):
    """Full acceleration along the diagonal."""

    def act(self, observation, key):
        return jnp.ones(2), jnp.zeros(())


def test_the_straight_way_breaks_the_limit_on_the_obstacle():
    world = make("point-mass")
    performance = world.measure(Straight(), world.corners(), jax.random.key(0), 16)
    # It takes 10 steps to be in the middle of the obstacle's 1 m at 0.1 m a step, about 20 steps after the start.
    assert 6 < performance.costs[0, :, 1].mean() < 10
    assert world.cmdp.limits == (1.0, 2.0)


def test_the_straight_way_then_leaves_the_arena():
    world = make("point-mass")
    world = replace(world, cmdp=replace(world.cmdp, limit_on="undiscounted"))
    trajectory = world.collect(Straight(), world.corners(), jax.random.key(0), 4)
    along = np.asarray(trajectory.observation[..., 1:, :2])
    np.testing.assert_array_equal(trajectory.costs[..., :-1, 0], (np.abs(along).max(-1) > 2).astype(float))
    assert trajectory.costs[..., 0].sum() > 0
    start = np.asarray(trajectory.observation[..., 0, :])
    assert np.abs(start[..., :2] + 1.5).max() <= 0.1 + 1e-6
    assert not start[..., 2:].any()


def test_ranges_splits_and_corners():
    family = PointMassFamily(PointMassRange(radius=(0.3, 0.7)), PointMassRange(radius=(0.8, 1.0), goal_x=(0.0, 1.0)))
    for split, low, high in (("train", 0.3, 0.7), ("validation", 0.3, 0.7), ("test", 0.8, 1.0)):
        tasks = family.sample(jax.random.key(0), 2000, split)
        radius = np.asarray(tasks.parameters["radius"])
        np.testing.assert_allclose(
            [radius.min(), radius.max(), radius.mean()], [low, high, (low + high) / 2], atol=0.02
        )
        assert tasks.limits.shape == (2000, 2)
        if split == "train":
            np.testing.assert_allclose(tasks.descriptor[:, 1], (radius - 0.5) / 0.2, atol=1e-4)
            assert not tasks.descriptor[:, jnp.array([0, 2, 3, 4, 5])].any()
    corners = family.corners()
    np.testing.assert_allclose(corners.parameters["radius"], [0.7, 0.3], rtol=1e-6)
    assert make("point-mass").corners().count == 1
    with pytest.raises(ValueError, match=r"^unknown split 'x'; choose one of train, validation, test$"):
        family.sample(jax.random.key(0), 1, "x")


@pytest.mark.parametrize(
    "ranges", [{"radius": (-0.1, 0.5)}, {"half_width": (0.0, 1.0)}, {"goal_x": (2.0, 1.0)}, {"goal_y": (0.0, math.inf)}]
)
def test_impossible_ranges_are_refused(ranges):
    with pytest.raises(ValueError, match="must"):
        PointMassRange(**ranges)
