"""Off-policy learners per second: `python benchmarks/off_policy.py [--json]`.

- Gradient steps of fac-sis at the paper's sizes (256 x 256, batches of 256), alone, on observations of Hazards-Goal;
  beside them SAC of Stable-Baselines3 (PyTorch) at the same sizes, where that is installed: two critics and a policy at
  every step, without safety critic, multiplier and index.
- Training as it runs, collection and gradient steps interleaved: environment steps and gradient steps per second, at
  the paper's sizes and with the preset `fast`.
- D4PG with the preset `fast` on cartpole, 8 rows: one run alone, and 16 runs in one compiled program.

Times are the fastest of several runs, compilation apart; safemeta and its peer take turns.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
from _table import Row, print_json

from safemeta.algorithms import d4pg, fac_sis, sac_lagrangian
from safemeta.algorithms.replay import Replay
from safemeta.algorithms.vmapped import VmappedRuns, tasks_of_runs
from safemeta.tasks import make

TASK = "hazards-0.15-goal"
STEPS = 100  # gradient steps per timed call


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls after one that compiles."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def gradient_steps(config: fac_sis.Config) -> Callable[[], object]:
    """`STEPS` gradient steps of fac-sis on a replay that holds one iteration."""
    world = make(TASK)
    learner = fac_sis.FacLearner(config, world.cmdp)
    algorithm = fac_sis.Algorithm(replace(config, warm_up=10**9))
    state, _ = algorithm.iterate(algorithm.init(jax.random.key(0), world.cmdp), world, jax.random.key(1))
    replay = Replay(config.tasks * config.episodes, config.capacity, config.batch)

    @eqx.filter_jit
    def run(learned: Any, kept: Any) -> Any:
        arrays, static = eqx.partition(learned, eqx.is_array)

        def step(arrays: Any, key: Any) -> tuple[Any, None]:
            sample_key, update_key = jax.random.split(key)
            moved, _ = learner.update(eqx.combine(arrays, static), replay.sample(kept, sample_key), update_key)
            return eqx.filter(moved, eqx.is_array), None

        return jax.lax.scan(step, arrays, jax.random.split(jax.random.key(2), STEPS))[0]

    return lambda: jax.block_until_ready(run(state.learner, state.replay))


def peer_steps() -> Callable[[], object] | None:
    """The same of Stable-Baselines3's SAC, on random experience of the same shape; None where it is not installed."""
    try:
        import gymnasium
        import numpy as np
        from stable_baselines3 import SAC  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    cmdp = make(TASK).cmdp

    class Empty(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (cmdp.observation_size,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (cmdp.action_size,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return np.zeros(cmdp.observation_size, np.float32), {}

    model = SAC("MlpPolicy", Empty(), batch_size=256, policy_kwargs={"net_arch": [256, 256]})
    model._setup_learn(1)
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        now, after = rng.normal(size=(2, 1, cmdp.observation_size)).astype(np.float32)
        model.replay_buffer.add(now, after, rng.uniform(-1, 1, (1, cmdp.action_size)), np.ones(1), np.zeros(1), [{}])

    return lambda: model.train(gradient_steps=STEPS, batch_size=256)


def learning(repeats: int) -> Iterator[Row]:
    """Gradient steps alone."""
    for case, config in (("256 x 256", fac_sis.Config()), ("preset fast, 64 x 64", fac_sis.PRESETS["fast"])):
        run, peer = gradient_steps(config), peer_steps() if case == "256 x 256" else None
        own, other = float("inf"), float("inf")
        for _ in range(repeats):
            own = min(own, fastest(run, 2))
            other = min(other, fastest(peer, 2)) if peer else other
        rate = STEPS / own
        beside = (f"Stable-Baselines3 SAC, {case}", STEPS / other, rate * other / STEPS) if peer else (None, None, None)
        yield Row(f"fac-sis, gradient steps, {case}", rate, "steps/s", *beside)


def training(repeats: int) -> Iterator[Row]:
    """Whole iterations."""
    cases = [
        ("fac-sis", "collision-avoidance", fac_sis.Algorithm, fac_sis.PRESETS["fast"], "preset fast"),
        ("fac-sis", TASK, fac_sis.Algorithm, fac_sis.PRESETS["fast"], "preset fast"),
        ("fac-sis", TASK, fac_sis.Algorithm, replace(fac_sis.Config(), warm_up=1), "256 x 256"),
        ("fac-sis", "pillars-0.15-goal", fac_sis.Algorithm, fac_sis.PRESETS["fast"], "preset fast"),
        ("sac-lagrangian", TASK, sac_lagrangian.Algorithm, sac_lagrangian.PRESETS["fast"], "preset fast"),
    ]
    for name, task, algorithm, config, sizes in cases:
        world, own = make(task, horizon=120), algorithm(config)
        state = own.init(jax.random.key(0), world.cmdp)
        for index in range(-(-config.warm_up // own.steps_per_iteration(world.cmdp))):
            state, _ = own.iterate(state, world, jax.random.key(index))
        _, metrics = own.iterate(state, world, jax.random.key(100))
        again = partial(own.iterate, state, world, jax.random.key(100))
        seconds = fastest(lambda again=again: jax.block_until_ready(again()), repeats)
        case = f"{name} on {task}, training, {sizes}"
        yield Row(f"{case}, environment", own.steps_per_iteration(world.cmdp) / seconds, "steps/s")
        yield Row(f"{case}, gradient", float(metrics["updates"]) / seconds, "steps/s")


def vmapped(repeats: int) -> Iterator[Row]:
    """Iterations of 1 run and of 16, on 250 control steps."""
    world = make("realworld-cartpole", horizon=250)
    for kind in ("uniform", "prioritised"):
        own = d4pg.Algorithm(replace(d4pg.PRESETS["fast"], replay=kind))
        drawn = world.sample(jax.random.key(0), own.config.tasks)
        for count in (1, 16):
            runs, keys = VmappedRuns(own, world), jax.random.split(jax.random.key(1), count)
            tasks = tasks_of_runs(drawn, count)
            states, _ = runs.iterate(runs.init(keys), tasks, keys)  # more steps than the warm-up takes
            _, metrics = runs.iterate(states, tasks, keys)
            again = partial(runs.iterate, states, tasks, keys)
            seconds = fastest(lambda again=again: jax.block_until_ready(again()), repeats)
            case = f"d4pg on realworld-cartpole, {kind} replay, {count} {'runs' if count > 1 else 'run'}"
            yield Row(f"{case}, environment", count * own.steps_per_iteration(world.cmdp) / seconds, "steps/s")
            yield Row(f"{case}, gradient", float(metrics["updates"].sum()) / seconds, "steps/s")


PARTS = (learning, training, vmapped)


def main() -> int:
    """Print a table, or one JSON object with `--json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case; the best counts")
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS], help="one part alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = parser.parse_args()
    rows = [row for part in PARTS if given.only in (None, part.__name__) for row in part(given.repeats)]
    if given.json:
        print_json("off_policy", rows)
        return 0
    for row in rows:
        ratio = "" if row.ratio is None else f"  {row.ratio:5.2f} x {row.peer} ({row.peer_value:,.0f})"
        print(f"{row.case:<72} {row.value:10,.0f} {row.unit}{ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
