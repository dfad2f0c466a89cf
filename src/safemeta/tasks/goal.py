"""Goal and Push: reach a goal, or push a box to it, past hazards and pillars; then to the next goal."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.sim import Parameters
from safemeta.sim.mujoco import Reading
from safemeta.tasks.button import add_touch
from safemeta.tasks.layout import sample_layout
from safemeta.tasks.robots import Body
from safemeta.tasks.scene import SceneState, Start, any_cost, distances, lidar

GOALS = 64  # places for goals that are drawn at the beginning of an episode, each clear of what never moves
PILLAR_HALF_HEIGHT = 0.5  # m
ROBOT_RADIUS = 0.1  # m, of the Point; its arrow, which reaches 0.15 m ahead, is not counted (released code)
BOX_HEIGHT, GOAL_HEIGHT = 0.2, 0.16  # m, of the centres: Push measures distances in space
BOX = "box"


@dataclass(frozen=True)
class Goal:
    """Go to a goal, again and again, in a square of half width `extent` (m) with hazards or pillars.

    Task parameters: `extent`, and the numbers `hazards` and `pillars` of those that there may be. Observation: lidars
    of the goal, then of hazards, of pillars and of the box, as far as there are any. Reward: by how much (m) the robot
    came closer to the goal, and 1 at the goal, which then moves. With `push` there is a box: the reward is by how
    much the robot came closer to the box, and the box to the goal, and 1 where the box is at the goal. Costs:
    `hazards`, the robot's centre inside one (with `graded`, how deep); `pillars`, touching one (how many contacts).
    (Safety-Gymnasium's Goal and Push without vases; FAC-SIS's Hazards/Pillars-Goal/Push.)

    A new goal is the first of `GOALS` places, drawn at the beginning and clear of what never moves, that is clear of
    robot and box: the same as drawing until one is clear.
    """

    most_hazards: int = 0
    most_pillars: int = 0
    push: bool = False
    hazard_size: float = 0.2
    hazard_keepout: float = 0.18
    pillar_size: float = 0.2
    pillar_keepout: float = 0.3
    pillars_cost: bool = True
    goal_size: float = 0.3
    goal_keepout: float = 0.305
    robot_keepout: float = 0.4
    box_keepout: float = 0.2
    reach: float | None = 3.0
    graded: bool = False

    @property
    def costs(self) -> tuple[str, ...]:
        named = ("hazards",) if self.most_hazards else ()
        return (*named, "pillars") if self.most_pillars and self.pillars_cost else named

    @property
    def obstacles(self) -> int:
        """How many there may be."""
        return self.most_hazards + self.most_pillars

    @property
    def safe_distance(self) -> float:
        """From the robot's origin to an obstacle's centre (m): no cost from here on, however the robot is turned."""
        return max(
            self.hazard_size * bool(self.most_hazards), (self.pillar_size + ROBOT_RADIUS) * bool(self.most_pillars)
        )

    @property
    def lidar_bins(self) -> int:
        return 16 * (1 + bool(self.most_hazards) + bool(self.most_pillars) + self.push)

    @property
    def reads(self) -> tuple[str, ...]:
        touches = tuple(f"touched_pillar{index}" for index in range(self.most_pillars))
        return (*touches, BOX) if self.push else touches

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[SceneState, Start, Bool[Array, ""]]:
        layout_key, yaw_key, goal_key = jax.random.split(key, 3)
        dtype = parameters["extent"].dtype
        counts = {
            "robot": 1,
            "goal": 1,
            "hazards": self.most_hazards,
            "pillars": self.most_pillars,
            BOX: int(self.push),
        }
        keepouts = {
            "robot": self.robot_keepout,
            "goal": self.goal_keepout,
            "hazards": self.hazard_keepout,
            "pillars": self.pillar_keepout,
            BOX: self.box_keepout,
        }
        keepout = jnp.concatenate([jnp.full(count, keepouts[name], dtype) for name, count in counts.items()])
        present = jnp.concatenate([jnp.arange(count) < parameters.get(name, 1) for name, count in counts.items()])
        half_width = jnp.broadcast_to(parameters["extent"], keepout.shape)
        none = jnp.zeros((0, 2), dtype)
        places, found = sample_layout(layout_key, half_width, keepout, present, none, none[:, 0])
        objects, first = {}, 0
        for name, count in counts.items():
            objects[name] = places[first : first + count]
            first += count
        robot, goal, box = objects.pop("robot")[0], objects.pop("goal")[0], objects.pop(BOX)
        candidates = self._goals(parameters, objects, goal, goal_key)
        yaw = 2 * jnp.pi * jax.random.uniform(yaw_key, (2,), dtype)
        memory = {"goal": goal, "candidates": candidates, "next": jnp.zeros((), jnp.int32)}
        memory |= {"distance": jnp.zeros((), dtype), "box_distance": jnp.zeros((), dtype)}
        memory["clearance"] = jnp.zeros((self.obstacles, 2), dtype)
        if self.push:
            memory["box_start"] = jnp.concatenate([box[0], yaw[1:]])
        return SceneState(objects, memory), Start(robot[0], robot[1], yaw[0]), found

    def _goals(
        self, parameters: Parameters, objects: dict[str, Array], goal: Float[Array, " 2"], key: PRNGKeyArray
    ) -> Float[Array, "goals 2"]:
        """Places clear of what never moves; others are replaced by those that are, or by the first goal."""
        half_width = parameters["extent"] - self.goal_keepout
        drawn = half_width * jax.random.uniform(key, (GOALS, 2), goal.dtype, -1.0, 1.0)
        clear = jnp.ones(GOALS, bool)
        for name, keepout in (("hazards", self.hazard_keepout), ("pillars", self.pillar_keepout)):
            apart = jnp.sqrt(jnp.sum((drawn[:, None] - objects[name]) ** 2, axis=-1))
            clear = clear & jnp.all(apart >= keepout + self.goal_keepout, axis=1)
        order = jnp.argsort(~clear, stable=True)
        usable = jnp.arange(GOALS) < jnp.sum(clear)
        cycled = drawn[order][jnp.arange(GOALS) % jnp.maximum(jnp.sum(clear), 1)]
        return jnp.where(jnp.any(usable), cycled, goal)

    def begin(self, parameters: Parameters, state: SceneState, body: Body, reading: Reading) -> SceneState:
        memory = {**state.memory, **self._distances(state.memory["goal"], body, reading)}
        return SceneState(state.objects, {**memory, "clearance": self.clearance(state, body)})

    def look(self, parameters: Parameters, state: SceneState, body: Body, reading: Reading) -> Float[Array, " bins"]:
        seen = [lidar(body, state.memory["goal"][None], self.reach)]
        if self.most_hazards:
            seen.append(lidar(body, state.objects["hazards"], self.reach))
        if self.most_pillars:
            seen.append(lidar(body, state.objects["pillars"], self.reach))
        if self.push:
            seen.append(lidar(body, reading[BOX][None, :2], self.reach))
        return jnp.concatenate(seen)

    def step(
        self, parameters: Parameters, state: SceneState, body: Body, reading: Reading
    ) -> tuple[SceneState, Float[Array, ""], Float[Array, " costs"]]:
        memory, objects = state.memory, state.objects
        now = self._distances(memory["goal"], body, reading)
        reached = now["distance"] <= self.goal_size
        reward = memory["distance"] - now["distance"] + memory["box_distance"] - now["box_distance"] + reached
        costs = []
        if self.most_hazards:
            depth = self.hazard_size - distances(body, objects["hazards"])
            costs.append(jnp.sum(jnp.maximum(depth, 0)) if self.graded else any_cost(depth))
        if self.most_pillars and self.pillars_cost:
            contacts = jnp.stack([reading[f"touched_pillar{index}"][0] for index in range(self.most_pillars)])
            costs.append(jnp.sum(contacts) if self.graded else any_cost(contacts))
        moved, used = self._next_goal(memory, body, reading)
        goal = jnp.where(reached, moved, memory["goal"])
        memory = {**memory, "goal": goal, "next": jnp.where(reached, used, memory["next"])}
        memory |= {**self._distances(goal, body, reading), "clearance": self.clearance(state, body)}
        return SceneState(objects, memory), jnp.clip(reward, -10.0, 10.0), jnp.stack(costs)

    def clearance(self, state: SceneState, body: Body) -> Float[Array, "obstacles 2"]:
        """Distance (m) along the floor to the centre of each hazard and pillar, and its rate (m / s)."""
        places = jnp.concatenate([state.objects["hazards"], state.objects["pillars"]])
        towards = places - body.position[:2]
        apart = distances(body, places)
        return jnp.stack([apart, -(towards @ body.velocity) / apart], axis=1)

    def _distances(self, goal: Float[Array, " 2"], body: Body, reading: Reading) -> dict[str, Array]:
        """What has to become less: from the robot, or the box, to the goal; and from the robot to the box."""
        if not self.push:
            return {"distance": distances(body, goal[None])[0], "box_distance": jnp.zeros((), goal.dtype)}
        there = jnp.concatenate([goal, jnp.full(1, GOAL_HEIGHT, goal.dtype)])
        box = reading[BOX]
        return {
            "distance": jnp.sqrt(jnp.sum((box - there) ** 2)),
            "box_distance": jnp.sqrt(jnp.sum((box - body.position) ** 2)),
        }

    def _next_goal(self, memory: dict[str, Array], body: Body, reading: Reading) -> tuple[Float[Array, " 2"], Array]:
        """The first place, counted on from the last one used, that is clear of what moves."""
        candidates = memory["candidates"]
        clear = distances(body, candidates) >= self.robot_keepout + self.goal_keepout
        if self.push:
            apart = jnp.sqrt(jnp.sum((candidates - reading[BOX][:2]) ** 2, axis=-1))
            clear = clear & (apart >= self.box_keepout + self.goal_keepout)
        waiting = (jnp.arange(GOALS) - memory["next"]) % GOALS
        chosen = jnp.argmin(jnp.where(clear, waiting, waiting + GOALS))
        return candidates[chosen], ((chosen + 1) % GOALS).astype(jnp.int32)

    def add_to(self, spec: Any, robot: str) -> None:
        for index in range(self.most_pillars):
            pillar = spec.worldbody.add_body(name=f"pillar{index}", mocap=True, pos=(0, 0, -1000 - 2 * index))
            size = (self.pillar_size, PILLAR_HALF_HEIGHT, 0)
            pillar.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=size, density=1)
            add_touch(spec, f"touched_pillar{index}", robot, f"pillar{index}")
        if self.push:
            body = spec.worldbody.add_body(name=BOX, pos=(0, 0, BOX_HEIGHT))
            body.add_freejoint()
            kind, density = mujoco.mjtGeom.mjGEOM_BOX, 0.001
            body.add_geom(type=kind, size=(0.2, 0.2, 0.2), density=density)
            for x in (0.2, -0.2):
                for y in (0.2, -0.2):  # posts at the corners, so that a round robot can push straight
                    body.add_geom(type=kind, size=(0.1, 0.1, 0.2), pos=(x, y, 0), density=density)
            frame = mujoco.mjtSensor.mjSENS_FRAMEPOS
            spec.add_sensor(name=BOX, type=frame, objtype=mujoco.mjtObj.mjOBJ_XBODY, objname=BOX)

    def solids(self, state: SceneState) -> Float[Array, "solids 3"]:
        pillars = state.objects["pillars"]
        return jnp.concatenate([pillars, jnp.full_like(pillars[:, :1], PILLAR_HALF_HEIGHT)], axis=1)

    def loose(self, state: SceneState) -> Float[Array, " coordinates"]:
        if not self.push:
            return jnp.zeros(0)
        x, y, yaw = state.memory["box_start"]
        zero = jnp.zeros_like(x)
        return jnp.stack([x, y, BOX_HEIGHT + zero, jnp.cos(yaw / 2), zero, zero, jnp.sin(yaw / 2)])
