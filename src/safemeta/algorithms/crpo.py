"""Constraint-rectified policy optimisation (Xu, Liang, Lan 2021): up the reward, or down the cost that is violated.

No multipliers: while every cost is within its limit plus a tolerance, a step of TRPO on the reward; else a step of TRPO
on minus the one cost that is farthest above.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.lagrange import weighed
from safemeta.algorithms.on_policy import Batch, OnPolicyAlgorithm, State
from safemeta.algorithms.surrogate import Samples
from safemeta.algorithms.trust_region import TrustRegionConfig, trust_region_update

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}


@dataclass(frozen=True)
class Config(TrustRegionConfig):
    """Settings of `crpo`."""

    tolerance: float = 0.0  # eta of Algorithm 1, in the limit's unit: costs up to limit + tolerance are left alone

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance must be a number that is zero or more, not {self.tolerance}.")


def switched(samples: Samples, excess: Float[Array, " costs"]) -> Samples:
    """Samples `[tasks, ...]` whose objective is the reward if no excess is positive, else minus the worst cost."""
    keeps = jnp.all(excess <= 0).astype(samples.advantage.dtype)
    worst = jax.nn.one_hot(jnp.argmax(excess), excess.shape[0], dtype=samples.advantage.dtype)
    return jax.vmap(lambda one: weighed(one, keeps, (1 - keeps) * worst))(samples)


def step(config: Config, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Metrics]:
    """TRPO's step on what the measured costs call for."""
    excess = batch.violations - config.tolerance
    policy, metrics = trust_region_update(config, state.policy, switched(batch.samples, excess), excess[:0])
    metrics["feasible"] = jnp.all(excess <= 0).astype(jnp.float32)
    return eqx.tree_at(lambda s: s.policy, state, policy), metrics


class Algorithm(OnPolicyAlgorithm):
    """See the module's docstring."""

    step = staticmethod(step)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
