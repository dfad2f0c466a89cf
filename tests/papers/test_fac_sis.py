"""FAC-SIS's reproduction: what is planned, Table 3's counting against brute force, and the verdicts."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import binomtest

from safemeta.certificates import INDICES, SafetyIndex
from safemeta.certificates.reachability import Inclusion
from safemeta.experiment.evaluate import Interval
from safemeta.experiment.run import fresh
from safemeta.papers import fac_sis, fac_sis_claims, fac_sis_custom, fac_sis_geometry, fac_sis_plan, registry
from safemeta.papers.claims import CONTRADICTED, NOT_REPRODUCED, REPRODUCED
from safemeta.papers.fac_sis_runs import Watch, Watched, WatchedGroup, WatchedTrial, gather, save
from safemeta.papers.fac_sis_watcher import infeasible_cells
from safemeta.papers.plan import Request
from safemeta.papers.trials import TEST_SEED

ALL = tuple(registry.get("fac-sis").figures)


# What is planned


@pytest.mark.parametrize("budget", ["smoke", "laptop", "paper"])
def test_all_planned_runs_can_be_configured_and_get_the_same_steps(budget):
    jobs = fac_sis.plan(Request(ALL, budget, 1)).jobs
    assert len({job.name for job in jobs}) == len(jobs)
    rows = {}
    for job in jobs:
        config = job.config()
        assert config.options.tasks * config.options.episodes == 8  # a task's largest cost is that of one episode
        rows.setdefault(job.task, set()).add((config.iterations, config.task.horizon))
        assert config.task.own == job.flipped
    assert all(len(sizes) <= 1 + (budget != "smoke" and "collision" in task) for task, sizes in rows.items())


def test_the_laptop_plan_covers_all_tasks_methods_and_seeds():
    jobs = fac_sis.plan(Request(ALL, "laptop", 2)).jobs
    driven = {(job.task, job.method, job.seed) for job in jobs if job.task in fac_sis_plan.NAVIGATION}
    assert driven == set(itertools.product(fac_sis_plan.NAVIGATION, fac_sis_plan.METHODS, (0, 1)))
    custom = {(job.task, job.method, job.flipped) for job in jobs if job.task not in fac_sis_plan.NAVIGATION}
    first, *others = fac_sis_plan.STARTS.values()
    wanted = set(itertools.product([first], fac_sis_plan.CUSTOM, (False, True)))
    assert custom == wanted | set(itertools.product(others, ("fac phi_SIS", "fac-sis-initial"), (False,)))
    again = fac_sis.plan(Request(ALL, "laptop", 2, first_seed=2)).jobs
    assert not {job.name for job in jobs} & {job.name for job in again}


@pytest.mark.parametrize(
    ("figure", "tasks", "methods"),
    [
        ("7", {"pillars-0.15-goal", "pillars-0.30-goal"}, set(fac_sis_plan.METHODS)),
        ("table-2", set(fac_sis_plan.NAVIGATION), {"fac-sis", "fac-sis-initial"}),
        ("5", set(fac_sis_plan.STARTS.values()), {"fac phi_SIS", "fac-sis-initial"}),
        ("6", {"collision-avoidance"}, {"fac-sis-initial"}),
        ("table-3", {"collision-avoidance"}, set(fac_sis_plan.CUSTOM)),
    ],
)
def test_a_figure_asks_only_for_its_own_runs(figure, tasks, methods):
    jobs = fac_sis.plan(Request((figure,), "laptop", 1)).jobs
    assert ({job.task for job in jobs}, {job.method for job in jobs}) == (tasks, methods)


def test_flipped_runs_are_on_the_world_with_the_released_sign():
    trial = next(job for job in fac_sis.plan(Request(("table-3",), "laptop", 1)).jobs if job.flipped)
    world = trial._given()["task"]
    assert world.environment.flipped_rate
    assert world.cmdp.horizon == 120


# Table 3 against brute force, in NumPy


def phi(name, distance, rate):
    sigma, k, n = INDICES[name]
    return sigma + 0.5**n - distance**n - k * rate


def clearance(state):
    x, y, v, heading, hazard = state
    distance = np.hypot(x, y - hazard)
    return distance, v * (x * np.cos(heading) + (y - hazard) * np.sin(heading)) / distance


def moved(state, action):
    """A step of 0.1 s in a hundred pieces."""
    x, y, v, heading, hazard = state
    pieces, dt = 100, 1e-3
    middle = np.arange(pieces) + 0.5
    speeds, headings = v + 4 * action[0] * dt * middle, heading + np.pi * action[1] * dt * middle
    x, y = x + dt * np.sum(speeds * np.cos(headings)), y + dt * np.sum(speeds * np.sin(headings))
    return np.array([x, y, v + 0.4 * action[0], heading + 0.1 * np.pi * action[1], hazard])


def feasible(name, state, points):
    now = phi(name, *clearance(state))
    for action in itertools.product(np.linspace(-1, 1, points), repeat=2):
        if phi(name, *clearance(moved(state, action))) <= max(now, 0):
            return True
    return False


def test_trajectories_are_counted_as_by_brute_force(tmp_path):
    horizon, points = 25, 3
    trial = WatchedTrial(
        "custom", "fac phi_0", "fac", "collision-avoidance", seed=3, iterations=1, judgements=(), horizon=horizon,
        options={"index": "zero", "hidden": (8,)}, watch=Watch(12, points, (4, 3, 2)),
    )  # fmt: skip
    run = fresh(tmp_path / "runs" / "custom", trial.config())
    run.folder.mkdir(parents=True)
    save(run, trial)
    seen = trial.found(run.folder)

    task_key, run_key = jax.random.split(jax.random.key(TEST_SEED + 3))
    rows = run.world.collect(run.policy, run.world.sample(task_key, 1, "test"), run_key, 12)
    states = np.asarray(rows.observation[0], float)  # [episodes, time, 5]
    last = np.asarray(rows.last_observation[0], float)[:, None]
    following = np.concatenate([states[:, 1:], last], axis=1)
    distance, rate = clearance(np.moveaxis(states, -1, 0))
    after, rate_after = clearance(np.moveaxis(following, -1, 0))
    broken = {
        name: (phi(name, after, rate_after) > np.maximum(phi(name, distance, rate), 0)).sum(1)
        for name in ("zero", "feasible")
    }
    infeasible = np.array([[not feasible("zero", state, points) for state in episode] for episode in states]).sum(1)
    assert infeasible.any()
    assert not infeasible.all()
    np.testing.assert_array_equal(seen.infeasible, infeasible)
    np.testing.assert_array_equal(seen.own_violations, broken["zero"])
    np.testing.assert_array_equal(seen.violations, broken["feasible"])
    np.testing.assert_array_equal(seen.costs, (after <= 0.5).sum(1))
    np.testing.assert_array_equal(seen.successes, (infeasible == 0) & (after > 0.5).all(1))
    np.testing.assert_allclose(seen.tracking_error, -np.asarray(rows.reward[0]).mean(1), rtol=1e-5)
    np.testing.assert_allclose(seen.distance.T, distance, rtol=1e-4)

    group = gather(tmp_path, [trial])["fac phi_0", "collision-avoidance"]
    success, entered, stuck = fac_sis_custom.rates(group)
    assert success.mean == np.mean((infeasible == 0) & (after > 0.5).all(1))
    assert entered.mean == np.mean((after <= 0.5).any(1))
    assert stuck.mean == np.mean(infeasible > 0)
    assert trial.done(run.folder) is False  # it has not been trained: no configuration was written


def test_infeasible_cells_are_those_of_brute_force():
    index = SafetyIndex.named("zero", 0.5)
    barred, searched = infeasible_cells(index, (3, 3, 3), points=3)
    grid = list(itertools.product((0.5, 2.25, 4.0), (-2.0, 1.0, 4.0), (0.0, np.pi / 2, np.pi)))
    states = [np.array([d, 0.0, v, psi, 0.0]) for d, v, psi in grid]
    wanted = [clearance(state) for state in states if not feasible("zero", state, 3)]
    assert searched == len(grid)
    assert 0 < len(barred) < searched
    np.testing.assert_allclose(barred, wanted, atol=1e-5)


@pytest.mark.parametrize(("count", "total"), [(0, 100), (99, 100), (100, 100), (7, 8)])
def test_shares_have_exact_intervals(count, total):
    ends = binomtest(count, total).proportion_ci(0.95, method="exact")
    found = fac_sis_custom.share(count, total)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-9)


def test_the_flipped_energy_differs_left_of_the_hazard_only():
    index = SafetyIndex.named("handcrafted", 0.5)
    true, flipped = (fac_sis_geometry._energy(index, each) for each in (False, True))
    x, y = fac_sis_geometry._plane()
    np.testing.assert_array_equal(true[:, x > 0], flipped[:, x > 0])
    heading = next(iter(fac_sis_geometry.HEADINGS.values()))
    row, column = 20, 30
    state = (x[row, column], y[row, column], fac_sis_geometry.SPEED, heading, 0.0)
    distance, rate = clearance(np.array(state, float))
    assert true[0, row, column] == pytest.approx(phi("handcrafted", distance, rate), rel=1e-4)
    assert flipped[0, row, column] == pytest.approx(phi("handcrafted", distance, -rate), rel=1e-4)


# Verdicts


def episodes(costs, violations=0, infeasible=0, returns=1.0):
    count = len(costs)
    full = np.ones(count)
    empty = np.zeros((0, count))
    return Watched(
        1000, [0.3, 1.0, 2.0], 0, returns * full, np.asarray(costs, float), full, violations * full,
        np.broadcast_to(infeasible, count), empty, empty, empty, np.zeros((0, 2)),
    )  # fmt: skip


def method(name, costs, training=(4.0, 2.0), task="hazards-0.30-goal", seeds=2, ends=None, **changes):
    """Seeds with these costs of episodes, and these mean costs in each of the iterations of training."""
    lines = [
        [
            {
                "environment_steps": 8000 * (i + 1),
                "cost": cost * (1 + 0.01 * seed),
                "largest_cost": 3 * cost,
                "updates": 9,
            }
            | (ends or {})
            for i, cost in enumerate(training)
        ]
        for seed in range(seeds)
    ]
    watched = tuple(episodes(costs, **changes) for _ in range(seeds))
    return WatchedGroup(name, task, tuple(range(seeds)), (), tuple(lines), ([1.0],) * seeds, watched)


def verdicts(claims):
    return [claim.verdict for claim in claims]


NONE, SOME, RARE = [0.0] * 6, [3.0, 4.0, 2.0, 0.0, 3.0, 5.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.1]


def test_the_cost_rate_is_accumulated_cost_over_steps():
    steps, rates = method("fac-sis", NONE, training=(4.0, 2.0, 0.0)).cost_rates()
    np.testing.assert_array_equal(steps, [8000, 16000, 24000])
    np.testing.assert_allclose(rates[:, 0], [4 / 1000, 6 / 2000, 6 / 3000])


def test_verdicts_on_performance():
    paper = {
        "fac-sis": method("fac-sis", NONE, (1.0, 0.0)),
        "fac phi_0": method("fac phi_0", SOME, (9.0, 9.0)),
        "fac phi_h": method("fac phi_h", SOME, (2.0, 2.0)),
        "cpo": method("cpo", SOME, (3.0, 3.0)),
    }
    claims = fac_sis_claims.performance({"hazards-0.30-goal": paper})
    assert verdicts(claims) == [REPRODUCED] * 5
    assert len(fac_sis_claims.performance({"hazards-0.15-goal": paper})) == 4  # nothing is said of phi_h there
    opposite = {
        "fac-sis": method("fac-sis", SOME, (9.0, 9.0)),
        "fac phi_0": method("fac phi_0", NONE, (1.0, 0.0)),
        "fac phi_h": method("fac phi_h", NONE, (1.0, 1.0)),
        "cpo": method("cpo", NONE, (1.0, 1.0)),
    }
    assert verdicts(fac_sis_claims.performance({"hazards-0.30-goal": opposite})) == [CONTRADICTED] * 5
    undecided = {name: method(name, RARE, (1.0, 1.0)) for name in paper}
    assert verdicts(fac_sis_claims.performance({"hazards-0.30-goal": undecided})) == [NOT_REPRODUCED] * 5


def test_largest_costs_are_those_of_single_episodes_as_they_are():
    group = method("fac-sis", RARE, (*[0.0] * 18, 1.0, 2.0))
    assert group.largest_training_cost == 6.0
    assert "largest 0.1" in fac_sis_claims.zero_violation("task", {"fac-sis": group}).ours
    assert "last tenth of training: 6." in fac_sis_claims.zero_violation("task", {"fac-sis": group}).note


def test_verdicts_on_violated_constraints():
    noisy = np.array([5.0, 9, 4, 7, 5, 6])
    paper = {
        "fac-sis": method("fac-sis", NONE, violations=0.5),
        "fac phi_F": method("fac phi_F", NONE, violations=0.0),
        "fac phi_0": method("fac phi_0", NONE, violations=noisy),
        "fac phi_h": method("fac phi_h", NONE, violations=noisy),
    }
    assert verdicts(fac_sis_claims.violations({"task": paper})) == [REPRODUCED] * 4
    swapped = dict(
        zip(paper, [paper[name] for name in ("fac phi_0", "fac phi_h", "fac phi_F", "fac phi_F")], strict=True)
    )
    assert verdicts(fac_sis_claims.violations({"task": swapped})) == [CONTRADICTED] * 4


def test_verdicts_on_parameters():
    def learned(name, k, sigma, n):
        return {"task": {name: method(name, NONE, ends={"k": k, "sigma": sigma, "n": n})}}

    as_paper = fac_sis_claims.parameters(learned("fac-sis-initial", 0.78, 0.1, 1.15))
    assert verdicts(as_paper) == [REPRODUCED] * 6
    otherwise = fac_sis_claims.parameters(learned("fac-sis-initial", 1.3, 0.5, 0.8))
    assert verdicts(otherwise) == [CONTRADICTED, NOT_REPRODUCED] * 3
    held = fac_sis_claims.parameters(learned("fac-sis", 0.9, 0.2, 2.0))
    assert verdicts(held) == [REPRODUCED, REPRODUCED, NOT_REPRODUCED]
    assert "cannot rise" in held[-1].note


def test_verdicts_on_table_3():
    def trajectories(good, error, name):
        infeasible = (np.arange(100) >= good).astype(int)
        returns = -1000 * error * (1 + 0.01 * np.cos(np.arange(100)))
        return method(name, [0.0] * 100, seeds=1, infeasible=infeasible, returns=returns)

    paper = {"fac phi_0": (0, 5.0), "fac phi_i": (85, 2.974), "fac phi_SIS": (99, 3.378),
             "fac phi_F": (100, 3.456), "fac phi_h": (70, 3.528)}  # fmt: skip
    found = {name: trajectories(*numbers, name) for name, numbers in paper.items()}
    claims = fac_sis_claims.table_3("collision-avoidance", found)
    assert len(claims) == 10
    assert verdicts(claims) == [REPRODUCED] * 10
    equal = {name: trajectories(95, 3.0, name) for name in paper}
    assert REPRODUCED not in verdicts(fac_sis_claims.table_3("collision-avoidance", equal))[5:]
    worse = {**equal, "fac phi_SIS": trajectories(50, 4.0, "fac phi_SIS")}
    assert verdicts(fac_sis_claims.table_3("collision-avoidance", worse))[5:] == [CONTRADICTED] * 5
    (row, *_) = [row for row in fac_sis_custom.table_3("collision-avoidance", found).rows if row[0] == "fac phi_h"]
    assert row[1] == 100
    assert (row[2].mean, row[3].mean, row[4].mean) == (0.7, 0.0, 0.3)


def test_verdicts_on_sets():
    def sets(name, flipped, inside, well_inside):
        found = {(name, flipped, speed): Inclusion(1111, 1000, 11, inside, well_inside) for speed in (2.0, 4.0)}
        return verdicts(fac_sis_claims.sets(found))

    assert sets("phi_SIS", False, 0, 0) == [REPRODUCED]
    assert sets("phi_SIS", False, 9, 0) == [NOT_REPRODUCED]
    assert sets("phi_SIS", True, 9, 5) == [CONTRADICTED]
    assert sets("phi_h", False, 0, 0) == [NOT_REPRODUCED]
    assert sets("phi_h", True, 9, 5) == [REPRODUCED]
    assert sets("phi_F", False, 0, 0) == []


def test_intervals_must_be_apart():
    low, high, wide = Interval(0.1, 0.0, 0.2), Interval(0.5, 0.4, 0.6), Interval(0.3, 0.1, 0.5)
    assert fac_sis_claims.apart(high, low) == REPRODUCED
    assert fac_sis_claims.apart(low, high) == CONTRADICTED
    assert fac_sis_claims.apart(wide, low) == NOT_REPRODUCED
    assert fac_sis_claims.apart(Interval(1.0, None, None), low) == NOT_REPRODUCED


def test_pictures_and_tables_are_made_of_whatever_is_finished(tmp_path: Path):
    summary = fac_sis.summarise(tmp_path, trials=(), request=Request(("3", "4", "5", "7", "8"), "smoke", 1))
    assert summary.pictures == ()
    drawn = {"hazards-0.30-goal": {"fac-sis": method("fac-sis", NONE), "cpo": method("cpo", SOME)}}
    assert fac_sis.draw_performance(tmp_path / "figure-3.png", "3", drawn).is_file()
    table = fac_sis.performance("3", drawn)
    assert [row[6] for row in table.rows] == ["0 of 12", "10 of 12"]
