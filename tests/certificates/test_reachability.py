"""Avoidable sets: a closed form, rollouts of many controls, counts by hand, and FAC-SIS's indices as once measured."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.certificates import SafetyIndex, action_grid, feasible_states, reachability
from safemeta.certificates.reachability import (
    avoidable_set,
    inclusion,
    reduced_unicycle,
    unicycle_avoidable_set,
    unicycle_clearance,
    wall_avoidable_set,
    wall_clearance,
)
from safemeta.tasks.collision_avoidance import CollisionAvoidance, UnicycleState, advance


@pytest.fixture(scope="module")
def wall():
    return wall_avoidable_set()


@pytest.fixture(scope="module")
def unicycle():
    return unicycle_avoidable_set(shape=(41, 31, 16))


def braking(states, gap=0.5, acceleration=4.0):
    return states[..., 0] - gap - np.minimum(states[..., 1], 0) ** 2 / (2 * acceleration)


def test_in_front_of_a_wall_the_value_is_what_braking_leaves(wall):
    states = np.asarray(wall.states)
    exact, away = braking(states), states[..., 0] > 0.3  # beyond the wall, at the grid's border, V has no meaning
    assert np.abs(wall.values - exact)[away].max() < 0.06
    assert wall.unsettled == 0
    wrong = (np.asarray(wall.values) >= 0) != (exact >= 0)
    assert wrong.mean() < 0.003
    assert np.abs(exact[wrong]).max() < wall.spacing[0]  # all within one cell


def test_in_front_of_a_wall_with_high_accuracy():
    fine = wall_avoidable_set(acceleration=3.0, gap=0.7, accuracy="high", horizon=2.0)
    states = np.asarray(fine.states)
    exact = braking(states, 0.7, 3.0)
    assert np.abs(fine.values - exact)[states[..., 0] > 0.5].max() < 0.01
    wrong = (np.asarray(fine.values) >= 0) != (exact >= 0)
    assert np.abs(exact[wrong]).max(initial=0) < 0.01


def test_a_horizon_that_is_too_short_shows():
    assert wall_avoidable_set(horizon=0.6, shape=(41, 41)).unsettled > 0.005


def test_values_between_the_points(wall, unicycle):
    states = jnp.array([[1.234, -2.345], [2.0, 1.111], [0.777, -0.5]])
    np.testing.assert_allclose(wall.value(states), braking(np.asarray(states)), atol=0.06)
    assert np.isnan(wall.value(jnp.array([5.0, 0.0])))
    states = jnp.array([[[1.0, 2.0, 3.0]], [[1.3, 0.4, -0.2]]])
    np.testing.assert_allclose(
        unicycle.value(states), unicycle.value(states + jnp.array([0, 0, 2 * math.pi])), atol=1e-5
    )
    on_grid = unicycle.states[8, 7, 15]
    assert unicycle.value(on_grid) == pytest.approx(float(unicycle.values[8, 7, 15]), abs=1e-4)
    seam = unicycle.value(jnp.array([float(on_grid[0]), float(on_grid[1]), math.pi - unicycle.spacing[2] / 2]))
    assert seam == pytest.approx(float(unicycle.values[8, 7, 15] + unicycle.values[8, 7, 0]) / 2, abs=1e-4)


def test_the_unicycle_s_set_agrees_with_the_best_of_many_rollouts(unicycle):
    rng = np.random.default_rng(0)
    z = rng.uniform((0.55, -1.8, -math.pi), (2.0, 5.5, math.pi), (80, 3))
    head_on = rng.uniform((0.55, 2.0, math.pi - 0.4), (2.0, 5.5, math.pi + 0.4), (80, 3))
    z = np.concatenate([z, head_on])
    controls = list(itertools.product((-4.0, 4.0), (-math.pi, 0.0, math.pi)))
    plans = np.array([(*a, *b, t) for a, b, t in itertools.product(controls, controls, (0.15, 0.4, 0.8))])
    # in the plane: the obstacle at the origin, the robot on the x axis, so that psi is the heading
    x, y, v, heading = (np.tile(c[:, None], len(plans)) for c in (z[:, 0], 0 * z[:, 0], z[:, 1], z[:, 2]))
    least = x.copy()
    for step in range(160):
        first = 0.01 * step < plans[:, 4]
        v = v + 0.01 * np.where(first, plans[:, 0], plans[:, 2])
        heading = heading + 0.01 * np.where(first, plans[:, 1], plans[:, 3])
        x, y = x + 0.01 * v * np.cos(heading), y + 0.01 * v * np.sin(heading)
        least = np.minimum(least, np.hypot(x, y))
    best = least.max(1) - 0.5
    value = np.asarray(unicycle.value(jnp.asarray(z, jnp.float32)))
    clear = np.abs(best) > 0.12  # more than a cell
    assert ((best > 0) == (value >= 0))[clear].all()
    assert (best[clear] < 0).sum() >= 12
    assert (best[clear] > 0).sum() >= 50
    assert np.median(np.abs(value - best)) < 0.1


def test_the_plane_is_mapped_to_the_reduced_state(x64):
    key = jax.random.key(0)
    position = jax.random.uniform(key, (50, 2), minval=-2, maxval=2)
    speed, heading = 1.7, 2.1
    z = reduced_unicycle(position, speed, heading, (0.0, 0.6))
    x, y = position.T
    states = UnicycleState(x, y, jnp.full(50, speed), jnp.full(50, heading), jnp.full(50, 0.6))
    truth = CollisionAvoidance().clearance({}, states)
    np.testing.assert_allclose(unicycle_clearance(z), truth, atol=1e-12)
    # psi = 0 is straight away; turning left past it is positive
    np.testing.assert_allclose(reduced_unicycle(jnp.array([0.0, 2.0]), 1.0, math.pi / 2), [2, 1, 0], atol=1e-12)
    np.testing.assert_allclose(reduced_unicycle(jnp.array([2.0, 0.0]), 1.0, 0.3), [2, 1, 0.3], atol=1e-12)
    assert jnp.abs(z[:, 2]).max() <= math.pi
    # the side matters: psi' = w - (v / d) sin psi, against finite differences of the motion in the plane
    still = UnicycleState(x, y, jnp.full(50, speed), jnp.full(50, heading), jnp.full(50, 0.6))
    moved = advance(still, jnp.zeros((50, 2)))
    after = reduced_unicycle(jnp.stack([moved.x, moved.y], -1), speed, heading, (0.0, 0.6))
    far = z[:, 0] > 1
    turned = jnp.remainder(after - z + math.pi, 2 * math.pi)[:, 2] - math.pi
    middle = (z + after) / 2
    expected = -0.1 * speed / middle[:, 0] * jnp.sin(z[:, 2] + turned / 2)
    np.testing.assert_allclose(turned[far], expected[far], atol=2e-3)


def test_counts_by_hand():
    avoidable = wall_avoidable_set(shape=(7, 5), distances=(0.0, 6.0), speeds=(-2.0, 2.0), gap=0.5, horizon=0.3)
    d, v = avoidable.states[..., 0], avoidable.states[..., 1]
    avoidable = eqx.tree_at(lambda a: a.values, avoidable, jnp.where((d < 5.5) & (v < 1.5), -1.0, 1.0))
    index = SafetyIndex.named("zero", d_min=1.5)  # phi <= 0 at d = 2, 3, ... 6
    found = inclusion(index, avoidable, wall_clearance)
    assert (found.points, found.sublevel, found.unsafe, found.unsafe_inside) == (35, 25, 24, 16)
    # borders: d = 1 | 2 of phi, d = 5 | 6 and v = 1 | 2 of V; what is left is d = 3, 4 and v = -2, -1, 0
    assert found.unsafe_well_inside == 6
    assert found.unsafe_inside_share == 16 / 25
    assert found.unsafe_well_inside_share == 6 / 25
    assert (found.sublevel_share, found.unsafe_share) == (25 / 35, 24 / 35)
    found = inclusion(index, avoidable, wall_clearance, {"speed": (-1.0, 1.0), "distance": (3.0, 99.0)})
    assert (found.points, found.sublevel, found.unsafe, found.unsafe_inside, found.unsafe_well_inside) == (
        12,
        12,
        9,
        9,
        4,
    )


def test_borders_go_around_a_circle(unicycle):
    values = jnp.ones_like(unicycle.values).at[:, :, :3].set(-1.0)  # unsafe at the first three angles
    avoidable = eqx.tree_at(lambda a: a.values, unicycle, values)
    everything = SafetyIndex.named("zero", d_min=0.1)
    found = inclusion(everything, avoidable, unicycle_clearance)
    assert found.unsafe_inside == 3 * 41 * 31
    assert found.unsafe_well_inside == 41 * 31  # the middle one: before the first comes the last, which is safe


def test_what_is_refused(wall):
    index = SafetyIndex.named("zero", d_min=0.5)
    with pytest.raises(ValueError, match="did you mean 'speed'"):
        inclusion(index, wall, wall_clearance, {"sped": (0.0, 1.0)})
    with pytest.raises(ValueError, match="no grid point"):
        inclusion(index, wall, wall_clearance, {"speed": (9.0, 10.0)})
    with pytest.raises(ValueError, match="accuracy must be one of"):
        avoidable_set.__wrapped__(None, wall.grid, wall.values, wall.names, horizon=1.0, accuracy="lowest")
    with pytest.raises(ValueError, match=r"margin \(3, 3\) and names"):
        avoidable_set(reachability._double_integrator(4.0), wall.grid, jnp.zeros((3, 3)), wall.names, horizon=1.0)
    with pytest.raises(ValueError, match="horizon must exceed"):
        wall_avoidable_set(horizon=0.1)
    with pytest.raises(ValueError, match="radius must lie within"):
        unicycle_avoidable_set(radius=0.2)
    with pytest.raises(ValueError, match="ranges in order"):
        wall_avoidable_set(speeds=(1.0, -1.0))


# What another program found on the grid of 41 x 61 x 32: the share of infeasible states at speeds from 0 up to 2 and
# 4 m / s (these excluded), and of {phi <= 0} up to 2. sigma inside the power, true d', 17 x 17 actions.
MEASURED = {
    "synthesised": (0.0000, 0.0002, 0.925),
    "handcrafted": (0.0001, 0.0059, 0.903),
    "feasible": (0.0000, 0.0047, 0.939),
    "zero": (0.0063, 0.0116, 1.000),
    "initial": (0.0000, 0.0000, 0.863),
}
UNSAFE = (0.0086, 0.0185)
OUTSIDE = (0.5, 10.0)  # m: where the robot has not collided


def true_clearance(state):
    return CollisionAvoidance().clearance({}, state)


def flipped(states):
    """d' with the sign that the released code gives it left of the hazard."""
    return unicycle_clearance(states) * jnp.array([1.0, -1.0])


def infeasible_states(index, avoidable, points):
    """Reduced states outside the obstacle, at speeds from 0 up to 3.9 m / s, and which of them are infeasible."""
    z = avoidable.states.reshape(-1, 3)
    z = z[(z[:, 0] > 0.5) & (z[:, 1] > -0.01) & (z[:, 1] < 3.9)]
    states = UnicycleState(z[:, 0], 0 * z[:, 0], z[:, 1], z[:, 2], 0 * z[:, 0])
    return z, ~feasible_states(index, advance, true_clearance, states, action_grid(2, points)).feasible


def infeasible_shares(index, avoidable, points):
    """At speeds up to 1.9 and 3.9 m / s."""
    z, infeasible = infeasible_states(index, avoidable, points)
    return [float(infeasible[z[:, 1] < fastest].mean()) for fastest in (1.9, 3.9)]


def compare(name, avoidable, points, tolerance):
    """`tolerance`: of infeasible, sublevel and unsafe shares."""
    index = SafetyIndex.named(name, d_min=0.5, sigma_form="inside")
    *infeasible, sublevel = MEASURED[name]
    np.testing.assert_allclose(infeasible_shares(index, avoidable, points), infeasible, atol=tolerance[0])
    for fastest, unsafe in zip((1.9, 3.9), UNSAFE, strict=True):
        ranges = {"distance": OUTSIDE, "speed": (0.0, fastest)}
        found = inclusion(index, avoidable, unicycle_clearance, ranges)
        assert found.unsafe_share == pytest.approx(unsafe, abs=tolerance[2])
        if fastest == 1.9:
            assert found.sublevel_share == pytest.approx(sublevel, abs=tolerance[1])
        # only the index without d' calls states safe that are not
        assert found.unsafe_inside == (found.unsafe if name == "zero" else 0)
        wrong = inclusion(index, avoidable, flipped, ranges)
        assert wrong.unsafe_inside == wrong.unsafe  # all of them, with the wrong sign
        assert name == "zero" or wrong.unsafe_well_inside > 0


@pytest.mark.parametrize("name", MEASURED)
def test_infeasible_and_unsafe_shares_on_a_coarse_grid(unicycle, name):
    compare(name, unicycle, 9, (0.002, 0.005, 0.004))


@pytest.fixture(scope="module")
def fine():
    return unicycle_avoidable_set()


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_infeasible_and_unsafe_shares_on_the_full_grid(fine, name):
    """The table of docs/certificates.md: `-s` prints it."""
    assert fine.unsettled == 0
    for form in ("outside", "inside"):
        index = SafetyIndex.named(name, d_min=0.5, sigma_form=form)
        for fastest, infeasible in zip((1.9, 3.9), infeasible_shares(index, fine, 17), strict=True):
            ranges = {"distance": OUTSIDE, "speed": (0.0, fastest)}
            right = inclusion(index, fine, unicycle_clearance, ranges)
            wrong = inclusion(index, fine, flipped, ranges)
            print(
                f"\n{name} {form} v<={fastest}: infeasible {infeasible:.4f} phi<=0 {right.sublevel_share:.3f} unsafe"
                f" {right.unsafe_share:.4f}, inside {right.unsafe_inside_share:.4f}, well inside"
                f" {right.unsafe_well_inside_share:.4f}; wrong sign: {wrong.unsafe_inside_share:.4f}, well inside"
                f" {wrong.unsafe_well_inside_share:.4f}",
                end="",
            )
        z, infeasible = infeasible_states(index, fine, 17)
        low, lost = index.index(unicycle_clearance(z)) <= 0, fine.value(z) < 0
        print(f"\n  infeasible: {infeasible.sum()}, with phi <= 0: {(infeasible & low).sum()}", end="")
        print(f", not avoidable: {(infeasible & lost).sum()}", end="")
    compare(name, fine, 17, (0.0001, 0.0006, 0.0001))


def test_the_handcrafted_index_is_within_the_avoidable_set_but_not_feasible_at_high_speed(unicycle):
    handcrafted, initial = (SafetyIndex.named(name, d_min=0.5) for name in ("handcrafted", "initial"))
    assert inclusion(handcrafted, unicycle, unicycle_clearance, {"distance": OUTSIDE}).unsafe_inside == 0
    slow, fast = infeasible_shares(handcrafted, unicycle, 9)
    assert slow < 0.001
    assert fast > 0.003
    assert infeasible_shares(initial, unicycle, 9) == [0, 0]


@pytest.mark.slow
def test_the_example_runs(load_example, capsys):
    load_example("safety_index").main("zero", shape=(41, 31, 16))
    shown = capsys.readouterr().out
    assert "phi = -0.501" in shown  # 0.5 - |(0.05, 1)|
    assert "the filter takes (1.00, 0.00)" in shown  # phi_0 sees no danger before it is too late
    assert "states with phi <= 0: 100.0%; from which a collision is inevitable:" in shown
