"""Settings of the dual method, and those that have names."""

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

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


@dataclass(frozen=True)
class Config:
    """Settings of `dual` (Xu and Zhu, safe meta-RL by dual-method-based policy adaptation).

    Sources: [P] stated in the paper (appendix D.2), [S] chosen for safemeta and measured on Point-Circle
    (docs/algorithms/dual.md). Margins are shares of the limit, so that they carry over to other limits.
    """

    tasks: int = 10  # tasks per meta-iteration [P]
    episodes: int = 10  # episodes per task and policy, in training and in adaptation [P, navigation]
    corner_tasks: int = 2  # of `tasks`, how many are the hardest corner of the training distribution [S]
    hidden: tuple[int, ...] = (64, 64)  # tanh layers of policy and critics [P]
    deviation: Literal["free", "state"] = (
        "free"  # standard deviation: one vector, or an output of the network [P: state]
    )
    initial_log_std: float = -0.5  # [S]

    form: Literal["natural", "fit", "gaussian"] = (
        "natural"  # how the closed form becomes a network: see dual_adaptation.py
    )
    adapt: Literal["all", "last"] = "last"  # adapt all of the policy's parameters, or its last layer [S; P: all]
    kl_weight: float = 0.1  # lambda of problem (1) [P: 0.5]
    cost_kl_weight: float = 300.0  # lambda_c of problem (1) [P: 0.5]
    slack: float = 0.0  # delta_c, allowed violation, in units of the cost [P]
    margin: float = 0.35  # adaptation aims this share of the limit below it [S; P: 0]
    kl_limit: float = 0.01  # mean KL of one adaptation step is never above this [S; P: tuned to about 0.03]
    lowering: float = 3.0  # a step that only lowers costs is asked for this many times what is needed [S; P: 1]
    cross_fit: bool = False  # predict effects across halves of the episodes (directions.py) [S; P: no]
    fit_steps: int = 80  # Adam steps of the form "fit"; of "gaussian", half of those of its advantage models [S]
    fit_learning_rate: float = 3e-4  # [S]

    meta_update: Literal["constrained", "switch"] = (
        "constrained"  # one constrained step, or CRPO's either-or [P: switch]
    )
    meta_gradient: Literal["first", "full"] = "first"  # Algorithm 4, or both terms of eq. 6 [P: first]
    meta_kl: float = 4e-3  # trust region of the meta-step [P: 1e-3]
    meta_margin: float = 0.35  # the meta-policy's cost on its worst tasks aims this share below the limit [S; P: 0]
    cost_episodes: int = 30  # further episodes per task that only measure the meta-policy's cost [S; P: 0]
    integral_gain: float = 0.1  # of the correction of the meta-step's constraints [S; P: 0]
    meta_cross_fit: bool = False  # the same for the meta-step [S; P: no]
    own_return: bool = True  # the meta-policy's own return is part of the objective [S; P: no]
    worst_temperature: float = 0.2  # softness of "worst tasks", as a share of the limit [S]
    validation_margin: float = (
        0.2  # a meta-policy is kept only if its cost on validation tasks is this share below the limit [S]
    )
    validation_every: int = 1  # meta-iterations from one validation to the next; it is costly on MuJoCo [S]
    validation_tasks: int = 16  # measured in each, like the hardest corner [S]
    validation_episodes: int = 8  # per validation task [S]
    corner_episodes: int = 100  # of the hardest corner [S]

    critic: Literal["neural", "linear"] = "neural"  # value functions [S]
    critic_learning_rate: float = 1e-3  # [S]
    critic_steps: int = 80  # minibatches per meta-iteration [S]
    adapt_critic_steps: int = 40  # minibatches per adaptation step and task [S]
    minibatch: int = 500  # [S]
    gae_smoothing: float = 0.95  # lambda of generalised advantage estimation [S]
    cg_iterations: int = 10  # [S, usual for TRPO]
    damping: float = 1e-2  # of the Fisher metric [S, usual for TRPO]
    fisher_states: int = 4000  # states per meta-step metric; a tenth of it per adapted task [S]

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        for name, choices in CHOICES.items():
            one_of(self, name, choices)
        at_least_one(
            self,
            "tasks",
            "episodes",
            "validation_every",
            "validation_tasks",
            "validation_episodes",
            "fit_steps",
            "critic_steps",
            "adapt_critic_steps",
            "minibatch",
            "cg_iterations",
        )
        for name in ("cross_fit", "meta_cross_fit"):
            if getattr(self, name) and self.episodes < 2:
                raise ValueError(f"{name} needs at least 2 episodes per policy; got episodes = 1.")
        if not 0 <= self.corner_tasks <= self.tasks:
            raise ValueError(f"corner_tasks must lie between 0 and tasks = {self.tasks}, not {self.corner_tasks}.")
        positive(
            self, "kl_limit", "meta_kl", "kl_weight", "worst_temperature", "critic_learning_rate", "fit_learning_rate"
        )
        share_of_limit(self, "margin", "meta_margin", "validation_margin")
        zero_or_more(self, "lowering", "cost_kl_weight", "slack", "damping", "cost_episodes", "integral_gain")
        check_fisher_states(self)
        if self.corner_episodes < 2:
            raise ValueError(f"corner_episodes must be at least 2 for a standard error, not {self.corner_episodes}.")
        check_smoothing(self)
        check_policy(self)


# What the settings that are words may be, from their types.
CHOICES = {field.name: get_args(field.type) for field in fields(Config) if get_origin(field.type) is Literal}

# The paper's own settings (D.2, Table 2, Algorithm 4): the reference that is not safe on every task.
PAPER = Config(
    corner_tasks=0,
    deviation="state",
    form="fit",
    adapt="all",
    kl_weight=0.5,
    cost_kl_weight=0.5,
    margin=0.0,
    kl_limit=0.06,
    lowering=1.0,
    cross_fit=False,
    meta_update="switch",
    meta_kl=1e-3,
    meta_margin=0.0,
    cost_episodes=0,
    integral_gain=0.0,
    own_return=False,
    validation_margin=0.0,
)
# The safe settings where costs do not hang on a narrow task: larger steps of all parameters, linear critics as the
# baselines have, the baselines' trust region. One step of the safe ones moves a policy of these robots by 0.002 to 0.01
# nats, where the paper tunes lambda for 0.03 (docs/algorithms/dual.md).
LOCOMOTION = Config(
    corner_tasks=0,
    adapt="all",
    kl_weight=0.01,
    cost_kl_weight=20.0,
    kl_limit=0.1,
    meta_kl=0.01,
    critic="linear",
)
PRESETS = {"safe": Config(), "paper": PAPER, "locomotion": LOCOMOTION}
ITERATIONS = {"smoke": 2, "default": 200, "paper": 300}
