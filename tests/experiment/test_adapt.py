"""Adaptation and evaluation reports against numbers computed from the definitions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.experiment import adapt, evaluate
from safemeta.experiment.adapt import adapt_policies
from safemeta.experiment.errors import UserError
from safemeta.experiment.evaluate import largest_costs


def test_largest_cost_by_hand():
    episodes = np.array([-1.0, 0.0, 1.0])  # mean 0, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653
    means = np.array([[[1.0, 7.0], [2.0, 0.0]], [[6.0, 7.5], [3.0, 9.5]]])  # [step, task, cost]
    costs = means[:, :, None, :] + episodes[None, None, :, None]
    limits = np.array([[2.0, 10.0], [2.0, 7.0]])
    first, second = largest_costs(("a", "b"), costs, limits)
    assert (first.name, first.step, first.task, first.limit) == ("a", 1, 0, 2.0)
    half = 4.302653 / np.sqrt(3)
    assert dataclasses.astuple(first.cost) == pytest.approx((6.0, 6 - half, 6 + half), abs=1e-5)
    assert (first.policies, first.above_limit, first.significantly_above) == (4, 2, 1)
    # 9.5 against a limit of 7 is worse than 7.5 against 10, and 2.0 against 2 is no violation
    assert (second.name, second.step, second.task, second.limit) == ("b", 1, 1, 7.0)
    assert (second.above_limit, second.significantly_above) == (1, 1)


def test_adapt_judges_every_policy_on_fresh_episodes(trained):
    report = adapt(trained, tasks=5, steps=3, episodes=40, seed=2)
    assert report.returns.shape == (4, 5)
    assert report.costs.shape == (4, 5, 1)
    # The dummy's return is 10 |w|_1 (plus unit noise), and its step k scales w by 1 + 0.05 k.
    size = float(np.abs(trained.trained.weight).sum())
    expected = 10 * size * (1 + 0.05 * np.arange(4))
    np.testing.assert_allclose(report.returns.mean(1), expected, atol=4 / np.sqrt(200))
    assert report.before.mean == pytest.approx(report.returns[0].mean())
    assert report.after_one.mean == pytest.approx(report.returns[1].mean())
    assert report.after.low < report.after.mean < report.after.high
    assert report.largest_cost[0].cost.mean == pytest.approx(report.costs.max())
    assert report.largest_cost[0].above_limit == int((report.costs > 8.0).sum())
    assert report.outcomes == {"feasible": 15, "recovered": 0}
    # noise differs from step to step
    assert len(set(np.round(report.returns[:, 0] / (1 + 0.05 * np.arange(4)), 6))) == 4


def test_adapt_saves_its_report(trained):
    report = adapt(trained.folder, tasks=4, steps=2, episodes=5)
    content = json.loads((trained.folder / "adaptation.json").read_bytes())
    assert content["largest_cost"][0]["policies"] == 12
    assert content["return"]["after_2"]["mean"] == pytest.approx(report.after.mean)
    with np.load(trained.folder / "adaptation.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["costs"], report.costs)
    assert report.picture == trained.folder / "plots" / "adaptation.png"
    assert report.picture.stat().st_size > 10_000


def test_reports_are_a_function_of_the_seed(trained):
    one, two, three = (adapt(trained, tasks=3, steps=1, episodes=5, seed=seed) for seed in (0, 0, 1))
    assert one.to_json() == two.to_json()
    assert one.to_json() != three.to_json()


def test_the_limit_can_be_replaced(trained):
    tight = adapt(trained, tasks=4, steps=2, episodes=5, limit=1e-3)
    loose = adapt(trained, tasks=4, steps=2, episodes=5, limit=1e3)
    assert not tight.safe
    assert loose.safe
    assert loose.largest_cost[0].limit == 1e3
    np.testing.assert_array_equal(tight.costs, loose.costs)


def test_adapt_policies_needs_no_run(dummy):
    from safemeta.tasks import registry

    world = registry.make("dummy-task")
    algorithm = dummy.Algorithm(dummy.Config())
    state = algorithm.init(jax.random.key(0), world.cmdp)
    assert adapt_policies(algorithm, state, world, tasks=2, steps=1, episodes=3).returns.shape == (2, 2)


def test_a_confidence_is_handed_to_an_algorithm_that_takes_one(trained, monkeypatch):
    with pytest.raises(UserError, match="cannot adapt with a stated confidence"):
        adapt(trained, tasks=2, steps=1, episodes=3, confidence=0.9)
    given, plain = [], type(trained.algorithm).adapt

    def stating(self, state, world, tasks, key, steps, confidence=None):
        given.append(confidence)
        if confidence is not None and confidence > 1:
            raise ValueError("confidence must be below 1.")
        found = plain(self, state, world, tasks, key, steps)
        bounds = jnp.full((steps, tasks.count, 1), 7.0)
        return found if confidence is None else dataclasses.replace(found, cost_bounds=bounds)

    monkeypatch.setattr(type(trained.algorithm), "adapt", stating)
    report = adapt(trained, tasks=2, steps=1, episodes=3, confidence=0.9)
    adapt(trained, tasks=2, steps=1, episodes=3)
    assert given == [0.9, None]
    assert report.confidence == 0.9
    with np.load(trained.folder / "adaptation-confident.npz") as arrays:
        np.testing.assert_array_equal(arrays["cost_bounds"], np.full((1, 2, 1), 7.0))
    stated, without = (
        json.loads((trained.folder / f"{name}.json").read_bytes()) for name in ("adaptation-confident", "adaptation")
    )
    assert stated.pop("confidence") == 0.9
    assert stated == without
    with pytest.raises(UserError, match="below 1") as caught:
        adapt(trained, tasks=2, steps=1, episodes=3, confidence=1.5)
    assert caught.value.exit_code == 2


def test_what_an_algorithm_doubts_is_said_before_it_adapts(trained, monkeypatch, capsys):
    doubts = ["It was never safe.", None]
    kind = type(trained.algorithm)
    monkeypatch.setattr(kind, "doubt", lambda self, state: doubts.pop(0), raising=False)
    adapt(trained, tasks=2, steps=1, episodes=3)
    assert capsys.readouterr().err == "Warning: It was never safe.\n"
    adapt(trained, tasks=2, steps=1, episodes=3)
    assert capsys.readouterr().err == ""


def test_only_meta_algorithms_adapt(trained):
    with pytest.raises(UserError, match="Only meta-algorithms"):
        adapt_policies(object(), trained.state, trained.world)


def test_one_task_has_no_interval_over_tasks(trained):
    report = adapt(trained, tasks=1, steps=1, episodes=3)
    assert report.before.low is None
    assert json.loads((trained.folder / "adaptation.json").read_bytes())["return"]["before"]["high"] is None


def test_evaluate(trained):
    report = evaluate(trained, tasks=6, episodes=50, seed=1)
    size = float(np.abs(trained.trained.weight).sum())
    assert report.episode_return.mean == pytest.approx(10 * size, abs=0.3)
    assert report.largest_cost[0].policies == 6
    assert report.largest_cost[0].cost.mean <= 2 * size + 0.2
    content = json.loads((trained.folder / "evaluation.json").read_bytes())
    assert content["episode_return"]["mean"] == pytest.approx(report.episode_return.mean)


def test_nan_policies_cannot_be_judged(trained):
    trained.state = jax.tree.map(
        lambda leaf: leaf * np.nan if leaf.dtype == np.float32 else leaf, trained.state, is_leaf=lambda x: False
    )
    with pytest.raises(UserError, match="not finite"):
        evaluate(trained, tasks=2, episodes=3)
    assert not (trained.folder / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": 0}, "tasks"),
        ({"steps": -1}, "steps"),
        ({"episodes": 1}, "episodes"),
        ({"limit": float("nan")}, "limit"),
        ({"split": "tset"}, "tset"),
        ({"checkpoint": "worst"}, "checkpoint"),
    ],
)
def test_bad_settings(trained, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        adapt(trained.folder, **settings)
    assert caught.value.exit_code == 2
