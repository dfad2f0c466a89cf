"""Avoidable sets by Hamilton-Jacobi reachability, and how much of a safety index's safe set lies within (FAC-SIS, 5.2).

From a state of the avoidable set some control keeps out of the obstacle for good; from any other state no control does.
With l(x) = d - r the value is `V(x) = max over controls of min over time of l`, the viscosity solution of

    dV/dt + min(0, max_u grad V . f(x, u)) = 0,   V(x, 0) = l(x),   backwards in time,

and the set is `{V >= 0}` (Mitchell 2007). `hj_reachability` solves it on a grid.
"""

import difflib
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import equinox as eqx
import hj_reachability as hj
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from safemeta.certificates.safety_index import SafetyIndex

Accuracy = Literal["low", "medium", "high", "very_high"]

LAST_STRETCH = 0.25  # s, over which an avoidable set is watched for changes


class AvoidableSet(eqx.Module):
    """V on a grid with axes `names`; `unsettled` is the share of its points that changed sides in the last 0.25 s.

    If that is not zero, or next to it, the horizon was too short: states were called safe that only last so long.
    """

    grid: hj.Grid
    values: Float[Array, "..."]  # m, of the grid's shape
    unsettled: Float[Array, ""]
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def states(self) -> Float[Array, "..."]:
        """The grid's points, `[*shape, dimensions]`."""
        return self.grid.states

    @property
    def coordinates(self) -> tuple[Array, ...]:
        """`[points]` along each axis; a periodic one leaves out its upper end, which is its lower."""
        return self.grid.coordinate_vectors

    @property
    def spacing(self) -> tuple[float, ...]:
        """The distance between neighbours along each axis."""
        return tuple(float(spacing) for spacing in self.grid.spacings)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Which axes are angles."""
        return tuple(bc is hj.boundary_conditions.periodic for bc in self.grid.boundary_conditions)

    @eqx.filter_jit
    def value(self, states: Float[Array, "*batch dimensions"]) -> Float[Array, "*batch"]:
        """V (m) by linear interpolation; zero or more: avoidable. NaN outside the grid."""
        flat = states.reshape(-1, states.shape[-1])
        found = jax.vmap(lambda state: self.grid.interpolate(self.values, state))(flat)
        return found.reshape(states.shape[:-1])


def avoidable_set(
    dynamics: hj.Dynamics,
    grid: hj.Grid,
    margin: Float[Array, "..."],
    names: tuple[str, ...],
    *,
    horizon: float,
    accuracy: Accuracy = "low",
) -> AvoidableSet:
    """The avoidable set of `{margin < 0}` (margin `[*grid.shape]`, m) under dynamics whose control maximises.

    `horizon` (s) must exceed the time that the slowest manoeuvre takes. `accuracy` names the order of the scheme:
    "low" is enough for signs. Compiled per object `dynamics`: pass the same one again.

    Raises ValueError for an unknown accuracy, a horizon of 0.25 s or less, and shapes that do not fit the grid.
    """
    if accuracy not in ("low", "medium", "high", "very_high"):
        raise ValueError(f"accuracy must be one of low, medium, high, very_high, not {accuracy!r}")
    if not horizon > LAST_STRETCH:
        raise ValueError(f"the horizon must exceed {LAST_STRETCH} s, not {horizon}")
    if margin.shape != grid.shape or len(names) != grid.ndim:
        raise ValueError(f"margin {margin.shape} and names {names} do not fit a grid of shape {grid.shape}")
    settings = hj.SolverSettings.with_accuracy(accuracy, hamiltonian_postprocessor=hj.solver.backwards_reachable_tube)
    before, end = LAST_STRETCH - horizon, -horizon
    earlier = hj.step(settings, dynamics, grid, 0.0, margin, before, progress_bar=False)
    values = hj.step(settings, dynamics, grid, before, earlier, end, progress_bar=False)
    return AvoidableSet(grid, values, jnp.mean((values >= 0) != (earlier >= 0), dtype=values.dtype), names)


def unicycle_avoidable_set(
    *,
    radius: float = 0.5,
    acceleration: float = 4.0,
    turn_rate: float = math.pi,
    shape: tuple[int, int, int] = (41, 61, 32),
    distances: tuple[float, float] = (0.25, 4.0),
    speeds: tuple[float, float] = (-2.0, 6.0),
    horizon: float = 1.6,
    accuracy: Accuracy = "low",
) -> AvoidableSet:
    """A unicycle (|a| <= acceleration, |w| <= turn_rate) and a round obstacle of `radius` (m), reduced to 3 states.

    `z = (d, v, psi)`: distance to the centre, speed, heading less the direction from the obstacle to the robot
    (psi = 0 drives straight away). The reduction is exact: `d' = v cos psi, v' = a, psi' = w - (v / d) sin psi`.
    `distances` must start above 0, where psi' has a pole; time grows as 1 / distances[0]. Defaults: the collision
    avoidance of FAC-SIS, with time to stop from 6 m / s.

    Raises ValueError unless the radius lies within `distances` and ranges are in order.
    """
    if not 0 < distances[0] < radius < distances[1]:
        raise ValueError(f"the radius must lie within distances that start above 0, not {radius} and {distances}")
    lower, upper = (distances[0], speeds[0], -math.pi), (distances[1], speeds[1], math.pi)
    grid = _grid(lower, upper, shape, periodic=2)
    names = ("distance", "speed", "direction")
    margin = grid.states[..., 0] - radius
    dynamics = _unicycle(acceleration, turn_rate)
    return avoidable_set(dynamics, grid, margin, names, horizon=horizon, accuracy=accuracy)


def wall_avoidable_set(
    *,
    gap: float = 0.5,
    acceleration: float = 4.0,
    shape: tuple[int, int] = (81, 81),
    distances: tuple[float, float] = (0.0, 4.0),
    speeds: tuple[float, float] = (-4.0, 4.0),
    horizon: float = 1.5,
    accuracy: Accuracy = "low",
) -> AvoidableSet:
    """The double integrator `d'' = a`, |a| <= acceleration, in front of a wall from which it must keep `gap` (m).

    States (d, v), v = d'. In closed form `V = d - gap - min(v, 0)^2 / (2 acceleration)`: a check of the solver.

    Raises ValueError unless the gap lies within `distances` and ranges are in order.
    """
    if not distances[0] < gap < distances[1]:
        raise ValueError(f"the gap must lie within the distances, not {gap} and {distances}")
    grid = _grid((distances[0], speeds[0]), (distances[1], speeds[1]), shape)
    margin = grid.states[..., 0] - gap
    names = ("distance", "speed")
    return avoidable_set(_double_integrator(acceleration), grid, margin, names, horizon=horizon, accuracy=accuracy)


def unicycle_clearance(states: Float[Array, "*batch 3"]) -> Float[Array, "*batch 1 2"]:
    """(d, d') of reduced unicycle states (d, v, psi): `d' = v cos psi`."""
    distance, speed, direction = states[..., 0], states[..., 1], states[..., 2]
    return jnp.stack([distance, speed * jnp.cos(direction)], axis=-1)[..., None, :]


def wall_clearance(states: Float[Array, "*batch 2"]) -> Float[Array, "*batch 1 2"]:
    """(d, d') of the double integrator's states (d, v): themselves."""
    return states[..., None, :]


def reduced_unicycle(
    position: Float[Array, "*#batch 2"],
    speed: float | Float[Array, "*#batch"],
    heading: float | Float[Array, "*#batch"],
    obstacle: tuple[float, float] | Float[Array, " 2"] = (0.0, 0.0),
) -> Float[Array, "*#batch 3"]:
    """(d, v, psi) of a unicycle in the plane: a picture at one heading and speed is V of these at all positions (m)."""
    away = position - jnp.asarray(obstacle, position.dtype)
    distance = jnp.sqrt(jnp.sum(away**2, axis=-1))
    direction = heading - jnp.arctan2(away[..., 1], away[..., 0])
    direction = direction - 2 * jnp.pi * jnp.round(direction / (2 * jnp.pi))
    return jnp.stack(jnp.broadcast_arrays(distance, jnp.asarray(speed, position.dtype), direction), axis=-1)


class Inclusion(NamedTuple):
    """Numbers of grid points: all that were looked at, with phi <= 0, with V < 0 (unsafe), with both.

    `unsafe_well_inside` leaves out points that have the border of either set within one cell: only these show more
    than the grid's coarseness.
    """

    points: int
    sublevel: int
    unsafe: int
    unsafe_inside: int
    unsafe_well_inside: int

    @property
    def sublevel_share(self) -> float:
        """Points with phi <= 0, of all."""
        return self.sublevel / self.points

    @property
    def unsafe_share(self) -> float:
        """Points from which no control keeps out of the obstacle, of all."""
        return self.unsafe / self.points

    @property
    def unsafe_inside_share(self) -> float:
        """Such points of those with phi <= 0; 0 if the index's safe set is within the avoidable set."""
        return self.unsafe_inside / max(self.sublevel, 1)

    @property
    def unsafe_well_inside_share(self) -> float:
        """The same for points that are more than a cell away from both borders."""
        return self.unsafe_well_inside / max(self.sublevel, 1)


def inclusion(
    index: SafetyIndex,
    avoidable: AvoidableSet,
    clearance: Callable[[Array], Array],
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Inclusion:
    """Compare `{phi <= 0}` with the avoidable set on its grid, within closed `ranges` of the axes in `names`.

    `clearance` maps grid states `[..., dimensions]` to `[..., obstacles, 1 + derivatives]`, e.g. `unicycle_clearance`.

    Raises ValueError for an unknown axis (with the nearest match) and for ranges that hold no grid point.
    """
    looked_at = np.ones(avoidable.values.shape, bool)
    for name, (low, high) in (ranges or {}).items():
        if name not in avoidable.names:
            near = difflib.get_close_matches(name, avoidable.names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(avoidable.names)}"
            raise ValueError(f"unknown axis {name!r}; {hint}")
        axis = avoidable.names.index(name)
        rounding = 1e-3 * avoidable.spacing[axis]
        along = np.asarray(avoidable.states[..., axis])
        looked_at &= (along >= low - rounding) & (along <= high + rounding)
    if not looked_at.any():
        raise ValueError(f"no grid point lies within {dict(ranges or {})}")
    low_energy = np.asarray(index.index(clearance(avoidable.states)) <= 0)
    unsafe = np.asarray(avoidable.values < 0)
    inside = looked_at & low_energy & unsafe
    near = _at_border(low_energy, avoidable.periodic) | _at_border(unsafe, avoidable.periodic)
    counted = (looked_at, looked_at & low_energy, looked_at & unsafe, inside, inside & ~near)
    return Inclusion(*(int(points.sum()) for points in counted))


def _at_border(members: Bool[np.ndarray, "..."], periodic: tuple[bool, ...]) -> Bool[np.ndarray, "..."]:
    """Points of which a neighbour, diagonal ones included, is on the other side."""
    padded = members
    for axis, wraps in enumerate(periodic):
        width = [(int(axis == other),) * 2 for other in range(members.ndim)]
        padded = np.pad(padded, width, mode="wrap" if wraps else "edge")
    found = np.zeros_like(members)
    for corner in itertools.product(range(3), repeat=members.ndim):
        shifted = padded[tuple(slice(start, start + size) for start, size in zip(corner, members.shape, strict=True))]
        found |= shifted != members
    return found


def _grid(
    lower: tuple[float, ...], upper: tuple[float, ...], shape: tuple[int, ...], periodic: int | None = None
) -> hj.Grid:
    if not all(low < high for low, high in zip(lower, upper, strict=True)) or min(shape) < 3:
        raise ValueError(f"a grid needs ranges in order and 3 points per axis, not {lower} to {upper} with {shape}")
    domain = hj.sets.Box(jnp.asarray(lower, float), jnp.asarray(upper, float))
    return hj.Grid.from_lattice_parameters_and_boundary_conditions(domain, shape, periodic_dims=periodic)


class _Undisturbed(hj.ControlAndDisturbanceAffineDynamics):
    """Control within `[-bounds, bounds]` that maximises V, and nobody else who acts.

    Bounds are NumPy's, so that one object serves single and double precision. The methods return arrays; of their
    unannotated originals type checkers infer None.
    """

    def __init__(self, *bounds: float):
        most, nothing = np.asarray(bounds), np.zeros(1)
        super().__init__("max", "min", hj.sets.Box(-most, most), hj.sets.Box(nothing, nothing))

    def disturbance_jacobian(self, state: Array, time: Array) -> Any:
        return jnp.zeros((state.shape[0], 1))


class _Unicycle(_Undisturbed):
    def open_loop_dynamics(self, state: Array, time: Array) -> Any:
        distance, speed, direction = state
        return jnp.stack([speed * jnp.cos(direction), 0 * speed, -speed / distance * jnp.sin(direction)])

    def control_jacobian(self, state: Array, time: Array) -> Any:
        return jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


class _DoubleIntegrator(_Undisturbed):
    def open_loop_dynamics(self, state: Array, time: Array) -> Any:
        return jnp.stack([state[1], 0 * state[1]])

    def control_jacobian(self, state: Array, time: Array) -> Any:
        return jnp.array([[0.0], [1.0]])


# The solver compiles anew for every Dynamics object, equal or not.
@functools.lru_cache
def _unicycle(acceleration: float, turn_rate: float) -> _Unicycle:
    return _Unicycle(acceleration, turn_rate)


@functools.lru_cache
def _double_integrator(acceleration: float) -> _DoubleIntegrator:
    return _DoubleIntegrator(acceleration)
