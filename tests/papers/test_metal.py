"""MetaL's reproduction: what is planned, and runs that train together."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from safemeta.experiment import logs
from safemeta.experiment.job_progress import JobProgress
from safemeta.experiment.lockstep import next_group, opened, train_together
from safemeta.experiment.run import load, make_world
from safemeta.experiment.train import train
from safemeta.papers import metal, metal_plan, registry
from safemeta.papers.metal_plan import CARTPOLE, COEFFICIENTS, METHODS, SOLVABLE, UNSOLVABLE
from safemeta.papers.metal_runs import Bundle, RobotTrial, gather
from safemeta.papers.plan import Request

ALL = tuple(registry.get("metal").figures)
STRICT = 1e-9  # a coefficient at which every position violates
SILENT = JobProgress(lambda share, words: None)


def trials(jobs):
    """All runs, in or out of a bundle."""
    return [trial for job in jobs for trial in (job.trials if isinstance(job, Bundle) else (job,))]


# What is planned


@pytest.mark.parametrize("budget", registry.BUDGETS)
def test_all_planned_runs_can_be_configured(budget):
    jobs = metal.plan(Request(ALL, budget, 1)).jobs
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        if isinstance(job, Bundle):  # one program: settings that differ would be a mistake
            configs = job.config()
            assert len({(each.algorithm, each.options, each.iterations) for each in configs}) == 1
            assert len({trial.name for trial in job.trials}) == len(job.trials)
    for trial in trials(jobs):
        config = trial.config()
        assert (config.algorithm, config.seed, config.iterations) == (trial.algorithm, trial.seed, trial.iterations)
        assert config.options.tasks * config.options.episodes == 8
    assert {trial.task for trial in trials(jobs)} == set(
        metal_plan.TASKS if budget != "laptop" else (CARTPOLE, metal_plan.WALKER)
    )


def test_the_laptop_plan_on_cartpole():
    planned = trials(metal.plan(Request(ALL, "laptop", 4)).jobs)
    found = {(t.method, t.coefficient, t.seed) for t in planned if t.task == CARTPOLE and t.method in METHODS}
    extremes = (UNSOLVABLE, SOLVABLE)
    wanted = {
        (method, k, seed)
        for method, k, seed in itertools.product(METHODS, COEFFICIENTS, range(4))
        if method not in metal_plan.OUTER_LOSSES[1:] or k in extremes
    }
    assert found == wanted
    rates = {t.options["meta_rate"] for t in planned if t.algorithm == "metal" and t.coefficient == UNSOLVABLE}
    assert rates == set(metal_plan.META_RATES)
    slow = {t.method for t in planned if t.options.get("multiplier_rate") == metal_plan.SLOW_RATE}
    assert slow == {"rc-d4pg slow", "metal slow"}


@pytest.mark.parametrize(
    ("figure", "coefficients", "methods"),
    [
        ("1", set(COEFFICIENTS), {"d4pg", "rc-d4pg", "metal", "metal both", "metal actor"}),
        ("3", {SOLVABLE}, set(metal.MAIN) & set(METHODS)),
        ("4", {UNSOLVABLE, SOLVABLE}, {"rc-d4pg", *map(metal_plan.of_rate, metal_plan.META_RATES)}),
        ("slow", {UNSOLVABLE, SOLVABLE}, {"rc-d4pg", "metal", *metal_plan.SLOW_METHODS}),
        ("table-1", set(COEFFICIENTS), set(metal.MAIN) & set(METHODS)),
    ],
)
def test_a_figure_asks_only_for_its_own_runs(figure, coefficients, methods):
    planned = [t for t in trials(metal.plan(Request((figure,), "laptop", 1)).jobs) if t.task == CARTPOLE]
    assert ({t.coefficient for t in planned}, {t.method for t in planned}) == (coefficients, methods)


@pytest.mark.parametrize(
    "task", [CARTPOLE, *(pytest.param(t, marks=pytest.mark.dm_control) for t in metal_plan.TASKS if t != CARTPOLE)]
)
def test_a_coefficient_is_the_worlds(task):
    import jax

    trial = RobotTrial("t", "rc-d4pg", "rc-d4pg", task, 0, 1, (), horizon=7, coefficient=0.05)
    world = make_world(trial.config().task)
    tasks = world.sample(jax.random.key(0), 2, "train")
    np.testing.assert_allclose(tasks.parameters["safety_coeff"], 0.05, rtol=1e-6)
    assert world.cmdp.horizon == 7


# Runs that train together

TINY = {**metal_plan.TINY, "tasks": 2, "episodes": 1, "warm_up": 8, "batch": 4, "hidden": (4,), "critic_hidden": (4,),
        "atoms": 5, "n_step": 2, "steps_per_update": 2, "capacity": 100}  # fmt: skip


def tiny(coefficient, seed, iterations=3):
    return RobotTrial(
        f"{coefficient:g}-s{seed}", "rc-d4pg", "rc-d4pg", CARTPOLE, seed, iterations, (), "fast", TINY, horizon=10,
        coefficient=coefficient, episodes=2,
    )  # fmt: skip


def alone(trial, folder, iterations):
    """Trained by `safemeta.train`, in one go or for the first iterations of what is to be more."""
    train(out=folder, iterations=iterations, **trial._given())
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "iterations": trial.iterations}))
    return lines(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle of two runs, one of which had already come to its first iteration; and both of them alone."""
    out = tmp_path_factory.mktemp("metal")
    made, folder = Bundle("tiny", (tiny(0.3, 1), tiny(STRICT, 0))), out / "runs" / "tiny"
    single = [alone(trial, out / "alone" / trial.name, 3) for trial in made.trials]
    alone(made.trials[0], folder / made.trials[0].name, 1)
    assert not made.done(folder)
    told = []
    made.work(folder, JobProgress(lambda share, words: told.append(words)))
    return out, made, single, told


def lines(folder):
    return logs.read(folder / logs.METRICS)


def test_together_each_run_is_what_it_is_alone(trained):
    out, made, single, _ = trained
    together = [lines(out / "runs" / "tiny" / trial.name) for trial in made.trials]
    assert together[0][-1]["return"] != together[1][-1]["return"]
    for ours, theirs in zip(together, single, strict=True):
        assert [line["iteration"] for line in ours] == [line["iteration"] for line in theirs] == [1, 2, 3]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.keys() == other.keys()
            np.testing.assert_allclose([*mine.values()], [*other.values()], rtol=2e-4, atol=1e-6)


def test_a_run_that_is_a_checkpoint_ahead_goes_back_to_the_others(trained):
    *_, told = trained
    assert [words.split()[1] for words in told if "Training" in words] == ["0/6", "2/6", "4/6", "6/6"]


@pytest.mark.parametrize(
    ("iterations", "chosen", "until"),
    [
        ([0, 0, 0], [0, 1], 9),
        ([9, 9, 0], [2], 9),
        ([9, 4, 0, 0, 0], [2, 3], 4),
        ([4, 4, 9], [0, 1], 9),
        ([3, 5, 3], [0, 2], 5),
    ],
)
def test_those_furthest_behind_are_next(iterations, chosen, until):
    assert next_group(iterations, 9, at_once=2) == (chosen, until)


def test_a_bundle_leaves_runs_and_what_they_came_to(trained):
    out, made, *_ = trained
    folder = out / "runs" / "tiny"
    assert made.done(folder)
    for trial in made.trials:
        assert [path.name for path in (folder / trial.name / "checkpoints").iterdir()] == [
            "iteration-00000003.safetensors"
        ]
    found = gather(out, [made])
    assert {key: group.seeds for key, group in found.items()} == {
        (CARTPOLE, 0.3, "rc-d4pg"): (1,),
        (CARTPOLE, STRICT, "rc-d4pg"): (0,),
    }
    strict = found[CARTPOLE, STRICT, "rc-d4pg"]
    assert strict.without_noise.costs == pytest.approx([1.0])
    assert strict.table("cost")[:, 0] == pytest.approx([1.0] * 3)
    assert found[CARTPOLE, 0.3, "rc-d4pg"].without_noise.costs == pytest.approx([0.0])
    assert strict.threshold == 0.115
    run = load(folder / made.trials[1].name, "last")
    assert run.iteration == 3
    assert not dataclasses.replace(made, trials=(*made.trials, tiny(0.3, 2))).done(folder)


def test_only_runs_of_the_same_settings_train_together(tmp_path):
    both = [tiny(0.3, 0), tiny(0.3, 1, iterations=5)]
    both = [opened(tmp_path / each.name, each.config()) for each in both]
    with pytest.raises(ValueError, match="same settings"):
        train_together(both, SILENT.part(1.0))
