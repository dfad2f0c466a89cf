"""FISAR (Sun, Kim, How): policies moved by a learned optimizer whose every update is projected to keep the limits.

One iteration, for several policies side by side: `window` times, collect, estimate the gradients g of minus the return
and A of the costs by the score function, and move

    theta_{k+1} = theta_k + beta proj(m_phi(g_k, h_k)),   the projection onto A_k theta' <= -alpha(C_k)     (eq. 3, 7)

where C is cost minus limit, and A a running mean. Then the meta-gradient of eq. 8 through these updates,

    dL/dphi = sum_k g_k . d theta_k / d phi

with the recorded g, A as constants (`meta_loss`), gives one Adam step on the LSTM's weights phi. After
`meta_iterations` the optimizer is left as it is and trains new policies. `optimizer` is the same for any constrained
problem, and `fisar_meta` trains it on deterministic ones.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from safemeta.algorithms.base import Adaptation, Metrics, named
from safemeta.algorithms.estimation import episode_return, limited_costs
from safemeta.algorithms.fisar_config import Config
from safemeta.algorithms.fisar_optimizer import direction, learned, optimizer
from safemeta.algorithms.score_function import ScoreEstimate, divergence, score_estimate
from safemeta.algorithms.settings import init_policy
from safemeta.core import CMDP, Tasks, Trajectory, World
from safemeta.nets import GaussianPolicy, LearnedOptimizer, Memory, parameters, with_parameters
from safemeta.solvers import OUTCOME_NAMES, Projection

__all__ = ["Algorithm", "Config", "State", "learned", "optimizer"]
ITERATIONS = {"smoke": 2, "default": 100, "paper": 210}
CLIP = 1.0  # global norm of the meta-gradient
IMITATED_STEPS, IMITATED_COORDINATES, MOMENTUM = 30, 300, 0.9
HIDDEN = ("excess", "largest_cost", "multipliers", "outcome")  # of the facts about an update: no metrics as they are
Vector = Float[Array, " parameters"]


class Lane(eqx.Module):
    """A policy in training, and what the optimizer remembers of its parameters."""

    policy: GaussianPolicy
    memory: Memory
    rows: Float[Array, "*batch costs parameters"]  # running mean of the cost gradients, weights summing to `weight`
    weight: Float[Array, "*batch"]


class Record(eqx.Module):
    """What one update of one policy was made from."""

    x: Float[Array, "*batch parameters"]  # theta_k
    gradient: Float[Array, "*batch parameters"]  # of minus the return
    rows: Float[Array, "*batch costs parameters"]  # A_k
    values: Float[Array, "*batch costs"]  # C_k
    fraction: Float[Array, "*batch"]  # of the step that was taken


class State(eqx.Module):
    """The optimizer, and the policies that it trains (leaves of `lanes` have a leading policy axis)."""

    network: LearnedOptimizer
    moments: Any
    lanes: Lane
    chosen: Int[Array, ""]  # which policy is the one to use
    iteration: Int[Array, ""]


class Algorithm:
    """See the module's docstring; `config` documents every setting."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.config.validate()

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> State:
        network_key, lane_key = jax.random.split(key)
        network = _network(self.config, network_key)
        zero = jnp.zeros((), jnp.int32)
        return State(
            network, _meta_optimizer(self.config).init(eqx.filter(network, eqx.is_array)),
            _fresh_lanes(self.config, cmdp, network, lane_key), zero, zero,
        )  # fmt: skip

    def iterate(self, state: State, world: World, key: PRNGKeyArray) -> tuple[State, Metrics]:
        return _iterate(self.config, world, state, key)

    def policy(self, state: State) -> GaussianPolicy:
        """The chosen one of the policies in training."""
        return jax.tree.map(lambda leaf: leaf[state.chosen], state.lanes.policy)

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        """Environment steps of one iteration, those of all policies."""
        config = self.config
        return config.policies * config.window * config.tasks * config.episodes * cmdp.horizon

    def adapt(self, state: State, world: World, tasks: Tasks, key: PRNGKeyArray, steps: int) -> Adaptation:
        """Projected updates by the learned optimizer from the chosen policy, on each task's own episodes and limits.

        An update uses `tasks * episodes` episodes of the one task, as many as an update in training.
        """
        return _adapt(self.config, world, self.policy(state), state.network, tasks, key, steps)


@eqx.filter_jit
def _iterate(config: Config, world: World, state: State, key: PRNGKeyArray) -> tuple[State, Metrics]:
    restart_key, *update_keys = jax.random.split(key, 1 + config.window)
    learning = state.iteration < config.meta_iterations
    restart = (learning & (state.iteration % (config.span // config.window) == 0)) | (
        state.iteration == config.meta_iterations
    )
    lanes = _select(restart, _fresh_lanes(config, world.cmdp, state.network, restart_key), state.lanes)
    memory = lanes.memory
    arrays, static = eqx.partition(lanes, eqx.is_array)

    def advance(arrays: Lane, key: PRNGKeyArray) -> tuple[Lane, tuple[Record, Metrics]]:
        moved, record, metrics = _update(config, world, state.network, eqx.combine(arrays, static), key)
        return eqx.filter(moved, eqx.is_array), (record, metrics)

    arrays, (records, found) = jax.lax.scan(advance, arrays, jnp.stack(update_keys))
    lanes = eqx.combine(arrays, static)

    def loss(network: LearnedOptimizer) -> Float[Array, ""]:
        one = jax.vmap(lambda memory, record: meta_loss(config, network, memory, record), in_axes=(0, 1))
        return one(memory, records).mean()

    value, gradient = eqx.filter_value_and_grad(loss)(state.network)
    updates, moments = _meta_optimizer(config).update(gradient, state.moments)
    network = eqx.apply_updates(state.network, updates)
    network, moments = _select(learning, (network, moments), (state.network, state.moments))
    last = jax.tree.map(lambda leaf: leaf[-1], found)
    chosen = jnp.argmax(jnp.where(last["excess"] <= 0, last["return"], -jnp.inf - last["excess"]))
    # All above a limit: the one that is least above.
    chosen = jnp.where(jnp.any(last["excess"] <= 0), chosen, jnp.argmin(last["excess"])).astype(jnp.int32)
    metrics = {name: value.mean() for name, value in last.items() if name not in HIDDEN}
    metrics |= {
        "largest_cost": last["largest_cost"].max(),
        "share_above_limit": (found["excess"] > 0).mean(),
        "chosen_return": last["return"][chosen],
        "chosen_excess": last["excess"][chosen],
        "meta_loss": value,
        "learning": learning.astype(jnp.float32),
        **named(world.cmdp, {"limit": jnp.asarray(world.cmdp.limits)}),
    }
    return State(network, moments, lanes, chosen, state.iteration + 1), metrics


def _update(
    config: Config, world: World, network: LearnedOptimizer, lanes: Lane, key: PRNGKeyArray
) -> tuple[Lane, Record, Metrics]:
    """One projected update of every policy, each on its own episodes of the same tasks."""
    cmdp = world.cmdp
    task_key, collect_key = jax.random.split(key)
    tasks = world.sample(task_key, config.tasks, "train")
    rows = _collect(world, lanes.policy, tasks, collect_key, config.episodes)
    found = jax.vmap(lambda policy, own: score_estimate(policy, own, cmdp))(lanes.policy, rows)
    limits = tasks.limits.mean(0)
    moved, record, metrics = jax.vmap(lambda lane, one, own: _move(config, network, lane, one, own, limits))(
        lanes, found, rows
    )
    normalizers = jax.vmap(lambda policy, own: policy.normalizer.merge(own.observation, own.valid))
    moved = eqx.tree_at(lambda lane: lane.policy.normalizer, moved, normalizers(moved.policy, rows))
    metrics |= {
        "return": jax.vmap(episode_return)(rows).mean((1, 2)),
        "largest_cost": limited_costs(rows, cmdp).mean(2)[..., 0].max(1),
        "excess": (found.costs - limits).max(1),
        **jax.vmap(lambda costs: named(cmdp, {"cost": costs}))(found.costs),
    }
    return moved, record, metrics


def _move(
    config: Config,
    network: LearnedOptimizer,
    lane: Lane,
    found: ScoreEstimate,
    episodes: Trajectory,
    limits: Float[Array, " costs"],
) -> tuple[Lane, Record, Metrics]:
    """One projected update of one policy, shortened where it would change its actions too much.

    One batch's cost gradient is mostly noise, and a projection onto it lets the cost itself rise. As a policy changes
    little from one update to the next, the projection uses the running mean.
    """
    rows = config.averaging * lane.rows + (1 - config.averaging) * found.cost_gradients
    weight = config.averaging * lane.weight + (1 - config.averaging)
    x, values = parameters(lane.policy), found.costs - (1 - config.margin) * limits
    record = Record(x, -found.return_gradient, rows / weight, values, jnp.ones_like(weight))
    projection, memory = _directed(config, network, record, values, lane.memory)
    step = config.step * projection.update
    kl = divergence(with_parameters(lane.policy, x + step), lane.policy, episodes)
    # The divergence grows like the square of the step. Not finite: no step at all.
    fraction = jnp.where(kl > config.kl_radius, jnp.sqrt(config.kl_radius / kl), 1.0)
    fraction = jnp.where(jnp.isfinite(kl), fraction, 0.0)
    policy = with_parameters(lane.policy, x + fraction * step)
    facts = {
        "kl": divergence(policy, lane.policy, episodes),
        "step_length": fraction * jnp.linalg.norm(step),
        "fraction": fraction,
        "feasible": projection.feasible.astype(jnp.float32),
        "active": projection.active.mean(),
        "multipliers": projection.multipliers,
        "outcome": projection.outcome,
        "log_std": policy.network.log_std.mean(),
    }
    return Lane(policy, memory, rows, weight), eqx.tree_at(lambda r: r.fraction, record, fraction), facts


def _directed(
    config: Config, network: LearnedOptimizer, record: Record, values: Float[Array, " costs"], memory: Memory
) -> tuple[Projection, Memory]:
    """Theta' of eq. 7 for one policy.

    The network sees the gradient in units of the root mean square of its entries, which changes a hundredfold while a
    policy learns: how far to go is then the network's own affair.
    """
    size = jnp.sqrt(jnp.mean(record.gradient**2))
    gradient = record.gradient / jnp.where(size > 0, size, 1)
    return direction(network, config.alpha, config.metric, gradient, record.rows, values, memory)


def meta_loss(config: Config, network: LearnedOptimizer, memory: Memory, records: Record) -> Float[Array, ""]:
    """A function of phi whose gradient is the window's `mean_k g_k . d theta_k / d phi`, over the length of g.

    The window is gone through again with the recorded g and A. Bounds follow the change of theta to first order,
    `C_k + A_k (theta - theta_k)`, as they do where C is a function (`fisar_meta.unroll`). theta after the last update
    has no gradient yet, and does not count. The value is the improvement that was predicted; lower is better.
    """
    start = records.x[0]

    def advance(carry: tuple[Vector, Memory], record: Record) -> tuple[tuple[Vector, Memory], Array]:
        x, memory = carry
        values = record.values + record.rows @ (x - record.x)
        found, memory = _directed(config, network, record, values, memory)
        return (x + record.fraction * config.step * found.update, memory), record.gradient @ (x - start)

    _, losses = jax.lax.scan(advance, (start, memory), jax.lax.stop_gradient(records))
    length = jnp.sqrt(jnp.mean(jnp.sum(records.gradient**2, axis=1)))
    return losses.mean() / jnp.where(length > 0, length, 1)


def _collect(world: World, policies: GaussianPolicy, tasks: Tasks, key: PRNGKeyArray, episodes: int) -> Trajectory:
    """Episodes `[policies, tasks, episodes, time, ...]` of each policy on the same tasks."""
    count = jax.tree.leaves(policies)[0].shape[0]
    if world.functional and not getattr(world, "on_host", False):
        keys = jax.random.split(key, count)
        return jax.vmap(lambda policy, k: world.collect(policy, tasks, k, episodes))(policies, keys)
    # On the host all rows are one batch: each policy's share of them is `tasks` rows with a policy of their own.
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, tasks.count, axis=0), policies)
    repeated = jax.tree.map(lambda leaf: jnp.tile(leaf, (count, *(1,) * (leaf.ndim - 1))), tasks)
    rows = world.collect(each, repeated, key, episodes, per_task=True)
    return jax.tree.map(lambda leaf: leaf.reshape(count, tasks.count, *leaf.shape[1:]), rows)


def _adapt(
    config: Config,
    world: World,
    policy: GaussianPolicy,
    network: LearnedOptimizer,
    tasks: Tasks,
    key: PRNGKeyArray,
    steps: int,
) -> Adaptation:
    lane = _lane(policy, network, len(world.cmdp.cost_names))
    lanes = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (tasks.count, *leaf.shape)), lane)
    used, facts = [], []
    for step in range(steps + 1):  # the last only estimates the last policy
        used.append(lanes.policy)
        lanes, found = _adapt_step(config, world, network, lanes, tasks, jax.random.fold_in(key, step))
        facts.append(found)

    def stacked(name: str, count: int) -> Array:
        return jnp.stack([found[name] for found in facts])[:count]

    return Adaptation(
        policies=jax.tree.map(lambda *leaves: jnp.stack(leaves), *used),
        estimated_return=stacked("return", steps + 1),
        estimated_costs=stacked("costs", steps + 1),
        multipliers=stacked("multipliers", steps),
        kl=stacked("kl", steps),
        outcome=stacked("outcome", steps),
        outcome_names=tuple(OUTCOME_NAMES),
    )


@eqx.filter_jit
def _adapt_step(
    config: Config, world: World, network: LearnedOptimizer, lanes: Lane, tasks: Tasks, key: PRNGKeyArray
) -> tuple[Lane, dict[str, Any]]:
    rows = world.collect(lanes.policy, tasks, key, config.tasks * config.episodes, per_task=True)

    def one(lane: Lane, own: Trajectory, limits: Float[Array, " costs"]) -> tuple[Lane, dict[str, Any]]:
        own = jax.tree.map(lambda leaf: leaf[None], own)
        estimate = score_estimate(lane.policy, own, world.cmdp)
        moved, _, facts = _move(config, network, lane, estimate, own, limits)
        return moved, facts | {"return": episode_return(own).mean(), "costs": estimate.costs}

    return jax.vmap(one)(lanes, rows, tasks.limits)


def _network(config: Config, key: PRNGKeyArray) -> LearnedOptimizer:
    """An LSTM whose output layer imitates gradient descent with momentum on made-up noisy gradients.

    With a random one, policies wander off before it has learned which way is down, to where sampled gradients tell
    little. What is imitated must be linear in the gradient: a direction that is rescaled entry by entry, such as
    Adam's, can point uphill once it is projected.
    """
    network_key, *keys = jax.random.split(key, 4)
    network = LearnedOptimizer.create(
        network_key,
        units=config.units,
        layers=config.layers,
        preprocessing=config.preprocessing,
        output_scale=config.output_scale,
    )
    shape = (IMITATED_STEPS, IMITATED_COORDINATES)
    size = jnp.exp(jax.random.normal(keys[0], shape[1:]))
    mean = jax.random.normal(keys[1], shape[1:])
    gradients = size * (mean + jax.random.normal(keys[2], shape))
    gradients = gradients / jnp.sqrt(jnp.mean(gradients**2, axis=1, keepdims=True))
    momentum = optax.ema(MOMENTUM)

    def advance(state: Any, gradient: Array) -> tuple[Any, Array]:
        average, state = momentum.update(gradient, state)
        return state, -jnp.asarray(average)

    _, directions = jax.lax.scan(advance, momentum.init(mean), gradients)
    return network.imitating(gradients, directions)


def _fresh_lanes(config: Config, cmdp: CMDP, network: LearnedOptimizer, key: PRNGKeyArray) -> Lane:
    def one(key: PRNGKeyArray) -> Lane:
        policy = init_policy(config, cmdp, key)
        return _lane(policy, network, len(cmdp.cost_names))

    return jax.vmap(one)(jax.random.split(key, config.policies))


def _lane(policy: GaussianPolicy, network: LearnedOptimizer, costs: int) -> Lane:
    """A policy before its first update."""
    x = parameters(policy)
    return Lane(policy, network.fresh(x), jnp.zeros((costs, x.size), x.dtype), jnp.zeros((), x.dtype))


def _meta_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(config.learning_rate))


def _select(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    """One of two pytrees of equal structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, yes, no)
