"""Delays, noise and repetition against plain loops; what comes through them against the task without them."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.sim import Step
from safemeta.sim.challenges import ChallengedFunctional, Challenges
from safemeta.tasks import make

STEPS = 9
ACTIONS = np.linspace(-0.4, 0.4, STEPS)


@dataclass(frozen=True)
class Adder:
    """Its state is the sum of all actions, seen together with a constant; the reward is the action."""

    def reset(self, parameters, key):
        start = jax.random.normal(key, ())
        return start, jnp.stack([start, start * 0 + 7])

    def step(self, parameters, state, action):
        after = state + action[0]
        return after, Step(jnp.stack([after, after * 0 + 7]), action[0], jnp.abs(after)[None], jnp.asarray(False))


def passed(challenges, key=0, environment=None, actions=ACTIONS):
    """Observations, rewards and costs of an episode under the actions."""
    channelled = ChallengedFunctional(environment or Adder(), challenges, 1)

    @jax.jit
    def episode(key):
        state, first = channelled.reset({}, key)
        (_, record) = jax.lax.scan(lambda s, a: channelled.step({}, s, a), state, jnp.asarray(actions)[:, None])
        return first, record

    first, steps = episode(jax.random.key(key))
    seen = np.concatenate([np.asarray(first)[None], np.asarray(steps.observation)])
    return seen, np.asarray(steps.reward), np.asarray(steps.costs)[:, 0]


def fifo(values, delay):
    """A queue that the first value fills."""
    queue = [values[0]] * delay
    out = []
    for value in values:
        queue.append(value)
        out.append(queue.pop(0))
    return np.array(out)


@pytest.fixture(scope="module")
def plain():
    return passed(Challenges())


def test_without_challenges_the_task_is_as_it_was(plain):
    start, first = Adder().reset({}, jax.random.key(0))
    np.testing.assert_array_equal(plain[0][0], first)
    np.testing.assert_allclose(plain[0][1:, 0], float(start) + np.cumsum(ACTIONS), rtol=1e-5)
    np.testing.assert_allclose(plain[1], ACTIONS, rtol=1e-6)
    assert Challenges().none
    assert Challenges(exact=2).none
    assert not Challenges(action_delay=1).none
    assert not Challenges(observation_stuck=0.1).none
    assert Challenges(observation_stuck_steps=5).none


def test_signals_are_the_environments_or_none():
    @dataclass(frozen=True)
    class Loud(Adder):
        def signals(self, parameters, state):
            return {"sum": state}

    late = ChallengedFunctional(Loud(), Challenges(observation_delay=2), 1)
    state, _ = late.reset({}, jax.random.key(0))
    assert late.signals({}, late.step({}, state, jnp.ones(1))[0])["sum"] == state.task + 1
    assert not hasattr(ChallengedFunctional(Adder(), Challenges(), 1), "signals")


@pytest.mark.dm_control
@pytest.mark.parametrize(("name", "settles"), [("walker", False), ("humanoid", True)])
def test_delays_keep_or_lack_the_environments_settling(name, settles):
    robot = make(f"realworld-{name}", options={"action_delay": 1})
    assert hasattr(robot.simulator.environment, "settle") == settles


@pytest.mark.parametrize("delay", [1, 3, 20])
def test_observations_and_rewards_come_later_and_the_first_fills_the_gap(plain, delay):
    seen, rewards, costs = passed(Challenges(observation_delay=delay, reward_delay=delay))
    np.testing.assert_array_equal(seen, fifo(plain[0], delay))
    np.testing.assert_array_equal(rewards, fifo(plain[1], delay))
    np.testing.assert_array_equal(costs, plain[2])  # what is done counts when it is done


@pytest.mark.parametrize("delay", [1, 3])
def test_a_delayed_action_is_the_undelayed_one_shifted(delay):
    found = passed(Challenges(action_delay=delay))
    expected = passed(Challenges(), actions=fifo(ACTIONS, delay))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_repeated_action_is_held():
    _, rewards, _ = passed(Challenges(action_repetition=4, action_delay=1))
    delayed = fifo(ACTIONS, 1)
    np.testing.assert_allclose(rewards, [delayed[t - t % 4] for t in range(STEPS)], rtol=1e-6)


def test_noise_is_white_of_its_size_and_leaves_the_exact_entries():
    count = 4000
    clean = passed(Challenges(), actions=np.zeros(count))[0]
    seen, rewards, _ = passed(
        Challenges(observation_noise=0.3, action_noise=0.05, exact=1), actions=np.full(count, 0.2)
    )
    action = rewards - 0.2
    observation = seen[1:, 0] - (clean[1:, 0] + np.cumsum(rewards))
    assert (seen[:, 1] == 7).all()
    for noise, size in ((action, 0.05), (observation, 0.3)):
        np.testing.assert_allclose(noise.mean(), 0, atol=4 * size / count**0.5)
        np.testing.assert_allclose(noise.std(), size, rtol=0.05)
        np.testing.assert_allclose(np.mean((noise / size) ** 4), 3, atol=0.6)  # as of a normal distribution
        assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.06
    assert abs(np.corrcoef(action, observation)[0, 1]) < 0.06
    assert not np.array_equal(seen, passed(Challenges(observation_noise=0.3), key=1, actions=np.zeros(count))[0])
    again = passed(Challenges(observation_noise=0.3, action_noise=0.05, exact=1), actions=np.full(count, 0.2))
    np.testing.assert_array_equal(again[0], seen)


@pytest.mark.parametrize("kind", ["dropped", "stuck"])
def test_entries_fail_with_their_probability_for_their_time(kind):
    count, p, steps = 4000, 0.05, 4
    settings = {f"observation_{kind}": p, f"observation_{kind}_steps": steps, "exact": 1}
    actions = np.full(count, 0.5)
    clean, seen = (passed(each, actions=actions)[0] for each in (Challenges(), Challenges(**settings)))
    assert (seen[:, 1] == 7).all()
    fails = seen[:, 0] != clean[:, 0]
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], fails, [0]]))))[::2]
    assert set(runs[:-1] % steps) == {0}  # two failures may follow each other
    np.testing.assert_allclose(fails.mean(), steps * p / (steps * p + 1 - p), rtol=0.15)
    before = np.concatenate([seen[:1, 0], seen[:-1, 0]])
    np.testing.assert_array_equal(seen[fails, 0], 0 if kind == "dropped" else before[fails])
    always = passed(Challenges(**settings | {f"observation_{kind}": 1.0}))[0][:, 0]
    np.testing.assert_array_equal(always, 0 if kind == "dropped" else [clean[0, 0]] * len(always))


@dataclass(frozen=True)
class Script:
    """Actions that the observation does not change: the key of the step alone says which."""

    size: int

    def act(self, observation, key):
        return jax.random.uniform(key, (self.size,), observation.dtype, -1.0), jnp.zeros(())


@pytest.mark.parametrize("name", ["realworld-cartpole", pytest.param("realworld-walker", marks=pytest.mark.dm_control)])
def test_both_kinds_of_worlds_send_what_they_collect_through_the_channel(name):
    plain = make(name, horizon=6, options={"observe_constraints": True})
    late = make(name, horizon=6, options={"observe_constraints": True, "observation_delay": 2, "reward_delay": 1})
    policy, key = Script(plain.cmdp.action_size), jax.random.key(5)
    tasks = plain.sample(jax.random.key(0), 2)
    expected, found = (jax.device_get(world.collect(policy, tasks, key, 2)) for world in (plain, late))
    np.testing.assert_array_equal(found.action, expected.action)
    np.testing.assert_array_equal(found.costs, expected.costs)
    for task, episode in np.ndindex(2, 2):
        np.testing.assert_array_equal(found.observation[task, episode], fifo(expected.observation[task, episode], 2))
        np.testing.assert_array_equal(found.reward[task, episode], fifo(expected.reward[task, episode], 1))
    totals = late.measure(policy, tasks, key, 2)
    np.testing.assert_allclose(totals.episode_return, found.reward.sum(-1), rtol=1e-5)


@pytest.mark.dm_control
def test_a_world_on_mujoco_delays_and_holds_actions_too():
    late = make("realworld-walker", horizon=5, options={"action_delay": 1, "action_repetition": 2})
    plain = make("realworld-walker", horizon=5)
    robot = plain.simulator.environment
    tasks, key = plain.sample(jax.random.key(0), 1), jax.random.key(5)
    found = jax.device_get(late.collect(Script(6), tasks, key, 1))
    delayed = fifo(found.action[0, 0], 1)
    held = np.array([delayed[t - t % 2] for t in range(5)])

    @dataclass(frozen=True)
    class Replay:
        def act(self, observation, key):  # finds its step by the key
            keys = jax.vmap(lambda t: jax.random.fold_in(jax.random.split(jax.random.key(5), 1)[0], t))(jnp.arange(5))
            now = jnp.argmax((jax.random.key_data(keys) == jax.random.key_data(key)).all(-1))
            return jnp.asarray(held)[now], jnp.zeros(())

    expected = jax.device_get(plain.collect(Replay(), tasks, key, 1))
    np.testing.assert_array_equal(found.observation, expected.observation)
    np.testing.assert_array_equal(found.costs, expected.costs)
    assert robot == replace(robot)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action_delay": -1}, r"^action_delay must be at least 0, not -1$"),
        ({"observation_noise": -0.1}, r"^observation_noise must be zero or a positive number"),
        ({"action_noise": float("nan")}, r"^action_noise must be"),
        ({"action_repetition": 0}, r"^action_repetition must be at least 1"),
        ({"observation_stuck_steps": 0}, r"^observation_stuck_steps must be at least 1"),
        ({"observation_dropped": 1.1}, r"^observation_dropped must be a probability, not 1\.1"),
    ],
)
def test_bad_challenges_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Challenges(**arguments)
