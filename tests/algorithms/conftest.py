"""What the tests of algorithms share: their toys, by import, and a seeded generator."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for toy_worlds and algorithm_oracles


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded afresh for each test."""
    return np.random.default_rng(20261101)
