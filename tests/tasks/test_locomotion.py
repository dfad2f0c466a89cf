"""Locomotion beside Gymnasium's own environments, step by step; costs, goals and ends by their definitions."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.sim.mujoco import Placement, engine_of
from safemeta.tasks import locomotion, make
from safemeta.tasks.locomotion import HalfCheetah, Hopper, Humanoid, Swimmer

pytest.importorskip("imageio", reason="Gymnasium does not import its MuJoCo environments without it")
ORIGINALS = {
    HalfCheetah: ("half_cheetah_v5", "HalfCheetahEnv"),
    Humanoid: ("humanoid_v4", "HumanoidEnv"),
    Hopper: ("hopper_v5", "HopperEnv"),
    Swimmer: ("swimmer_v5", "SwimmerEnv"),
}
PARAMETERS = {"goal_velocity": 0.7, "direction": 0.3, "noise_variance": 0.4, "cost_weight": 0.8}
STEPS = 60


def original(robot):
    module, name = ORIGINALS[robot]
    return getattr(importlib.import_module(f"gymnasium.envs.mujoco.{module}"), name)()


def parameters():
    return {name: jnp.asarray(value) for name, value in PARAMETERS.items()}


@pytest.fixture(scope="module", params=ORIGINALS, ids=lambda robot: robot.__name__)
def episode(request):
    """The same actions from the same state in Gymnasium's environment and in ours."""
    robot = request.param()
    theirs = original(request.param)
    seen = [theirs.reset(seed=1)[0]]
    qpos, qvel = theirs.unwrapped.data.qpos.copy(), theirs.unwrapped.data.qvel.copy()
    engine, ours, infos, ended = engine_of(robot), [], [], []
    with jax.enable_x64(True):
        given = parameters()
        state, _ = robot.reset(given, jax.random.key(0))
        session, reading = engine.start(Placement(qpos[None], qvel[None], np.zeros((1, 0, 3))))

        def read(values):
            return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), engine.named(values))

        state, first = jax.jit(robot.begin)(given, state, read(reading))
        step, command = jax.jit(robot.step), jax.jit(robot.command)
        rng, action = np.random.default_rng(0), 0.0
        for _ in range(STEPS):
            action = 0.8 * action + 0.6 * rng.uniform(-1.2, 1.2, robot.action_size)  # smooth, at times out of range
            order = command(given, state, jnp.asarray(action))
            kick = None if order.kick is None else np.asarray(order.kick)[None]
            reading = engine.advance(session, np.asarray(order.ctrl)[None], kick, np.ones(1, bool))
            state, result = step(given, state, read(reading), jnp.asarray(action))
            if kick is not None:
                theirs.data.qvel[:] += kick[0]
            observation, _, terminated, _, info = theirs.step(np.asarray(order.ctrl))
            seen.append(observation)
            infos.append(info | {"control": np.sum(np.square(theirs.data.ctrl)), "qpos": theirs.data.qpos.copy()})
            ended.append(terminated)
            ours.append(jax.device_get(result))
        engine.finish(session)
    theirs.close()
    return robot, np.asarray(first), np.array(seen), ours, infos, np.array(ended)


def test_observations_and_ends_equal_gymnasium(episode):
    robot, first, seen, ours, _, ended = episode
    assert (
        seen.shape[1] == robot.observation_size == {HalfCheetah: 17, Humanoid: 376, Hopper: 11, Swimmer: 8}[type(robot)]
    )
    np.testing.assert_allclose(first, seen[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose([step.observation for step in ours], seen[1:], rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal([step.terminated for step in ours], ended)
    assert ended.any() == isinstance(robot, Humanoid | Hopper)
    assert not ended[:3].any()


def test_rewards_and_costs_are_those_of_gymnasiums_velocities_and_controls(episode):
    robot, _, _, ours, infos, _ = episode
    velocity, control = (np.array([info[name] for info in infos]) for name in ("x_velocity", "control"))
    reward = -np.abs(velocity - PARAMETERS["goal_velocity"])
    if isinstance(robot, Humanoid):
        sideways = np.array([info["y_velocity"] for info in infos])
        reward = velocity * np.cos(PARAMETERS["direction"]) + sideways * np.sin(PARAMETERS["direction"])
    np.testing.assert_allclose([step.reward for step in ours], reward, rtol=0, atol=1e-9)
    costs = np.array([step.costs[0] for step in ours])
    if isinstance(robot, HalfCheetah):
        model = locomotion.load_model(robot.file)
        assert (costs == 0).any()
        assert (costs > 0).any()
        for cost, info in zip(costs, infos, strict=True):
            np.testing.assert_allclose(cost, max(0.0, head_height(model, info["qpos"]) - robot.head), atol=1e-9)
    else:
        np.testing.assert_allclose(costs, (0.8 if isinstance(robot, Swimmer) else 1.0) * control, rtol=0, atol=1e-9)
        assert costs.max() <= robot.action_size * (0.16 if isinstance(robot, Humanoid) else 1.0) + 1e-9


def head_height(model, qpos):
    import mujoco

    data = mujoco.MjData(model)
    data.qpos = qpos
    mujoco.mj_kinematics(model, data)
    return data.geom("head").xpos[2]


def test_the_cheetahs_head_limit_is_its_height_at_rest():
    import mujoco

    model = locomotion.load_model(HalfCheetah.file)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 2000)
    assert np.abs(data.qvel).max() < 1e-6
    assert data.geom("head").xpos[2] == pytest.approx(HalfCheetah().head, abs=1e-3)


@pytest.mark.parametrize("robot", ORIGINALS, ids=lambda robot: robot.__name__)
def test_initial_states_are_spread_as_gymnasiums(robot):
    theirs = original(robot)
    places, speeds = [], []
    for seed in range(300):
        theirs.reset(seed=seed)
        places.append(theirs.data.qpos.copy())
        speeds.append(theirs.data.qvel.copy())
    theirs.close()
    _, placement = jax.vmap(robot().reset, (None, 0))(parameters(), jax.random.split(jax.random.key(0), 300))
    for ours, gymnasiums in ((placement.qpos, np.array(places)), (placement.qvel, np.array(speeds))):
        spread = gymnasiums.std(0).mean()
        np.testing.assert_allclose(ours.mean(0), gymnasiums.mean(0), atol=0.4 * spread)
        np.testing.assert_allclose(ours.std(0), gymnasiums.std(0), atol=0.25 * spread)
        assert np.abs(ours - gymnasiums.mean(0)).max() == pytest.approx(
            np.abs(gymnasiums - gymnasiums.mean(0)).max(), rel=0.4
        )


def test_the_water_of_each_swimmer_has_its_own_restlessness():
    swimmer = Swimmer()
    base = parameters()
    still = base | {"noise_variance": jnp.asarray(0.0)}
    state, _ = swimmer.reset(base, jax.random.key(0))
    assert not swimmer.command(still, state, jnp.zeros(2)).kick.any()
    kicks, reading = [], {"qpos": jnp.zeros(5), "qvel": jnp.zeros(5)}
    state, _ = swimmer.begin(base, state, reading)
    step, command = jax.jit(swimmer.step), jax.jit(swimmer.command)
    for _ in range(400):
        kicks.append(command(base, state, jnp.zeros(2)).kick)
        state, _ = step(base, state, reading, jnp.zeros(2))
    np.testing.assert_allclose(np.std(kicks), swimmer.ripple * np.sqrt(PARAMETERS["noise_variance"]), rtol=0.05)
    assert abs(np.corrcoef(np.array(kicks)[:-1, 0], np.array(kicks)[1:, 0])[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("name", "sizes", "limit", "spans"),
    [
        ("half-cheetah", (17, 6), 10.0, {"goal_velocity": (0, 2)}),
        ("humanoid", (376, 17), 20.0, {"direction": (0, np.pi / 2)}),
        ("hopper", (11, 3), 5.0, {"goal_velocity": (0, 1)}),
        ("swimmer", (8, 2), 5.0, {"goal_velocity": (0, 1), "noise_variance": (0, 0.5), "cost_weight": (0.5, 1)}),
    ],
)
def test_families_are_those_of_the_paper(name, sizes, limit, spans):
    world = make(name)
    cmdp = world.cmdp
    assert ((cmdp.observation_size, cmdp.action_size), cmdp.limits, cmdp.horizon) == (sizes, (limit,), 200)
    tasks = world.sample(jax.random.key(0), 400)
    assert set(tasks.parameters) == set(spans)
    for parameter, (low, high) in spans.items():
        drawn = tasks.parameters[parameter]
        assert low <= drawn.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < drawn.max() <= high
    np.testing.assert_allclose(np.abs(tasks.descriptor).max(0), 1, atol=0.05)
    corners = world.corners()
    assert corners.count == 2 ** len(spans)
    np.testing.assert_allclose(corners.descriptor[0], 1)
    with pytest.raises(ValueError, match="unknown split"):
        world.sample(jax.random.key(0), 1, "tset")


@pytest.mark.parametrize("name", locomotion.SETTINGS)
def test_episodes_are_collected_and_repeat(name):
    class Still:
        def act(self, observation, key):
            return jnp.zeros(world.cmdp.action_size), jnp.zeros(())

    world = make(name, horizon=5)
    tasks = world.sample(jax.random.key(0), 2)
    first, second = (world.collect(Still(), tasks, jax.random.key(1), 2) for _ in range(2))
    assert first.observation.shape == (2, 2, 5, world.cmdp.observation_size)
    assert np.isfinite(first.observation).all()
    np.testing.assert_array_equal(first.observation, second.observation)
    assert np.unique(first.observation[:, :, -1, 0]).size == 4
