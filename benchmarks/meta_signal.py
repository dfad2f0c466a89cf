"""How much of a meta-gradient is signal: `python benchmarks/meta_signal.py RUN [--json]`, RUN trained by `meta-cpo`.

From the policy that the run ends with, several independent batches (tasks, inner steps, episodes) of the run's own size
are gathered. Of each, dF and dG (eq. 11) are measured in three ways: with the importance ratio in both derivatives
(`sampling = ratio`), as if the data did not depend on the policy (the paper's), and to first order. Then

- cosines between the gradients of different batches, in the metric H^-1: 1 if they were all signal, 0 if all noise;
- the step of the outer trust region that lowers G most by each batch's dG: what its linear model promises, and what G
  and the meta-policy's own cost really are after it less before, on many fresh tasks and episodes.
"""

import argparse
import itertools
import sys
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _table import Row, print_rows
from jaxtyping import Array, Float

from safemeta.algorithms import bilevel
from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.estimation import limited_costs
from safemeta.algorithms.inner import metric_at
from safemeta.algorithms.outer import MetaData, meta_gradients
from safemeta.experiment.run import load
from safemeta.nets import parameters, with_parameters
from safemeta.solvers import solve_rows

Vector = Float[Array, " parameters"]
WAYS = {
    "exact": {"sampling": "ratio"},
    "exact, sampling ignored": {"sampling": "ignored"},
    "first order": {"meta_gradient": "first"},
}


class Measured(eqx.Module):
    """One batch."""

    meta: MetaData
    observation: Array
    valid: Array
    cost: Float[Array, ""]  # mean over tasks of the adapted policies' first cost
    own_cost: Float[Array, ""]  # of the meta-policy


@eqx.filter_jit
def gathered(config: BilevelConfig, world: Any, state: bilevel.State, theta: Vector, key: Any) -> Measured:
    """A batch that starts from `theta`."""
    state = eqx.tree_at(lambda s: s.policy, state, with_parameters(state.policy, theta))
    tasks = world.sample(jax.random.fold_in(key, 0), config.tasks, "train")
    x = jnp.broadcast_to(theta, (config.tasks, theta.shape[0]))
    keys = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    meta, found = bilevel.gather(config, world, state, x, tasks, *keys)
    cost, own = (limited_costs(rows, world.cmdp)[..., 0].mean() for rows in (found.after, found.before))
    return Measured(meta, found.before.observation, found.before.valid, cost, own)


@eqx.filter_jit
def directions(config: BilevelConfig, policy: Any, theta: Vector, batch: Measured) -> tuple[Array, Array]:
    """Rows dF, dG, and both through the metric."""
    gradients, _ = meta_gradients(config, policy, theta, batch.meta)
    metric = metric_at(config, policy, theta, batch.observation, batch.valid, config.fisher_states)
    solved = solve_rows(metric, gradients, iterations=config.cg_iterations, damping=config.damping)
    return gradients[:2], solved.solution[:2]


def judged(config: BilevelConfig, world: Any, state: bilevel.State, theta: Vector, batches: int) -> np.ndarray:
    """Mean adapted and own cost over fresh batches, the same for every `theta`."""
    found = [gathered(config, world, state, theta, jax.random.key(1000 + index)) for index in range(batches)]
    return np.mean([(float(each.cost), float(each.own_cost)) for each in found], axis=0)


def rows_of(folder: str, draws: int, batches: int) -> list[Row]:
    """Of all ways to differentiate."""
    run = load(folder)
    config, world, state = run.algorithm.config, run.world, run.state
    theta = parameters(state.policy)
    data = [gathered(config, world, state, theta, jax.random.key(draw)) for draw in range(draws)]
    before = judged(config, world, state, theta, batches)
    table = [Row("adapted policies' cost", float(before[0]), "cost"), Row("own cost", float(before[1]), "cost")]
    for way, change in WAYS.items():
        found = [directions(replace(config, **change), state.policy, theta, batch) for batch in data]
        for index, name in enumerate(("dF", "dG")):
            product = np.array([[float(a[0][index] @ b[1][index]) for b in found] for a in found])
            size = np.sqrt(np.abs(np.diagonal(product)))
            pairs = itertools.combinations(range(draws), 2)
            cosines = [(product[i, j] + product[j, i]) / 2 / size[i] / size[j] for i, j in pairs]
            case = f"{way}: {name} of independent batches"
            table.append(Row(f"{case}, least", min(cosines), "cosine"))
            table.append(Row(f"{case}, largest", max(cosines), "cosine"))
        for draw, (gradients, solutions) in enumerate(found):
            size = float(gradients[1] @ solutions[1])
            step = -solutions[1] * np.sqrt(2 * config.outer_radius / size)
            after = judged(config, world, state, theta + step, batches) - before
            promised = float(gradients[1] @ step)
            table.append(Row(f"{way}: promised change of G, batch {draw}", promised, "cost"))
            table.append(Row(f"{way}: change of G, batch {draw}", float(after[0]), "cost", "promised", promised))
            table.append(Row(f"{way}: change of the own cost, batch {draw}", float(after[1]), "cost"))
    return table


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of a run of meta-cpo")
    parser.add_argument("--draws", type=int, default=3, help="independent batches")
    parser.add_argument("--batches", type=int, default=16, help="that judge a step")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if options.draws < 2 or options.batches < 1:
        parser.error("--draws must be at least 2, --batches at least 1")
    table = rows_of(options.run, options.draws, options.batches)
    print_rows("meta_signal", table, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
