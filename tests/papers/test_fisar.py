"""FISAR's reproduction: the optimum against cvxpy, when a problem counts as solved, and the verdicts."""

import dataclasses
import json

import cvxpy as cp
import jax
import numpy as np
import pytest

from safemeta.experiment.evaluate import Interval
from safemeta.papers import fisar, fisar_claims, fisar_qcqp, fisar_qcqp_job
from safemeta.papers.claims import CONTRADICTED, NOT_REPRODUCED, REPRODUCED
from safemeta.papers.fisar_point_mass import Judged
from safemeta.papers.plan import Request
from safemeta.tasks.qcqp import QCQPFamily


@pytest.mark.parametrize("count", [1, 3])
def test_the_optimum_is_the_one_that_cvxpy_finds(x64, count):
    family = QCQPFamily(5, count)
    for seed in range(3):
        problem, _ = family.sample(jax.random.key(seed))
        w, y, centres, shapes, radii = (np.asarray(leaf) for leaf in jax.tree.leaves(problem))
        x = cp.Variable(5)
        parts = zip(centres, shapes, radii, strict=True)
        constraints = [cp.quad_form(x - c, cp.psd_wrap(shape)) <= r for c, shape, r in parts]
        cp.Problem(cp.Minimize(cp.sum_squares(w @ x - y)), constraints).solve(solver=cp.SCS, eps=1e-9)
        assert fisar_qcqp.solve(problem) == pytest.approx(float(np.sum((w @ x.value - y) ** 2)), rel=1e-4)


def test_solved_means_close_and_feasible_for_good():
    objective = np.array(
        [[5.0, 1.005, 1.2, 1.01, 1.0], [0.9, 0.9, 0.9, 1.0, 1.0], [3, 3, 3, 3, 1.02], [1.0, 1.0, 1.0, 1.0, 1.0]]
    )
    violation = np.array([[1.0, 0.0, 0.0, 0.01, 0.0], [1.0, 0.5, 0.02, 0.011, 0.009], [-1.0] * 5, [-1.0] * 5])
    needed = fisar_qcqp.steps_to_solve(fisar_qcqp.Curves(objective, violation), np.ones(4))
    np.testing.assert_array_equal(needed, [3, 4, np.inf, 0])
    assert fisar_qcqp.mean_steps(needed, 4) == pytest.approx((3 + 4 + 8 + 0) / 4)


def test_the_best_step_size_solves_fastest_or_ends_nearest():
    far, near = [9.0, 9.0, 9.0], [9.0, 9.0, 1.3]
    quick, slow = [9.0, 1.0, 1.0], [9.0, 9.0, 1.0]

    def curves(*objectives, end=0.0):
        objective = np.array(objectives)[:, None]
        return fisar_qcqp.Curves(objective, np.full_like(objective, end))

    assert fisar_qcqp.best_size(curves(slow, far, quick), np.ones(1)) == 2
    assert fisar_qcqp.best_size(curves(far, near, [9.0, 9.0, np.nan], [9.0, 9.0, 1.9]), np.ones(1)) == 1
    broken = curves(near, far)
    broken.violation[0, 0, -1] = 10.0  # nearer, but at the price of the constraint
    assert fisar_qcqp.best_size(broken, np.ones(1)) == 1


def numbers(violation=(1e-3, 1e-5), ratio=(1.0, 1.0), ever=1e-3, increase=1e-3, end=0.5):
    return {
        "largest_violation": list(violation), "objective_ratio": list(ratio), "largest_violation_ever": ever,
        "largest_increase": increase, "objective": {"mean": [9.0, end]},
    }  # fmt: skip


def figure(**changes):
    """Numbers of a figure in which all goes well."""
    exact = numbers((0.0, 0.0), ever=0.0, increase=0.0)
    found = dict.fromkeys(("learned, true constraints", "learned, true constraints, from inside"), exact)
    found |= {name: numbers() for name in ("learned", "learned, from inside", "projected sgd", "projected adam")}
    found |= {f"{name} without constraints": numbers(end=1e-9) for name in ("sgd", "adam", "rmsprop")}
    return {**found, "optimum": 0.5, **changes}


@pytest.mark.parametrize(
    ("judge", "changes", "verdict"),
    [
        ("converges", {}, REPRODUCED),
        ("converges", {"learned": numbers((1.0, 0.02))}, CONTRADICTED),
        ("monotone", {}, CONTRADICTED),
        ("monotone", {"learned": numbers(increase=1e-7)}, REPRODUCED),
        ("invariant", {}, CONTRADICTED),
        ("invariant", {"learned, from inside": numbers(ever=-0.1)}, REPRODUCED),
        ("comparable", {}, NOT_REPRODUCED),
        ("comparable", {"learned": numbers(end=1.5e-9)}, REPRODUCED),
        ("standard_optimizers_fail", {}, CONTRADICTED),
        ("standard_optimizers_fail", {"projected adam": numbers(ratio=(1.2, 1.2))}, CONTRADICTED),
        (
            "standard_optimizers_fail",
            {"projected adam": numbers(ratio=(1.2, 1.2)), "projected sgd": numbers((1.0, 0.1))},
            REPRODUCED,
        ),
    ],
)
def test_verdicts_on_quadratic_problems(judge, changes, verdict):
    assert getattr(fisar_claims, judge)("m = 1", figure(**changes)).verdict == verdict


def policy(value, obstacle, width=0.1):
    costs = {"outside": Interval(0.0, 0.0, 0.0), "obstacle": Interval(obstacle, obstacle - width, obstacle + width)}
    return Judged(Interval(value, value - 1, value + 1), costs, {"outside": 1.0, "obstacle": 2.0})


def test_verdicts_on_the_point_mass():
    good = [policy(-100.0 - seed, 1.9) for seed in range(4)]
    worse = [policy(-110.0 - seed, 1.9) for seed in range(4)]
    verdicts = [claim.verdict for claim in fisar_claims.policies({"fisar": good, "cpo": worse})]
    assert verdicts == [REPRODUCED, REPRODUCED]
    verdicts = [claim.verdict for claim in fisar_claims.policies({"fisar": worse, "cpo": good})]
    assert verdicts == [REPRODUCED, CONTRADICTED]
    assert fisar_claims.policies({"fisar": [policy(-100.0, 2.05)]})[0].verdict == NOT_REPRODUCED
    assert fisar_claims.policies({"fisar": [policy(-100.0, 2.5)]})[0].verdict == CONTRADICTED
    assert fisar_claims.policies({}) == []


def test_the_plan_has_every_job_once_and_results_of_other_settings_do_not_count(tmp_path):
    plan = fisar.plan(Request(("2", "3"), "laptop", 2))
    names = [job.name for job in plan.jobs]
    assert len(names) == len(set(names)) == 3 + 5 * 2
    assert not {*names} & {job.name for job in fisar.plan(Request(("2", "3"), "laptop", 2, first_seed=100)).jobs}
    assert not any(job.done(tmp_path / job.name) for job in plan.jobs)
    assert len(fisar.plan(Request(("2", "3"), "smoke", 1)).jobs) == 1 + 5
    for job in fisar.plan(Request(("2",), "smoke", 1)).jobs:
        job.config().validate()  # every option exists
    job = fisar.plan(Request(("3",), "laptop", 1)).jobs[0]
    (tmp_path / fisar_qcqp_job.FILE).write_text(json.dumps({"settings": job._settings()}))
    assert job.done(tmp_path)
    assert not dataclasses.replace(job, budget="paper").done(tmp_path)
    (tmp_path / fisar_qcqp_job.FILE).write_text("{")
    assert not job.done(tmp_path)


def test_only_the_trained_optimizer_has_updates_before_its_curve(tmp_path):
    jobs = {job.method: job for job in fisar.plan(Request(("2",), "laptop", 1, first_seed=7)).jobs}
    trained, untrained, rival = (jobs[name].config() for name in ("fisar", "fisar, untrained", "cpo"))
    assert {job.seed for job in jobs.values()} == {7}
    assert (trained.algorithm, trained.iterations) == ("fisar", 80 + 30)
    assert (untrained.algorithm, untrained.iterations, rival.iterations) == ("fisar", 30, 300)
    assert untrained.options == dataclasses.replace(trained.options, meta_iterations=0)
    found = [{"iteration": i + 1, "return": i} for i in range(110)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    assert [list(part[:2]) for part in jobs["fisar"].curve(tmp_path, "return")] == [[10, 20], [80.0, 81.0]]
    assert [list(part[:2]) for part in jobs["fisar, untrained"].curve(tmp_path, "return")] == [[10, 20], [0.0, 1.0]]


def test_curves_that_blow_up_stay_drawable():
    found = fisar_qcqp_job.curve(np.array([[1.0, np.nan], [1.0, np.inf]]))
    assert np.isfinite(found["mean"]).all()
