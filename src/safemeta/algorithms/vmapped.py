"""Many runs of one off-policy configuration in one compiled program: keys, tasks and limits differ, settings do not.

When a gradient step is due, and where the replay is written, depends on counters alone, which are the same in all runs.
They are therefore kept once, without an axis over runs. That is what makes this fast: under `vmap`, a `lax.cond` on a
counter of each run's own becomes a `select`, which computes both branches at every control step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.off_policy import OffPolicyAlgorithm, State
from safemeta.core import InteractiveWorld, Tasks


@dataclass(frozen=True, eq=False)
class VmappedRuns:
    """Runs of `algorithm` on a functional `world`.

    Their state is one of the algorithm's whose arrays have a leading axis `runs`; except counters (scalar integers and
    truth values), which all runs share.
    """

    algorithm: OffPolicyAlgorithm
    world: InteractiveWorld

    def __post_init__(self) -> None:
        if not self.world.functional:
            raise ValueError("Only runs on a functional world can share one compiled program.")

    def init(self, keys: Key[Array, " runs"]) -> State:
        """Run i is `algorithm.init(keys[i], cmdp)`."""
        return eqx.filter_vmap(lambda key: self.algorithm.init(key, self.world.cmdp), out_axes=_axis)(keys)

    def iterate(self, states: State, tasks: Tasks, keys: Key[Array, " runs"]) -> tuple[State, Metrics]:
        """`algorithm.iterate_on(states[i], world, tasks[i], keys[i])` of all runs; every metric is `[runs, ...]`."""
        return _iterate(self, states, tasks, keys)

    def join(self, states: Sequence[State]) -> State:
        """The inverse of `pick`, for runs that have come equally far: their counters must agree."""

        def together(*leaves: Any) -> Any:
            if _axis(leaves[0]) == 0:
                return jnp.stack(leaves)
            if eqx.is_array(leaves[0]) and any(leaf != leaves[0] for leaf in leaves):
                raise ValueError("Only runs that have come equally far can go on in one compiled program.")
            return leaves[0]

        return jax.tree.map(together, *states)

    def pick(self, states: State, run: int) -> State:
        """One run's state, as the algorithm itself has it: to save it, to go on alone, to ask for its policy."""
        return jax.tree.map(lambda leaf: leaf[run] if _axis(leaf) == 0 else leaf, states)


def tasks_of_runs(
    tasks: Tasks,
    runs: int,
    *,
    limits: Float[Array, " runs"] | None = None,
    parameters: Mapping[str, Float[Array, " runs"]] | None = None,
) -> Tasks:
    """The same tasks for all runs, `[runs, tasks, ...]`; with a limit (of every cost) and parameters of each run's own.

    Descriptors stay as they were: off-policy learners read none.
    """
    stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (runs, *leaf.shape)), tasks)
    own = dict(stacked.parameters)
    for name, values in (parameters or {}).items():
        if name not in own:
            raise ValueError(f"These tasks have no parameter '{name}'; they have {', '.join(own)}.")
        own[name] = _each(values, own[name])
    limited = stacked.limits if limits is None else _each(limits, stacked.limits)
    return eqx.tree_at(lambda t: (t.parameters, t.limits), stacked, (own, limited))


def _each(values: Float[Array, " runs"], like: Float[Array, "runs *rest"]) -> Float[Array, "runs *rest"]:
    return jnp.broadcast_to(jnp.asarray(values, like.dtype).reshape(-1, *(1,) * (like.ndim - 1)), like.shape)


def _axis(leaf: Any) -> int | None:
    """The axis over runs of a leaf of a state, be it one run's or all runs'."""
    counts = eqx.is_array(leaf) and leaf.ndim == 0 and not jnp.issubdtype(leaf.dtype, jnp.inexact)
    return 0 if eqx.is_array(leaf) and not counts else None


@eqx.filter_jit
def _iterate(runs: VmappedRuns, states: State, tasks: Tasks, keys: Key[Array, " runs"]) -> tuple[State, Metrics]:
    def one(state: State, tasks: Tasks, key: Array) -> tuple[State, Metrics]:
        return runs.algorithm.iterate_on(state, runs.world, tasks, key)

    return eqx.filter_vmap(one, in_axes=(_axis, 0, 0), out_axes=(_axis, 0))(states, tasks, keys)
