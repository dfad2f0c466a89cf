"""The Real-World RL suite's walker, quadruped and humanoid: beside dm_control, recordings, and their definitions."""

import json
import math

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from safemeta.sim.mujoco import Placement, engine_of
from safemeta.tasks import make, realworld
from safemeta.tasks.realworld import Humanoid, Quadruped, Walker
from safemeta.tasks.realworld_task import above
from safemeta.tasks.replay import TraceError, load, main
from safemeta.tasks.replay_realworld import replay_realworld
from safemeta.tasks.trace import Trace

DOMAINS = {"walker": Walker, "quadruped": Quadruped, "humanoid": Humanoid}
SIZES = {"walker": (24, 6), "quadruped": (78, 12), "humanoid": (67, 21)}


@pytest.mark.dm_control
@pytest.mark.parametrize("domain", DOMAINS)
def test_observations_and_rewards_equal_dm_control(domain):
    from dm_control import suite

    theirs = suite.load(domain, "walk", task_kwargs={"random": 2})
    robot = DOMAINS[domain]()
    seen, rewards, ours = [theirs.reset().observation], [], []
    data, rng = theirs.physics.data, np.random.default_rng(0)
    with jax.enable_x64(True):
        parameters = {"safety_coeff": jnp.asarray(0.3)}
        state = {"control": jnp.zeros(robot.action_size)}
        engine = engine_of(robot)
        session, reading = engine.start(Placement(data.qpos[None].copy(), data.qvel[None].copy(), np.zeros((1, 0, 3))))

        def read(values):
            return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), engine.named(values))

        first = robot.begin(parameters, state, read(reading))[1]
        step = jax.jit(robot.step)
        for _ in range(40):
            action = jnp.asarray(rng.uniform(-1.1, 1.1, robot.action_size))
            control = robot.command(parameters, state, action).ctrl
            reading = engine.advance(session, np.asarray(control)[None], None, np.ones(1, bool))
            state, result = step(parameters, state, read(reading), action)
            there = theirs.step(np.asarray(control))
            seen.append(there.observation)
            rewards.append(there.reward)
            ours.append(jax.device_get(result))
        engine.finish(session)
    flat = np.array([np.concatenate([np.ravel(part) for part in entry.values()]) for entry in seen])
    assert (flat.shape[1], robot.action_size) == SIZES[domain]
    np.testing.assert_allclose(first, flat[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose([result.observation for result in ours], flat[1:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([result.reward for result in ours], rewards, rtol=0, atol=1e-9)
    assert np.std(rewards) > 1e-3
    assert not any(result.terminated for result in ours)


@pytest.mark.dm_control
@pytest.mark.parametrize("domain", DOMAINS)
def test_recordings_are_followed(repository, domain, capsys):
    file = repository / "tests" / "data" / f"rwrl-{domain}-k0.3-s1.npz"
    assert main([str(file), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["steps"], outcome["skipped"], outcome["cost_agreement"]) == (60, [], 1.0)
    assert max(outcome["max_error"].values()) < 1e-10


@pytest.mark.dm_control
@pytest.mark.parametrize("domain", DOMAINS)
def test_deviations_are_measured_and_other_files_refused(repository, domain):
    trace = load(repository / "tests" / "data" / f"rwrl-{domain}-k0.3-s1.npz")

    def changed(meta=None, **arrays):
        return Trace(trace.file, trace.meta | (meta or {}), trace.arrays | arrays)

    satisfied = trace.arrays["obs/constraints"].copy()
    satisfied[[4, 5], 0] = 1 - satisfied[[4, 5], 0]
    outcome = replay_realworld(changed(reward=trace.arrays["reward"] + 1e-3, **{"obs/constraints": satisfied}))
    assert outcome.max_error.reward == pytest.approx(1e-3, rel=1e-6)
    assert outcome.cost_agreement == pytest.approx(58 / 60)
    for meta, arrays, said in [
        ({"domain": "hopper"}, {}, "not recorded from realworld_walk"),
        ({"safety_coeff": 2}, {}, "safety_coeff"),
        ({}, {"action": np.zeros((0, 1))}, "holds no steps"),
        ({}, {"qpos": trace.arrays["qpos"][:, 1:]}, "has shape"),
    ]:
        with pytest.raises(TraceError, match=said):
            replay_realworld(changed(meta, **arrays))


def readings(robot, rows=200):
    """Readings of moving robots, a few steps after their start."""
    engine = engine_of(robot)
    rng = np.random.default_rng(0)
    _, placement = jax.vmap(robot.reset, (None, 0))(
        {"safety_coeff": jnp.asarray(0.3)}, jax.random.split(jax.random.key(0), rows)
    )
    session, _ = engine.start(placement)
    for _ in range(8):
        control = rng.uniform(-1, 1, (rows, robot.action_size))
        reading = engine.advance(session, control, None, np.ones(rows, bool))
    datas = [(data.qpos.copy(), data.qvel.copy()) for data in engine.data(session)]
    engine.finish(session)
    return {name: jnp.asarray(values) for name, values in engine.named(reading).items()}, datas


def checked(robot, k, reading):
    return jax.vmap(robot.checks, (None, 0))(jnp.asarray(k), reading)


def shares(robot, reading):
    """Each constraint's share of satisfied rows at falling k."""
    found = [{name: float(v.mean()) for name, v in checked(robot, k, reading).items()} for k in (1.0, 0.3, 0.1, 0.02)]
    return {name: [entry[name] for entry in found] for name in found[0]}


@pytest.mark.dm_control
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_smaller_coefficient_is_stricter(domain):
    robot = DOMAINS[domain]()
    reading, _ = readings(robot)
    for name, values in shares(robot, reading).items():
        assert values == sorted(values, reverse=True), name
        assert values[-1] < values[0], name


@pytest.mark.dm_control
def test_walker_joint_angles_hold_for_every_joint_and_the_fault_for_any():
    reading, datas = readings(Walker())
    names = [f"{side}_{joint}" for side in ("right", "left") for joint in ("hip", "knee", "ankle")]
    model = Walker().model()
    limits = {"hip": (-30, 110), "knee": (-160, 15), "ankle": (-75, 60)}
    expected = []
    for qpos, _ in datas:
        angles = {name: math.degrees(qpos[model.joint(name).qposadr[0]]) for name in names}
        expected.append(
            all(0.5 * limits[n.split("_")[1]][0] < a < 0.5 * limits[n.split("_")[1]][1] for n, a in angles.items())
        )
    np.testing.assert_array_equal(checked(Walker(), 0.5, reading)["joint_angle"], expected)
    assert 0 < np.mean(expected) < 1
    assert checked(Walker(any_joint=True), 0.5, reading)["joint_angle"].mean() > 0.98


@pytest.mark.dm_control
def test_humanoid_joint_velocities_include_the_first_joint_but_for_the_fault():
    reading, datas = readings(Humanoid())
    fastest = {
        robot: checked(robot, 0.1, reading)["joint_velocity"] for robot in (Humanoid(), Humanoid(skipped_joint=True))
    }
    for (robot, satisfied), first in zip(fastest.items(), (6, 7), strict=True):
        np.testing.assert_array_equal(
            satisfied, [np.abs(qvel[first:]).max() < 9 for _, qvel in datas], err_msg=str(robot)
        )
    still = {"qvel": jnp.zeros(27).at[6].set(50.0)} | {k: v[0] for k, v in reading.items() if k != "qvel"}
    assert not Humanoid().checks(jnp.asarray(0.3), still)["joint_velocity"]
    assert Humanoid(skipped_joint=True).checks(jnp.asarray(0.3), still)["joint_velocity"]


@pytest.mark.dm_control
def test_action_rate_counts_the_motors_controls_from_zero():
    robot = Quadruped(constraints=("action_roc",))
    reading, _ = readings(Quadruped(), rows=1)
    one = {name: values[0] for name, values in reading.items()}
    parameters = {"safety_coeff": jnp.asarray(0.5)}  # at most 0.7
    state = {"control": jnp.zeros(12)}
    centre = robot.action(jnp.zeros(12))
    np.testing.assert_allclose(robot.control(centre), 0, atol=1e-7)
    state, step = robot.step(parameters, state, one, robot.action(jnp.full(12, 0.69)))
    assert step.costs.tolist() == [0]
    state, step = robot.step(parameters, state, one, robot.action(jnp.full(12, -0.05)))
    assert step.costs.tolist() == [1]
    np.testing.assert_allclose(robot.control(jnp.ones(12)), robot.model().actuator_ctrlrange[:, 1], rtol=1e-6)
    np.testing.assert_allclose(robot.control(-3 * jnp.ones(12)), robot.model().actuator_ctrlrange[:, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ((2.0, 1.2, 0.6), 1.0),
        ((0.6, 1.2, 0.6), 0.1),
        ((0.9, 1.2, 0.6), 0.1**0.25),
        ((0.5, 1.0, 0.5, 0.5, True), 0.5),
        ((-0.5, 1.0, 0.5, 0.5, True), 0.0),
        ((-1.0, 1.0, 2.0, 0.0, True), 0.0),
    ],
)
def test_tolerance_by_hand(arguments, value):
    x, least, margin, *rest = arguments
    got = above(jnp.asarray(x), least, margin, *rest[:1], linear=bool(rest[1:]))
    assert float(got) == pytest.approx(value, abs=1e-6)


def started(robot, rows, key=0):
    engine = engine_of(robot)
    _, placement = jax.vmap(robot.reset, (None, 0))(
        {"safety_coeff": jnp.asarray(0.3)}, jax.random.split(jax.random.key(key), rows)
    )
    session, _ = engine.start(placement)
    qpos = np.array([data.qpos.copy() for data in engine.data(session)])
    touching = np.array([data.ncon for data in engine.data(session)])
    engine.finish(session)
    return qpos, touching


@pytest.mark.dm_control
def test_humanoids_start_in_random_poses_in_which_nothing_touches():
    qpos, touching = started(Humanoid(), 300)
    assert not touching.any()
    np.testing.assert_array_equal(qpos, started(Humanoid(), 300)[0])
    assert (qpos != started(Humanoid(), 300, key=1)[0]).any(axis=1).all()
    low, high = Humanoid().model().jnt_range[1:].T
    assert ((qpos[:, 7:] > low) & (qpos[:, 7:] < high)).all()
    np.testing.assert_allclose(qpos[:, 7:].std(0), (high - low) / np.sqrt(12), rtol=0.25)
    np.testing.assert_allclose(np.linalg.norm(qpos[:, 3:7], axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(qpos[:, :3], [[0, 0, 1.5]] * 300)


@pytest.mark.dm_control
def test_quadrupeds_start_upright_just_above_the_floor_and_walkers_anyhow():
    qpos, touching = started(Quadruped(), 200)
    assert not touching.any()
    # At 0.52 m the toes are where the floor is, so that rounding decides; dm_control does the same.
    assert set(np.round(qpos[:, 2], 9)) <= {0.52, 0.53}
    azimuth = 2 * np.arctan2(qpos[:, 6], qpos[:, 3])
    assert 1.6 < azimuth.std() < 2.0
    np.testing.assert_allclose(qpos[:, 4:6], 0)
    lower = np.concatenate([[0, 0, 0.51], qpos[0, 3:]])
    model = Quadruped().model()
    data = mujoco.MjData(model)
    data.qpos = lower
    mujoco.mj_forward(model, data)
    assert data.ncon > 0
    qpos, touching = started(Walker(), 300)
    low, high = Walker().model().jnt_range[3:].T
    assert 0 < (touching > 0).mean() < 1
    np.testing.assert_allclose(qpos[:, 2].std(), 2 * np.pi / np.sqrt(12), rtol=0.1)
    assert ((qpos[:, 3:] >= low) & (qpos[:, 3:] <= high)).all()


@pytest.mark.dm_control
@pytest.mark.parametrize("domain", DOMAINS)
def test_worlds_collect_and_observe_constraints_where_asked(domain):
    class Loud:
        def act(self, observation, key):
            return jax.random.uniform(key, (SIZES[domain][1],), minval=-1.0), jnp.zeros(())

    robot = DOMAINS[domain](DOMAINS[domain].known, observe_constraints=True)
    name = f"realworld-{domain}"
    world = realworld.world(name, horizon=6, environment=robot, safety_coeff=(0.05, 0.3))
    tasks = world.sample(jax.random.key(0), 3)
    rows = world.collect(Loud(), tasks, jax.random.key(1), 2)
    assert rows.observation.shape[-1] == SIZES[domain][0] + len(robot.known)
    np.testing.assert_array_equal(rows.observation[:, :, 1:, SIZES[domain][0] :], 1 - rows.costs[:, :, :-1])
    assert np.isfinite(rows.observation).all()
    assert tasks.limits.shape == (3, len(robot.known))
    default = make(name)
    assert default.cmdp.limit_on == "per_step"
    assert (default.cmdp.observation_size, default.cmdp.action_size, default.cmdp.horizon) == (*SIZES[domain], 1000)
    assert default.cmdp.cost_names == (("joint_velocity",) if domain == "walker" else ("joint_angle",))
    assert world.corners().parameters["safety_coeff"].tolist() == pytest.approx([0.05, 0.3])


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="unknown constraint 'joint_angel'; choose from joint_angle"):
        Walker(("joint_angel",))
    with pytest.raises(ValueError, match="one or more different"):
        Humanoid(())
    with pytest.raises(ValueError, match="range within"):
        realworld.world("realworld-walker", safety_coeff=(0.3, 1.2))
    with pytest.raises(ValueError, match="a share of the steps"):
        realworld.world("realworld-walker", 1.5)
