"""safemeta: safe reinforcement learning that learns to adapt.

    run = safemeta.train("dual", "point-circle")
    report = safemeta.adapt(run)

Everything is imported on first use, so that `import safemeta` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safemeta.experiment import adapt, evaluate, load, plot, train
    from safemeta.tasks.registry import make

__version__ = "0.1.0"
__all__ = ["__version__", "adapt", "evaluate", "load", "make", "plot", "train"]

_HOMES = {
    "adapt": "safemeta.experiment",
    "evaluate": "safemeta.experiment",
    "load": "safemeta.experiment",
    "make": "safemeta.tasks.registry",
    "plot": "safemeta.experiment",
    "train": "safemeta.experiment",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'safemeta' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
