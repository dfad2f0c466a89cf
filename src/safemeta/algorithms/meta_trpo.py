"""Meta-TRPO: TRPO within TRPO, costs ignored; the unsafe reference of the Meta-CPO paper."""

from dataclasses import dataclass

from safemeta.algorithms import bilevel
from safemeta.algorithms.bilevel_config import BilevelConfig, Inner, MetaGradient, Outer

ITERATIONS = bilevel.ITERATIONS


@dataclass(frozen=True)
class Config(BilevelConfig):
    """Settings of `meta-trpo`."""

    inner: Inner = "trpo"
    outer: Outer = "trpo"
    meta_gradient: MetaGradient = "exact"


class Algorithm(bilevel.Algorithm):
    """See `bilevel`."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
