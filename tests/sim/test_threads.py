"""How many threads a process may use."""

import os

import pytest

from safemeta.sim.threads import THREADS, available_cores


@pytest.mark.parametrize("value", [None, "", "0", "-3", "many", "1.5"])
def test_without_a_number_it_is_the_cores_of_this_process(value, monkeypatch):
    monkeypatch.delenv(THREADS, raising=False)
    if value is not None:
        monkeypatch.setenv(THREADS, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 6}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert available_cores() == 7


def test_a_number_counts(monkeypatch):
    monkeypatch.setenv(THREADS, "4")
    assert available_cores() == 4
