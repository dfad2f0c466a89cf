"""Learners that replay past experience: collection and gradient steps interleaved, in one compiled program.

An iteration is one episode in each of `tasks * episodes` rows. After every control step its experience goes into the
replay, and the learner takes its share of gradient steps: one per `steps_per_update` environment steps. A learner is
its networks, `update`, and how it acts.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from safemeta.algorithms.base import Metrics, named
from safemeta.algorithms.replay import Batch, Replay
from safemeta.algorithms.settings import at_least_one, layers
from safemeta.core import CMDP, InteractiveWorld, Moment, Tasks, Transition
from safemeta.nets import ModePolicy


@dataclass(frozen=True)
class OffPolicyConfig:
    """Settings that all off-policy learners share; sizes as in FAC-SIS (Table 4)."""

    tasks: int = 8  # tasks per iteration, drawn anew each time
    episodes: int = 1  # episodes per task; all rows step side by side
    hidden: tuple[int, ...] = (256, 256)  # ELU layers of every network
    capacity: int = 500_000  # steps in the replay
    batch: int = 256  # transitions per gradient step
    warm_up: int = 3000  # environment steps before the first gradient step (released code)
    steps_per_update: int = (
        4  # environment steps per gradient step; not in the paper, whose learners run unsynchronised
    )

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        at_least_one(self, "tasks", "episodes", "capacity", "batch", "steps_per_update", "warm_up")
        layers(self, "hidden")
        rows, share = self.tasks * self.episodes, self.steps_per_update
        if rows % share and share % rows:
            raise ValueError(
                f"steps_per_update ({share}) must divide the rows that step side by side, tasks x episodes = {rows},"
                " or be a multiple of them."
            )
        if self.capacity < 4 * rows:
            raise ValueError(f"capacity must hold at least four steps of each of the {rows} rows, not {self.capacity}.")


class Learner(Protocol):
    """What learns from batches: pure functions of a state, which has a `policy`. Must be hashable."""

    def init(self, key: PRNGKeyArray) -> Any:
        """The first state."""
        ...

    def act(
        self, state: Any, observation: Float[Array, "rows observation"], key: PRNGKeyArray
    ) -> Float[Array, "rows action"]:
        """Actions to explore with."""
        ...

    def update(self, state: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Any, Metrics]:
        """One gradient step. A metric `LOSSES`, if there is one, is each transition's: priorities are made of it."""
        ...

    def watch(self, state: Any, step: Transition) -> Metrics:
        """What is to be summed over each episode, `[rows]`, beside reward and costs."""
        ...

    def conclude(self, state: Any, violations: Float[Array, "rows costs"]) -> tuple[Any, Metrics]:
        """Once per iteration, with cost less limit of each of its episodes."""
        ...


LOSSES = "losses"  # of the transitions of a batch; no metric of the run


class State(eqx.Module):
    """The learner, its replay, and how much has been stepped and paid."""

    learner: Any
    replay: Any
    steps: Int[Array, ""]  # environment steps so far
    total_cost: Float[Array, " costs"]  # of all of them


class Working(eqx.Module):
    """What changes from control step to control step within an iteration."""

    learner: Any
    replay: Any
    clock: Int[Array, ""]  # control steps of this run
    updates: Int[Array, ""]  # gradient steps of this iteration
    sums: Metrics  # of their metrics
    last: Transition


@dataclass(frozen=True)
class LearningAgent:
    """Acts with a learner, and lets it learn: a `safemeta.core.Agent`."""

    config: OffPolicyConfig
    learner: Learner
    replay: Replay

    def act(self, state: Working, moment: Moment, key: PRNGKeyArray) -> tuple[Float[Array, "rows action"], None]:
        return self.learner.act(state.learner, moment.observation, key), None

    def learn(self, state: Working, transition: Transition, note: None, key: PRNGKeyArray) -> tuple[Working, Metrics]:
        replay = self.replay.add(state.replay, transition)
        rows, share = self.replay.rows, self.config.steps_per_update
        period, count = max(share // rows, 1), max(rows // share, 1)
        clock = state.clock + 1
        due = (clock % period == 0) & (clock * rows >= self.config.warm_up) & (clock >= self.replay.entries)

        def go(*carry: Any) -> Any:
            def one(carry: Any, key: PRNGKeyArray) -> tuple[Any, None]:
                learner, sums, priorities = carry
                sample_key, update_key = jax.random.split(key)
                present = self.replay.with_priorities(replay, priorities)
                batch = self.replay.sample(present, sample_key)
                learner, metrics = self.learner.update(learner, batch, update_key)
                present = self.replay.judged(present, batch, metrics.pop(LOSSES, None))
                return (learner, jax.tree.map(jnp.add, sums, metrics), self.replay.priorities(present)), None

            if count == 1:
                return one(carry, key)[0]
            return jax.lax.scan(one, carry, jax.random.split(key, count))[0]

        before = state.learner, state.sums, self.replay.priorities(replay)
        learner, sums, priorities = jax.lax.cond(due, go, lambda *same: same, *before)
        replay = self.replay.with_priorities(replay, priorities)
        record = {"reward": transition.reward, "costs": transition.costs, "valid": transition.valid}
        record |= self.learner.watch(learner, transition)
        updates = state.updates + jnp.where(due, count, 0)
        return Working(learner, replay, clock, updates, sums, transition), record


class OffPolicyAlgorithm:
    """A learner of the class `learner(config, cmdp)`, trained by replay."""

    learner: ClassVar[Any]

    def __init__(self, config: Any) -> None:
        self.config = config
        config.validate()

    def init(self, key: PRNGKeyArray, cmdp: CMDP) -> State:
        learner = self.learner(self.config, cmdp)
        replay = self._replay(cmdp).init(cmdp)
        return State(learner.init(key), replay, jnp.zeros((), jnp.int32), jnp.zeros(len(cmdp.cost_names)))

    def iterate(self, state: State, world: InteractiveWorld, key: PRNGKeyArray) -> tuple[State, Metrics]:
        task_key, run_key = jax.random.split(key)
        return self.iterate_on(state, world, _sample(world, self.config.tasks, task_key), run_key)

    def iterate_on(
        self, state: State, world: InteractiveWorld, tasks: Tasks, key: PRNGKeyArray
    ) -> tuple[State, Metrics]:
        """One iteration on given tasks; with a functional world it may be vmapped over states, tasks and keys."""
        cmdp = world.cmdp
        return _iterate(self.config, self.learner(self.config, cmdp), self._replay(cmdp), world, state, tasks, key)

    def policy(self, state: State) -> Any:
        return ModePolicy(state.learner.policy)

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        """Environment steps of one iteration."""
        return self.config.tasks * self.config.episodes * cmdp.horizon

    def _replay(self, cmdp: CMDP) -> Replay:
        config = self.config
        return Replay(config.tasks * config.episodes, config.capacity, config.batch)


@eqx.filter_jit
def _sample(world: InteractiveWorld, count: int, key: PRNGKeyArray) -> Tasks:
    return world.sample(key, count, "train")


@eqx.filter_jit
def _iterate(
    config: OffPolicyConfig,
    learner: Learner,
    replay: Replay,
    world: InteractiveWorld,
    state: State,
    tasks: Tasks,
    key: PRNGKeyArray,
) -> tuple[State, Metrics]:
    cmdp = world.cmdp
    agent = LearningAgent(config, learner, replay)
    working, records = world.interact(agent, _working(agent, cmdp, state), tasks, key, config.episodes)
    limits = jnp.repeat(tasks.limits, config.episodes, axis=0)
    following, metrics = _concluded(agent, cmdp, limits, state, working, records)
    return following, {"limit": tasks.limits[0, 0]} | metrics


def _working(agent: LearningAgent, cmdp: CMDP, state: State) -> Working:
    """The learner at the beginning of an iteration."""
    replay = agent.replay
    shown = jax.eval_shape(lambda s: replay.sample(s, jax.random.key(0)), state.replay)
    key = jax.eval_shape(lambda: jax.random.key(0))
    _, metrics = eqx.filter_eval_shape(agent.learner.update, state.learner, shown, key)
    metrics.pop(LOSSES, None)
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)
    row = jax.tree.map(lambda leaf: jnp.zeros((replay.rows, *leaf.shape[1:]), leaf.dtype), shown)
    last = Transition(**{field.name: getattr(row, field.name) for field in dataclasses.fields(Transition)})
    clock = state.steps // replay.rows
    return Working(state.learner, state.replay, clock, jnp.zeros((), jnp.int32), sums, last)


def _concluded(
    agent: LearningAgent,
    cmdp: CMDP,
    limits: Float[Array, "rows costs"],
    state: State,
    working: Working,
    records: dict[str, Array],
) -> tuple[State, Metrics]:
    """The state after an iteration, and what it showed."""
    valid = records.pop("valid")
    reward, costs = records.pop("reward"), records.pop("costs") * valid[..., None]
    limited = jnp.sum(cmdp.cost_weights(costs.dtype)[:, None, None] * costs, axis=0)
    learner, concluded = agent.learner.conclude(working.learner, limited - limits)
    steps = state.steps + jnp.asarray(valid.size, jnp.int32)
    total = state.total_cost + costs.sum((0, 1))
    metrics = {
        "return": jnp.sum(reward * valid, axis=0).mean(),
        "largest_cost": limited[:, 0].max(),
        **named(cmdp, {"cost": limited.mean(0), "cost_rate": total / steps}),
        **{name: jnp.sum(values * valid, axis=0).mean() for name, values in records.items()},
        "updates": working.updates,
        **named(cmdp, {name: total / jnp.maximum(working.updates, 1) for name, total in working.sums.items()}),
        **named(cmdp, concluded),
    }
    return State(learner, agent.replay.close(working.replay, working.last), steps, total), metrics


def every(interval: int, count: Int[Array, ""], step: Any, state: Any, after: int = 0) -> tuple[Any, Metrics]:
    """`step(state)` where `count` is a multiple of the interval and at least `after`, else the state as it is.

    The step's metrics are multiplied by the interval, and zero where it is not taken: so their mean over all gradient
    steps is the mean over those that were taken.
    """
    arrays, static = eqx.partition(state, eqx.is_array)

    def go(arrays: Any) -> tuple[Any, Metrics]:
        moved, metrics = step(eqx.combine(arrays, static))
        return eqx.filter(moved, eqx.is_array), {name: interval * value for name, value in metrics.items()}

    shapes = jax.eval_shape(go, arrays)[1]
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    due = (count % interval == 0) & (count >= after)
    arrays, metrics = jax.lax.cond(due, go, lambda same: (same, nothing), arrays)
    return eqx.combine(arrays, static), metrics
