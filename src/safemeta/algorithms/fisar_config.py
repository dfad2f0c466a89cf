"""Settings of `fisar` on task families."""

from dataclasses import dataclass
from typing import Literal, get_args

from safemeta.algorithms.class_k import ClassK, Shape
from safemeta.algorithms.settings import at_least_one, check_pairs, check_policy, one_of, positive, share_of_limit
from safemeta.solvers.projection import ProjectionMetric


@dataclass(frozen=True)
class Config:
    """Settings of `fisar`. The paper gives no numbers; [A] Andrychowicz et al. 2016, the others chosen for safemeta.

    An iteration is a window of policy updates. The first `meta_iterations` train the optimizer, on policies that start
    anew every `span` updates; then new policies are trained with the optimizer as it is.
    """

    tasks: int = 8  # per policy update, drawn anew each time
    episodes: int = 8  # per task
    policies: int = 4  # trained side by side; the one that is used is the best of those within their limits
    window: int = 10  # policy updates per iteration, and through how many a meta-gradient looks back
    span: int = 100  # T_phi: policy updates after which policies start anew [A]
    meta_iterations: int = 80  # iterations that train the optimizer
    hidden: tuple[int, ...] = (32, 32)  # tanh layers of the policy
    deviation: Literal["free", "state"] = "free"  # standard deviation: one vector, or an output of the network
    initial_log_std: float = -0.5  # logarithm of the first standard deviation
    step: float = 0.05  # beta
    class_k: Shape = "linear"  # alpha
    rate: float = 4.0  # slope of alpha: a violation falls to first order by the share rate * step per update
    class_k_scale: float = 1.0  # in units of the cost; no matter where alpha is linear
    metric: ProjectionMetric = "euclidean"  # "closed_form" is the paper's
    averaging: float = 0.9  # of the cost gradients over updates; 0 takes each batch's own, as the paper does
    kl_radius: float = 0.01  # mean KL of one update at most; the paper has no such bound
    margin: float = 0.2  # share of the limit that is kept as distance; 0 is the paper's
    units: int = 20  # of each LSTM layer [A]
    layers: int = 2  # [A]
    preprocessing: float | None = None  # p [A: 10]; None: the gradient enters as it is, over its root mean square
    output_scale: float = 0.02  # of the LSTM's output, which starts as a running mean of the gradient
    learning_rate: float = 1e-3  # of Adam on the LSTM's weights

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        at_least_one(self, "tasks", "policies", "window", "span", "units", "layers")
        check_pairs(self)
        if self.meta_iterations < 0:
            raise ValueError(f"meta_iterations must not be negative, not {self.meta_iterations}.")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging must be at least 0 and below 1, not {self.averaging}.")
        positive(self, "step", "output_scale", "learning_rate", "kl_radius")
        share_of_limit(self, "margin")
        one_of(self, "metric", get_args(ProjectionMetric))
        check_policy(self)
        if self.span % self.window:
            raise ValueError(f"span must be a multiple of window, not {self.span} and {self.window}.")
        if self.alpha.rate * self.step > 1:
            raise ValueError(f"rate * step must be at most 1, or steps cross the limit; it is {self.rate * self.step}.")

    @property
    def alpha(self) -> ClassK:
        """The class-K function."""
        return ClassK(self.class_k, self.rate, self.class_k_scale)
