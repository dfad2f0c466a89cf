"""Anytime safety with a stated confidence: an adapted policy is used only where an upper bound of its costs allows it.

The papers' bounds hold for exact advantages and for constants that nobody knows. Here the bound comes from the data
that adaptation has gathered anyway. Of episode j, played by policy `pi_b`, with limited costs C_j,

    Y_j(pi) = C_j + sum_t w_t (pi(a_t | s_t) / pi_b(a_t | s_t) - 1) A_c(s_t, a_t)

predicts what `pi` would have cost: its mean is the surrogate of CPO and of the dual method (to first order the cost of
`pi`, by the performance-difference lemma), and its spread over episodes says how far chance may have moved that mean.
With the `window` newest policies' episodes, N in all, a one-sided t interval gives

    B(pi) = mean_j Y_j + t_{1 - error, N - 1} std_j Y_j / sqrt(N),

and `pi` clears if B(pi) <= d for every cost. A step that does not clear is shortened; then the present policy stays;
then the newest that has cleared returns; if not even that clears, the one with the lowest bound is used. A confidence
is stated for a whole adaptation: with it, none of the policies 1..K is above a limit. The error is therefore
`(1 - confidence) / (K p)` for each policy and each of p costs. It holds as far as a mean over episodes is normal; what
it does not cover is the surrogate's second order, and costs so rare that no episode has shown them.
`benchmarks/confidence.py` measures how often it fails.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from scipy.special import stdtrit

from safemeta.algorithms.base import Adaptation
from safemeta.algorithms.surrogate import Samples
from safemeta.core import Tasks, World
from safemeta.nets import DiagonalGaussian

FRACTIONS = (1.0, 0.5, 0.25, 0.125)  # of a step that are tried
WINDOW = 4  # policies whose episodes are used
OUTCOMES = ("shortened", "withheld")  # what becomes of a step, beside what the algorithm says itself

Vector = Float[Array, " parameters"]


class Gathered(eqx.Module):
    """One task's episodes by the newest policies, the newest first; leaves of `samples` are `[window, episodes, ...]`.

    `count` of the window are filled. `cleared` are the parameters of the newest policy that has cleared; before there
    is one, of the first policy. `quantiles` are those of Student's t by the number of policies in the window.
    """

    samples: Samples
    costs: Float[Array, "*tasks window episodes costs"]
    count: Int[Array, "*tasks"]
    cleared: Float[Array, "*tasks parameters"]
    quantiles: Float[Array, "*tasks window"]

    @staticmethod
    def nothing(
        data: Callable[[], tuple[Samples, Float[Array, "tasks episodes costs"]]],
        start: Float[Array, "tasks parameters"],
        quantiles: Float[Array, " window"],
    ) -> "Gathered":
        """Room for what `data` would return, of which only shapes are asked."""

        def empty(leaf: Any) -> Array:
            return jnp.zeros((leaf.shape[0], WINDOW, *leaf.shape[1:]), leaf.dtype)

        samples, costs = jax.tree.map(empty, eqx.filter_eval_shape(data))
        tasks = start.shape[0]
        return Gathered(samples, costs, jnp.zeros(tasks, jnp.int32), start, jnp.tile(quantiles, (tasks, 1)))

    def add(self, samples: Samples, costs: Float[Array, "episodes costs"]) -> "Gathered":
        """With the episodes of one more policy, the oldest dropped (of one task)."""

        def shifted(old: Array, new: Array) -> Array:
            return jnp.concatenate([new[None], old[:-1]])

        kept, paid = jax.tree.map(shifted, self.samples, samples), shifted(self.costs, costs)
        count = jnp.minimum(self.count + 1, WINDOW)
        return Gathered(kept, paid, count, self.cleared, self.quantiles)


class Cleared(eqx.Module):
    """Which policy is used next: its parameters, the bound of its costs, and how much of the step that is."""

    parameters: Vector
    bound: Float[Array, " costs"]
    outcome: Int[Array, ""]  # -1: the whole step; else an index into OUTCOMES
    passed: Bool[Array, ""]  # whether the bound is within all limits


def student_quantiles(confidence: float, episodes: int, costs: int, steps: int) -> Float[Array, " window"]:
    """Of Student's t, by how many policies' episodes are gathered.

    Raises ValueError, in one sentence, on what cannot be a confidence.
    """
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be at least 0.5 and below 1, not {confidence:g}.")
    if episodes < 2:
        raise ValueError(f"confidence needs at least 2 episodes per policy; this run has episodes = {episodes}.")
    freedom = np.arange(1, WINDOW + 1) * episodes - 1
    return jnp.asarray(stdtrit(freedom, 1 - (1 - confidence) / (max(steps, 1) * costs)), jnp.float32)


def upper_bound(policy: Callable[[Array], DiagonalGaussian], gathered: Gathered) -> Float[Array, " costs"]:
    """B(pi) of each cost, from one task's episodes."""
    samples, episodes = gathered.samples, gathered.costs.shape[1]
    new = policy(samples.observation).log_prob(samples.action)
    ratio = jnp.exp(jnp.where(samples.valid, new - samples.log_prob, 0))
    effects = jnp.sum((samples.cost_weight * (ratio - 1))[..., None] * samples.cost_advantages, axis=-2)
    filled = (jnp.arange(WINDOW) < gathered.count)[:, None, None]
    predicted = jnp.where(filled, gathered.costs + effects, 0)
    number = gathered.count * episodes
    mean = predicted.sum((0, 1)) / number
    variance = jnp.where(filled, (predicted - mean) ** 2, 0).sum((0, 1)) / (number - 1)
    return mean + gathered.quantiles[gathered.count - 1] * jnp.sqrt(variance / number)


def clear(
    policy: Callable[[Vector], Callable[[Array], DiagonalGaussian]],
    start: Vector,
    proposed: Vector,
    gathered: Gathered,
    limits: Float[Array, " costs"],
) -> tuple[Cleared, Gathered]:
    """Of a step from `start` to `proposed` as much as clears (see the module); `policy` makes one of parameters."""
    tried = [start + fraction * (proposed - start) for fraction in FRACTIONS]
    candidates = jnp.stack([proposed, *tried[1:], start, gathered.cleared])
    bounds = jax.vmap(lambda x: upper_bound(policy(x), gathered))(candidates)
    excess = jnp.max((bounds - limits) / jnp.where(limits > 0, limits, 1), axis=-1)
    excess = jnp.where(jnp.isfinite(excess), excess, jnp.inf)
    passes = excess <= 0
    chosen = jnp.where(jnp.any(passes), jnp.argmax(passes), jnp.argmin(excess))
    shortened = jnp.where(chosen < len(FRACTIONS), OUTCOMES.index("shortened"), OUTCOMES.index("withheld"))
    outcome = jnp.where(chosen == 0, -1, shortened)
    found = Cleared(candidates[chosen], bounds[chosen], outcome, passes[chosen])
    cleared = jnp.where(found.passed, found.parameters, gathered.cleared)
    return found, eqx.tree_at(lambda g: g.cleared, gathered, cleared)


def with_clearances(adaptation: Adaptation, clearances: list[Cleared]) -> Adaptation:
    """The same with bounds, and with what became of the steps; `clearances` has one for each step, leaves `[tasks]`."""
    names = adaptation.outcome_names
    if not clearances:
        none = jnp.zeros((0, *adaptation.estimated_costs.shape[1:]))
        return dataclasses.replace(adaptation, outcome_names=(*names, *OUTCOMES), cost_bounds=none)
    found = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clearances)
    outcome = jnp.where(found.outcome < 0, adaptation.outcome, len(names) + found.outcome)
    return dataclasses.replace(adaptation, outcome=outcome, outcome_names=(*names, *OUTCOMES), cost_bounds=found.bound)


class StatesConfidence:
    """The `adapt` of algorithms that can state a confidence; `_adapt` says how they adapt.

    It is given the quantiles of `student_quantiles`, or None, and hands them to `Gathered.nothing`.
    """

    config: Any  # has `episodes`, per policy

    def adapt(
        self,
        state: Any,
        world: World,
        tasks: Tasks,
        key: PRNGKeyArray,
        steps: int,
        confidence: float | None = None,
    ) -> Adaptation:
        """Adapt to each task; each of `steps` steps learns from `episodes` fresh episodes of the newest policy.

        With `confidence`, only policies are used that clear the limits with that confidence.
        """
        stated = None
        if confidence is not None:
            stated = student_quantiles(confidence, self.config.episodes, len(world.cmdp.cost_names), steps)
        return self._adapt(state, world, tasks, key, steps, stated)

    def _adapt(
        self,
        state: Any,
        world: World,
        tasks: Tasks,
        key: PRNGKeyArray,
        steps: int,
        quantiles: Float[Array, " window"] | None,
    ) -> Adaptation:
        raise NotImplementedError
