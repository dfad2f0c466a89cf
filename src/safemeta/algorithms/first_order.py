"""Plain gradients under constraints, on the score function: projected gradient ascent, and the primal-dual method.

What FISAR (Sun, Kim, How) is compared with: the same estimates, with a fixed rule in the place of a learned optimizer.
One policy for a task or a family, one update per batch of fresh episodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics, named
from safemeta.algorithms.estimation import episode_return, limited_costs
from safemeta.algorithms.score_function import divergence, score_estimate
from safemeta.algorithms.settings import (
    at_least_one,
    check_pairs,
    check_policy,
    init_policy,
    one_of,
    positive,
    share_of_limit,
    zero_or_more,
)
from safemeta.core import CMDP, World
from safemeta.nets import GaussianPolicy, parameters, with_parameters
from safemeta.solvers import safe_projection
from safemeta.solvers.projection import ProjectionMetric

ITERATIONS = {"smoke": 2, "default": 300, "paper": 300}
RULES: dict[str, Callable[[float], optax.GradientTransformation]] = {"gradient": optax.sgd, "adam": optax.adam}


@dataclass(frozen=True)
class FirstOrderConfig:
    """Settings that projected gradient ascent and the primal-dual method share; all chosen for safemeta."""

    tasks: int = 8  # per update, drawn anew each time
    episodes: int = 8  # per task
    hidden: tuple[int, ...] = (32, 32)  # tanh layers of the policy
    deviation: Literal["free", "state"] = "free"  # standard deviation: one vector, or an output of the network
    initial_log_std: float = -0.5  # logarithm of the first standard deviation
    rule: Literal["gradient", "adam"] = "gradient"  # what a gradient becomes
    step: float = 1e-3  # size of its step
    margin: float = 0.1  # share of the limit that is kept as distance

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        at_least_one(self, "tasks")
        check_pairs(self)
        positive(self, "step")
        share_of_limit(self, "margin")
        one_of(self, "rule", tuple(RULES))
        check_policy(self)


@dataclass(frozen=True)
class ProjectedConfig(FirstOrderConfig):
    """Settings of `projected-gradient`: FISAR's projection (eq. 6, with the right sign) of a plain step."""

    rate: float = 0.05  # share by which a violation falls, or a margin is used up, per update (alpha times beta)
    metric: ProjectionMetric = "euclidean"  # "closed_form" is the paper's

    def validate(self) -> None:
        super().validate()
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], not {self.rate}.")
        one_of(self, "metric", get_args(ProjectionMetric))


@dataclass(frozen=True)
class PrimalDualConfig(FirstOrderConfig):
    """Settings of `primal-dual`: descent on the Lagrangian, ascent on its multipliers (Chow et al. 2017)."""

    multiplier_step: float = 0.1  # times the violation, per update
    initial_multiplier: float = 0.0  # price of a unit of cost before the first update

    def validate(self) -> None:
        super().validate()
        positive(self, "multiplier_step")
        zero_or_more(self, "initial_multiplier")


class State(eqx.Module):
    """The policy, and the state of the `optax` transformation that moves its parameters."""

    policy: GaussianPolicy
    rule: Any


class FirstOrderAlgorithm(ABC):
    """The loop; `transformation(costs)` takes the gradient of minus the return, and the costs as extra arguments."""

    config: Any  # the subclass's own

    def __init__(self, config: FirstOrderConfig) -> None:
        self.config = config
        config.validate()

    @abstractmethod
    def transformation(self, costs: int) -> optax.GradientTransformationExtraArgs:
        """From the gradient of minus the return to the parameters' change, under so many costs."""
        ...

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> State:
        policy = init_policy(self.config, cmdp, key)
        return State(policy, self.transformation(len(cmdp.cost_names)).init(parameters(policy)))

    def iterate(self, state: State, world: World, key: PRNGKeyArray) -> tuple[State, Metrics]:
        return _iterate(type(self), self.config, world, state, key)

    def policy(self, state: State) -> GaussianPolicy:
        return state.policy

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        """Environment steps of one iteration."""
        return self.config.tasks * self.config.episodes * cmdp.horizon


class ProjectedGradient(FirstOrderAlgorithm):
    """`theta + proj(step * grad J)` onto `grad C_i . u <= -rate C_i`."""

    def __init__(self, config: ProjectedConfig | None = None) -> None:
        super().__init__(config or ProjectedConfig())

    def transformation(self, costs: int) -> optax.GradientTransformationExtraArgs:
        config = self.config
        projection = safe_projection(rate=config.rate, metric=config.metric, count=costs)
        return optax.with_extra_args_support(optax.chain(RULES[config.rule](config.step), projection))


class PrimalDual(FirstOrderAlgorithm):
    """`theta - step * grad (-J + lambda . C) / (1 + sum lambda)`, `lambda = max(0, lambda + multiplier_step * C)`."""

    def __init__(self, config: PrimalDualConfig | None = None) -> None:
        super().__init__(config or PrimalDualConfig())

    def transformation(self, costs: int) -> optax.GradientTransformationExtraArgs:
        config = self.config
        ascent = lagrangian(costs, config.multiplier_step, config.initial_multiplier)
        return optax.with_extra_args_support(optax.chain(ascent, RULES[config.rule](config.step)))


class Multipliers(NamedTuple):
    """The state of `lagrangian`."""

    multipliers: Float[Array, " costs"]


def lagrangian(count: int, step: float, initial: float = 0.0) -> optax.GradientTransformationExtraArgs:
    """The Lagrangian's gradient in the place of the objective's, and gradient ascent on its multipliers.

    Divided by `1 + sum lambda`, so that large multipliers do not make large steps. For flat parameters, with
    `constraint_values` and `constraint_gradients` as extra arguments.
    """

    def init(params: Any) -> Multipliers:
        return Multipliers(jnp.full(count, initial, params.dtype))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        constraint_values: Float[Array, " costs"] | None = None,
        constraint_gradients: Float[Array, "costs parameters"] | None = None,
        **extra: Any,
    ) -> tuple[Any, Multipliers]:
        del params, extra
        if constraint_values is None or constraint_gradients is None:
            raise ValueError("lagrangian needs constraint_values and constraint_gradients in `update`")
        multipliers = jnp.maximum(state.multipliers + step * constraint_values, 0)
        total = updates + multipliers @ constraint_gradients
        return total / (1 + jnp.sum(multipliers)), Multipliers(multipliers)

    return optax.GradientTransformationExtraArgs(init, update)


@eqx.filter_jit
def _iterate(
    kind: type[FirstOrderAlgorithm], config: Any, world: World, state: State, key: PRNGKeyArray
) -> tuple[State, Metrics]:
    cmdp = world.cmdp
    task_key, collect_key = jax.random.split(key)
    tasks = world.sample(task_key, config.tasks, "train")
    rows = world.collect(state.policy, tasks, collect_key, config.episodes)
    found = score_estimate(state.policy, rows, cmdp)
    x = parameters(state.policy)
    values = found.costs - (1 - config.margin) * tasks.limits.mean(0)
    updates, rule = (
        kind(config)
        .transformation(len(cmdp.cost_names))
        .update(
            -found.return_gradient, state.rule, x, constraint_values=values, constraint_gradients=found.cost_gradients
        )
    )
    policy = with_parameters(state.policy, x + jnp.asarray(updates))
    policy = eqx.tree_at(lambda p: p.normalizer, policy, policy.normalizer.merge(rows.observation, rows.valid))
    metrics = {
        "return": episode_return(rows).mean(),
        "largest_cost": limited_costs(rows, cmdp).mean(1)[:, 0].max(),
        "gradient_length": jnp.linalg.norm(found.return_gradient),
        "step_length": jnp.linalg.norm(jnp.asarray(updates)),
        "kl": divergence(policy, state.policy, rows),
        "log_std": policy.network.log_std.mean(),
        **named(cmdp, {"cost": found.costs, "limit": tasks.limits[0]}),
    }
    return State(policy, rule), metrics
