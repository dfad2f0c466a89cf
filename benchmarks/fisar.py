"""FISAR's costs: `python benchmarks/fisar.py [--json] [--quick]`.

- a projected update of 10,000 parameters under 2 constraints, beside the bare step of the same LSTM: what safety adds.
  Gradients of objective and constraints are given, so that nothing but the update is timed. `ratio` is bare over
  projected: above 0.83 means that the projection costs less than 20 %.
- meta-training of the optimizer for quadratic problems, as `safemeta reproduce fisar` does it (compilation included).

float32. Updates: the best of many runs, both programs in turn, so that other load strikes both.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _table import Row, print_json

from safemeta.algorithms.fisar import optimizer
from safemeta.algorithms.fisar_meta import MetaConfig, meta_train
from safemeta.algorithms.fisar_optimizer import learned
from safemeta.nets import LearnedOptimizer
from safemeta.solvers.projection import ProjectionMetric
from safemeta.tasks.qcqp import QCQPFamily

METRICS: tuple[ProjectionMetric, ...] = ("euclidean", "closed_form")
BINDING = 0.3  # constraint values in units of gradient times update: both constraints are active


def update_rows(size: int, constraints: int, rounds: int) -> Iterator[Row]:
    """Projected and bare updates, timed in turn."""
    rng = np.random.default_rng(0)
    network = LearnedOptimizer.create(jax.random.key(0))
    x, gradient = (jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(2))
    rows = jnp.asarray(rng.normal(size=(constraints, size)), jnp.float32)
    values = jnp.full(constraints, BINDING, jnp.float32)
    bare = learned(network)
    bare_state = bare.init(x)
    plain = jax.jit(lambda g, s: bare.update(g, s)).lower(gradient, bare_state).compile()
    for metric in METRICS:
        safe = optimizer(network, metric=metric, count=constraints)
        state = safe.init(x)

        def whole(g: Any, s: Any, c: Any, a: Any, safe: Any = safe) -> Any:
            return safe.update(g, s, constraint_values=c, constraint_gradients=a)

        projected = jax.jit(whole).lower(gradient, state, values, rows).compile()
        _, after = projected(gradient, state, values, rows)
        if not bool(jnp.all(after[-1].multipliers > 0)):
            raise RuntimeError("the constraints do not bind, so nothing would be measured")
        ours, theirs = in_turn(
            lambda p=projected, s=state: p(gradient, s, values, rows), lambda: plain(gradient, bare_state), rounds
        )
        case = f"projected update, n={size}, m={constraints}, {metric}"
        yield Row(case, 1e3 * ours, "ms", "LSTM step alone", 1e3 * theirs, theirs / ours)


def in_turn(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """The fastest run of either, in seconds."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, function in enumerate((first, second)):
            begin = time.perf_counter()
            jax.block_until_ready(function())
            best[index] = min(best[index], time.perf_counter() - begin)
    return best[0], best[1]


def training_rows(iterations: int) -> Iterator[Row]:
    """Seconds of meta-training for one and for three constraints."""
    for constraints in (1, 3):
        begin = time.perf_counter()
        _, losses = meta_train(MetaConfig(iterations=iterations), QCQPFamily(10, constraints), jax.random.key(0))
        losses.block_until_ready()
        seconds = time.perf_counter() - begin
        yield Row(f"meta-training, quadratic problems, n=10, m={constraints}, {iterations} iterations", seconds, "s")


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="few runs, five meta-iterations")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for part in (update_rows(10_000, 2, 20 if arguments.quick else 300), training_rows(5 if arguments.quick else 300)):
        for row in part:
            rows.append(row)
            peer = "" if row.peer is None else f"   {row.peer} {row.peer_value:,.3f}   ratio {row.ratio:.2f}"
            print(f"{row.case:70s} {row.value:10,.3f} {row.unit}{peer}", file=sys.stderr, flush=True)
    if arguments.json:
        print_json("fisar", rows)


if __name__ == "__main__":
    main()
