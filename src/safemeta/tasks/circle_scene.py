"""The circle task for robots that MuJoCo steps, with or without hazards."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.sim import Parameters
from safemeta.sim.mujoco import Reading
from safemeta.tasks.circle import LIDAR_REACH, circle_reward
from safemeta.tasks.layout import sample_layout
from safemeta.tasks.robots import Body
from safemeta.tasks.scene import SceneState, Start, any_cost, distances, lidar


@dataclass(frozen=True)
class Circle:
    """Run along a circle of radius `radius` (m) that reaches beyond walls at `wall` (m) on both sides.

    Task parameters: `radius`, `wall` and, where there are hazards, their number `hazards`
    and the half width `extent` (m) of the square that they lie in. Observation: lidar of the
    circle's centre, and of the hazards. Reward as in `circle.py`. Costs: `out_of_bounds`, |x| > wall (with four
    walls also |y| > wall); `hazards`, the robot's centre inside one. Both are 0 or 1. Hazards are kept away from the
    centre, the walls' middles and the robot's start (Safety-Gymnasium's Circle; Meta-CPO's car_circle).
    """

    most_hazards: int = 0
    hazard_size: float = 0.12
    hazard_keepout: float = 0.4
    start: float = 0.2  # m, half width of the square that the robot starts in
    walls: int = 2
    reads: tuple[str, ...] = ()

    @property
    def costs(self) -> tuple[str, ...]:
        return ("out_of_bounds", "hazards") if self.most_hazards else ("out_of_bounds",)

    @property
    def lidar_bins(self) -> int:
        return 32 if self.most_hazards else 16

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[SceneState, Start, Bool[Array, ""]]:
        start_key, layout_key = jax.random.split(key)
        dtype = parameters["radius"].dtype
        uniform = jax.random.uniform(start_key, (3,), dtype)
        place = self.start * (2 * uniform[:2] - 1)
        start = Start(place[0], place[1], 2 * jnp.pi * uniform[2])
        if not self.most_hazards:
            return SceneState({}, {}), start, jnp.asarray(True)
        wall, zero = parameters["wall"], jnp.zeros((), dtype)
        fixed = jnp.stack(
            [place, jnp.zeros(2, dtype), jnp.stack([wall, zero]), jnp.stack([-wall, zero])]
            + ([jnp.stack([zero, wall]), jnp.stack([zero, -wall])] if self.walls == 4 else [])
        )
        hazards, found = sample_layout(
            layout_key,
            jnp.broadcast_to(parameters["extent"], self.most_hazards),
            jnp.full(self.most_hazards, self.hazard_keepout, dtype),
            jnp.arange(self.most_hazards) < parameters["hazards"],
            fixed,
            jnp.zeros(fixed.shape[0], dtype),
        )
        return SceneState({"hazards": hazards}, {}), start, found

    def begin(self, parameters: Parameters, state: SceneState, body: Body, reading: Reading) -> SceneState:
        return state

    def look(self, parameters: Parameters, state: SceneState, body: Body, reading: Reading) -> Float[Array, " bins"]:
        centre = lidar(body, jnp.zeros((1, 2), body.position.dtype), LIDAR_REACH)
        if not self.most_hazards:
            return centre
        return jnp.concatenate([centre, lidar(body, state.objects["hazards"], LIDAR_REACH)])

    def step(
        self, parameters: Parameters, state: SceneState, body: Body, reading: Reading
    ) -> tuple[SceneState, Float[Array, ""], Float[Array, " costs"]]:
        x, y = body.position[0], body.position[1]
        reward = circle_reward(x, y, body.velocity[0], body.velocity[1], parameters["radius"])
        outside = jnp.abs(x) > parameters["wall"]
        if self.walls == 4:
            outside = outside | (jnp.abs(y) > parameters["wall"])
        costs = [outside.astype(x.dtype)]
        if self.most_hazards:
            costs.append(any_cost(self.hazard_size - distances(body, state.objects["hazards"])))
        return state, reward, jnp.stack(costs)

    def add_to(self, spec: Any, robot: str) -> None:
        """Nothing here can be touched."""

    def solids(self, state: SceneState) -> Float[Array, "solids 3"]:
        return jnp.zeros((0, 3))

    def loose(self, state: SceneState) -> Float[Array, " coordinates"]:
        return jnp.zeros(0)
