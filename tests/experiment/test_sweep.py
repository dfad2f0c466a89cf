"""Sweeps: what is done is skipped, a dead worker's job goes on bit for bit, changed files are refused."""

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
from _sweep_kills import workers

from safemeta.cli import main
from safemeta.experiment import logs, sweep_ray
from safemeta.experiment.errors import Interrupted, UserError
from safemeta.experiment.plots import plot
from safemeta.experiment.report import report
from safemeta.experiment.run import read_config, run_folders
from safemeta.experiment.sweep import check_folder, sweep
from safemeta.experiment.sweep_display import Board
from safemeta.experiment.sweep_file import read_plan
from safemeta.experiment.sweep_jobs import SweepJob
from safemeta.experiment.sweep_ray import Ended, Pool, Resources

DUMMIES = 'algorithms = ["dummy"]\ntasks = ["dummy-task"]\nseeds = 3\niterations = 4\ncheckpoint-every = 2\n'


# Without Ray


def test_without_ray_there_is_a_sentence_and_nothing_is_begun(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("s.toml").write_text(DUMMIES)
    assert main(["sweep", "s.toml"]) == 1
    wanted = "safemeta: A sweep runs on Ray, which is not installed; install it with: pip install 'safemeta[ray]'\n"
    assert capsys.readouterr() == ("", wanted)
    assert not Path("sweeps").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "safemeta sweep needs one file, such as sweep.toml, but none was given."),
        (["a", "b"], "but 2 were given."),
        (["none.toml"], "There is no file 'none.toml'."),
        (["s.toml", "--workers", "0"], "The number of workers must be a whole number of at least 1, not 0."),
        (["s.toml", "--cpus", "0"], "The number of cpus must be a whole number of at least 1, not 0."),
        (["s.toml", "--gpus", "1.5"], "The number of gpus must be a share from 0 to 1 or a whole number, not 1.5."),
        (["s.toml", "--out", "s.toml"], "'s.toml' is no folder, so no runs can be saved there; choose another --out."),
        (["s.toml", "--worker", "1"], "Unknown option --worker; did you mean --workers?"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, words, capsys):
    Path("s.toml").write_text(DUMMIES)
    assert main(["sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


class Files:
    """Ray, as far as a pool uses it; jobs do what `outcomes` say, one after the other, and train if asked to."""

    class exceptions:
        class RayError(Exception): ...

        class RayTaskError(RayError):
            cause = ImportError("No module named 'safemeta'\nmore")

        class WorkerCrashedError(RayError): ...

        TaskCancelledError = NodeDiedError = OutOfMemoryError = ObjectLostError = WorkerCrashedError

    def __init__(self, outcomes):
        self.outcomes, self.begun, self.cancelled, self.most = deque(outcomes), [], [], 0

    def remote(self, **options):
        assert options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 0}
        return lambda function: SimpleNamespace(remote=self.begin)

    def begin(self, job, folder, resources):
        assert (resources.cpus, resources.gpus) == (1, 0)
        self.begun.append((job.name, job))
        return len(self.begun) - 1

    def wait(self, references, num_returns, timeout):
        assert num_returns == len(references)
        self.most = max(self.most, num_returns)
        return references[:1], references[1:]

    def get(self, reference):
        outcome = self.outcomes.popleft()
        if callable(outcome):
            outcome = outcome(self.begun[reference][1])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self, reference):
        self.cancelled.append(reference)

    def cluster_resources(self):
        return {"CPU": 2.0}


DEAD = Files.exceptions.WorkerCrashedError("died")


@pytest.fixture
def pool():
    """A function that does the three dummy jobs on a false Ray; what it told, noted, and Ray."""

    def run(*outcomes, workers=1):
        Path("s.toml").write_text(DUMMIES)
        jobs = [SweepJob(group) for group in read_plan("s.toml").groups]
        ray, told, notes = Files(outcomes), [], []
        resources = Resources(workers=workers)
        pool = Pool(ray, resources, Path("out"), lambda job, state: told.append((job.name[-2:], state)), notes.append)
        try:
            failed = pool.run(jobs)
        except Interrupted as problem:
            failed = problem
        return SimpleNamespace(
            failed=failed, told=told, notes=notes, begun=[name[-2:] for name, _ in ray.begun], ray=ray
        )

    return run


def test_jobs_end_and_warn_and_fail(pool):
    ended = pool(Ended(warnings=("The cache is full.",)), Ended(failed="It broke."), Files.exceptions.RayTaskError())
    assert ended.begun == ["s0", "s1", "s2"]
    assert ended.failed == {
        "dummy-dummy-task-s1": "It broke.",
        "dummy-dummy-task-s2": "A worker could not begin: No module named 'safemeta'.",
    }
    assert ended.notes[0] == "Warning: dummy-dummy-task-s0: The cache is full."
    assert [each for each in ended.told if each[1] != "running"] == [("s0", "done"), ("s1", "failed"), ("s2", "failed")]


def test_as_many_at_a_time_as_there_is_room_for(pool):
    assert pool(*[Ended()] * 3, workers=None).ray.most == 2
    assert pool(*[Ended()] * 3, workers=3).ray.most == 3


def test_a_dead_workers_job_is_given_to_another_while_it_comes_further(pool):
    def saves(iteration):
        def die(job):
            folder = Path("out") / job.runs[0].name / "checkpoints"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"iteration-{iteration:08d}.safetensors").touch()
            return DEAD

        return die

    ended = pool(DEAD, DEAD, saves(2), DEAD, Ended(), DEAD, DEAD, DEAD, Ended())
    assert ended.begun == ["s0"] * 5 + ["s1"] * 3 + ["s2"]
    assert ended.notes[2] == "dummy-dummy-task-s0: its worker died; it goes on from iteration 2."
    assert ended.failed == {
        "dummy-dummy-task-s1": "Its worker died 3 times at iteration 0 (was there too little memory?)."
    }


def test_a_worker_that_was_stopped_by_somebody_else_is_not_the_end(pool):
    ended = pool(Ended(stopped=143), Ended(), Ended(), Ended())
    assert ended.begun == ["s0", "s1", "s2", "s0"]
    assert ended.failed == {}


def test_ctrl_c_stops_those_that_run_and_begins_no_more(pool):
    def press(job):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return Ended()

    ended = pool(press, Ended(stopped=130), Ended(stopped=130), workers=2)
    assert isinstance(ended.failed, Interrupted)
    assert ended.failed.exit_code == 130
    assert ended.begun == ["s0", "s1"]
    assert ended.ray.cancelled == [1]


def test_a_lost_connection_is_one_sentence(pool):
    with pytest.raises(UserError, match=r"^Ray failed \(gone\); the same command goes on\.$") as lost:
        pool(Files.exceptions.RayError("gone\nfor ever"))
    assert lost.value.exit_code == 1


def test_a_cluster_that_does_not_answer_is_one_sentence(capsys):
    pytest.importorskip("ray", reason="Ray is not installed")
    Path("s.toml").write_text(DUMMIES)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["sweep", "s.toml", "--ray-address", address, "--quiet"]) == 1
    err = capsys.readouterr().err
    assert err == f"safemeta: Ray cannot be reached at '{address}': connection refused.\n"


# With Ray

ITERATIONS = 1500  # of 3 ms: what stops a sweep must reach it long before its end, also where the machine is busy
TINY = f"""
algorithms = ["trpo"]
tasks = ["point-mass"]
seeds = 2
iterations = {ITERATIONS}
checkpoint-every = 20
horizon = 20
[options]
tasks = 2
episodes = 2
hidden = [4]
critic-steps = 1
minibatch = 20
"""


@pytest.fixture(scope="module")
def ray():
    """One local session for all tests of this file."""
    pytest.importorskip("ray", reason="Ray is not installed")

    def traces():
        names = {name for name in os.environ if name.startswith("RAY_")}
        return names, signal.getsignal(signal.SIGTERM), set(Path(tempfile.gettempdir()).glob("safemeta-ray-*"))

    before = traces()
    with sweep_ray.session(Resources(workers=1)) as ray:
        yield ray
    assert traces() == before


@pytest.fixture(scope="module")
def swept(ray, tmp_path_factory):
    """A sweep that was stopped by SIGTERM, begun again, and whose worker was killed hard; what it said."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "tiny.toml").write_text(TINY)
    out, said = folder / "out", []

    def once(run, iterations, strike):
        """Strike after so many iterations of a run."""
        limit = time.monotonic() + 120
        while len(logs.read(out / run / logs.METRICS)) < iterations and time.monotonic() < limit:
            time.sleep(0.005)
        strike()

    def kill():
        for worker in workers(os.getpid()):
            os.kill(worker, signal.SIGKILL)

    notes = []
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(Board, "note", lambda self, text: notes.append(text))
    for run, iterations, strike in (
        ("trpo-point-mass-s0", 30, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        ("trpo-point-mass-s1", 50, kill),
    ):
        thread = threading.Thread(target=once, args=(run, iterations, strike))
        thread.start()
        try:
            said.append(sweep(folder / "tiny.toml", out=out, workers=1))
        except Interrupted as problem:
            said.append(problem)
        thread.join()
        said.append(
            {
                each.name: len(run.read_bytes().splitlines())
                for each in out.iterdir()
                for run in each.glob("metrics.jsonl")
            }
        )
    monkeypatch.undo()
    return SimpleNamespace(folder=folder, out=out, said=said, notes=notes)


def test_a_sweep_that_is_stopped_says_how_to_go_on(swept):
    stopped, reached = swept.said[:2]
    assert isinstance(stopped, Interrupted)
    assert stopped.exit_code == 143
    file = swept.folder / "tiny.toml"
    assert str(stopped) == (
        f"Stopped; what is done is kept. Go on with: safemeta sweep {file} --out {swept.out} --workers 1"
    )
    assert 30 <= reached["trpo-point-mass-s0"] < ITERATIONS


def test_a_killed_worker_costs_nothing_that_was_saved(swept, tmp_path):
    from safemeta.experiment.train import train

    outcome = swept.said[2]
    assert any(
        note.startswith("trpo-point-mass-s1: its worker died; it goes on from iteration ") for note in swept.notes
    )
    assert outcome.failed == {}
    assert [(row.state, row.iteration) for row in outcome.rows] == [("done", ITERATIONS)] * 2
    for name in ("trpo-point-mass-s0", "trpo-point-mass-s1"):
        folder = swept.out / name
        train(config=folder / "config.json", out=tmp_path / name)
        kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert len(kept) == 2
        assert kept[-1] == f"iteration-{ITERATIONS:08}.safetensors"
        # The older one may be where an interrupted run stopped, which the unbroken run passed without saving.
        names = [f"checkpoints/{each}" for each in kept if int(each.split("-")[1].split(".")[0]) % 20 == 0]
        for file in ("metrics.jsonl", "config.json", *names):
            assert (folder / file).read_bytes() == (tmp_path / name / file).read_bytes(), file


def test_what_is_done_is_not_done_again_and_a_changed_file_is_refused(swept, monkeypatch, capsys):
    monkeypatch.setattr(sweep_ray, "session", None)  # nothing is begun
    file = swept.folder / "tiny.toml"
    assert main(["sweep", str(file), "--out", str(swept.out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["folder"], summary["failed"], len(summary["runs"])) == (str(swept.out), {}, 2)
    other = swept.folder / "other.toml"
    for old, new, words in (
        (f"iterations = {ITERATIONS}", "iterations = 200", f"was begun with iterations {ITERATIONS}, not 200"),
        ("hidden = [4]", "hidden = [5]", "was begun with hidden (4,), not (5,)"),
        ("seeds = 2", "seeds = [1, 2]", "holds the run 'trpo-point-mass-s0', which is none of this sweep's"),
    ):
        other.write_text(TINY.replace(old, new))
        assert main(["sweep", str(other), "--out", str(swept.out)]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    other.write_text(TINY.replace("seeds = 2", "seeds = 3"))  # more of the same is no change
    check_folder(read_plan(other), swept.out)
    assert read_config(swept.out / "trpo-point-mass-s1").seed == 1


def test_plot_and_report_take_the_sweeps_folder(swept):
    assert [folder.name for folder in run_folders([swept.out])] == ["trpo-point-mass-s0", "trpo-point-mass-s1"]
    assert plot(swept.out) == swept.out / "plots" / "training.png"
    page = report(swept.out)
    assert page == swept.out / "report.html"
    assert page.read_text().count(f"{ITERATIONS} of {ITERATIONS}") == 2


def test_what_does_not_fit_is_refused_before_anything_begins(ray, capsys):
    text = TINY.replace('["trpo"]', '["fac-sis"]').replace("critic-steps = 1\nminibatch = 20\n", "")
    Path("s.toml").write_text(text.replace("episodes = 2", "steps-per-update = 3"))
    assert main(["sweep", "s.toml"]) == 2
    wanted = "'s.toml', [options], steps-per-update: steps_per_update (3) must divide the rows that step side by side"
    assert wanted in capsys.readouterr().err
    assert not list(Path().glob("sweeps/*/*"))
