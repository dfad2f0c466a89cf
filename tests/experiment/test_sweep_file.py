"""What a sweep's file asks for: combinations, precedence, names; every mistake is one sentence with its place."""

import itertools
import re
from pathlib import Path

import pytest

from safemeta.experiment.errors import UserError
from safemeta.experiment.sweep_file import read_plan

GOOD = """
algorithms = ["dummy"]
tasks = ["dummy-task"]
seeds = 2
iterations = 4

[options]
rate = 0.2

[task.dummy-task]
horizon = 5

[algorithm.dummy]
hidden = [4, 4]

[grid]
limit = [7.0, 9.0]

[grid.algorithm.dummy]
fail-at = [-1, 3]
"""


def planned(text: str, **options):
    Path("sweep.toml").write_text(text)
    return read_plan("sweep.toml", **options)


def test_every_combination_is_there_once():
    plan = planned(GOOD)
    found = {(run.config.task.limit, run.config.options.fail_at, run.config.seed) for run in plan.runs}
    assert found == set(itertools.product((7.0, 9.0), (-1, 3), (0, 1)))
    assert len(plan.runs) == 8
    for run in plan.runs:
        config = run.config
        assert (config.algorithm, config.iterations, config.options.rate) == ("dummy", 4, 0.2)
        assert (config.options.hidden, config.task.horizon) == ((4, 4), 5)
    assert plan.runs[3].name == "dummy-dummy-task-limit=7.0-fail-at=3-s1"
    assert all(len(group) == 1 for group in plan.groups)  # this learner shares no program


def test_the_nearest_table_counts():
    text = """
algorithms = "dummy"
tasks = ["dummy-task"]
seeds = [5, 3]
preset = "paper"
checkpoint_every = 7
limit = 1
[options]
rate = 0.1
double = true
[task.dummy-task]
limit = 2
rate = 0.2
[algorithm.dummy]
limit = 3
rate = 0.3
[grid]
rate = [0.4]
"""
    runs = planned(text).runs
    config = runs[0].config
    assert [run.config.seed for run in runs] == [5, 3]
    assert (config.task.limit, config.options.rate, config.options.form) == (3.0, 0.4, "fit")
    assert (config.options.double, config.checkpoint_every) == (True, 7)
    text = text.replace("[grid]\nrate = [0.4]", "")
    assert planned(text).runs[0].config.options.rate == 0.3
    assert planned(text.replace("rate = 0.3", "")).runs[0].config.options.rate == 0.2


def test_seeds_of_an_off_policy_learner_share_a_program():
    text = 'algorithms = ["d4pg", "trpo"]\ntasks = ["realworld-cartpole", "point-mass"]\nseeds = 6\n'
    text += "[task.realworld-cartpole]\ntask-option = { safety_coeff = 0.2 }\nhorizon = 9\n"
    text += "[grid.task.realworld-cartpole.task-option]\nconstraint = ['slider_pos', 'balance_velocity']\n"
    text += "[algorithm.d4pg]\ncapacity = 100\n"
    sizes = {}
    for group in (plan := planned(text)).groups:
        sizes.setdefault(group[0].name.rpartition("-s")[0], []).append(len(group))
    cartpole = [f"realworld-cartpole-constraint={name}" for name in ("slider_pos", "balance_velocity")]
    assert sizes == {
        **{f"d4pg-{name}": [4, 2] for name in (*cartpole, "point-mass")},
        **{f"trpo-{name}": [1] * 6 for name in (*cartpole, "point-mass")},
    }
    assert plan.runs[0].config.task.options == {"safety_coeff": 0.2, "constraint": "slider_pos"}
    assert {len(group) for group in planned("seeds-together = 1\n" + text).groups} == {1}
    assert {len(group) for group in planned(text, meet=False).groups} == {1}


def test_names_are_those_of_folders_and_differ():
    values = ", ".join(f"[{', '.join(['33'] * size)}]" for size in (2, 60, 61))
    names = [run.name for run in planned(GOOD.replace("limit = [7.0, 9.0]", f"hidden = [{values}]")).runs]
    assert len({*names}) == len(names) == 12
    assert names[0] == "dummy-dummy-task-hidden=33x33-fail-at=-1-s0"
    assert all(len(name) < 150 and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (GOOD, "x = = 1", "'sweep.toml' is not TOML: Invalid value (at line 1, column 5)."),
        (GOOD, "x = " + "[" * 10_000, "'sweep.toml' is not TOML"),
        (GOOD, "", "'sweep.toml', algorithms: must be a list of names, such as"),
        ('["dummy"]', '["dumy"]', "'sweep.toml', algorithms: Unknown algorithm 'dumy'. Did you mean 'dummy'?"),
        ('["dummy"]', '["dummy", "dummy"]', "algorithms: 'dummy' is named twice."),
        ('["dummy-task"]', '["dummy-tusk"]', "'sweep.toml', tasks: Unknown task 'dummy-tusk'; did you mean"),
        ('["dummy-task"]', "3", "'sweep.toml', tasks: must be a list of names"),
        ("seeds = 2", "sedes = 2", "'sweep.toml': Unknown entry 'sedes'; did you mean 'seeds'?"),
        ("seeds = 2", "seeds = 0", "'sweep.toml', seeds: must be 1 to 10000 seeds or a list of them, not 0."),
        ("seeds = 2", "seeds = [1, -1]", "seeds: The seed must be a whole number from 0"),
        ("seeds = 2", "seeds = [1, 1]", "seeds: a seed is named twice."),
        ("seeds = 2", "seeds = 'x'", "seeds: must be a number of seeds or a list of them"),
        ("seeds = 2", "seeds = 9999", "it asks for 39996 runs; 10000 are the most."),
        ("seeds = 2", "seeds-together = 0", "seeds-together: must be a whole number of at least 1, not 0."),
        ("iterations = 4", "iterations = 'x'", "'sweep.toml', iterations: must be a whole number, not 'x'."),
        ("iterations = 4", "iterations = 0", "iterations: The number of iterations must be a whole number of at least"),
        ("iterations = 4", "preset = 'papre'", "preset: Unknown preset of dummy 'papre'; did you mean 'paper'?"),
        ("iterations = 4", "preset = [1]", "preset: must be a text, not [1]."),
        ("iterations = 4", "options = 3", None),
        ("rate = 0.2", "rite = 0.2", "'sweep.toml', [options], rite: Unknown option of dummy 'rite'; did you mean"),
        ("rate = 0.2", "rate = 'x'", "'sweep.toml', [options], rate: must be a number, not 'x'."),
        ("rate = 0.2", "rate = -1", "'sweep.toml', [options], rate: Rate must be above 0, not -1"),
        ("rate = 0.2", "rate = inf", "'sweep.toml', [options], rate: must be a finite number, not inf."),
        ("rate = 0.2", "fail-at = 1\nfail_at = 2", "'sweep.toml', [options], fail-at: it is given twice."),
        ("horizon = 5", "horizon = 0", "'sweep.toml', [task.dummy-task], horizon: The number of horizon must be"),
        ("horizon = 5", "task-option = { a = 1 }", "[task.dummy-task], task-option.a: The task dummy-task has no opt"),
        ("horizon = 5", "task-option = 3", "[task.dummy-task], task-option: must be a table."),
        ("[task.dummy-task]", "[task.other]", "[task.other]: Unknown task of this sweep 'other' (allowed: dummy-task."),
        ("[algorithm.dummy]", "[algorithm.dumy]", "[algorithm.dumy]: Unknown algorithm of this sweep 'dumy'; did you"),
        ("hidden = [4, 4]", "form = 'exact'", "[algorithm.dummy], form: must be one of gaussian, fit, not 'exact'."),
        ("[7.0, 9.0]", "7.0", "'sweep.toml', [grid], limit: must be a list of values to take, not 7.0."),
        ("[7.0, 9.0]", "[]", "[grid], limit: must be a list of values to take"),
        ("[7.0, 9.0]", "[7.0, 7.0]", "[grid], limit: a value is named twice."),
        ("[7.0, 9.0]", "[7.0, -1.0]", "[grid], limit: The limit must be a finite number above 0, not -1.0."),
        ("[-1, 3]", "[-1, 'x']", "[grid.algorithm.dummy], fail-at: must be a whole number, not 'x'."),
        ("[grid.algorithm.dummy]", "[grid.task.x]", "[grid.task.x]: Unknown task of this sweep 'x'"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(old, new, words):
    assert GOOD.count(old) == 1
    with pytest.raises(UserError) as refused:
        planned(GOOD.replace(old, new))
    text = str(refused.value)
    assert refused.value.exit_code == 2
    assert "\n" not in text
    assert text.startswith("'sweep.toml'")
    assert words is None or words in text


def test_what_only_shows_when_algorithm_and_task_meet_is_found(dummy, monkeypatch):
    def init(self, key, cmdp):
        if self.config.double:
            raise ValueError("the dummy cannot be doubled")
        return dummy.State

    monkeypatch.setattr(dummy.Algorithm, "init", init)
    planned(GOOD)
    text = GOOD.replace("limit = [7.0, 9.0]", "double = [false, true]")
    planned(text, meet=False)
    with pytest.raises(UserError) as refused:
        planned(text)
    assert str(refused.value) == "'sweep.toml', [grid], double: The dummy cannot be doubled."


def test_a_file_that_cannot_be_read_is_one_sentence():
    with pytest.raises(UserError, match=r"^There is no file 'none.toml'\.$"):
        read_plan("none.toml")
    with pytest.raises(UserError, match=r"Cannot use '.*': is a directory"):
        read_plan(Path.cwd())
    Path("noise.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"^'noise.toml' is not TOML: it is not text\.$"):
        read_plan("noise.toml")


def test_the_file_in_the_documentation_is_right(repository):
    page = (repository / "docs" / "sweeps.md").read_text()
    (block,) = re.findall(r"^```toml\n(.+?)^```$", page, re.MULTILINE | re.DOTALL)
    names = {run.name for run in planned(block, meet=False).runs}
    assert len(names) == (2 + 2 * 2 + 6 + 2 * 2 * 3) * 5
    assert re.findall(r"^`(cpo-realworld-cartpole-.+)`\.$", page, re.MULTILINE)[0] in names


def test_the_example_is_right(repository):
    plan = read_plan(repository / "examples" / "sweep.toml")
    assert len(plan.runs) == 8
    assert {run.config.algorithm for run in plan.runs} == {"trpo", "cpo"}
