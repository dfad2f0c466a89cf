"""Replay of Point-Circle in closed form: the environment that is trained on."""

import jax
import jax.numpy as jnp
import numpy as np

from safemeta.tasks import circle, point
from safemeta.tasks.trace import MaxError, Replay, Trace, TraceError, largest


def replay_point_circle(trace: Trace) -> Replay:
    """Point-Circle in closed form.

    MuJoCo's slide joints are attached to the body at reset: its x and y are along the axes that the robot had there.
    """
    try:
        radius = float(trace.meta["object/circle"]["radius"])
        walls = trace.meta["object/sigwalls"]
        count, wall = int(walls["num"]), float(walls["locate_factor"])
        body = trace.meta["body_names"].index("agent")
        origin = np.asarray(trace.meta["body_pos"][body][:2], float)
        w, _, _, z = (float(number) for number in trace.meta["body_quat"][body])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TraceError(f"{trace.file}: its 'meta' does not describe a Point robot, a circle and walls") from error
    clock = trace.meta.get("timestep"), trace.meta.get("substeps")
    if clock != (point.TIMESTEP, point.SUBSTEPS):
        raise TraceError(f"{trace.file} has physics steps of {clock[0]} s, {clock[1]} to an action, not 0.002 s and 10")
    if count != 2:
        raise TraceError(f"{trace.file} has {count} walls, which cannot be replayed")
    steps = trace.arrays["action"].shape[0] if "action" in trace.arrays and trace.arrays["action"].ndim else 0
    if steps < 1:
        raise TraceError(f"{trace.file} holds no steps")
    action = trace.array("action", steps, circle.ACTION_SIZE)
    qpos, qvel = trace.array("qpos", steps + 1, 3), trace.array("qvel", steps + 1, 3)
    observation = trace.array("obs_flat", steps + 1, circle.OBSERVATION_SIZE)
    reward, cost = trace.array("reward", steps), trace.array("cost", steps)

    start = 2 * np.arctan2(z, w)
    axes = np.array([[np.cos(start), -np.sin(start)], [np.sin(start), np.cos(start)]])  # columns: the axes at reset
    with jax.enable_x64(True):
        place = jnp.asarray(origin + qpos[:, :2] @ axes.T)
        turned = jnp.asarray(qpos[:, 2])
        u, v = jnp.asarray(qvel[:, 0]), jnp.asarray(qvel[:, 1])
        cos, sin = jnp.cos(turned), jnp.sin(turned)
        rows = point.PointState(
            place[:, 0], place[:, 1], start + turned, cos * u + sin * v, cos * v - sin * u, jnp.asarray(qvel[:, 2])
        )
        before = jax.tree.map(lambda leaf: leaf[:-1], rows)
        parameters = {"radius": jnp.asarray(radius), "wall": jnp.asarray(wall)}
        step = jax.jit(jax.vmap(circle.PointCircle().step, in_axes=(None, 0, 0)))
        state, result = step(parameters, before, jnp.asarray(action))
        first = circle.observe(jax.tree.map(lambda leaf: leaf[0], rows), jnp.zeros(circle.ACTION_SIZE))

        local = (np.stack([state.x, state.y], axis=-1) - origin) @ axes
        turned = np.asarray(state.yaw) - start
        cos, sin = np.cos(turned), np.sin(turned)
        forward, left = np.asarray(state.forward), np.asarray(state.left)
        velocity = np.stack([cos * forward - sin * left, sin * forward + cos * left, state.yaw_rate], axis=-1)
        seen = np.concatenate([np.asarray(first)[None], np.asarray(result.observation)])
        ours, agreed = np.asarray(result.reward), np.asarray(result.costs)[:, 0] == cost
    return Replay(
        file=trace.file,
        steps=steps,
        skipped=[],
        max_error=MaxError(
            qpos=largest(np.column_stack([local, turned]), qpos[1:]),
            qvel=largest(velocity, qvel[1:]),
            observation=largest(seen, observation),
            reward=largest(ours, reward),
        ),
        cost_agreement=float(agreed.mean()),
    )
