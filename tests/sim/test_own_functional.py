"""Worlds of users' own environments in JAX: what is read off the environment, and what is said of a wrong one."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from toy_policies import Noisy

import safemeta
from safemeta.core import CMDP, Tasks
from safemeta.sim import FunctionalWorld, Step


@dataclass(frozen=True)
class Drift:
    """A place that is blown about; what it shows can be spoilt."""

    spoilt: dict = field(default_factory=dict, hash=False)

    def reset(self, parameters, key):
        place = jax.random.normal(key) + 0 * parameters["wind"]
        return {"place": place}, self.spoilt.get("reset", jnp.stack([place, 1 + 0 * place]))

    def step(self, parameters, state, action):
        place = state["place"] + parameters["wind"] + action[1]
        parts = {
            "observation": jnp.stack([place, state["place"]]),
            "reward": -jnp.abs(place),
            "costs": jnp.stack([jnp.maximum(place, 0.0), jnp.abs(action[0])]),
            "terminated": jnp.asarray(False),
        }
        changed = {name: value for name, value in self.spoilt.items() if name in parts}
        return self.spoilt.get("state", {"place": place}), Step(**parts | changed)


SETTINGS = {"action_size": 2, "horizon": 4, "limits": {"high": 1.0, "hard": 3.0}, "cost_names": ["high", "hard"]}
TASKS = {"tasks": {"wind": (0.1, -0.5), "unused": (0.0, 2.0)}}


def test_sizes_limits_and_tasks_are_what_was_asked_for():
    world = safemeta.functional_world(Drift(), **SETTINGS, **TASKS, test_tasks={"wind": (1.0, 2.0), "unused": (3, 3)})
    assert world.cmdp == CMDP(2, 2, 4, ("high", "hard"), (1.0, 3.0))
    assert world.functional
    drawn = {split: world.sample(jax.random.key(0), 50, split) for split in ("train", "validation", "test")}
    for split, low, high in (("train", -0.5, 0.1), ("validation", -0.5, 0.1), ("test", 1.0, 2.0)):
        wind = np.asarray(drawn[split].parameters["wind"])
        assert low <= wind.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < wind.max() <= high
        np.testing.assert_array_equal(drawn[split].limits, np.tile([1.0, 3.0], (50, 1)))
    corners = world.corners().parameters
    np.testing.assert_allclose([corners["wind"][0], corners["unused"][0]], [-0.5, 2.0])  # hard ends first
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        world.sample(jax.random.key(0), 1, "tset")


def test_episodes_are_those_of_a_plain_loop():
    environment = Drift()
    world = safemeta.functional_world(environment, **SETTINGS, **TASKS)
    tasks, key, policy = world.sample(jax.random.key(1), 2), jax.random.key(2), Twice(Noisy(jnp.array(0.3)))
    rows = world.collect(policy, tasks, key, 1)
    for task, row_key in enumerate(jax.random.split(key, 2)):
        place = float(jax.random.normal(jax.random.fold_in(row_key, 4)))
        seen = [place, 1.0]
        for t in range(4):
            action = np.asarray(policy.act(jnp.array(seen), jax.random.fold_in(row_key, t))[0])
            before, place = place, place + float(tasks.parameters["wind"][task]) + action[1]
            seen = [place, before]
            np.testing.assert_allclose(rows.reward[task, 0, t], -abs(place), rtol=1e-5)
            np.testing.assert_allclose(rows.costs[task, 0, t], [max(place, 0), abs(action[0])], rtol=1e-5, atol=1e-6)


class Twice(Noisy):
    """The toy's one action, twice."""

    def __init__(self, toy):
        self.gain, self.name = toy.gain, toy.name

    def act(self, observation, key):
        action, log_prob = super().act(observation, key)
        return jnp.repeat(action, 2), log_prob


def test_one_task_one_cost_and_families_of_ones_own():
    world = safemeta.functional_world(Still(), action_size=1, horizon=2, limits=1, limit_on="per_step")
    assert (world.cmdp.cost_names, world.cmdp.limits, world.cmdp.limit_on) == (("cost",), (1.0,), "per_step")
    assert world.corners().count == 1
    still = Still()
    own = safemeta.functional_world(still, action_size=1, horizon=2, limits=1.0, tasks=Once())
    assert own == FunctionalWorld(CMDP(1, 1, 2, ("cost",), (1.0,)), still, Once())
    with pytest.raises(ValueError, match=r"limits of 2 tasks of the split 'train' have the shape \(2, 3\)"):
        safemeta.functional_world(Still(), action_size=1, horizon=2, limits=1.0, tasks=Once(costs=3))
    with pytest.raises(ValueError, match="test_tasks goes with ranges"):
        safemeta.functional_world(Still(), action_size=1, horizon=2, limits=1.0, tasks=Once(), test_tasks={})


class Still:
    """Nothing happens."""

    def reset(self, parameters, key):
        return (), jnp.zeros(1)

    def step(self, parameters, state, action):
        return state, Step(jnp.zeros(1), jnp.zeros(()), jnp.zeros(1), jnp.asarray(False))


@dataclass(frozen=True)
class Once:
    """A family without parameters."""

    costs: int = 1

    def sample(self, key, count, split="train"):
        return Tasks({}, jnp.ones((count, self.costs)), jnp.zeros((count, 1)))

    def corners(self):
        return self.sample(jax.random.key(0), 1)


@pytest.fixture
def as_users_have_it():
    """Without the check of shapes at run time, which only tests have and which would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        ({"reset": jnp.zeros((2, 1))}, r"that reset gives must be one row of type float, not float32 \["),
        ({"observation": jnp.zeros(3)}, r"observation is float32 \[2\] after reset and float32 \[3\] after step"),
        ({"reward": jnp.zeros(1)}, r"the reward must be one number of type float, not float32 \[1\]"),
        ({"costs": jnp.array([True, False])}, r"the row of costs must be one row of type float, not bool \[2\]"),
        ({"terminated": jnp.zeros(())}, r"terminated must be one number of type bool"),
        ({"state": {"place": jnp.zeros(2)}}, r"state\['place'\] is float32 \[\] after reset and float32 \[2\] after"),
        ({"state": {"spot": jnp.zeros(())}}, r"state\['place'\] is float32 \[\] after reset and not there after step"),
    ],
)
def test_an_environment_of_the_wrong_form_is_refused_in_one_sentence(spoilt, sentence):
    with pytest.raises(ValueError, match=sentence):
        safemeta.functional_world(Drift(spoilt), **SETTINGS, **TASKS)


class Broken(Still):
    """It raises, or gives no Step."""

    def __init__(self, part):
        self.part = part

    def reset(self, parameters, key):
        return ((), jnp.zeros(1)) if self.part == "step" else parameters["wnid"]

    def step(self, parameters, state, action):
        return state, (jnp.zeros(1), 0.0, jnp.zeros(1), False)


@dataclass
class Unhashable(Still):
    """A dataclass that is not frozen."""


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize(
    ("environment", "changes", "sentence"),
    [
        (Broken("reset"), {}, "reset failed when it was traced: KeyError: 'wnid'"),
        (Broken("step"), {}, "the next state and a safemeta.sim.Step, not a tuple"),
        (Unhashable(), {}, "the environment cannot be hashed: make it a frozen dataclass"),
        (Still(), {"horizon": 0}, "horizon must be a whole number of at least 1 step, not 0"),
        (Still(), {"action_size": 1.0}, "action_size must be a whole number of at least 1, not 1.0"),
        (Still(), {"discount": 1.5}, "discount must be above 0 and at most 1"),
        (Still(), {"limits": -1.0}, "a limit must be a number that is zero or more"),
        (Still(), {"cost_names": ["a", "b"]}, "a step has 1 costs, and cost_names names 2"),
        (Still(), {"tasks": {"wind": (0, float("nan"))}}, "the range of 'wind'"),
        (Still(), {"tasks": {"wind": (0, 1)}, "test_tasks": {"rain": (0, 1)}}, "must name the same parameters"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(environment, changes, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        safemeta.functional_world(environment, **{"action_size": 1, "horizon": 2, "limits": 1.0} | changes)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def example(load_example):
    """`examples/own_task.py` as a module."""
    return load_example("own_task")


def test_the_lorry_slides_where_its_road_bends_too_much(example, repository):
    assert len((repository / "examples" / "own_task.py").read_text().splitlines()) <= 75
    road, place, speed = example.WindingRoad(), 12.0, 13.0
    step = jax.jit(road.step)
    for grip in (0.3, 0.9):
        for action in (-2.0, 0.4):
            after = speed + 0.2 * (10 + 10 * max(action, -1.0) - speed)
            bend = 0.03 * math.sin(2 * math.pi * (place + 0.2 * after) / 40)
            state, found = step({"grip": grip}, (jnp.array(place), jnp.array(speed)), jnp.array([action]))
            np.testing.assert_allclose(state, [place + 0.2 * after, after], rtol=1e-6)
            np.testing.assert_allclose(found.reward, 0.02 * after, rtol=1e-6)
            assert found.costs[0] == (after**2 * abs(bend) > 9.81 * grip)
            np.testing.assert_allclose(found.observation[:2], [after / 10, bend / 0.03], rtol=1e-5)


@pytest.mark.slow
def test_the_example_runs(example, capsys):
    example.main(1, 1, tasks=2, episodes=2, critic_steps=2)
    shown = capsys.readouterr().out
    assert "return after  adaptation: " in shown
    assert "every policy safe: " in shown
