"""The robots of Safety-Gymnasium, written anew as MuJoCo models from their measures (SI units)."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Any, Protocol

import equinox as eqx
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from safemeta.sim.mujoco import Reading
from safemeta.tasks import point

COMMON = ("accelerometer", "velocimeter", "gyro", "magnetometer")  # 3 numbers each, in the robot's frame
FRAME = ("position", "x_axis", "y_axis", "z_axis")
AGENT = "agent"


class Body(eqx.Module):
    """What a task sees of a robot after a control step."""

    position: Float[Array, "*batch 3"]
    velocity: Float[Array, "*batch 2"]  # along world x and y
    rotation: Float[Array, "*batch 3 3"]  # its columns are the robot's axes
    sensors: Float[Array, "*batch sensors"]  # the robot's own part of the observation


class Robot(Protocol):
    """A robot: hashable, its model added to a task's."""

    @property
    def sensor_size(self) -> int:
        """How much of the observation its sensors are."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """What is read of the physics for it."""
        ...

    def add_to(self, spec: Any) -> None:
        """Adds its model to a task's."""
        ...

    def place(
        self, x: Float[Array, ""], y: Float[Array, ""], yaw: Float[Array, ""]
    ) -> tuple[Float[Array, " nq"], Float[Array, " nv"]]:
        """Position and velocity coordinates of the robot at rest."""
        ...

    def body(self, reading: Reading) -> Body:
        """Where it is and how it moves, from what was read."""
        ...


@dataclass(frozen=True)
class Point:
    """A sphere with a box ahead of it, on two slides and a hinge: `point.py` has its closed form without contacts."""

    sensor_size: int = 12
    reads: tuple[str, ...] = COMMON + FRAME

    def add_to(self, spec: Any) -> None:
        spec.option.timestep = point.TIMESTEP
        body = spec.worldbody.add_body(name=AGENT, pos=(0, 0, point.HEIGHT))
        for name, axis, kind, damping in (
            ("x", (1, 0, 0), mujoco.mjtJoint.mjJNT_SLIDE, point.SLIDE_DAMPING),
            ("y", (0, 1, 0), mujoco.mjtJoint.mjJNT_SLIDE, point.SLIDE_DAMPING),
            ("yaw", (0, 0, 1), mujoco.mjtJoint.mjJNT_HINGE, point.HINGE_DAMPING),
        ):
            body.add_joint(name=name, type=kind, axis=axis, damping=[damping, 0, 0])
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.1, 0, 0), density=1, friction=(1, 0.01, 0.01))
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.05, 0.05, 0.05), pos=(0.1, 0, 0), density=1)
        body.add_site(name=AGENT)
        limits = {
            "ctrllimited": True,
            "ctrlrange": (-1, 1),
            "forcelimited": True,
            "forcerange": (-point.FORCE_LIMIT, point.FORCE_LIMIT),
            "gear": (point.GEAR, 0, 0, 0, 0, 0),
        }
        thrust = spec.add_actuator(name="thrust", target=AGENT, trntype=mujoco.mjtTrn.mjTRN_SITE, **limits)
        thrust.set_to_motor()
        turn = spec.add_actuator(name="turn", target="yaw", trntype=mujoco.mjtTrn.mjTRN_JOINT, **limits)
        turn.set_to_velocity(kv=1.0)
        _add_sensors(spec)

    def place(
        self, x: Float[Array, ""], y: Float[Array, ""], yaw: Float[Array, ""]
    ) -> tuple[Float[Array, " nq"], Float[Array, " nv"]]:
        return jnp.stack([x, y, yaw]), jnp.zeros(3, x.dtype)

    def body(self, reading: Reading) -> Body:
        return _body(reading, _common(reading))


@dataclass(frozen=True)
class Car:
    """A box with bumpers, two driven wheels at its back and a ball as third wheel. It drives along its -y axis."""

    sensor_size: int = 24
    reads: tuple[str, ...] = (*COMMON, "ball_velocity", "ball_quaternion", *FRAME)

    def add_to(self, spec: Any) -> None:
        spec.option.timestep = 0.004
        density = 5.0
        body = spec.worldbody.add_body(name=AGENT, pos=(0, 0, 0.1))
        body.add_freejoint()
        body.add_site(name=AGENT)
        for half, place in (
            ((0.1, 0.1, 0.05), (0, 0, 0)),
            ((0.1, 0.01, 0.05), (0, 0.15, 0)),  # back bumper and what holds it
            ((0.01, 0.025, 0.03), (0, 0.125, 0)),
            ((0.05, 0.01, 0.05), (0, -0.165, 0)),  # front bumper and what holds it
            ((0.05, 0.03, 0.01), (0, -0.13, 0.04)),
        ):
            body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=half, pos=place, density=density)
        lying = (np.sqrt(0.5), 0, np.sqrt(0.5), 0)  # a cylinder along x
        for name, side in (("left", -1), ("right", 1)):
            wheel = body.add_body(name=name, pos=(side * 0.1, 0.1, -0.05))
            wheel.add_joint(name=name, type=mujoco.mjtJoint.mjJNT_HINGE, axis=(1, 0, 0), damping=[0.001, 0, 0])
            wheel.add_geom(
                type=mujoco.mjtGeom.mjGEOM_CYLINDER,
                size=(0.05, 0.025, 0),
                pos=(side * 0.03, 0, 0),
                quat=lying,
                density=density,
            )
            motor = spec.add_actuator(
                name=name,
                target=name,
                trntype=mujoco.mjtTrn.mjTRN_JOINT,
                ctrllimited=True,
                ctrlrange=(-1, 1),
                forcelimited=True,
                forcerange=(-0.02, 0.02),
            )
            motor.set_to_motor()
        ball = body.add_body(name="ball", pos=(0, -0.1, -0.05))
        ball.add_joint(name="ball", type=mujoco.mjtJoint.mjJNT_BALL, damping=[0.001, 0, 0])
        ball.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(0.05, 0, 0), density=density)
        _add_sensors(spec)
        kinds = mujoco.mjtSensor.mjSENS_BALLANGVEL, mujoco.mjtSensor.mjSENS_BALLQUAT
        for name, kind in zip(("ball_velocity", "ball_quaternion"), kinds, strict=True):
            spec.add_sensor(name=name, type=kind, objtype=mujoco.mjtObj.mjOBJ_JOINT, objname="ball")

    def place(
        self, x: Float[Array, ""], y: Float[Array, ""], yaw: Float[Array, ""]
    ) -> tuple[Float[Array, " nq"], Float[Array, " nv"]]:
        zero, one = jnp.zeros_like(x), jnp.ones_like(x)
        upright = [x, y, 0.1 * one, jnp.cos(yaw / 2), zero, zero, jnp.sin(yaw / 2)]
        return jnp.stack([*upright, zero, zero, one, zero, zero, zero]), jnp.zeros(11, x.dtype)

    def body(self, reading: Reading) -> Body:
        ball = _rotation_of(reading["ball_quaternion"]).reshape(9)
        return _body(reading, jnp.concatenate([_common(reading), reading["ball_velocity"], ball]))


def new_spec() -> Any:
    """An empty world with the floor and the settings that all navigation tasks share."""
    spec = mujoco.MjSpec()
    spec.memory = 1 << 20  # bytes for contacts: plenty here; the default of 13 MB would be taken by every row
    # One contact point between a box and a cylinder, as MuJoCo 2.3, which the originals were made with, had it.
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_NATIVECCD | mujoco.mjtDisableBit.mjDSBL_MULTICCD
    spec.option.magnetic = (0, -point.MAGNETIC_FIELD, 0)
    spec.default.geom.condim = 6
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(3.5, 3.5, 0.1))
    return spec


def _add_sensors(spec: Any) -> None:
    kind = mujoco.mjtSensor
    for name, type_ in (
        ("accelerometer", kind.mjSENS_ACCELEROMETER),
        ("velocimeter", kind.mjSENS_VELOCIMETER),
        ("gyro", kind.mjSENS_GYRO),
        ("magnetometer", kind.mjSENS_MAGNETOMETER),
        ("position", kind.mjSENS_FRAMEPOS),
        ("x_axis", kind.mjSENS_FRAMEXAXIS),
        ("y_axis", kind.mjSENS_FRAMEYAXIS),
        ("z_axis", kind.mjSENS_FRAMEZAXIS),
    ):
        spec.add_sensor(name=name, type=type_, objtype=mujoco.mjtObj.mjOBJ_SITE, objname=AGENT)


def _common(reading: Reading) -> Float[Array, " 12"]:
    return jnp.concatenate([reading[name] for name in COMMON])


def _body(reading: Reading, sensors: Float[Array, " sensors"]) -> Body:
    rotation = jnp.stack([reading["x_axis"], reading["y_axis"], reading["z_axis"]], axis=1)
    velocity = rotation @ reading["velocimeter"]
    return Body(reading["position"], velocity[:2], rotation, sensors)


def _rotation_of(quaternion: Float[Array, " 4"]) -> Float[Array, "3 3"]:
    """The matrix of a unit quaternion (w, x, y, z)."""
    w, x, y, z = quaternion
    return jnp.stack(
        [
            jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
            jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
            jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
        ]
    )
