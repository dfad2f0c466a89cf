"""How tasks are stepped."""

from safemeta.sim.functional import FunctionalEnvironment, FunctionalWorld
from safemeta.sim.step import Family, Parameters, Step

__all__ = ["Family", "FunctionalEnvironment", "FunctionalWorld", "Parameters", "Step"]
