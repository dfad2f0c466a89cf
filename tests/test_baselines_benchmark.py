"""The benchmark of baselines: its references hold in the tasks themselves, and its output has the agreed shape."""

import json
from types import SimpleNamespace
from typing import Any

import baselines
import jax
import jax.numpy as jnp
import numpy as np
import point_mass_optimum as reference
import pytest
from scipy.optimize import root
from scipy.stats import norm

from safemeta.tasks import make
from safemeta.tasks.point_mass import PointMass
from safemeta.tasks.tabular import optimal_safe_policy, performance
from safemeta.tasks.tabular_families import DISCOUNT, cmdp_of


def test_probabilities_of_the_highest_score():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(4, 2)), np.exp(rng.normal(size=(4, 2)))
    expected = norm.cdf((mean[:, 0] - mean[:, 1]) / np.sqrt((std**2).sum(1)))
    np.testing.assert_allclose(baselines.choice_probabilities(mean, std)[:, 0], expected, atol=1e-6)
    mean, std = rng.normal(size=(2, 4)), np.exp(rng.normal(size=(2, 4)))
    drawn = mean[:, None] + std[:, None] * rng.normal(size=(2, 200_000, 4))
    counted = (drawn.argmax(-1)[..., None] == np.arange(4)).mean(1)
    np.testing.assert_allclose(baselines.choice_probabilities(mean, std), counted, atol=6e-3)


def test_gaussian_scores_come_as_near_as_one_likes_to_the_optimal_table():
    """The linear programme's policy mixes actions in some states: there are means that mix them in the same way."""
    tasks = make("tabular-random").sample(jax.random.key(0), 1)
    model = cmdp_of(tasks[0])
    best = optimal_safe_policy(model, tuple(map(float, tasks.limits[0])), DISCOUNT)
    assert np.any((best.policy > 0.01) & (best.policy < 0.99))
    wanted = np.clip(best.policy, 1e-5, None)
    wanted /= wanted.sum(1, keepdims=True)
    std = np.ones_like(wanted)

    def error(mean):
        found = baselines.choice_probabilities(np.append(mean.reshape(10, 2), np.zeros((10, 1)), 1), std, nodes=401)
        return (np.log(found[:, :2]) - np.log(wanted[:, :2])).ravel()

    solved = root(error, np.zeros(20))
    assert solved.success
    mean = np.append(solved.x.reshape(10, 2), np.zeros((10, 1)), 1)
    table = baselines.choice_probabilities(mean, std)
    np.testing.assert_allclose(table, best.policy, atol=1e-3)
    value = np.asarray(performance(model, jnp.asarray(table, jnp.float32), DISCOUNT))
    np.testing.assert_allclose(value, [best.reward, *best.costs], rtol=2e-3)


@pytest.mark.parametrize("avoid", [False, True])
def test_the_best_paths_are_the_tasks_own(avoid):
    """The task, driven by the accelerations of the solution, has its positions, return and cost."""
    world = make("point-mass")
    path = reference.best_path(np.array(reference.START), avoid=avoid)
    positions = np.concatenate([[reference.START], path.positions])
    velocity = np.diff(positions, axis=0, prepend=positions[:1]) / 0.1
    actions = jnp.asarray(np.diff(velocity, axis=0) / 0.1)
    assert np.all(np.abs(actions) < 1 + 1e-5)
    parameters = jax.tree.map(lambda leaf: leaf[0], world.corners().parameters)
    environment = PointMass()
    start, _ = environment.reset(parameters, jax.random.key(0))
    start = type(start)(jnp.asarray(reference.START), jnp.zeros(2))
    _, steps = jax.lax.scan(lambda state, action: environment.step(parameters, state, action), start, actions)
    np.testing.assert_allclose(steps.reward.sum(), path.value, rtol=1e-4)
    discounted = world.cmdp.cost_weights() @ steps.costs
    np.testing.assert_allclose(discounted, [0, 0 if avoid else path.cost], atol=1e-3)
    assert avoid or path.cost > 3 * 2.0


def test_the_optimum_of_the_point_mass_is_bracketed():
    found = reference.optimum()
    assert found.careful < found.safe < found.free <= found.free_above + 1e-3
    assert found.free_above - found.free < 0.01
    np.testing.assert_allclose(found.share * found.free_cost, 2.0)
    assert reference.optimum(limit=100.0).share == 1


def test_output_has_the_agreed_shape(capsys):
    options = "--case tabular-random --algorithm crpo --seeds 1 --iterations 1 --json"
    assert baselines.main(options.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == "baselines"
    for row in found["rows"]:
        assert row.keys() == {"case", "value", "unit", "peer", "peer_value", "ratio"}
    rows = {row["case"]: row for row in found["rows"]}
    np.testing.assert_allclose(rows["tabular-random: crpo, return"]["peer_value"], 13.285, atol=1e-3)
    cost = rows["tabular-random: crpo, highest cost_0"]
    np.testing.assert_allclose(cost["ratio"], 8.0 / cost["value"])
    with pytest.raises(SystemExit):
        baselines.main(["--seeds", "0"])


def test_settings_of_a_case_and_what_cpo_and_crpo_change():
    settings = {"margin": 0.5, "kl_radius": 0.02}
    nothing: Any = None
    case = baselines.Case(nothing, 1.0, 1.0, "", (), nothing, 1, settings, {"multiplier_damping": 3.0}, 0.2)
    found = {name: baselines.learner(case, name).config for name in ("cpo", "crpo", "trpo-lagrangian")}
    assert [found[name].margin for name in found] == [0.2, 0.5, 0.5]
    assert [found[name].kl_radius for name in found] == [0.02, 0.02 * baselines.CRPO_RADIUS, 0.02]
    assert found["trpo-lagrangian"].multiplier_damping == 3


class Counting:
    """A learner that only counts its iterations."""

    def init(self, key, cmdp):
        return 0

    def iterate(self, state, world, key):
        return state + 1, {}

    def policy(self, state):
        return state


def test_iterations_are_those_asked_for_or_else_the_case_s_and_crpo_s_more(monkeypatch, capsys):
    """A policy's return is here how often it was improved."""
    world: Any = SimpleNamespace(cmdp=SimpleNamespace(cost_names=("crash",)))
    case = baselines.Case(world, 1.0, 1.0, "none", (1.0,), lambda count: (count, np.zeros(1)), 3, {}, {})
    monkeypatch.setattr(baselines, "CASES", {"toy": lambda: case})
    monkeypatch.setattr(baselines, "learner", lambda case, name: Counting())
    monkeypatch.setattr(baselines, "enable_cache", lambda: None)

    def returns(*options):
        assert baselines.main(["--case", "toy", "--algorithm", "cpo", "crpo", "--seeds", "1", "--json", *options]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        return [row["value"] for row in rows if row["case"].endswith(", return")]

    assert returns() == [3, 3 * baselines.CRPO_ITERATIONS]
    assert returns("--iterations", "2") == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "algorithms"),
    [
        ("tabular-random", "trpo cpo crpo trpo-lagrangian ppo-lagrangian"),
        ("point-mass", "trpo cpo crpo trpo-lagrangian ppo-lagrangian"),
    ],
)
def test_baselines_come_within_five_per_cent_of_the_optimum(capsys, case, algorithms):
    options = ["--case", case, "--algorithm", *algorithms.split(), "--seeds", "1", "--json"]
    assert baselines.main(options) == 0
    for row in json.loads(capsys.readouterr().out)["rows"]:
        if row["unit"] == "return":
            assert row["ratio"] > 0.95, row
        elif row["unit"] == "cost":
            assert row["value"] <= row["peer_value"], row
