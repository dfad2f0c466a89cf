"""Bad input: one clear sentence, the right exit code, no traceback, and existing files untouched."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safemeta.algorithms import registry as algorithms
from safemeta.cli import main
from safemeta.tasks import registry as tasks

EXPERIMENT = Path(__file__).parent / "experiment"
sys.path.insert(0, str(EXPERIMENT))  # for dummy_algorithm
TRAIN = ["train", "dummy", "--task", "dummy-task", "--quiet"]
CARTPOLE = ["train", "metal", "--task", "realworld-cartpole", "--quiet"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a trained run and a few files that are none."""
    import dummy_algorithm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "ALGORITHMS", dict(algorithms.ALGORITHMS))
        patch.setattr(tasks, "FAMILIES", dict(tasks.FAMILIES))
        dummy_algorithm.register()
        folder = tmp_path_factory.mktemp("original")
        patch.chdir(folder)
        assert main([*TRAIN, "--iterations", "4", "--checkpoint-every", "2", "--no-adapt", "--out", "run"]) == 0
        os.remove("run/.lock")
        (folder / "file").write_text("a file")
        (folder / "full").mkdir()
        (folder / "full" / "precious.txt").write_text("precious")
        (folder / "broken.json").write_text('{"format": 1, "algo')
        (folder / "list.json").write_text("[1, 2]")
        (folder / "foreign.json").write_text('{"name": "vscode"}')
        yield folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A copy of it to work in, with the dummy registered."""
    import dummy_algorithm

    monkeypatch.setattr(algorithms, "ALGORITHMS", dict(algorithms.ALGORITHMS))
    monkeypatch.setattr(tasks, "FAMILIES", dict(tasks.FAMILIES))
    dummy_algorithm.register()
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    monkeypatch.chdir(copy)
    return copy


def contents(folder):
    """All files with their bytes, and all folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_kind(arguments, code, words, capsys):
    """`main` gives exit code `code` and one sentence that holds all `words`."""
    found = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (found, out) == (code, ""), err
    assert_one_sentence(err)
    for word in words:
        assert word in err


def assert_one_sentence(err):
    assert "Traceback" not in err
    assert err.startswith("safemeta: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert 20 < len(err) < 500
    assert re.search(r"([.!?)]|: safemeta train --resume \S+)$", err.rstrip())  # a sentence, or a command to copy
    assert "Unexpected " not in err or "; " in err  # never the last resort of an unforeseen exception


BAD = [
    # commands
    (["trian"], "did you mean 'train'"),
    (["--fast"], "Unknown command"),
    ([""], "Unknown command"),
    (["list", "extra"], "extra"),
    (["list", "--jsn"], "did you mean --json"),
    # names
    (["train", "dul"], "Did you mean 'dual'"),
    (["train", "Dummy"], "Did you mean 'dummy'"),
    (["train", ""], "Unknown algorithm"),
    (["train", "dummy", "extra", "--quiet"], "extra"),
    (["train", "--seed", "1", "dummy"], "algorithm comes first"),
    (["train", "dummy", "--task", "dumy-task"], "did you mean 'dummy-task'"),
    (["train", "dummy", "--task", ""], "--task"),
    (["train", "dummy", "--task"], "--task"),
    ([*TRAIN, "--preset", "papr"], "did you mean 'paper'"),
    ([*TRAIN, "--budget", "smok"], "did you mean 'smoke'"),
    ([*TRAIN, "--form", "gausian"], "did you mean 'gaussian'"),
    # options
    ([*TRAIN, "--iteration", "3"], "did you mean --iterations"),
    ([*TRAIN, "--learning-rte", "3"], "--learning-rte"),
    ([*TRAIN, "-x"], "-x"),
    ([*TRAIN, "--quiet=yes"], "takes no value"),
    ([*TRAIN, "--no-quiet"], "did you mean --quiet"),
    ([*TRAIN, "--no-doubling"], "Unknown option"),
    ([*TRAIN, "--seed"], "whole number"),
    ([*TRAIN, "--out", "--seed", "3"], "--out"),
    # numbers
    ([*TRAIN, "--iterations", "0"], "at least 1, not 0"),
    ([*TRAIN, "--iterations", "-4"], "at least 1, not -4"),
    ([*TRAIN, "--iterations", "2.5"], "whole number"),
    ([*TRAIN, "--iterations", "ten"], "whole number"),
    ([*TRAIN, "--checkpoint-every", "0"], "checkpoint-every"),
    ([*TRAIN, "--seed", "-1"], "seed"),
    ([*TRAIN, "--seed", "99999999999999999999"], "seed"),
    ([*TRAIN, "--seed", "x"], "whole number, not 'x'"),
    ([*TRAIN, "--limit", "-3"], "above 0, not -3"),
    ([*TRAIN, "--limit", "0"], "above 0, not 0"),
    ([*TRAIN, "--limit", "nan"], "not nan"),
    ([*TRAIN, "--limit", "-inf"], "not -inf"),
    ([*TRAIN, "--limit", "ten"], "a number, not 'ten'"),
    ([*TRAIN, "--limit-on", "total"], "discounted, undiscounted, per_step"),
    (["train", "dummy", "--task", "point-circle", "--limit-on", "undiscounted"], "limit"),
    ([*TRAIN, "--horizon", "0"], "horizon"),
    ([*TRAIN, "--horizon", "1e3"], "whole number"),
    ([*TRAIN, "--rate", "-0.5"], "Rate must be above 0"),
    ([*TRAIN, "--rate", "nan"], "finite"),
    ([*TRAIN, "--rate", "fast"], "a number, not 'fast'"),
    ([*TRAIN, "--hidden", "a", "b"], "whole number, not 'a'"),
    ([*TRAIN, "--hidden"], "at least one value"),
    ([*CARTPOLE, "--limit", "1.2"], "a share of the steps, not 1.2"),
    ([*CARTPOLE, "--replay", "sorted"], "uniform, prioritised"),
    ([*CARTPOLE, "--priority-exponent", "2"], "between 0 and 1, not 2.0"),
    ([*CARTPOLE, "--support", "10", "-10"], "a lower and a higher number"),
    # options of tasks
    (
        [*CARTPOLE, "--task-option", "constraint=joint_angle"],
        "constraint must be one or more of slider_pos, slider_accel",
    ),
    ([*CARTPOLE, "--task-option", "safety_coeff=1.2"], "safety_coeff must be a number above 0 and at most 1"),
    ([*CARTPOLE, "--task-option", "safety_coeff=0"], "not '0'"),
    ([*CARTPOLE, "--task-option", "safety_cof=0.2"], "did you mean 'safety_coeff'"),
    ([*CARTPOLE, "--task-option", "action_delay=-1"], "a whole number of at least 0"),
    ([*CARTPOLE, "--task-option", "pole_length"], "must be NAME=VALUE"),
    ([*CARTPOLE, "--task-option", "=3"], "must be NAME=VALUE"),
    ([*CARTPOLE, "--task-option"], "at least one value"),
    ([*CARTPOLE, "--task-option", "pole_length=1", "--task-option", "pole_length=2"], "more than once"),
    ([*TRAIN, "--task-option", "safety_coeff=0.2"], "dummy-task has no options"),
    (["train", "--resume", "run", "--task-option", "safety_coeff=0.2"], "not task-options"),
    # folders and files
    ([*TRAIN, "--out", "full"], "not empty"),
    ([*TRAIN, "--out", "run"], "--resume"),
    ([*TRAIN, "--out", "file"], "is a file"),
    (["train", "--resume", "nowhere"], "no folder 'nowhere'"),
    (["train", "--resume", "full"], "not a run"),
    (["train", "--resume", "file"], "not a folder"),
    (["train", "--resume"], "--resume needs a value"),
    (["train", "--resume", "run", "--seed", "3"], "not seed"),
    (["train", "--resume", "run", "--rate", "3"], "--rate"),
    (["train", "dual", "--resume", "run"], "algorithm"),
    (["train", "--resume", "run", "--iterations", "2"], "already been trained for 4"),
    (["train", "--resume", "run", "--iterations", "0"], "at least 1"),
    (["train", "--config", "nowhere.json"], "no file 'nowhere.json'"),
    (["train", "--config"], "--config"),
    # the other commands
    (["adapt"], "none was given"),
    (["adapt", "run", "run"], "2 were given"),
    (["adapt", "nowhere"], "no folder"),
    (["adapt", "full"], "not a run"),
    (["adapt", "run", "--tasks", "0"], "tasks"),
    (["adapt", "run", "--steps", "0"], "steps"),
    (["adapt", "run", "--steps", "many"], "whole number"),
    (["adapt", "run", "--episodes", "-3"], "episodes"),
    (["adapt", "run", "--episodes", "1"], "at least 2"),
    (["adapt", "run", "--limit", "nan"], "limit"),
    (["adapt", "run", "--limit", "0"], "limit"),
    (["adapt", "run", "--seed", "-1"], "seed"),
    (["adapt", "run", "--split", "tset"], "'tset'"),
    (["adapt", "run", "--checkpoint", "worst"], "auto, best, last"),
    (["evaluate", "run", "--steps", "3"], "--steps"),
    (["evaluate", "run", "--tasks", "-1"], "tasks"),
    (["evaluate", "nowhere"], "no folder"),
    (["evaluate", "run", "--shield", "model"], "measures no distance to obstacles"),
    (["evaluate", "run", "--shield", "critic"], "no constraint critic"),
    (["evaluate", "run", "--index", "zero"], "add --shield"),
    (["adapt", "run", "--shield", "model", "--index", "zero"], "measures no distance to obstacles"),
    (["certify"], "none was given"),
    (["certify", "nowhere"], "no folder"),
    (["certify", "run"], "measures no distance to obstacles"),
    (["certify", "run", "--index", "zeros"], "did you mean 'zero'"),
    (["certify", "run", "--actions", "1"], "at least 2"),
    (["plot"], "at least one run"),
    (["plot", "nowhere"], "no folder"),
    (["plot", "run", "--out", "curves.gif"], "png, pdf, svg"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=str)
def test_wrong_usage(arguments, words, folder, capsys):
    before = contents(folder)
    assert_kind(arguments, 2, [words], capsys)
    assert contents(folder) == before


FAILURES = [
    ([*TRAIN, "--out", "file/run"], "file"),
    ([*TRAIN, "--out", "/proc/safemeta-run"], "/proc/safemeta-run"),
    (["train", "--config", "broken.json"], "not JSON"),
    (["train", "--config", "list.json"], "not the configuration"),
    (["train", "--config", "foreign.json"], "not the configuration"),
    (["train", "--config", "full"], "full"),
    (["plot", "run", "--out", "file/curves.png"], "file"),
]


@pytest.mark.parametrize(("arguments", "words"), FAILURES, ids=str)
def test_right_usage_that_fails(arguments, words, folder, capsys):
    before = contents(folder)
    assert_kind(arguments, 1, [words], capsys)
    assert contents(folder) == before


def change(path, *keys, value=None, remove=False):
    """Edit one entry of a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if remove:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))


CONFIGS = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:60]), "not JSON"),
    "empty": (lambda path: path.write_bytes(b""), "not JSON"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "not JSON"),
    "deep": (lambda path: path.write_text("[" * 200_000), "not JSON"),
    "a list": (lambda path: path.write_text("[]"), "not the configuration"),
    "foreign": (lambda path: path.write_text('{"algorithm": "dummy"}'), "not the configuration"),
    "newer format": (lambda path: change(path, "format", value=2), "reads format 1"),
    "no options": (lambda path: change(path, "options", remove=True), "lacks the entry 'options'"),
    "no seed": (lambda path: change(path, "seed", remove=True), "lacks the entry 'seed'"),
    "no task name": (lambda path: change(path, "task", "name", remove=True), "lacks the entry 'name'"),
    "unknown algorithm": (lambda path: change(path, "algorithm", value="dumy"), "Did you mean 'dummy'"),
    "algorithm no name": (lambda path: change(path, "algorithm", value=3), "must be a name"),
    "unknown option": (lambda path: change(path, "options", "rat", value=1), "did you mean 'rate'"),
    "unknown entry": (lambda path: change(path, "sead", value=1), "did you mean 'seed'"),
    "option of wrong type": (lambda path: change(path, "options", "rate", value="x"), "a number, not 'x'"),
    "options no object": (lambda path: change(path, "options", value=3), "must be a JSON object"),
    "option not allowed": (lambda path: change(path, "options", "form", value="x"), "gaussian, fit"),
    "option refused": (lambda path: change(path, "options", "rate", value=-1), "above 0"),
    "seed no number": (lambda path: change(path, "seed", value="0"), "a whole number, not '0'"),
    "seed a truth": (lambda path: change(path, "seed", value=True), "a whole number, not True"),
    "no iterations": (lambda path: change(path, "iterations", value=-3), "at least 1"),
    "limit NaN": (lambda path: change(path, "task", "limit", value=float("nan")), "limit"),
    "task options no object": (lambda path: change(path, "task", "options", value=[1]), "must be a JSON object"),
    "unknown task option": (lambda path: change(path, "task", "options", value={"x": 1}), "has no options"),
    "limit on": (lambda path: change(path, "task", "limit_on", value="all"), "discounted"),
}


@pytest.mark.parametrize("command", [["train", "--quiet", "--resume"], ["adapt"], ["evaluate"]], ids=lambda c: c[0])
@pytest.mark.parametrize("damage", CONFIGS)
def test_damaged_configurations(command, damage, folder, capsys):
    spoil, words = CONFIGS[damage]
    spoil(folder / "run" / "config.json")
    before = contents(folder)
    assert_kind([*command, "run"], 1, ["config.json", words], capsys)
    assert contents(folder) == before


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


CHECKPOINTS = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "damaged (truncated"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:50]), "damaged (truncated"),
    "bit-flipped": (flip, "checksum"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "foreign": (lambda path: path.write_bytes(b"PK\x03\x04" * 500), "not a safemeta checkpoint"),
    "text": (lambda path: path.write_bytes(b"hello"), "not a safemeta checkpoint"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}


@pytest.mark.parametrize(
    "command", [["train", "--quiet", "--iterations", "9", "--resume"], ["adapt"], ["evaluate"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_damaged_checkpoints(command, damage, folder, capsys):
    spoil, words = CHECKPOINTS[damage]
    for path in (folder / "run" / "checkpoints").iterdir():
        spoil(path)
    before = contents(folder)
    assert_kind([*command, "run"], 1, ["run/checkpoints/", words], capsys)
    assert contents(folder) == before


def test_a_checkpoint_of_other_options(folder, capsys):
    change(folder / "run" / "config.json", "options", "hidden", value=[5, 5])
    before = contents(folder)
    assert_kind(["adapt", "run", "--quiet"], 1, ["does not fit", "shape"], capsys)
    assert_kind(["train", "--resume", "run", "--quiet"], 1, ["does not fit", "shape"], capsys)
    assert contents(folder) == before


def test_a_run_without_checkpoints(folder, capsys):
    shutil.rmtree(folder / "run" / "checkpoints")
    assert_kind(["adapt", "run"], 1, ["no checkpoint yet", "--resume run"], capsys)
    assert_kind(["adapt", "run", "--checkpoint", "best"], 2, ["no best checkpoint"], capsys)


def test_a_run_without_metrics(folder, capsys):
    os.remove("run/metrics.jsonl")
    assert_kind(["plot", "run"], 1, ["no metrics"], capsys)


def test_reports_that_cannot_be_written(folder, capsys):
    shutil.rmtree("run/plots")
    Path("run/plots").write_text("in the way")
    before = Path("run/plots").read_bytes()
    assert_kind(["plot", "run"], 1, ["run/plots"], capsys)
    assert_kind(["evaluate", "nowhere/.."], 2, ["nowhere"], capsys)
    assert Path("run/plots").read_bytes() == before


@pytest.mark.parametrize(("where", "words"), [("metric", "'return' is nan"), ("state", "NaN")])
def test_nan_in_training(where, words, folder, capsys):
    arguments = [*TRAIN, "--fail-at", "2", "--fail-in", where, "--out", "new"]
    assert_kind(arguments, 1, ["iteration 3", words, "new/checkpoints/iteration-00000002"], capsys)


def test_an_unforeseen_error_is_one_sentence_too(folder, capsys):
    assert main([*TRAIN, "--fail-at", "2", "--fail-in", "exception", "--out", "new"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Unexpected RuntimeError: the dummy broke in two lines." in err
    assert "--resume new" in err
    assert "SAFEMETA_DEBUG=1" in err


def test_the_traceback_is_there_for_those_who_ask(folder, capsys, monkeypatch):
    monkeypatch.setenv("SAFEMETA_DEBUG", "1")
    assert main([*TRAIN, "--fail-at", "2", "--fail-in", "exception", "--out", "new"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "dul"], 2),
        ([*TRAIN, "--limit", "nan"], 2),
        ([*TRAIN, "--out", "/proc/safemeta-run"], 1),
        ([*TRAIN, "--fail-at", "1", "--out", "new"], 1),
        (["adapt", "full"], 2),
    ],
)
def test_in_a_true_process(arguments, code, folder):
    command = [sys.executable, EXPERIMENT / "dummy_algorithm.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stdout == ""
    assert_one_sentence(done.stderr)
