"""Trust-region policy optimisation (Schulman et al. 2015): costs are logged and ignored; the unsafe reference."""

from dataclasses import dataclass

from safemeta.algorithms.trust_region import TrustRegionAlgorithm, TrustRegionConfig

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}


@dataclass(frozen=True)
class Config(TrustRegionConfig):
    """Settings of `trpo`."""


class Algorithm(TrustRegionAlgorithm):
    """Maximise `E[A]` within a mean KL of `kl_radius`."""

    constrained = False

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
