"""Theorem 1 of the dual-method paper (eq. 7 and 8) on families of finite CMDPs; a part of `theorems.py`.

On families of tasks of one state and two actions the meta-policy is one number, and problem (2) is solved by listing
it. On families of several states, one admissible meta-policy for which eq. 7 holds with a lower bound of the task
variance is a certificate: the solution of problem (2) is no worse.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from safemeta.algorithms.dual_tabular import adapt_exactly, theorem_penalties
from safemeta.tasks.tabular import TabularCMDP, optimal_safe_policy
from safemeta.tasks.tabular_exact import evaluate, extremes
from safemeta.tasks.tabular_families import random_cmdp

TOLERANCE = 1e-9


@dataclass
class NearOptimality:
    """Theorem 1 over many families of tasks."""

    families: int = 0
    admissible: int = 0  # families in which the policy nearest to the optimal ones may be the meta-policy (Lemma 7)
    below: int = 0  # families that break eq. 7 although it may
    below_otherwise: int = 0  # families that break eq. 7 where it may not
    undecided: int = 0  # families without a certificate
    above: int = 0  # families that break eq. 8
    excess: float = -np.inf  # largest J_c - d - delta of an adapted policy
    shortfall: float = -np.inf  # largest amount by which eq. 7 is missed where it may not be

    @property
    def elsewhere(self) -> int:
        """Families in which the nearest policy is not admissible, certificates apart."""
        return self.families - self.admissible - self.undecided


def bandit(reward: Array, cost: Array) -> TabularCMDP:
    """One state and two actions, of which the first pays and costs nothing."""
    zero = jnp.zeros_like(reward)
    return TabularCMDP(
        jnp.ones((1, 2, 1)), jnp.stack([zero, reward])[None], jnp.stack([zero, cost])[None, :, None], jnp.ones(1)
    )


def bernoulli_kl(p: Any, q: Any) -> Any:
    """KL divergence of two coins."""
    return p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))


@partial(jax.jit, static_argnums=5)
def bandit_family(
    weight: Array, reward: Array, cost: Array, limit: Array, discount: Array, grid: int = 401
) -> dict[str, Array]:
    """Theorem 1 with epsilon = 0 for tasks `bandit(reward[i], cost[i])` of probability `weight[i]`.

    The optimal policies take the second action with probability `(1 - discount) limit / cost`, the policy nearest to
    them with the mean of these; eta = alpha = 1, `A_max` is the largest reward. Problem (2) is solved by listing.
    """
    best = (1 - discount) * limit / cost
    shares = jnp.linspace(0.02, 1, 50)[:, None]  # of the limit: epsilon = (1 - share) limit
    nearest = weight @ best
    radius = jnp.max(bernoulli_kl(best * shares, nearest * shares))
    delta = 8 * discount * cost.max() / (1 - discount) ** 2 * radius
    variance = weight @ bernoulli_kl(best, nearest)
    bound = weight @ (best * reward) / (1 - discount) - 8 * discount * reward.max() / (1 - discount) ** 2 * variance
    largest = jnp.minimum((1 - discount) * (limit + delta) / cost.max(), 0.999)
    candidates = jnp.append(jnp.linspace(1e-3, largest, grid), jnp.minimum(nearest, largest))
    penalties = theorem_penalties(jnp.stack([reward.max(), cost.max()]), 1.0, discount)

    def adapted(p: Array, gain: Array, charge: Array) -> Array:
        model, start = bandit(gain, charge), jnp.log(jnp.stack([1 - p, p]))[None]
        found = evaluate(model, jnp.exp(start), discount)
        step = adapt_exactly(start, found, limit[None] + delta, penalties, discount)
        return evaluate(model, jnp.exp(step.log_prob), discount).performance

    reached = jax.vmap(lambda p: jax.vmap(lambda r, c: adapted(p, r, c))(reward, cost))(candidates)
    returns = reached[..., 0] @ weight
    return {
        "admissible": nearest <= largest,
        "shortfall": bound - returns.max(),
        "excess": jnp.max(reached[..., 1]) - limit - delta,
        "best": candidates[jnp.argmax(returns)],
        "nearest": nearest,
        "delta": delta,
        "return": returns.max(),
        "bound": bound,
    }


def bandit_families(count: int, seed: int) -> NearOptimality:
    """Families of three tasks with discounts 0.5 to 0.95, similar to very different, the first task rare or not."""
    generator, total = np.random.default_rng(seed), NearOptimality()
    weight = generator.dirichlet(np.ones(3), count) ** generator.integers(1, 4, (count, 1))
    weight /= weight.sum(1, keepdims=True)
    discount = generator.uniform(0.5, 0.95, count)
    reward = 10 ** generator.uniform(-1, 1, (count, 3))
    cost = 1 + 10 ** generator.uniform(-3, -0.3, (count, 1)) * generator.uniform(-1, 1, (count, 3))
    limit = generator.uniform(0.2, 0.8, count) * cost.min(1) / (1 - discount)
    found = jax.vmap(bandit_family)(*map(jnp.asarray, (weight, reward, cost, limit, discount)))
    missed = np.asarray(found["shortfall"]) > 1e-2 * np.abs(np.asarray(found["return"]))  # beyond the list's fineness
    admissible, excess = np.asarray(found["admissible"]), np.asarray(found["excess"])
    total.families, total.admissible = count, int(admissible.sum())
    total.below, total.below_otherwise = int((missed & admissible).sum()), int((missed & ~admissible).sum())
    total.above, total.excess = int((excess > TOLERANCE).sum()), float(excess.max())
    total.shortfall = float(np.asarray(found["shortfall"])[admissible].max())
    return total


def nearest_policy(policies: np.ndarray, weights: list[Any]) -> np.ndarray:
    """A policy near all of `policies` `[tasks, states, actions]`: their mean under its own visits (a fixed point)."""
    policy = policies.mean(0)
    for _ in range(100):
        visits = np.stack([np.asarray(weight(policy)) for weight in weights])
        policy = np.einsum("ts,tsa->sa", visits, policies) / visits.sum(0)[:, None]
    return (1 - 1e-9) * policy + 1e-9 / policy.shape[1]


def _shifted(base: TabularCMDP, other: TabularCMDP, spread: float) -> TabularCMDP:
    return TabularCMDP(
        base.transition, base.reward + spread * other.reward, base.costs + spread * other.costs, base.initial
    )


def tabular_families(count: int, seed: int, tasks: int = 3) -> NearOptimality:
    """Families of `tasks` random CMDPs with the same transitions; certificates of eq. 7 at the nearest policy.

    Eq. 7 holds for the solution of problem (2) if it holds for any admissible policy. The task variance is replaced by
    the lower bound `eta sum_s min_pi E KL(pi*(.|s) | pi)`, the radius by its value at epsilon = 0 and this policy.
    """
    total, discount = NearOptimality(), 0.6
    measure = jax.jit(evaluate, static_argnums=2)
    adapt = jax.jit(adapt_exactly, static_argnums=4)
    bounds = jax.jit(jax.vmap(lambda cmdp: extremes(cmdp, discount)))
    for index in range(count):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), index), tasks + 1)
        base = random_cmdp(keys[0], 3, 2, 2, 1)
        spread = (0.003, 0.03, 0.3)[index % 3]
        cmdps = [
            TabularCMDP(
                base.transition, base.reward + spread * other.reward, base.costs + spread * other.costs, base.initial
            )
            for other in (random_cmdp(key, 3, 2, 2, 1) for key in keys[1:])
        ]
        extreme = bounds(jax.tree.map(lambda *leaves: jnp.stack(leaves), *cmdps))
        even = jnp.full((3, 2), 0.5)
        limit = max(float(measure(cmdp, even, discount).performance[1]) for cmdp in cmdps)
        optima = [optimal_safe_policy(cmdp, (limit,), discount) for cmdp in cmdps]
        policies = np.stack([optimum.policy for optimum in optima])
        weights = [
            partial(lambda cmdp, p: measure(cmdp, jnp.asarray(p), discount).state_weight, cmdp) for cmdp in cmdps
        ]
        nearest = nearest_policy(policies, weights)
        visits = np.stack([np.asarray(weight(nearest)) for weight in weights])
        logs = np.log(np.maximum(policies, 1e-300))
        radius = float((visits * (policies * (logs - np.log(nearest))).sum(-1)).sum(1).max())
        least = float(extreme.least_visitation.min())
        penalties = theorem_penalties(extreme.advantage.max(0), least, discount)
        delta = 2 * float(penalties.costs[0]) * max(radius, 0.0)
        apart = (policies * (logs - np.log(np.maximum(policies.mean(0), 1e-300)))).sum(-1).mean(0).sum()
        missing = 2 * float(penalties.objective) / (1 - discount) * least * apart
        start, wanted = jnp.log(jnp.asarray(nearest)), np.mean([optimum.reward for optimum in optima]) - missing
        before = [measure(cmdp, jnp.asarray(nearest), discount) for cmdp in cmdps]
        total.families += 1
        if max(float(found.performance[1]) for found in before) > limit + delta + 1e-8:
            total.undecided += 1
            continue
        total.admissible += 1
        allowed = jnp.asarray([limit + delta + 1e-8])
        after = [adapt(start, found, allowed, penalties, discount).log_prob for found in before]
        reached = [measure(cmdp, jnp.exp(one), discount).performance for cmdp, one in zip(cmdps, after, strict=True)]
        short = wanted - np.mean([float(one[0]) for one in reached])
        excess = max(float(one[1]) for one in reached) - limit - delta - 1e-8
        total.below += bool(short > 1e-7)
        total.above += bool(excess > TOLERANCE)
        total.excess, total.shortfall = max(total.excess, excess), max(total.shortfall, float(short))
    return total


def rare_task() -> dict[str, float]:
    """Eq. 7 fails: one state, two actions, two tasks, of which the rarer pays ten times as much and costs 4 % more.

    The policy nearest to the optimal ones is the common task's, which breaks the rare task's limit by an amount
    proportional to the distance of the tasks, while the radius in delta is its square. So the meta-policy has to start
    near the rare task's optimum, from where one step with penalties of the largest reward's size does not go far.
    """
    found = bandit_family(
        jnp.array([0.01, 0.99]),
        jnp.array([10.0, 1.0]),
        jnp.array([1.0, 1 / 1.04]),
        jnp.array(1.0),
        jnp.array(0.5),
        20_001,
    )
    return {name: float(value) for name, value in found.items()}
