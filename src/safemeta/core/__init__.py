"""The vocabulary: what a constrained task is, and the data that flows."""

from safemeta.core.advantages import discounted_returns, generalized_advantage
from safemeta.core.cmdp import CMDP, InteractiveWorld, LimitOn, Policy, Tasks, World, violated
from safemeta.core.elimination import solve_without_pivots
from safemeta.core.family import SPLITS, check_split, tasks_within
from safemeta.core.interaction import CLEARANCE, Agent, Look, Moment, Signals, Transition
from safemeta.core.normalizer import Normalizer
from safemeta.core.trajectory import Performance, Trajectory

__all__ = [
    "CLEARANCE",
    "CMDP",
    "SPLITS",
    "Agent",
    "InteractiveWorld",
    "LimitOn",
    "Look",
    "Moment",
    "Normalizer",
    "Performance",
    "Policy",
    "Signals",
    "Tasks",
    "Trajectory",
    "Transition",
    "World",
    "check_split",
    "discounted_returns",
    "generalized_advantage",
    "solve_without_pivots",
    "tasks_within",
    "violated",
]
