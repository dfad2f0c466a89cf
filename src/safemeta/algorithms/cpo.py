"""Constrained policy optimisation (Achiam et al. 2017), for any small number of costs.

Plain CPO settles above its limit, the farther the noisier the cost: see `corrected`, which mends it.
"""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.directions import corrected
from safemeta.algorithms.on_policy import Batch, OnPolicyAlgorithm, State
from safemeta.algorithms.settings import zero_or_more
from safemeta.algorithms.trust_region import TrustRegionConfig, trust_region_update
from safemeta.core import CMDP

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}


@dataclass(frozen=True)
class Config(TrustRegionConfig):
    """Settings of `cpo`."""

    integral_gain: float = 0.1  # share of a measured excess that later steps are asked to take back too [paper: 0]

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        zero_or_more(self, "integral_gain")


class CPOState(State):
    """The policy, its critics, and what is added to each measured excess."""

    correction: Float[Array, " costs"]


def step(config: Config, state: CPOState, batch: Batch, key: PRNGKeyArray) -> tuple[CPOState, Metrics]:
    """Maximise `E[A]` within a mean KL of `kl_radius`, subject to the linearised costs; recover where infeasible."""
    asked = batch.violations + state.correction
    policy, metrics = trust_region_update(config, state.policy, batch.samples, asked)
    correction = corrected(state.correction, batch.violations, metrics["feasible"] > 0, config.integral_gain)
    following = eqx.tree_at(lambda s: (s.policy, s.correction), state, (policy, correction))
    return following, metrics | {"correction": correction}


class Algorithm(OnPolicyAlgorithm):
    """See the module's docstring."""

    step = staticmethod(step)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> CPOState:
        start = super().init(key, cmdp)
        return CPOState(start.policy, start.critics, jnp.zeros(len(cmdp.cost_names)))
