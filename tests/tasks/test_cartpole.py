"""Cartpole against MuJoCo step by step, stops included; reward and constraints against formulas by hand."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.tasks import cartpole, make
from safemeta.tasks.cartpole import Cartpole, CartpoleFamily, CartpoleRange, CartpoleState

MODEL = """
<mujoco>
  <option timestep="0.01" integrator="RK4"><flag contact="disable"/></option>
  <worldbody>
    <body name="cart">
      <joint name="slider" type="slide" axis="1 0 0" damping="{slider_damping}"
             range="-1.8 1.8" limited="true" solreflimit="0.08 1"/>
      <geom type="box" size="0.2 0.15 0.1" mass="1"/>
      <body name="pole">
        <joint type="hinge" axis="0 1 0" damping="{hinge_damping}"/>
        <geom type="capsule" fromto="0 0 0 0 0 {pole_length}" size="0.045" mass="{mass}"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slider" gear="10" ctrlrange="-1 1" ctrllimited="true"/></actuator>
</mujoco>
"""
STANDARD = {name: span[0] for name, span in CartpoleRange().spans().items()}
HEAVY = STANDARD | {"pole_length": 2.3, "pole_density": 0.8, "slider_damping": 1.5, "hinge_damping": 0.1}
ALL = ("slider_pos", "slider_accel", "balance_velocity")


def task(**changes):
    return {name: jnp.asarray(value) for name, value in (STANDARD | changes).items()}


def state(position=0.0, angle=0.0, velocity=0.0, angular_velocity=0.0, control=0.0):
    return CartpoleState(*(jnp.asarray(v) for v in (position, angle, velocity, angular_velocity, control)))


def random_rows(count, beyond):
    """States and actions, actions beyond their bounds too; `beyond`: at a stop, entering and leaving it."""
    rng = np.random.default_rng(7)
    x = rng.uniform(-1.75, 1.75, count)
    if beyond:
        x = np.sign(x) * (1.8 + rng.uniform(-0.003, 0.02, count))
    places = np.column_stack([x, rng.uniform(-7, 7, count)])
    return places, rng.normal(0, (2.0, 8.0), (count, 2)), rng.uniform(-1.2, 1.2, (count, 1))


@pytest.mark.parametrize("parameters", [STANDARD, HEAVY], ids=["standard", "heavy"])
@pytest.mark.parametrize("beyond", [False, True], ids=["rail", "stops"])
def test_every_step_is_mujocos(x64, parameters, beyond):
    mujoco = pytest.importorskip("mujoco")
    mass = parameters["pole_density"] * parameters["pole_length"]
    model = mujoco.MjModel.from_xml_string(MODEL.format(mass=mass, **parameters))
    data = mujoco.MjData(model)
    places, speeds, actions = random_rows(400, beyond)
    expected, reached, pushed = [], [], 0
    for place, speed, action in zip(places, speeds, actions, strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = place, speed, action
        mujoco.mj_step(model, data)
        row = [*data.qpos, *data.qvel, data.qacc[0]]  # the acceleration is that of the last stage
        mujoco.mj_forward(model, data)
        expected.append(row)
        reached.append(data.qacc.copy())
        pushed += abs(data.qfrc_constraint[0]) > 0
    assert (pushed > 100) == beyond
    constants = cartpole.mechanics(task(**parameters))
    rows = CartpoleState(*map(jnp.asarray, (*places.T, *speeds.T, actions[:, 0])))
    after, last = jax.jit(cartpole.advance)(constants, rows, jnp.asarray(actions))
    ours = np.column_stack([after.position, after.angle, after.velocity, after.angular_velocity, last])
    np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-11)
    there = cartpole.acceleration(constants, *(getattr(after, f) for f in vars(after)))
    np.testing.assert_allclose(np.column_stack(there), reached, rtol=1e-10, atol=1e-10)


def test_a_whole_episode_follows_mujoco_into_the_stop_and_back(x64):
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(MODEL.format(mass=0.1, **STANDARD))
    data = mujoco.MjData(model)
    data.qpos[1] = 3.0
    now, environment = state(angle=3.0), Cartpole()
    step = jax.jit(environment.step)
    farthest = 0.0
    for t in range(250):  # the pole swings chaotically for longer ones
        action = np.array([1.0 if t % 100 < 80 else -1.0])
        data.ctrl[:] = action
        mujoco.mj_step(model, data)
        now, _ = step(task(), now, jnp.asarray(action))
        farthest = max(farthest, abs(float(now.position)))
        np.testing.assert_allclose([now.position, now.angle], data.qpos, atol=1e-9)
        np.testing.assert_allclose([now.velocity, now.angular_velocity], data.qvel, atol=1e-8)
    assert farthest > 1.81


def test_reference_episode_of_the_original(x64):
    # Reference section 1.1: cartpole realworld_swingup, seed 0, constant action 0.5.
    now = state(0.01764052, math.atan2(-0.00400156, -0.99999199), 0.00978738, 0.02240893)
    seen = [
        (0.017981591, -0.9999895304, -0.0045759233, 0.0584254105, 0.0924498056),
        (0.0188090093, -0.9999828882, -0.0058500621, 0.1070567277, 0.1623488685),
        (0.0201226867, -0.9999694076, -0.0078220071, 0.1556763942, 0.2319989889),
    ]
    rewards = (4.970637e-06, 8.117405e-06, 1.4493755e-05)
    for expected, reward in zip(seen, rewards, strict=True):
        _, last = cartpole.advance(cartpole.mechanics(task()), now, jnp.array([0.5]))
        now, step = Cartpole().step(task(), now, jnp.array([0.5]))
        np.testing.assert_allclose(step.observation, expected, atol=2e-8)  # the start is printed to 8 digits
        assert step.reward == pytest.approx(reward, rel=1e-5)
        assert step.costs.tolist() == [0]
    assert last == pytest.approx(4.8612185122, abs=1e-6)


@pytest.mark.dm_control
@pytest.mark.parametrize(("tolerance", "at_stops"), [(1e-8, 2e-6), (1e-15, 1e-12)], ids=["default", "converged"])
def test_dm_control_itself_agrees(x64, tolerance, at_stops):
    # With dm_control's own tolerance MuJoCo's solver ends its search for the stop's force early.
    from dm_control import suite

    env = suite.load("cartpole", "swingup", task_kwargs={"random": 3})
    env.physics.model.opt.tolerance = tolerance
    env.physics.model.opt.ls_tolerance = min(0.01, 1e6 * tolerance)
    step = jax.jit(Cartpole().step)
    rng = np.random.default_rng(0)
    env.reset()
    farthest = 0.0
    for t in range(400):
        place, speed = env.physics.data.qpos.copy(), env.physics.data.qvel.copy()
        action = np.clip(rng.normal(0.9 if t % 300 < 150 else -0.9, 0.5, 1), -1, 1)
        theirs = env.step(action)
        now, ours = step(task(), state(*place, *speed), jnp.asarray(action))
        expected = np.concatenate([theirs.observation["position"], theirs.observation["velocity"]])
        bound = at_stops if max(abs(place[0]), abs(now.position)) > 1.75 else 1e-12
        np.testing.assert_allclose(ours.observation, expected, atol=bound)
        assert ours.reward == pytest.approx(theirs.reward, abs=bound)
        assert now.angle == pytest.approx(env.physics.data.qpos[1], abs=bound)
        farthest = max(farthest, abs(env.physics.data.qpos[0]))
    assert farthest > 1.81  # beyond a stop


@pytest.mark.parametrize(
    ("at", "reward"),
    [
        ({}, 1.0),
        ({"angle": math.pi}, 0.0),
        ({"angle": math.pi / 2}, 0.5),
        ({"position": 2.0}, 0.55),
        ({"angular_velocity": -5.0}, 0.55),
        ({"control": 1.0}, 0.8),
        ({"control": -0.5}, 0.95),
        ({"position": -1.0, "control": 1.0}, 0.8 * (1 + 0.1**0.25) / 2),
    ],
)
def test_reward_by_hand(at, reward):
    assert cartpole.swing_up_reward(state(**at)) == pytest.approx(reward, rel=1e-6)


@pytest.mark.parametrize(
    ("k", "at", "violated"),
    [
        (0.3, {"position": 0.59}, (0, 0, 0)),
        (0.3, {"position": -0.61}, (1, 0, 0)),
        (0.05, {"position": 0.11}, (1, 0, 0)),
        (1.0, {"position": 1.79}, (0, 0, 0)),
        (0.3, {"angle": 1.54, "angular_velocity": 0.16}, (0, 0, 1)),
        (0.3, {"angle": -1.54, "angular_velocity": -0.16}, (0, 0, 1)),
        (0.3, {"angle": 1.56, "angular_velocity": 0.16}, (0, 0, 0)),
        (0.3, {"angle": 1.54, "angular_velocity": 0.14}, (0, 0, 0)),
        (1.0, {"angle": 0.14, "angular_velocity": 0.51}, (0, 0, 1)),
        (0.05, {"control": 1.0}, (0, 1, 0)),  # 10 N on 1.1 kg and a pole: about 9 m / s^2 against 6.5
        (0.1, {"control": 1.0}, (0, 0, 0)),
    ],
)
def test_constraints_by_hand(k, at, violated):
    now = state(**at)
    found = Cartpole(ALL).violations(task(safety_coeff=k), now, now.control, None)
    assert tuple(found.astype(int).tolist()) == violated


def test_the_rate_of_change_of_the_control_is_seen_from_the_second_step_and_from_zero():
    environment = Cartpole(("action_roc",))
    now, costs = state(), []
    for action in (0.44, 0.0, -0.46, 5.0, 1.0):  # limit 0.45; 5 is clipped to 1
        now, step = environment.step(task(), now, jnp.array([action]))
        costs.append(int(step.costs[0]))
    assert costs == [0, 0, 1, 1, 0]


def test_the_stale_acceleration_differs_from_the_one_at_the_state():
    # At full thrust into the stop the last stage is beyond it and the state that is reached is not, or the reverse.
    right, stale = (Cartpole(("slider_accel",), stale_acceleration=s) for s in (False, True))
    places, speeds, actions = random_rows(2000, beyond=True)
    rows = CartpoleState(*map(jnp.asarray, (*places.T, *speeds.T, actions[:, 0])))
    one, other = (jax.vmap(e.step, (None, 0, 0))(task(), rows, jnp.asarray(actions))[1].costs for e in (right, stale))
    assert 0 < np.mean(one != other) < 0.2


def test_observed_constraints_are_one_where_satisfied():
    environment = Cartpole(ALL, observe_constraints=True)
    assert environment.observation_size == 8
    _, step = environment.step(task(), state(position=1.0), jnp.zeros(1))
    assert step.observation[5:].tolist() == [0, 1, 1]
    assert step.costs.tolist() == [1, 0, 0]
    _, first = environment.reset(task(), jax.random.key(0))
    assert first[5:].tolist() == [1, 1, 1]


def test_starts_hang_nearly_at_rest():
    keys = jax.random.split(jax.random.key(0), 4000)
    start, seen = jax.vmap(Cartpole().reset, (None, 0))(task(), keys)
    values = np.stack([start.position, start.angle - np.pi, start.velocity, start.angular_velocity])
    np.testing.assert_allclose(values.mean(1), 0, atol=6e-4)
    np.testing.assert_allclose(values.std(1), 0.01, rtol=0.05)
    assert np.abs(np.corrcoef(values)[np.triu_indices(4, 1)]).max() < 0.06
    assert not start.control.any()
    np.testing.assert_allclose(seen[:, 1:3], np.stack([np.cos(start.angle), np.sin(start.angle)], 1), atol=1e-6)


def test_the_family_is_one_task_as_in_the_original():
    world = make("realworld-cartpole")
    tasks = world.sample(jax.random.key(0), 3, "test")
    for name, value in STANDARD.items():
        np.testing.assert_allclose(tasks.parameters[name], np.full(3, value), rtol=1e-6)
    assert tasks.descriptor.tolist() == [[0.0] * 5] * 3
    assert world.corners().count == 1
    assert world.cmdp.cost_names == ("slider_pos",)


def test_ranges_splits_and_corners():
    train = CartpoleRange(safety_coeff=(0.2, 0.3), pole_length=(0.5, 1.5))
    test = CartpoleRange(safety_coeff=(0.05, 0.1), pole_length=(2.0, 3.0))
    family = CartpoleFamily(train, test, (0.1, 0.2))
    for split, low, high in (("train", 0.5, 1.5), ("validation", 0.5, 1.5), ("test", 2.0, 3.0)):
        tasks = family.sample(jax.random.key(0), 2000, split)
        length = np.asarray(tasks.parameters["pole_length"])
        np.testing.assert_allclose(
            [length.min(), length.max(), length.mean()], [low, high, (low + high) / 2], atol=0.03
        )
        np.testing.assert_allclose(tasks.limits, np.tile([0.1, 0.2], (2000, 1)), rtol=1e-6)
        if split == "train":
            assert np.abs(tasks.descriptor).max() <= 1 + 1e-5
            np.testing.assert_allclose(tasks.descriptor[:, 1], 2 * length - 2, atol=1e-5)
    corners = family.corners()
    np.testing.assert_allclose(corners.parameters["safety_coeff"], [0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(corners.descriptor[:, :2], [(-1, -1), (-1, 1)], atol=1e-5)
    with pytest.raises(ValueError, match=r"^unknown split 'tset'"):
        family.sample(jax.random.key(0), 1, "tset")


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Cartpole(("slider",)), r"^unknown constraint 'slider'; choose from slider_pos, slider_accel"),
        (lambda: Cartpole(()), r"^choose one or more"),
        (lambda: Cartpole(("slider_pos", "slider_pos")), r"^choose one or more"),
        (lambda: cartpole.world(1.2), r"^limit must be within \[0, 1\], a share of the steps, not 1.2"),
        (lambda: CartpoleRange(safety_coeff=(0.1, 1.1)), r"^safety_coeff must be within \[0, 1\]"),
        (lambda: CartpoleRange(safety_coeff=(-0.1, 0.5)), r"^safety_coeff must be a range"),
        (lambda: CartpoleRange(pole_length=(0.0, 0.0)), r"^pole_length must be a range"),
        (lambda: CartpoleRange(pole_density=(2.0, 1.0)), r"^pole_density must be a range"),
    ],
)
def test_bad_input_gets_one_sentence(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_costs_and_returns_of_a_rollout_are_finite_and_plausible():
    class Pusher(cartpole.eqx.Module):
        def act(self, observation, key):
            return jnp.ones(1), jnp.zeros(())

    world = make("realworld-cartpole")
    world = replace(world, cmdp=replace(world.cmdp, horizon=400))
    trajectory = world.collect(Pusher(), world.corners(), jax.random.key(0), 4)
    x = trajectory.observation[..., 0]
    np.testing.assert_array_equal(trajectory.costs[..., :-1, 0], (np.abs(x[..., 1:]) >= 0.6).astype(float))
    assert 1.8 < np.abs(x).max() < 2.0  # full thrust against the stop
    assert np.isfinite(trajectory.reward).all()
    assert not trajectory.terminated.any()
