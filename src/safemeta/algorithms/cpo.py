"""Constrained policy optimisation (Achiam et al. 2017), for any small number of costs."""

from dataclasses import dataclass

import equinox as eqx
from jaxtyping import PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.on_policy import Batch, OnPolicyAlgorithm, State
from safemeta.algorithms.trust_region import TrustRegionConfig, trust_region_update

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}


@dataclass(frozen=True)
class Config(TrustRegionConfig):
    """Settings of `cpo`."""


def step(config: Config, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Metrics]:
    """Maximise `E[A]` within a mean KL of `kl_radius`, subject to the linearised costs; recover where infeasible."""
    policy, metrics = trust_region_update(config, state.policy, batch.samples, batch.violations)
    return eqx.tree_at(lambda s: s.policy, state, policy), metrics


class Algorithm(OnPolicyAlgorithm):
    """See the module's docstring."""

    step = staticmethod(step)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
