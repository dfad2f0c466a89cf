"""TRPO-Lagrangian: TRPO on the reward less the costs at the prices of their multipliers (Ray, Achiam, Amodei 2019)."""

from dataclasses import dataclass

import equinox as eqx
from jaxtyping import PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.lagrange import LagrangeConfig, Multipliers, init_multipliers, priced
from safemeta.algorithms.on_policy import Batch, OnPolicyAlgorithm, State
from safemeta.algorithms.trust_region import TrustRegionConfig, trust_region_update
from safemeta.core import CMDP

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}


@dataclass(frozen=True)
class Config(TrustRegionConfig, LagrangeConfig):
    """Settings of `trpo-lagrangian`."""

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        TrustRegionConfig.validate(self)
        LagrangeConfig.validate(self)


class LagrangianState(State):
    """The policy, its critics, and the multipliers."""

    multipliers: Multipliers


def step(config: Config, state: LagrangianState, batch: Batch, key: PRNGKeyArray) -> tuple[LagrangianState, Metrics]:
    """Multipliers first, then the policy at the new prices."""
    multipliers, samples = priced(config, state.multipliers, batch.samples, batch.violations)
    policy, metrics = trust_region_update(config, state.policy, samples, batch.violations[:0])
    following = eqx.tree_at(lambda s: (s.policy, s.multipliers), state, (policy, multipliers))
    return following, metrics | {"multiplier": multipliers.value}


class Algorithm(OnPolicyAlgorithm):
    """See the module's docstring."""

    step = staticmethod(step)

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> LagrangianState:
        start = super().init(key, cmdp)
        return LagrangianState(start.policy, start.critics, init_multipliers(self.config, len(cmdp.cost_names)))
