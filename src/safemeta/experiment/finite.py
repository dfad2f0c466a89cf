"""Noticing NaN and infinity the moment they arise."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


class FiniteCheck:
    """Watches all floating-point leaves of a state that were finite at the start.

    A leaf that holds an infinity by design (a best score of minus infinity, say) is not watched.
    """

    def __init__(self, state: Any):
        self._all_finite = jax.jit(lambda leaves: [jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
        names, leaves = _floating_leaves(state)
        finite = jax.device_get(self._all_finite(leaves))
        self._watched = {name for name, good in zip(names, finite, strict=True) if good}

    def fault(self, state: Any, metrics: Mapping[str, float]) -> str | None:
        """What is not finite, in words; None if all is well. Metrics are named first."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                return f"the metric '{name}' is {value}"
        names, leaves = _floating_leaves(state)
        for name, good in zip(names, jax.device_get(self._all_finite(leaves)), strict=True):
            if not good and name in self._watched:
                return f"the state's '{name}' holds NaN or infinity"
        return None


def strong(state: Any) -> Any:
    """`state` without weak types.

    A checkpoint cannot record JAX's weak types; were they kept in memory, a resumed run could promote types
    differently from an unbroken one.
    """
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf, state
    )


def _floating_leaves(state: Any) -> tuple[list[str], list[Any]]:
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return [name for name, _ in leaves], [leaf for _, leaf in leaves]
