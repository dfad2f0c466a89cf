"""Users' environments that go wrong in the middle of training: one sentence, and a saved state that goes on."""

import pytest
from _environments import complaints, faulty_world


@pytest.fixture(scope="module")
def world():
    return faulty_world()


@pytest.mark.parametrize("fault", ["raises", "exits", "NaN reward", "wrong shape", "hangs", "raises at reset"])
def test_a_fault_ends_training_with_a_sentence_and_a_saved_state(fault, world, tmp_path):
    assert complaints(fault, "cpo", world, tmp_path / "run") == []
