"""Everything here runs in double precision, unless a test asks for float32 by the type of what it passes."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for solver_oracles


@pytest.fixture(autouse=True)
def double_precision():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded afresh for each test."""
    return np.random.default_rng(20260731)
