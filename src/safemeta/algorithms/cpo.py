"""Constrained policy optimisation (Achiam et al. 2017), for any small number of costs."""

from dataclasses import dataclass

from safemeta.algorithms.trust_region import TrustRegionAlgorithm, TrustRegionConfig

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}


@dataclass(frozen=True)
class Config(TrustRegionConfig):
    """Settings of `cpo`."""


class Algorithm(TrustRegionAlgorithm):
    """Maximise `E[A]` within a mean KL of `kl_radius`, subject to the linearised costs; recover where infeasible."""

    constrained = True

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
