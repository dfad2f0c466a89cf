"""Replay of the navigation tasks: all steps of a trace at once, one row to a step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from safemeta.sim.mujoco import Placement, engine_of
from safemeta.tasks import point
from safemeta.tasks.button import Button
from safemeta.tasks.circle_scene import Circle
from safemeta.tasks.goal import GOALS, Goal
from safemeta.tasks.robots import Car, Point
from safemeta.tasks.scene import MujocoScene, Scene, SceneState, body_of
from safemeta.tasks.trace import MaxError, Replay, Trace, TraceError, largest

NOT_MODELLED = ("vases", "gremlins")
TOUCHING = 0.4  # m between centres, beyond which a robot cannot touch a vase or a gremlin


def replay_navigation(trace: Trace) -> Replay:
    """Circle, Button, Goal and Push of Safety-Gymnasium, in Meta-CPO's variants too, with Point or Car.

    The Point robot goes by its closed form where nothing can be touched, else by MuJoCo, as in the task families. What
    safemeta does not model is left out of the comparison; so are the steps at which the robot may have touched it.
    Raises `TraceError`.
    """
    try:
        return _replay(trace)
    except (KeyError, TypeError, IndexError) as error:
        raise TraceError(f"{trace.file}: its 'meta' does not describe a robot and its task ({error})") from error


def _replay(trace: Trace) -> Replay:
    meta, arrays = trace.meta, trace.arrays
    objects = {name[7:]: values for name, values in meta.items() if name.startswith("object/")}
    scene, parameters = _scene_of(objects)
    car = str(meta["env_id"]).startswith("SafetyCar")
    robot = Car() if car else Point()
    steps = arrays["action"].shape[0]
    action = trace.array("action", steps, 2)
    skipped = [name for name in objects if name in NOT_MODELLED]

    with jax.enable_x64(True):
        qpos, qvel = _coordinates(trace, steps, car)
        rows = steps + 1
        state = _states(trace, objects, scene, rows)
        given = jax.tree.map(lambda value: jnp.full(steps, value, float), parameters)
        before = jax.tree.map(lambda leaf: leaf[:-1], state)
        after = jax.tree.map(lambda leaf: leaf[1:], state)

        if scene.reads or car:
            environment = MujocoScene(robot, scene)
            engine = engine_of(environment)
            solids = jax.vmap(scene.solids)(state) if scene.reads else jnp.zeros((rows, 0, 3))
            placement = Placement(jnp.asarray(qpos), jnp.asarray(qvel), solids)
            session, readings = engine.start(jax.tree.map(lambda leaf: leaf[:-1], placement))
            started = engine.named(jnp.asarray(readings))
            moved = engine.named(jnp.asarray(engine.advance(session, action, None, np.ones(steps, bool))))
            data = engine.data(session)
            ours_qpos, ours_qvel = np.stack([d.qpos for d in data]), np.stack([d.qvel for d in data])
            engine.finish(session)
            old, new = jax.vmap(robot.body)(started), jax.vmap(robot.body)(moved)
        else:
            started = moved = {}
            old_state = _point_state(qpos[:-1], qvel[:-1])
            new_state = point.advance(old_state, jnp.asarray(action))
            old = jax.vmap(body_of)(old_state, jnp.zeros((steps, 2)))
            new = jax.vmap(body_of)(new_state, jnp.asarray(action))
            ours_qpos = np.stack([new_state.x, new_state.y, new_state.yaw], axis=1)
            ours_qvel = np.column_stack([np.asarray(new.velocity), np.asarray(new_state.yaw_rate)])

        begun = jax.vmap(scene.begin)(given, before, old, started)
        ended, reward, costs = jax.vmap(scene.step)(given, begun, new, moved)
        # The next goal is drawn at random: that of the trace is put in its place. The timer is our own.
        shown = _with_goal(ended, after)
        seen = np.concatenate([new.sensors, jax.vmap(scene.look)(given, shown, new, moved)], axis=1)
        total = np.asarray(jnp.any(costs > 0, axis=1), float)

    recorded = np.concatenate(
        [
            arrays[f"obs/{name}"][1:].reshape(steps, -1)
            for name in meta["obs_layout"]
            if not name.startswith(NOT_MODELLED)
        ],
        axis=1,
    )
    infos = [{name: cost for name, cost in info.items() if name != "cost_sum"} for info in meta["infos"][:steps]]
    known = [[cost for name, cost in info.items() if not name.endswith(NOT_MODELLED)] for info in infos]
    cost = np.array([float(any(value > 0 for value in values)) for values in known])

    usable = _untouched(trace, skipped, qpos[:-1], steps)
    if not usable.all():
        skipped = [*skipped, f"{int((~usable).sum())} steps within reach of them"]
    if car:
        usable[0] = False
        skipped = [*skipped, "first step (whether wheels that just touch the floor carry is left to rounding)"]
    return Replay(
        file=trace.file,
        steps=int(usable.sum()),
        skipped=skipped,
        max_error=MaxError(
            qpos=largest(ours_qpos[usable], qpos[1:][usable]),
            qvel=largest(ours_qvel[usable], qvel[1:][usable]),
            observation=largest(seen[usable], recorded[usable]),
            reward=largest(np.asarray(reward)[usable], arrays["reward"][usable]),
        ),
        cost_agreement=float((total == cost)[usable].mean()),
    )


def _scene_of(objects: dict[str, Any]) -> tuple[Scene, dict[str, Any]]:
    """The scene that a trace was recorded in, and its parameters."""
    hazards = objects.get("hazards", {"num": 0, "size": 0.2})
    if "circle" in objects:
        walls = objects["sigwalls"]
        scene = Circle(hazards["num"], hazards["size"], walls=walls["num"])
        return scene, {
            "radius": objects["circle"]["radius"],
            "wall": walls["locate_factor"],
            "hazards": hazards["num"],
        }
    if "buttons" in objects:
        buttons = objects["buttons"]["num"]
        return Button(buttons, hazards["num"], hazards["size"]), {"buttons": buttons, "hazards": hazards["num"]}
    pillars = objects.get("pillars", {"num": 0, "size": 0.2, "is_constrained": False})
    scene = Goal(
        most_hazards=hazards["num"],
        most_pillars=pillars["num"],
        push="push_box" in objects,
        hazard_size=hazards["size"],
        pillar_size=pillars["size"],
        pillars_cost=pillars["is_constrained"],
        goal_size=objects["goal"]["size"],
    )
    return scene, {"hazards": hazards["num"], "pillars": pillars["num"]}


def _coordinates(trace: Trace, steps: int, car: bool) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of robot and box in the world, row by row.

    The Point robot's slide joints were attached to the body at reset: its x and y are along the axes that it had there.
    """
    names, widths = trace.meta["joint_names"], {"x": 1, "y": 1, "z": 1, "agent": 7, "left": 1, "right": 1, "rear": 4}
    wanted: list[int] = []
    speeds: list[int] = []
    column = speed = 0
    for name in names:
        width = widths.get(name, 7)
        degrees = {7: 6, 4: 3}.get(width, width)
        if name in widths or name == "push_box":
            wanted += range(column, column + width)
            speeds += range(speed, speed + degrees)
        column, speed = column + width, speed + degrees
    expected = (13 if car else 3) + 7 * ("push_box" in names)
    if len(wanted) != expected:
        raise TraceError(f"{trace.file} has {len(wanted)} coordinates of robot and box, not {expected}")
    qpos = trace.array("qpos", steps + 1, column)[:, wanted]
    qvel = trace.array("qvel", steps + 1, speed)[:, speeds]
    if not car:
        body = trace.meta["body_names"].index("agent")
        w, _, _, z = trace.meta["body_quat"][body]
        start = 2 * np.arctan2(z, w)
        axes = np.array([[np.cos(start), -np.sin(start)], [np.sin(start), np.cos(start)]])
        qpos[:, :2] = np.asarray(trace.meta["body_pos"][body][:2]) + qpos[:, :2] @ axes.T
        qpos[:, 2] += start
        qvel[:, :2] = qvel[:, :2] @ axes.T
    return qpos, qvel


def _states(trace: Trace, objects: dict[str, Any], scene: Scene, rows: int) -> SceneState:
    """What the scene remembers at each row, distances apart."""
    places = {
        name: jnp.asarray(trace.array(f"objpos/{name}", rows, objects[name]["num"], 3)[..., :2])
        for name in ("hazards", "buttons", "pillars")
        if name in objects
    }
    zero = jnp.zeros(rows)
    if isinstance(scene, Circle):
        return SceneState(places, {})
    if isinstance(scene, Button):
        key = jnp.broadcast_to(jax.random.key_data(jax.random.key(0)), (rows, 2))
        goal = jnp.asarray(trace.array("goal_button", rows), jnp.int32)
        timer = jnp.asarray(trace.array("button_timer", rows), jnp.int32)
        return SceneState(places, {"goal": goal, "timer": timer, "distance": zero, "key": key})
    nothing = jnp.zeros((rows, 0, 2))
    goal = jnp.asarray(trace.array("objpos/goal", rows, 1, 3)[:, 0, :2])
    candidates = jnp.zeros((rows, GOALS, 2))
    memory = {"goal": goal, "candidates": candidates, "next": jnp.zeros(rows, jnp.int32)}
    return SceneState(
        {"hazards": nothing, "pillars": nothing, **places}, {**memory, "distance": zero, "box_distance": zero}
    )


def _with_goal(state: SceneState, recorded: SceneState) -> SceneState:
    if "goal" not in state.memory:
        return state
    return SceneState(state.objects, {**state.memory, "goal": recorded.memory["goal"]})


def _point_state(qpos: np.ndarray, qvel: np.ndarray) -> point.PointState:
    x, y, yaw = jnp.asarray(qpos).T
    u, v, rate = jnp.asarray(qvel).T
    cos, sin = jnp.cos(yaw), jnp.sin(yaw)
    return point.PointState(x, y, yaw, cos * u + sin * v, cos * v - sin * u, rate)


def _untouched(trace: Trace, skipped: list[str], qpos: np.ndarray, steps: int) -> np.ndarray:
    """Steps at which the robot is out of reach of everything that safemeta does not model."""
    usable = np.ones(steps, bool)
    for name in skipped:
        places = trace.arrays[f"objpos/{name}"][:-1, :, :2]
        usable &= np.linalg.norm(places - qpos[:, None, :2], axis=-1).min(1) > TOUCHING
    return usable
