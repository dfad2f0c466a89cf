"""Shields: never a violation that a grid action could have avoided, and the nearest such action, by brute force."""

import dataclasses
import json
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import safemeta
from safemeta.algorithms import dual, fac_sis
from safemeta.certificates import SafetyIndex, action_grid
from safemeta.cli import main
from safemeta.experiment.adapt import adapt
from safemeta.experiment.certify import certify
from safemeta.experiment.config import RunConfig, TaskConfig
from safemeta.experiment.errors import UserError
from safemeta.experiment.evaluate import evaluate
from safemeta.experiment.run import Run
from safemeta.experiment.run_certificate import certificate_of
from safemeta.experiment.shield import Shield, Shielded, ShieldedAgent, ShieldedWorld, shield_of
from safemeta.tasks.collision_avoidance import CollisionAvoidance, UnicycleState, advance

SMALL = fac_sis.Config(hidden=(8,), tasks=2, capacity=64, batch=4, warm_up=4, steps_per_update=2)
POINTS, TASKS, EPISODES = 9, 2, 3  # the same everywhere: compiled once


class Ahead(eqx.Module):
    """Straight on at full throttle, more than the actuators give, with a wobble."""

    throttle: jax.Array = eqx.field(converter=jnp.asarray, default=1.5)

    def act(self, observation, key):
        return jnp.stack([self.throttle, 0.3 * jax.random.normal(key)]), jnp.zeros(())


class Linear(eqx.Module):
    """A critic that looks at the acceleration only."""

    slope: jax.Array
    offset: jax.Array

    def __call__(self, observation, action):
        return self.slope * action[..., 0] + self.offset


@pytest.fixture(scope="module")
def world():
    return safemeta.make("collision-avoidance", horizon=15)


@pytest.fixture(scope="module")
def state(world):
    return fac_sis.Algorithm(SMALL).init(jax.random.key(3), world.cmdp)


@pytest.fixture
def run(world, state, tmp_path):
    """A run as `load` would give it, without having trained one."""
    config = RunConfig("fac-sis", SMALL, TaskConfig("collision-avoidance", horizon=15), 0, 1)
    return Run(tmp_path, config, fac_sis.Algorithm(SMALL), world, state, iteration=5)


def test_the_nearest_safe_action_is_taken_as_brute_force_finds_it(run, world):
    certificate = certificate_of(run, "handcrafted")
    index, environment = SafetyIndex.named("handcrafted", 0.5), CollisionAvoidance()
    agent = ShieldedAgent("model", POINTS, 0.0)
    tasks, key = world.sample(jax.random.key(0), TASKS), jax.random.key(5)
    _, (step, wish, violated) = world.interact(agent, Shielded(Ahead(), certificate.index), tasks, key, EPISODES)
    grid = np.asarray(action_grid(2, POINTS))
    changed = 0
    for t in range(15):
        for row in range(6):
            here = UnicycleState(*jnp.asarray(step.observation[t, row]))
            wanted = np.clip(np.asarray(wish.action[t, row]), -1, 1)
            options = np.concatenate([wanted[None], grid])
            there = advance(jax.tree.map(lambda leaf: jnp.full(1 + POINTS**2, leaf), here), jnp.asarray(options))
            before = max(float(index.index(environment.clearance({}, here))), 0)
            delta = np.asarray(index.index(environment.clearance({}, there))) - before
            if (np.abs(delta) < 1e-5).any():
                continue  # rounding decides
            safe = delta <= 0
            assert bool(wish.feasible[t, row]) == safe.any()
            taken = np.clip(np.asarray(step.action[t, row]), -1, 1)
            best = np.argmin(np.where(safe, ((options - wanted) ** 2).sum(1), np.inf)) if safe.any() else delta.argmin()
            if safe.any():
                assert ((taken - wanted) ** 2).sum() == pytest.approx(((options[best] - wanted) ** 2).sum(), abs=1e-6)
                assert not violated[t, row]
            else:
                np.testing.assert_allclose(taken, options[best], atol=1e-6)
            assert bool(wish.changed[t, row]) == (not safe[0])
            changed += bool(wish.changed[t, row])
    assert changed > 10


def test_behind_the_shield_nothing_is_violated_that_need_not_be(run, world):
    tasks, key = world.sample(jax.random.key(0), TASKS), jax.random.key(5)
    shield = Shield("model", certificate_of(run, "feasible"), POINTS)
    behind = shield.measure(world, Ahead(), tasks, key, EPISODES)
    free = shield.without().measure(world, Ahead(), tasks, key, EPISODES)
    assert int(behind.infeasible.sum()) == 0
    assert int(behind.violated.sum()) == 0
    assert int(free.violated.sum()) > 10
    assert int(free.changed.sum()) == 0
    assert float(behind.costs.sum()) == 0
    assert float(free.costs.sum()) > 0
    assert int(behind.steps.sum()) == TASKS * EPISODES * 15


def test_a_shield_that_has_nothing_to_do_changes_nothing(run, world):
    """Far from the hazard, backwards: the episodes are those of the policy itself."""
    tasks, key = world.sample(jax.random.key(0), TASKS), jax.random.key(5)
    policy = eqx.tree_at(lambda p: p.throttle, Ahead(), jnp.asarray(-0.9))
    shield = Shield("model", certificate_of(run, "feasible"), POINTS)
    trajectory, performance = shield.collect(world, policy, tasks, key, EPISODES)
    free, _ = shield.without().collect(world, policy, tasks, key, EPISODES)
    assert int(performance.changed.sum()) == 0
    for name, leaf in vars(free).items():
        np.testing.assert_allclose(getattr(trajectory, name), leaf, rtol=1e-5, atol=1e-6, err_msg=name)


def test_trajectories_and_totals_are_those_that_the_world_itself_gives(run, world):
    """A policy without noise, and no shield: what is left is bookkeeping."""
    tasks, key = world.sample(jax.random.key(0), TASKS), jax.random.key(5)
    shield = Shield(None, certificate_of(run, None), POINTS)
    found, performance = shield.collect(world, run.policy, tasks, key, EPISODES)
    expected, totals = world.collect(run.policy, tasks, key, EPISODES), world.measure(run.policy, tasks, key, EPISODES)
    for name, leaf in vars(expected).items():
        np.testing.assert_allclose(getattr(found, name), leaf, rtol=2e-4, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(performance.episode_return, totals.episode_return, rtol=1e-4)
    np.testing.assert_allclose(performance.costs, totals.costs)


def test_the_critic_is_asked_about_every_candidate(run, world):
    """A critic that likes only negative accelerations, and one that likes nothing but prefers full throttle."""
    tasks, key = world.sample(jax.random.key(0), TASKS), jax.random.key(5)
    certificate = certificate_of(run, None)
    for slope, offset, acceleration, feasible in ((1.0, 0.1, -0.25, True), (-1.0, 2.0, 1.0, False)):
        critic = Linear(jnp.asarray(slope), jnp.asarray(offset))
        agent = ShieldedAgent("critic", POINTS, 0.0)
        state = Shielded(Ahead(), certificate.index, critic)
        _, (step, wish, _) = world.interact(agent, state, tasks, key, EPISODES)
        np.testing.assert_allclose(jnp.clip(step.action[..., 0], -1, 1), acceleration, atol=1e-6)
        assert bool(wish.feasible.all()) == feasible


def test_a_shield_needs_what_it_judges_by(run):
    with pytest.raises(UserError, match="must be model or critic"):
        shield_of(run, "modell", None, None)
    with pytest.raises(UserError, match="leave --index out"):
        shield_of(run, "critic", "zero", None)
    other = dataclasses.replace(run, state=None, config=dataclasses.replace(run.config, algorithm="cpo"))
    with pytest.raises(UserError, match="no constraint critic") as problem:
        shield_of(other, "critic", None, None)
    assert problem.value.exit_code == 2
    with pytest.raises(UserError, match="--index handcrafted"):
        shield_of(other, "model", None, None)


def test_an_evaluation_with_a_shield_shows_both(run):
    plain = evaluate(run, tasks=TASKS, episodes=EPISODES)
    assert "shield" not in plain.to_json()
    report = evaluate(run, tasks=TASKS, episodes=EPISODES, shield="model", actions=POINTS)
    content = json.loads((run.folder / "evaluation-shield.json").read_bytes())
    assert content == json.loads(json.dumps(report.to_json()))
    assert content["shield"].keys() == {
        "kind", "points", "certificate", "steps", "intervened", "infeasible", "violated", "without"
    }  # fmt: skip
    assert content["shield"]["steps"] == 2 * 3 * 15
    without = content["shield"]["without"]
    assert without["episode_return"]["mean"] == pytest.approx(plain.episode_return.mean, rel=1e-4)
    assert without["largest_cost"][0]["cost"]["mean"] == pytest.approx(plain.largest_cost[0].cost.mean)
    assert json.loads((run.folder / "evaluation.json").read_bytes()) == json.loads(json.dumps(plain.to_json()))


def test_the_command(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["safemeta.experiment.evaluate"], "load", lambda folder, checkpoint: run)
    assert main(["evaluate", "r", "--tasks", "2", "--episodes", "3", "--shield", "critic", "--actions", "9"]) == 0
    out = capsys.readouterr().out
    assert "shield (critic): steps intervened in" in out
    assert "without it: return" in out
    for arguments, words in (
        (["--index", "zero"], "add --shield"),
        (["--actions", "3"], "add --shield"),
        (["--shield", "modell"], "did you mean 'model'"),
        (["--shield", "model", "--actions", "1"], "at least 2, not 1"),
        (["--shield", "model", "--actions", "500"], "100000 are the most"),
    ):
        assert main(["evaluate", "r", *arguments]) == 2
        assert words in capsys.readouterr().err


class Adapted(eqx.Module):
    """What `adapt` needs of an adaptation."""

    policies: Ahead
    outcome: jax.Array
    outcome_names: tuple[str, ...] = eqx.field(static=True, default=("stayed",))


def test_adaptation_behind_a_shield_learns_and_is_judged_behind_it(run, world, capsys, monkeypatch):
    seen = []

    def learn(state, world, tasks, key, steps):
        seen.append(world.collect(Ahead(jnp.ones(2)), tasks, key, EPISODES, per_task=True))
        return Adapted(Ahead(jnp.ones((steps + 1, 2))), jnp.zeros((steps, 2), int))

    algorithm = types.SimpleNamespace(adapt=learn, policy=lambda state: Ahead())
    config = dataclasses.replace(run.config, algorithm="dual", options=dual.Config())
    meta = dataclasses.replace(run, algorithm=algorithm, config=config, state=None)
    report = adapt(meta, tasks=TASKS, steps=1, episodes=EPISODES, shield="model", index="feasible", actions=POINTS)
    assert float(seen[0].costs.sum()) == 0
    np.testing.assert_allclose(jnp.clip(seen[0].action[..., 0], -1, 1), 1)  # what the policy drew, not what was done
    assert report.safe
    assert report.shield is not None
    assert (report.shield["violated"], report.shield["steps"]) == (0.0, 2 * TASKS * EPISODES * 15)
    assert 0 < report.shield["intervened"] < 1
    assert {path.name for path in run.folder.glob("*.json")} == {"adaptation-shield.json"}
    monkeypatch.setattr(sys.modules["safemeta.experiment.adapt"], "load", lambda folder, checkpoint: meta)
    options = ["--tasks", "2", "--steps", "1", "--episodes", "4", "--quiet"]
    assert main(["adapt", "r", *options, "--shield", "model"]) == 2
    assert "--index handcrafted" in capsys.readouterr().err


def test_a_shielded_world_is_one_like_any_other(run, world):
    shielded = ShieldedWorld(world, Shield("model", certificate_of(run, "feasible"), POINTS))
    assert hash(shielded) == hash(ShieldedWorld(world, Shield("model", certificate_of(run, "feasible"), POINTS)))
    assert (shielded.cmdp, shielded.functional, shielded.on_host) == (world.cmdp, True, False)
    tasks = shielded.sample(jax.random.key(0), TASKS, "test")
    np.testing.assert_array_equal(shielded.corners().limits, world.corners().limits)

    @eqx.filter_jit
    def inside(shielded, tasks, key):
        return shielded.measure(Ahead(), tasks, key, EPISODES)

    found = inside(shielded, tasks, jax.random.key(1))
    outside = shielded.measure(Ahead(), tasks, jax.random.key(1), EPISODES)
    np.testing.assert_allclose(found.episode_return, outside.episode_return, rtol=1e-4)


@pytest.mark.slow
def test_on_mujoco_the_simulator_is_asked_as_well(tmp_path):
    """Two pillar worlds, a robot at full throttle: no step breaks the constraint where an action tried would not."""
    world = safemeta.make("pillars-0.30-goal", horizon=60)
    config = RunConfig("cpo", None, TaskConfig("pillars-0.30-goal", horizon=60), 0, 1)
    meta = types.SimpleNamespace(policy=lambda state: Ahead())
    run = Run(tmp_path, config, meta, world, None)
    report = certify(run, tasks=3, index="feasible")
    assert (report.points, report.actions, report.states.visited) == (5, 25, 180)
    shield = shield_of(run, "model", "feasible", None)
    tasks = world.sample(jax.random.key(0), 4)
    behind = shield.measure(world, Ahead(), tasks, jax.random.key(1), 1)
    free = shield.without().measure(world, Ahead(), tasks, jax.random.key(1), 1)
    assert int(free.violated.sum()) > 0
    np.testing.assert_array_less(behind.violated, behind.infeasible + 1)
    assert int(behind.violated.sum()) < int(free.violated.sum())
