"""An algorithm of your own, assembled from parts: PCPO, projection-based CPO (Yang, Rosca, Narasimhan, Ramadge; 2020).

A step in two halves. Up the reward as far as the trust region allows, costs ignored, which is TRPO's step; then to the
nearest point, by the same Fisher metric, where the linearised costs keep their limits. Collecting episodes, advantages,
critics, directions through the metric and the line search are safemeta's.

    python examples/own_algorithm.py [ITERATIONS]
"""

import sys
import tempfile
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

import safemeta
from safemeta.algorithms.on_policy import OnPolicyAlgorithm
from safemeta.algorithms.trust_region import TrustRegionConfig, local_model
from safemeta.nets import with_parameters
from safemeta.solvers import backtrack, project_update


@dataclass(frozen=True)
class Config(TrustRegionConfig):
    """Settings: TRPO's, one with another default, and one more."""

    margin: float = 0.2  # aim this share of the limits below them, since a step's effect on costs is only estimated
    largest_kl: float = 0.02  # of a whole step; a projection back from far above a limit is shortened to it

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        if not self.largest_kl >= self.kl_radius:
            raise ValueError(f"largest_kl must be at least kl_radius, {self.kl_radius}, not {self.largest_kl}.")


def step(config, state, batch, key):
    """One iteration's change of the policy; critics and the rest of the state are looked after."""
    local = local_model(config, state.policy, batch.samples)
    coefficients = pcpo(local.directions, batch.violations, config.kl_radius)
    move = coefficients @ local.directions.solutions
    found = backtrack(
        local.evaluate, local.start, move, lambda values, fraction: values.kl <= config.largest_kl, shrink=0.7, steps=10
    )
    following = eqx.tree_at(lambda s: s.policy, state, with_parameters(state.policy, found.parameters))
    return following, {"kl": found.values.kl, "accepted": found.accepted.astype(float)}


def pcpo(directions, violations, radius):
    """Coefficients `c` of the step `c @ solutions`, whose first is the reward's.

    With `c' S c = |x|^2`, `x = R' c`, the Fisher metric is the plain one for x: `trpo = sqrt(2 radius / S_00) e_0` is
    projected onto `violations + effect[1:] c <= 0`.
    """
    size = jnp.diagonal(directions.gram)
    gram = directions.gram + jnp.diag(jnp.where(size > 0, 1e-5 * size, 1.0))  # a cost that never arose has no gradient
    root = jnp.linalg.cholesky(gram)
    trpo = jnp.zeros_like(size).at[0].set(jnp.sqrt(2 * radius / gram[0, 0]))
    rows = solve_triangular(root, directions.effect[1:].T, lower=True).T
    projected = project_update(root.T @ trpo, rows, -violations)
    return solve_triangular(root.T, projected.update)


class Pcpo(OnPolicyAlgorithm):
    """Projection-based CPO: TRPO's step, then to the nearest policy that keeps the limits."""

    step = staticmethod(step)


safemeta.register_algorithm(
    "pcpo", Pcpo, Config, presets={"small": Config(hidden=(32, 32))}, iterations={"default": 60}
)


def main(iterations: int = 60, fresh: int = 100, **settings) -> None:
    """Train on the point mass in two halves, the second resumed from the first, and judge on `fresh` episodes."""
    folder = tempfile.mkdtemp(prefix="own-algorithm-") + "/pcpo"
    safemeta.train("pcpo", "point-mass", iterations=max(iterations // 2, 1), out=folder, **settings)
    run = safemeta.train(resume=folder, iterations=iterations)
    report = safemeta.evaluate(run, tasks=1, episodes=fresh)
    print(f"return {run.metrics()[0]['return']:.1f} -> {report.episode_return.mean:.1f}")
    for each in report.largest_cost:
        print(f"{each.name} {each.cost.mean:.2f} [{each.cost.low:.2f}, {each.cost.high:.2f}], limit {each.limit:g}")
    print(f"training curves: {safemeta.plot(run)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
