"""One episode of a policy with all that a film of it shows."""

import dataclasses
from typing import Any

import numpy as np

from safemeta.experiment.errors import simulation_failed


@dataclasses.dataclass(frozen=True)
class Bodies:
    """MuJoCo's bodies at each moment: places `[moments, bodies, 3]` and rotations `[moments, bodies, 3, 3]`."""

    model: Any
    names: tuple[str, ...]
    position: np.ndarray
    rotation: np.ndarray
    qpos: np.ndarray
    mocap: np.ndarray

    def of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Place and rotation of one body."""
        index = self.names.index(name)
        return self.position[:, index], self.rotation[:, index]


@dataclasses.dataclass(frozen=True)
class Recording:
    """An episode of `T` steps: what is, at its `T + 1` moments, and what each step brought.

    `state` is the task's own state, its leaves with a leading axis of moments.
    """

    parameters: dict[str, np.ndarray]
    limits: np.ndarray
    state: Any
    observation: np.ndarray
    reward: np.ndarray
    costs: np.ndarray
    bodies: Bodies | None

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.reward)

    @property
    def costly(self) -> np.ndarray:
        """The steps that cost anything, `[steps]`. A cost that is never zero, such as of control, does not count."""
        counts = np.all(self.costs == np.round(self.costs), axis=0)
        tells = counts | np.any(self.costs == 0, axis=0)
        return np.asarray(np.any((self.costs > 0) & tells, axis=1))


def record(world: Any, policy: Any, task: Any, key: Any) -> Recording:
    """The episode that `world.collect(policy, task, key, 1)` stores, `task` being a batch of one.

    The two round differently, and a robot whose servo is stiff makes much of it: they part after some dozens of steps.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from safemeta.sim import one_row
    from safemeta.sim.failures import SimulationError, pending

    @eqx.filter_jit
    def act(policy: Any, observation: Any, key: Any, t: Any) -> Any:
        return policy.act(observation, one_row.key_of_step(key, t))[0]

    state, observation = one_row.begin(world, task, key)
    states, seen, physics, steps = [_own(state)], [np.asarray(observation)], [_physics(world, state)], []
    for t in range(world.cmdp.horizon):
        state, step = one_row.advance(world, task, state, act(policy, observation, key, jnp.asarray(t)))
        observation = step.observation
        states.append(_own(state))
        seen.append(np.asarray(observation))
        physics.append(_physics(world, state))
        steps.append((float(step.reward), np.asarray(step.costs), bool(step.ended)))
        if steps[-1][2]:
            break
    one_row.finish(world, state)
    error = pending()
    if error is not None:
        raise simulation_failed(error) from error
    if not np.isfinite(seen).all():
        raise simulation_failed(SimulationError("the episode left the finite numbers"))
    return Recording(
        parameters={name: np.asarray(values[0]) for name, values in task.parameters.items()},
        limits=np.asarray(task.limits[0]),
        state=jax.tree.map(lambda *leaves: np.stack(leaves), *states),
        observation=np.stack(seen),
        reward=np.array([reward for reward, _, _ in steps]),
        costs=np.stack([costs for _, costs, _ in steps]),
        bodies=_bodies(world, physics),
    )


def _own(state: Any) -> Any:
    """The task's state of the one row, on the host."""
    import jax

    from safemeta.sim.challenges import ChallengedState
    from safemeta.sim.mujoco import MujocoState

    rows = isinstance(state, MujocoState)
    own = state.task if rows else state
    own = own.task if isinstance(own, ChallengedState) else own
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0] if rows else np.asarray(leaf), own)


def _physics(world: Any, state: Any) -> tuple[np.ndarray, ...] | None:
    """What MuJoCo holds of the row now."""
    from safemeta.sim.mujoco import MujocoState, engine_of

    if not isinstance(state, MujocoState):
        return None
    data = engine_of(world.simulator.environment).data(state.session)[0]
    return tuple(np.array(getattr(data, name)) for name in ("xpos", "xmat", "qpos", "mocap_pos"))


def _bodies(world: Any, physics: list[Any]) -> Bodies | None:
    from safemeta.sim.mujoco import engine_of

    if physics[0] is None:
        return None
    model = engine_of(world.simulator.environment).model
    position, rotation, qpos, mocap = (np.stack(leaves) for leaves in zip(*physics, strict=True))
    names = tuple(model.body(index).name for index in range(model.nbody))
    return Bodies(model, names, position, rotation.reshape(*rotation.shape[:2], 3, 3), qpos, mocap)
