"""Environment steps per second of tasks in pure JAX: `python benchmarks/rollout.py [--task NAME] [--json]`.

Ours is `world.collect` or `world.measure` with a tanh 64x64 Gaussian policy inside: observations, noise, actions,
rewards and costs included, and for `collect` everything stored. Peers:

- the original, stepped alone with random actions by one process, without a policy: a recorded number, from another
  machine, perhaps a slower one (`point-circle`: Safety-Gymnasium 1.0.0; `realworld-cartpole`: dm_control 1.0.50);
- the same model stepped by MuJoCo's C engine in this same run, all threads, physics alone (no policy, observation,
  reward or reset), for the same two tasks. Skipped with a note where mujoco is not installed;
- what no environment can be faster than: the same rollout, policy included, in a world where nothing happens.

Best of several repeats, which alternate with those of the peers, so that a busy machine slows all. Compilation is
apart.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _table import Row, print_json
from jaxtyping import Array, PRNGKeyArray

from safemeta.nets import GaussianPolicy
from safemeta.sim import FunctionalWorld, Parameters, Step
from safemeta.tasks import make, names

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
CARTPOLE = """
<mujoco>
  <option timestep="0.01" integrator="RK4"><flag contact="disable"/></option>
  <worldbody>
    <body name="cart">
      <joint name="slider" type="slide" axis="1 0 0" damping="0.0005"
             range="-1.8 1.8" limited="true" solreflimit="0.08 1"/>
      <geom type="box" size="0.2 0.15 0.1" mass="1"/>
      <body name="pole">
        <joint type="hinge" axis="0 1 0" damping="2e-6"/>
        <geom type="capsule" fromto="0 0 0 0 0 1" size="0.045" mass="0.1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slider" gear="10" ctrlrange="-1 1" ctrllimited="true"/></actuator>
</mujoco>
"""


@dataclass(frozen=True)
class Original:
    """What a task is compared with: recorded steps/s of the original, its model, physics steps to a control step."""

    name: str
    rate: float
    model: str
    substeps: int


ORIGINALS = {  # recorded on a quiet machine, one process, random actions
    "point-circle": Original("Safety-Gymnasium 1.0.0 without policy", 2700, POINT, 10),
    "realworld-cartpole": Original("dm_control 1.0.50 without policy", 4039, CARTPOLE, 1),
}


class RandomPolicy(eqx.Module):
    """Uniform actions: what simulators are timed with."""

    size: int

    def act(self, observation: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        """An action in [-1, 1], and nothing for its density."""
        return jax.random.uniform(key, (self.size,), observation.dtype, -1.0, 1.0), jnp.zeros((), observation.dtype)


@dataclass(frozen=True)
class Idle:
    """An environment where nothing happens, with observations and costs of another's sizes."""

    observation_size: int
    costs: int

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[Array, Array]:
        """A random observation, which is the state, too."""
        observation = jax.random.normal(key, (self.observation_size,))
        return observation, observation

    def step(self, parameters: Parameters, state: Array, action: Array) -> tuple[Array, Step]:
        """The observation as it was, moved by the action, lest the policy be computed once for all."""
        state = state + 1e-3 * action[0]
        return state, Step(state, action[0], jnp.zeros(self.costs, state.dtype), jnp.asarray(False))


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def mujoco_stepper(original: Original, rows: int, steps: int) -> tuple[str, Callable[[], object]] | None:
    """The C engine on all threads, `steps` control steps of `rows` robots; None where it is not installed."""
    try:
        mujoco, rollout = (importlib.import_module(name) for name in ("mujoco", "mujoco.rollout"))
    except ImportError:
        return None
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = mujoco.MjModel.from_xml_string(original.model)
    data = [mujoco.MjData(model) for _ in range(threads)]
    size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
    initial = np.zeros((rows, size))
    control = np.random.default_rng(0).uniform(-1, 1, (rows, steps, model.nu)).repeat(original.substeps, axis=1)
    pool = rollout.Rollout(nthread=threads)
    name = f"MuJoCo {mujoco.__version__} C engine, physics alone, {threads} threads"
    return name, lambda: pool.rollout(model, data, initial, control)


def measure(task: str, rows: int, repeats: int) -> list[Row]:
    """All cases of a task at one batch size."""
    world = make(task)
    if not isinstance(world, FunctionalWorld):
        raise SystemExit(f"{task} is not written in pure JAX")
    cmdp = world.cmdp
    tasks = world.sample(jax.random.key(1), max(1, rows // EPISODES))
    count = tasks.count * EPISODES
    steps = count * cmdp.horizon
    policy = GaussianPolicy.create(cmdp.observation_size, cmdp.action_size, jax.random.key(0))
    arrays, rest = eqx.partition(policy, eqx.is_array)
    own = eqx.combine(jax.tree.map(lambda leaf: jnp.repeat(leaf[None], tasks.count, 0), arrays), rest)
    still = FunctionalWorld(cmdp, Idle(cmdp.observation_size, len(cmdp.cost_names)), world.family)
    random = RandomPolicy(cmdp.action_size)
    cases: dict[str, Callable[[Array], object]] = {
        "collect, one policy": lambda key: world.collect(policy, tasks, key, EPISODES),
        "collect, one policy per task": lambda key: world.collect(own, tasks, key, EPISODES, per_task=True),
        "measure, one policy": lambda key: world.measure(policy, tasks, key, EPISODES),
        "measure, random actions": lambda key: world.measure(random, tasks, key, EPISODES),
    }
    limits: dict[str, Callable[[Array], object]] = {
        "collect, one policy": lambda key: still.collect(policy, tasks, key, EPISODES),
        "collect, one policy per task": lambda key: still.collect(own, tasks, key, EPISODES, per_task=True),
        "measure, one policy": lambda key: still.measure(policy, tasks, key, EPISODES),
        "measure, random actions": lambda key: still.measure(random, tasks, key, EPISODES),
    }
    first = {name: seconds(lambda run=run: run(jax.random.key(0))) for name, run in cases.items()}
    for run in limits.values():
        seconds(lambda run=run: run(jax.random.key(0)))
    original = ORIGINALS.get(task)
    mujoco_steps = max(1, min(cmdp.horizon, 20_000 // count))
    stepper = None if original is None else mujoco_stepper(original, count, mujoco_steps)
    best, best_limit, best_mujoco = (dict.fromkeys(cases, float("inf")) for _ in range(3))
    for repeat in range(repeats):
        key = jax.random.key(repeat)
        for name in cases:
            best[name] = min(best[name], seconds(lambda name=name, key=key: cases[name](key)))
            best_limit[name] = min(best_limit[name], seconds(lambda name=name, key=key: limits[name](key)))
            if stepper is not None:
                best_mujoco[name] = min(best_mujoco[name], seconds(stepper[1]))
    table = []
    for name in cases:
        value, case = steps / best[name], f"{task}: {name}, {count} rows"
        peers = {"the same where nothing happens": steps / best_limit[name]}
        if original is not None:
            peers[original.name] = original.rate
        if stepper is not None:
            peers[stepper[0]] = count * mujoco_steps / min(best_mujoco.values())
        table += [Row(case, value, "steps/s", peer, rate, value / rate) for peer, rate in peers.items()]
        table.append(Row(f"{case}: compilation", max(0.0, first[name] - best[name]), "s"))
    return table


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Environment steps per second of tasks in pure JAX.")
    parser.add_argument("--task", nargs="+", default=["point-circle"], choices=names(), metavar="NAME", help="of which")
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 400, 1000], help="batch sizes (episodes at once)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case; the best counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if min(options.rows) < 1 or options.repeats < 1:
        parser.error("--rows and --repeats must be at least 1")
    table = [row for task in options.task for rows in options.rows for row in measure(task, rows, options.repeats)]
    if ORIGINALS.keys() & set(options.task) and not any(row.peer and row.peer.startswith("MuJoCo") for row in table):
        print("note: mujoco is not installed, so the physical comparison was left out", file=sys.stderr)
    if options.json:
        print_json("rollout", table)
        return 0
    for row in table:
        against = f"{row.ratio:8.1f} x {row.peer} ({row.peer_value:,.0f})" if row.peer else ""
        print(f"{row.case:<66} {row.value:>12,.{1 if row.unit == 's' else 0}f} {row.unit:<8}{against}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
