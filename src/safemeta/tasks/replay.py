"""`python -m safemeta.tasks.replay TRACE.npz`: hold safemeta's physics against a trace of the original environment.

The replay is re-synchronised at every step: the state of row t is set, the action of row t applied, the result compared
with row t + 1. Whole episodes cannot be compared: the Point robot's yaw servo chatters, so that two exact
implementations that differ in the last bit separate within a few control steps.

A trace is an `.npz` without pickled objects: `meta` (a JSON string with the names, sizes and places of everything in
the model) and arrays over time, row 0 being the state after reset. All comparisons are in float64. Errors are the
largest absolute differences; `cost_agreement` is the share of steps whose cost is equal. Exit code 2, and one sentence
on standard error, for a file that cannot be replayed.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

REPLAYABLE = "Point-Circle (SafetyPointCircle*, SafetyPointStcircle*: Point robot, two walls, no hazards)"


class TraceError(ValueError):
    """A trace that cannot be replayed; the message is one sentence for the user."""


@dataclass(frozen=True)
class Trace:
    """A recorded episode: `meta` and the arrays over time."""

    file: str
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def array(self, name: str, *shape: int) -> np.ndarray:
        """A finite array whose shape is as expected. Raises `TraceError`."""
        if name not in self.arrays:
            raise TraceError(f"{self.file} is not a complete trace: it has no array {name!r}")
        array = self.arrays[name]
        if array.shape != shape:
            raise TraceError(f"{self.file}: {name!r} has shape {array.shape}, not {shape}")
        if not (np.issubdtype(array.dtype, np.number) and np.isfinite(array).all()):
            raise TraceError(f"{self.file}: {name!r} holds something else than finite numbers")
        return array


@dataclass(frozen=True)
class MaxError:
    """Largest absolute differences: m and rad, m/s and rad/s, observation and reward in their own units."""

    qpos: float
    qvel: float
    observation: float
    reward: float


@dataclass(frozen=True)
class Replay:
    """The outcome. `skipped` names what was left out of the comparison, and why."""

    file: str
    steps: int
    skipped: list[str]
    max_error: MaxError
    cost_agreement: float


def load(file: str | Path) -> Trace:
    """A trace from disk. Raises `TraceError` where the file is missing, damaged or no trace."""
    path = Path(file)
    if not path.is_file():
        raise TraceError(f"{path} does not exist or is not a file")
    try:
        # Opened here, since numpy leaves a file that it opened itself open where it turns out to be damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen unrelated types on damaged bytes
        raise TraceError(f"{path} cannot be read as an .npz trace ({type(error).__name__})") from error
    try:
        meta = json.loads(str(arrays.pop("meta")))
    except (KeyError, json.JSONDecodeError) as error:
        raise TraceError(f"{path} is not a trace: it has no readable 'meta'") from error
    if not isinstance(meta, dict):
        raise TraceError(f"{path} is not a trace: its 'meta' is not an object")
    return Trace(str(file), meta, arrays)


def replay(file: str | Path) -> Replay:
    """Replay a trace with the world that it was recorded from. Raises `TraceError`."""
    trace = load(file)
    recorded = trace.meta.get("env_id") or "/".join(str(trace.meta.get(key, "?")) for key in ("domain", "task"))
    name = str(recorded).lower()
    if not name.startswith(("safetypointcircle", "safetypointstcircle")) or "object/hazards" in trace.meta:
        raise TraceError(
            f"{trace.file} was recorded from {recorded}, which cannot be replayed yet; can be: {REPLAYABLE}"
        )
    return _point_circle(trace)


def _point_circle(trace: Trace) -> Replay:
    """Point-Circle in closed form.

    MuJoCo's slide joints are attached to the body at reset: its x and y are along the axes that the robot had there.
    """
    import jax
    import jax.numpy as jnp

    from safemeta.tasks import circle, point

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
        raise TraceError(f"{trace.file} has {count} walls, which cannot be replayed yet; can be: {REPLAYABLE}")
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
            qpos=_largest(np.column_stack([local, turned]), qpos[1:]),
            qvel=_largest(velocity, qvel[1:]),
            observation=_largest(seen, observation),
            reward=_largest(ours, reward),
        ),
        cost_agreement=float(agreed.mean()),
    )


def _largest(ours: np.ndarray, recorded: np.ndarray) -> float:
    return float(np.abs(ours - recorded).max())


def _table(outcome: Replay) -> str:
    lines = [f"{outcome.file}: {outcome.steps} steps, re-synchronised at each"]
    lines += [f"  largest error in {name:<12} {error:.2e}" for name, error in asdict(outcome.max_error).items()]
    lines.append(f"  steps with equal cost         {outcome.cost_agreement:.2%}")
    lines += [f"  skipped: {reason}" for reason in outcome.skipped]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m safemeta.tasks.replay", description="Hold safemeta's physics against a recorded trace."
    )
    parser.add_argument("trace", help="an .npz trace; can be replayed: " + REPLAYABLE)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    try:
        outcome = replay(options.trace)
    except TraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(outcome)) if options.json else _table(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main())
