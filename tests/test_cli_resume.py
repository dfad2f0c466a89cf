"""A training process is killed or stopped; after --resume nothing tells that it ever was."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXPERIMENT = Path(__file__).parent / "experiment"
PROGRAM = [sys.executable, str(EXPERIMENT / "dummy_algorithm.py")]  # the command line, with the dummy registered

SMALL = {
    "dummy": ["dummy", "--task", "dummy-task", "--iterations", "40", "--checkpoint-every", "3", "--pause", "0.03"],
    "dual": [
        "dual", "--task", "point-circle", "--horizon", "300", "--iterations", "20", "--checkpoint-every", "3",
        "--tasks", "2", "--corner-tasks", "1", "--episodes", "2", "--hidden", "8", "--fisher-states", "40",
        "--critic-steps", "2", "--adapt-critic-steps", "2", "--minibatch", "20",
    ],
}  # fmt: skip
KILLS = {"dummy": 4, "dual": 3}


def start(*arguments):
    # Where the tests themselves run in a shell's background, Ctrl-C is ignored, and children inherit that; a handler
    # they do not inherit. (`preexec_fn` would fork this process, where JAX has threads.)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    finally:
        signal.signal(signal.SIGINT, before)


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def lines(folder):
    """How many iterations the run has logged."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition, process):
    """Wait until something holds, or the process has ended."""
    limit = time.monotonic() + 100
    while not condition() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)


def assert_equal(one, other):
    """Everything that training computed is the same, bit for bit."""
    names = {path.name for path in (one / "checkpoints").iterdir()}
    assert names == {path.name for path in (other / "checkpoints").iterdir()}
    for name in ("config.json", "metrics.jsonl", *(f"checkpoints/{name}" for name in names)):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("algorithm", SMALL)
def test_killed_hard_at_random_moments(algorithm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish(start("train", *SMALL[algorithm], "--no-adapt", "--out", "whole"))
    broken, draw = tmp_path / "broken", random.Random()
    process = start("train", *SMALL[algorithm], "--no-adapt", "--out", "broken")
    wait_for((broken / "config.json").exists, process)
    for _ in range(KILLS[algorithm]):
        # Any moment will do: before the first iteration, within one, while a checkpoint is written.
        goal = lines(broken) + draw.randint(0, 9)
        wait_for(lambda goal=goal: lines(broken) >= goal, process)
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        process = start("train", "--resume", "broken", "--no-adapt")
    finish(process)
    assert_equal(tmp_path / "whole", broken)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(number, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", *SMALL["dummy"], "--no-adapt", "--checkpoint-every", "1000", "--out", "run"]
    process = start(*command)
    wait_for(lambda: lines(tmp_path / "run") >= 4, process)
    process.send_signal(number)
    _, err = finish(process, code)
    assert err.splitlines()[-1].startswith("safemeta: Stopped after iteration ")
    assert err.splitlines()[-1].endswith("Continue with: safemeta train --resume run")
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert f"iteration-{lines(tmp_path / 'run'):08d}.safetensors" in saved
    finish(start("train", "--resume", "run", "--no-adapt"))
    assert lines(tmp_path / "run") == 40


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_before_training_has_begun(number, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = start("train", *SMALL["dummy"], "--out", "run")
    wait_for((tmp_path / "run").exists, process)
    process.send_signal(number)
    _, err = finish(process, code)
    assert err.splitlines()[-1].startswith("safemeta: Stopped")
