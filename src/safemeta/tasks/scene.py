"""Navigation tasks, whatever robot drives and however its physics are stepped.

A `Scene` says what lies around, what is paid and what is seen, as pure functions of the robot's `Body` and of a few
things that are read of the physics. `PointScene` puts the Point robot's closed form into it where nothing can be
touched; `MujocoScene` puts any robot into it.
"""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Any, Protocol

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.core import Signals
from safemeta.sim import Parameters, Step
from safemeta.sim.mujoco import Command, Placement, Reading, Refresh
from safemeta.tasks import point
from safemeta.tasks.lidar import pseudo_lidar
from safemeta.tasks.robots import AGENT, Body, Robot, new_spec

SIGNALS = ("clearance",)
Objects = dict[str, Float[Array, "*rows _ 2"]]  # centres (m) by class; objects that a task lacks are far away


class SceneState(eqx.Module):
    """What a scene remembers: where things are, and its own notes (`memory`)."""

    objects: Objects
    memory: dict[str, Array]


class Start(eqx.Module):
    """Where the robot begins."""

    x: Float[Array, ""]
    y: Float[Array, ""]
    yaw: Float[Array, ""]


class Scene(Protocol):
    """A navigation task of one row. Must be hashable."""

    @property
    def costs(self) -> tuple[str, ...]:
        """Their names."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """What is read of the physics beside the robot's own; nothing where nothing can be touched."""
        ...

    @property
    def lidar_bins(self) -> int:
        """How much of the observation is lidar."""
        ...

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[SceneState, Start, Bool[Array, ""]]:
        """A layout, and whether one was found."""
        ...

    def begin(self, parameters: Parameters, state: SceneState, body: Body, reading: Reading) -> SceneState:
        """The state once the physics has been placed and read."""
        ...

    def look(
        self, parameters: Parameters, state: SceneState, body: Body, reading: Reading
    ) -> Float[Array, " lidar_bins"]:
        """What the lidar shows."""
        ...

    def step(
        self, parameters: Parameters, state: SceneState, body: Body, reading: Reading
    ) -> tuple[SceneState, Float[Array, ""], Float[Array, " costs"]]: ...

    def add_to(self, spec: Any, robot: str) -> None:
        """The things that can be touched, and what is read of them."""
        ...

    def solids(self, state: SceneState) -> Float[Array, "solids 3"]:
        """Places of the solid things that never move during an episode, in the order of `add_to`."""
        ...

    def loose(self, state: SceneState) -> Float[Array, " coordinates"]:
        """Position coordinates of what can be pushed, after the robot's."""
        ...


def lidar(body: Body, places: Float[Array, "count 2"], reach: float | None) -> Float[Array, " bins"]:
    """The pseudo-lidar of one class of things on the floor, in the frame of a robot that may be tilted."""
    apart = jnp.concatenate([places, jnp.zeros_like(places[:, :1])], axis=1) - body.position
    seen = apart @ body.rotation[:, :2]
    return pseudo_lidar(seen[:, 0], seen[:, 1], reach)


def distances(body: Body, places: Float[Array, "count 2"]) -> Float[Array, " count"]:
    """From the robot's origin to each centre, along the floor (m)."""
    return jnp.sqrt(jnp.sum((places - body.position[:2]) ** 2, axis=-1))


def merged(costs: Float[Array, " costs"], combine: bool) -> Float[Array, " signals"]:
    """The costs, or one that says whether any of them is there, as the original environments give it."""
    return any_cost(costs)[None] if combine and costs.shape[0] > 1 else costs


def merged_names(costs: tuple[str, ...], combine: bool) -> tuple[str, ...]:
    """The names that go with `merged`."""
    return ("unsafe",) if combine and len(costs) > 1 else costs


def any_cost(amounts: Float[Array, " count"]) -> Float[Array, ""]:
    """1 if any is positive, else 0: Safety-Gymnasium's costs are indicators."""
    return jnp.any(amounts > 0).astype(amounts.dtype)


@dataclass(frozen=True)
class MujocoScene:
    """A scene with a robot on MuJoCo: a `safemeta.sim.mujoco.MujocoEnvironment`."""

    robot: Robot
    scene: Scene
    combine: bool = True  # one cost for all, as in the original environments
    substeps: int = 10
    refresh: Refresh = "all"

    @property
    def costs(self) -> tuple[str, ...]:
        """Their names."""
        return merged_names(self.scene.costs, self.combine)

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.robot.reads, *self.scene.reads)

    @property
    def observation_size(self) -> int:
        """Sensors and lidar."""
        return self.robot.sensor_size + self.scene.lidar_bins

    def model(self) -> Any:
        spec = new_spec()
        self.robot.add_to(spec)
        self.scene.add_to(spec, AGENT)
        return spec.compile()

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[SceneState, Placement]:
        state, start, found = self.scene.reset(parameters, key)
        qpos, qvel = self.robot.place(start.x, start.y, start.yaw)
        loose = self.scene.loose(state)
        qpos = jnp.concatenate([qpos, loose])
        qvel = jnp.concatenate([qvel, jnp.zeros(6 * (loose.shape[0] // 7), qvel.dtype)])
        # A layout that was not found must not be trained on: it is reported as a failure of the physics.
        return state, Placement(jnp.where(found, qpos, jnp.nan), qvel, self.scene.solids(state))

    def begin(
        self, parameters: Parameters, state: SceneState, reading: Reading
    ) -> tuple[SceneState, Float[Array, " observation"]]:
        body = self.robot.body(reading)
        state = self.scene.begin(parameters, state, body, reading)
        return state, jnp.concatenate([body.sensors, self.scene.look(parameters, state, body, reading)])

    def command(self, parameters: Parameters, state: SceneState, action: Float[Array, " action"]) -> Command:
        return Command(jnp.clip(action, -1.0, 1.0))

    def step(
        self, parameters: Parameters, state: SceneState, reading: Reading, action: Float[Array, " action"]
    ) -> tuple[SceneState, Step]:
        body = self.robot.body(reading)
        state, reward, costs = self.scene.step(parameters, state, body, reading)
        observation = jnp.concatenate([body.sensors, self.scene.look(parameters, state, body, reading)])
        return state, Step(observation, reward, merged(costs, self.combine), jnp.asarray(False))

    def signals(self, parameters: Parameters, state: SceneState) -> Signals:
        """What scenes keep for agents: `clearance`, where there are obstacles."""
        return signals_of(state)


def signals_of(state: SceneState) -> Signals:
    """The notes of a scene that are signals."""
    return {name: state.memory[name] for name in SIGNALS if name in state.memory}


class PointSceneState(eqx.Module):
    """The robot and its scene."""

    robot: point.PointState
    scene: SceneState


@dataclass(frozen=True)
class PointScene:
    """A scene where nothing can be touched, with the Point robot in closed form: a `FunctionalEnvironment`."""

    scene: Scene
    combine: bool = True  # one cost for all, as in the original environments

    @property
    def costs(self) -> tuple[str, ...]:
        """Their names."""
        return merged_names(self.scene.costs, self.combine)

    @property
    def observation_size(self) -> int:
        """Sensors and lidar."""
        return 12 + self.scene.lidar_bins

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[PointSceneState, Float[Array, " observation"]]:
        scene, start, found = self.scene.reset(parameters, key)
        robot = point.at_rest(jnp.where(found, start.x, jnp.nan), start.y, start.yaw)
        body = body_of(robot, jnp.zeros(2, robot.x.dtype))
        scene = self.scene.begin(parameters, scene, body, {})
        seen = self.scene.look(parameters, scene, body, {})
        return PointSceneState(robot, scene), jnp.concatenate([body.sensors, seen])

    def step(
        self, parameters: Parameters, state: PointSceneState, action: Float[Array, " action"]
    ) -> tuple[PointSceneState, Step]:
        robot = point.advance(state.robot, action)
        body = body_of(robot, action)
        scene, reward, costs = self.scene.step(parameters, state.scene, body, {})
        observation = jnp.concatenate([body.sensors, self.scene.look(parameters, scene, body, {})])
        return PointSceneState(robot, scene), Step(observation, reward, merged(costs, self.combine), jnp.asarray(False))

    def signals(self, parameters: Parameters, state: PointSceneState) -> Signals:
        """What scenes keep for agents: `clearance`, where there are obstacles."""
        return signals_of(state.scene)


def body_of(state: point.PointState, action: Float[Array, " 2"]) -> Body:
    """The Point robot as scenes see it."""
    sensors = point.sense(state, action)
    cos, sin = sensors.cos, sensors.sin
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    rotation = jnp.stack([jnp.stack([cos, -sin, zero]), jnp.stack([sin, cos, zero]), jnp.stack([zero, zero, one])])
    velocity = jnp.stack([cos * state.forward - sin * state.left, sin * state.forward + cos * state.left])
    position = jnp.stack([state.x, state.y, point.HEIGHT * one])
    return Body(position, velocity, rotation, sensors.readings)
