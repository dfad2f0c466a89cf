"""Policy and cost gradients by the score function, with reward-to-go (REINFORCE; FISAR, section 3)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from safemeta.algorithms.estimation import limited_costs
from safemeta.core import CMDP, Trajectory
from safemeta.nets import GaussianPolicy, parameters, with_parameters

Vector = Float[Array, " parameters"]


class ScoreEstimate(eqx.Module):
    """Estimates at one policy: of its costs, and of the gradients of return and costs."""

    costs: Float[Array, " costs"]  # the limited quantities, means over tasks and episodes
    return_gradient: Vector  # of the discounted return
    cost_gradients: Float[Array, "costs parameters"]


def score_estimate(policy: GaussianPolicy, rows: Trajectory, cmdp: CMDP) -> ScoreEstimate:
    """Estimates on episodes `[tasks, episodes, time, ...]` of `policy` itself; two episodes per task or more.

    With weights `w_t` (`discount^t` for the return, those of the limit for costs) and `G_t = sum_{s >= t} w_s x_s`,

        grad E[sum_t w_t x_t] = E[ sum_t grad log pi(a_t | s_t) (G_t - b_t) ].

    The baseline `b_t` is the mean of `G_t` over the other episodes of the same task, which are independent of this
    one: the estimate is unbiased. Exact for every unit of a limit, `cmdp.limit_on`.
    """
    dtype = rows.reward.dtype
    discounting = cmdp.discount ** jnp.arange(cmdp.horizon, dtype=dtype)
    weights = jnp.stack([discounting, *[cmdp.cost_weights(dtype)] * rows.costs.shape[-1]], axis=1)
    signal = jnp.concatenate([rows.reward[..., None], rows.costs], axis=-1)
    signal = weights * signal * rows.valid[..., None]
    to_go = jnp.cumsum(signal[..., ::-1, :], axis=-2)[..., ::-1, :]
    episodes = to_go.shape[-3]
    # Leave-one-out: G_i - mean of the others = (G_i - mean of all) * n / (n - 1).
    centred = (to_go - to_go.mean(-3, keepdims=True)) * (episodes / (episodes - 1))
    centred = centred * rows.valid[..., None]

    # A padded step may hold anything: not even zero times its score must enter.
    observation = jnp.where(rows.valid[..., None], rows.observation, 0)
    action = jnp.where(rows.valid[..., None], rows.action, 0)

    def objectives(x: Vector) -> Float[Array, " signals"]:
        score = with_parameters(policy, x)(observation).log_prob(action)
        return jnp.sum(score[..., None] * centred, axis=-2).mean((0, 1))

    gradients = jax.jacrev(objectives)(parameters(policy))
    return ScoreEstimate(limited_costs(rows, cmdp).mean((0, 1)), gradients[0], gradients[1:])


def divergence(policy: GaussianPolicy, other: GaussianPolicy, rows: Trajectory) -> Float[Array, ""]:
    """Mean `KL(policy || other)` over the steps that took place."""
    observation = jnp.where(rows.valid[..., None], rows.observation, 0)
    kl = policy(observation).kl(other(observation))
    return jnp.sum(kl * rows.valid) / jnp.sum(rows.valid)
