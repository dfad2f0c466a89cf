"""One step within a trust region, up an objective and subject to any small number of costs: TRPO, CPO and their kin."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.directions import Directions, constrained_step, directions
from safemeta.algorithms.on_policy import OnPolicyConfig
from safemeta.algorithms.settings import at_least_one, positive, zero_or_more
from safemeta.algorithms.surrogate import (
    Samples,
    Surrogate,
    Vector,
    fisher_metric,
    halves_of,
    metric_states,
    state_weight,
    surrogate,
)
from safemeta.nets import GaussianPolicy, parameters, with_parameters
from safemeta.solvers import accept_cpo, accept_trpo, backtrack


@dataclass(frozen=True)
class TrustRegionConfig(OnPolicyConfig):
    """Settings of a trust-region step (Schulman et al. 2015, Achiam et al. 2017); values as usual in the field."""

    kl_radius: float = 0.01  # mean KL of one step
    cg_iterations: int = 10  # conjugate-gradient steps per solution with the metric
    damping: float = 1e-2  # of the Fisher metric
    fisher_states: int = 5000  # states of the Fisher metric
    cross_fit: bool = False  # predict effects across halves of the episodes (directions.py)

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        at_least_one(self, "cg_iterations", "fisher_states")
        positive(self, "kl_radius")
        zero_or_more(self, "damping")
        if self.cross_fit and self.episodes < 2:
            raise ValueError("cross_fit needs at least 2 episodes per task; got episodes = 1.")


class LocalModel(NamedTuple):
    """What a batch says of policies near the one that acted: the reward and every cost that a step is to keep."""

    start: Vector  # the acting policy's parameters
    directions: Directions  # their gradients through the Fisher metric, and what steps along them do
    evaluate: Callable[[Vector], Surrogate]  # importance-weighted predictions at any parameters


def local_model(
    config: TrustRegionConfig, policy: GaussianPolicy, samples: Samples, *, constrained: bool = True
) -> LocalModel:
    """The model that a step is chosen by, from samples `[tasks, episodes, time, ...]`; every task counts alike.

    The objective is the samples' `advantage`. Unless `constrained`, the directions are the objective's alone.
    """
    old = jax.lax.stop_gradient(policy(samples.observation))
    split = jax.vmap(halves_of)(old, samples) if config.cross_fit else (old, samples)
    start = parameters(policy)

    def evaluate(x: Vector) -> Surrogate:
        new = with_parameters(policy, x)
        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(lambda o, s: surrogate(new, o, s))(old, samples))

    def halves(x: Vector) -> Float[Array, "2 signals"]:
        if not config.cross_fit:
            value = evaluate(x)
            signals = jnp.concatenate([value.reward[None], value.costs]) if constrained else value.reward[None]
            return jnp.stack([signals, signals])
        new = with_parameters(policy, x)
        value = jax.vmap(jax.vmap(lambda o, s: surrogate(new, o, s)))(*split)
        reward = value.reward.mean(0)[:, None]
        return jnp.concatenate([reward, value.costs.mean(0)], axis=1) if constrained else reward

    states, weight = metric_states(samples.observation, state_weight(samples.valid), config.fisher_states)
    metric = fisher_metric(lambda x: with_parameters(policy, x)(states), start, weight)
    found = directions(
        [halves], start, metric, cross_fit=config.cross_fit, iterations=config.cg_iterations, damping=config.damping
    )
    return LocalModel(start, found, evaluate)


def trust_region_update(
    config: TrustRegionConfig, policy: GaussianPolicy, samples: Samples, violations: Float[Array, " constraints"]
) -> tuple[GaussianPolicy, Metrics]:
    """One step on samples `[tasks, episodes, time, ...]`; every task counts alike, also in the constraints.

    The objective is the samples' `advantage`. `violations` are the measured costs less what is allowed, one per cost:
    the step keeps them as CPO does. Without any (an empty vector) it is TRPO's.
    """
    constrained = violations.size > 0
    local = local_model(config, policy, samples, constrained=constrained)
    step, solved = constrained_step(local.directions, violations, config.kl_radius)

    def accept(values: Surrogate, fraction: Array) -> Array:
        if not constrained:
            return accept_trpo(values.reward, values.kl, config.kl_radius, slack=1.5)
        return accept_cpo(
            values.reward,
            values.kl,
            violations + values.costs,
            violations,
            config.kl_radius,
            feasible=solved.feasible,
            slack=1.5,
        )

    search = backtrack(local.evaluate, local.start, step, accept, shrink=0.8, steps=10)
    metrics = {
        "kl": jnp.where(search.accepted, search.values.kl, 0.0),
        "feasible": solved.feasible.astype(jnp.float32),
        "accepted": search.accepted.astype(jnp.float32),
    }
    return with_parameters(policy, search.parameters), metrics
