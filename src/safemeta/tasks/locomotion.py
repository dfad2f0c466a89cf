"""Running and swimming robots of Gymnasium's MuJoCo models, with the tasks and costs of the dual-method paper.

Models are read from the installed `gymnasium`; physics, observation, initial state and termination are Gymnasium's.
Actions are in [-1, 1] and scaled to each motor's range (0.4 in Humanoid, 1 elsewhere); costs count the controls that
the motors get. The goal velocity is that of the robot's place along x, averaged over a control step.
"""

# pyright: reportAttributeAccessIssue=false

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.core import CMDP
from safemeta.core.cmdp import LimitOn
from safemeta.sim import Parameters, Step
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.mujoco import Command, MujocoSimulator, Placement, Reading, Refresh
from safemeta.tasks.uniform import Uniform, UniformFamily

HORIZON = 200
State = dict[str, Array]  # "place": where the robot is (m), from which its velocity is taken


def load_model(file: str) -> Any:
    """A model that Gymnasium ships, compiled."""
    found = importlib.util.find_spec("gymnasium")  # importing its environments would ask for a renderer
    if found is None or found.origin is None:
        raise RuntimeError("gymnasium, which the robots' models come from, is not installed")
    return mujoco.MjModel.from_xml_path(str(Path(found.origin).parent / "envs" / "mujoco" / "assets" / file))


@lru_cache(maxsize=8)
def _reference(file: str) -> Any:
    return load_model(file)


@dataclass(frozen=True)
class Runner:
    """What the robots share: a `safemeta.sim.mujoco.MujocoEnvironment` but for `reward`."""

    file: ClassVar[str]
    costs: ClassVar[tuple[str, ...]] = ("control",)
    noise: ClassVar[float]  # of the initial state
    hidden: ClassVar[int] = 1  # leading coordinates that are not observed

    substeps: int = 4
    reads: tuple[str, ...] = ("qpos", "qvel")
    refresh: Refresh = "nothing"

    @property
    def observation_size(self) -> int:
        """Positions, but for those that are hidden, and velocities."""
        model = _reference(self.file)
        return model.nq + model.nv - self.hidden

    @property
    def action_size(self) -> int:
        """Motors."""
        return _reference(self.file).nu

    @property
    def seconds(self) -> float:
        """Length of a control step."""
        return self.substeps * float(_reference(self.file).opt.timestep)

    def model(self) -> Any:
        return load_model(self.file)

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[State, Placement]:
        model, dtype = _reference(self.file), next(iter(parameters.values())).dtype
        place_key, speed_key = jax.random.split(key)
        qpos = jnp.asarray(model.qpos0, dtype)
        qpos += jax.random.uniform(place_key, (model.nq,), dtype, -self.noise, self.noise)
        qvel = self.initial_velocity(speed_key, model.nv, dtype)
        return {}, Placement(qpos, qvel, jnp.zeros((0, 3), dtype))

    def initial_velocity(self, key: PRNGKeyArray, size: int, dtype: Any) -> Float[Array, " size"]:
        """Uniform noise around rest."""
        return jax.random.uniform(key, (size,), dtype, -self.noise, self.noise)

    def begin(
        self, parameters: Parameters, state: State, reading: Reading
    ) -> tuple[State, Float[Array, " observation"]]:
        return state | {"place": self.place(reading)}, self.observe(reading)

    def command(self, parameters: Parameters, state: State, action: Float[Array, " action"]) -> Command:
        return Command(self.control(action))

    def step(
        self, parameters: Parameters, state: State, reading: Reading, action: Float[Array, " action"]
    ) -> tuple[State, Step]:
        place = self.place(reading)
        velocity = (place - state["place"]) / self.seconds
        reward = self.reward(parameters, velocity)
        costs = jnp.stack([self.cost(parameters, reading, action)])
        return state | {"place": place}, Step(self.observe(reading), reward, costs, self.fallen(reading))

    def control(self, action: Float[Array, " action"]) -> Float[Array, " action"]:
        """What the motors get."""
        most = jnp.asarray(_reference(self.file).actuator_ctrlrange[:, 1], action.dtype)
        return most * jnp.clip(action, -1, 1)

    def place(self, reading: Reading) -> Float[Array, " axes"]:
        """Where the robot is along the floor (m)."""
        return reading["qpos"][:1]

    def observe(self, reading: Reading) -> Float[Array, " observation"]:
        """Gymnasium's observation."""
        return jnp.concatenate([reading["qpos"][self.hidden :], reading["qvel"]])

    def reward(self, parameters: Parameters, velocity: Float[Array, " axes"]) -> Float[Array, ""]:
        """How close the velocity is to the goal's."""
        return -jnp.abs(velocity[0] - parameters["goal_velocity"])

    def cost(self, parameters: Parameters, reading: Reading, action: Float[Array, " action"]) -> Float[Array, ""]:
        """The sum of the squared controls."""
        return jnp.sum(self.control(action) ** 2)

    def fallen(self, reading: Reading) -> Bool[Array, ""]:
        """Whether the episode ends."""
        return jnp.asarray(False)


@dataclass(frozen=True)
class HalfCheetah(Runner):
    """Runs at `goal_velocity` (m/s) with its head low. Never terminates.

    Observation (17): `HalfCheetah-v5` (and v4). Cost `head_height`: how far the middle of the head is above `head`
    (m). The paper does not give that height; this is the one of the model standing at rest.
    """

    file: ClassVar[str] = "half_cheetah.xml"
    costs: ClassVar[tuple[str, ...]] = ("head_height",)
    noise: ClassVar[float] = 0.1

    substeps: int = 5
    head: float = 0.636

    def initial_velocity(self, key: PRNGKeyArray, size: int, dtype: Any) -> Float[Array, " size"]:
        """Gymnasium draws it from a normal distribution here."""
        return self.noise * jax.random.normal(key, (size,), dtype)

    def cost(self, parameters: Parameters, reading: Reading, action: Float[Array, " action"]) -> Float[Array, ""]:
        return jnp.maximum(head_of_cheetah(reading["qpos"]) - self.head, 0.0)


def head_of_cheetah(qpos: Float[Array, " 9"]) -> Float[Array, ""]:
    """Height of the middle of the head (m): 0.6 m ahead of and 0.1 m above the torso's, which starts at 0.7 m."""
    height, pitch = qpos[1], qpos[2]
    return 0.7 + height - 0.6 * jnp.sin(pitch) + 0.1 * jnp.cos(pitch)


@dataclass(frozen=True)
class Humanoid(Runner):
    """Runs in the direction `direction` (rad); ends where the torso is not between 1 and 2 m high.

    Observation (376): `Humanoid-v4`; v5 leaves out what is always zero (the world's rows, the root's motors). Velocity
    is that of the centre of mass. As in Gymnasium, the centre of mass and all else that follows from positions is that
    of the last physics step's beginning.
    """

    file: ClassVar[str] = "humanoid.xml"
    noise: ClassVar[float] = 0.01
    hidden: ClassVar[int] = 2

    substeps: int = 5
    reads: tuple[str, ...] = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext", "subtree_com")
    refresh: Refresh = "contact forces"

    @property
    def observation_size(self) -> int:
        """The same, and inertias, velocities and external forces of all bodies, and the forces of its motors."""
        model = _reference(self.file)
        return model.nq - self.hidden + 2 * model.nv + (10 + 6 + 6) * model.nbody

    def place(self, reading: Reading) -> Float[Array, " axes"]:
        return reading["subtree_com"][0, :2]

    def observe(self, reading: Reading) -> Float[Array, " observation"]:
        rest = [reading[name].reshape(-1) for name in ("qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")]
        return jnp.concatenate([reading["qpos"][self.hidden :], *rest])

    def reward(self, parameters: Parameters, velocity: Float[Array, " axes"]) -> Float[Array, ""]:
        """The velocity (m/s) in the task's direction."""
        direction = parameters["direction"]
        return velocity[0] * jnp.cos(direction) + velocity[1] * jnp.sin(direction)

    def fallen(self, reading: Reading) -> Bool[Array, ""]:
        height = reading["qpos"][2]
        return ~((height > 1.0) & (height < 2.0))


@dataclass(frozen=True)
class Hopper(Runner):
    """Hops at `goal_velocity` (m/s); ends where it falls. Observation (11): `Hopper-v5` (and v4)."""

    file: ClassVar[str] = "hopper.xml"
    noise: ClassVar[float] = 0.005

    def observe(self, reading: Reading) -> Float[Array, " observation"]:
        return jnp.concatenate([reading["qpos"][1:], jnp.clip(reading["qvel"], -10, 10)])

    def fallen(self, reading: Reading) -> Bool[Array, ""]:
        height, pitch = reading["qpos"][1], reading["qpos"][2]
        rest = jnp.concatenate([reading["qpos"][2:], reading["qvel"]])
        return ~((height > 0.7) & (jnp.abs(pitch) < 0.2) & jnp.all(jnp.abs(rest) < 100))


@dataclass(frozen=True)
class Swimmer(Runner):
    """Swims at `goal_velocity` (m/s) through restless water. Never terminates.

    Observation (8): `Swimmer-v5` (and v4). Before each control step every generalised velocity is changed by normal
    noise of variance `noise_variance`, times `ripple` (m/s, rad/s): the paper gives the variance and not what it acts
    on. Cost `control`: the sum of the squared controls times `cost_weight`.
    """

    file: ClassVar[str] = "swimmer.xml"
    noise: ClassVar[float] = 0.1
    hidden: ClassVar[int] = 2

    ripple: float = 0.1

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[State, Placement]:
        start_key, noise_key = jax.random.split(key)
        state, placement = super().reset(parameters, start_key)
        return state | {"noise": jax.random.key_data(noise_key)}, placement

    def command(self, parameters: Parameters, state: State, action: Float[Array, " action"]) -> Command:
        spread = self.ripple * jnp.sqrt(parameters["noise_variance"])
        drawn = jax.random.normal(jax.random.wrap_key_data(state["noise"]), (_reference(self.file).nv,), spread.dtype)
        return Command(self.control(action), spread * drawn)

    def step(
        self, parameters: Parameters, state: State, reading: Reading, action: Float[Array, " action"]
    ) -> tuple[State, Step]:
        following = jax.random.split(jax.random.wrap_key_data(state["noise"]), 1)[0]
        state, step = super().step(parameters, state, reading, action)
        return state | {"noise": jax.random.key_data(following)}, step

    def cost(self, parameters: Parameters, reading: Reading, action: Float[Array, " action"]) -> Float[Array, ""]:
        return parameters["cost_weight"] * super().cost(parameters, reading, action)


@dataclass(frozen=True)
class Setting:
    """A named family: its robot, the distribution of tasks and the limit (discounted)."""

    robot: Runner
    parameters: tuple[Uniform, ...]
    limit: float


SETTINGS: dict[str, Setting] = {
    "half-cheetah": Setting(HalfCheetah(), (Uniform("goal_velocity", 0.0, 2.0),), 10.0),
    "humanoid": Setting(Humanoid(), (Uniform("direction", 0.0, np.pi / 2),), 20.0),
    "hopper": Setting(Hopper(), (Uniform("goal_velocity", 0.0, 1.0),), 5.0),
    "swimmer": Setting(
        Swimmer(),
        (
            Uniform("goal_velocity", 0.0, 1.0),
            Uniform("noise_variance", 0.0, 0.5),
            Uniform("cost_weight", 0.5, 1.0),
        ),
        5.0,
    ),
}


def world(
    name: str, limit: float | None, limit_on: LimitOn, horizon: int | None, *, robot: Runner | None = None
) -> BatchedWorld:
    """The world of a named setting; `robot` replaces its robot by one with other fields."""
    setting = SETTINGS[name]
    robot = robot or setting.robot
    limits = (setting.limit if limit is None else limit,)
    cmdp = CMDP(
        observation_size=robot.observation_size,
        action_size=robot.action_size,
        horizon=HORIZON if horizon is None else horizon,
        cost_names=robot.costs,
        limits=limits,
        discount=0.99,
        limit_on=limit_on,
    )
    return BatchedWorld(cmdp, MujocoSimulator(robot), UniformFamily(setting.parameters, limits))
