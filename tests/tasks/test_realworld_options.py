"""Options of the Real-World RL tasks: what is allowed, and perturbed dynamics beside dm_control's with that change."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.sim.challenges import Challenges
from safemeta.sim.mujoco import Placement, engine_of
from safemeta.tasks import FAMILIES, cartpole, make, realworld
from safemeta.tasks.cartpole import CartpoleState
from safemeta.tasks.options import Option
from safemeta.tasks.registry import all_options, read_options

DOMAINS = ("cartpole", "walker", "quadruped", "humanoid")


@pytest.mark.dm_control
def test_defaults_are_the_tasks_as_they_were():
    assert make("realworld-cartpole") == cartpole.world()
    for domain in DOMAINS[1:]:
        assert make(f"realworld-{domain}") == realworld.world(f"realworld-{domain}")
        said = {option.name: option.default for option in FAMILIES[f"realworld-{domain}"].options}
        assert make(f"realworld-{domain}", options=said) == realworld.world(f"realworld-{domain}")


def test_text_and_values_are_kept_as_the_same_json():
    text = {"safety_coeff": "0.1,0.3", "pole_length": "2", "constraint": "slider_pos,action_roc", "action_delay": "3"}
    values = {
        "safety_coeff": (0.1, 0.3),
        "pole_length": 2,
        "constraint": ("slider_pos", "action_roc"),
        "action_delay": 3,
    }
    kept = read_options("realworld-cartpole", text)
    assert kept == read_options("realworld-cartpole", values)
    assert kept == {
        "safety_coeff": [0.1, 0.3], "pole_length": 2.0, "constraint": ["slider_pos", "action_roc"], "action_delay": 3
    }  # fmt: skip
    assert read_options("realworld-cartpole", kept) == kept
    assert read_options("realworld-walker", {"constraint": ["torso_upright"], "any_joint": "true"}) == {
        "constraint": "torso_upright", "any_joint": True
    }  # fmt: skip
    assert read_options("point-circle", {}) == {}
    assert all_options("realworld-humanoid", {"safety_coeff": 1})["skipped_joint"] is False


@pytest.mark.dm_control
def test_options_reach_the_task():
    options = {"constraint": "balance_velocity,slider_pos", "safety_coeff": "0.1,0.2", "observe_constraints": "true"}
    world = make("realworld-cartpole", options=options | {"pole_length": (0.5, 1.5), "joint_damping": "0.1"})
    assert world.cmdp.cost_names == ("balance_velocity", "slider_pos")
    assert (world.cmdp.observation_size, world.cmdp.limits) == (7, (0.115, 0.115))
    parameters = jax.device_get(world.sample(jax.random.key(0), 200, "test").parameters)
    for name, low, high in (("safety_coeff", 0.1, 0.2), ("pole_length", 0.5, 1.5)):
        assert low <= parameters[name].min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < parameters[name].max() <= high
    np.testing.assert_allclose(parameters["hinge_damping"], 0.1, rtol=1e-6)
    stale = make("realworld-cartpole", options={"stale_acceleration": True}).environment
    assert stale == cartpole.Cartpole(stale_acceleration=True)
    humanoid = make("realworld-humanoid", options={"skipped_joint": True, "constraint": "upright"})
    assert humanoid.simulator.environment == realworld.Humanoid(("upright",), skipped_joint=True)
    assert make("realworld-cartpole", options={"action_delay": 0}) == cartpole.world()
    noisy = make("realworld-cartpole", options=options | {"observation_noise": 0.1, "action_delay": 3}).environment
    assert noisy.challenges == Challenges(action_delay=3, observation_noise=0.1, exact=2)
    assert noisy.environment == world.environment


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("point-circle", {"safety_coeff": 0.3}, "the task point-circle has no options, so that 'safety_coeff' .*"),
        ("realworld-cartpole", {"safety_cof": 1}, r"unknown option 'safety_cof' of .*; did you mean 'safety_coeff'\?"),
        ("realworld-cartpole", {"thigh_length": 0.3}, r"unknown option 'thigh_length' .*"),
        (
            "realworld-cartpole",
            {"constraint": "joint_angle"},
            "the task option constraint must be one or more of slider_pos, slider_accel, balance_velocity, action_roc, "
            "separated by commas, not 'joint_angle'",
        ),
        *(
            pytest.param("realworld-walker", options, message, marks=pytest.mark.dm_control)
            for options, message in [
                ({"zzz": 1}, r"unknown option 'zzz' of the task realworld-walker; choose from .*"),
                ({"constraint": "slider_pos"}, "the task option constraint must be one or more of .*"),
                ({"constraint": []}, "the task option constraint must be .*"),
                ({"constraint": "joint_angle,joint_angle"}, "the task option constraint must be .*"),
            ]
        ),
        (
            "realworld-cartpole",
            {"safety_coeff": 1.5},
            "the task option safety_coeff must be a number above 0 and at most 1, or two of them, low,high, not 1.5",
        ),
        *(
            ("realworld-cartpole", {name: value}, f"the task option {name} must be .*, not {re.escape(repr(value))}")
            for name, value in [
                ("safety_coeff", 0), ("safety_coeff", "0"), ("safety_coeff", "nan"), ("safety_coeff", "0.3,0.1"),
                ("safety_coeff", "0.1,0.2,0.3"), ("safety_coeff", True), ("safety_coeff", ""), ("safety_coeff", None),
                ("pole_length", 0.2), ("pole_length", [0.5, 4]), ("pole_mass", -1), ("action_delay", 1.5),
                ("action_delay", "-1"), ("action_delay", (1, 2)), ("action_repetition", 0), ("action_noise", "inf"),
                ("observation_noise", {}), ("observe_constraints", "yes"), ("observe_constraints", 1),
            ]
        ),
    ],
)  # fmt: skip
def test_bad_options_get_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make(name, options=options)


def test_every_default_is_allowed_and_described():
    for family in FAMILIES.values():
        names = [option.name for option in family.options]
        assert len(set(names)) == len(names)
        for option in family.options:
            assert isinstance(option, Option)
            assert option.read(option.default) == option.default
            assert option.description


def changed(common, file, *edits):
    """dm_control's model with the suite's change of it, as text."""
    xml = common.read_model(file).decode()
    for pattern, text, count in edits:
        xml, found = re.subn(pattern, text, xml)
        assert found == count, pattern
    return xml, common.ASSETS


CARTPOLES = {
    "pole_length": (2.3, [("0 0 0 0 0 1", "0 0 0 0 0 2.3", 1), ('mass=".1"', 'mass="0.23"', 1)]),
    "pole_mass": (0.7, [('mass=".1"', 'mass="0.7"', 1)]),
    "joint_damping": (0.15, [('damping="2e-6"', 'damping="0.15"', 1)]),
    "slider_damping": (2.5, [('damping="5e-4"', 'damping="2.5"', 1)]),
}


@pytest.fixture(scope="module")
def cartpole_step():
    return jax.jit(lambda parameters, state, action: cartpole.Cartpole().step(parameters, state, action))


@pytest.mark.dm_control
@pytest.mark.parametrize("option", CARTPOLES)
def test_perturbed_cartpoles_move_as_dm_controls(x64, cartpole_step, option):
    from dm_control.suite import common
    from dm_control.suite.cartpole import Physics

    value, edits = CARTPOLES[option]
    physics = Physics.from_xml_string(*changed(common, "cartpole.xml", *edits))
    place, speed = np.array([0.1, 2.5]), np.array([-0.3, 1.2])
    with physics.reset_context():
        physics.data.qpos[:], physics.data.qvel[:] = place, speed
    parameters = make("realworld-cartpole", options={option: value}).sample(jax.random.key(0), 1)[0].parameters
    parameters = {name: jnp.asarray(np.round(float(leaf), 9)) for name, leaf in parameters.items()}  # of float32
    state = CartpoleState(*map(jnp.asarray, (*place, *speed, 0.0)))
    still = CartpoleState(*map(jnp.asarray, (*place, *speed, 0.0)))
    plain = {name: jnp.asarray(span[0]) for name, span in cartpole.CartpoleRange().spans().items()}
    for action in np.random.default_rng(0).uniform(-1, 1, 20):
        physics.set_control([action])
        physics.step()
        state, _ = cartpole_step(parameters, state, jnp.asarray([action]))
        still, _ = cartpole_step(plain, still, jnp.asarray([action]))
    found = [state.position, state.angle, state.velocity, state.angular_velocity]
    expected = [*physics.data.qpos, *physics.data.qvel]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert abs(float(still.angle) - expected[1]) > 1e-3  # the change is felt


WALKERS = {
    "thigh_length": (
        0.4,
        [
            (r'pos="0 0 -0\.225" size="0\.05 0\.225"', 'pos="0 0 -0.4" size="0.05 0.4"', 2),
            (r'pos="0 0 -0\.7"', 'pos="0 0 -1.05"', 2),
        ],
    ),
    "torso_length": (
        0.5,
        [('size="0.07 0.3"', 'size="0.07 0.5"', 1), (r'pos="0 (-?\.05) -0\.3"', r'pos="0 \1 -0.5"', 2)],
    ),
    "joint_damping": (3.0, [(r'joint damping="\.1"', 'joint damping="3"', 1)]),
    "contact_friction": (0.1, [(r'friction="\.7 \.1 \.1"', 'friction="0.1 .1 .1"', 1)]),
}


@pytest.mark.dm_control
@pytest.mark.parametrize("option", WALKERS)
def test_perturbed_walkers_move_as_dm_controls(option):
    from dm_control.suite import common
    from dm_control.suite.walker import Physics

    value, edits = WALKERS[option]
    theirs, default = (Physics.from_xml_string(*changed(common, "walker.xml", *each)) for each in (edits, []))
    robots = [make("realworld-walker", options=o).simulator.environment for o in ({option: value}, {})]
    rng = np.random.default_rng(1)
    place = np.concatenate([[-0.1, 0, 0.1], rng.uniform(-0.3, 0.0, 6)])  # the feet in or near the floor
    starts = Placement(place[None], np.full((1, 9), 0.5), np.zeros((1, 0, 3)))
    engines = [engine_of(robot) for robot in robots]
    sessions = [engine.start(starts)[0] for engine in engines]
    for physics in (theirs, default):
        with physics.reset_context():
            physics.data.qpos[:], physics.data.qvel[:] = place, 0.5
    for _ in range(12):
        control = rng.uniform(-1, 1, 6)
        for physics in (theirs, default):
            physics.set_control(control)
            physics.step(10)
        readings = [
            engine.named(engine.advance(session, control[None], None, np.ones(1, bool)))
            for engine, session in zip(engines, sessions, strict=True)
        ]
        for reading, physics in zip(readings, (theirs, default), strict=True):
            for name in ("qpos", "qvel", "xmat", "xpos"):
                expected = np.reshape(getattr(physics.data, name), -1)
                np.testing.assert_allclose(np.ravel(reading[name][0]), expected, rtol=0, atol=1e-9)
    for engine, session in zip(engines, sessions, strict=True):
        engine.finish(session)
    assert np.abs(theirs.data.qvel - default.data.qvel).max() > 1e-2
