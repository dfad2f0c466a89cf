"""Runs on environments of a user's own: recorded, resumed with the world at hand, saved when the environment fails."""

import json

import gymnasium
import numpy as np
import pytest

import safemeta
from safemeta.cli import main
from safemeta.experiment.errors import UserError
from safemeta.experiment.run import load
from safemeta.experiment.train import train

SMALL = {"tasks": 2, "episodes": 2, "critic_steps": 2, "hidden": (4,), "fisher_states": 20}


class Push(gymnasium.Env):
    """The reward is the action, and it costs where it is positive; raises in episode number `fails_in`."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    episodes = 0

    def __init__(self, fails_in=None):
        self.fails_in = fails_in

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        Push.episodes += 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if self.fails_in is not None and Push.episodes >= self.fails_in:
            raise RuntimeError("out of fuel")
        return np.zeros(1, np.float32), float(action[0]), False, False, {"cost": max(float(action[0]), 0.0)}


def world(horizon=3, **changes):
    return safemeta.gymnasium_world(lambda: Push(**changes), horizon=horizon, limits=1.0)


def test_a_run_on_ones_own_world_records_it_and_resumes_with_it():
    own = world()
    whole = train("cpo", own, iterations=2, out="whole", **SMALL)
    record = json.loads((whole.folder / "config.json").read_text())["task"]
    assert record == {"name": "Push", "limit": 1.0, "limit_on": "discounted", "horizon": 3, "own": True}
    assert "cpo on Push" in whole.name
    part = train("cpo", own, iterations=1, **SMALL)
    assert part.folder.name == "cpo-Push-s0"
    train(task=world(), resume=part.folder, iterations=2)  # another one that is the same
    assert (part.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    again = load(part.folder, world=own)
    assert safemeta.evaluate(again, tasks=1, episodes=2).tasks == 1


@pytest.fixture
def run():
    return str(train("cpo", world(), iterations=1, out="run", **SMALL).folder)


def test_what_cannot_be_done_with_such_a_run_is_said_in_one_sentence(run, capsys):
    for arguments in (["train", "--resume", run, "--iterations", "2"], ["evaluate", run]):
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert "the user's own" in shown
        assert "Traceback" not in shown
    with pytest.raises(UserError, match="The run's world has the horizon 3, the one given now has 4"):
        train(task=world(4), resume=run)
    with pytest.raises(UserError, match="Give the limit where the world is made"):
        train("cpo", world(), limit=3.0)
    with pytest.raises(UserError, match=r"not a Push \(safemeta.gymnasium_world makes a world of a Gymnasium"):
        train("cpo", Push())
    with pytest.raises(UserError, match="not a int"):
        train("cpo", 3)


def test_a_world_is_not_taken_for_a_task_with_a_name(trained):
    with pytest.raises(UserError, match="'dummy-task', which is known by its name: leave the world out"):
        load(trained.folder, world=world())


def test_an_environment_that_raises_leaves_a_run_that_is_saved(capsys):
    Push.episodes = 0
    with pytest.raises(UserError) as caught:
        train("cpo", world(fails_in=10), iterations=9, out="run", checkpoint_every=9, **SMALL)
    assert caught.value.exit_code == 1
    assert (
        "Training stopped at iteration 3: the environment of task 0, episode 0, failed at step 1: RuntimeError"
        in str(caught.value)
    )
    assert "the state before it is saved in" in str(caught.value)
    assert isinstance(caught.value.__cause__.__cause__, RuntimeError)
    assert load("run", world=world()).iteration == 2
    assert len((load("run", world=world()).folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_runs(repository, load_example, capsys):
    path = repository / "examples" / "own_environment.py"
    example = load_example("own_environment")
    environment = path.read_text().split("class Crane")[1].split("\n\n\ndef ")[0]
    assert len(environment.splitlines()) <= 40
    example.main(1, 1, tasks=2, episodes=2, critic_steps=2)
    shown = capsys.readouterr().out
    assert "cpo   return" in shown
    assert "dual  return" in shown
