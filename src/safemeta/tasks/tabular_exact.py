"""What theorems on finite CMDPs are made of: a policy's exact evaluation, and extremes over all policies."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from safemeta.tasks.tabular import TabularCMDP, action_values, visitation

MOST_POLICIES = 20_000


class Evaluation(NamedTuple):
    """All that is to be known of one policy on one CMDP; of signals the reward comes first, then the costs."""

    performance: Float[Array, " signals"]  # J, the discounted sum from the initial distribution
    advantage: Float[Array, "states actions signals"]  # Q - V
    state_weight: Float[Array, " states"]  # nu(s) = (1 - discount) sum_t discount^t P(s_t = s), sums to one


def evaluate(cmdp: TabularCMDP, policy: Float[Array, "states actions"], discount: float | Array) -> Evaluation:
    """Exact values, advantages and visitation of a policy, by linear solves."""
    action = action_values(cmdp, policy, discount)
    value = jnp.einsum("sa,sax->sx", policy, action)
    weight = (1 - discount) * jnp.sum(visitation(cmdp, policy, discount), axis=1)
    return Evaluation(cmdp.initial @ value, action - value[:, None], weight)


def deterministic_policies(states: int, actions: int) -> Float[np.ndarray, "policies states actions"]:
    """All `actions ** states` deterministic policies; `ValueError` where they are too many to be listed."""
    count = actions**states
    if count > MOST_POLICIES:
        raise ValueError(f"{actions}^{states} deterministic policies are too many to list (at most {MOST_POLICIES})")
    return np.eye(actions)[np.array(list(itertools.product(range(actions), repeat=states)))]


class Extremes(NamedTuple):
    """Over every policy, randomised ones included."""

    advantage: Float[Array, " signals"]  # max over policies, states, actions of |A|
    least_visitation: Float[Array, " states"]  # min over policies of nu(s)


def extremes(cmdp: TabularCMDP, discount: float | Array) -> Extremes:
    """The largest advantage and the least visitation that any policy has, exactly.

    As functions of the policy in one state (the others fixed) both `Q(s, a) - V(s)` and `nu(s)` are ratios of linear
    functions with one denominator (Sherman-Morrison), hence monotone along every segment: their extremes over all
    policies are those over the deterministic ones, which are listed.
    """
    listed = jnp.asarray(deterministic_policies(*cmdp.reward.shape[-2:]), cmdp.reward.dtype)
    found = jax.vmap(lambda policy: evaluate(cmdp, policy, discount))(listed)
    return Extremes(jnp.max(jnp.abs(found.advantage), axis=(0, 1, 2)), jnp.min(found.state_weight, axis=0))
