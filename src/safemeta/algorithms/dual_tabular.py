"""Safe policy adaptation on finite CMDPs, exactly: problem (1) of the dual-method paper, with its theorems' constants.

Xu and Zhu, "Safe Meta-Reinforcement Learning via Dual-Method-Based Policy Adaptation", Propositions 1, 2 and 4:

    argmax_pi  E_{s~nu, a~pi}[A] - lam KL    subject to    J_ci + E[A_ci] / (1 - discount) + lam_ci KL <= d_i + delta_i,

KL being `E_{s~nu} KL(pi(.|s) | pi_phi(.|s))`. Values are exact and nothing is sampled: this is for checking claims, and
for learning on models that are known. With the constants of `theorem_penalties`, a safe policy stays safe and never
gets worse, however often it is adapted (Corollary 1).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from safemeta.solvers import Outcome, discrete_policy, dual_discrete

LogPolicy = Float[Array, "states actions"]


class Evaluated(Protocol):
    """What is known of a policy; of signals the reward comes first (`tasks.tabular_exact.Evaluation` is one)."""

    @property
    def performance(self) -> Float[Array, " signals"]:
        """Expected discounted sums."""
        ...

    @property
    def advantage(self) -> Float[Array, "states actions signals"]:
        """Of each action in each state."""
        ...

    @property
    def state_weight(self) -> Float[Array, " states"]:
        """How often each state is visited, discounted."""
        ...


class Penalties(NamedTuple):
    """Weights of KL in the objective and in each constraint of problem (1)."""

    objective: Float[Array, ""]
    costs: Float[Array, " costs"]


def theorem_penalties(
    largest_advantage: Float[Array, " signals"],
    least_visitation: float | Float[Array, ""],
    discount: float | Float[Array, ""],
    *,
    share: float | Float[Array, ""] = 1.0,
) -> Penalties:
    """The least weights for which Proposition 4 promises safety and improvement.

    `4 discount A_max / (eta alpha (1 - discount))` in the objective, `4 discount A_ci_max / (eta alpha
    (1 - discount)^2)` in the constraints. `largest_advantage` is A_max over all policies, states and actions;
    `least_visitation` is eta, a lower bound of nu(s) on the states S^v under every safe policy; `share` is alpha, a
    lower bound of nu(S^v). The promise holds where S^v is all states (then alpha = 1); where it is not, it does not
    hold in general (docs/algorithms/dual.md).
    """
    scale = 4 * discount / (least_visitation * share * (1 - discount))
    return Penalties(scale * largest_advantage[0], scale / (1 - discount) * largest_advantage[1:])


class ExactStep(NamedTuple):
    """The solution of problem (1) and its evidence."""

    log_prob: LogPolicy
    multipliers: Float[Array, " costs"]
    eta: Float[Array, ""]  # temperature of the closed form
    kl: Float[Array, ""]
    gain: Float[Array, ""]  # the objective of problem (1); zero at the old policy
    room: Float[Array, " costs"]  # what is left of each constraint of problem (1), in units of the cost
    gap: Float[Array, ""]  # value of the dual at the multipliers less `gain`: zero at the optimum
    outcome: Int[Array, ""]  # an `Outcome` of the dual


def adapt_exactly(
    log_prob: LogPolicy,
    found: Evaluated,
    limits: Float[Array, " costs"],
    penalties: Penalties,
    discount: float | Float[Array, ""],
) -> ExactStep:
    """One adaptation of a policy with evaluation `found`; `limits` are `d + delta`.

    Where no multipliers exist (no policy but the old one meets the constraints, which needs a policy exactly at
    several limits) the old policy is the solution and is kept.
    """
    reward, costs = found.advantage[..., 0], jnp.moveaxis(found.advantage[..., 1:], -1, 0)
    budget = (1 - discount) * (limits - found.performance[1:])
    dual = dual_discrete(
        log_prob, reward, costs, found.state_weight, budget, penalties.objective, penalties.costs, discount
    )
    moved = discrete_policy(log_prob, reward, costs, dual.multipliers, dual.eta)
    solved = dual.outcome == Outcome.SOLVED
    moved = jnp.where(solved, moved, log_prob)

    prob = found.state_weight[:, None] * jnp.exp(moved)
    kl = jnp.sum(jnp.where(prob > 0, prob * (moved - log_prob), 0))
    gain = jnp.sum(prob * reward) - penalties.objective * kl
    room = limits - found.performance[1:] - jnp.sum(prob * costs, axis=(1, 2)) / (1 - discount) - penalties.costs * kl
    return ExactStep(moved, dual.multipliers, dual.eta, kl, gain, room, dual.value - gain, dual.outcome)


class ExactAdaptation(NamedTuple):
    """Policies 0..K and what they are worth; leaves have a leading axis of K + 1, those of `steps` of K."""

    log_prob: Float[Array, "policies states actions"]
    performance: Float[Array, "policies signals"]
    steps: ExactStep


def adapt_repeatedly(
    evaluate: Callable[[Float[Array, "states actions"]], Evaluated],
    log_prob: LogPolicy,
    limits: Float[Array, " costs"],
    penalties: Penalties,
    discount: float | Float[Array, ""],
    steps: int,
) -> ExactAdaptation:
    """`steps` adaptations, each from the policy before (Corollary 1). `evaluate` maps probabilities to values."""

    def advance(now: LogPolicy, _: None) -> tuple[LogPolicy, tuple[LogPolicy, Array, ExactStep]]:
        found = evaluate(jnp.exp(now))
        step = adapt_exactly(now, found, limits, penalties, discount)
        return step.log_prob, (now, found.performance, step)

    last, (policies, performance, taken) = jax.lax.scan(advance, log_prob, None, length=steps)
    final = evaluate(jnp.exp(last)).performance
    return ExactAdaptation(jnp.concatenate([policies, last[None]]), jnp.concatenate([performance, final[None]]), taken)
