"""Constrained policy optimisation (Achiam et al. 2017), for any small number of costs.

The linearised cost is believed too good, since it is predicted on the samples that made the step (`directions.py`):
plain CPO asks for too small a step back and settles above its limit, the farther the noisier the cost. So the excess
that is measured is accumulated and added to what a step is asked to take back, as the integral part of a controller
does. It rests while the step does all it can anyway (no feasible step: it only lowers the costs).
"""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
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
    may_grow = (metrics["feasible"] > 0) | (batch.violations < 0)
    grown = jnp.maximum(state.correction + config.integral_gain * batch.violations, 0)
    correction = jnp.where(may_grow, grown, state.correction)
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
