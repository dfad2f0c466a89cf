"""Settings of the bilevel loop; the named systems are choices among them."""

from dataclasses import dataclass
from typing import Literal

from safemeta.algorithms.settings import (
    at_least_one,
    check_fisher_states,
    check_policy,
    check_smoothing,
    one_of,
    positive,
    share_of_limit,
    zero_or_more,
)

Inner = Literal["cpo", "trpo", "crpo", "gradient", "dual"]
Outer = Literal["cpo", "trpo", "switch", "nearest"]
Bounded = Literal["adapted", "initial"]
MetaGradient = Literal["exact", "first"]
Sampling = Literal["ratio", "ignored"]
Metric = Literal["fisher", "euclidean"]
CHOICES = {
    "inner": ("cpo", "trpo", "crpo", "gradient", "dual"),
    "outer": ("cpo", "trpo", "switch", "nearest"),
    "bounded": ("adapted", "initial"),
    "meta_gradient": ("exact", "first"),
    "sampling": ("ratio", "ignored"),
    "metric": ("fisher", "euclidean"),
    "critic": ("neural", "linear"),
}


@dataclass(frozen=True)
class BilevelConfig:
    """Settings of `bilevel`. Sources: [P] stated in the Meta-CPO paper, [S] chosen for safemeta.

    `inner` changes a task's policy, `outer` the meta-policy; `meta_gradient` is how the second sees through the first.
    """

    inner: Inner = "cpo"  # "gradient" is MAML's step on the return less a penalty for violated costs
    outer: Outer = "cpo"  # "switch" is CRPO's either-or; "nearest" goes to the policy nearest to all adapted ones
    bounded: Bounded = "adapted"  # costs that the outer step keeps: adapted policies' mean, or the meta-policy's worst
    meta_gradient: MetaGradient = "exact"  # through all inner steps, or as if they added a constant
    inner_steps: int = 5  # K [P]
    tasks: int = 5  # per meta-iteration [P]
    episodes: int = 8  # per task and policy [S; released code: 8 of 500 steps]
    hidden: tuple[int, ...] = (64, 64)  # tanh layers of policy and critics [S; P: 32, 16]
    deviation: Literal["free", "state"] = "free"  # standard deviation: one vector, or an output of the network
    initial_log_std: float = -0.5  # [S]

    metric: Metric = "fisher"  # of the trust regions [S; released code: euclidean]
    sampling: Sampling = "ratio"  # how the meta-gradient sees that data depend on the policy; see bilevel.py [S]
    inner_radius: float = 0.01  # mean KL (or half the squared length) of one inner step [P]
    outer_radius: float = 0.01  # the same of the outer step [P]
    margin: float = 0.0  # inner and outer steps aim this share of the limit below it [S; P: 0]
    inner_learning_rate: float = 0.1  # of the inner step "gradient" [S]
    penalty: float = 1.0  # of a violated cost in the inner step "gradient", advantages in standard deviations [S]
    integral_gain: float = 0.1  # share of a measured excess that later outer steps "cpo" take back too [S; P: 0]
    least_share: float = 0.05  # an outer step "cpo" asks for at most 1 / this times the excess, see outer.py [S; P: 1]
    kl_weight: float = 0.1  # lambda of the inner step "dual" [S; dual method's paper: 0.5]
    cost_kl_weight: float = 300.0  # lambda_c of the same [S; 0.5]
    outer_rate: float = 0.5  # share of the way to the nearest policy that the outer step "nearest" goes [S]
    keep_tasks: bool = False  # the same tasks in all iterations, each going on from its last policy (offline Meta-CRPO)

    critic: Literal["neural", "linear"] = "linear"  # value functions [S]
    critic_learning_rate: float = 1e-3  # [S]
    critic_steps: int = 80  # minibatches per meta-iteration [S]
    minibatch: int = 500  # [S]
    gae_smoothing: float = 0.95  # lambda of generalised advantage estimation [released code]
    cg_iterations: int = 10  # [S, usual for TRPO]
    damping: float = 1e-2  # of the Fisher metric [S, usual for TRPO]
    fisher_states: int = 4000  # states of the outer step's metric; a tenth of it for each task's inner step [S]

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        for name, allowed in CHOICES.items():
            one_of(self, name, allowed)
        at_least_one(self, "inner_steps", "tasks", "episodes", "critic_steps", "minibatch", "cg_iterations")
        check_fisher_states(self)
        positive(self, "inner_radius", "outer_radius", "inner_learning_rate", "critic_learning_rate", "kl_weight")
        zero_or_more(self, "damping", "penalty", "cost_kl_weight", "integral_gain")
        if not 0 < self.outer_rate <= 1:
            raise ValueError(f"outer_rate is a share of a way: above 0 and at most 1, not {self.outer_rate}.")
        if not 0 < self.least_share <= 1:
            raise ValueError(f"least_share is a share of a gradient: above 0 and at most 1, not {self.least_share}.")
        if self.keep_tasks and self.outer != "nearest":
            raise ValueError("keep_tasks needs outer = nearest: other outer steps ask what starting elsewhere changes.")
        share_of_limit(self, "margin")
        check_smoothing(self)
        check_policy(self)
