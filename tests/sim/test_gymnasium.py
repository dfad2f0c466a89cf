"""Users' Gymnasium environments: rows against plain loops, where costs come from, and what may go wrong."""

import itertools
import sys
import threading
import time

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from own_environments import Broken, Settable, SixValues, Slide, TwoCosts
from toy_policies import Noisy

from safemeta.core import Tasks
from safemeta.sim.cost_check import check_costs
from safemeta.sim.cost_reader import CostReader
from safemeta.sim.failures import SimulationError, pending, raise_pending
from safemeta.sim.gymnasium import Host
from safemeta.sim.own_world import gymnasium_world
from safemeta.sim.watched import Overdue, watched

HORIZON, EPISODES = 6, 2
EDGES = {"edge": (0.9, 0.2)}


def slides(make=Slide, **changes):
    settings = {"horizon": HORIZON, "limits": 1.0, "tasks": EDGES} | changes
    return gymnasium_world(lambda parameters: make(**parameters), **settings)


@pytest.fixture
def tasks():
    return Tasks({"edge": jnp.array([0.2, 0.7, 1e6])}, jnp.ones((3, 1)), jnp.zeros((3, 1)))


def seed_of(key, row, rows):
    key = jax.random.fold_in(jax.random.split(key, rows)[row], HORIZON)
    return int(jax.random.bits(key, dtype=jnp.uint32)) >> 1


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("limit_of_time", [None, 4])
def test_collect_equals_a_loop_over_rows_and_steps(tasks, per_task, limit_of_time):
    def make(edge):
        return Slide(edge) if limit_of_time is None else TimeLimit(Slide(edge), limit_of_time)

    world, key, gain = slides(make), jax.random.key(3), jnp.array([2.0, 1.0, 3.0])
    rows = world.collect(Noisy(gain if per_task else gain[0]), tasks, key, EPISODES, per_task=per_task)
    keys = jax.random.split(key, 3 * EPISODES)
    ended = 0
    for task in range(3):
        acting = Noisy(gain[task] if per_task else gain[0])
        for episode in range(EPISODES):
            row = task * EPISODES + episode
            env = make(float(tasks.parameters["edge"][task]))
            observation, _ = env.reset(seed=seed_of(key, row, 3 * EPISODES))
            for t in range(HORIZON):
                at = (task, episode, t)
                np.testing.assert_allclose(rows.observation[at], observation, atol=1e-6)
                action, log_prob = acting.act(jnp.asarray(observation), jax.random.fold_in(keys[row], t))
                np.testing.assert_allclose(rows.action[at], action, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(rows.log_prob[at], log_prob, atol=1e-4)
                observation, reward, terminated, truncated, info = env.step(np.clip(np.asarray(action), -0.5, 0.5))
                np.testing.assert_allclose(rows.reward[at], reward, atol=1e-6)
                np.testing.assert_allclose(rows.costs[at], [info["cost"]], atol=1e-6)
                assert rows.valid[at]
                assert rows.terminated[at] == terminated
                assert rows.truncated[at] == (not terminated and (truncated or t == HORIZON - 1))
                if terminated or truncated:
                    ended += terminated
                    assert not rows.valid[task, episode, t + 1 :].any()
                    assert not rows.truncated[task, episode, t + 1 :].any()
                    assert not rows.reward[task, episode, t + 1 :].any()
                    break
            np.testing.assert_allclose(rows.last_observation[task, episode], observation, atol=1e-6)
    assert 0 < ended < 3 * EPISODES


def test_measure_totals_the_episodes_that_collect_stores_inside_jit_too(tasks):
    world, key = slides(lambda edge: TimeLimit(Slide(edge), 4)), jax.random.key(5)

    @jax.jit
    def both(key):
        policy = Noisy(jnp.array(2.0))
        return world.collect(policy, tasks, key, EPISODES), world.measure(policy, tasks, key, EPISODES)

    rows, totals = both(key)
    np.testing.assert_allclose(totals.episode_return, rows.reward.sum(-1), rtol=1e-5)
    weighted = jnp.einsum("ijtc,t->ijc", rows.costs, world.cmdp.cost_weights())
    np.testing.assert_allclose(totals.costs, weighted, rtol=1e-5)
    again = world.measure(Noisy(jnp.array(2.0)), tasks, key, EPISODES)
    np.testing.assert_array_equal(again.costs, totals.costs)


def pushed(world, tasks=None):
    tasks = world.sample(jax.random.key(0), 2) if tasks is None else tasks
    return world.collect(Noisy(jnp.array(1.0)), tasks, jax.random.key(1), EPISODES)


def test_costs_come_from_wherever_the_environment_has_them(tasks):
    plain = pushed(slides(), tasks)
    six = pushed(slides(SixValues), tasks)
    own = pushed(slides(cost=lambda seen, action, following, info: max(abs(following[0]) - 0.2, 0)), tasks)
    np.testing.assert_array_equal(plain.costs, six.costs)
    np.testing.assert_allclose(plain.costs[0], own.costs[0], atol=1e-6)
    both = slides(TwoCosts, limits={"effort": 2, "beyond": 1})
    assert both.cmdp.cost_names == ("beyond", "effort")
    assert both.cmdp.limits == (1.0, 2.0)
    named = pushed(both)
    effort = np.abs(np.clip(named.action[..., 0], -0.5, 0.5))
    np.testing.assert_allclose(named.costs[..., 1], np.where(named.valid, effort, 0), atol=1e-6)
    one = slides(TwoCosts, cost_names=["effort"], limits=[2])
    assert one.cmdp.cost_names == ("effort",)
    np.testing.assert_array_equal(pushed(one).costs[..., 0], named.costs[..., 1])
    several = slides(cost=lambda seen, action, following, info: (0.0, info["cost"]))
    assert several.cmdp.cost_names == ("cost_1", "cost_2")
    np.testing.assert_array_equal(pushed(several, tasks).costs[..., 1:], plain.costs)


def test_other_observations_than_a_row_of_numbers_are_flattened():
    class Rich(Slide):
        def __init__(self, edge):
            super().__init__(edge)
            self.observation_space = spaces.Dict({"side": spaces.Discrete(2), "at": spaces.Box(-9, 9, (2, 1))})

        def seen(self):
            return {"side": int(self.position > 0), "at": np.full((2, 1), self.position, np.float32)}

    rows = pushed(slides(Rich))
    assert rows.observation.shape[-1] == 4
    np.testing.assert_array_equal(rows.observation[..., 0], rows.observation[..., 1])
    np.testing.assert_array_equal(rows.observation[..., 3], rows.observation[..., 0] > 0)


def test_one_task_by_id_or_by_a_function_of_nothing():
    pendulum = gymnasium_world("Pendulum-v1", horizon=3, limits=5, cost=lambda seen, action, following, info: 1)
    assert pendulum.name == "Pendulum-v1"
    rows = pushed(pendulum)
    assert rows.observation.shape == (2, EPISODES, 3, 3)
    assert rows.truncated[..., -1].all()
    own = gymnasium_world(Slide, horizon=3, limits=5)
    assert own.name == "Slide"
    assert pushed(own).costs.shape == (2, EPISODES, 3, 1)
    corner = own.corners()
    assert corner.count == 1
    assert not corner.parameters


def test_tasks_lie_between_their_ends_and_the_hardest_corner_comes_first():
    world = slides(
        lambda edge, weight: Slide(edge), tasks=EDGES | {"weight": (1, 2)}, test_tasks=EDGES | {"weight": (3, 4)}
    )
    drawn, test = (world.sample(jax.random.key(0), 50, split) for split in ("train", "test"))
    assert np.all((drawn.parameters["edge"] >= 0.2) & (drawn.parameters["edge"] <= 0.9))
    assert np.all((test.parameters["weight"] >= 3) & (test.parameters["weight"] <= 4))
    assert np.all(np.abs(drawn.descriptor) <= 1)
    corners = world.corners()
    assert corners.count == 4
    np.testing.assert_allclose([corners.parameters["edge"][0], corners.parameters["weight"][0]], [0.2, 2])
    np.testing.assert_allclose(corners.descriptor[0], 1, rtol=1e-6)
    np.testing.assert_allclose(corners.descriptor[-1], -1, rtol=1e-6)
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        world.sample(jax.random.key(0), 1, "tset")


def test_environments_are_used_again():
    Settable.made = 0
    world = gymnasium_world(lambda parameters: Settable(), horizon=2, limits=1, tasks=EDGES)
    for seed in range(3):
        drawn = world.sample(jax.random.key(seed), 2)
        rows = world.collect(Noisy(jnp.array(9.0)), drawn, jax.random.key(1), EPISODES)
        beyond = np.maximum(np.abs(rows.reward[..., 0]) - np.asarray(drawn.parameters["edge"])[:, None], 0)
        np.testing.assert_allclose(rows.costs[..., 0, 0], beyond, atol=1e-6)
    assert Settable.made == 1 + 2 * EPISODES  # one to look at, and one for each row


FAULTS = {
    "raises": r"RuntimeError: the motor is on fire$",
    "shape": r"the observation has 3 numbers instead of 2$",
    "observation": r"number 1 of the observation is NaN or infinite$",
    "reward": r"the reward is inf$",
    "cost": r"the cost 'cost' is nan$",
    "missing": r"the step has no cost: it is looked for in",
    "text": r"the cost 'cost' is not a number but a str 'much'$",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_in_the_middle_is_reported_with_task_episode_and_step(tasks, fault):
    world = slides(lambda edge: Broken(edge, fault))
    where = r"the environment of task 1 \(edge 0\.7\), episode 0, failed at step 3: "
    with pytest.raises(SimulationError, match=where + FAULTS[fault]):
        pushed(world, tasks)
    rows = pushed(world, tasks[:1])  # and is forgotten then; the other task works
    assert np.isfinite(rows.costs).all()


def test_failures_at_reset_and_inside_jit_are_kept_and_a_diverged_policy_is_no_fault_of_the_environment(tasks):
    class Late(Slide):
        def reset(self, **given):
            if self.edge > 1:
                raise ValueError("no such edge")
            return super().reset(**given)

    world = slides(Late)
    jax.block_until_ready(
        jax.jit(lambda key: world.collect(Noisy(jnp.array(1.0)), tasks, key, EPISODES))(jax.random.key(0))
    )
    problem = pending()
    assert "task 2 (edge 1e+06), episode 0, failed at reset: ValueError: no such edge" in str(problem)
    assert isinstance(problem.__cause__, ValueError)
    with pytest.raises(SimulationError, match="the policy's action is not a finite number"):
        world.collect(Noisy(jnp.array(jnp.nan)), tasks[:1], jax.random.key(0), EPISODES)


class Hanging(Slide):
    """Does not come back from a call where the edge is above 0.6, until it is let go."""

    let_go = threading.Event()
    where = ""

    def reset(self, **given):
        self.hang("reset")
        return super().reset(**given)

    def step(self, action):
        self.hang("step")
        return super().step(action)

    def hang(self, where):
        if where == self.where and self.edge > 0.6:
            self.let_go.wait()


@pytest.mark.parametrize(("where", "when"), [("reset", "at reset"), ("step", "at step 2")])
def test_what_hangs_is_given_up_after_the_time_out(where, when, monkeypatch):
    made = []

    def make(parameters):
        made.append(Hanging(**parameters))
        return made[-1]

    space = Slide().observation_space
    host = Host(make, CostReader(("cost",)), space, Slide().action_space, timeout=0.3)
    edges, seeds = {"edge": np.array([0.5, 0.7, 0.5])}, [1, 2, 3]
    monkeypatch.setattr(Hanging, "where", where if where == "reset" else "")
    number, first = host.start(edges, seeds, 1)
    if where == "step":
        assert np.isfinite(first).all()
        assert np.isfinite(host.advance(number, np.zeros((3, 1)), np.ones(3, bool)).observation).all()
        monkeypatch.setattr(Hanging, "where", where)
    began = time.monotonic()
    step = host.advance(number, np.zeros((3, 1)), np.ones(3, bool))
    assert time.monotonic() - began < 5
    assert np.isnan(step.observation).all()
    assert np.isnan(step.costs).all()
    assert np.isnan(host.start(edges, seeds, 1)[1]).all()  # and nobody is asked again before it is told
    assert len(made) == (2 if where == "reset" else 3)
    Hanging.let_go.set()  # what comes back too late changes nothing
    sentence = rf"the environment of task 1 \(edge 0.7\), episode 0, failed {when}: it has not answered for 0.3 s$"
    with pytest.raises(SimulationError, match=sentence):
        raise_pending()
    Hanging.let_go.clear()
    host.finish(number)
    monkeypatch.setattr(Hanging, "where", "")
    number, first = host.start(edges, seeds, 1)
    assert np.isfinite(first).all()
    assert pending() is None


def test_a_call_is_overdue_only_if_nothing_moves():
    moved = itertools.count()
    assert watched(lambda: time.sleep(0.3) or 7, 0.1, lambda: next(moved)) == 7
    with pytest.raises(Overdue, match=r"it has not answered for 0\.1 s"):
        watched(lambda: time.sleep(0.5), 0.1)
    with pytest.raises(SystemExit):
        watched(lambda: sys.exit(3), 5)
    assert watched(threading.current_thread, None) is threading.current_thread()
    assert watched(threading.current_thread, 5) is watched(threading.current_thread, 5)


class Discrete(Slide):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(4)


@pytest.mark.parametrize(
    ("make", "changes", "sentence"),
    [
        (Discrete, {}, "cannot be trained on: its actions are a Discrete space, and policies here are Gaussian"),
        ("Pendulum-v1", {}, r"cannot be trained on: the step has no cost: it is looked for in info\[\"cost\"\]"),
        ("Pendulun-v1", {}, "failed when it was tried: NameNotFound"),
        (lambda: 1 / 0, {}, "failed when it was tried: ZeroDivisionError: division by zero"),
        (TwoCosts, {"cost_names": ["beyond", "efort"]}, "the cost 'efort' is missing; there are: beyond, effort"),
        (TwoCosts, {"limits": [1]}, r"1 limits were given for 2 costs \(beyond, effort\)"),
        (TwoCosts, {"limits": {"beyond": 1}}, "limits are needed for beyond, effort, not for beyond"),
        (Slide, {"limits": -1}, "a limit must be a number that is zero or more, not -1"),
        (Slide, {"horizon": 0}, "horizon must be a whole number of at least 1 step, not 0"),
        (Slide, {"discount": 0}, "discount must be above 0"),
        (Slide, {"timeout": 0}, "timeout must be a number of seconds above 0, or None for no limit, not 0"),
        (lambda: time.sleep(0.5), {"timeout": 0.1}, "failed when it was tried: it has not answered for 0.1 s"),
        (Slide, {"tasks": {"edge": (3, float("nan"))}}, "the range of 'edge' must be two numbers"),
        (Slide, {"tasks": EDGES, "test_tasks": {"ege": (0, 1)}}, "test_tasks must name the same parameters"),
        (Slide, {"cost": lambda *_: np.zeros((2, 2))}, "is not a number but a ndarray of shape"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_at_once(make, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        gymnasium_world(make, **({"horizon": 5, "limits": 1.0} | changes))


def test_check_costs_reports_what_random_actions_cost():
    report = check_costs(TimeLimit(TwoCosts(0.3), 20), steps=100)
    assert report.names == ("beyond", "effort")
    assert report.episodes >= 5
    assert report.share[1] == 1
    assert 0 < report.share[0] < 1
    assert 0.1 < report.mean[1] < 0.4 < report.largest[1] <= 0.5
    assert report.per_episode[1] == pytest.approx(report.mean[1] * 100 / report.episodes, rel=0.25)


class Odd(Slide):
    """Costs by a function of the step's number and of whether the episode ends."""

    def __init__(self, cost):
        super().__init__(0.3)
        self.cost, self.total = cost, 0

    def step(self, action):
        *step, _ = super().step(action)
        self.total += 1
        return *step, self.cost(self.total, step[2])


@pytest.mark.parametrize(
    ("cost", "sentence"),
    [
        (lambda t, over: {"cost": 1.0} if t < 5 else {}, "step 5: the step has no cost"),
        (lambda t, over: {"cost": None}, "step 1: the cost 'cost' is not a number but a NoneType"),
        (lambda t, over: {"cost": [1.0, 2.0][: 1 + t % 2]}, "step 2: the costs were cost_1, cost_2 before and"),
        (lambda t, over: {"costs": {"a": 1.0, **({"b": 0} if t > 3 else {})}}, "step 4: the costs were a before"),
        (lambda t, over: {"cost": float("nan") if t == 7 else 0.0}, "step 7: the cost 'cost' is nan"),
    ],
)  # fmt: skip
def test_check_costs_names_the_step_where_costs_are_wrong(cost, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_costs(Odd(cost), steps=50)


@pytest.mark.parametrize(
    ("cost", "sentence"),
    [
        (lambda t, over: {"cost": -1.0 if t == 4 else 0.0}, r"is negative \(-1 at step 4\)"),
        (lambda t, over: {"cost": 0}, "zero in all of 200 random steps"),
        (lambda t, over: {"cost": float(over)}, "comes only with the last step of an episode"),
    ],
)
def test_check_costs_warns_of_what_is_likely_a_mistake(cost, sentence):
    with pytest.warns(UserWarning, match=sentence):
        check_costs(Odd(cost), steps=200)


def test_gymnasium_itself_is_what_is_imported():
    assert gymnasium.__name__ == "gymnasium"
    assert hasattr(gymnasium, "make")
