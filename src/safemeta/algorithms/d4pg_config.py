"""Settings of the learners on D4PG, and what is wrong with them."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from safemeta.algorithms.categorical import Support
from safemeta.algorithms.off_policy import OffPolicyConfig
from safemeta.algorithms.settings import at_least_one, layers, one_of, positive, zero_or_more
from safemeta.core import CMDP

ReplayKind = Literal["uniform", "prioritised"]


@dataclass(frozen=True)
class D4pgConfig(OffPolicyConfig):
    """Settings of `d4pg`; defaults are those of Acme's D4PG, since MetaL's own are in an appendix that is lost."""

    hidden: tuple[int, ...] = (256, 256, 256)  # of the policy: a normalised tanh layer, then ELU
    critic_hidden: tuple[int, ...] = (512, 512, 256)  # of the critic, likewise
    capacity: int = 1_000_000  # control steps that the replay holds
    warm_up: int = 1000  # control steps before the first update
    steps_per_update: int = 8  # 32 samples per insertion in batches of 256
    replay: ReplayKind = "uniform"  # as in Acme; the paper says prioritised
    priority_exponent: float = 0.6  # alpha of prioritised replay (Schaul et al. 2016, proportional variant)
    importance_exponent: float = 0.4  # beta, from which they anneal to 1; here it stays
    n_step: int = 5  # steps whose rewards are summed before the critic is asked
    atoms: int = 51  # of the distribution of returns, evenly spaced over the support
    support: tuple[float, float] = (-150.0, 150.0)  # lowest and highest atom
    noise: float = 0.3  # standard deviation of what is added to actions when exploring
    policy_rate: float = 1e-4  # of Adam, like the next
    critic_rate: float = 1e-4  # of Adam on the critic
    target_period: int = 100  # gradient steps between renewals of the target networks
    gradient_clip: float = 40.0  # global norm
    action_gradient_clip: float | None = 1.0  # norm of dQ/da of each action; the paper mentions none

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        at_least_one(self, "n_step", "target_period")
        positive(self, "policy_rate", "critic_rate", "gradient_clip")
        zero_or_more(self, "noise")
        one_of(self, "replay", get_args(ReplayKind))
        for name in ("priority_exponent", "importance_exponent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")
        layers(self, "critic_hidden")
        if self.atoms < 2:
            raise ValueError(f"atoms must be at least 2, not {self.atoms}.")
        if not -float("inf") < self.support[0] < self.support[1] < float("inf"):
            raise ValueError(f"support must be a lower and a higher number, not {self.support}.")
        if self.action_gradient_clip is not None:
            positive(self, "action_gradient_clip")
        rows = self.tasks * self.episodes
        if self.capacity < (self.n_step + 2) * rows:
            raise ValueError(
                f"capacity must hold at least n_step + 2 = {self.n_step + 2} steps of each of the {rows} rows, not"
                f" {self.capacity}."
            )

    @property
    def categories(self) -> Support:
        """The critic's atoms."""
        return Support(*self.support, self.atoms)

    def multipliers(self, costs: int) -> Float[Array, " costs"]:
        """What costs are priced at to begin with."""
        return jnp.zeros(costs)


@dataclass(frozen=True)
class FixedConfig(D4pgConfig):
    """Settings of `rs-d4pg`; the paper has 0.1, 1, 10 and 100."""

    multiplier: tuple[float, ...] = (0.1,)  # of each cost, or one for all

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        if not self.multiplier or not all(0 <= value < float("inf") for value in self.multiplier):
            raise ValueError(f"multiplier must be one or more numbers that are zero or more, not {self.multiplier}.")

    def multipliers(self, costs: int) -> Float[Array, " costs"]:
        if len(self.multiplier) not in (1, costs):
            raise ValueError(f"multiplier has {len(self.multiplier)} numbers; this task has {costs} costs.")
        return jnp.broadcast_to(jnp.asarray(self.multiplier, jnp.float32), (costs,))


@dataclass(frozen=True)
class ConstrainedConfig(D4pgConfig):
    """Settings of `rc-d4pg`. The paper's rate and buffer are not known; these were chosen for some 100,000 updates."""

    multiplier_rate: float = 1e-3  # per gradient step and unit of violation
    initial_multiplier: float = 0.0  # price of a unit of cost before the first update
    penalty_episodes: int = 20  # the last so many episodes, of which each gradient step draws one

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        positive(self, "multiplier_rate")
        zero_or_more(self, "initial_multiplier")
        at_least_one(self, "penalty_episodes")

    def multipliers(self, costs: int) -> Float[Array, " costs"]:
        return jnp.full(costs, self.initial_multiplier)


FAST: dict[str, Any] = {  # for runs of minutes
    "hidden": (64, 64),
    "critic_hidden": (128, 128),
    "capacity": 200_000,
    "batch": 128,
    "policy_rate": 3e-4,
    "critic_rate": 1e-3,
    "support": (-100.0, 100.0),
}
# A policy that has learned nothing yet violates as it likes: at the default rate its price would be ruinous by then.
FAST_MULTIPLIER_RATE = 1e-4


def support_doubt(config: D4pgConfig, cmdp: CMDP) -> str | None:
    """A sentence if the critic's atoms cannot hold the shaped returns of rewards and costs between 0 and 1."""
    gamma, horizon = cmdp.discount, cmdp.horizon
    most = float(horizon) if gamma == 1 else (1 - gamma**horizon) / (1 - gamma)
    with jax.ensure_compile_time_eval():  # numbers, also where the initial state is traced
        least = 0.0 - most * float(jnp.sum(config.multipliers(len(cmdp.cost_names))))
    low, high = config.support
    if low <= least and most <= high:
        return None
    return (
        f"The critic's support, {low:g} to {high:g}, cannot hold all shaped returns: with rewards and costs between 0"
        f" and 1 they reach from {least:.6g} to {most:.6g}. What is beyond is clipped; see the metric clipped_mass."
    )
