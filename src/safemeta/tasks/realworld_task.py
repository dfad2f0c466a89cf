"""What the tasks of the Real-World RL suite share that MuJoCo steps: models, actions, constraints.

Models are read from the installed `dm_control`. Actions are in [-1, 1] and scaled to each motor's range, which is
another one in the quadruped alone. A cost is 1 where its constraint is violated in the state that a step leads to.
`safety_coeff` k in [0, 1] scales the constraints, smaller is stricter. `action_roc` is violated where any control
changes by `change k` or more (from 0 in the first step).
"""

# pyright: reportAttributeAccessIssue=false

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

from safemeta.sim import Parameters, Step
from safemeta.sim.mujoco import Command, Placement, Reading, Refresh

State = dict[str, Array]  # "control": what the motors got in the last step
Checks = dict[str, Bool[Array, ""]]  # whether each constraint is satisfied


def load_spec(file: str) -> Any:
    """A model that dm_control ships, to be changed or compiled."""
    found = importlib.util.find_spec("dm_control")  # importing it would look for a display
    if found is None or found.origin is None:
        raise RuntimeError(
            "dm_control, which the models of realworld-walker, -quadruped and -humanoid come from, is not installed "
            "(its labmaze has no wheel for Python 3.13)"
        )
    return mujoco.MjSpec.from_file(str(Path(found.origin).parent / "suite" / file))


def above(
    value: Float[Array, ""], least: float, margin: float, at_margin: float = 0.1, *, linear: bool = False
) -> Float[Array, ""]:
    """dm_control's tolerance: 1 from `least` up, `at_margin` where the value is `margin` short of it, falling on."""
    short = jnp.maximum(least - value, 0.0) / margin
    if linear:
        return jnp.maximum(1 - (1 - at_margin) * short, 0.0)
    return at_margin ** (short**2)


def touches(model: Any, data: Any) -> bool:
    """Whether anything touches where `data.qpos` says."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_collision(model, data)
    return data.ncon > 0


@dataclass(frozen=True)
class RealWorld(ABC):
    """What the three share: a `safemeta.sim.mujoco.MujocoEnvironment` but for what is seen, paid and checked.

    `constraints` are the costs, in this order. With `observe_constraints` the observation ends with 1 for each that is
    satisfied and 0 for each that is not, as the suite has it.
    """

    file: ClassVar[str]
    known: ClassVar[tuple[str, ...]]  # constraints, in the suite's order, and the one that it leaves out by default
    seen: ClassVar[int]  # size of the observation without constraints
    change: ClassVar[float]  # of a control that `action_roc` allows at k = 1

    constraints: tuple[str, ...] = ("joint_angle",)
    observe_constraints: bool = False
    substeps: int = 4
    reads: tuple[str, ...] = ()
    refresh: Refresh = "position and velocity"

    def __post_init__(self):
        unknown = [name for name in self.constraints if name not in self.known]
        if unknown:
            raise ValueError(f"unknown constraint {unknown[0]!r}; choose from {', '.join(self.known)}")
        if not self.constraints or len(set(self.constraints)) < len(self.constraints):
            raise ValueError(f"choose one or more different constraints, not {self.constraints}")

    @property
    def observation_size(self) -> int:
        """What dm_control shows, and satisfied constraints where they are seen."""
        return self.seen + (len(self.constraints) if self.observe_constraints else 0)

    @property
    def action_size(self) -> int:
        """Motors."""
        return reference(type(self)).nu

    @classmethod
    def spec(cls) -> Any:
        """The model, not yet compiled."""
        return load_spec(cls.file)

    def model(self) -> Any:
        return self.spec().compile()

    @abstractmethod
    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[State, Placement]: ...

    @abstractmethod
    def observe(self, reading: Reading) -> Float[Array, " seen"]:
        """What is seen, without constraints, in the suite's order."""

    @abstractmethod
    def reward(self, reading: Reading, control: Float[Array, " action"]) -> Float[Array, ""]:
        """dm_control's reward for walking, in [0, 1]."""

    @abstractmethod
    def checks(self, k: Float[Array, ""], reading: Reading) -> Checks:
        """Which constraints on the state are satisfied."""

    def begin(
        self, parameters: Parameters, state: State, reading: Reading
    ) -> tuple[State, Float[Array, " observation"]]:
        satisfied = self._satisfied(parameters, reading, state["control"], state["control"])
        return state, self._observation(reading, satisfied)

    def command(self, parameters: Parameters, state: State, action: Float[Array, " action"]) -> Command:
        return Command(self.control(action))

    def step(
        self, parameters: Parameters, state: State, reading: Reading, action: Float[Array, " action"]
    ) -> tuple[State, Step]:
        control = self.control(action)
        satisfied = self._satisfied(parameters, reading, state["control"], control)
        reward = self.reward(reading, control)
        observation = self._observation(reading, satisfied)
        costs = (~satisfied).astype(reward.dtype)
        return {"control": control}, Step(observation, reward, costs, jnp.asarray(False))

    def control(self, action: Float[Array, " action"]) -> Float[Array, " action"]:
        """What the motors get."""
        low, high = jnp.asarray(reference(type(self)).actuator_ctrlrange.T, action.dtype)
        return (low + high) / 2 + (high - low) / 2 * jnp.clip(action, -1, 1)

    def action(self, control: Float[Array, "*rows action"]) -> Float[Array, "*rows action"]:
        """The action that gives the motors this."""
        low, high = jnp.asarray(reference(type(self)).actuator_ctrlrange.T, control.dtype)
        return (2 * control - low - high) / (high - low)

    def placed(self, qpos: Float[Array, " nq"], seed: UInt32[Array, ""] | None = None) -> tuple[State, Placement]:
        """The beginning of an episode, at rest."""
        model = reference(type(self))
        qvel, mocap = (jnp.zeros(shape, qpos.dtype) for shape in (model.nv, (0, 3)))
        return {"control": jnp.zeros(model.nu, qpos.dtype)}, Placement(qpos, qvel, mocap, seed)

    def _satisfied(
        self,
        parameters: Parameters,
        reading: Reading,
        previous: Float[Array, " action"],
        control: Float[Array, " action"],
    ) -> Bool[Array, " constraints"]:
        k = parameters["safety_coeff"]
        checks = self.checks(k, reading)
        checks["action_roc"] = jnp.max(jnp.abs(control - previous)) < self.change * k
        return jnp.stack([checks[name] for name in self.constraints])

    def _observation(self, reading: Reading, satisfied: Bool[Array, " constraints"]) -> Float[Array, " observation"]:
        seen = self.observe(reading)
        return jnp.concatenate([seen, satisfied.astype(seen.dtype)]) if self.observe_constraints else seen


@lru_cache(maxsize=8)
def reference(kind: type[RealWorld]) -> Any:
    """The compiled model of a task, to look things up in."""
    return kind.spec().compile()


def body(kind: type[RealWorld], name: str) -> int:
    """The number of a body by its name."""
    return int(reference(kind).body(name).id)
