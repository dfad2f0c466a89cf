"""Importance-weighted predictions of what a change of policy does, and the Fisher metric, on one task's samples."""

import math
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from safemeta.algorithms.estimation import Advantages
from safemeta.core import CMDP, Trajectory
from safemeta.nets import DiagonalGaussian, GaussianPolicy

Vector = Float[Array, " parameters"]
StateWeighting = Literal["uniform", "discounted"]


class Samples(eqx.Module):
    """One task's episodes with everything that an update needs. Leaves are `[episodes, time, ...]`."""

    observation: Float[Array, "*batch time observation"]
    action: Float[Array, "*batch time action"]
    log_prob: Float[Array, "*batch time"]  # under the policy that acted
    advantage: Float[Array, "*batch time"]
    cost_advantages: Float[Array, "*batch time costs"]  # centred under the weights of their limit
    reward_weight: Float[Array, "*batch time"]  # sums to one over all rows
    cost_weight: Float[Array, "*batch time"]  # sums over one row to what the limit sums
    valid: Bool[Array, "*batch time"]


def make_samples(
    trajectory: Trajectory, advantages: Advantages, cmdp: CMDP, reward_weighting: StateWeighting = "uniform"
) -> Samples:
    """Samples of one task, weighted so that the surrogates are in the units of the problem.

    By the performance-difference lemma a change of policy changes a *discounted* cost by `E[sum_t discount^t
    A_c(s_t, a_t)]` under the new policy: the weights `discount^t` belong there and are kept, since a limit is a
    promise. For the reward, whose scale is free, uniform weights use the whole episode.
    """
    valid = trajectory.valid
    cost_weight = jnp.broadcast_to(cmdp.cost_weights(trajectory.reward.dtype), valid.shape) * valid
    discounting = cmdp.discount ** jnp.arange(cmdp.horizon, dtype=trajectory.reward.dtype)
    reward_weight = valid * (discounting if reward_weighting == "discounted" else 1.0)
    reward_weight = reward_weight / jnp.sum(reward_weight)
    centre = jnp.sum(cost_weight[..., None] * advantages.costs, axis=(-3, -2)) / jnp.sum(cost_weight)
    return Samples(
        trajectory.observation,
        trajectory.action,
        trajectory.log_prob,
        advantages.reward - jnp.sum(reward_weight * advantages.reward),
        advantages.costs - centre,
        reward_weight,
        cost_weight,
        valid,
    )


class Surrogate(eqx.Module):
    """Predicted effect of a new policy on one task, relative to the one that acted.

    `reward` is `E[A]` (per step, weighted as the samples say), `costs` the change of each limited quantity, `kl`
    the mean `KL(new || old)` over visited states: the order of the dual-method paper.
    """

    reward: Float[Array, ""]
    costs: Float[Array, " costs"]
    kl: Float[Array, ""]


def surrogate(policy: GaussianPolicy, old: DiagonalGaussian, samples: Samples) -> Surrogate:
    """First-order predictions with importance weights `pi_new / pi_old` on the samples.

    Costs are means over episodes of `sum_t w_t (ratio_t - 1) A_c,t`, which is zero for the old policy.
    """
    new = policy(samples.observation)
    # After an episode's end anything may be stored, and zero times an overflow would be NaN.
    ratio = jnp.exp(jnp.where(samples.valid, new.log_prob(samples.action) - samples.log_prob, 0))
    reward = jnp.sum(samples.reward_weight * (ratio - 1) * samples.advantage)
    weighted = (samples.cost_weight * (ratio - 1))[..., None] * samples.cost_advantages
    costs = jnp.sum(weighted, axis=-2).mean(axis=0)
    kl = jnp.sum(jnp.where(samples.valid, new.kl(old), 0)) / jnp.sum(samples.valid)
    return Surrogate(reward, costs, kl)


def halves_of(old: DiagonalGaussian, samples: Samples) -> tuple[DiagonalGaussian, Samples]:
    """One task's samples as two halves of its episodes (a leading axis of two); an odd last episode is left out."""
    half = samples.valid.shape[0] // 2

    def split(leaf: Array) -> Array:
        return leaf[: 2 * half].reshape(2, half, *leaf.shape[1:])

    old, samples = jax.tree.map(split, (old, samples))
    weight = samples.reward_weight / jnp.sum(samples.reward_weight, axis=(1, 2), keepdims=True)
    return old, eqx.tree_at(lambda s: s.reward_weight, samples, weight)


def fisher_metric(
    distribution: Callable[[Vector], DiagonalGaussian], at: Vector, weight: Float[Array, "*batch"]
) -> Callable[[Vector], Vector]:
    """`v -> F v`, the Fisher information of a Gaussian policy in Gauss-Newton form, `J' M J v`.

    `J` maps parameters to (mean, log_std); `M` is diagonal: `1 / std^2` for means, 2 for log standard deviations.
    `weight` (sums to one) is the state distribution. One forward- and one reverse-mode product, no second derivatives.
    """
    here, forward = jax.linearize(lambda x: _moments(distribution(x)), at)
    backward = jax.linear_transpose(forward, at)
    precision = weight[..., None] * jnp.exp(-2 * here[1])

    def metric(v: Vector) -> Vector:
        mean, log_std = forward(v)
        return backward((precision * mean, 2 * weight[..., None] * log_std))[0]

    return metric


def _moments(distribution: DiagonalGaussian) -> tuple[Array, Array]:
    return distribution.mean, jnp.broadcast_to(distribution.log_std, distribution.mean.shape)


def state_weight(valid: Bool[Array, "*tasks episodes time"]) -> Float[Array, "*tasks episodes time"]:
    """Weights that sum to one: the valid states of a task alike, and every task alike."""
    weight = valid / jnp.sum(valid, axis=(-2, -1), keepdims=True)
    return weight / jnp.sum(weight)


def metric_states(
    observation: Float[Array, "*batch time observation"], weight: Float[Array, "*batch time"], states: int
) -> tuple[Float[Array, "*some observation"], Float[Array, "*some"]]:
    """About `states` of the states for a Fisher metric, and their weights, which sum to one."""
    kept = thinned(weight[..., None], states)[..., 0]
    return thinned(observation, states), kept / jnp.sum(kept)


def thinned(x: Float[Array, "*batch time features"], states: int) -> Float[Array, "*some features"]:
    """About `states` states, spread over all rows and times: enough for a Fisher metric."""
    total = math.prod(x.shape[:-1])
    stride = max(1, total // states)
    if stride < x.shape[-2]:
        return x[..., ::stride, :]
    # Fewer states than rows: a stride in time would see first states only. The golden ratio spreads any number evenly.
    flat = x.reshape(total, x.shape[-1])
    return flat[((np.arange(states) * 0.6180339887498949) % 1.0 * total).astype(int)]
