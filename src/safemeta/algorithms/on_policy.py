"""One policy for a task or a family, improved by one step per batch of fresh episodes: what all such learners share.

An iteration draws tasks, collects episodes, estimates advantages by critics as they were before, takes the algorithm's
step, and only then fits the critics and the observation normaliser to the batch. A learner is its `step`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics, named
from safemeta.algorithms.critics import CriticState, assess, init_critic, learn
from safemeta.algorithms.estimation import episode_return, limited_costs
from safemeta.algorithms.settings import (
    at_least_one,
    check_policy,
    check_smoothing,
    init_policy,
    one_of,
    positive,
    share_of_limit,
)
from safemeta.algorithms.surrogate import Samples, StateWeighting, make_samples
from safemeta.core import CMDP, Tasks, Trajectory, World
from safemeta.nets import GaussianPolicy


@dataclass(frozen=True)
class OnPolicyConfig:
    """Settings that all on-policy baselines share; values as usual in the field."""

    tasks: int = 10  # tasks per iteration, drawn anew each time
    episodes: int = 10  # episodes per task
    hidden: tuple[int, ...] = (64, 64)  # tanh layers of policy and critics
    deviation: Literal["free", "state"] = "free"  # standard deviation: one vector, or an output of the network
    initial_log_std: float = -0.5  # logarithm of the first standard deviation
    critic: Literal["neural", "linear"] = "neural"  # value functions; linear in features of state and time
    critic_learning_rate: float = 1e-3  # of Adam on the neural critic
    critic_steps: int = 80  # minibatches per iteration
    minibatch: int = 500  # control steps in each of the critic's
    gae_smoothing: float = 0.95  # lambda of generalised advantage estimation
    reward_weighting: StateWeighting = "uniform"  # "discounted": the exact gradient of the discounted return
    margin: float = 0.0  # learners with constraints aim this share of the limit below it

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        at_least_one(self, "tasks", "episodes", "critic_steps", "minibatch")
        positive(self, "critic_learning_rate")
        one_of(self, "reward_weighting", get_args(StateWeighting))
        share_of_limit(self, "margin")
        check_smoothing(self)
        check_policy(self)


class State(eqx.Module):
    """The policy and its critics."""

    policy: GaussianPolicy
    critics: CriticState


class Batch(NamedTuple):
    """What a step may use: leaves of samples are `[tasks, episodes, time, ...]`, every task counts alike."""

    samples: Samples
    violations: Float[Array, " costs"]  # mean over tasks of the measured cost less `(1 - margin) limit`


Step = Callable[[Any, Any, Batch, PRNGKeyArray], tuple[Any, Metrics]]


class OnPolicyAlgorithm:
    """A learner whose `step(config, state, batch, key)` gives the state with a new policy, and metrics of the step."""

    step: ClassVar[Step]  # a plain function: two learners with equal settings then share one compiled iteration

    def __init__(self, config: Any) -> None:
        self.config = config
        config.validate()

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> Any:
        policy_key, critic_key = jax.random.split(key)
        policy = init_policy(self.config, cmdp, policy_key)
        return State(policy, init_critic(self.config, cmdp, critic_key))

    def iterate(self, state: Any, world: World, key: PRNGKeyArray) -> tuple[Any, Metrics]:
        return _iterate(self.config, type(self).step, world, state, key)

    def iterate_on(self, state: Any, world: World, tasks: Tasks, key: PRNGKeyArray) -> tuple[Any, Metrics]:
        """One iteration on given tasks; with a functional world it may be vmapped over states and tasks."""
        return iterate_on(self.config, type(self).step, world, state, tasks, key)

    def policy(self, state: Any) -> GaussianPolicy:
        return state.policy

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        """Environment steps of one iteration."""
        return self.config.tasks * self.config.episodes * cmdp.horizon


@eqx.filter_jit
def _iterate(
    config: OnPolicyConfig, step: Step, world: World, state: State, key: PRNGKeyArray
) -> tuple[State, Metrics]:
    task_key, key = jax.random.split(key)
    return iterate_on(config, step, world, state, world.sample(task_key, config.tasks, "train"), key)


def iterate_on(
    config: OnPolicyConfig, step: Step, world: World, state: State, tasks: Tasks, key: PRNGKeyArray
) -> tuple[State, Metrics]:
    """Collect, take one step, fit the critics, update the normaliser."""
    cmdp, normalizer = world.cmdp, state.policy.normalizer
    collect_key, critic_key, step_key = jax.random.split(key, 3)
    rows = world.collect(state.policy, tasks, collect_key, config.episodes)
    advantages = jax.vmap(lambda r: assess(config.critic, state.critics, normalizer, r, cmdp, config.gae_smoothing))(
        rows
    )
    samples = jax.vmap(lambda r, a: make_samples(r, a, cmdp, config.reward_weighting))(rows, advantages)
    costs = limited_costs(rows, cmdp).mean(1)
    batch = Batch(samples, (costs - (1 - config.margin) * tasks.limits).mean(0))
    following, step_metrics = step(config, state, batch, step_key)
    data = rows.observation, advantages.target, critic_key, config.critic_steps, rows.valid
    critics = learn(config, state.critics, normalizer, *data)
    following = eqx.tree_at(
        lambda s: (s.critics, s.policy.normalizer),
        following,
        (critics, normalizer.merge(rows.observation, rows.valid)),
    )
    return following, _metrics(cmdp, tasks, rows, costs, following.policy) | named(cmdp, step_metrics)


def _metrics(
    cmdp: CMDP, tasks: Tasks, rows: Trajectory, costs: Float[Array, "tasks costs"], policy: GaussianPolicy
) -> Metrics:
    return {
        "return": episode_return(rows).mean(),
        "largest_cost": costs[:, 0].max(),
        "log_std": policy.network.log_std.mean(),
        **named(cmdp, {"cost": costs.mean(0), "limit": tasks.limits[0]}),
    }
