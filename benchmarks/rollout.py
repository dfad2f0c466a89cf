"""Environment steps per second on Point-Circle: `python benchmarks/rollout.py [--json]`.

Ours is `world.collect` or `world.measure` with a tanh 64x64 Gaussian policy inside: observations, noise, actions,
rewards and costs included, and for `collect` everything stored. One environment step is 10 physics steps. Peers:

- Safety-Gymnasium 1.0.0, stepped alone with random actions by one process, without a policy: a recorded number, from
  another machine, perhaps a slower one;
- the same robot stepped by MuJoCo's C engine in this same run, all threads, physics alone (no policy, observation,
  reward or reset). Skipped with a note where mujoco is not installed.

Best of several repeats, which alternate with those of MuJoCo, so that a busy machine slows both. Compilation is apart.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from safemeta.nets import GaussianPolicy
from safemeta.tasks import make

SAFETY_GYMNASIUM = 2700  # steps/s, SafetyPointCircle1-v0, quiet machine: reference field.md, "Speeds to beat"
EPISODES = 10  # to each task, as the dual-method paper collects
POINT = """
<mujoco>
  <option timestep="0.002"/>
  <default><geom condim="6" density="1"/></default>
  <worldbody>
    <geom type="plane" size="3.5 3.5 0.1"/>
    <body pos="0 0 0.1">
      <joint type="slide" axis="1 0 0" damping="0.01"/>
      <joint type="slide" axis="0 1 0" damping="0.01"/>
      <joint name="yaw" axis="0 0 1" damping="0.005"/>
      <geom type="sphere" size="0.1" friction="1 0.01 0.01"/>
      <geom type="box" pos="0.1 0 0" size="0.05 0.05 0.05"/>
      <site name="agent"/>
    </body>
  </worldbody>
  <actuator>
    <motor site="agent" gear="0.3 0 0 0 0 0" forcerange="-0.05 0.05" forcelimited="true"/>
    <velocity joint="yaw" gear="0.3" kv="1" forcerange="-0.05 0.05" forcelimited="true"/>
  </actuator>
</mujoco>
"""


@dataclass(frozen=True)
class Row:
    """One line of the table; `ratio` above one means better than the peer."""

    case: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None


class RandomPolicy(eqx.Module):
    """Uniform actions: what simulators are timed with."""

    def act(self, observation: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        """An action in [-1, 1], and nothing for its density."""
        return jax.random.uniform(key, (2,), observation.dtype, -1.0, 1.0), jnp.zeros((), observation.dtype)


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def mujoco_stepper(rows: int, steps: int) -> tuple[str, Callable[[], object]] | None:
    """The C engine on all threads, `steps` control steps of `rows` robots; None where it is not installed."""
    try:
        mujoco, rollout = (importlib.import_module(name) for name in ("mujoco", "mujoco.rollout"))
    except ImportError:
        return None
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = mujoco.MjModel.from_xml_string(POINT)
    data = [mujoco.MjData(model) for _ in range(threads)]
    size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
    initial = np.zeros((rows, size))
    control = np.random.default_rng(0).uniform(-1, 1, (rows, steps, model.nu)).repeat(10, axis=1)
    pool = rollout.Rollout(nthread=threads)
    name = f"MuJoCo {mujoco.__version__} C engine, physics alone, {threads} threads"
    return name, lambda: pool.rollout(model, data, initial, control)


def measure(rows: int, repeats: int) -> list[Row]:
    """All cases at one batch size."""
    world = make("point-circle")
    tasks = world.sample(jax.random.key(1), max(1, rows // EPISODES))
    count = tasks.count * EPISODES
    steps = count * world.cmdp.horizon
    policy = GaussianPolicy.create(world.cmdp.observation_size, world.cmdp.action_size, jax.random.key(0))
    arrays, rest = eqx.partition(policy, eqx.is_array)
    own = eqx.combine(jax.tree.map(lambda leaf: jnp.repeat(leaf[None], tasks.count, 0), arrays), rest)
    cases = {
        "collect, one policy": lambda key: world.collect(policy, tasks, key, EPISODES),
        "collect, one policy per task": lambda key: world.collect(own, tasks, key, EPISODES, per_task=True),
        "measure, one policy": lambda key: world.measure(policy, tasks, key, EPISODES),
        "measure, random actions": lambda key: world.measure(RandomPolicy(), tasks, key, EPISODES),
    }
    first = {name: seconds(lambda run=run: run(jax.random.key(0))) for name, run in cases.items()}
    best = dict.fromkeys(cases, float("inf"))
    mujoco_steps = max(1, min(world.cmdp.horizon, 20_000 // count))
    stepper = mujoco_stepper(count, mujoco_steps)
    best_mujoco = float("inf")
    for repeat in range(repeats):
        for name, run in cases.items():
            best[name] = min(best[name], seconds(lambda run=run, repeat=repeat: run(jax.random.key(repeat))))
        if stepper is not None:
            best_mujoco = min(best_mujoco, seconds(stepper[1]))
    table = []
    for name in cases:
        value, case = steps / best[name], f"{name}, {count} rows"
        peer = "Safety-Gymnasium 1.0.0 without policy"
        table.append(Row(case, value, "steps/s", peer, SAFETY_GYMNASIUM, value / SAFETY_GYMNASIUM))
        if stepper is not None:
            rate = count * mujoco_steps / best_mujoco
            table.append(Row(case, value, "steps/s", stepper[0], rate, value / rate))
        table.append(Row(f"{case}: compilation", max(0.0, first[name] - best[name]), "s"))
    return table


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Environment steps per second on Point-Circle.")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 400, 1000], help="batch sizes (episodes at once)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case; the best counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if min(options.rows) < 1 or options.repeats < 1:
        parser.error("--rows and --repeats must be at least 1")
    table = [row for rows in options.rows for row in measure(rows, options.repeats)]
    if not any(row.peer and row.peer.startswith("MuJoCo") for row in table):
        print("note: mujoco is not installed, so the physical comparison was left out", file=sys.stderr)
    if options.json:
        print(json.dumps({"benchmark": "rollout", "rows": [asdict(row) for row in table]}))
        return 0
    for row in table:
        against = f"{row.ratio:8.1f} x {row.peer} ({row.peer_value:,.0f})" if row.peer else ""
        print(f"{row.case:<54} {row.value:>12,.{1 if row.unit == 's' else 0}f} {row.unit:<8}{against}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
