"""Meta-CPO's exact meta-gradient beside the released code's formula: `python benchmarks/meta_gradient.py [--json]`.

The released code replaces the Jacobian of each inner step x(theta) by an elementwise product, `1 + X * h`:

- `h_i = d g_i / d theta_i`, the diagonal of the Jacobian of the normalised gradient g (in the recovery case, of a);
- `X_i = sum_{j <= i} d x_j / d g_i`, where `d x_i / d g_i` was meant: the entries before i were not zeroed.

The product over the K inner steps is multiplied, elementwise, into the step that would come next, and the mean over
tasks is the direction in which the meta-policy moves. What the constraint's gradient depends on is left out.

Cosines are given against dF/dtheta (eq. 11, euclidean, K inner steps) of the same data, and for comparison for the
formula without the accumulation, and for no derivative of the inner steps at all ("first order").
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _table import Row, print_rows
from jaxtyping import Array, Float

from safemeta.algorithms import bilevel, meta_cpo
from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.inner import InnerData, inner_step, signals
from safemeta.algorithms.outer import MetaData, meta_objective
from safemeta.algorithms.surrogate import Samples
from safemeta.nets import GaussianPolicy, parameters
from safemeta.solvers import trust_region_step
from safemeta.tasks import make

Vector = Float[Array, " parameters"]


def released_order(policy: GaussianPolicy) -> np.ndarray:
    """Where the released code's parameters stand in ours: log deviations first, weights row by row of outputs."""
    leaves, structure = jax.tree.flatten(policy.network)
    ends = np.cumsum([leaf.size for leaf in leaves])
    numbers = [
        np.arange(end - leaf.size, end).reshape(leaf.shape) for leaf, end in zip(leaves, ends.tolist(), strict=True)
    ]
    place = jax.tree.unflatten(structure, numbers)
    layers = [part.ravel() for layer in place.mlp.layers for part in (layer.weight.T, layer.bias)]
    return np.concatenate([place.log_std, *layers])


def unit_gradients(
    config: BilevelConfig, policy: GaussianPolicy, x: Vector, samples: Samples
) -> Float[Array, "2 parameters"]:
    """Normalised gradients of the predicted reward and of the first cost."""

    def predicted(y: Vector) -> Float[Array, "2"]:
        reward, costs = signals(config, policy, y, samples)
        return jnp.stack([reward, costs[0]])

    rows = jax.jacrev(predicted)(x)
    return rows / (jnp.linalg.norm(rows, axis=1, keepdims=True) + 1e-30)


def unit_step(objective: Vector, constraint: Vector, violation: Array, radius: float) -> tuple[Vector, Array]:
    """The released code's quadratic program: unit gradients, the violation as it is, euclidean; and feasibility."""
    found = trust_region_step(objective, constraint[None], violation[None], None, radius)
    return found.step, found.feasible


def correction(
    config: BilevelConfig,
    policy: GaussianPolicy,
    x: Vector,
    data: InnerData,
    accumulate: bool | Array,
    order: np.ndarray,
) -> Vector:
    """`1 + X * h` of one inner step at parameters `x`, in our order of parameters."""

    def normalised(y: Vector) -> Float[Array, "2 parameters"]:
        return unit_gradients(config, policy, y, data.samples)

    units = normalised(x)
    _, feasible = unit_step(units[0], units[1], data.violations[0], config.inner_radius)
    # In the released order, so that "the entries before i" are those of the released code.
    both = jax.jacrev(lambda u: unit_step(u[0], u[1], data.violations[0], config.inner_radius)[0])(units)
    jacobian = jnp.where(feasible, both[:, 0], both[:, 1])[order][:, order]
    entries = jnp.diagonal(jnp.where(accumulate, jnp.cumsum(jacobian, axis=0), jacobian))
    _, along = jax.linearize(normalised, x)

    def own(index: Array) -> Array:
        return along(jnp.zeros_like(x).at[index].set(1.0))[:, index]

    curvature = jax.lax.map(own, jnp.arange(x.shape[0]), batch_size=16)
    diagonal = jnp.where(feasible, curvature[:, 0], curvature[:, 1])
    back = jnp.zeros_like(x).at[order].set(entries)
    return 1 + back * diagonal


def released_direction(
    config: BilevelConfig, policy: GaussianPolicy, theta: Vector, meta: MetaData, accumulate: bool | Array = True
) -> Vector:
    """The released code's mean over tasks of (product of corrections) * (next step), on the data of `meta`."""
    order = released_order(policy)

    def one(data: InnerData, samples: Any, violations: Array, adapted: Vector) -> Vector:
        def step(found: tuple[Vector, Vector], each: InnerData) -> tuple[tuple[Vector, Vector], None]:
            x, product = found
            product = product * correction(config, policy, x, each, accumulate, order)
            return (x + each.fraction * inner_step(config, policy, x, each).step, product), None

        (_, product), _ = jax.lax.scan(step, (theta, jnp.ones_like(theta)), data)
        units = unit_gradients(config, policy, adapted, samples)
        return product * unit_step(units[0], units[1], violations[0], config.inner_radius)[0]

    return jax.vmap(one, in_axes=(1, 0, 0, 0))(meta.inner, meta.samples, meta.violations, meta.adapted).mean(0)


def exact_gradient(config: BilevelConfig, policy: GaussianPolicy, theta: Vector, meta: MetaData) -> Vector:
    """DF/dtheta through all inner steps, or as if they added a constant."""
    return jax.grad(lambda y: meta_objective(config, policy, y, meta)[0])(theta)


def cosine(a: Vector, b: Vector) -> float:
    """Of the angle between two directions."""
    return float(a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))


def gathered(config: BilevelConfig, world: Any, state: Any, key: Any) -> tuple[Vector, MetaData]:
    """Data of one meta-iteration: K inner steps on fresh episodes, and the adapted policies' episodes."""
    tasks = world.sample(jax.random.fold_in(key, 0), config.tasks, "train")
    theta = parameters(state.policy)
    x = jnp.broadcast_to(theta, (config.tasks, theta.shape[0]))
    keys = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    return theta, bilevel.gather(config, world, state, x, tasks, *keys)[0]


@eqx.filter_jit
def candidates(config: BilevelConfig, policy: GaussianPolicy, theta: Vector, meta: MetaData) -> dict[str, Vector]:
    """The exact meta-gradient and what is compared with it."""
    both = jax.lax.map(lambda flag: released_direction(config, policy, theta, meta, flag), jnp.array([True, False]))
    return {
        "exact": exact_gradient(config, policy, theta, meta),
        "released code": both[0],
        "released code without its accumulation": both[1],
        "first order": exact_gradient(replace(config, meta_gradient="first"), policy, theta, meta),
    }


def cosines(found: dict[str, Vector]) -> dict[str, float]:
    """Of all others with "exact"."""
    return {name: cosine(found["exact"], other) for name, other in found.items() if name != "exact"}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="point-circle-meta-cpo", help="task family")
    parser.add_argument("--iterations", type=int, nargs="+", default=[0, 20], help="of meta-training before measuring")
    parser.add_argument("--episodes", type=int, default=8, help="per task and policy")
    parser.add_argument("--draws", type=int, default=3, help="of tasks and episodes, each time")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if min(options.iterations) < 0 or min(options.episodes, options.draws) < 1:
        parser.error("--iterations must not be negative, --episodes and --draws at least 1")
    world = make(options.task)
    config = replace(meta_cpo.RELEASED, episodes=options.episodes)
    algorithm = meta_cpo.Algorithm(config)
    state = algorithm.init(jax.random.key(0), world.cmdp)
    table, done = [], 0
    for iterations in sorted(options.iterations):
        for index in range(done, iterations):
            state, _ = algorithm.iterate(state, world, jax.random.fold_in(jax.random.key(1), index))
        done = iterations
        found: dict[str, list[float]] = {}
        for draw in range(options.draws):
            theta, meta = gathered(config, world, state, jax.random.key(100 + draw))
            for name, value in cosines(candidates(config, state.policy, theta, meta)).items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            case = f"after {iterations} meta-iterations: {name}"
            table.append(Row(f"{case}, mean", float(np.mean(values)), "cosine", "exact", 1.0, float(np.mean(values))))
            table.append(Row(f"{case}, least", min(values), "cosine", "exact", 1.0, min(values)))
            table.append(Row(f"{case}, largest", max(values), "cosine", "exact", 1.0, max(values)))
    print_rows("meta_gradient", table, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
