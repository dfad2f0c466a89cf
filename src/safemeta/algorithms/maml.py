"""MAML for constrained tasks (Finn et al. 2017): a gradient step on the return less a penalty, TRPO outside."""

from dataclasses import dataclass

from safemeta.algorithms import bilevel
from safemeta.algorithms.bilevel_config import BilevelConfig, Inner, MetaGradient, Outer

ITERATIONS = bilevel.ITERATIONS


@dataclass(frozen=True)
class Config(BilevelConfig):
    """Settings of `maml`."""

    inner: Inner = "gradient"
    outer: Outer = "trpo"
    meta_gradient: MetaGradient = "exact"
    inner_steps: int = 1


class Algorithm(bilevel.Algorithm):
    """See `bilevel`."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
