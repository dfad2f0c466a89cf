"""A disk that is full at any point of training or of a result: one sentence, nothing lost, and it goes on."""

import errno
import sys
from pathlib import Path

import pytest
from _full_disk import FullDisk, called, results, training

sys.path.insert(0, str(Path(__file__).parent / "experiment"))  # for dummy_algorithm

from safemeta.algorithms import registry as algorithms
from safemeta.tasks import registry as tasks

RUN = ["dummy", "--task", "dummy-task", "--iterations", "4"]


@pytest.fixture(autouse=True)
def _dummy(monkeypatch):
    import dummy_algorithm

    monkeypatch.setattr(algorithms, "ALGORITHMS", dict(algorithms.ALGORITHMS))
    monkeypatch.setattr(tasks, "FAMILIES", dict(tasks.FAMILIES))
    dummy_algorithm.register()


def test_training_at_every_fifth_point(tmp_path):
    points = dict(training(RUN, tmp_path, stride=5))
    assert len(points) >= 10
    assert not {point: wrong for point, wrong in points.items() if wrong}


@pytest.fixture(scope="module")
def small():
    return ["--tasks", "2", "--episodes", "2", "--quiet"]


@pytest.mark.parametrize("command", ["adapt --steps 1", "evaluate"])
def test_results(command, tmp_path, small):
    assert called("train", *RUN, "--no-adapt", "--quiet", "--out", str(tmp_path / "whole")) == (0, "")
    points = dict(results([*command.split(), *small], tmp_path / "whole", tmp_path))
    assert len(points) >= 6
    assert not {point: wrong for point, wrong in points.items() if wrong}


def test_the_disk_of_these_tests_is_full_when_it_should_be(tmp_path):
    path = tmp_path / "new"
    cases = [(1, True, None), (2, True, b"12"), (2, False, b"12"), (3, True, b"1234"), (9, True, b"1234")]
    for at, lasting, expected in cases:
        path.unlink(missing_ok=True)
        raised = None
        with FullDisk(tmp_path, at, lasting) as disk:
            try:
                with open(path, "wb") as file:  # change 1
                    file.write(b"1234")  # 2, when it is closed
                (tmp_path / "folder").mkdir(exist_ok=True)  # 3
            except OSError as problem:
                raised = problem.errno
        assert raised == (None if at > 3 else errno.ENOSPC)
        assert (path.read_bytes() if path.exists() else None) == expected
        assert disk.changes >= min(at, 3)
