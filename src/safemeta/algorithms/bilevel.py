"""The bilevel loop: an inner learner changes a task's policy, an outer learner changes what it starts from.

One meta-iteration (Meta-CPO, Algorithm 1): for M tasks at once, K times: collect with the task's policy, estimate, take
an inner step (`inner.py`). Collect once more with the adapted policies phi_i. With

    F(theta) = mean_i E[A_i(phi_i(theta))],   G(theta) = mean_i (J_c,i - d_i + E[A_c,i(phi_i(theta))])

on those data, the meta-gradients dF and dG (eq. 11) go back through all K steps, each differentiated through its
constrained problem; the outer step maximises dF subject to G + dG . s <= 0 within a trust region around theta (eq. 12),
and is shortened until F and G, evaluated through the chain of inner steps, accept it. Three parts are to choose:
`inner`, `outer` and `meta_gradient`. Named systems: meta-cpo = (cpo, cpo, exact), meta-trpo = (trpo, trpo, exact),
maml = (gradient, trpo, exact or first), meta-crpo = (crpo, nearest); every other combination runs as `bilevel`. There
the dual method is (dual, switch, first) with `bounded = initial`; the algorithm `dual` adds what makes it safe.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Adaptation, Metrics, named
from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.confidence import Cleared, Gathered, StatesConfidence, clear, with_clearances
from safemeta.algorithms.critics import CriticState, assess, init_critic, learn
from safemeta.algorithms.estimation import Advantages, effective_discount, episode_return, limited_costs
from safemeta.algorithms.inner import InnerData, Vector, inner_update
from safemeta.algorithms.outer import Control, MetaData, nearest_update, outer_update, outer_violations
from safemeta.algorithms.settings import init_policy
from safemeta.algorithms.surrogate import Samples, make_samples
from safemeta.core import CMDP, Tasks, Trajectory, World
from safemeta.nets import GaussianPolicy, parameters, with_parameters

ITERATIONS = {"smoke": 2, "default": 100, "paper": 300}
OUTCOME_NAMES = ("improved", "recovered", "kept")
IMPROVED, RECOVERED, KEPT = range(3)


class State(eqx.Module):
    """The meta-policy and the critics, which all tasks share."""

    policy: GaussianPolicy
    critics: CriticState
    kept: "Kept | None" = None  # with `keep_tasks`
    control: Control | None = None  # of the outer step "cpo"


class Kept(eqx.Module):
    """What stays from one iteration to the next where the tasks do."""

    key: Array  # of the tasks, as `jax.random.key_data`
    adapted: Float[Array, "tasks parameters"]


class Algorithm(StatesConfidence):
    """See the module's docstring; `config` documents every setting."""

    def __init__(self, config: BilevelConfig | None = None) -> None:
        self.config = config or BilevelConfig()
        self.config.validate()

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> State:
        policy_key, critic_key = jax.random.split(key)
        policy = init_policy(self.config, cmdp, policy_key)
        kept = None
        if self.config.keep_tasks:
            start = parameters(policy)
            own = jnp.broadcast_to(start, (self.config.tasks, start.shape[0]))
            kept = Kept(jax.random.key_data(jax.random.fold_in(key, 2)), own)
        control = Control.create(len(cmdp.cost_names)) if self.config.outer == "cpo" else None
        return State(policy, init_critic(self.config, cmdp, critic_key), kept, control)

    def iterate(self, state: State, world: World, key: PRNGKeyArray) -> tuple[State, Metrics]:
        return _iterate(self.config, world, state, key)

    def policy(self, state: State) -> GaussianPolicy:
        """The meta-policy."""
        return state.policy

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        """Environment steps of one meta-iteration."""
        return (self.config.inner_steps + 1) * self.config.tasks * self.config.episodes * cmdp.horizon

    def _adapt(
        self, state: State, world: World, tasks: Tasks, key: PRNGKeyArray, steps: int, quantiles: Array | None
    ) -> Adaptation:
        return _adapt(self.config, world, state, tasks, key, steps, quantiles)


@eqx.filter_jit
def _iterate(config: BilevelConfig, world: World, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
    cmdp = world.cmdp
    task_key, inner_key, after_key, critic_key = jax.random.split(key, 4)
    if state.kept is not None:
        task_key = jax.random.wrap_key_data(state.kept.key)
    tasks = world.sample(task_key, config.tasks, "train")
    theta = parameters(state.policy)
    x = jnp.broadcast_to(theta, (tasks.count, theta.shape[0])) if state.kept is None else state.kept.adapted
    meta, found = gather(config, world, state, x, tasks, inner_key, after_key)
    before, after, seen = found.before, found.after, found.seen
    start = config, state.policy, theta, meta, before.observation, before.valid
    control = state.control
    if config.outer == "nearest":
        moved, outer_facts = nearest_update(*start)
    else:
        moved, control, outer_facts = outer_update(*start, control)
    if control is not None:
        feasible = outer_facts["meta_feasible"] > 0
        excess = outer_violations(config, meta)
        control = control.accumulated(excess, tasks.limits.mean(0), feasible, config.integral_gain)
        outer_facts |= {"correction": control.correction, "share": control.share(config.least_share)}

    rows, target = jax.tree.map(lambda own, last: jnp.append(own, last[None], 0), seen, (after, found.target))
    normalizer = state.policy.normalizer
    fitted = rows.observation, target, critic_key, config.critic_steps, rows.valid
    critics = learn(config, state.critics, normalizer, *fitted)
    policy = with_parameters(state.policy, moved)
    policy = eqx.tree_at(lambda p: p.normalizer, policy, normalizer.merge(rows.observation, rows.valid))
    before_costs, after_costs = limited_costs(before, cmdp).mean(1), limited_costs(after, cmdp).mean(1)
    facts = found.facts
    metrics = {
        "return_before": episode_return(before).mean(),
        "return_after": episode_return(after).mean(),
        "largest_cost_before": before_costs[:, 0].max(),
        "largest_cost_after": after_costs[:, 0].max(),
        "cost_before": before_costs.mean(0),
        "cost_after": after_costs.mean(0),
        "limit": tasks.limits[0, 0],
        "inner_kl": facts["kl"][-1].mean(),
        "inner_accepted": facts["accepted"][-1].mean(),
        "inner_feasible": facts["feasible"][-1].mean(),
        "log_std": policy.network.log_std.mean(),
        **outer_facts,
    }
    kept = None if state.kept is None else Kept(state.kept.key, meta.adapted)
    return State(policy, critics, kept, control), named(cmdp, metrics)


class Found(NamedTuple):
    """What else was seen while the data of a meta-iteration were gathered; leaves `[tasks, episodes, ...]`."""

    before: Trajectory  # of the policies that the inner steps start from
    after: Trajectory  # of the adapted policies
    target: Array  # of the critics, for `after`
    seen: tuple[Trajectory, Array]  # episodes and targets of every inner step, leaves `[steps, tasks, ...]`
    facts: dict[str, Any]  # of every inner step


def gather(
    config: BilevelConfig,
    world: World,
    state: State,
    x: Float[Array, "tasks parameters"],
    tasks: Tasks,
    inner_key: Any,
    after_key: Any,
) -> tuple[MetaData, Found]:
    """What an outer step depends on: K inner steps from `x` on fresh episodes, then the adapted policies' episodes."""
    x, seen, data, facts = _chain(config, world, state, x, tasks, inner_key)
    after, estimates = _collect(config, world, state, x, tasks, after_key)
    samples = jax.vmap(lambda r, a: make_samples(r, a, world.cmdp))(after, estimates)
    violations = limited_costs(after, world.cmdp).mean(1) - (1 - config.margin) * tasks.limits
    before = jax.tree.map(lambda leaf: leaf[0], seen[0])
    return MetaData(data, samples, violations, x), Found(before, after, estimates.target, seen, facts)


def _chain(
    config: BilevelConfig, world: World, state: State, x: Float[Array, "tasks parameters"], tasks: Tasks, key: Any
) -> tuple[Float[Array, "tasks parameters"], tuple[Trajectory, Array], InnerData, dict[str, Any]]:
    """All inner steps from `x`: where they end; episodes and targets, data and facts of each, leaves `[steps, ...]`.

    The steps are one loop of the compiled program, which is no larger for more steps.
    """

    def step(x: Array, index: Array) -> tuple[Array, Any]:
        rows, estimates = _collect(config, world, state, x, tasks, jax.random.fold_in(key, index))
        x, used, facts = _inner(config, world.cmdp, state, x, rows, estimates, tasks)
        return x, ((rows, estimates.target), used, facts)

    x, (seen, data, facts) = jax.lax.scan(step, x, jnp.arange(config.inner_steps))
    return x, seen, data, facts


def _collect(
    config: BilevelConfig, world: World, state: State, x: Float[Array, "tasks parameters"], tasks: Tasks, key: Any
) -> tuple[Trajectory, Advantages]:
    policies = jax.vmap(lambda each: with_parameters(state.policy, each))(x)
    rows = world.collect(policies, tasks, key, config.episodes, per_task=True)

    def estimate(own: Trajectory) -> Advantages:
        return assess(config.critic, state.critics, state.policy.normalizer, own, world.cmdp, config.gae_smoothing)

    return rows, jax.vmap(estimate)(rows)


def _inner(
    config: BilevelConfig,
    cmdp: CMDP,
    state: State,
    x: Float[Array, "tasks parameters"],
    rows: Trajectory,
    estimates: Advantages,
    tasks: Tasks,
) -> tuple[Float[Array, "tasks parameters"], InnerData, dict[str, Any]]:
    violations = limited_costs(rows, cmdp).mean(1) - (1 - config.margin) * tasks.limits
    samples = jax.vmap(lambda r, a: make_samples(r, a, cmdp))(rows, estimates)
    discount = jnp.full(tasks.count, effective_discount(cmdp), x.dtype)
    return jax.vmap(lambda *each: inner_update(config, state.policy, *each))(x, samples, violations, discount)


@eqx.filter_jit
def _adapt_step(
    config: BilevelConfig,
    world: World,
    state: State,
    x: Float[Array, "tasks parameters"],
    tasks: Tasks,
    key: Any,
    gathered: Gathered | None,
) -> tuple[Float[Array, "tasks parameters"], dict[str, Any], Gathered | None, Cleared | None]:
    rows, estimates = _collect(config, world, state, x, tasks, key)
    moved, data, facts = _inner(config, world.cmdp, state, x, rows, estimates, tasks)
    improved = jnp.where(facts["feasible"], IMPROVED, RECOVERED)
    facts["outcome"] = jnp.where(facts["accepted"], improved, KEPT)
    costs = limited_costs(rows, world.cmdp)
    facts |= {"return": episode_return(rows).mean(1), "costs": costs.mean(1)}
    if gathered is None:
        return moved, facts, None, None

    def one(start: Vector, proposed: Vector, own: Gathered, samples: Samples, costs: Array, limits: Array) -> Any:
        own = own.add(samples, costs)
        return clear(lambda y: with_parameters(state.policy, y), start, proposed, own, limits)

    cleared, gathered = jax.vmap(one)(x, moved, gathered, data.samples, costs, tasks.limits)
    return cleared.parameters, facts, gathered, cleared


def _adapt(
    config: BilevelConfig,
    world: World,
    state: State,
    tasks: Tasks,
    key: PRNGKeyArray,
    steps: int,
    quantiles: Float[Array, " window"] | None,
) -> Adaptation:
    theta = parameters(state.policy)
    x = jnp.broadcast_to(theta, (tasks.count, theta.shape[0]))
    used, facts, clearances, gathered = [x], [], [], None

    def data() -> tuple[Samples, Array]:
        rows, estimates = _collect(config, world, state, x, tasks, key)
        samples = jax.vmap(lambda r, a: make_samples(r, a, world.cmdp))(rows, estimates)
        return samples, limited_costs(rows, world.cmdp)

    if quantiles is not None:
        gathered = Gathered.nothing(data, x, quantiles)
    for step in range(steps + 1):  # the last only estimates the last policy
        moved, found, gathered, cleared = _adapt_step(
            config, world, state, x, tasks, jax.random.fold_in(key, step), gathered
        )
        facts.append(found)
        if step < steps:
            x = moved
            used.append(x)
            clearances.append(cleared)

    def stacked(name: str, count: int) -> Array:
        return jnp.stack([found[name] for found in facts])[:count]

    policies = [jax.vmap(lambda each: with_parameters(state.policy, each))(each) for each in used]
    adaptation = Adaptation(
        policies=jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *policies),
        estimated_return=stacked("return", steps + 1),
        estimated_costs=stacked("costs", steps + 1),
        multipliers=stacked("multipliers", steps),
        kl=stacked("kl", steps),
        outcome=stacked("outcome", steps).astype(jnp.int32),
        outcome_names=OUTCOME_NAMES,
    )
    return adaptation if quantiles is None else with_clearances(adaptation, clearances)
