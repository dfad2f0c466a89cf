"""The dummy algorithm and task, registered for the length of one test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from safemeta.algorithms import registry as algorithms
from safemeta.tasks import registry as tasks


@pytest.fixture(autouse=True)
def dummy(monkeypatch, tmp_path):
    """Register the dummy and work in an empty folder."""
    import dummy_algorithm

    monkeypatch.setattr(algorithms, "ALGORITHMS", dict(algorithms.ALGORITHMS))
    monkeypatch.setattr(tasks, "FAMILIES", dict(tasks.FAMILIES))
    dummy_algorithm.register()
    monkeypatch.chdir(tmp_path)
    return dummy_algorithm


@pytest.fixture
def trained(dummy):
    """A finished run of six iterations."""
    from safemeta.experiment import train

    return train("dummy", "dummy-task", iterations=6, checkpoint_every=2)
