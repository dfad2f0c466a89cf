"""Learn an optimizer that keeps constraints, then use it like any other `optax` optimizer on a problem of your own.

    python examples/constrained_optimizer.py [--meta-iterations N] [--steps N]

The optimizer is trained on random quadratic problems with ten coordinates (half a minute for 100 iterations on two
cores) and then used for something else: the portfolio of forty assets with the least variance for its return, in a
pytree of parameters, under three constraints. Each step keeps the constraints themselves, not only their
linearisation.
"""

import argparse

import jax
import jax.numpy as jnp
import optax

from safemeta.algorithms.fisar import optimizer
from safemeta.algorithms.fisar_meta import MetaConfig, meta_train
from safemeta.tasks.qcqp import QCQPFamily

ASSETS = 40
OPTIMUM = -1.38675  # a convex solver's


def main(iterations: int, steps: int) -> None:
    """Train, then minimise, and print what happens to objective and constraints."""
    network, losses = meta_train(MetaConfig(iterations=iterations), QCQPFamily(size=10), jax.random.key(0))
    first, last = float(losses[0, 0]), float(losses[-1, 0])
    print(
        f"mean objective in a run's first 20 steps, over that at its start: {first:.3f} untrained, {last:.3f} trained"
    )
    print(f"the portfolio's optimum is {OPTIMUM}")

    key = jax.random.key(1)
    factors = jax.random.normal(key, (ASSETS, 5)) / 5**0.5
    covariance = factors @ factors.T + 0.2 * jnp.eye(ASSETS)
    gain = 0.5 + 0.3 * jax.random.normal(jax.random.fold_in(key, 1), (ASSETS,))

    def objective(weights: dict[str, jax.Array]) -> jax.Array:
        x = jnp.concatenate([weights["home"], weights["abroad"]])
        return x @ covariance @ x - gain @ x

    def constraints(weights: dict[str, jax.Array]) -> jax.Array:
        """Not positive where all is well: what is invested, what is invested abroad, and the variance."""
        x = jnp.concatenate([weights["home"], weights["abroad"]])
        return jnp.stack([x.sum() - 1, weights["abroad"].sum() - 0.3, x @ covariance @ x - 0.05])

    weights = {"home": jnp.zeros(30), "abroad": jnp.zeros(ASSETS - 30)}  # feasible
    rule = optimizer(network, constraints, trials=30)

    @jax.jit
    def step(weights: dict[str, jax.Array], state: optax.OptState) -> tuple[dict[str, jax.Array], optax.OptState]:
        updates, state = rule.update(jax.grad(objective)(weights), state, weights)
        return optax.apply_updates(weights, updates), state  # type: ignore[return-value]

    state, worst = rule.init(weights), float("-inf")
    for index in range(1, steps + 1):
        weights, state = step(weights, state)
        worst = max(worst, float(constraints(weights).max()))
        if index in (1, 10, 100, 300, steps):
            values = ", ".join(f"{float(value):8.4f}" for value in constraints(weights))
            print(f"step {index:4}  objective {float(objective(weights)):9.5f}  constraints {values}")
    print(f"largest constraint value on the way: {worst:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Learn an optimizer, then optimise a portfolio under constraints.")
    parser.add_argument("--meta-iterations", type=int, default=100, help="of the optimizer's training")
    parser.add_argument("--steps", type=int, default=1000, help="of the optimizer on the portfolio")
    arguments = parser.parse_args()
    if min(arguments.meta_iterations, arguments.steps) < 1:
        parser.error("--meta-iterations and --steps must be at least 1")
    main(arguments.meta_iterations, arguments.steps)
