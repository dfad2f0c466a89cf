"""The closed form against MuJoCo itself, on a model built from the facts of reference section 1.2."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from safemeta.tasks import point

MODEL = """
<mujoco>
  <option timestep="0.002" magnetic="0 -0.5 0"/>
  <default><geom condim="6" density="1"/></default>
  <worldbody>
    <geom type="plane" size="3.5 3.5 0.1"/>
    <body name="agent" pos="0 0 0.1">
      <joint type="slide" axis="1 0 0" damping="0.01"/>
      <joint type="slide" axis="0 1 0" damping="0.01"/>
      <joint name="yaw" type="hinge" axis="0 0 1" damping="0.005"/>
      <geom name="agent" type="sphere" size="0.1" friction="1 0.01 0.01"/>
      <geom type="box" pos="0.1 0 0" size="0.05 0.05 0.05"/>
      <site name="agent"/>
    </body>
  </worldbody>
  <actuator>
    <motor site="agent" gear="0.3 0 0 0 0 0" ctrlrange="-1 1" ctrllimited="true" forcerange="-0.05 0.05"
           forcelimited="true"/>
    <velocity joint="yaw" gear="0.3" kv="1" ctrlrange="-1 1" ctrllimited="true" forcerange="-0.05 0.05"
           forcelimited="true"/>
  </actuator>
  <sensor>
    <accelerometer site="agent"/><velocimeter site="agent"/><gyro site="agent"/><magnetometer site="agent"/>
  </sensor>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(MODEL)


def rows(count=200, seed=0):
    """Random positions, yaws, world velocities, yaw rates, and actions inside and outside the actuators' ranges."""
    rng = np.random.default_rng(seed)
    qpos = np.column_stack([rng.uniform(-2, 2, (count, 2)), rng.uniform(-10, 10, count)])
    qvel = np.column_stack([rng.uniform(-1.5, 1.5, (count, 2)), rng.uniform(-5, 5, count)])
    action = rng.uniform(-1.3, 1.3, (count, 2)) * rng.choice([0.03, 1.0], (count, 1))
    return qpos, qvel, action


def mujoco_steps(model, qpos, qvel, action, substeps):
    """State and sensors after `substeps` physics steps and the forward pass that refreshes the sensors."""
    data = mujoco.MjData(model)
    results = []
    for row in range(len(qpos)):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos[row], qvel[row], action[row]
        mujoco.mj_step(model, data, substeps)
        mujoco.mj_forward(model, data)
        results.append(np.concatenate([data.qpos, data.qvel, data.sensordata]))
    return np.stack(results)


def ours(qpos, qvel, action, substeps):
    """The same from the closed form, as MuJoCo's coordinates."""
    cos, sin = jnp.cos(qpos[:, 2]), jnp.sin(qpos[:, 2])
    forward, left = cos * qvel[:, 0] + sin * qvel[:, 1], cos * qvel[:, 1] - sin * qvel[:, 0]
    state = point.PointState(*jnp.asarray(qpos).T, forward, left, jnp.asarray(qvel[:, 2]))
    state = point.advance(state, jnp.asarray(action), substeps)
    sensors = point.sense(state, jnp.asarray(action))
    u = sensors.cos * state.forward - sensors.sin * state.left
    v = sensors.sin * state.forward + sensors.cos * state.left
    columns = jnp.stack([state.x, state.y, state.yaw, u, v, state.yaw_rate], axis=-1)
    return np.concatenate([columns, sensors.readings], axis=-1)


def test_masses_are_those_that_mujoco_compiles(model):
    assert model.body("agent").mass[0] == pytest.approx(point.MASS, rel=1e-14)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    mass = np.zeros((3, 3))
    for column, unit in zip(mass, np.eye(3), strict=True):
        mujoco.mj_mulM(model, data, column, unit)
    expected = [[point.MASS, 0, 0], [0, point.MASS, point.MOMENT], [0, point.MOMENT, point.INERTIA]]
    np.testing.assert_allclose(mass, expected, atol=1e-17)


def test_one_physics_step(model, x64):
    qpos, qvel, action = rows()
    np.testing.assert_allclose(
        ours(qpos, qvel, action, 1)[:, :6], mujoco_steps(model, qpos, qvel, action, 1)[:, :6], rtol=0, atol=1e-12
    )


def test_a_control_step_with_its_sensors(model, x64):
    qpos, qvel, action = rows(seed=1)
    state, expected = ours(qpos, qvel, action, 10), mujoco_steps(model, qpos, qvel, action, 10)
    # The chattering servo amplifies the last bit within the step, and the accelerometer reads it (up to 30 m / s^2).
    np.testing.assert_allclose(state[:, :3], expected[:, :3], rtol=0, atol=1e-12)
    np.testing.assert_allclose(state[:, 3:6], expected[:, 3:6], rtol=0, atol=1e-10)
    np.testing.assert_allclose(state[:, 6:], expected[:, 6:], rtol=0, atol=1e-8)


def test_ten_substeps_are_ten_single_ones(x64):
    qpos, qvel, action = rows(20)
    once = ours(qpos, qvel, action, 10)
    for _ in range(10):
        result = ours(qpos, qvel, action, 1)
        qpos, qvel = result[:, :3], result[:, 3:6]
    np.testing.assert_allclose(once, result, rtol=0, atol=1e-8)


def test_single_precision_is_close_over_one_step():
    qpos, qvel, action = rows(seed=2)
    single = ours(*(array.astype(np.float32) for array in (qpos, qvel, action)), 10)
    assert single.dtype == np.float32
    with jax.enable_x64(True):
        double = ours(qpos, qvel, action, 10)
    np.testing.assert_allclose(single[:, :3], double[:, :3], atol=1e-5)
    # Amplified by the servo (see above): velocity is what decides whether chatter stays bounded.
    np.testing.assert_allclose(single[:, 3:6], double[:, 3:6], atol=2e-3)


def test_commands_beyond_the_range_are_clipped():
    state = point.at_rest(*jnp.zeros((3, 1)))
    beyond, full = (point.advance(state, jnp.array([command])) for command in ([7.0, -9.0], [0.05, -1.0]))
    for one, other in zip(jax.tree.leaves(beyond), jax.tree.leaves(full), strict=True):
        np.testing.assert_array_equal(one, other)
    assert beyond.forward[0] > 0.05
    assert beyond.yaw_rate[0] < 0


def test_top_speed_and_turn_rates_are_those_of_the_robot():
    # Reference section 1.2: 1.5 m / s at full thrust; mean yaw rate 3.00 rad / s at full command, 0.64 at a quarter.
    action = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.25]])
    state, _ = jax.lax.scan(
        lambda s, _: (point.advance(s, action), None), point.at_rest(*jnp.zeros((3, 3))), length=500
    )
    assert state.forward[0] == pytest.approx(1.5, abs=0.01)
    assert state.yaw[1] / 10 == pytest.approx(3.0, abs=0.1)
    assert state.yaw[2] / 10 == pytest.approx(0.64, abs=0.03)
