"""What every test starts from: one CPU, no display, no cache of this user, quick compiling, array shapes checked."""

import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import types
import typing
from pathlib import Path

# JAX and Matplotlib read these at import; child processes of the tests inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
# What takes the time here is compiling programs that run for a moment: XLA's slower passes only cost (20 s of compiling
# a small meta-iteration become 5 s; a long one would run three to five times slower).
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # jaxlib 0.12, which Python 3.12 and newer get, knows no such flag, and dies of what it does not know.
        *(["--xla_cpu_use_fusion_emitters=false"] if importlib.metadata.version("jaxlib").startswith("0.10.") else []),
    ]
).strip()
# Compiled programs are kept for the length of one test run only: never read from, nor left in, the user's own cache.
# Workers of pytest-xdist inherit the folder, so that it is shared and made once.
if "SAFEMETA_TEST_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="safemeta-tests-")
    os.environ["SAFEMETA_TEST_CACHE"] = _cache.name
os.environ["SAFEMETA_CACHE"] = os.environ["SAFEMETA_TEST_CACHE"]
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import pytest
from beartype import beartype
from jaxtyping import install_import_hook


def checked(function):
    """`function` with its annotations checked at each call.

    beartype asks isinstance of what is annotated, which a protocol must allow; the library itself never asks.
    """
    unseen = list(getattr(function, "__annotations__", {}).values())
    while unseen:
        annotation = unseen.pop()
        unseen.extend(typing.get_args(annotation))
        if isinstance(annotation, type) and getattr(annotation, "_is_protocol", False):
            typing.runtime_checkable(annotation)
    return beartype(function)


# Before anything imports safemeta: every function and module of it checks its annotated types and array shapes. The
# hook finds the checker by name, and the name of this file depends on how pytest was started.
_checker = types.ModuleType("safemeta_tests_checker")
_checker.checked = checked
sys.modules[_checker.__name__] = _checker
install_import_hook("safemeta", "safemeta_tests_checker.checked")


def pytest_runtest_setup(item):
    """On Python 3.13 alone: where dm_control can be installed, a test that does not find it fails."""
    if item.get_closest_marker("dm_control") and sys.version_info >= (3, 13):
        pytest.importorskip("dm_control", reason="dm_control's labmaze has no wheel for Python 3.13")


@pytest.fixture
def x64():
    """Double precision within one test, for comparisons with independent solvers."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def load_example(repository):
    """Runs `examples/NAME.py` as a module, anew at each call; the module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"{name}_example", repository / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module", autouse=True)
def _programs_are_let_go():
    """What one file has compiled no other file uses: without this a test run grows to many gigabytes."""
    yield
    import jax

    jax.clear_caches()
