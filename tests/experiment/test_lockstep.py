"""Runs in one compiled program: a kill while they are being saved leaves them apart, and they end as if unbroken."""

import shutil

import pytest

from safemeta.experiment.checkpoint import Checkpoints
from safemeta.experiment.compilation import enable_cache
from safemeta.experiment.lockstep import can_be_trained_together, level, opened, train_together
from safemeta.experiment.progress import Quiet
from safemeta.experiment.run import build, make_world
from safemeta.experiment.train import resolve

TINY = {
    "task": "realworld-cartpole", "horizon": 10, "preset": "fast", "tasks": 2, "episodes": 1, "warm_up": 8, "batch": 4,
    "hidden": (4,), "critic_hidden": (4,), "atoms": 5, "n_step": 2, "steps_per_update": 2, "capacity": 100,
    "checkpoint_every": 2,
}  # fmt: skip


def config(seed, iterations=5):
    return resolve({"algorithm": "d4pg", "seed": seed, **TINY}, iterations)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two runs that were never stopped; and the same as they are at their fourth iteration, saved at 2 and 4."""
    enable_cache()
    out = tmp_path_factory.mktemp("whole")
    train_together([opened(out / f"s{seed}", config(seed)) for seed in (0, 1)], Quiet())
    return out


def at(whole, folder, seed, iterations):
    """A run that was killed after the checkpoints at these iterations."""
    place = folder / f"s{seed}"
    shutil.copytree(whole / f"s{seed}", place)
    checkpoints = Checkpoints(place / "checkpoints")
    made = checkpoints.iterations()
    if not set(iterations) <= set(made):
        pytest.fail(f"only {made} are kept")
    for iteration in set(made) - set(iterations):
        checkpoints.path(iteration).unlink()
    return opened(place, config(seed))


def content(folder):
    names = ["config.json", "metrics.jsonl", *(f"checkpoints/{path.name}" for path in folder.glob("checkpoints/*"))]
    return {name: (folder / name).read_bytes() for name in names}


def test_runs_a_checkpoint_apart_end_as_if_unbroken(whole, tmp_path):
    """The unbroken runs keep their checkpoints at 4 and 5; one was killed before it had saved 5."""
    runs = [at(whole, tmp_path, 0, (4, 5)), at(whole, tmp_path, 1, (4,))]
    assert [run.iteration for run in runs] == [5, 4]
    level(runs)
    assert [run.iteration for run in runs] == [4, 4]
    assert Checkpoints(runs[0].folder / "checkpoints").iterations() == [4]
    train_together(runs, Quiet())
    for run in runs:
        assert content(run.folder) == content(whole / run.folder.name)


def test_a_run_that_was_not_yet_saved_at_all_takes_the_others_back_to_the_start(whole, tmp_path):
    runs = [at(whole, tmp_path, 0, (4,)), at(whole, tmp_path, 1, ())]
    level(runs)
    assert [run.iteration for run in runs] == [4, 0]  # two intervals would be lost: the other one catches up
    for run in runs:
        object.__setattr__(run.config, "checkpoint_every", 4)
    level(runs)
    assert [run.iteration for run in runs] == [0, 0]
    assert not Checkpoints(runs[0].folder / "checkpoints").iterations()


def test_without_the_common_checkpoint_nobody_is_taken_back(whole, tmp_path):
    runs = [at(whole, tmp_path, 0, (5,)), at(whole, tmp_path, 1, (4,))]
    level(runs)
    assert [run.iteration for run in runs] == [5, 4]
    damaged = [at(whole, tmp_path / "damaged", 0, (4, 5)), at(whole, tmp_path / "damaged", 1, (4,))]
    path = Checkpoints(damaged[0].folder / "checkpoints").path(4)
    path.write_bytes(path.read_bytes()[:-3])
    level(damaged)
    assert [run.iteration for run in damaged] == [5, 4]


@pytest.mark.parametrize(
    ("algorithm", "task", "together"),
    [
        ("d4pg", "realworld-cartpole", True),
        ("trpo", "point-mass", False),
        pytest.param("d4pg", "realworld-walker", False, marks=pytest.mark.dm_control),
    ],
)
def test_who_can_be_trained_together(algorithm, task, together):
    settings = resolve({"algorithm": algorithm, "task": task}, 1)
    assert can_be_trained_together(build(settings), make_world(settings.task)) == together
