"""Reproductions: what is done is skipped, what broke off goes on, failures and wrong usage are told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from safemeta.cli import main
from safemeta.experiment.errors import Interrupted, UserError
from safemeta.experiment.run import locked
from safemeta.papers import registry
from safemeta.papers.plan import Plan, Summary
from safemeta.papers.reproduction import reproduce
from safemeta.papers.workers import shares
from safemeta.sim.threads import THREADS

PROGRAM = [sys.executable, str(Path(__file__).parent / "dummy_paper.py")]


def files(folder, pattern):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_a_reproduction_leaves_claims_and_tables_and_is_not_done_twice(dummy, capsys):
    assert main(["reproduce", "dummy", "--seeds", "2", "--json", "--out", "r"]) == 0
    printed = json.loads(capsys.readouterr().out)
    out = Path("r")
    assert printed == json.loads((out / "claims.json").read_bytes())
    assert (printed["paper"], printed["budget"], printed["seeds"]) == ("dummy", "laptop", 2)
    assert printed["command"] == "safemeta reproduce dummy --budget laptop --seeds 2 --out r"
    assert [claim["verdict"] for claim in printed["claims"]] == ["reproduced"] * 2
    table = json.loads((out / "tables.json").read_bytes())[0]
    assert [row["seeds"] for row in table["rows"]] == [2, 2]
    assert table["rows"][0]["return"]["low"] < table["rows"][0]["return"]["mean"]
    assert "| first | " in (out / "tables.md").read_text()

    before = files(out, "runs/**/*.json*")
    assert main(["reproduce", "dummy", "--seeds", "2", "--quiet", "--out", "r"]) == 0
    assert capsys.readouterr().out == ""
    assert files(out, "runs/**/*.json*") == before
    # One seed more, and nothing else.
    assert main(["reproduce", "dummy", "--seeds", "3", "--figure", "b", "--quiet", "--out", "r"]) == 0
    after = files(out, "runs/**/*.json*")
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"first-s2"}
    assert {name: after[name] for name in before} == before
    # Others, from a first one on.
    options = ["--seeds", "1", "--first-seed", "100", "--figure", "b"]
    assert main(["reproduce", "dummy", *options, "--json", "--out", "r"]) == 0
    assert "--seeds 1 --first-seed 100 --out r" in json.loads(capsys.readouterr().out)["command"]
    assert {name.split("/")[1] for name in files(out, "runs/**/*.json*").keys() - after.keys()} == {"first-s100"}


def test_a_judgement_that_is_lost_or_damaged_is_made_anew(dummy):
    reproduce("dummy", seeds=1, figure="b", out="r", quiet=True)
    judged = Path("r/runs/first-s0/judged/test.npz")
    whole = dict(np.load(judged))
    judged.write_bytes(judged.read_bytes()[:50])
    reproduce("dummy", seeds=1, figure="b", out="r", quiet=True)
    for name, array in np.load(judged).items():
        np.testing.assert_array_equal(array, whole[name])


def stop_during_training(process, folder, number):
    limit = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_of_training_it_goes_on_as_if_nothing_had_been(dummy, number):
    command = [*PROGRAM, "0.1", "reproduce", "dummy", "--seeds", "1", "--figure", "b", "--out"]
    process = subprocess.Popen([*command, "broken"], stderr=subprocess.PIPE, text=True)
    err = stop_during_training(process, Path("broken/runs/first-s0"), number)
    assert not Path("broken/claims.json").exists()
    assert not Path("broken/runs/first-s0/judged").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number, err
        last = err.strip().splitlines()[-1]
        assert last.endswith("Go on with: safemeta reproduce dummy --figure b --budget laptop --seeds 1 --out broken")
    dummy.PAUSE = 0.1  # part of the options, so it has to be the same
    try:
        reproduce("dummy", seeds=1, figure="b", out="broken", quiet=True)
        reproduce("dummy", seeds=1, figure="b", out="whole", quiet=True)
    finally:
        dummy.PAUSE = 0.0
    for name in ("metrics.jsonl", "judged/test.npz"):
        assert (Path("broken/runs/first-s0") / name).read_bytes() == (Path("whole/runs/first-s0") / name).read_bytes()


def counting(dummy, monkeypatch, jobs):
    """The dummy paper with these jobs."""
    monkeypatch.setattr(dummy, "plan", lambda request: Plan(jobs, lambda out: Summary((), (), ())))


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_between_jobs(dummy, monkeypatch, workers):
    jobs = tuple(dummy.Count(str(i), "keyboard" if i == 2 else "") for i in range(5))
    counting(dummy, monkeypatch, jobs)
    with pytest.raises(Interrupted, match="Go on with: safemeta reproduce dummy") as stopped:
        reproduce("dummy", out="r", quiet=True, workers=workers)
    assert stopped.value.exit_code == 130
    done = {job.name for job in jobs if job.done(Path("r/runs") / job.name)}
    assert "0" in done
    assert "2" not in done
    assert not Path("r/claims.json").exists()
    assert not reproduce("dummy", out="r", quiet=True, workers=workers).failed
    counts = dummy.counted(Path("r/runs"))
    assert counts.pop("2") == 2
    assert {name: counts[name] for name in done} == dict.fromkeys(done, 1)
    assert all(job.done(Path("r/runs") / job.name) for job in jobs)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_job_does_not_keep_the_others_from_being_done(dummy, monkeypatch, workers, capsys):
    jobs = (dummy.Count("0", "user"), dummy.Count("1"), dummy.Count("2", "bug"))
    counting(dummy, monkeypatch, jobs)
    assert main(["reproduce", "dummy", "--out", "r", "--json", "--workers", str(workers)]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["paper"] == "dummy"
    assert "safemeta: 2 of the runs failed (" in err
    assert "0: It broke." in err
    assert "2: Unexpected KeyError: 'k'." in err
    assert Path("r/runs/1/result.json").is_file()
    assert main(["reproduce", "dummy", "--out", "r", "--quiet"]) == 0
    assert dummy.counted(Path("r/runs")) == {"0": 2, "1": 1, "2": 2}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no system call for it here")
def test_each_worker_has_cores_of_its_own(dummy, monkeypatch):
    monkeypatch.delenv(THREADS, raising=False)
    here = os.sched_getaffinity(0)
    for workers in (1, 2, len(here), len(here) + 3):
        found = shares(workers)
        assert len(found) == workers
        assert set().union(*found) == here
        assert sum(map(len, found)) == max(workers, len(here))
    counting(dummy, monkeypatch, tuple(dummy.Count(str(i)) for i in range(3)))
    workers = len(here) if len(here) > 1 else 2
    assert main(["reproduce", "dummy", "--out", "r", "--quiet", "--workers", str(workers)]) == 0
    assert [json.loads((Path("r/runs") / str(i) / "result.json").read_bytes())["cores"] for i in range(3)] == [1] * 3
    assert os.sched_getaffinity(0) == here


def test_sigterm_ends_the_workers_too(dummy, monkeypatch):
    counting(dummy, monkeypatch, tuple(dummy.Count(str(i), "wait") for i in range(2)))

    def tell(self, name, share, words):
        if share >= 0.5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("safemeta.experiment.job_progress.Display.tell", tell)
    began = time.monotonic()
    assert main(["reproduce", "dummy", "--out", "r", "--quiet", "--workers", "2"]) == 143
    assert time.monotonic() - began < 50


def test_two_processes_cannot_reproduce_in_one_folder(dummy, monkeypatch):
    counting(dummy, monkeypatch, (dummy.Count("0"),))
    Path("r").mkdir()
    with locked(Path("r")), pytest.raises(UserError, match="Another process") as refused:
        reproduce("dummy", out="r", quiet=True)
    assert refused.value.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs one paper, but none was given"),
        (["meta-cpo", "dual"], "2 were given"),
        (["meta-cop"], "did you mean 'meta-cpo'?"),
        (["dual", "--figure", "3"], "Unknown figure of dual '3'"),
        (["dummy", "--budget", "laptob"], "did you mean 'laptop'?"),
        (["dummy", "--seeds", "0"], "at least 1, not 0"),
        (["dummy", "--seeds", "-2"], "at least 1, not -2"),
        (["dummy", "--first-seed", "-1"], "from 0 to 4294967295, not -1"),
        (["dummy", "--seeds", "many"], "a whole number, not 'many'"),
        (["dummy", "--workers", "0"], "at least 1, not 0"),
        (["dummy", "--sedes", "1"], "did you mean --seeds?"),
        (["dummy", "--out", "file"], "is no folder"),
    ],
)
def test_wrong_usage_is_one_sentence(dummy, arguments, words, capsys):
    Path("file").write_text("a file")
    before = sorted(Path().rglob("*"))
    assert main(["reproduce", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1
    assert err.startswith("safemeta: ")
    assert sorted(Path().rglob("*")) == before


def test_a_folder_with_other_settings_is_refused(dummy):
    reproduce("dummy", seeds=1, figure="b", out="r", quiet=True)
    with pytest.raises(UserError, match="other settings than this reproduction's") as refused:
        reproduce("dummy", seeds=1, figure="b", budget="smoke", out="r", quiet=True)
    assert refused.value.exit_code == 2


def test_what_a_killed_start_leaves_is_no_obstacle(dummy):
    (Path("r/runs/first-s0") / "checkpoints").mkdir(parents=True)
    assert not reproduce("dummy", seeds=1, figure="b", out="r", quiet=True).failed
    (Path("q/runs/first-s0")).mkdir(parents=True)
    Path("q/runs/first-s0/precious.txt").write_text("precious")
    assert "is in the way" in reproduce("dummy", seeds=1, figure="b", out="q", quiet=True).failed["first-s0"]
    assert Path("q/runs/first-s0/precious.txt").read_text() == "precious"


def test_papers_are_listed(capsys):
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["papers"]
    assert {"meta-cpo", "dual"} <= {paper["name"] for paper in listed}
    assert all(paper["description"] for paper in listed)
    assert main(["list"]) == 0
    assert "\npapers:\n  meta-cpo" in capsys.readouterr().out


def test_figures_may_be_named_as_in_the_paper():
    assert registry.get("dual").chosen("Figure 6") == ("6",)
    assert registry.get("dual").chosen(None) == ("1", "2", "4", "5", "6")
