"""MuJoCo reached from compiled code, against plain loops over the same model."""

import typing
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_policies import Noisy

from safemeta.core import CMDP, Tasks, World
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.failures import SimulationError
from safemeta.sim.mujoco import Command, Engine, MujocoSimulator, Placement
from safemeta.sim.step import Step

mujoco = pytest.importorskip("mujoco")
PENDULUM = """
<mujoco>
  <option timestep="0.01" {option}/>
  <worldbody>
    <body name="goal" mocap="true"><geom type="sphere" size="0.01" contype="0" conaffinity="0"/></body>
    <body pos="0 0 1">
      <joint name="hinge" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.5" size="0.03"/>
      <site name="tip" pos="0 0 -0.5"/>
      <body pos="0 0 -0.5"><joint name="second" axis="0 1 0"/><geom type="sphere" size="0.05" pos="0 0 -0.2"/></body>
    </body>
    <geom type="plane" size="1 1 1" pos="0 0 0.35"/>
  </worldbody>
  <actuator><motor joint="hinge" gear="2"/></actuator>
  <sensor>
    <framepos name="tip" objtype="site" objname="tip"/>
    <accelerometer name="felt" site="tip"/>
    <framepos name="goal" objtype="body" objname="goal"/>
  </sensor>
</mujoco>
"""
SUBSTEPS, TASKS, EPISODES, HORIZON = 3, 3, 2, 5


@dataclass(frozen=True)
class Pendulum:
    """Swings into the floor; ends beyond `edge` rad. The velocity is kicked where the task says so."""

    kicked: bool = False
    refresh: str = "all"
    substeps: int = SUBSTEPS
    reads: tuple[str, ...] = ("tip", "qpos", "felt", "goal", "qvel")

    def model(self):
        return mujoco.MjModel.from_xml_string(PENDULUM.format(option=""))

    def reset(self, parameters, key):
        angle = 0.3 * jax.random.normal(key, (2,), parameters["edge"].dtype)
        return {"steps": jnp.zeros(())}, Placement(angle, jnp.zeros(2), jnp.ones((1, 3)) * parameters["edge"])

    def begin(self, parameters, state, reading):
        return state, jnp.concatenate([reading["qpos"], reading["qvel"]])

    def command(self, parameters, state, action):
        kick = jnp.array([0.1, -0.1]) * (state["steps"] + 1) if self.kicked else None
        return Command(jnp.clip(action, -1, 1), kick)

    def step(self, parameters, state, reading, action):
        observation = jnp.concatenate([reading["qpos"], reading["qvel"]])
        costs = jnp.stack([reading["goal"][0], reading["felt"][2]])
        over = jnp.abs(reading["qpos"][0]) > parameters["edge"]
        return {"steps": state["steps"] + 1}, Step(observation, reading["tip"][0], costs, over)


@dataclass(frozen=True)
class NoFamily:
    """Nothing is sampled here."""

    def sample(self, key, count, split="train"):
        raise NotImplementedError

    def corners(self):
        raise NotImplementedError


def model(option=""):
    return mujoco.MjModel.from_xml_string(PENDULUM.format(option=option))


def placement(rows, seed=0):
    rng = np.random.default_rng(seed)
    return Placement(rng.normal(0, 0.5, (rows, 2)), rng.normal(0, 1, (rows, 2)), rng.normal(0, 1, (rows, 1, 3)))


def plain_step(m, data, refresh):
    """What each `refresh` promises, with nothing saved."""
    if refresh == "position and velocity":
        mujoco.mj_step2(m, data)
        for _ in range(SUBSTEPS - 1):
            mujoco.mj_step(m, data)
        mujoco.mj_step1(m, data)
        return
    for _ in range(SUBSTEPS):
        mujoco.mj_step(m, data)
    if refresh == "all":
        mujoco.mj_forward(m, data)
    elif refresh == "contact forces":
        mujoco.mj_rnePostConstraint(m, data)


REFRESHES = ["all", "contact forces", "position and velocity", "nothing"]
RUNGE_KUTTA = 'integrator="RK4"'


@pytest.mark.parametrize(
    ("option", "refresh"),
    [
        *(("", refresh) for refresh in REFRESHES),
        # dm_control, whose way "position and velocity" is, steps Runge-Kutta models in another way.
        *((RUNGE_KUTTA, refresh) for refresh in REFRESHES if refresh != "position and velocity"),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_equal_a_loop_over_plain_data(refresh, option, threads):
    reads = ("felt", "qpos", "tip", "goal", "cfrc_ext", "qvel")
    engine = Engine(model(option), reads, SUBSTEPS, refresh, threads)
    placed, ctrl = placement(7), np.random.default_rng(1).uniform(-1, 1, (HORIZON, 7, 1))
    session, readings = engine.start(placed)
    plain = model(option)
    for row in range(7):
        data = mujoco.MjData(plain)
        data.qpos, data.qvel, data.mocap_pos = placed.qpos[row], placed.qvel[row], placed.mocap[row]
        mujoco.mj_forward(plain, data)
        seen = engine.named(readings)
        np.testing.assert_array_equal(seen["felt"][row], data.sensor("felt").data)
        np.testing.assert_array_equal(seen["goal"][row], placed.mocap[row, 0])
    datas = engine.data(session)
    for step in range(HORIZON):
        before = [(data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()) for data in datas]
        seen = engine.named(engine.advance(session, ctrl[step], None, np.ones(7, bool)))
        for row in range(7):
            data = mujoco.MjData(plain)
            data.qpos, data.qvel, data.qacc_warmstart = before[row]
            data.mocap_pos = placed.mocap[row]
            data.ctrl = ctrl[step, row]
            if refresh == "position and velocity":
                mujoco.mj_step1(plain, data)
            plain_step(plain, data, refresh)
            for name in reads:
                there = data.sensor(name).data if name in ("felt", "tip", "goal") else getattr(data, name)
                np.testing.assert_allclose(seen[name][row], there, rtol=1e-9, atol=1e-9, err_msg=name)
    engine.finish(session)


def test_rows_that_are_not_alive_stand_still_and_a_kick_changes_the_velocity():
    engine = Engine(model(), ("qpos", "qvel"), SUBSTEPS)
    placed = placement(4)
    session, first = engine.start(placed)
    alive = np.array([True, False, True, False])
    second = engine.advance(session, np.zeros((4, 1)), None, alive)
    np.testing.assert_array_equal(second[~alive], first[~alive])
    assert np.all(second[alive] != first[alive])
    kick = np.array([[0.5, 0.0]] * 4)
    other, _ = engine.start(placed)
    kicked = engine.advance(other, np.zeros((4, 1)), kick, alive)
    faster, _ = engine.start(Placement(placed.qpos, placed.qvel + kick, placed.mocap))
    np.testing.assert_allclose(kicked[alive], engine.advance(faster, np.zeros((4, 1)), None, alive)[alive], atol=1e-9)


def test_an_environment_may_settle_its_rows_before_they_begin():
    def settle(model, data, rng):
        data.qpos[0] += rng.uniform()

    engine = Engine(model(), ("qpos", "tip"), SUBSTEPS, settle=settle)
    placed = placement(3)
    seeded = Placement(placed.qpos, placed.qvel, placed.mocap, np.array([5, 6, 5], np.uint32))
    _, left_alone = engine.start(placed)
    _, readings = engine.start(seeded)
    moved = engine.named(readings)["qpos"] - engine.named(left_alone)["qpos"]
    expected = [np.random.default_rng(seed).uniform() for seed in (5, 6, 5)]
    np.testing.assert_allclose(moved, np.stack([expected, np.zeros(3)], axis=1), atol=1e-12)
    assert (engine.named(readings)["tip"] != engine.named(left_alone)["tip"]).any(axis=1).all()


def test_sessions_are_independent_and_their_rows_are_used_again():
    engine = Engine(model(), ("qpos",), SUBSTEPS)
    placed, ctrl, alive = placement(3), np.ones((3, 1)), np.ones(3, bool)
    one, _ = engine.start(placed)
    alone = [engine.advance(one, ctrl, None, alive) for _ in range(4)]
    used = engine.data(one)
    engine.finish(one)
    two, _ = engine.start(placed)
    assert {id(data) for data in engine.data(two)} == {id(data) for data in used}
    three, _ = engine.start(placement(3, seed=5))
    for step in range(4):
        np.testing.assert_array_equal(engine.advance(two, ctrl, None, alive), alone[step])
        engine.advance(three, -ctrl, None, alive)


@pytest.fixture
def tasks():
    return Tasks({"edge": jnp.array([0.2, 0.7, 1e6])}, jnp.ones((TASKS, 2)), jnp.zeros((TASKS, 1)))


def world(**changes):
    cmdp = CMDP(4, 1, HORIZON, ("far", "felt"), (1.0, 1.0), 0.9)
    return BatchedWorld(cmdp, MujocoSimulator(Pendulum(**changes)), NoFamily())


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("kicked", [False, True])
def test_collect_equals_a_loop_over_rows_and_steps(tasks, per_task, kicked):
    own, key = world(kicked=kicked), jax.random.key(3)
    gain = jnp.array([0.5, -1.0, 2.0])
    policy = Noisy(gain if per_task else gain[0])
    rows = own.collect(policy, tasks, key, EPISODES, per_task=per_task)
    environment, m = own.simulator.environment, Pendulum().model()
    keys = jax.random.split(key, TASKS * EPISODES)
    ended = 0
    for task in range(TASKS):
        parameters = {"edge": tasks.parameters["edge"][task]}
        acting = Noisy(gain[task]) if per_task else policy
        for episode in range(EPISODES):
            key = keys[task * EPISODES + episode]
            state, start = environment.reset(parameters, jax.random.fold_in(key, HORIZON))
            data = mujoco.MjData(m)
            data.qpos, data.mocap_pos = start.qpos, start.mocap
            mujoco.mj_forward(m, data)
            observation = jnp.concatenate([data.qpos, data.qvel])
            for t in range(HORIZON):
                np.testing.assert_allclose(rows.observation[task, episode, t], observation, rtol=1e-4, atol=1e-4)
                action, log_prob = acting.act(observation, jax.random.fold_in(key, t))
                np.testing.assert_allclose(rows.action[task, episode, t], action, rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(rows.log_prob[task, episode, t], log_prob, atol=1e-3)
                command = environment.command(parameters, state, action)
                data.ctrl = command.ctrl
                if command.kick is not None:
                    data.qvel += command.kick
                plain_step(m, data, "all")
                named = {name: data.sensor(name).data for name in ("tip", "felt", "goal")}
                reading = jax.tree.map(jnp.array, {**named, "qpos": data.qpos, "qvel": data.qvel})
                state, step = environment.step(parameters, state, reading, action)
                observation = step.observation
                np.testing.assert_allclose(rows.reward[task, episode, t], step.reward, rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(rows.costs[task, episode, t], step.costs, rtol=1e-3, atol=1e-3)
                assert rows.valid[task, episode, t]
                assert rows.terminated[task, episode, t] == step.terminated
                if step.terminated:
                    ended += 1
                    assert not rows.valid[task, episode, t + 1 :].any()
                    assert not rows.truncated[task, episode].any()
                    break
            else:
                assert rows.truncated[task, episode, -1]
            np.testing.assert_allclose(rows.last_observation[task, episode], observation, rtol=1e-4, atol=1e-4)
    assert 0 < ended < TASKS * EPISODES


def test_measure_totals_the_episodes_that_collect_stores_inside_jit_too(tasks):
    own, key = world(), jax.random.key(5)
    assert isinstance(own, typing.runtime_checkable(World))

    @jax.jit
    def both(key):
        return own.collect(Noisy(jnp.array(1.0)), tasks, key, EPISODES), own.measure(
            Noisy(jnp.array(1.0)), tasks, key, EPISODES
        )

    rows, totals = both(key)
    np.testing.assert_allclose(totals.episode_return, rows.reward.sum(-1), rtol=1e-5)
    weighted = jnp.einsum("ijtc,t->ijc", rows.costs, own.cmdp.cost_weights())
    np.testing.assert_allclose(totals.costs, weighted, rtol=1e-5)
    again = own.measure(Noisy(jnp.array(1.0)), tasks, key, EPISODES)
    np.testing.assert_array_equal(again.costs, totals.costs)


def test_physics_that_diverge_are_reported_with_task_episode_and_step(tasks):
    @dataclass(frozen=True)
    class Exploding(Pendulum):
        def command(self, parameters, state, action):
            kick = jnp.where((parameters["edge"] > 1) & (state["steps"] == 2), jnp.nan, 0.0)
            return Command(jnp.clip(action, -1, 1), jnp.full(2, kick))

    exploding = BatchedWorld(world().cmdp, MujocoSimulator(Exploding()), NoFamily())
    with pytest.raises(SimulationError, match=r"task 2, episode 0, .* step 3"):
        exploding.collect(Noisy(jnp.array(1.0)), tasks, jax.random.key(0), EPISODES)
    world().collect(Noisy(jnp.array(1.0)), tasks, jax.random.key(0), EPISODES)  # and is forgotten then
