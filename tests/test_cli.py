"""The command line when it is used rightly."""

import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from safemeta.algorithms import registry as algorithms
from safemeta.cli import main
from safemeta.tasks import registry as tasks

EXPERIMENT = Path(__file__).parent / "experiment"
sys.path.insert(0, str(EXPERIMENT))  # for dummy_algorithm
TRAIN = ["train", "dummy", "--task", "dummy-task"]


@pytest.fixture(autouse=True)
def dummy(monkeypatch, tmp_path):
    import dummy_algorithm

    monkeypatch.setattr(algorithms, "ALGORITHMS", dict(algorithms.ALGORITHMS))
    monkeypatch.setattr(tasks, "FAMILIES", dict(tasks.FAMILIES))
    dummy_algorithm.register()
    monkeypatch.chdir(tmp_path)


def test_the_main_job_ends_with_a_table_and_a_picture(capsys):
    assert main([*TRAIN, "--iterations", "3"]) == 0
    out, err = capsys.readouterr()
    for words in ("return before adaptation", "return after 1 step", "return after 20 steps", "largest crash", "420"):
        assert words in out
    assert "95 % interval" in out
    assert "Training 3/3" in err
    folder = Path("runs/dummy-dummy-task-s0")
    assert {path.name for path in (folder / "plots").iterdir()} == {"training.png", "adaptation.png"}
    assert json.loads((folder / "adaptation.json").read_bytes())["tasks"] == 20


def test_adaptation_can_be_left_out(capsys):
    assert main([*TRAIN, "--budget", "smoke", "--no-adapt"]) == 0
    assert capsys.readouterr().out == ""
    assert not Path("runs/dummy-dummy-task-s0/adaptation.json").exists()


def test_json_is_one_object_per_iteration_and_a_summary(capsys):
    assert main([*TRAIN, "--budget", "smoke", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("iteration") for line in lines] == [1, 2, None]
    assert lines[-1]["summary"] is True
    assert lines[-1]["run"] == "runs/dummy-dummy-task-s0"
    assert lines[-1]["adaptation"]["tasks"] == 4


def test_quiet_is_quiet(capsys):
    assert main([*TRAIN, "--budget", "smoke", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_later_commands(capsys):
    assert main([*TRAIN, "--budget", "smoke", "--quiet", "--no-adapt", "--out", "r", "--rate=0.2"]) == 0
    assert main(["adapt", "r", "--tasks", "3", "--steps", "2", "--episodes", "4", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["return"].keys() == {"before", "after_1", "after_2"}
    assert main(["evaluate", "r", "--tasks", "3", "--episodes", "4"]) == 0
    assert "largest crash" in capsys.readouterr().out
    assert main(["plot", "r", "--out", "curves.svg"]) == 0
    assert capsys.readouterr().out == "curves.svg\n"
    assert main(["train", "--resume", "r", "--iterations", "4", "--no-adapt"]) == 0
    assert "Resuming 'r' at iteration 2 of 4" in capsys.readouterr().err
    assert main(["train", "--config", "r/config.json", "--out", "s", "--quiet", "--no-adapt", "--seed", "1"]) == 0
    assert json.loads(Path("s/config.json").read_bytes())["options"]["rate"] == 0.2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--double", "--adapt", "last"], {"double": True, "adapt": "last", "rate": 0.1}),
        (["--no-double", "--hidden", "4", "5", "6"], {"double": False, "hidden": [4, 5, 6]}),
        (["--preset", "paper", "--rate=2"], {"rate": 2.0, "form": "fit"}),
        (["--preset=paper", "--fail_at", "-5"], {"rate": 0.5, "fail_at": -5}),
    ],
)
def test_options_of_the_algorithm(options, expected):
    assert main([*TRAIN, "--budget", "smoke", "--no-adapt", "--quiet", "--out", "r", *options]) == 0
    found = json.loads(Path("r/config.json").read_bytes())["options"]
    assert {name: found[name] for name in expected} == expected


def test_list(capsys):
    assert main(["list", "--json"]) == 0
    lists = json.loads(capsys.readouterr().out)
    assert lists.keys() == {"algorithms", "tasks", "papers"}
    assert {"dual", "cpo", "trpo"} <= {entry["name"] for entry in lists["algorithms"]}
    options = {entry["name"]: entry["options"] for entry in lists["tasks"]}
    assert options["point-circle"] == []
    assert options["realworld-cartpole"][0] == {
        "name": "constraint",
        "default": "slider_pos",
        "allowed": "one or more of slider_pos, slider_accel, balance_velocity, action_roc, separated by commas",
        "description": "constraints, one cost each",
    }
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "point-circle  " in shown
    assert "realworld-cartpole*  " in shown
    assert "* has options, which safemeta list TASK shows, such as: safemeta list realworld-cartpole\n" in shown


def test_list_of_one_name(capsys):
    assert main(["list", "realworld-cartpole"]) == 0
    shown = capsys.readouterr().out
    assert "options (safemeta train --task realworld-cartpole --task-option NAME=VALUE):\n" in shown
    assert "  safety_coeff = 0.3\n      scale of the constraints" in shown
    assert "  observe_constraints = false\n" in shown
    assert main(["list", "realworld-cartpole", "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert (entry["kind"], entry["name"], len(entry["options"])) == ("task", "realworld-cartpole", 18)
    for name, words in (
        ("point-mass", "It has no options."),
        ("cpo", "Its options: safemeta train cpo --help"),
        ("dual", "Its options: safemeta train dual --help"),  # the algorithm, not the paper
        ("metal", "safemeta train metal --help"),
    ):
        assert main(["list", name]) == 0
        assert words in capsys.readouterr().out
    assert main(["list", "realworld-cratpole"]) == 2
    assert "did you mean 'realworld-cartpole'?" in capsys.readouterr().err
    assert main(["list", "dual", "cpo"]) == 2
    assert "Unexpected 'cpo'" in capsys.readouterr().err


def test_tasks_whose_models_are_missing_say_so(capsys, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "dm_control" else there(name))
    sentence = (
        "The task realworld-walker is left out: it needs the models of dm_control, which is installed up to Python 3.12"
        " (its labmaze has no wheel for 3.13)."
    )
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert f"  {sentence}\n" in shown
    assert shown.count("is left out") == 3
    assert main(["list", "realworld-walker"]) == 0
    assert capsys.readouterr().out.endswith(f"\n{sentence}\n")
    assert main([*TRAIN[:2], "--task", "realworld-walker"]) == 2
    assert capsys.readouterr().err == f"safemeta: {sentence}\n"
    assert main(["list", "realworld-cartpole", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage:"),
        (["--help"], "safemeta certify RUN"),
        (["--help"], "safemeta adapt RUN"),
        (["--version"], "safemeta 0."),
        (["train", "--help"], "--checkpoint-every"),
        (["train", "--help"], "NAME=VALUE"),
        (["train", "dummy", "-h"], "Step size."),
        (["adapt", "--help"], "Adaptation steps on each task."),
        (["evaluate", "r", "--help"], "--episodes"),
        (["certify", "--help"], "--actions"),
        (["plot", "--help"], "--out"),
        (["list", "--help"], "--json"),
        (["reproduce", "--help"], "--workers"),
    ],
)
def test_help(arguments, words, capsys):
    assert main(arguments) == 0
    assert words in capsys.readouterr().out


IMPORTS = """
import sys
from safemeta.cli import main
code = main({arguments})
assert code == {code}, code
assert not {{"jax", "matplotlib", "equinox"}} & sys.modules.keys()
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["list"], 0),
        (["train", "--help"], 0),
        (["adapt", "--help"], 0),
        (["certify", "--help"], 0),
        (["certify", "r", "--actions", "1"], 2),
        (["train", "dul"], 2),
        (["trian"], 2),
    ],
)
def test_jax_is_imported_late(arguments, code):
    subprocess.run([sys.executable, "-c", IMPORTS.format(arguments=arguments, code=code)], check=True)


@pytest.mark.parametrize(
    ("command", "seconds"), [(["-m", "safemeta", "--help"], 1.0), (["-c", "import safemeta; safemeta.train"], 2.0)]
)
def test_it_starts_at_once(command, seconds):
    taken = []
    for _ in range(5):  # the best of five, in processor time: other work on the machine is not ours to measure
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if taken[-1] < seconds:
            return
    raise AssertionError(f"{' '.join(command)} took {min(taken):.2f} s")


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m safemeta list | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")


def test_a_closed_pipe_saves_what_was_trained():
    program = f"{sys.executable} {EXPERIMENT / 'dummy_algorithm.py'}"
    command = f"{program} {' '.join(TRAIN)} --iterations 5000 --json --quiet --out r | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout)["iteration"] == 1
    assert done.stderr == ""
    assert list(Path("r/checkpoints").glob("iteration-*"))


def test_the_package_offers_the_same_verbs():
    import safemeta

    assert set(safemeta.__all__) <= set(dir(safemeta))
    assert callable(safemeta.train)
    assert safemeta.make("dummy-task").cmdp.horizon == 7
    with pytest.raises(AttributeError, match="nothing"):
        _ = safemeta.nothing


def test_the_commands_know_the_safety_indices_by_name():
    from typing import get_args

    from safemeta.algorithms.fac_sis import Config
    from safemeta.certificates import INDICES
    from safemeta.experiment.options import Index

    assert get_args(Index) == tuple(INDICES)
    assert get_args(Config.__annotations__["index"]) == tuple(INDICES)
