"""safemeta: safe reinforcement learning that learns to adapt.

    run = safemeta.train("dual", "point-circle")
    report = safemeta.adapt(run)

Everything is imported on first use, so that `import safemeta` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safemeta.deployed import load_policy
    from safemeta.experiment import adapt, certify, evaluate, load, plot, report, sweep, train, video
    from safemeta.experiment.export import export
    from safemeta.experiment.own_algorithm import register_algorithm
    from safemeta.papers.reproduction import reproduce
    from safemeta.sim.cost_check import check_costs
    from safemeta.sim.own_functional import functional_world
    from safemeta.sim.own_world import gymnasium_world
    from safemeta.tasks.registry import make

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "adapt",
    "certify",
    "check_costs",
    "evaluate",
    "export",
    "functional_world",
    "gymnasium_world",
    "load",
    "load_policy",
    "make",
    "plot",
    "register_algorithm",
    "report",
    "reproduce",
    "sweep",
    "train",
    "video",
]

_HOMES = {
    "adapt": "safemeta.experiment",
    "certify": "safemeta.experiment",
    "check_costs": "safemeta.sim.cost_check",
    "evaluate": "safemeta.experiment",
    "export": "safemeta.experiment.export",
    "functional_world": "safemeta.sim.own_functional",
    "gymnasium_world": "safemeta.sim.own_world",
    "load": "safemeta.experiment",
    "load_policy": "safemeta.deployed",
    "make": "safemeta.tasks.registry",
    "plot": "safemeta.experiment",
    "register_algorithm": "safemeta.experiment.own_algorithm",
    "report": "safemeta.experiment",
    "reproduce": "safemeta.papers.reproduction",
    "sweep": "safemeta.experiment",
    "train": "safemeta.experiment",
    "video": "safemeta.experiment",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'safemeta' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
