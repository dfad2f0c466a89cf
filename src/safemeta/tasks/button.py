"""Button tasks: press the button that is lit, no other one, and keep out of the hazards."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.sim import Parameters
from safemeta.sim.mujoco import Reading
from safemeta.tasks.layout import sample_layout
from safemeta.tasks.robots import Body
from safemeta.tasks.scene import SceneState, Start, any_cost, distances, lidar

BUTTON_RADIUS = 0.1  # m
PAUSE = 10  # control steps after a press during which all buttons are dark, and no press is wrong


@dataclass(frozen=True)
class Button:
    """Buttons and hazards in a square of half width `extent` (m): Safety-Gymnasium's Button without gremlins.

    Task parameters: `buttons` and `hazards` (how many), `extent`. Observation: lidars of the buttons (dark during the
    pause), of the lit one, and of the hazards. Reward: by how much (m) the robot came closer to the lit button,
    and 1 for touching it, whereupon another (or the same) is lit. Costs: `buttons`, touching a wrong one outside the
    pause; `hazards`, the robot's centre inside one. Both are 0 or 1.
    """

    most_buttons: int
    most_hazards: int
    hazard_size: float = 0.2
    hazard_keepout: float = 0.2
    button_keepout: float = 0.2
    goal_keepout: float = 0.4
    robot_keepout: float = 0.4
    reach: float | None = 3.0
    costs: tuple[str, ...] = ("buttons", "hazards")
    lidar_bins: int = 48

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(f"touched_button{index}" for index in range(self.most_buttons))

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[SceneState, Start, Bool[Array, ""]]:
        layout_key, yaw_key, own_key = jax.random.split(key, 3)
        dtype = parameters["extent"].dtype
        buttons, hazards = self.most_buttons, self.most_hazards
        # In the original's order: the robot, the buttons, a place for the goal that only takes room, the hazards.
        keepout = jnp.array(
            [self.robot_keepout]
            + [self.button_keepout] * buttons
            + [self.goal_keepout]
            + [self.hazard_keepout] * hazards,
            dtype,
        )
        present = jnp.concatenate(
            [
                jnp.ones(1, bool),
                jnp.arange(buttons) < parameters["buttons"],
                jnp.ones(1, bool),
                jnp.arange(hazards) < parameters["hazards"],
            ]
        )
        half_width = jnp.broadcast_to(parameters["extent"], keepout.shape)
        none = jnp.zeros((0, 2), dtype)
        places, found = sample_layout(layout_key, half_width, keepout, present, none, none[:, 0])
        objects = {"buttons": places[1 : 1 + buttons], "hazards": places[2 + buttons :]}
        yaw = jax.random.uniform(yaw_key, (), dtype, 0.0, 2 * jnp.pi)
        memory = {
            "goal": jnp.zeros((), jnp.int32),
            "timer": jnp.zeros((), jnp.int32),
            "distance": jnp.zeros((), dtype),
            "key": jax.random.key_data(own_key),
        }
        memory = self._light(parameters, memory)
        return SceneState(objects, memory), Start(places[0, 0], places[0, 1], yaw), found

    def begin(self, parameters: Parameters, state: SceneState, body: Body, reading: Reading) -> SceneState:
        apart = distances(body, state.objects["buttons"])[state.memory["goal"]]
        return SceneState(state.objects, {**state.memory, "distance": apart})

    def look(self, parameters: Parameters, state: SceneState, body: Body, reading: Reading) -> Float[Array, " bins"]:
        buttons = state.objects["buttons"]
        lit = lidar(body, buttons[state.memory["goal"]][None], self.reach)
        all_buttons = jnp.where(state.memory["timer"] > 0, 0.0, lidar(body, buttons, self.reach))
        return jnp.concatenate([all_buttons, lit, lidar(body, state.objects["hazards"], self.reach)])

    def step(
        self, parameters: Parameters, state: SceneState, body: Body, reading: Reading
    ) -> tuple[SceneState, Float[Array, ""], Float[Array, " costs"]]:
        memory = state.memory
        apart = distances(body, state.objects["buttons"])
        touched = jnp.stack([reading[name][0] for name in self.reads]) > 0
        goal = memory["goal"]
        pressed = touched[goal]
        reward = memory["distance"] - apart[goal] + pressed
        wrong = touched & (jnp.arange(self.most_buttons) != goal) & (memory["timer"] == 0)
        inside = self.hazard_size - distances(body, state.objects["hazards"])
        costs = jnp.stack([any_cost(wrong.astype(apart.dtype)), any_cost(inside)])
        relit = self._light(parameters, memory)
        timer = jnp.where(pressed, PAUSE, jnp.maximum(memory["timer"] - 1, 0))
        following = {name: jnp.where(pressed, relit[name], memory[name]) for name in ("goal", "key")}
        following |= {"timer": timer, "distance": apart[following["goal"]]}
        return SceneState(state.objects, following), reward, costs

    def _light(self, parameters: Parameters, memory: dict[str, Array]) -> dict[str, Array]:
        """Another button, which may be the same, and the key of the draw after it."""
        key, draw = jax.random.split(jax.random.wrap_key_data(memory["key"]))
        share = jax.random.uniform(draw, ())
        count = parameters["buttons"]
        goal = jnp.minimum(jnp.floor(share * count), count - 1).astype(jnp.int32)
        return {**memory, "goal": goal, "key": jax.random.key_data(key)}

    def add_to(self, spec: Any, robot: str) -> None:
        for index in range(self.most_buttons):
            button = spec.worldbody.add_body(name=f"button{index}", mocap=True, pos=(0, 0, -1000 - index))
            button.add_geom(
                name=f"button{index}", type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(BUTTON_RADIUS, 0, 0), density=1
            )
            add_touch(spec, f"touched_button{index}", robot, f"button{index}")

    def solids(self, state: SceneState) -> Float[Array, "solids 3"]:
        buttons = state.objects["buttons"]
        return jnp.concatenate([buttons, jnp.full_like(buttons[:, :1], BUTTON_RADIUS)], axis=1)

    def loose(self, state: SceneState) -> Float[Array, " coordinates"]:
        return jnp.zeros(0, state.objects["buttons"].dtype)


def add_touch(spec: Any, name: str, robot: str, body: str) -> None:
    """A sensor of the number of contacts between any part of a robot and a body."""
    found, no_reduction, one = 1, 0, 1
    spec.add_sensor(
        name=name,
        type=mujoco.mjtSensor.mjSENS_CONTACT,
        objtype=mujoco.mjtObj.mjOBJ_XBODY,
        objname=robot,
        reftype=mujoco.mjtObj.mjOBJ_BODY,
        refname=body,
        intprm=[found, no_reduction, one],
    )
