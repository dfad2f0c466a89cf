"""The vocabulary: what a constrained task is, and the data that flows."""

from safemeta.core.advantages import discounted_returns, generalized_advantage
from safemeta.core.cmdp import CMDP, LimitOn, Policy, Tasks, World, violated
from safemeta.core.elimination import solve_without_pivots
from safemeta.core.normalizer import Normalizer
from safemeta.core.trajectory import Performance, Trajectory

__all__ = [
    "CMDP",
    "LimitOn",
    "Normalizer",
    "Performance",
    "Policy",
    "Tasks",
    "Trajectory",
    "World",
    "discounted_returns",
    "generalized_advantage",
    "solve_without_pivots",
    "violated",
]
