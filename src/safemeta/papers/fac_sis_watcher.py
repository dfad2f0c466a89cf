"""Watching a policy and its safety index, compiled: what `fac_sis_runs` saves."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpy.typing import NDArray

from safemeta.certificates import SafetyIndex, action_grid, feasible_states
from safemeta.core import CLEARANCE, Moment, Transition
from safemeta.experiment.run_certificate import grid_of, look_ahead
from safemeta.sim.batched import act_on_rows
from safemeta.tasks.collision_avoidance import HAZARD_RADIUS, CollisionAvoidance, UnicycleState, advance

FARTHEST = 4.0  # m, of the grid that is searched for infeasible states
SPEEDS = (-2.0, 4.0)  # m / s


@dataclass(frozen=True)
class Watcher:
    """A `safemeta.core.Agent` that only acts. Its state: a policy, its own index or None, and an index for everybody.

    With `points`, `points^2` actions are tried in each state, by the simulator itself.
    """

    points: int

    def act(
        self, state: Any, moment: Moment, key: PRNGKeyArray
    ) -> tuple[Float[Array, "rows action"], Bool[Array, " rows"]]:
        policy, own, _ = state
        rows = moment.observation.shape[0]
        action, _ = act_on_rows(policy, moment.observation, jax.random.split(key, rows))
        if not self.points:
            return action, jnp.ones(rows, bool)
        return action, look_ahead(own, 0.0, moment, grid_of(action, self.points)).feasible

    def learn(self, state: Any, transition: Transition, note: Array, key: PRNGKeyArray) -> tuple[Any, dict[str, Array]]:
        _, own, everybody = state
        now, following = transition.signals[CLEARANCE], transition.next_signals[CLEARANCE]
        record = {
            "reward": transition.reward,
            "cost": transition.costs.sum(-1),
            "valid": transition.valid,
            "clearance": now,
            "feasible": note,
            "violation": everybody.violation(now, following),
        }
        if own is not None:
            record["own_violation"] = own.violation(now, following)
        return state, record


def infeasible_cells(index: SafetyIndex, cells: tuple[int, int, int], points: int = 17) -> tuple[NDArray, int]:
    """(d, d_dot) of the unicycle's states without a safe action, on a grid of distance, speed and direction.

    The hazard is round and sees no direction but that of the robot's heading, less the direction in which the robot
    lies; left and right are mirror images.
    """
    distances = jnp.linspace(HAZARD_RADIUS, FARTHEST, cells[0])
    speeds, directions = jnp.linspace(*SPEEDS, cells[1]), jnp.linspace(0, jnp.pi, cells[2])
    d, v, psi = (axis.ravel() for axis in jnp.meshgrid(distances, speeds, directions, indexing="ij"))
    states = UnicycleState(d, jnp.zeros_like(d), v, psi, jnp.zeros_like(d))
    feasible = np.asarray(feasible_states(index, advance, _clearance(), states, action_grid(2, points)).feasible)
    barred = np.stack([np.asarray(d), np.asarray(v * jnp.cos(psi))], axis=-1)[~feasible]
    return barred, feasible.size


@cache
def _clearance() -> Any:
    environment = CollisionAvoidance()

    def clearance(state: UnicycleState) -> Array:
        return environment.clearance({}, state)

    return clearance
