"""Milliseconds to lay out 100 episodes of each task: `python benchmarks/layouts.py [--json]`.

A layout is what a task draws at an episode's beginning (where robot, goal, hazards, pillars, buttons stand), by
rejection sampling in compiled code. Tasks are drawn anew in each repeat, so that an unlucky draw shows: the worst
repeat counts. The peer is what safemeta asks of itself: 50 ms.
"""

import argparse
import sys
import time
from typing import Any

import jax
from _table import Row, print_json

from safemeta.sim.batched import BatchedWorld
from safemeta.sim.mujoco import MujocoSimulator
from safemeta.tasks import make, names

ROWS = 100
ASKED = 50.0  # ms


def environment_of(world: Any) -> Any:
    """The pure functions that draw a layout."""
    if isinstance(world, BatchedWorld):
        return world.simulator.environment if isinstance(world.simulator, MujocoSimulator) else None
    return world.environment


def measure(task: str, repeats: int) -> Row | None:
    """The slowest of several draws of tasks and layouts; None for a task of no such kind."""
    world = make(task)
    environment = environment_of(world)
    if environment is None:
        return None
    reset = jax.jit(jax.vmap(environment.reset))

    def draw(seed: int) -> float:
        first, second = jax.random.split(jax.random.key(seed))
        start = time.perf_counter()
        tasks = world.sample(first, ROWS)
        jax.block_until_ready(reset(tasks.parameters, jax.random.split(second, ROWS)))
        return 1000 * (time.perf_counter() - start)

    draw(0)  # compiles
    worst = max(draw(seed) for seed in range(1, repeats + 1))
    return Row(f"{task}, {ROWS} tasks and layouts", worst, "ms", "asked", ASKED, ASKED / worst)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Milliseconds to lay out 100 episodes of each task.")
    parser.add_argument("--task", nargs="+", default=names(), choices=names(), metavar="NAME", help="of which")
    parser.add_argument("--repeats", type=int, default=20, help="draws of each; the slowest counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    table = [row for task in options.task if (row := measure(task, options.repeats)) is not None]
    if options.json:
        print_json("layouts", table)
        return 0
    for row in table:
        print(f"{row.case:<58} {row.value:>7.1f} {row.unit}   asked: {row.peer_value:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
