"""Options of tasks on their way through a run: command line, config.json, resuming, labels of plots."""

import json
from pathlib import Path

import pytest

from safemeta.cli import main
from safemeta.experiment import train
from safemeta.experiment.arguments import parse
from safemeta.experiment.config import RunConfig, TaskConfig
from safemeta.experiment.errors import UserError
from safemeta.experiment.options import TrainOptions
from safemeta.experiment.plots import groups_of
from safemeta.experiment.run import make_world, read_config, read_log
from safemeta.experiment.train import resolve
from safemeta.tasks import Family, cartpole
from safemeta.tasks import registry as tasks
from safemeta.tasks.options import Option

SIZE = Option("size", "number", 2.0, "of the world", 1.0, 5.0)
KIND = Option("kind", "names", "a", "of world", choices=("a", "b"))


@pytest.fixture
def sized(dummy, monkeypatch):
    """The dummy's family with two options, which set its limit."""
    plain = tasks.FAMILIES["dummy-task"]

    def build(limit, limit_on, horizon, size, kind):
        return plain.build(size, limit_on, horizon)

    monkeypatch.setitem(tasks.FAMILIES, "sized", Family("sized", "for tests", "undiscounted", build, (SIZE, KIND)))


def test_a_run_keeps_its_options_and_goes_on_with_them(sized):
    arguments = ["train", "dummy", "--task", "sized", "--quiet", "--no-adapt", "--iterations", "2", "--out", "r"]
    assert main([*arguments, "--task-option", "size=3", "--task-option=kind=b,a"]) == 0
    content = json.loads(Path("r/config.json").read_bytes())
    assert content["task"]["options"] == {"size": 3.0, "kind": ["b", "a"]}
    run = train(resume="r", iterations=3)
    assert (run.iteration, run.world.cmdp.limits) == (3, (3.0,))
    repeated = train(config="r/config.json", task_options={"size": 4}, out="again")
    assert repeated.config.task.options == {"size": 4.0, "kind": ["b", "a"]}
    other = train(config="r/config.json", task="dummy-task", out="other")
    assert other.config.task.options == {}


def test_without_options_config_json_is_as_it_was(sized):
    run = train("dummy", "sized", iterations=1)
    task = json.loads((run.folder / "config.json").read_bytes())["task"]
    assert task == {"name": "sized", "limit": None, "limit_on": None, "horizon": None, "own": False}
    assert run.world.cmdp.limits == (2.0,)
    assert read_config(run.folder).task == TaskConfig("sized")


def test_several_values_may_follow_or_repeat_the_flag():
    parsed = parse(
        ["--task-option", "a=1", "b=2", "--seed", "3", "--task-option", "c=x,y"],
        {"train": TrainOptions()},
        program="safemeta train",
        description="",
    )
    assert (parsed.parts[0].task_option, parsed.parts[0].seed, parsed.words) == (("a=1", "b=2", "c=x,y"), 3, ())


def test_runs_of_different_options_are_told_apart_and_defaults_are_values(sized):
    given = [{}, {"size": 2}, {"size": "3.5"}, {"size": 3.5}, {"kind": "b"}]
    folders = [train("dummy", "sized", iterations=1, seed=s, task_options=o).folder for s, o in enumerate(given)]
    folders.append(train("dummy", "dummy-task", iterations=1).folder)
    groups = groups_of([read_log(folder) for folder in folders])
    assert {label: len(runs) for label, runs in groups.items()} == {
        "dummy, task sized, kind a, size 2.0": 2,
        "dummy, task sized, kind a, size 3.5": 2,
        "dummy, task sized, kind b, size 2.0": 1,
        "dummy, task dummy-task": 1,
    }


def test_bad_options_are_refused_before_anything_is_written(sized):
    for task, options, words in [
        ("sized", {"size": 9}, "The task option size must be a number of at least 1 and at most 5, not 9."),
        ("sized", {"seize": 3}, "Unknown option 'seize' of the task sized; did you mean 'size'?"),
        ("dummy-task", {"size": 3}, "The task dummy-task has no options, so that 'size' cannot be set."),
        (cartpole.world(), {"size": 3}, "Give the task options where the world is made, not to train."),
    ]:
        with pytest.raises(UserError) as caught:
            train("dummy", task, task_options=options)
        assert (str(caught.value), caught.value.exit_code) == (words, 2)
    assert not Path("runs").exists()


def test_cartpoles_options_reach_its_world():
    config = resolve({"algorithm": "d4pg", "task": "realworld-cartpole", "task_options": {"safety_coeff": "0.1"}}, 1)
    span = cartpole.CartpoleRange(safety_coeff=(0.1, 0.1))
    assert make_world(config.task) == cartpole.world(train=span)
    again = RunConfig.from_json(json.loads(json.dumps(config.to_json())), type(config.options), "here")
    assert again == config
