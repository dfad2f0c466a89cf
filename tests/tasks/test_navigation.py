"""Navigation: layouts without overlaps, what is paid and seen by hand, and the closed form against MuJoCo."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.sim.batched import BatchedWorld
from safemeta.sim.failures import SimulationError
from safemeta.sim.mujoco import MujocoSimulator, engine_of
from safemeta.tasks import make
from safemeta.tasks.button import PAUSE, Button
from safemeta.tasks.circle_scene import Circle
from safemeta.tasks.goal import GOALS, Goal
from safemeta.tasks.layout import AWAY, sample_layout
from safemeta.tasks.navigation import SETTINGS, NavigationFamily, Varying, crowding
from safemeta.tasks.robots import Body, Car, Point
from safemeta.tasks.scene import MujocoScene, PointScene, SceneState

OBSERVATIONS = {  # sizes as published, where published
    "car-circle-hazard": 56,
    "car-circle-hazard-meta-cpo": 56,
    "point-button": 60,
    "point-button-meta-cpo": 60,
    "hazards-0.15-goal": 44,
    "pillars-0.15-goal": 44,
    "hazards-0.15-push": 60,
    "point-goal-1": 44,
    "car-goal-1": 56,
    "car-circle-1": 40,
    "point-push-1": 76,
}


def body(x, y, speed=(0.0, 0.0), yaw=0.0):
    """A robot standing or moving on the floor."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    rotation = jnp.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return Body(jnp.array([x, y, 0.1]), jnp.array(speed), rotation, jnp.zeros(12))


@pytest.mark.parametrize(("name", "size"), OBSERVATIONS.items())
def test_sizes_of_observations(name, size):
    assert make(name).cmdp.observation_size == size


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_laid_out(name):
    setting = SETTINGS[name]
    assert crowding(setting, "train", 30) == 0.0
    assert crowding(setting, "test", 30) == 0.0


def test_layouts_keep_their_distances_and_their_squares():
    keepout, half = jnp.array([0.4, 0.2, 0.2, 0.3]), jnp.array([1.0, 1.0, 0.9, 1.0])
    fixed, present = jnp.array([[0.0, 0.0], [0.5, 0.0]]), jnp.array([True, True, False, True])
    draw = jax.vmap(lambda key: sample_layout(key, half, keepout, present, fixed, jnp.array([0.1, 0.0])))
    places, found = draw(jax.random.split(jax.random.key(0), 500))
    assert found.all()
    assert np.all(places[:, 2] == AWAY)
    kept, radii = np.asarray(places)[:, [0, 1, 3]], np.array([0.4, 0.2, 0.3])
    assert np.all(np.abs(kept) <= (np.array([1.0, 1.0, 1.0]) - radii)[:, None] + 1e-6)
    everything = np.concatenate([np.broadcast_to(fixed, (500, 2, 2)), kept], axis=1)
    reach = np.array([0.1, 0.0, *radii])
    apart = np.linalg.norm(everything[:, :, None] - everything[:, None], axis=-1)
    for first in range(5):
        for second in range(max(first + 1, 2), 5):
            assert apart[:, first, second].min() >= reach[first] + reach[second] - 1e-6
    # Uniform where it may be: the first object of these keeps 0.5 m from the origin and lies within 0.6 m of the axes.
    assert abs(kept[:, 0].mean(0)[1]) < 0.05


def test_a_layout_that_does_not_fit_is_not_found_and_is_reported():
    original = SETTINGS["car-circle-hazard-meta-cpo"]
    most = (Varying("hazards", (12, 12), (12, 12)), Varying("extent", (1.4, 1.4), (1.4, 1.4)))
    scene = Circle(most_hazards=12, hazard_keepout=0.4)
    assert crowding(replace(original, scene=scene, varying=(*original.varying[:2], *most)), "train", 2) == 1.0
    setting = SETTINGS["car-circle-hazard"]
    scene = MujocoScene(Car(), Circle(most_hazards=7, hazard_keepout=0.9))
    world = make("car-circle-hazard", horizon=2)
    broken = BatchedWorld(world.cmdp, MujocoSimulator(scene), NavigationFamily(setting.varying, 10.0, 10.0))
    from safemeta.nets import GaussianPolicy

    policy = GaussianPolicy.create(56, 2, jax.random.key(0), hidden=(4,))
    with pytest.raises(SimulationError, match="task"):
        broken.collect(policy, broken.sample(jax.random.key(0), 2), jax.random.key(1), 1)


def test_families_cover_their_ranges_with_whole_counts():
    family = NavigationFamily(SETTINGS["car-circle-hazard-meta-cpo"].varying, 10.0, 5.0)
    for split, counts, radius, limit in (("train", (3, 7), (0.7, 1.0), 10.0), ("test", (7, 12), (1.2, 1.5), 5.0)):
        tasks = family.sample(jax.random.key(1), 2000, split)
        hazards = np.asarray(tasks.parameters["hazards"])
        assert set(hazards) == set(range(counts[0], counts[1] + 1))
        shares = np.bincount(hazards.astype(int))[counts[0] :] / 2000
        np.testing.assert_allclose(shares, 1 / len(shares), atol=0.04)
        assert radius[0] <= tasks.parameters["radius"].min() < tasks.parameters["radius"].max() <= radius[1]
        assert np.all(tasks.limits == limit)
        scale = tasks.parameters["wall"] / tasks.parameters["radius"]
        assert 0.55 <= scale.min() <= scale.max() <= 0.75
    inside = family.sample(jax.random.key(2), 100).descriptor
    assert np.abs(inside).max() <= 1 + 1e-6
    hardest = family.corners()[:1]
    assert hardest.parameters["hazards"] == 7
    assert hardest.parameters["radius"] == pytest.approx(0.7)
    with pytest.raises(ValueError, match="unknown split"):
        family.sample(jax.random.key(0), 1, "tset")


def test_circle_costs_by_hand():
    scene = Circle(most_hazards=2, hazard_size=0.12, walls=2)
    state = SceneState({"hazards": jnp.array([[0.5, 0.0], [AWAY, AWAY]])}, {})
    parameters = {"radius": jnp.array(1.0), "wall": jnp.array(0.8)}
    for place, expected in (
        ((0.5, 0.119), [0.0, 1.0]),
        ((0.5, 0.121), [0.0, 0.0]),
        ((-0.81, 0.0), [1.0, 0.0]),
        ((0.0, 0.9), [0.0, 0.0]),
    ):
        _, reward, costs = scene.step(parameters, state, body(*place, speed=(0.0, 1.0)), {})
        assert costs.tolist() == expected
        rho = np.hypot(*place)
        assert reward == pytest.approx(0.1 * place[0] / rho / (1 + abs(rho - 1.0)), abs=1e-6)
    _, _, costs = replace(scene, walls=4).step(parameters, state, body(0.0, 0.9), {})
    assert costs.tolist() == [1.0, 0.0]


def press(*touched):
    return {f"touched_button{index}": jnp.array([float(value)]) for index, value in enumerate(touched)}


def test_a_press_pays_once_lights_another_and_pauses():
    scene = Button(3, 1)
    parameters = {"buttons": jnp.array(3.0), "hazards": jnp.array(1.0), "extent": jnp.array(2.0)}
    state, _, found = scene.reset(parameters, jax.random.key(0))
    assert found
    places = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    memory = {**state.memory, "goal": jnp.array(0, jnp.int32)}
    state = SceneState({"buttons": places, "hazards": jnp.array([[0.0, -1.0]])}, memory)
    state = scene.begin(parameters, state, body(0.0, 0.0), {})
    assert state.memory["distance"] == 1.0
    # Closer to the lit one, a wrong one touched.
    state, reward, costs = scene.step(parameters, state, body(0.25, 0.0), press(0, 1, 0))
    assert (reward, costs.tolist()) == (pytest.approx(0.25), [1.0, 0.0])
    lit_before = scene.look(parameters, state, body(0.25, 0.0), {})
    assert lit_before[:16].max() > 0
    # The lit one touched: the bonus, and ten dark steps in which no press is wrong.
    state, reward, costs = scene.step(parameters, state, body(1.0, 0.0), press(1, 0, 0))
    assert (reward, costs.tolist()) == (pytest.approx(1.75), [0.0, 0.0])
    goal = int(state.memory["goal"])
    wrong = press(*[index != goal for index in range(3)])
    for left in range(PAUSE, 0, -1):
        assert state.memory["timer"] == left
        seen = scene.look(parameters, state, body(1.0, 0.0), {})
        assert seen[:16].max() == 0
        state, _, costs = scene.step(parameters, state, body(1.0, 0.0), wrong)
        assert costs[0] == 0
    _, _, costs = scene.step(parameters, state, body(0.0, -0.9), wrong)
    assert costs.tolist() == [1.0, 1.0]


def test_lit_buttons_are_uniform_and_only_those_that_are_there():
    scene = Button(5, 0)
    parameters = {"buttons": jnp.array(3.0), "hazards": jnp.array(0.0), "extent": jnp.array(2.0)}
    keys = jax.random.split(jax.random.key(0), 3000)
    goals = jax.vmap(lambda key: scene.reset(parameters, key)[0].memory["goal"])(keys)
    np.testing.assert_allclose(np.bincount(goals), 1000, atol=120)


def test_a_goal_that_is_reached_pays_and_moves_out_of_reach():
    scene = Goal(most_hazards=4)
    parameters = {"extent": jnp.array(1.5), "hazards": jnp.array(4.0)}
    state, start, _ = scene.reset(parameters, jax.random.key(3))
    state = scene.begin(parameters, state, body(start.x, start.y), {})
    for _ in range(3 * GOALS):
        goal = state.memory["goal"]
        before = state.memory["distance"]
        standing = body(goal[0] + 0.29, goal[1])
        state, reward, _ = scene.step(parameters, state, standing, {})
        assert reward == pytest.approx(float(before) - 0.29 + 1, abs=1e-5)
        moved = state.memory["goal"]
        assert np.hypot(*(moved - standing.position[:2])) >= 0.4 + 0.305
        assert np.abs(moved).max() <= 1.5 - 0.305
        apart = np.linalg.norm(state.objects["hazards"] - moved, axis=1)
        assert apart.min() >= 0.18 + 0.305 - 1e-6
    away = body(state.memory["goal"][0] + 0.31, state.memory["goal"][1])
    stayed, _, _ = scene.step(parameters, state, away, {})
    np.testing.assert_array_equal(stayed.memory["goal"], state.memory["goal"])


def test_graded_hazards_cost_their_depth_and_clearance_has_its_rate():
    scene = Goal(most_hazards=2, hazard_size=0.3, graded=True)
    parameters = {"extent": jnp.array(2.0), "hazards": jnp.array(2.0)}
    state, _, _ = scene.reset(parameters, jax.random.key(0))
    objects = {**state.objects, "hazards": jnp.array([[0.0, 0.0], [0.1, 0.0]])}
    state = SceneState(objects, state.memory)
    robot = body(0.2, 0.0, speed=(0.3, 0.4))
    _, _, costs = scene.step(parameters, state, robot, {})
    assert costs.tolist() == [pytest.approx(0.1 + 0.2)]
    moved = body(0.2 + 0.3e-3, 0.4e-3)
    clearance, after = scene.clearance(state, robot), scene.clearance(state, moved)
    np.testing.assert_allclose(clearance[:, 0], [0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose((after[:, 0] - clearance[:, 0]) / 1e-3, clearance[:, 1], atol=2e-3)


def test_pushing_pays_for_the_box_and_touching_a_pillar_costs():
    scene = Goal(most_pillars=1, push=True)
    parameters = {"extent": jnp.array(2.0), "pillars": jnp.array(1.0)}
    state, _, _ = scene.reset(parameters, jax.random.key(0))
    memory = {**state.memory, "goal": jnp.array([2.0, 0.0])}
    state = SceneState(state.objects, memory)

    def reading(x, contacts=0.0):
        return {"box": jnp.array([x, 0.0, 0.2]), "touched_pillar0": jnp.array([contacts])}

    state = scene.begin(parameters, state, body(0.0, 0.0), reading(1.0))
    _, reward, costs = scene.step(parameters, state, body(0.5, 0.0), reading(1.2, 2.0))
    robot_to_box = np.hypot(1.0, 0.1) - np.hypot(0.7, 0.1)
    box_to_goal = np.hypot(1.0, 0.04) - np.hypot(0.8, 0.04)
    assert reward == pytest.approx(robot_to_box + box_to_goal, abs=1e-5)
    assert costs.tolist() == [1.0]


@pytest.mark.parametrize("scene", [Goal(most_hazards=3), Circle(), Circle(most_hazards=3)])
def test_the_closed_form_is_the_mujoco_model(x64, scene):
    rows = 6
    parameters = {
        name: jnp.full(rows, value)
        for name, value in (("extent", 1.5), ("hazards", 3.0), ("radius", 1.2), ("wall", 0.8))
    }
    closed, physical = PointScene(scene), MujocoSimulator(MujocoScene(Point(), scene))
    keys = jax.random.split(jax.random.key(0), rows)
    state, seen = jax.vmap(closed.reset)(parameters, keys)
    other, other_seen = physical.reset(parameters, keys, 1)
    np.testing.assert_allclose(seen, other_seen, atol=1e-9)
    for step in range(12):
        action = jax.random.normal(jax.random.key(step), (rows, 2))
        state, ours = jax.vmap(closed.step)(parameters, state, action)
        other, theirs = physical.step(parameters, other, action, jnp.ones(rows, bool))
        np.testing.assert_allclose(ours.reward, theirs.reward, atol=1e-9)
        np.testing.assert_array_equal(ours.costs, theirs.costs)
        np.testing.assert_allclose(ours.observation, theirs.observation, atol=1e-6)
    physical.finish(other)


def test_unused_buttons_are_out_of_the_way():
    scene = MujocoScene(Point(), Button(6, 2))
    parameters = {"buttons": jnp.array([2.0]), "hazards": jnp.array([1.0]), "extent": jnp.array([2.0])}
    simulator = MujocoSimulator(scene)
    state, seen = simulator.reset(parameters, jax.random.split(jax.random.key(0), 1), 1)
    assert np.isfinite(seen).all()
    solids = jax.vmap(scene.scene.solids)(state.task)[0]
    assert (np.abs(solids[:, 0]) < 3).sum() == 2
    assert (solids[2:, 0] == AWAY).all()
    simulator.finish(state)
    assert engine_of(scene).model.nmocap == 6


@pytest.mark.parametrize("name", ["car-circle-hazard", "point-button", "hazards-0.15-push", "pillars-0.30-goal"])
def test_a_world_on_mujoco_runs_and_is_repeatable(name):
    from safemeta.nets import GaussianPolicy

    world = make(name, horizon=4)
    policy = GaussianPolicy.create(world.cmdp.observation_size, 2, jax.random.key(0), hidden=(4,))
    tasks = world.sample(jax.random.key(1), 2)
    first = world.collect(policy, tasks, jax.random.key(2), 2)
    again = world.collect(policy, tasks, jax.random.key(2), 2)
    assert first.observation.shape == (2, 2, 4, world.cmdp.observation_size)
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert np.isfinite(ours).all()
