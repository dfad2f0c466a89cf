"""Environment steps per second of tasks on MuJoCo: `python benchmarks/simulation.py [--task NAME ...] [--json]`.

Ours is `world.collect` with a tanh 64x64 Gaussian policy inside: resets, observations, noise, actions, rewards, costs
and storage included. Peers, in the same run and on as many threads, alternating with ours:

- raw: one bare `mujoco.rollout` of the same model from the same states with the same controls, for the same number of
  steps. No Python, no policy, no observation, nothing brought up to date after a control step: no environment on this
  engine can be much faster;
- for locomotion, EnvPool and a single Gymnasium environment, both without a policy; for realworld, a single dm_control
  environment. Each where it is installed.

Rows that have ended are not stepped, and only steps that were taken count. The best of several repeats, which alternate
with those of the peers, so that a busy machine slows all.
"""

# pyright: reportAttributeAccessIssue=false

import argparse
import importlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from _table import Row, print_json
from mujoco import rollout

from safemeta.core import Tasks, World
from safemeta.nets import GaussianPolicy
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.mujoco import MujocoSimulator, engine_of
from safemeta.tasks import make, names

EPISODES = 10  # to each task, as the dual-method paper collects
TASKS = (
    "car-circle-hazard",
    "point-button",
    "pillars-0.15-goal",
    "hazards-0.15-push",
    "car-goal-1",
    "half-cheetah",
    "humanoid",
    "hopper",
    "swimmer",
    "realworld-walker",
    "realworld-quadruped",
    "realworld-humanoid",
)
GYMNASIUM = {"half-cheetah": "HalfCheetah", "humanoid": "Humanoid", "hopper": "Hopper", "swimmer": "Swimmer"}
POOL_STEPS = 50  # of EnvPool to a repeat, each of all rows
SINGLE_STEPS = 500  # control steps of a single environment to a repeat


Timed = Callable[[], int]  # does something and returns how many steps that were


def rate(run: Timed) -> float:
    """Steps per second of one call."""
    start = time.perf_counter()
    steps = run()
    return steps / (time.perf_counter() - start)


def threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ours(world: World, tasks: Tasks) -> Timed:
    """Collect episodes of all rows with a policy."""
    policy = GaussianPolicy.create(world.cmdp.observation_size, world.cmdp.action_size, jax.random.key(0))
    run = jax.jit(lambda key: world.collect(policy, tasks, key, EPISODES).valid)
    count = iter(range(1_000_000))
    return lambda: int(run(jax.random.key(next(count))).sum())


def raw(world: BatchedWorld, simulator: MujocoSimulator, tasks: Tasks) -> Timed:
    """The engine alone: the states, controls and number of steps of one of our own collections."""
    environment, engine = simulator.environment, engine_of(simulator.environment)
    policy = GaussianPolicy.create(world.cmdp.observation_size, world.cmdp.action_size, jax.random.key(0))
    rows = world.collect(policy, tasks, jax.random.key(0), EPISODES)
    count, steps = tasks.count * EPISODES, math.ceil(float(rows.valid.mean()) * world.cmdp.horizon)
    parameters = jax.tree.map(lambda leaf: jnp.repeat(leaf, EPISODES, axis=0), tasks.parameters)
    state, placement = jax.vmap(environment.reset)(parameters, jax.random.split(jax.random.key(1), count))
    session, readings = engine.start(placement)
    state, _ = jax.vmap(environment.begin)(parameters, state, engine.named(jnp.asarray(readings, jnp.float32)))
    action = rows.action.reshape(count, world.cmdp.horizon, -1)[:, :steps]
    command = jax.vmap(jax.vmap(environment.command, (None, None, 0)))(parameters, state, action)
    control = np.asarray(command.ctrl, np.float64)

    model, physics = engine.model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    initial = np.zeros((count, mujoco.mj_stateSize(model, physics)))
    for row, data in zip(initial, engine.data(session), strict=True):
        mujoco.mj_getState(model, data, row, physics)
    engine.finish(session)
    spec = mujoco.mjtState.mjSTATE_CTRL.value
    if model.nmocap:
        spec |= mujoco.mjtState.mjSTATE_MOCAP_POS.value
        places = np.asarray(placement.mocap, np.float64).reshape(count, 1, -1)
        control = np.concatenate([control, np.broadcast_to(places, (count, steps, places.shape[2]))], axis=2)
    control = control.repeat(environment.substeps, axis=1)
    data = [mujoco.MjData(model) for _ in range(threads())]
    pool = rollout.Rollout(nthread=threads())
    # Room for the results is made once: a gigabyte of fresh memory would be most of the time.
    room = np.zeros((count, control.shape[1], initial.shape[1])), np.zeros((count, control.shape[1], model.nsensordata))

    def run() -> int:
        pool.rollout(model, data, initial, control, control_spec=spec, state=room[0], sensordata=room[1])
        return count * steps

    return run


def envpool(task: str, rows: int) -> Timed | None:
    """EnvPool on all threads with random actions."""
    try:
        module = importlib.import_module("envpool")
    except ImportError:
        return None
    pool: Any = module.make(f"{GYMNASIUM[task]}-v4", env_type="gymnasium", num_envs=rows, num_threads=threads())
    pool.reset()
    space = pool.action_space
    action = np.random.default_rng(0).uniform(space.low, space.high, (rows, *space.shape))

    def run() -> int:
        for _ in range(POOL_STEPS):
            pool.step(action)
        return rows * POOL_STEPS

    return run


def gymnasium(task: str) -> Timed | None:
    """One Gymnasium environment with random actions."""
    try:
        env = importlib.import_module("gymnasium").make(f"{GYMNASIUM[task]}-v5")
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    env.reset(seed=0)

    def run() -> int:
        for _ in range(SINGLE_STEPS):
            _, _, terminated, truncated, _ = env.step(rng.uniform(env.action_space.low, env.action_space.high))
            if terminated or truncated:
                env.reset()
        return SINGLE_STEPS

    return run


def dm_control(task: str) -> Timed | None:
    """One dm_control environment with random actions."""
    try:
        suite = importlib.import_module("dm_control.suite")
    except ImportError:
        return None
    env: Any = suite.load(task.removeprefix("realworld-"), "walk", task_kwargs={"random": 0})
    bounds, rng = env.action_spec(), np.random.default_rng(0)
    env.reset()

    def run() -> int:
        for _ in range(SINGLE_STEPS):
            env.step(rng.uniform(bounds.minimum, bounds.maximum))
        return SINGLE_STEPS

    return run


def measure(task: str, rows: int, horizon: int, repeats: int) -> list[Row]:
    """A task beside its peers."""
    world = make(task, horizon=horizon)
    if not isinstance(world, BatchedWorld) or not isinstance(world.simulator, MujocoSimulator):
        raise SystemExit(f"{task} is not stepped by MuJoCo; benchmarks/rollout.py measures tasks in pure JAX")
    tasks = world.sample(jax.random.key(1), max(1, rows // EPISODES))
    count = tasks.count * EPISODES
    peers: dict[str, Timed | None] = {"raw mujoco.rollout": raw(world, world.simulator, tasks)}
    if task in GYMNASIUM:
        peers["EnvPool without policy"] = envpool(task, count)
        peers["one Gymnasium environment without policy"] = gymnasium(task)
    elif task.startswith("realworld-"):
        peers["one dm_control environment without policy"] = dm_control(task)
    runs = {"": ours(world, tasks)} | {name: run for name, run in peers.items() if run is not None}
    for run in runs.values():
        run()  # compiles, and warms caches
    best = dict.fromkeys(runs, 0.0)
    for _ in range(repeats):
        for name, run in runs.items():
            best[name] = max(best[name], rate(run))
    value, case = best.pop(""), f"{task}, {count} rows, {threads()} threads"
    return [Row(case, value, "steps/s", name, there, value / there) for name, there in best.items()]


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Environment steps per second of tasks on MuJoCo.")
    parser.add_argument("--task", nargs="+", default=TASKS, choices=names(), metavar="NAME", help="of which")
    parser.add_argument("--rows", type=int, default=100, help="episodes at once, in tens")
    parser.add_argument("--horizon", type=int, default=200, help="control steps of an episode")
    parser.add_argument("--repeats", type=int, default=4, help="runs of each case; the best counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if min(options.rows, options.horizon, options.repeats) < 1:
        parser.error("--rows, --horizon and --repeats must be at least 1")
    table = []
    for task in options.task:
        found = measure(task, options.rows, options.horizon, options.repeats)
        table += found
        if not options.json:
            for row in found:
                against = f"{row.ratio:8.2f} x {row.peer} ({row.peer_value:,.0f})"
                print(f"{row.case:<50} {row.value:>10,.0f} {row.unit}{against}")
    if options.json:
        print_json("simulation", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
