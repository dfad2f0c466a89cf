"""Seconds per meta-iteration, and where they go: `python benchmarks/meta_iteration.py [--json]`.

- meta-cpo at the sizes of the released code (Point-Circle, 3 tasks, K = 3, 4,000 steps per collection, network 24-12;
  the released code took 314 s on a machine of two cores) and at the paper's (5 tasks, K = 5, network 32-16), exact
  meta-gradient included. Its parts are compiled and timed one by one; what is left of the whole is called the rest
  (fusion across parts can make it negative).
- cpo and trpo in environment steps per second of training, learning included, beside OmniSafe's CPO.
- dual beside meta-cpo on the same task with as many tasks, episodes and inner steps: one meta-iteration and one
  adaptation step of a meta-test; the paper claims 30 % and 50 % of the time.

Times are the fastest of several runs; what the first call takes beyond that is compilation.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from _table import Row, print_json

from safemeta.algorithms import bilevel, cpo, dual, meta_cpo, trpo
from safemeta.algorithms.critics import assess
from safemeta.algorithms.outer import MetaData, meta_gradients, outer_update
from safemeta.algorithms.surrogate import make_samples
from safemeta.nets import parameters, with_parameters
from safemeta.tasks import make

RELEASED_SECONDS = 314.0  # per meta-iteration of the released code, sampling 188, updates 125
OMNISAFE = {"point-circle-1": 109.0, "point-goal-1": 156.0}  # CPO, one thread, steps per second of training
PAPER = replace(meta_cpo.RELEASED, tasks=5, inner_steps=5, hidden=(32, 16))


def timed(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The fastest of `repeats` calls, and what the first call took beyond it."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    best = min(times[1:])
    return best, max(0.0, times[0] - best)


def parts(config: meta_cpo.Config, world: Any, repeats: int) -> tuple[dict[str, float], float, float]:
    """Seconds of each part of a meta-iteration, of the whole, and of its compilation."""
    algorithm = meta_cpo.Algorithm(config)
    key = jax.random.key(0)
    state = algorithm.init(key, world.cmdp)
    for index in range(2):  # away from the start, where normaliser and policy are trivial
        state, _ = algorithm.iterate(state, world, jax.random.fold_in(key, index))
    state = jax.block_until_ready(state)
    policy, cmdp = state.policy, world.cmdp
    tasks = world.sample(key, config.tasks, "train")
    theta = parameters(policy)
    x = jnp.broadcast_to(theta, (config.tasks, theta.shape[0]))
    policies = jax.vmap(lambda each: with_parameters(policy, each))(x)

    def judged(rows: Any) -> Any:
        critics, normalizer, smoothing = state.critics, policy.normalizer, config.gae_smoothing
        return jax.vmap(lambda own: assess(config.critic, critics, normalizer, own, cmdp, smoothing))(rows)

    sample = eqx.filter_jit(lambda p, k: world.collect(p, tasks, k, config.episodes, per_task=True))
    judge = eqx.filter_jit(judged)
    inner = eqx.filter_jit(lambda x, rows, found: bilevel._inner(config, cmdp, state, x, rows, found, tasks))
    rows = sample(policies, key)
    estimates = judge(rows)
    _, used, _ = inner(x, rows, estimates)
    samples = jax.vmap(lambda r, a: make_samples(r, a, cmdp))(rows, estimates)
    repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (config.inner_steps, *leaf.shape)), used)
    meta = MetaData(repeated, samples, used.violations, x)

    def moved(y: Any, data: MetaData, rows: Any) -> Any:
        return outer_update(config, policy, y, data, rows.observation, rows.valid, state.control)

    gradient = eqx.filter_jit(lambda y, data: meta_gradients(config, policy, y, data))
    outer = eqx.filter_jit(moved)
    steps = config.inner_steps
    derivative = timed(lambda: gradient(theta, meta), repeats)[0]
    whole, compilation = timed(lambda: algorithm.iterate(state, world, key), repeats)
    found = {
        "sampling": (steps + 1) * timed(lambda: sample(policies, key), repeats)[0],
        "critics and advantages": (steps + 1) * timed(lambda: judge(rows), repeats)[0],
        "inner steps": steps * timed(lambda: inner(x, rows, estimates), repeats)[0],
        "meta-gradient": derivative,
        "outer step and its line search": timed(lambda: outer(theta, meta, rows), repeats)[0] - derivative,
    }
    found["rest"] = whole - sum(found.values())
    return found, whole, compilation


def compilation_of(config: Any, module: Any, world: Any) -> float:
    """Seconds of the first iteration, nothing being compiled before; compilation and one iteration."""
    jax.clear_caches()
    algorithm = module.Algorithm(config)
    state = jax.block_until_ready(algorithm.init(jax.random.key(0), world.cmdp))
    start = time.perf_counter()
    jax.block_until_ready(algorithm.iterate(state, world, jax.random.key(1)))
    return time.perf_counter() - start


def meta_cpo_rows(name: str, config: meta_cpo.Config, peer: float | None, repeats: int) -> Iterable[Row]:
    """The whole, its compilation and its parts."""
    world = make("point-circle-meta-cpo")
    first = compilation_of(config, meta_cpo, world)
    found, whole, _ = parts(config, world, repeats)
    case = f"meta-cpo, {name}"
    released = (None, None, None) if peer is None else ("released code", peer, peer / whole)
    yield Row(f"{case}: meta-iteration", whole, "s", *released)
    yield Row(f"{case}: environment steps", (config.inner_steps + 1) * config.tasks * config.episodes * 500, "steps")
    yield Row(f"{case}: compilation", first - whole, "s")
    for part, value in found.items():
        yield Row(f"{case}: {part}", value, "s", "of the whole", whole, value / whole)


def training_rows(task: str, repeats: int) -> Iterable[Row]:
    """Steps per second of CPO and TRPO in training; the default configuration, 100 episodes per iteration."""
    world = make(task)
    for name, module in (("cpo", cpo), ("trpo", trpo)):
        algorithm = module.Algorithm(module.Config())
        state = algorithm.init(jax.random.key(0), world.cmdp)
        seconds, _ = timed(partial(algorithm.iterate, state, world, jax.random.key(1)), repeats)
        rate, theirs = algorithm.steps_per_iteration(world.cmdp) / seconds, OMNISAFE[task]
        yield Row(f"{name}, {task}: training", rate, "steps/s", "OmniSafe CPO, one thread", theirs, rate / theirs)


def dual_rows(repeats: int, tasks: int = 10, episodes: int = 10) -> Iterable[Row]:
    """Dual beside meta-cpo: as many tasks, episodes, and one inner step each; then adaptation on 20 unseen tasks."""
    world = make("point-circle")
    key = jax.random.key(0)
    ours = {
        "dual, paper settings": dual.Algorithm(replace(dual.PRESETS["paper"], tasks=tasks, episodes=episodes)),
        "dual, safe settings": dual.Algorithm(replace(dual.PRESETS["safe"], tasks=tasks, episodes=episodes)),
    }
    size = {"tasks": tasks, "episodes": episodes, "hidden": (64, 64)}
    theirs = {f"meta-cpo, K = {k}": meta_cpo.Algorithm(meta_cpo.Config(inner_steps=k, **size)) for k in (1, 3, 5)}
    unseen = world.sample(key, 20, "test")
    seconds: dict[str, tuple[float, float]] = {}
    for name, algorithm in {**ours, **theirs}.items():
        state = algorithm.init(key, world.cmdp)
        training = timed(partial(algorithm.iterate, state, world, key), repeats)[0]
        one = timed(partial(algorithm.adapt, state, world, unseen, key, 2), repeats)[0]
        more = timed(partial(algorithm.adapt, state, world, unseen, key, 7), repeats)[0]
        seconds[name] = training, (more - one) / 5
    for name in ours:
        for other in theirs:
            for what, (mine, peer) in zip(
                ("meta-iteration", "adaptation step, 20 tasks"),
                zip(seconds[name], seconds[other], strict=True),
                strict=True,
            ):
                yield Row(f"{name}: {what}", mine, "s", other, peer, peer / mine)
    state = ours["dual, safe settings"].init(key, world.cmdp)
    for name, algorithm in ours.items():
        config = algorithm.config
        validate = eqx.filter_jit(lambda p, k, c=config: dual._validate(c, world, p, k))
        value = timed(partial(validate, state.current.policy, key), repeats)[0]
        drawn = world.sample(key, tasks, "train")
        collect = timed(partial(world.collect, state.current.policy, drawn, key, episodes), repeats)[0]
        whole = seconds[name][0]
        yield Row(f"{name}: validation", value, "s", "of the whole", whole, value / whole)
        yield Row(
            f"{name}: sampling, {2 * tasks * episodes} episodes",
            2 * collect,
            "s",
            "of the whole",
            whole,
            2 * collect / whole,
        )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case; the fastest counts")
    parser.add_argument("--only", nargs="+", choices=("released", "paper", "training", "dual"), help="some cases only")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    cases: dict[str, list[Callable[[], Iterable[Row]]]] = {
        "released": [partial(meta_cpo_rows, "released sizes", meta_cpo.RELEASED, RELEASED_SECONDS, options.repeats)],
        "paper": [partial(meta_cpo_rows, "paper's sizes", PAPER, None, options.repeats)],
        "training": [partial(training_rows, task, options.repeats) for task in OMNISAFE],
        "dual": [partial(dual_rows, options.repeats)],
    }
    load = os.getloadavg()[0]
    table = [row for name in options.only or cases for run in cases[name] for row in run()]
    table.append(Row("load average when started", load, "processes"))
    if options.json:
        print_json("meta_iteration", table)
        return 0
    for row in table:
        against = f"{row.ratio:10.2f} x {row.peer} ({row.peer_value:,.4g})" if row.ratio is not None else ""
        print(f"{row.case:<62} {row.value:>12,.4g} {row.unit:<9}{against}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
