"""Cartpole swing-up in closed form: dm_control's model, the reward of its suite, the constraints of Real-World RL.

A cart on a rail with a soft stop at either end carries a free pole. MuJoCo advances it by the classic Runge-Kutta
method of order 4; each of the four accelerations is the solution of a 2 x 2 system and, at a stop, of a problem with
one unknown, the stop's force. Nothing is approximated: the tests compare with MuJoCo step by step.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.core import CMDP, LimitOn, Tasks
from safemeta.sim import FunctionalWorld, Parameters, Step
from safemeta.sim.challenges import ChallengedFunctional, Challenges
from safemeta.tasks.realworld_options import CARTPOLE_CONSTRAINTS as CONSTRAINTS
from safemeta.tasks.uniform import Ranges, RangesFamily, limits_of_violations

TIMESTEP = 0.01  # s; one physics step to a control step
GRAVITY = 9.81  # m / s^2
CART_MASS = 1.0  # kg
POLE_RADIUS = 0.045  # m; the pole is a capsule
GEAR = 10.0  # N per unit of action
RAIL = 1.8  # m, from the middle to either stop
STOP_TIME = 0.08  # s, time constant of a stop, critically damped
STOP_WIDTH = 0.001  # m, depth at which a stop is as stiff as it gets
STOP_IMPEDANCE = (0.9, 0.95)  # at its edge and beyond that depth

ACTION_SIZE = 1
HORIZON = 1000


class CartpoleState(eqx.Module):
    """Cart position (m), pole angle (rad, 0 upright, falling to +x), their rates, and the control that led here."""

    position: Float[Array, "*batch"]
    angle: Float[Array, "*batch"]
    velocity: Float[Array, "*batch"]
    angular_velocity: Float[Array, "*batch"]
    control: Float[Array, "*batch"]


class Mechanics(eqx.Module):
    """The pole's mass (kg), its moment about the hinge (kg m), its inertia there (kg m^2), and both dampings."""

    mass: Float[Array, "*batch"]
    moment: Float[Array, "*batch"]
    inertia: Float[Array, "*batch"]
    slider_damping: Float[Array, "*batch"]
    hinge_damping: Float[Array, "*batch"]


def mechanics(parameters: Parameters) -> Mechanics:
    """The constants of motion of a task: a capsule of homogeneous density, `pole_length` from centre to centre (m).

    Its mass is `pole_density * pole_length`: the suite that varies a pole's length keeps its mass per metre.
    """
    length = parameters["pole_length"]
    mass = parameters["pole_density"] * length
    r = POLE_RADIUS
    caps = mass * (4 / 3 * r) / (length + 4 / 3 * r)  # the two half spheres
    centred = (mass - caps) * (3 * r**2 + length**2) / 12 + caps * (0.4 * r**2 + length**2 / 4 + 0.375 * r * length)
    moment = mass * length / 2
    return Mechanics(
        mass, moment, centred + moment * length / 2, parameters["slider_damping"], parameters["hinge_damping"]
    )


def acceleration(
    constants: Mechanics,
    position: Float[Array, "*batch"],
    angle: Float[Array, "*batch"],
    velocity: Float[Array, "*batch"],
    angular_velocity: Float[Array, "*batch"],
    control: Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Of the slider (m / s^2) and of the hinge (rad / s^2).

    With M the mass matrix and f the forces, `a = M^-1 (f + J' F)`, where F >= 0 is the force of the stop that the cart
    is beyond, if it is, and J = -1 or +1 on the slider. MuJoCo's soft constraint asks `J a + R F = a_ref` wherever that
    gives a positive F, with `a_ref = -b J v - k d p` for penetration p < 0, impedance d(p) and
    `R = (1 / d - 1) / M^-1[slider, slider]` at the upright pole.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    total = CART_MASS + constants.mass
    coupling = constants.moment * cos
    inverse = 1 / (total * constants.inertia - coupling**2)
    push = GEAR * control - constants.slider_damping * velocity + constants.moment * sin * angular_velocity**2
    turn = constants.moment * GRAVITY * sin - constants.hinge_damping * angular_velocity
    slider = inverse * (constants.inertia * push - coupling * turn)
    force = _stop(constants, inverse * constants.inertia, position, velocity, slider)
    slider = slider + inverse * constants.inertia * force
    hinge = inverse * (total * turn - coupling * (push + force))
    return slider, hinge


def _stop(
    constants: Mechanics,
    mobility: Float[Array, "*batch"],
    position: Float[Array, "*batch"],
    velocity: Float[Array, "*batch"],
    free: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Force (N) of the stops on the cart, whose acceleration would be `free` without them."""
    edge, full = STOP_IMPEDANCE
    stiffness = 1 / (full * STOP_TIME) ** 2
    damping = 2 / (full * STOP_TIME)
    upright = constants.inertia / ((CART_MASS + constants.mass) * constants.inertia - constants.moment**2)
    side = jnp.sign(position)
    depth = jnp.maximum(jnp.abs(position) - RAIL, 0)
    part = jnp.minimum(depth / STOP_WIDTH, 1)
    impedance = edge + (full - edge) * jnp.where(part < 0.5, 2 * part**2, 1 - 2 * (1 - part) ** 2)
    wanted = damping * side * velocity + stiffness * impedance * depth  # inwards
    force = (wanted + side * free) / (mobility + (1 / impedance - 1) * upright)
    return jnp.where(depth > 0, -side * jnp.maximum(force, 0), 0)


def advance(
    constants: Mechanics, state: CartpoleState, action: Float[Array, "*batch 1"]
) -> tuple[CartpoleState, Float[Array, "*batch"]]:
    """One control step under an action, clipped to [-1, 1]; also the last of the four slider accelerations."""
    control = jnp.clip(action[..., 0], -1, 1)
    start = (state.position, state.angle, state.velocity, state.angular_velocity)
    slope = rate = _rate(constants, start, control)
    for weight, share in ((2.0, 0.5), (2.0, 0.5), (1.0, 1.0)):
        rate = _rate(constants, _moved(start, rate, share * TIMESTEP), control)
        slope = _moved(slope, rate, weight)
    position, angle, velocity, angular_velocity = _moved(start, slope, TIMESTEP / 6)
    return CartpoleState(position, angle, velocity, angular_velocity, control), rate[2]


_Four = tuple[Array, Array, Array, Array]  # position, angle, velocity, angular velocity; or the rates of the four


def _rate(constants: Mechanics, at: _Four, control: Float[Array, "*batch"]) -> _Four:
    slider, hinge = acceleration(constants, *at, control)
    return at[2], at[3], slider, hinge


def _moved(at: _Four, rate: _Four, time: float) -> _Four:
    return at[0] + time * rate[0], at[1] + time * rate[1], at[2] + time * rate[2], at[3] + time * rate[3]


def swing_up_reward(state: CartpoleState) -> Float[Array, "*batch"]:
    """`(1 + cos) / 2 * (1 + g(x / 2)) / 2 * (5 - u^2) / 5 * (1 + g(w / 5)) / 2` with `g(z) = 0.1^(z^2)`.

    Between 0 and 1; x is the cart's position (m), w the pole's rate (rad / s) and u the control.
    """
    upright = (1 + jnp.cos(state.angle)) / 2
    centred = (1 + _bell(state.position / 2)) / 2
    gentle = (5 - jnp.minimum(state.control**2, 1)) / 5
    slow = (1 + _bell(state.angular_velocity / 5)) / 2
    return upright * centred * gentle * slow


def _bell(z: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    return jnp.exp(math.log(0.1) * z**2)


@dataclass(frozen=True)
class Cartpole:
    """Cartpole swing-up with the constraints of the Real-World RL suite.

    Parameters of a task: those of `mechanics`, and `safety_coeff` k in [0, 1], which scales the constraints: smaller
    is stricter. Observation: cart position, cosine and sine of the pole's angle, and both velocities; with
    `observe_constraints` also whether each constraint of `constraints` is satisfied (1) or not (0), as in the original.
    Cost i is 1 where `constraints[i]` is violated after the step:

    - `slider_pos`: `|x| >= 2 k` m;
    - `slider_accel`: the slider's acceleration has magnitude `>= 130 k` m / s^2;
    - `balance_velocity`: `cos(angle) > cos(0.15 + 2 (1 - k))` and `|w| > k / 2` rad / s;
    - `action_roc`: the control (0 before the first step) changed by `1.5 k` or more.

    `stale_acceleration` is a fault of the original: `slider_accel` sees the acceleration of the integrator's last
    stage, which belongs to no state of the trajectory, instead of the one at the state that was reached. Never
    terminates. The pole starts hanging down, nearly at rest: everything normal with standard deviation 0.01.
    """

    constraints: tuple[str, ...] = ("slider_pos",)
    observe_constraints: bool = False
    stale_acceleration: bool = False

    def __post_init__(self):
        unknown = [name for name in self.constraints if name not in CONSTRAINTS]
        if unknown:
            raise ValueError(f"unknown constraint {unknown[0]!r}; choose from {', '.join(CONSTRAINTS)}")
        if not self.constraints or len(set(self.constraints)) < len(self.constraints):
            raise ValueError(f"choose one or more different constraints, not {self.constraints}")

    @property
    def observation_size(self) -> int:
        """Sensors, and satisfied constraints where they are seen."""
        return 5 + (len(self.constraints) if self.observe_constraints else 0)

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[CartpoleState, Float[Array, " observation"]]:
        dtype = parameters["safety_coeff"].dtype
        x, angle, v, w = 0.01 * jax.random.normal(key, (4,), dtype)
        state = CartpoleState(x, jnp.pi + angle, v, w, jnp.zeros((), dtype))
        return state, self.observe(state, self.violations(parameters, state, state.control, None))

    def step(
        self, parameters: Parameters, state: CartpoleState, action: Float[Array, " action"]
    ) -> tuple[CartpoleState, Step]:
        following, last = advance(mechanics(parameters), state, action)
        violated = self.violations(parameters, following, state.control, last if self.stale_acceleration else None)
        costs = violated.astype(following.position.dtype)
        observation = self.observe(following, violated)
        return following, Step(observation, swing_up_reward(following), costs, jnp.asarray(False))

    def observe(self, state: CartpoleState, violated: Bool[Array, " constraints"]) -> Float[Array, " observation"]:
        """What is seen of a state."""
        seen = jnp.stack(
            [state.position, jnp.cos(state.angle), jnp.sin(state.angle), state.velocity, state.angular_velocity]
        )
        return jnp.concatenate([seen, (~violated).astype(seen.dtype)]) if self.observe_constraints else seen

    def violations(
        self,
        parameters: Parameters,
        state: CartpoleState,
        previous_control: Float[Array, ""],
        slider_acceleration: Float[Array, ""] | None,
    ) -> Bool[Array, " constraints"]:
        """Which constraints a state violates; the acceleration is that of the state where None is given."""
        k = parameters["safety_coeff"]
        found = []
        for name in self.constraints:
            if name == "slider_pos":
                found.append(jnp.abs(state.position) >= 2 * k)
            elif name == "slider_accel":
                if slider_acceleration is None:
                    at = (state.position, state.angle, state.velocity, state.angular_velocity, state.control)
                    slider_acceleration, _ = acceleration(mechanics(parameters), *at)
                found.append(jnp.abs(slider_acceleration) >= 130 * k)
            elif name == "balance_velocity":
                near = jnp.cos(state.angle) > jnp.cos(2 * (1 - k) + 0.15)
                found.append(near & (jnp.abs(state.angular_velocity) > 0.5 * k))
            else:
                found.append(jnp.abs(previous_control - state.control) >= 1.5 * k)
        return jnp.stack(found)


@dataclass(frozen=True)
class CartpoleRange(Ranges):
    """Uniform distributions of a task's parameters; as they stand, dm_control's one cartpole at `safety_coeff` 0.3.

    Lengths in m, density in kg per m of length, dampings in N s / m and N m s.
    """

    safety_coeff: tuple[float, float] = (0.3, 0.3)
    pole_length: tuple[float, float] = (1.0, 1.0)
    pole_density: tuple[float, float] = (0.1, 0.1)
    slider_damping: tuple[float, float] = (5e-4, 5e-4)
    hinge_damping: tuple[float, float] = (2e-6, 2e-6)

    def __post_init__(self):
        for name, (low, high) in self.spans().items():
            if not 0 <= low <= high < math.inf or (high == 0 and name.startswith("pole")):
                raise ValueError(f"{name} must be a range of positive numbers, not {low} to {high}")
        if self.safety_coeff[1] > 1:
            raise ValueError(f"safety_coeff must be within [0, 1], not up to {self.safety_coeff[1]}")


@dataclass(frozen=True)
class CartpoleFamily(RangesFamily):
    """Cartpoles of other dynamics and constraints, with limits on the costs that were chosen."""

    train: CartpoleRange
    test: CartpoleRange

    def corners(self) -> Tasks:
        """The strictest safety coefficient with the shortest pole, then with the longest: one task if they are one."""
        spans = self.train.spans()
        lengths = sorted(set(self.train.pole_length))
        middle = {name: jnp.full(len(lengths), (low + high) / 2) for name, (low, high) in spans.items()}
        strictest = jnp.full(len(lengths), self.train.safety_coeff[0])
        return self.tasks(middle | {"pole_length": jnp.asarray(lengths), "safety_coeff": strictest})


def world(
    limit: float | None = None,
    limit_on: LimitOn = "per_step",
    horizon: int | None = None,
    *,
    environment: Cartpole | None = None,
    train: CartpoleRange | None = None,
    test: CartpoleRange | None = None,
    challenges: Challenges | None = None,
) -> FunctionalWorld:
    """Swing-up with MetaL's threshold on each cost: 0.115 of the steps may violate it.

    By default one task with `safety_coeff` 0.3 and the constraint `slider_pos`; `test` is as `train` unless given.
    `challenges` are delays and noise between policy and task.
    """
    environment, train = environment or Cartpole(), train or CartpoleRange()
    names = environment.constraints
    limits = limits_of_violations(0.115 if limit is None else limit, limit_on, len(names))
    cmdp = CMDP(environment.observation_size, ACTION_SIZE, horizon or HORIZON, names, limits, limit_on=limit_on)
    family = CartpoleFamily(train, test or train, limits)
    if challenges is None or challenges.none:
        return FunctionalWorld(cmdp, environment, family)
    return FunctionalWorld(cmdp, ChallengedFunctional(environment, challenges, ACTION_SIZE), family)
