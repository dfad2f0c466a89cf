"""Every task as a Gymnasium environment: what Gymnasium's own checker says, and the same episodes as the world's."""

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from safemeta.gymnasium import IDS, environment_id
from safemeta.tasks import registry

SOME = ("point-circle", "point-button", "point-mass", "tabular-gridworld")


def test_every_task_is_registered_under_its_name():
    assert len(IDS) == len(registry.names())
    assert set(IDS) <= set(gymnasium.registry)
    assert environment_id("hazards-0.15-goal") == "safemeta/Hazards0.15Goal-v0"
    assert environment_id("point-circle-meta-cpo") == "safemeta/PointCircleMetaCpo-v0"


@pytest.mark.parametrize("name", SOME)
def test_gymnasiums_checker_finds_nothing(name):
    """Its warnings are errors here."""
    check_env(gymnasium.make(environment_id(name)).unwrapped)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in registry.names() if name not in SOME])
def test_gymnasiums_checker_finds_nothing_in_all_others(name):
    check_env(gymnasium.make(environment_id(name)).unwrapped)


def test_options_of_the_task_are_passed_on():
    options = {"constraint": "slider_pos,action_roc", "observe_constraints": True, "pole_length": 2}
    env = gymnasium.make(environment_id("realworld-cartpole"), task_options=options)
    observation, info = env.reset(seed=0)
    assert (observation.shape, info["task"]["pole_length"]) == ((7,), 2.0)
    with pytest.raises(ValueError, match=r"^the task option pole_length must be"):
        gymnasium.make(environment_id("realworld-cartpole"), task_options={"pole_length": 9})


@pytest.mark.parametrize("name", ["point-circle", "collision-avoidance-2", "tabular-random", "point-goal-1", "hopper"])
def test_an_episode_is_the_worlds_own(name):
    class Played(eqx.Module):
        """Acts by what it sees, in an unclipped way."""

        def act(self, observation, key):
            size = env.world.cmdp.action_size
            return 2 * jnp.sin(10 * jnp.sum(observation) + jnp.arange(size)), jnp.zeros(())

    env = gymnasium.make(environment_id(name), horizon=12, split="test").unwrapped
    observation, info = env.reset(seed=4)
    rows = env.world.collect(Played(), env.task, env.episode_key, 1)
    assert info["limits"] == dict(zip(env.world.cmdp.cost_names, env.task.limits[0].tolist(), strict=True))
    for t in range(12):
        assert observation.dtype == np.float32
        np.testing.assert_allclose(observation, rows.observation[0, 0, t], rtol=1e-4, atol=1e-5)
        if not rows.valid[0, 0, t]:
            break
        action = np.asarray(rows.action[0, 0, t])
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_allclose(reward, rows.reward[0, 0, t], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(list(info["costs"].values()), rows.costs[0, 0, t], rtol=1e-4, atol=1e-5)
        assert info["cost"] == pytest.approx(sum(info["costs"].values()))
        assert terminated == rows.terminated[0, 0, t]
        assert truncated == rows.truncated[0, 0, t]
        if terminated or truncated:
            break
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(action)
    env.close()
    env.close()


def test_seeds_repeat_and_options_choose_the_task():
    env = gymnasium.make(environment_id("point-circle"))
    first, info = env.reset(seed=3)
    second, other = env.reset()
    assert info["task"] != other["task"]
    again, same = env.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    assert info == same
    assert not np.array_equal(first, second)
    _, chosen = env.reset(options={"task": {"wall": 0.5}})
    assert chosen["task"]["wall"] == 0.5
    env.reset(seed=1)
    for _ in range(500):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        assert not terminated
        if truncated:
            break
    else:
        pytest.fail("the horizon is 500")
    other = gymnasium.make(environment_id("point-circle-meta-cpo"))
    train, test = (other.reset(options={"split": split})[1] for split in ("train", "test"))
    assert train["limits"]["out_of_bounds"] == 10
    assert test["limits"]["out_of_bounds"] == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tsk": 1}, "unknown option 'tsk' of reset"),
        ({"split": "tset"}, "unknown split 'tset'"),
        ({"task": 3}, "must give numbers to parameters by name"),
        ({"task": {"radios": 3}}, "no parameter 'radios'; there are radius, wall"),
        ({"task": {"radius": [1, 2]}}, "'radius' must be a number"),
        ({"task": {"radius": float("nan")}}, "'radius' must be a number"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_sentence(options, sentence):
    env = gymnasium.make(environment_id("point-circle"))
    with pytest.raises(ValueError, match=sentence):
        env.reset(options=options)


def test_settings_that_make_no_sense_are_refused():
    for changes, sentence in (
        ({"split": "tset"}, "unknown split"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"limit": -1.0}, "limit must be"),
    ):
        with pytest.raises(ValueError, match=sentence):
            gymnasium.make(environment_id("point-circle"), **changes)


def test_random_keys_are_those_of_the_seed_alone():
    env = gymnasium.make(environment_id("point-circle")).unwrapped
    env.reset(seed=8)
    before = jax.random.key_data(env.episode_key)
    env.reset(seed=8)
    np.testing.assert_array_equal(before, jax.random.key_data(env.episode_key))
