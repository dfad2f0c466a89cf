"""Meta-CPO (Cho and Sun, AAAI 2024): CPO within CPO, the meta-gradient exact through all inner steps."""

from dataclasses import dataclass

from safemeta.algorithms import bilevel
from safemeta.algorithms.bilevel_config import BilevelConfig, Inner, MetaGradient, Outer

ITERATIONS = bilevel.ITERATIONS


@dataclass(frozen=True)
class Config(BilevelConfig):
    """Settings of `meta-cpo`."""

    inner: Inner = "cpo"
    outer: Outer = "cpo"
    meta_gradient: MetaGradient = "exact"


# The released code's sizes and metric, with the paper's mathematics (docs/algorithms/meta-cpo.md).
RELEASED = Config(tasks=3, inner_steps=3, episodes=8, hidden=(24, 12), metric="euclidean", initial_log_std=0.0)
PRESETS = {"safe": Config(), "released": RELEASED}


class Algorithm(bilevel.Algorithm):
    """See `bilevel`."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
