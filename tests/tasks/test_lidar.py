"""The trapezoid against the original's rule, written as the loop over objects that reference section 1.1 describes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.tasks.lidar import pseudo_lidar


def loop(points, reach, bins=16):
    """The rule as it is stated: one object after the other, three bins each."""
    reading = [0.0] * bins
    width = 2 * math.pi / bins
    for forward, left in points:
        angle = math.atan2(left, forward) % (2 * math.pi)
        k = int(angle / width)
        strength = max(0.0, reach - math.hypot(forward, left)) / reach
        share = angle / width - k
        above, below = (k + 1) % bins, (k - 1) % bins
        reading[k % bins] = max(reading[k % bins], strength)
        reading[above] = max(reading[above], share * strength)
        reading[below] = max(reading[below], (1 - share) * strength)
    return reading


@pytest.mark.parametrize("reach", [3.0, 6.0])
@pytest.mark.parametrize("count", [1, 7])
def test_random_objects(x64, reach, count):
    rng = np.random.default_rng(count)
    for _ in range(200):
        points = rng.normal(scale=2.5, size=(count, 2))
        ours = pseudo_lidar(jnp.asarray(points[:, 0]), jnp.asarray(points[:, 1]), reach)
        np.testing.assert_allclose(ours, loop(points, reach), atol=1e-13)


@pytest.mark.parametrize(
    "point", [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (-1.0, -0.0), (0.0, -1.0), (1.0, -1e-12), (1.0, 1e-12), (0.0, 0.0)]
)
def test_objects_on_the_border_of_two_bins(x64, point):
    ours = pseudo_lidar(jnp.asarray([point[0]]), jnp.asarray([point[1]]), 6.0)
    np.testing.assert_allclose(ours, loop([point], 6.0), atol=1e-11)


def test_an_object_out_of_reach_is_not_seen():
    assert not pseudo_lidar(jnp.array([3.01, 0.0]), jnp.array([0.0, -7.0]), 3.0).any()


def test_the_nearer_of_two_objects_in_a_bin_counts():
    both = pseudo_lidar(jnp.array([1.0, 2.0]), jnp.array([0.2, 0.4]), 3.0)
    np.testing.assert_allclose(both, pseudo_lidar(jnp.array([1.0]), jnp.array([0.2]), 3.0), atol=1e-6)


def test_other_numbers_of_bins(x64):
    ours = pseudo_lidar(jnp.array([-0.5]), jnp.array([-0.7]), 3.0, bins=5)
    np.testing.assert_allclose(ours, loop([(-0.5, -0.7)], 3.0, bins=5), atol=1e-13)


def test_readings_are_continuous_where_an_object_changes_bins():
    angles = jnp.linspace(-0.2, 0.2, 401)
    readings = jax.vmap(lambda a: pseudo_lidar(jnp.cos(a)[None], jnp.sin(a)[None], 6.0))(angles)
    assert np.abs(np.diff(readings, axis=0)).max() < 0.003
