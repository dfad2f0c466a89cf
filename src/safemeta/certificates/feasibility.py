"""Which actions keep the safe-action constraint, where none does, and the nearest one that does (FAC-SIS, 5.2, E.2).

A state is infeasible if no action of a fine grid satisfies `phi(s') <= max(phi(s) - eta, 0)`. Models are functions of
one state: `dynamics(state, action[a]) -> state`, `clearance(state) -> [obstacles, 1 + derivatives]`, a state being any
pytree.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from safemeta.certificates.safety_index import SafetyIndex

State = TypeVar("State")


class Candidates(NamedTuple):
    """How candidate actions do in one state: `Delta = phi(s') - max(phi(s) - eta, 0)` of each."""

    violation: Float[Array, "*batch candidates"]

    @property
    def satisfied(self) -> Bool[Array, "*batch candidates"]:
        """Which of them keep the constraint."""
        return self.violation <= 0

    @property
    def feasible(self) -> Bool[Array, "*batch"]:
        """Whether any does."""
        return jnp.any(self.satisfied, axis=-1)


class Choice(NamedTuple):
    """The action to take; whether it is another than the wanted one; whether it keeps the constraint."""

    action: Float[Array, "*batch actions"]
    changed: Bool[Array, "*batch"]
    feasible: Bool[Array, "*batch"]


class Feasibility(NamedTuple):
    """Of many states: whether some action keeps the constraint, the least Delta, and the share of actions that do."""

    feasible: Bool[Array, " states"]
    least_violation: Float[Array, " states"]
    safe_share: Float[Array, " states"]


def action_grid(size: int, points: int) -> Float[Array, "candidates {size}"]:
    """All `points^size` actions of a regular grid on [-1, 1]^size, borders included; an odd `points` includes 0.

    Raises ValueError unless size is at least 1 and points at least 2.
    """
    if size < 1 or points < 2:
        raise ValueError(f"an action grid needs at least 1 dimension and 2 points along it, not {size} and {points}")
    axes = jnp.meshgrid(*[jnp.linspace(-1, 1, points)] * size, indexing="ij")
    return jnp.stack(axes, axis=-1).reshape(-1, size)


def judge(
    index: SafetyIndex,
    clearance: Float[Array, "*batch obstacles signals"],
    following: Float[Array, "*batch candidates obstacles signals"],
    slack: float | Float[Array, ""] = 0.0,
) -> Candidates:
    """Candidate actions, judged by the clearances now and those that each of them leads to."""
    return Candidates(index.violation(clearance[..., None, :, :], following, slack))


def nearest_safe(
    action: Float[Array, "*batch actions"], candidates: Float[Array, "candidates actions"], judged: Candidates
) -> Choice:
    """The candidate nearest to `action` that keeps the constraint, or the one with the least energy if none does.

    Distances are Euclidean; the first of equals is taken. `action` itself is kept only if it is a candidate:
    `filter_action` makes it one.
    """
    distance = jnp.sum((candidates - action[..., None, :]) ** 2, axis=-1)
    nearest = jnp.argmin(jnp.where(judged.satisfied, distance, jnp.inf), axis=-1)
    # phi(s) is the same for all, so that the least Delta is the least phi(s'); argmin would choose a NaN
    calmest = jnp.argmin(jnp.where(jnp.isnan(judged.violation), jnp.inf, judged.violation), axis=-1)
    chosen = candidates[jnp.where(judged.feasible, nearest, calmest)]
    return Choice(chosen, jnp.any(chosen != action, axis=-1), judged.feasible)


def filter_action(
    index: SafetyIndex,
    dynamics: Callable[[State, Array], State],
    clearance: Callable[[State], Array],
    state: State,
    action: Float[Array, " actions"],
    candidates: Float[Array, "candidates actions"],
    slack: float | Float[Array, ""] = 0.0,
) -> Choice:
    """A filter at run time: `action` where it keeps the constraint in `state`, else `nearest_safe` of the others."""
    candidates = jnp.concatenate([action[None], candidates])
    return nearest_safe(action, candidates, _judged(index, dynamics, clearance, state, candidates, slack))


@eqx.filter_jit
def feasible_states(
    index: SafetyIndex,
    dynamics: Callable[[State, Array], State],
    clearance: Callable[[State], Array],
    states: PyTree[Float[Array, "states ..."]],
    actions: Float[Array, "candidates actions"],
    slack: float | Float[Array, ""] = 0.0,
    chunk: int = 1024,
) -> Feasibility:
    """Where some action of the grid keeps the safe-action constraint (the paper's exhaustive method).

    `states` has a leading axis on every leaf. They are done `chunk` at a time: memory is that of `chunk * candidates`
    states, whatever their number. Compiled once per pair of functions: pass the same objects again, not new lambdas.
    """

    def one(state: State) -> Feasibility:
        judged = _judged(index, dynamics, clearance, state, actions, slack)
        return Feasibility(judged.feasible, jnp.min(judged.violation), jnp.mean(judged.satisfied, dtype=float))

    return jax.lax.map(one, states, batch_size=chunk)


def _judged(
    index: SafetyIndex,
    dynamics: Callable[[State, Array], State],
    clearance: Callable[[State], Array],
    state: State,
    actions: Float[Array, "candidates actions"],
    slack: float | Float[Array, ""],
) -> Candidates:
    following = jax.vmap(lambda action: clearance(dynamics(state, action)))(actions)
    return judge(index, clearance(state), following, slack)
