"""The dummy paper, registered for the length of one test, in an empty folder."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from safemeta.algorithms import registry as algorithms
from safemeta.papers import registry as papers
from safemeta.tasks import registry as tasks


@pytest.fixture
def dummy(monkeypatch, tmp_path):
    import dummy_paper

    for registry, name in ((algorithms, "ALGORITHMS"), (tasks, "FAMILIES"), (papers, "PAPERS")):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    dummy_paper.register()
    monkeypatch.chdir(tmp_path)
    return dummy_paper
