"""Meta-CRPO (Khattar et al. 2023): CRPO on each task, and the meta-policy nearest to the policies it ends with.

Online, as in the paper: tasks come in batches (`tasks = 1`: one at a time), each is begun from the meta-policy, which
then moves towards where they ended. Offline (`keep_tasks`, preset `offline`), as in the dual-method paper's comparison:
all training tasks are known beforehand, each goes on from its own last policy, and the meta-policy follows them.
"""

from dataclasses import dataclass

from safemeta.algorithms import bilevel
from safemeta.algorithms.bilevel_config import BilevelConfig, Inner, MetaGradient, Outer

ITERATIONS = bilevel.ITERATIONS


@dataclass(frozen=True)
class Config(BilevelConfig):
    """Settings of `meta-crpo`."""

    inner: Inner = "crpo"
    outer: Outer = "nearest"
    meta_gradient: MetaGradient = "first"  # none is needed: no derivative goes through the inner steps


PRESETS = {"online": Config(), "offline": Config(tasks=10, keep_tasks=True, outer_rate=1.0)}


class Algorithm(bilevel.Algorithm):
    """See `bilevel`."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())
