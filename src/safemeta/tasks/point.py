"""The Point robot of Safety-Gymnasium where it touches nothing: a planar rigid body in exact closed form.

A sphere and a box ahead of it slide over a floor without friction on two slide joints and a hinge. The thruster pushes
along the body's forward axis, a velocity servo turns the hinge. Both saturate: any thrust command beyond 0.05 is full
thrust. The numbers below are the ones that the MJCF implies; the tests compare with MuJoCo to 1e-12.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TIMESTEP = 0.002  # s, of one physics step
SUBSTEPS = 10  # physics steps per control step: 0.02 s
HEIGHT = 0.1  # m, of the body origin
GRAVITY = 9.81  # m / s^2
MAGNETIC_FIELD = 0.5  # along world -y

_DENSITY = 1.0
_SPHERE = _DENSITY * 4 / 3 * math.pi * 0.1**3  # kg; radius 0.1 m at the origin
_BOX = _DENSITY * 0.1**3  # kg; edge 0.1 m, centre 0.1 m ahead
MASS = _SPHERE + _BOX
MOMENT = _BOX * 0.1  # kg m: mass times the forward offset of the centre of mass
INERTIA = 0.4 * _SPHERE * 0.1**2 + _BOX * (0.1**2 / 6 + 0.1**2)  # kg m^2, about the vertical through the origin
SLIDE_DAMPING = 0.01  # N s / m
HINGE_DAMPING = 0.005  # N m s
GEAR = 0.3  # of thruster and servo
FORCE_LIMIT = 0.05  # of both actuators, before the gear


class PointState(eqx.Module):
    """Position (m), yaw (rad) and yaw rate (rad / s) in the world; velocity (m / s) of the body along its own axes."""

    x: Float[Array, "*batch"]
    y: Float[Array, "*batch"]
    yaw: Float[Array, "*batch"]
    forward: Float[Array, "*batch"]
    left: Float[Array, "*batch"]
    yaw_rate: Float[Array, "*batch"]


class PointSensors(eqx.Module):
    """The 12 readings of the robot, and the heading `(cos yaw, sin yaw)` that they were computed with."""

    readings: Float[Array, "*batch 12"]
    cos: Float[Array, "*batch"]
    sin: Float[Array, "*batch"]


def at_rest(x: Float[Array, "*batch"], y: Float[Array, "*batch"], yaw: Float[Array, "*batch"]) -> PointState:
    """The robot standing still."""
    zero = jnp.zeros_like(x)
    return PointState(x, y, yaw, zero, zero, zero)


def advance(state: PointState, action: Float[Array, "*batch 2"], substeps: int = SUBSTEPS) -> PointState:
    """`substeps` steps of MuJoCo's Euler integrator (damping implicit) under one action, clipped to [-1, 1].

    With M the mass matrix, D the damping, h the time step and w the yaw rate: `v += h (M + h D)^-1 (f - D v)`,
    `q += h v`, where f holds thrust, servo torque and the centrifugal term `MOMENT w^2`. Seen along the body's axes M
    is constant and the inverse is three numbers; afterwards the velocity is turned into the new body axes. The sine and
    cosine of that small turn come from their series: exact in float64 for yaw rates below 20 rad / s (reached: 5).
    """
    h = TIMESTEP
    slide = MASS + h * SLIDE_DAMPING
    hinge = INERTIA + h * HINGE_DAMPING
    determinant = slide * hinge - MOMENT**2
    thrust, command = _commands(action)
    # The displacement of this control step, along the axes that the body had at its beginning.
    zero, one = jnp.zeros_like(state.x), jnp.ones_like(state.x)

    def substep(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        ahead, aside, turn, cos, sin, forward, left, rate = carry
        torque = _servo(command, rate) - HINGE_DAMPING * rate
        drag = -SLIDE_DAMPING * left
        forward = forward + h / slide * (thrust + MOMENT * rate**2 - SLIDE_DAMPING * forward)
        left = left + h / determinant * (hinge * drag - MOMENT * torque)
        rate = rate + h / determinant * (slide * torque - MOMENT * drag)
        ahead = ahead + h * (cos * forward - sin * left)
        aside = aside + h * (sin * forward + cos * left)
        angle = h * rate
        c, s = _small_rotation(angle)
        forward, left = c * forward + s * left, c * left - s * forward
        return ahead, aside, turn + angle, c * cos - s * sin, s * cos + c * sin, forward, left, rate

    # A loop, not one long expression: XLA computes what it fuses anew for every use, so that the work can grow as a
    # power of the number of substeps.
    carry = (zero, zero, zero, one, zero, state.forward, state.left, state.yaw_rate)
    carry = jax.lax.fori_loop(0, substeps, lambda _, carry: substep(carry), carry, unroll=2)
    ahead, aside, turn, *_, forward, left, rate = carry
    cos, sin = jnp.cos(state.yaw), jnp.sin(state.yaw)
    x = state.x + cos * ahead - sin * aside
    y = state.y + sin * ahead + cos * aside
    return PointState(x, y, state.yaw + turn, forward, left, rate)


def sense(state: PointState, action: Float[Array, "*batch 2"]) -> PointSensors:
    """Accelerometer, velocimeter, gyro and magnetometer (3 each, along the body's axes) at a state under an action.

    The accelerometer reads `M^-1 (f - D v)`, without the implicit term of the integrator, plus gravity.
    """
    thrust, command = _commands(action)
    torque = _servo(command, state.yaw_rate) - HINGE_DAMPING * state.yaw_rate
    drag = -SLIDE_DAMPING * state.left
    along = (thrust + MOMENT * state.yaw_rate**2 - SLIDE_DAMPING * state.forward) / MASS
    across = (INERTIA * drag - MOMENT * torque) / (MASS * INERTIA - MOMENT**2)
    cos, sin = jnp.cos(state.yaw), jnp.sin(state.yaw)
    zero = jnp.zeros_like(state.x)
    readings = jnp.stack(
        [
            along,
            across,
            jnp.full_like(zero, GRAVITY),
            state.forward,
            state.left,
            zero,
            zero,
            zero,
            state.yaw_rate,
            -MAGNETIC_FIELD * sin,
            -MAGNETIC_FIELD * cos,
            zero,
        ],
        axis=-1,
    )
    return PointSensors(readings, cos, sin)


def _commands(action: Float[Array, "*batch 2"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Thrust (N), and the servo's command, of an action."""
    thrust = GEAR * jnp.clip(action[..., 0], -FORCE_LIMIT, FORCE_LIMIT)
    return thrust, jnp.clip(action[..., 1], -1.0, 1.0)


def _servo(command: Float[Array, "*batch"], rate: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Torque (N m) of the velocity servo: it sees the rate through its gear."""
    return GEAR * jnp.clip(command - GEAR * rate, -FORCE_LIMIT, FORCE_LIMIT)


def _small_rotation(angle: Float[Array, "*batch"]) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Cosine and sine of `|angle| < 0.04` to the last bit of float64 (remainder below `angle^8 / 8!`, about 2e-16)."""
    square = angle**2
    cos = 1 - square / 2 * (1 - square / 12 * (1 - square / 30))
    sin = angle * (1 - square / 6 * (1 - square / 20 * (1 - square / 42)))
    return cos, sin
