"""Delays, noise, failing sensors and repetition between a policy and a task.

These are challenges of the Real-World RL suite (Dulac-Arnold et al.): a channel that actions go out through and
observations and rewards come back through; the task behind it, its costs and its initial states stay as they are.
Orders and definitions are the suite's: an action is delayed, gets its noise (the task then clips it) and is repeated;
an observation gets its noise, loses entries, has entries that stick, and is delayed. Unlike there, nothing is carried
over from one episode to the next.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from safemeta.core import Signals
from safemeta.sim.functional import FunctionalEnvironment
from safemeta.sim.mujoco import Command, MujocoEnvironment
from safemeta.sim.mujoco_engine import Placement, Reading, Refresh
from safemeta.sim.step import Parameters, Step

_STREAM = 2**32 - 2  # of the key of an episode's start: the task's own draws stay as they were


class Channel(eqx.Module):
    """What is on its way, the oldest first, and what is held; None where the challenge is off.

    `dropped` and `stuck` count the control steps for which each entry of an observation still fails.
    """

    key: Key[Array, ""]
    steps: Int[Array, ""]
    actions: Float[Array, "action_delay action"] | None
    observations: Float[Array, "observation_delay observation"] | None
    rewards: Float[Array, " reward_delay"] | None
    held: Float[Array, " action"] | None
    dropped: Int[Array, " entries"] | None
    stuck: Int[Array, " entries"] | None
    shown: Float[Array, " entries"] | None


@dataclass(frozen=True)
class Challenges:
    """Delays in control steps, standard deviations of white Gaussian noise, steps for which an action is held.

    At step t a delay of d gives what was put in at step max(t - d, 0). Each entry of an observation that does not fail
    starts to with a probability: "dropped" for `observation_dropped_steps` steps it is 0, "stuck" for
    `observation_stuck_steps` it stays what it was. The last `exact` entries get no noise and do not fail.
    """

    action_delay: int = 0
    observation_delay: int = 0
    reward_delay: int = 0
    action_noise: float = 0.0
    observation_noise: float = 0.0
    action_repetition: int = 1
    observation_dropped: float = 0.0
    observation_dropped_steps: int = 1
    observation_stuck: float = 0.0
    observation_stuck_steps: int = 1
    exact: int = 0

    def __post_init__(self):
        for name in ("action_delay", "observation_delay", "reward_delay", "exact"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("action_repetition", "observation_dropped_steps", "observation_stuck_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("action_noise", "observation_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be zero or a positive number, not {getattr(self, name)}")
        for name in ("observation_dropped", "observation_stuck"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, not {getattr(self, name)}")

    @property
    def none(self) -> bool:
        """Whether nothing is changed."""
        delays = self.action_delay or self.observation_delay or self.reward_delay or self.action_repetition > 1
        return not (
            delays or self.action_noise or self.observation_noise or self.observation_dropped or self.observation_stuck
        )

    def open(
        self, key: PRNGKeyArray, observation: Float[Array, " observation"], action_size: int
    ) -> tuple[Channel, Float[Array, " observation"]]:
        """The channel at the start of an episode, and what is seen of the first observation."""

        def zeros(wanted: bool, *shape: int, dtype: Any = observation.dtype) -> Array | None:
            return jnp.zeros(shape, dtype) if wanted else None

        entries = observation.shape[0] - self.exact
        channel = Channel(
            key,
            jnp.asarray(0),
            zeros(self.action_delay > 0, self.action_delay, action_size),
            zeros(self.observation_delay > 0, self.observation_delay, *observation.shape),
            zeros(self.reward_delay > 0, self.reward_delay),
            zeros(self.action_repetition > 1, action_size),
            zeros(self.observation_dropped > 0, entries, dtype=int),
            zeros(self.observation_stuck > 0, entries, dtype=int),
            zeros(self.observation_stuck > 0, entries),
        )
        return self._seen(channel, observation)

    def outwards(self, channel: Channel, action: Float[Array, " action"]) -> tuple[Channel, Float[Array, " action"]]:
        """What the task gets of the policy's action."""
        waiting, action = _delayed(channel.actions, action, channel.steps == 0)
        if self.action_noise:
            key = jax.random.fold_in(channel.key, 2 * channel.steps)
            action = action + self.action_noise * jax.random.normal(key, action.shape, action.dtype)
        held = None
        if channel.held is not None:
            held = action = jnp.where(channel.steps % self.action_repetition == 0, action, channel.held)
        return replace(channel, actions=waiting, held=held), action

    def inwards(self, channel: Channel, step: Step) -> tuple[Channel, Step]:
        """What the policy gets of a step of the task."""
        rewards, reward = _delayed(channel.rewards, step.reward, channel.steps == 0)
        channel = replace(channel, steps=channel.steps + 1, rewards=rewards)
        channel, observation = self._seen(channel, step.observation)
        return channel, Step(observation, reward, step.costs, step.terminated, step.truncated)

    def _seen(
        self, channel: Channel, observation: Float[Array, " observation"]
    ) -> tuple[Channel, Float[Array, " observation"]]:
        first = channel.steps == 0
        noise, drop, stick = jax.random.split(jax.random.fold_in(channel.key, 2 * channel.steps + 1), 3)
        entries = observation.shape[0] - self.exact
        seen, dropped, stuck, shown = observation[:entries], None, None, None
        if self.observation_noise:
            seen = seen + self.observation_noise * jax.random.normal(noise, seen.shape, seen.dtype)
        if channel.dropped is not None:
            fails, dropped = _failing(channel.dropped, drop, self.observation_dropped, self.observation_dropped_steps)
            seen = jnp.where(fails, 0, seen)
        if channel.stuck is not None and channel.shown is not None:
            fails, stuck = _failing(channel.stuck, stick, self.observation_stuck, self.observation_stuck_steps)
            shown = seen = jnp.where(fails & ~first, channel.shown, seen)
        whole = jnp.concatenate([seen, observation[entries:]])
        waiting, whole = _delayed(channel.observations, whole, first)
        return replace(channel, observations=waiting, dropped=dropped, stuck=stuck, shown=shown), whole


def _delayed(waiting: Array | None, new: Array, first: Bool[Array, ""]) -> tuple[Array | None, Array]:
    """A queue of fixed length, and what leaves it; the first to come fills it."""
    if waiting is None:
        return None, new
    queue = jnp.concatenate([jnp.where(first, new, waiting), new[None]])
    return queue[1:], queue[0]


def _failing(
    left: Int[Array, " entries"], key: PRNGKeyArray, probability: float, steps: int
) -> tuple[Bool[Array, " entries"], Int[Array, " entries"]]:
    """Which entries fail now, and for how many steps more; those that do not may begin to."""
    begins = (left == 0) & jax.random.bernoulli(key, probability, left.shape)
    left = jnp.where(begins, steps, left)
    return left > 0, jnp.maximum(left - 1, 0)


class ChallengedState(eqx.Module):
    """The task's own state of a row, and its channel."""

    task: PyTree[Array]
    channel: Channel


@dataclass(frozen=True)
class _Challenged:
    """What both kinds share. An environment without `signals` or `settle` has none behind a channel either."""

    environment: Any
    challenges: Challenges
    action_size: int

    @property
    def signals(self) -> Any:
        """As the environment's."""
        offered = self.environment.signals

        def signals(parameters: Parameters, state: ChallengedState) -> Signals:
            return offered(parameters, state.task)

        return signals

    def _after(self, task: PyTree[Array], channel: Channel, step: Step) -> tuple[ChallengedState, Step]:
        channel, step = self.challenges.inwards(channel, step)
        return ChallengedState(task, channel), step


@dataclass(frozen=True)
class ChallengedFunctional(_Challenged):
    """A `FunctionalEnvironment` behind a channel: one itself."""

    environment: FunctionalEnvironment

    def reset(self, parameters: Parameters, key: PRNGKeyArray) -> tuple[ChallengedState, Float[Array, " observation"]]:
        task, observation = self.environment.reset(parameters, key)
        channel, seen = self.challenges.open(jax.random.fold_in(key, _STREAM), observation, self.action_size)
        return ChallengedState(task, channel), seen

    def step(
        self, parameters: Parameters, state: ChallengedState, action: Float[Array, " action"]
    ) -> tuple[ChallengedState, Step]:
        channel, action = self.challenges.outwards(state.channel, action)
        task, step = self.environment.step(parameters, state.task, action)
        return self._after(task, channel, step)


@dataclass(frozen=True)
class ChallengedMujoco(_Challenged):
    """A `MujocoEnvironment` behind a channel: one itself."""

    environment: MujocoEnvironment

    @property
    def reads(self) -> tuple[str, ...]:
        return self.environment.reads

    @property
    def substeps(self) -> int:
        return self.environment.substeps

    @property
    def refresh(self) -> Refresh:
        return self.environment.refresh

    @property
    def settle(self) -> Any:
        """As the environment's."""
        environment: Any = self.environment
        return environment.settle

    def model(self) -> Any:
        return self.environment.model()

    def reset(
        self, parameters: Parameters, key: PRNGKeyArray
    ) -> tuple[tuple[PyTree[Array], Key[Array, ""]], Placement]:
        task, placement = self.environment.reset(parameters, key)
        return (task, jax.random.fold_in(key, _STREAM)), placement

    def begin(
        self, parameters: Parameters, state: tuple[PyTree[Array], Key[Array, ""]], reading: Reading
    ) -> tuple[ChallengedState, Float[Array, " observation"]]:
        task, observation = self.environment.begin(parameters, state[0], reading)
        channel, seen = self.challenges.open(state[1], observation, self.action_size)
        return ChallengedState(task, channel), seen

    def command(self, parameters: Parameters, state: ChallengedState, action: Float[Array, " action"]) -> Command:
        return self.environment.command(parameters, state.task, self.challenges.outwards(state.channel, action)[1])

    def step(
        self, parameters: Parameters, state: ChallengedState, reading: Reading, action: Float[Array, " action"]
    ) -> tuple[ChallengedState, Step]:
        channel, action = self.challenges.outwards(state.channel, action)
        task, step = self.environment.step(parameters, state.task, reading, action)
        return self._after(task, channel, step)
