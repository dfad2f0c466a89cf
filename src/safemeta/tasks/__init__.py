"""Task families. Importing this package does not import JAX; making a world does."""

from safemeta.tasks.registry import FAMILIES, Family, make, names

__all__ = ["FAMILIES", "Family", "make", "names"]
