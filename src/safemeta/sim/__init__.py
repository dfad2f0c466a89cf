"""How tasks are stepped."""

from safemeta.sim.functional import FunctionalEnvironment, FunctionalFamily, FunctionalWorld, Step

__all__ = ["FunctionalEnvironment", "FunctionalFamily", "FunctionalWorld", "Step"]
