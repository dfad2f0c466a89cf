"""Training: resume, stops, failures, and what a run folder holds."""

import errno
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from safemeta.experiment import load, train
from safemeta.experiment.errors import Interrupted, UserError
from safemeta.experiment.progress import Quiet
from safemeta.experiment.run import locked


class Recorder(Quiet):
    """Keeps what was said, and calls `at(step)` after each iteration."""

    def __init__(self, at=None):
        self.said, self.warned, self.at = [], [], at

    def advance(self, step, metrics):
        if self.at:
            self.at(step)

    def note(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)


def results(folder):
    """All that must not depend on where a run was interrupted."""
    files = [folder / "metrics.jsonl", folder / "config.json", *sorted((folder / "checkpoints").glob("*.safetensors"))]
    return {path.name: path.read_bytes() for path in files}


def test_a_run_folder_holds_everything(trained):
    assert {path.name for path in trained.folder.iterdir()} >= {
        "config.json", "metrics.jsonl", "timing.jsonl", "tensorboard", "checkpoints", "plots"
    }  # fmt: skip
    lines = trained.metrics()
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["environment_steps"] for line in lines] == [70, 140, 210, 280, 350, 420]
    assert not list(trained.folder.rglob("*.tmp"))
    names = {path.name for path in (trained.folder / "checkpoints").iterdir()}
    assert names == {"iteration-00000004.safetensors", "iteration-00000006.safetensors", "best.safetensors"}


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resume_is_bit_for_bit(dummy, stop):
    whole = train("dummy", "dummy-task", iterations=6, checkpoint_every=2, out="whole", seed=3)
    train("dummy", "dummy-task", iterations=stop, checkpoint_every=2, out="broken", seed=3)
    broken = train(resume="broken", iterations=6)
    assert broken.iteration == 6
    for name in ("metrics.jsonl", "config.json", "best.safetensors", "iteration-00000006.safetensors"):
        assert results(whole.folder)[name] == results(broken.folder)[name], name


def test_resume_after_a_crash_between_checkpoints(dummy):
    whole = train("dummy", "dummy-task", iterations=8, checkpoint_every=3, out="whole")

    def crash(step):
        if step == 5:
            raise SystemExit  # leaves without saving

    with pytest.raises(SystemExit):
        train("dummy", "dummy-task", iterations=8, checkpoint_every=3, out="broken", reporter=Recorder(crash))
    broken = train(resume="broken")
    assert results(whole.folder) == results(broken.folder)


def test_the_seed_matters(dummy):
    one, other = (train("dummy", "dummy-task", iterations=2, seed=seed).metrics() for seed in (0, 1))
    assert one != other


def test_resume_before_the_first_checkpoint_starts_over(dummy):
    run = train("dummy", "dummy-task", iterations=2)
    expected = results(run.folder)
    for path in (run.folder / "checkpoints").iterdir():
        path.unlink()
    train(resume=run.folder)
    assert results(run.folder) == expected


def test_resume_of_a_finished_run_changes_nothing(trained):
    expected = results(trained.folder)
    recorder = Recorder()
    assert train(resume=trained.folder, reporter=recorder).iteration == 6
    assert results(trained.folder) == expected
    assert any("already" in text for text in recorder.said)


def test_resume_with_fewer_iterations_than_done(trained):
    with pytest.raises(UserError, match="already been trained for 6"):
        train(resume=trained.folder, iterations=4)
    assert json.loads((trained.folder / "config.json").read_bytes())["iterations"] == 6


def test_resume_keeps_its_settings(trained):
    with pytest.raises(UserError, match="not seed, rate"):
        train(resume=trained.folder, seed=3, rate=0.2)
    assert train("dummy", "dummy-task", resume=trained.folder, seed=0).iteration == 6  # says what the run says anyway


def test_a_damaged_newest_checkpoint_is_passed_over(dummy):
    whole = train("dummy", "dummy-task", iterations=6, checkpoint_every=2, out="whole")
    expected = results(whole.folder)
    newest = whole.folder / "checkpoints" / "iteration-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    recorder = Recorder()
    train(resume="whole", reporter=recorder)
    assert len(recorder.warned) == 1
    assert "damaged" in recorder.warned[0]
    assert "iteration 4" in recorder.warned[0]
    assert results(whole.folder) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_finish_the_iteration_and_save(dummy, number, code):
    whole = train("dummy", "dummy-task", iterations=5, checkpoint_every=100, out="whole")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="--resume broken") as caught:
        train(
            "dummy", "dummy-task", iterations=5, checkpoint_every=100, out="broken",
            reporter=Recorder(lambda step: step == 3 and os.kill(os.getpid(), number)),
        )  # fmt: skip
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert load("broken", "last").iteration == 3
    train(resume="broken")
    last = "checkpoints/iteration-00000005.safetensors"
    assert (whole.folder / last).read_bytes() == (whole.folder.parent / "broken" / last).read_bytes()


def test_a_second_signal_stops_at_once_and_still_saves(dummy):
    def twice(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="at once"):
        train("dummy", "dummy-task", iterations=5, reporter=Recorder(twice))
    assert load("runs/dummy-dummy-task-s0", "last").iteration == 2


def test_training_works_outside_the_main_thread(dummy):
    found = []
    thread = threading.Thread(target=lambda: found.append(train("dummy", "dummy-task", iterations=1)))
    thread.start()
    thread.join()
    assert found[0].iteration == 1


@pytest.mark.parametrize(("where", "words"), [("metric", "metric 'return' is nan"), ("state", ".momentum['m']")])
def test_nan_stops_training_and_keeps_the_last_good_state(dummy, where, words):
    with pytest.raises(UserError) as caught:
        train("dummy", "dummy-task", iterations=9, checkpoint_every=2, out="r", fail_at=5, fail_in=where)
    assert caught.value.exit_code == 1
    assert "iteration 6" in str(caught.value)
    assert words in str(caught.value)
    run = load("r", "last")
    assert run.iteration == 5
    assert len(run.metrics()) == 5


def test_an_unexpected_error_saves_first(dummy):
    with pytest.raises(RuntimeError) as caught:
        train("dummy", "dummy-task", iterations=9, checkpoint_every=100, out="r", fail_at=3, fail_in="exception")
    assert any("--resume r" in note for note in caught.value.__notes__)
    assert load("r", "last").iteration == 3


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(dummy, monkeypatch):
    real = os.fsync

    def full(handle):
        if Path("r/checkpoints").is_dir() and len(os.listdir("r/checkpoints")) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="no space is left") as caught:
            train("dummy", "dummy-task", iterations=9, checkpoint_every=2, out="r")
    assert caught.value.exit_code == 1
    assert "--resume r" in str(caught.value)
    assert load("r", "last").iteration == 2
    assert train(resume="r").iteration == 9


def test_the_best_state_is_kept(dummy):
    run = train("dummy", "dummy-task", iterations=6)
    scores = [line["score"] for line in run.metrics()]
    best = load(run.folder)
    assert best.iteration == 1 + scores.index(max(scores))
    assert load(run.folder, "last").iteration == 6


def test_default_folders_never_collide(dummy):
    names = [train("dummy", "dummy-task", iterations=1).folder.name for _ in range(3)]
    assert names == ["dummy-dummy-task-s0", "dummy-dummy-task-s0-2", "dummy-dummy-task-s0-3"]


def test_options_presets_and_budgets(dummy):
    run = train("dummy", "dummy-task", preset="paper", budget="smoke", limit=3.0, rate=0.25, hidden=[4])
    assert run.config.options == dummy.Config(rate=0.25, hidden=(4,), form="fit")
    assert (run.config.iterations, run.config.preset, run.config.task.limit) == (2, "paper", 3.0)
    assert run.world.cmdp.limits == (3.0,)


def test_a_config_file_repeats_its_run(dummy):
    one = train("dummy", "dummy-task", preset="paper", budget="smoke", limit=3.0, rate=0.25, seed=4, out="one")
    two = train(config="one/config.json", out="two")
    assert results(one.folder) == results(two.folder)
    three = train(config="one/config.json", out="three", seed=5, iterations=1, rate=0.5)
    assert (three.config.seed, three.config.iterations, three.config.options.rate) == (5, 1, 0.5)
    assert three.config.options.form == "fit"


def test_a_run_is_trained_by_one_process_at_a_time(trained):
    with locked(trained.folder), pytest.raises(UserError, match="Another process"):
        train(resume=trained.folder, iterations=9)


def test_an_unusable_cache_is_only_a_warning(dummy, monkeypatch, tmp_path):
    import jax

    (tmp_path / "file").touch()
    monkeypatch.setenv("SAFEMETA_CACHE", str(tmp_path / "file" / "cache"))
    before, recorder = jax.config.jax_compilation_cache_dir, Recorder()
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        train("dummy", "dummy-task", iterations=1, reporter=recorder)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert len(recorder.warned) == 1
    assert "SAFEMETA_CACHE" in recorder.warned[0]
