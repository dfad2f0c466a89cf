"""Everything here runs in double precision, unless a test asks for float32 by the type of what it passes.

Tests spend most of their time in the compiler, so it is told to optimise little. Slow tests run what users run.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for solver_oracles


@pytest.fixture(autouse=True)
def quick_compilation(request):
    """Compile with few optimisations, unless the test is marked slow."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("slow") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def double_precision():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded afresh for each test."""
    return np.random.default_rng(20260731)
