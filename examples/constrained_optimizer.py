"""Learn an optimizer that keeps constraints, then use it like any other `optax` optimizer on a problem of your own.

    python examples/constrained_optimizer.py [META_ITERATIONS]

The optimizer is trained on random quadratic problems with ten coordinates (half a minute for 100 iterations on two
cores) and then used for something else: the portfolio of forty assets with the least variance for its return, in a
pytree of parameters, under three constraints. Each step keeps the constraints themselves, not only their
linearisation.
"""

import sys

import jax
import jax.numpy as jnp
import optax

from safemeta.algorithms.fisar import optimizer
from safemeta.algorithms.fisar_meta import MetaConfig, meta_train
from safemeta.tasks.qcqp import QCQPFamily

ASSETS = 40


def main(iterations: int = 100) -> None:
    """Train, then minimise, and print what happens to objective and constraints."""
    network, losses = meta_train(MetaConfig(iterations=iterations), QCQPFamily(size=10), jax.random.key(0))
    print(f"meta-loss of a run: {float(losses[0].mean()):.3f} at first, {float(losses[-1].mean()):.3f} at last")

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
    for index in range(1, 201):
        weights, state = step(weights, state)
        worst = max(worst, float(constraints(weights).max()))
        if index in (1, 10, 50, 100, 200):
            values = ", ".join(f"{float(value):8.4f}" for value in constraints(weights))
            print(f"step {index:3}  objective {float(objective(weights)):9.5f}  constraints {values}")
    print(f"largest constraint value on the way: {worst:.1e}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
