"""What the papers' modules plan, and what they make of given numbers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from safemeta.experiment.errors import UserError
from safemeta.papers import dual, dual_claims, meta_cpo, registry
from safemeta.papers.claims import CONTRADICTED, NOT_REPRODUCED, REPRODUCED
from safemeta.papers.continuation import learner_at_test
from safemeta.papers.groups import Group, gain, gather, over_seeds_and_tasks, paired, saving
from safemeta.papers.plan import Request
from safemeta.papers.trials import Judged

LIMIT = 10.0


def group(method, task, returns, costs, seconds=1.0, seeds=3, noise=0.2):
    """Seeds whose 4 tasks and 3 policies have about these returns and costs, judged on fresh episodes.

    `returns` and `costs` are those of the last policy; the ones before are worse and safer.
    """
    random = np.random.default_rng(7)
    judged, metrics = [], []
    for _ in range(seeds):
        growth = np.array([0.5, 0.8, 1.0])[:, None]
        cost = (growth * costs + noise * random.normal(size=(3, 4)))[..., None]
        worst = float(cost.max())
        above = int((cost > LIMIT).sum())
        significantly = int((cost > LIMIT + 0.5).sum())
        largest = {
            "cost": {"mean": worst, "low": worst - 0.5, "high": worst + 0.5},
            "policies": 12, "above_limit": above, "significantly_above": significantly,
        }  # fmt: skip
        report = {"largest_cost": [largest]}
        reward = returns * growth + noise * random.normal(size=(3, 4))
        judged.append(Judged(report, 4.0 * seconds, reward, cost, np.full((4, 1), LIMIT)))
        shares = np.arange(1, 21) / 20
        columns = {"environment_steps": 2000 * shares, "return_after": returns * shares, "cost_after": costs * shares}
        columns |= {"largest_cost_after": columns["cost_after"], "limit": np.full(20, LIMIT)}
        metrics.append([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    timing = tuple([50.0, *[seconds * (1 + 0.01 * seed)] * 19] for seed in range(seeds))
    return Group(method, task, tuple(range(seeds)), tuple(judged), tuple(metrics), timing)


def verdicts(claims):
    return {claim.claim: claim.verdict for claim in claims}


# The dual method


def circle(**changed):
    """The paper's picture of Point-Circle, with changes."""
    methods = {
        "dual": (45.0, 8.0, 0.3),
        "meta-cpo": (28.0, 14.0, 1.0),
        "meta-crpo": (20.0, 15.0, 0.8),
        "maml": (25.0, 20.0, 0.6),
    }
    methods |= changed
    return {name: group(name, "point-circle", *numbers) for name, numbers in methods.items()}


def test_the_papers_picture_is_reproduced():
    claims = dual_claims.claims_of("1", {"point-circle": circle()})
    claims += dual_claims.claims_of("2", {"point-circle": circle()})
    assert set(verdicts(claims).values()) == {REPRODUCED}
    assert len(claims) == 6
    texts = " ".join(f"{claim.claim} {claim.ours}" for claim in claims)
    assert "of meta-cpo" in texts  # the best baseline
    assert "70%" in texts


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"dual": (45.0, 8.0, 0.3)}, REPRODUCED),
        ({"dual": (35.0, 8.0, 0.3)}, NOT_REPRODUCED),  # 25 % better only
        ({"dual": (20.0, 8.0, 0.3)}, CONTRADICTED),
        ({"maml": (60.0, 20.0, 0.6)}, CONTRADICTED),  # the best baseline counts, safe or not
    ],
)
def test_half_as_much_again_as_the_best_baseline(changed, verdict):
    found = verdicts(dual_claims.claims_of("1", {"point-circle": circle(**changed)}))
    assert found["point-circle, meta-test: the return is about 50 % above the best baseline"] == verdict


def test_negative_returns_are_compared_by_their_size():
    ours, theirs = np.full((3, 4), -100.0), np.full((3, 4), -200.0)
    assert gain(ours, theirs).mean == pytest.approx(0.5)
    assert gain(theirs, ours).mean == pytest.approx(-1.0)


@pytest.mark.parametrize(("cost", "verdict"), [(8.0, REPRODUCED), (10.1, NOT_REPRODUCED), (12.0, CONTRADICTED)])
def test_anytime_safety(cost, verdict):
    methods = {"dual": group("dual", "hopper", 45.0, cost, noise=0.1)}
    assert dual_claims.anytime_safe("hopper", methods).verdict == verdict


@pytest.mark.parametrize(("seconds", "verdict"), [(0.3, REPRODUCED), (0.6, NOT_REPRODUCED), (1.5, CONTRADICTED)])
def test_time_of_a_meta_iteration(seconds, verdict):
    pair = (group("dual", "x", 1.0, 1.0, seconds), group("meta-cpo", "x", 1.0, 1.0, 1.0))
    assert dual_claims.faster("2", "x", *pair)[0].verdict == verdict
    if seconds < 1:  # where the paper gives no number, any saving will do
        assert dual_claims.faster("5", "x", *pair)[0].verdict == REPRODUCED


def test_humanoid_is_ten_times_slower():
    pair = (group("dual", "humanoid", 1.0, 1.0, 0.1), group("meta-cpo", "humanoid", 1.0, 1.0, 1.0))
    claim = dual_claims.faster("5", "humanoid", *pair)[-1]
    assert claim.verdict == REPRODUCED
    assert claim.ours == "10 times"


@pytest.mark.parametrize(("reward", "verdict"), [(50.0, REPRODUCED), (45.0, NOT_REPRODUCED), (40.0, CONTRADICTED)])
def test_allowed_violation_raises_the_return(reward, verdict):
    methods = {
        dual.slack_name(0.0): group("dual-paper", "half-cheetah", 45.0, 8.0),
        dual.slack_name(3.0): group("dual-paper-delta-3", "half-cheetah", reward, 11.0),
    }
    # The made-up noise is the same in both groups, so equal returns differ by exactly nothing.
    claims = dual_claims.slack_claims({"half-cheetah": methods}, dual.slack_name)
    assert [claim.verdict for claim in claims] == [verdict, REPRODUCED]


# Meta-CPO


def hazards(**changed):
    methods = {"meta-cpo": (30.0, 4.0), "meta-trpo": (40.0, 20.0), "cpo": (15.0, 14.0), "trpo": (35.0, 25.0)}
    methods |= changed
    return {name: group(name, meta_cpo.TIGHTER, *numbers) for name, numbers in methods.items()}


def test_the_picture_of_figure_5_is_reproduced():
    claims = meta_cpo.claims_of(meta_cpo.TIGHTER, hazards())
    assert set(verdicts(claims).values()) == {REPRODUCED}
    assert len(claims) == 6


@pytest.mark.parametrize(
    ("changed", "words", "verdict"),
    [
        ({"meta-cpo": (30.0, 12.0)}, "is within the limit", CONTRADICTED),
        ({"cpo": (15.0, 4.0)}, "CPO is unstable", NOT_REPRODUCED),
        ({"cpo": (15.0, 4.0), "meta-cpo": (30.0, 14.0)}, "CPO is unstable", CONTRADICTED),
        ({"cpo": (45.0, 14.0)}, "meta-cpo outperforms cpo", CONTRADICTED),
        ({"cpo": (45.0, 14.0)}, "TRPO converges", NOT_REPRODUCED),
        ({"trpo": (35.0, 5.0)}, "TRPO converges", CONTRADICTED),
        ({"cpo": (15.0, 4.0)}, "all methods but Meta-CPO", NOT_REPRODUCED),
    ],
)
def test_other_pictures_are_not(changed, words, verdict):
    claims = meta_cpo.claims_of(meta_cpo.TIGHTER, hazards(**changed))
    assert [claim.verdict for claim in claims if words in claim.claim] == [verdict]


def test_claims_without_runs_are_left_out():
    assert meta_cpo.claims_of("point-circle-meta-cpo", {}) == []
    assert dual_claims.claims_of("1", {"point-circle": {"maml": circle()["maml"]}}) == []
    only = meta_cpo.claims_of("point-circle-meta-cpo", {"meta-cpo": hazards()["meta-cpo"]})
    assert len(only) == 1


def test_pairing_is_by_seed():
    whole = hazards()["meta-cpo"]
    lacking = dataclasses.replace(whole.only([2, 0]), method="other")
    first, second = paired(lacking, whole)
    np.testing.assert_array_equal(first.returns, second.returns)
    assert first.seeds == second.seeds == (2, 0)


def test_saving_is_seed_by_seed():
    found = saving(np.array([1.0, 2.0]), np.array([4.0, 4.0]))
    assert (found.mean, found.low, found.high) == (0.625, 0.5, 0.75)


def test_intervals_over_seeds_and_tasks_know_that_tasks_of_a_seed_are_alike():
    """Were all tasks independent, the interval of 3 seeds that differ and 50 tasks that do not would be too narrow."""
    values = np.repeat([[1.0], [2.0], [3.0]], 50, axis=1)
    found = over_seeds_and_tasks(values)
    assert found.mean == 2.0
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 4 / 3
    assert found.high >= 8 / 3


def test_the_end_of_training_is_its_last_tenth():
    assert hazards()["meta-cpo"].at_end("return_after") == pytest.approx([30.0 * (19 / 20 + 1) / 2] * 3)


def test_times_leave_out_what_compiles():
    found = hazards()["meta-cpo"]
    np.testing.assert_allclose(found.iteration_seconds, [1.0, 1.01, 1.02])
    np.testing.assert_allclose(found.test_seconds, [1.0] * 3)
    short = dataclasses.replace(found, timing=([50.0, 1.0], [50.0], [50.0, 1.0, 40.0, 2.0]))
    np.testing.assert_allclose(short.iteration_seconds, [1.0, 50.0, 2.0])


# Pictures and plans


def test_pictures(tmp_path):
    found = {meta_cpo.TIGHTER: hazards(), "point-button-meta-cpo": {}}
    pictures = [meta_cpo.draw(tmp_path / "figure-5.png", found)]
    circles = {"point-circle": circle()}
    pictures.append(dual.draw_performance(tmp_path / "figure-1.png", "Figure 1", circles, dual.COLOURS))
    pictures.append(dual.draw_times(tmp_path / "figure-2.png", "Figure 2", circles))
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
    markdown = meta_cpo.table(found).markdown() + dual.performance("1", circles).markdown()
    assert "| car-circle-hazard-meta-cpo | meta-trpo | 3 | " in markdown
    assert dual.times("2", circles).rows[0][3].mean == pytest.approx(0.303)


@pytest.mark.parametrize("paper", ["meta-cpo", "dual"])
@pytest.mark.parametrize("budget", registry.BUDGETS)
def test_plans(paper, budget):
    entry = registry.get(paper)
    request = Request(tuple(entry.figures), budget, 2)
    jobs = entry.load().plan(request).jobs
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.seed for job in jobs} == {0, 1}
    for job in jobs:
        config = job.config()
        assert (config.algorithm, config.seed, config.iterations) == (job.algorithm, job.seed, job.iterations)
    for figure in entry.figures:
        only = entry.load().plan(Request((figure,), budget, 2)).jobs
        assert {job.name for job in only} <= {job.name for job in jobs}
    if budget == "laptop":
        seconds = sum(job.seconds for job in entry.load().plan(Request(tuple(entry.figures), budget, 3)).jobs)
        assert seconds < 2.2 * 3600
    if budget == "paper":
        families = {job.task for job in jobs}
        assert families == (set(meta_cpo.FAMILIES) if paper == "meta-cpo" else set(dual.KL_WEIGHT))


def test_in_the_dual_papers_comparison_all_methods_see_as_many_environment_steps():
    from safemeta.algorithms import registry as algorithms
    from safemeta.experiment.run import make_world

    steps = set()
    for method in dual.METHODS:
        config = dual.trial("point-circle", dual.NAVIGATION, method, 0).config()
        algorithm = algorithms.load(config.algorithm).algorithm(config.options)
        steps.add(algorithm.steps_per_iteration(make_world(config.task).cmdp))
    assert steps == {2 * 10 * 10 * 500}


def test_in_figure_5_all_methods_see_as_many_environment_steps():
    from safemeta.algorithms import registry as algorithms
    from safemeta.experiment.run import make_world

    for size in (meta_cpo.SIZES["laptop"]["point-circle-meta-cpo"], meta_cpo.PAPER):
        steps = set()
        for method in meta_cpo.METHODS:
            config = meta_cpo.trial("point-circle-meta-cpo", size, method, 0).config()
            algorithm = algorithms.load(method).algorithm(config.options)
            steps.add(config.iterations * algorithm.steps_per_iteration(make_world(config.task).cmdp))
        assert len(steps) == 1


def test_limits_in_the_test_are_the_papers():
    """10 where it was 10 in training, and 5 in Car-Circle-Hazard."""
    import jax

    from safemeta.experiment.evaluate import draw_tasks
    from safemeta.experiment.run import make_world

    for task, expected in (("point-circle-meta-cpo", 10.0), ("car-circle-hazard-meta-cpo", 5.0)):
        trial = meta_cpo.trial(task, meta_cpo.PAPER, "meta-cpo", 0)
        world = make_world(trial.config().task)
        assert world.cmdp.limits == (10.0,)
        tasks = draw_tasks(world, jax.random.key(0), 3, "test", trial.judgements[0].limit)
        np.testing.assert_array_equal(tasks.limits, np.full((3, 1), expected))


def untrained(name, **options):
    """A run at iteration 0."""
    from safemeta.experiment.run import fresh
    from safemeta.experiment.train import resolve

    return fresh(Path(), resolve({"algorithm": name, "task": "point-circle-meta-cpo", **options}, 1))


def test_what_is_no_meta_learner_goes_on_with_its_own_steps_in_the_test():
    run = untrained("cpo", kl_radius=0.02, episodes=3, margin=0.1, hidden=[5])
    algorithm, state = learner_at_test(run)
    config = algorithm.config
    assert (config.inner, config.inner_radius, config.episodes, config.margin) == ("cpo", 0.02, 3, 0.1)
    assert state.policy is run.state.policy
    assert state.critics is run.state.critics
    meta = untrained("meta-trpo", hidden=[5])
    assert learner_at_test(meta) == (meta.algorithm, meta.state)
    with pytest.raises(UserError, match="'ppo-lagrangian' can neither adapt nor"):
        learner_at_test(untrained("ppo-lagrangian", hidden=[5]))


def test_figures_without_a_finished_run_are_left_out(tmp_path):
    plan = registry.get("dual").load().plan(Request(("1", "2", "4", "6"), "laptop", 1))
    assert plan.summarise(tmp_path).pictures == ()


def test_what_is_not_done_is_left_out_of_the_summary(tmp_path):
    plan = registry.get("meta-cpo").load().plan(Request(("5",), "smoke", 1))
    summary = plan.summarise(tmp_path)
    assert gather(tmp_path, plan.jobs) == {}
    assert summary.claims == ()
    assert summary.pictures[0].is_file()


@pytest.mark.parametrize("paper", ["meta-cpo", "dual"])
def test_smoke(paper, tmp_path, monkeypatch, capsys):
    from safemeta.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", paper, "--budget", "smoke", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {claim["verdict"] for claim in content["claims"]} == {NOT_REPRODUCED}
    assert Path(f"reproductions/{paper}-smoke/tables.md").is_file()


@pytest.mark.parametrize(("paper", "module"), [("meta-cpo", meta_cpo), ("dual", dual)])
def test_the_docs_state_the_laptop_budget(paper, module, repository):
    page = (repository / "docs" / "reproducing.md").read_text()
    for family, size in module.SIZES["laptop"].items():
        inner = getattr(size, "inner_steps", 1)
        test = f"{size.test_tasks}, {size.test_steps}, {size.test_episodes}"
        row = f"| `{paper}` | `{family}` | {size.iterations} | {size.tasks} | {size.episodes} | {inner} | {test} |"
        assert row in page
