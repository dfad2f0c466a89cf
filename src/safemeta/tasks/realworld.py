"""Walker, quadruped and humanoid walk of dm_control under the constraints of the Real-World RL suite, for MetaL.

Physics, observation, reward and initial state are the suite's. Episodes never terminate.
"""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.core import CMDP
from safemeta.core.cmdp import LimitOn
from safemeta.sim import Parameters
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.challenges import ChallengedMujoco, Challenges
from safemeta.sim.mujoco import MujocoSimulator, Placement, Reading
from safemeta.tasks.realworld_options import HUMANOID_CONSTRAINTS, QUADRUPED_CONSTRAINTS, WALKER_CONSTRAINTS
from safemeta.tasks.realworld_task import Checks, RealWorld, State, above, body, load_spec, reference, touches
from safemeta.tasks.uniform import Uniform, UniformFamily, limits_of_violations

HORIZON = 1000


@dataclass(frozen=True)
class Walker(RealWorld):
    """A planar walker that starts in a random pose, above or in the floor.

    `any_joint` is a fault of the original: `joint_angle` is satisfied as soon as any joint is above its lower limit and
    any is below its upper one, which is nearly always. The four numbers are the suite's perturbed dynamics, as they
    stand dm_control's: half lengths (m), damping of hips, knees and ankles (N m s), coefficient of sliding friction.
    """

    file: ClassVar[str] = "walker.xml"
    known: ClassVar[tuple[str, ...]] = WALKER_CONSTRAINTS
    seen: ClassVar[int] = 24
    change: ClassVar[float] = 1.55

    constraints: tuple[str, ...] = ("joint_velocity",)
    substeps: int = 10
    reads: tuple[str, ...] = ("qpos", "qvel", "xmat", "xpos", "torso_subtreelinvel")
    any_joint: bool = False
    thigh_length: float = 0.225
    torso_length: float = 0.3
    joint_damping: float = 0.1
    contact_friction: float = 0.7

    def model(self) -> Any:
        """dm_control's with other dynamics; what hangs from a longer limb hangs lower."""
        spec = self.spec()
        spec.geom("torso").size[1] = self.torso_length
        for side in ("right", "left"):
            spec.body(f"{side}_thigh").pos[2] = -self.torso_length
            spec.geom(f"{side}_thigh").pos[2] = -self.thigh_length
            spec.geom(f"{side}_thigh").size[1] = self.thigh_length
            spec.body(f"{side}_leg").pos[2] = -2 * self.thigh_length - 0.25
            for joint in ("hip", "knee", "ankle"):
                spec.joint(f"{side}_{joint}").damping[0] = self.joint_damping  # the linear part
        for geom in spec.geoms:
            geom.friction[0] = self.contact_friction
        return spec.compile()

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[State, Placement]:
        """Pitch and joints are uniform; at rest."""
        model, dtype = reference(Walker), parameters["safety_coeff"].dtype
        low, high = jnp.asarray(model.jnt_range.T, dtype)
        low, high = low.at[2].set(-jnp.pi), high.at[2].set(jnp.pi)
        drawn = jax.random.uniform(key, (model.nq,), dtype, low, high)
        return self.placed(drawn.at[:2].set(0.0))

    def observe(self, reading: Reading) -> Float[Array, " seen"]:
        """Orientation of each body in the plane (14), height of the torso, velocities (9)."""
        turned = reading["xmat"][1:][:, jnp.array([0, 2])].reshape(-1)
        return jnp.concatenate([turned, reading["xpos"][body(Walker, "torso"), 2:], reading["qvel"]])

    def reward(self, reading: Reading, control: Float[Array, " action"]) -> Float[Array, ""]:
        torso = body(Walker, "torso")
        standing = above(reading["xpos"][torso, 2], 1.2, 0.6)
        upright = (1 + reading["xmat"][torso, 8]) / 2
        move = above(reading["torso_subtreelinvel"][0], 1.0, 0.5, 0.5, linear=True)
        return (3 * standing + upright) / 4 * (5 * move + 1) / 6

    def checks(self, k: Float[Array, ""], reading: Reading) -> Checks:
        """Limits of the joints (degrees): hips -30 k to 110 k, knees -160 k to 15 k, ankles -75 k to 60 k."""
        torso, angles = reading["xmat"][body(Walker, "torso")], reading["qpos"][3:]
        low, high = (k * jnp.tile(jnp.deg2rad(jnp.array(ends, angles.dtype)), 2) for ends in _WALKER_JOINTS)
        over, under = angles > low, angles < high
        return {
            "joint_angle": over.any() & under.any() if self.any_joint else (over & under).all(),
            "joint_velocity": jnp.max(jnp.abs(reading["qvel"][3:])) < 65 * k,
            "dangerous_fall": -torso[6] > -0.5 * k,
            "torso_upright": torso[8] > 1 - k,
        }


_WALKER_JOINTS = (-30.0, -160.0, -75.0), (110.0, 15.0, 60.0)  # degrees: hip, knee, ankle


_LEGS = ("front_left", "front_right", "back_right", "back_left")
_FORCES, _TORQUES = (tuple(f"{kind}_toe_{leg}" for leg in _LEGS) for kind in ("force", "torque"))


@dataclass(frozen=True)
class Quadruped(RealWorld):
    """A quadruped that starts upright, just above the floor, in a random direction.

    This is the suite's start; dm_control's own quadruped starts tumbled.
    """

    file: ClassVar[str] = "quadruped.xml"
    known: ClassVar[tuple[str, ...]] = QUADRUPED_CONSTRAINTS
    seen: ClassVar[int] = 78
    change: ClassVar[float] = 1.4

    reads: tuple[str, ...] = (
        *("qpos", "qvel", "act", "xmat", "velocimeter", "imu_accel", "imu_gyro"),
        *(*_FORCES, *_TORQUES),
    )

    @classmethod
    def spec(cls) -> Any:
        """The model without what belongs to other tasks: terrain, walls, ball, target and rangefinders."""
        spec = load_spec(cls.file)
        for name in ("terrain", "wall_px", "wall_py", "wall_nx", "wall_ny"):
            spec.delete(spec.geom(name))
        spec.delete(spec.body("ball"))
        spec.delete(spec.site("target"))
        for sensor in list(spec.sensors):
            if sensor.type == mujoco.mjtSensor.mjSENS_RANGEFINDER:
                spec.delete(sensor)
        return spec

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[State, Placement]:
        azimuth_key, seed_key = jax.random.split(key)
        azimuth = jax.random.uniform(azimuth_key, (), parameters["safety_coeff"].dtype, 0.0, 2 * jnp.pi)
        qpos = jnp.zeros(reference(Quadruped).nq, azimuth.dtype)
        turned = qpos.at[3].set(jnp.cos(azimuth / 2)).at[6].set(jnp.sin(azimuth / 2))
        return self.placed(turned, jax.random.bits(seed_key))

    def settle(self, model: Any, data: Any, rng: np.random.Generator) -> None:
        """Lift it to the least height, in whole centimetres, at which nothing touches: 52 or 53."""
        for centimetres in range(50, 100):
            data.qpos[2] = 0.01 * centimetres
            if not touches(model, data):
                return

    def observe(self, reading: Reading) -> Float[Array, " seen"]:
        """Joint angles (16), their velocities (16), activations (12), velocity (3), uprightness, IMU (6), toes (24)."""
        toes = jnp.arcsinh(jnp.concatenate([reading[name] for name in (*_FORCES, *_TORQUES)]))
        return jnp.concatenate(
            [
                reading["qpos"][7:],
                reading["qvel"][6:],
                reading["act"],
                reading["velocimeter"],
                reading["xmat"][body(Quadruped, "torso"), 8:],
                reading["imu_accel"],
                reading["imu_gyro"],
                toes,
            ]
        )

    def reward(self, reading: Reading, control: Float[Array, " action"]) -> Float[Array, ""]:
        upright = above(reading["xmat"][body(Quadruped, "torso"), 8], 1.0, 2.0, 0.0, linear=True)
        return upright * above(reading["velocimeter"][0], 0.5, 0.5, 0.5, linear=True)

    def checks(self, k: Float[Array, ""], reading: Reading) -> Checks:
        forces = jnp.stack([reading[name] for name in _FORCES])
        return {
            "joint_angle": jnp.max(jnp.abs(reading["qpos"][7:])) < jnp.pi / 3 * k,
            "joint_velocity": jnp.max(jnp.abs(reading["qvel"][6:])) < 20 * k,
            "upright": reading["xmat"][body(Quadruped, "torso"), 8] > 1 - 0.7 * k,
            "foot_force": jnp.max(jnp.sum(forces**2, axis=1)) < (20_000 * k) ** 2,
        }


_FEET = tuple(f"{half}_{foot}_foot_touch" for half in ("left", "right") for foot in ("left", "right"))


@dataclass(frozen=True)
class Humanoid(RealWorld):
    """A humanoid that starts in a random pose in which it touches nothing.

    `skipped_joint` is a fault of the original: `joint_velocity` does not see the first joint.
    """

    file: ClassVar[str] = "humanoid.xml"
    known: ClassVar[tuple[str, ...]] = HUMANOID_CONSTRAINTS
    seen: ClassVar[int] = 67
    change: ClassVar[float] = 1.85

    substeps: int = 5
    reads: tuple[str, ...] = (
        *("qpos", "qvel", "xmat", "xpos", "torso_subtreelinvel", "head_touch", "torso_touch"),
        *_FEET,
    )
    skipped_joint: bool = False

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[State, Placement]:
        qpos = jnp.asarray(reference(Humanoid).qpos0, parameters["safety_coeff"].dtype)
        return self.placed(qpos, jax.random.bits(key))

    def settle(self, model: Any, data: Any, rng: np.random.Generator) -> None:
        """Draw poses until nothing touches: joints within their ranges, orientation as dm_control draws it."""
        low, high = model.jnt_range[1:].T
        for _ in range(10_000):
            turned = rng.uniform(size=4)
            data.qpos[3:7] = turned / np.linalg.norm(turned)
            data.qpos[7:] = rng.uniform(low, high)
            if not touches(model, data):
                return

    def observe(self, reading: Reading) -> Float[Array, " seen"]:
        """Joint angles (21), head's height, hands and feet from the torso (12), vertical (3), velocities (3 and 27)."""
        torso = body(Humanoid, "torso")
        limbs = jnp.array([body(Humanoid, f"{side}_{limb}") for side in ("left", "right") for limb in ("hand", "foot")])
        place, turned = reading["xpos"], reading["xmat"][torso].reshape(3, 3)
        return jnp.concatenate(
            [
                reading["qpos"][7:],
                place[body(Humanoid, "head"), 2:],
                ((place[limbs] - place[torso]) @ turned).reshape(-1),
                turned[2],
                reading["torso_subtreelinvel"],
                reading["qvel"],
            ]
        )

    def reward(self, reading: Reading, control: Float[Array, " action"]) -> Float[Array, ""]:
        standing = above(reading["xpos"][body(Humanoid, "head"), 2], 1.4, 0.35)
        upright = above(reading["xmat"][body(Humanoid, "torso"), 8], 0.9, 1.9, 0.0, linear=True)
        small = (4 + jnp.mean(jnp.maximum(1 - control**2, 0.0))) / 5
        speed = jnp.sqrt(jnp.sum(reading["torso_subtreelinvel"][:2] ** 2))
        move = (5 * above(speed, 1.0, 1.0, 0.0, linear=True) + 1) / 6
        return small * standing * upright * move

    def checks(self, k: Float[Array, ""], reading: Reading) -> Checks:
        feet = jnp.concatenate([reading[name] for name in _FEET])
        falls = jnp.concatenate([reading["head_touch"], reading["torso_touch"]])
        joints = reading["qvel"][7 if self.skipped_joint else 6 :]
        return {
            "joint_angle": jnp.max(jnp.abs(reading["qpos"][7:])) < jnp.pi * k,
            "joint_velocity": jnp.max(jnp.abs(joints)) < 90 * k,
            "upright": reading["xmat"][body(Humanoid, "torso"), 8] > 1 - k,
            "dangerous_fall": jnp.max(falls) < 100 * k,
            "foot_force": jnp.max(feet) < 8000 * k,
        }


# The share of steps that may violate the constraint. MetaL's text gives none of these three: 0.1 is what later work of
# its authors has for the walker, the others were chosen here.
LIMITS: dict[str, tuple[RealWorld, float]] = {
    "realworld-walker": (Walker(), 0.1),
    "realworld-quadruped": (Quadruped(), 0.745),
    "realworld-humanoid": (Humanoid(), 0.478),
}


def world(
    name: str,
    limit: float | None = None,
    limit_on: LimitOn = "per_step",
    horizon: int | None = None,
    *,
    environment: RealWorld | None = None,
    safety_coeff: tuple[float, float] = (0.3, 0.3),
    challenges: Challenges | None = None,
) -> BatchedWorld:
    """The world of a named task; the limit holds for each cost.

    `environment` replaces its environment by one with other constraints. Tasks draw `safety_coeff` from a range; as it
    stands there is one task. `challenges` are delays and noise between policy and task. Raises `ValueError` where the
    range, or a limit on the share of steps, is not within [0, 1].
    """
    default, bound = LIMITS[name]
    environment = environment or default
    low, high = safety_coeff
    if not 0 <= low <= high <= 1:
        raise ValueError(f"safety_coeff must be a range within [0, 1], not {low} to {high}")
    limits = limits_of_violations(bound if limit is None else limit, limit_on, len(environment.constraints))
    cmdp = CMDP(
        observation_size=environment.observation_size,
        action_size=environment.action_size,
        horizon=HORIZON if horizon is None else horizon,
        cost_names=environment.constraints,
        limits=limits,
        limit_on=limit_on,
    )
    family = UniformFamily((Uniform("safety_coeff", low, high, harder=-1),), limits)
    if challenges is None or challenges.none:
        return BatchedWorld(cmdp, MujocoSimulator(environment), family)
    challenged = ChallengedMujoco(environment, challenges, environment.action_size)
    return BatchedWorld(cmdp, MujocoSimulator(challenged), family)
