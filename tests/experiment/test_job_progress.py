"""The time left, and what a job tells."""

import time

import pytest

from safemeta.experiment import job_progress
from safemeta.experiment.job_progress import Display, JobProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_the_plans_guess_and_then_the_pace(clock):
    shown = Display({"a": 100.0, "b": 100.0, "c": 200.0}, done={"a"})
    assert (shown.left(), shown.finished, shown.fraction) == ("5:00", 1, 0.25)
    clock[0] += 60
    shown.tell("b", 0.5, "")  # 50 expected seconds took 60
    assert shown.left() == "5:00"
    clock[0] += 60
    shown.tell("b", 1.0, "done")
    assert (shown.left(), shown.finished) == ("4:00", 2)


def test_jobs_side_by_side_take_as_much_less(clock):
    shown = Display({"a": 100.0, "b": 100.0, "c": 200.0}, done={"a"}, at_once=8)  # two are left
    assert shown.left() == "2:30"
    clock[0] += 50
    shown.tell("b", 0.5, "")
    shown.tell("c", 0.25, "")  # 100 expected seconds took 50
    assert shown.left() == "1:40"


def test_lines_come_at_intervals_and_at_the_end(clock, capsys):
    shown = Display({"a": 1.0}, done=set(), pause=10.0)
    for step in range(5):
        clock[0] += 4
        shown.tell("a", step / 5, f"step {step}")
    shown.tell("a", 1.0, "done")
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["step 0", "step 3", "done"]
    assert lines[-1].startswith("[1/1]")


def test_parts_of_a_job_add_up():
    told = []
    job = JobProgress(lambda share, words: told.append((round(share, 6), words)))
    first = job.part(0.6)
    first.begin("Training", 4, done=2)
    first.advance(4, {"return": 3.0})
    second = job.part(0.4)
    second.begin("Judging", 2)
    second.advance(1, {})
    assert told == [(0.3, "Training 2/4"), (0.6, "Training 4/4  return 3"), (0.6, "Judging 0/2"), (0.8, "Judging 1/2")]


def test_quiet_shows_nothing(capsys):
    shown = job_progress.choose(True, {"a": 1.0}, set())
    shown.tell("a", 1.0, "done")
    shown.note("a note")
    shown.close()
    assert capsys.readouterr() == ("", "")
