"""Episodes in which a grid of actions is tried in every state that the policy visits: what `certify` reports on."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpy.typing import NDArray

from safemeta.certificates import SafetyIndex
from safemeta.core import CLEARANCE, Moment, Transition
from safemeta.experiment.run_certificate import RunCertificate, grid_of, look_ahead
from safemeta.sim.batched import act_on_rows


@dataclass(frozen=True)
class Certifier:
    """A `safemeta.core.Agent` that acts without noise and looks at what else it could have done.

    Its state: the policy and the index.
    """

    points: int
    slack: float

    def act(
        self, state: tuple[Any, SafetyIndex], moment: Moment, key: PRNGKeyArray
    ) -> tuple[Float[Array, "rows action"], tuple[Bool[Array, " rows"], Float[Array, " rows"]]]:
        policy, index = state
        action = noiseless(policy, moment.observation, key)
        candidates = look_ahead(index, self.slack, moment, grid_of(action, self.points))
        return action, (candidates.feasible, jnp.mean(candidates.satisfied, axis=-1, dtype=action.dtype))

    def learn(self, state: Any, transition: Transition, note: Any, key: PRNGKeyArray) -> tuple[Any, dict[str, Array]]:
        """Nothing is learned: what was seen in each row, leaves `[rows, ...]`."""
        _, index = state
        now, following = transition.signals[CLEARANCE], transition.next_signals[CLEARANCE]
        feasible, safe_share = note
        return state, {
            "valid": transition.valid,
            "observation": transition.observation,
            "reward": transition.reward,
            "costs": transition.costs,
            "grid_feasible": feasible,
            "safe_share": safe_share,
            "violation": index.violation(now, following, self.slack),
            "energy": index.index(now),
            "next_energy": index.index(following),
            "binding": binding(index, now),
            "next_distance": jnp.min(following[..., 0], axis=-1),
            "distance": jnp.min(now[..., 0], axis=-1),
        }


def noiseless(policy: Any, observation: Float[Array, "rows observation"], key: PRNGKeyArray) -> Array:
    """`[rows, action]`: the action without noise of a policy that has one (a `mode`); others act as they do."""
    if hasattr(policy, "mode"):
        return policy.mode(observation)
    return act_on_rows(policy, observation, jax.random.split(key, observation.shape[0]))[0]


def binding(index: SafetyIndex, clearance: Float[Array, "rows obstacles signals"]) -> Float[Array, "rows signals"]:
    """(d, d', ...) of the obstacle with the highest energy, which is that of the state."""
    energies = index.index(clearance[..., None, :])
    return jnp.take_along_axis(clearance, jnp.argmax(energies, axis=-1)[:, None, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Visited:
    """What was seen: leaves `[time, trajectories, ...]`. Steps after an episode's end are not `valid`."""

    valid: NDArray[np.bool_]
    observation: NDArray
    reward: NDArray
    costs: NDArray
    grid_feasible: NDArray[np.bool_]
    safe_share: NDArray  # of the grid's actions
    violation: NDArray  # Delta of the policy's own action
    energy: NDArray  # phi of the state
    next_energy: NDArray
    binding: NDArray  # (d, d') of the obstacle with the highest energy
    next_distance: NDArray
    distance: NDArray  # m, to the nearest obstacle

    @property
    def violated(self) -> NDArray[np.bool_]:
        """Steps whose own action broke the constraint."""
        return (self.violation > 0) & self.valid

    @property
    def infeasible(self) -> NDArray[np.bool_]:
        """States in which neither an action of the grid nor the policy's own keeps the constraint."""
        return ~self.grid_feasible & (self.violation > 0) & self.valid

    @property
    def missed(self) -> NDArray[np.bool_]:
        """States in which only the policy's own action does, so that the grid is too coarse."""
        return ~self.grid_feasible & ~(self.violation > 0) & self.valid

    def entered(self, safe_distance: float) -> NDArray[np.bool_]:
        """Trajectories that came nearer to an obstacle than its safe distance (m)."""
        near = (self.distance < safe_distance) | (self.next_distance < safe_distance)
        return np.any(near & self.valid, axis=0)


def visit(
    world: Any, policy: Any, certificate: RunCertificate, tasks: Any, key: jax.Array, episodes: int, points: int
) -> Visited:
    """Run one episode in each row (task, episode): leaves `[time, rows, ...]`."""
    agent = Certifier(points, certificate.slack)
    _, records = world.interact(agent, (policy, certificate.index), tasks, key, episodes)
    return Visited(**{name: np.asarray(values) for name, values in records.items()})
