"""Certificates of runs: numbers against a second way of counting, intervals against SciPy, errors in one sentence."""

import dataclasses
import json
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import safemeta
from safemeta.algorithms import fac_sis
from safemeta.certificates import SafetyIndex, action_grid
from safemeta.cli import main
from safemeta.core import Moment
from safemeta.experiment import certificate_sets, run_certificate
from safemeta.experiment.certified_episodes import Visited, binding, noiseless
from safemeta.experiment.certify import Share, certify, findings
from safemeta.experiment.config import RunConfig, TaskConfig
from safemeta.experiment.errors import UserError
from safemeta.experiment.run import Run
from safemeta.experiment.run_certificate import certificate_of, grid_of, grid_points
from safemeta.experiment.statistics import binomial_interval
from safemeta.nets import GaussianPolicy
from safemeta.sim.batched import act_on_rows
from safemeta.tasks.collision_avoidance import CollisionAvoidance, UnicycleState, advance

SMALL = fac_sis.Config(hidden=(8,), tasks=2, capacity=64, batch=4, warm_up=4, steps_per_update=2)
SIZES = ("--tasks", "3", "--episodes", "2", "--actions", "5")  # the same everywhere: compiled once


@pytest.fixture(scope="module")
def made():
    """The state of an untrained run, and its world."""
    algorithm = fac_sis.Algorithm(SMALL)
    world = safemeta.make("collision-avoidance", horizon=12)
    return algorithm, world, algorithm.init(jax.random.key(3), world.cmdp)


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A run as `load` would give it, without having trained one."""
    monkeypatch.setattr(certificate_sets, "SHAPE", (9, 17, 8))
    algorithm, world, state = made
    config = RunConfig("fac-sis", SMALL, TaskConfig("collision-avoidance", horizon=12), 0, 1)
    return Run(tmp_path, config, algorithm, world, state, iteration=5)


class Ahead(eqx.Module):
    """Straight on at full throttle."""

    def act(self, observation, key):
        return jnp.array([1.0, 0.0]), jnp.zeros(())


def test_the_report_counts_what_is_counted_from_whole_trajectories(run):
    run.algorithm = types.SimpleNamespace(policy=lambda state: Ahead())
    report = certify(run, tasks=3, episodes=2, actions=5, index="handcrafted", seed=4)
    index, environment = SafetyIndex.named("handcrafted", 0.5), CollisionAvoidance()
    keys = jax.random.key(4)
    tasks = run.world.sample(jax.random.fold_in(keys, 0), 3, "test")
    rows = run.world.collect(run.policy, tasks, jax.random.fold_in(keys, 1), 2)
    seen = np.concatenate([rows.observation, rows.last_observation[:, :, None]], axis=2).reshape(6, 13, 5)
    phi = np.asarray(index.index(environment.clearance({}, UnicycleState(*jnp.asarray(seen.transpose(2, 0, 1))))))
    tried = np.broadcast_to(seen[:, :-1, None], (6, 12, 25, 5)).transpose(3, 0, 1, 2)
    following = advance(UnicycleState(*jnp.asarray(tried)), jnp.broadcast_to(action_grid(2, 5), (6, 12, 25, 2)))
    least = np.asarray(index.index(environment.clearance({}, following))).min(-1)
    bound = np.maximum(phi[:, :-1], 0)
    broken, possible = phi[:, 1:] > bound, least <= bound
    stuck = broken & ~possible
    entered = (np.hypot(seen[..., 0], seen[..., 1] - seen[..., 4]) < 0.5).any(1)
    states, paths = report.states, report.trajectories
    assert (states.visited, states.infeasible, states.violations, states.avoidable) == (
        72, stuck.sum(), broken.sum(), (broken & possible).sum(),
    )  # fmt: skip
    assert 0 < states.avoidable < states.violations
    assert (paths.hazard_entry.count, paths.infeasible.count) == (entered.sum(), stuck.any(1).sum())
    assert paths.success.count == (~entered & ~stuck.any(1)).sum()
    assert report.largest_index == pytest.approx(phi.max(), rel=1e-4)
    assert report.episode_return.mean == pytest.approx(float(rows.reward.sum(-1).mean()), rel=1e-4)


def test_the_file_is_the_report_and_the_picture_is_there(run):
    report = certify(run, tasks=3, episodes=2, actions=5)
    content = json.loads((run.folder / "certificate.json").read_bytes())
    assert content == json.loads(json.dumps(report.to_json()))
    assert report.picture == run.folder / "plots" / "certificate.png"
    assert report.picture.stat().st_size > 10_000
    assert content["certificate"]["source"] == "learned"
    assert content["certificate"]["sigma"] == pytest.approx(0.3)
    assert content["actions"] == 25
    assert content["reachability"]["inclusion"][0].keys() >= {"top_speed", "points", "unsafe_inside", "sublevel_share"}
    assert content["trajectories"].keys() == {"hazard_entry", "infeasible", "success", "cost"}
    assert content["costs"]["collision"].keys() == {"mean", "low", "high"}


@pytest.mark.parametrize(("count", "of"), [(0, 100), (1, 1), (3, 20), (99, 100), (100, 100), (500, 1000)])
def test_intervals_are_those_of_scipy(count, of):
    expected = stats.binomtest(count, of).proportion_ci(0.95, method="exact")
    assert binomial_interval(count, of) == pytest.approx((expected.low, expected.high), abs=1e-12)
    share = Share.where([True] * count + [False] * (of - count))
    assert (share.count, share.of, share.share) == (count, of, count / of)


def test_an_interval_needs_trials():
    with pytest.raises(ValueError, match="not 2 of 1"):
        binomial_interval(2, 1)


def test_shares_of_trajectories_by_hand():
    """Three trajectories of two steps: into the hazard on arrival; infeasible; ended before anything happened."""
    yes, no = True, False
    valid = np.array([[yes, yes, yes], [yes, yes, no]])
    grid = np.array([[yes, yes, yes], [yes, no, no]])
    delta = np.array([[0.1, -1.0, 0.0], [-0.1, 0.2, 9.0]])
    distance, arrived = np.full((2, 3), 2.0), np.array([[1.0, 1.0, 1.0], [0.4, 1.0, 0.1]])
    zeros = np.zeros((2, 3))
    visited = Visited(
        valid, np.zeros((2, 3, 5)), zeros, np.ones((2, 3, 1)) * [[[0], [0], [0]], [[1], [0], [1]]], grid,
        zeros + 0.5, delta, zeros, delta, np.zeros((2, 3, 2)), arrived, distance,
    )  # fmt: skip
    found = findings(visited, safemeta.make("collision-avoidance", horizon=2).cmdp, 0.7)
    assert vars(found["states"]) == {
        "visited": 5, "feasible": 4, "infeasible": 1, "missed": 0, "violations": 2, "avoidable": 1,
        "feasible_share": 0.8, "violation_share": 0.4, "safe_actions": 0.5,
    }  # fmt: skip
    counts = {name: share.count for name, share in vars(found["trajectories"]).items()}
    assert counts == {"hazard_entry": 1, "infeasible": 1, "success": 1, "cost": 1}
    assert found["largest_index"] == pytest.approx(0.2)
    assert found["smallest_distance"] == pytest.approx(0.4)
    assert found["costs"]["collision"].mean == pytest.approx(1 / 3)


def test_the_simulator_is_asked_in_parts_and_nothing_changes(run, monkeypatch):
    index = SafetyIndex.named("feasible", 0.5)
    asked = []

    def look(actions):
        asked.append(actions.shape[1])
        return {"clearance": (1.5 + actions)[..., None, :]}  # (d, d') of one obstacle

    moment = Moment(jnp.zeros((2, 5)), {"clearance": jnp.ones((2, 1, 2))}, look)
    candidates = grid_of(jnp.zeros((2, 2)), 4)
    whole = run_certificate.look_ahead(index, 0.0, moment, candidates).violation
    monkeypatch.setattr(run_certificate, "SEEN_AT_ONCE", 10)
    parts = run_certificate.look_ahead(index, 0.0, moment, candidates).violation
    assert asked == [16, 5, 5, 5, 1]
    np.testing.assert_allclose(parts, whole)


def test_the_binding_obstacle_is_the_one_with_the_highest_energy():
    index = SafetyIndex(0.0, [1.0], 1.0, 0.5)  # type: ignore[arg-type]
    clearance = jnp.array([[[1.0, 0.0], [2.0, -3.0]], [[1.0, 0.0], [2.0, 3.0]]])
    np.testing.assert_array_equal(binding(index, clearance), [[2.0, -3.0], [1.0, 0.0]])


def test_gaussian_policies_drive_with_their_mean():
    policy = GaussianPolicy.create(3, 2, jax.random.key(0), hidden=(2,))
    observation = jax.random.normal(jax.random.key(1), (4, 3))
    np.testing.assert_array_equal(noiseless(policy, observation, jax.random.key(2)), policy(observation).mean)


class Drawing(eqx.Module):
    """Noise about a place."""

    place: jax.Array

    def act(self, observation, key):
        return self.place + observation[:2] + jax.random.normal(key, (2,)), observation.sum()


def test_policies_per_task_act_on_their_own_rows():
    policies = Drawing(jnp.array([[0.0, 100.0], [200.0, 300.0]]))
    observation, keys = jax.random.normal(jax.random.key(1), (6, 3)), jax.random.split(jax.random.key(2), 6)
    found, log_prob = act_on_rows(policies, observation, keys, tasks=2)
    shared, _ = act_on_rows(Drawing(jnp.zeros(2)), observation, keys)
    np.testing.assert_allclose(found - shared, [[0, 100]] * 3 + [[200, 300]] * 3, atol=1e-4)
    np.testing.assert_allclose(log_prob, observation.sum(1), rtol=1e-6)


def test_an_index_is_the_runs_own_or_a_named_one(run):
    assert certificate_of(run, None).source == "learned"
    fixed = dataclasses.replace(run, config=dataclasses.replace(run.config, algorithm="fac"))
    assert (certificate_of(fixed, None).source, certificate_of(fixed, None).name) == ("fixed", "handcrafted")
    named = certificate_of(run, "zero")
    assert (named.sigma, named.k, named.n, named.safe_distance) == (0.0, (0.0,), 1.0, 0.5)
    clearance = jnp.array([[0.9, -1.0]])
    own = run.state.learner.index
    assert certificate_of(run, None).index.index(clearance) == pytest.approx(float(own.index(clearance)))
    with pytest.raises(UserError, match="did you mean 'zero'"):
        certificate_of(run, "zeros")


def test_the_grid_is_coarser_where_choices_cost_steps(run):
    host = types.SimpleNamespace(cmdp=run.world.cmdp, on_host=True)
    assert (grid_points(run.world, None), grid_points(host, None), grid_points(host, None, looks=False)) == (17, 5, 17)
    with pytest.raises(UserError, match="100000 are the most"):
        grid_points(run.world, 400)


def test_a_run_on_another_task_has_no_certificate(run):
    elsewhere = dataclasses.replace(
        run,
        world=safemeta.make("point-mass"),
        config=dataclasses.replace(run.config, algorithm="cpo", task=TaskConfig("point-mass")),
    )
    for index in (None, "handcrafted"):
        with pytest.raises(UserError, match="'point-mass' measures no distance to obstacles") as problem:
            certify(elsewhere, index=index)
        assert problem.value.exit_code == 2


def test_other_algorithms_are_judged_by_a_named_index_only(run):
    other = dataclasses.replace(run, state=None, config=dataclasses.replace(run.config, algorithm="cpo"))
    with pytest.raises(UserError, match="--index handcrafted") as problem:
        certify(other)
    assert problem.value.exit_code == 2


def test_the_command(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["safemeta.experiment.certify"], "load", lambda folder, checkpoint: run)
    assert main(["certify", "r", *SIZES, "--json", "--quiet"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((run.folder / "certificate.json").read_bytes())
    assert main(["certify", "r", *SIZES, "--index", "feasible"]) == 0
    out, err = capsys.readouterr()
    assert "neither" in out
    assert "95 % interval" in out
    assert "certificate.png" in err
    for arguments, words in (
        (["--index", "feasable"], "did you mean 'feasible'"),
        (["--actions", "1"], "at least 2, not 1"),
        (["--tasks", "0"], "number of tasks"),
        (["--episodes", "0"], "number of episodes"),
    ):
        assert main(["certify", "r", *arguments]) == 2
        assert words in capsys.readouterr().err
