"""Delays, noise and repetition between a policy and a task, as in the Real-World RL suite (Dulac-Arnold et al.).

They are a channel that actions go out through and observations and rewards come back through; the task behind it, its
costs and its initial states stay as they are. Orders and definitions are the suite's: an action is delayed, gets its
noise (the task then clips it) and is repeated; an observation gets its noise and is delayed. Unlike there, nothing is
carried over from one episode to the next.
"""

from dataclasses import dataclass
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
    """What is on its way, the oldest first (None without delay), and the action that is held (None if none is)."""

    key: Key[Array, ""]
    steps: Int[Array, ""]
    actions: Float[Array, "action_delay action"] | None
    observations: Float[Array, "observation_delay observation"] | None
    rewards: Float[Array, " reward_delay"] | None
    held: Float[Array, " action"] | None


@dataclass(frozen=True)
class Challenges:
    """Delays in control steps, standard deviations of white Gaussian noise, steps for which an action is held.

    At step t a delay of d gives what was put in at step max(t - d, 0). The last `exact` entries of an observation get
    no noise.
    """

    action_delay: int = 0
    observation_delay: int = 0
    reward_delay: int = 0
    action_noise: float = 0.0
    observation_noise: float = 0.0
    action_repetition: int = 1
    exact: int = 0

    def __post_init__(self):
        for name, least in (("action_delay", 0), ("observation_delay", 0), ("reward_delay", 0), ("exact", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("action_noise", "observation_noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be zero or a positive number, not {getattr(self, name)}")
        if self.action_repetition < 1:
            raise ValueError(f"action_repetition must be at least 1, not {self.action_repetition}")

    @property
    def none(self) -> bool:
        """Whether nothing is changed."""
        return self == Challenges(exact=self.exact)

    def open(
        self, key: PRNGKeyArray, observation: Float[Array, " observation"], action_size: int
    ) -> tuple[Channel, Float[Array, " observation"]]:
        """The channel at the start of an episode, and what is seen of the first observation."""

        def waiting(delay: int, *shape: int) -> Array | None:
            return jnp.zeros((delay, *shape), observation.dtype) if delay else None

        channel = Channel(
            key,
            jnp.asarray(0),
            waiting(self.action_delay, action_size),
            waiting(self.observation_delay, *observation.shape),
            waiting(self.reward_delay),
            jnp.zeros(action_size, observation.dtype) if self.action_repetition > 1 else None,
        )
        return self._seen(channel, observation)

    def outwards(self, channel: Channel, action: Float[Array, " action"]) -> tuple[Channel, Float[Array, " action"]]:
        """What the task gets of the policy's action."""
        waiting, action = _delayed(channel.actions, action, channel.steps == 0)
        if self.action_noise:
            key = jax.random.fold_in(channel.key, 2 * channel.steps)
            action = action + self.action_noise * jax.random.normal(key, action.shape, action.dtype)
        if channel.held is None:
            held = None
        else:
            held = action = jnp.where(channel.steps % self.action_repetition == 0, action, channel.held)
        return Channel(channel.key, channel.steps, waiting, channel.observations, channel.rewards, held), action

    def inwards(self, channel: Channel, step: Step) -> tuple[Channel, Step]:
        """What the policy gets of a step of the task."""
        rewards, reward = _delayed(channel.rewards, step.reward, channel.steps == 0)
        channel = Channel(channel.key, channel.steps + 1, channel.actions, channel.observations, rewards, channel.held)
        channel, observation = self._seen(channel, step.observation)
        return channel, Step(observation, reward, step.costs, step.terminated, step.truncated)

    def _seen(
        self, channel: Channel, observation: Float[Array, " observation"]
    ) -> tuple[Channel, Float[Array, " observation"]]:
        if self.observation_noise:
            key = jax.random.fold_in(channel.key, 2 * channel.steps + 1)
            noisy = observation.shape[0] - self.exact
            noise = self.observation_noise * jax.random.normal(key, (noisy,), observation.dtype)
            observation = observation.at[:noisy].add(noise)
        waiting, observation = _delayed(channel.observations, observation, channel.steps == 0)
        return Channel(channel.key, channel.steps, channel.actions, waiting, channel.rewards, channel.held), observation


def _delayed(waiting: Array | None, new: Array, first: Bool[Array, ""]) -> tuple[Array | None, Array]:
    """A queue of fixed length, and what leaves it; the first to come fills it."""
    if waiting is None:
        return None, new
    queue = jnp.concatenate([jnp.where(first, new, waiting), new[None]])
    return queue[1:], queue[0]


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
