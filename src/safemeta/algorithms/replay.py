"""Replay of past experience: flashbax's trajectory buffer, whose entries are one control step of every row.

A pair of neighbouring entries is a transition: the next observation need not be kept twice. So that an episode's last
step has its neighbour too, each episode is closed by an entry that shows where it ended.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flashbax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from safemeta.core import CMDP, Signals, Transition


class Entry(eqx.Module):
    """What is kept of one step of one row; after an episode only observation and signals mean anything."""

    observation: Float[Array, "*batch observation"]
    action: Float[Array, "*batch action"]
    reward: Float[Array, "*batch"]
    costs: Float[Array, "*batch costs"]
    terminated: Bool[Array, "*batch"]
    valid: Bool[Array, "*batch"]
    signals: Signals


class Batch(Transition):
    """Transitions drawn from the replay; those that lead from one episode into another are not `valid`."""

    weight: Float[Array, " batch"]  # what a loss of each counts; ones where draws are uniform

    def mean(self, values: Float[Array, " batch"]) -> Float[Array, ""]:
        """Over those that count."""
        weight = self.valid.astype(values.dtype)
        return jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), 1)


@dataclass(frozen=True)
class Replay:
    """`capacity` steps, shared by `rows` rows; `sample` draws `batch` transitions uniformly, with replacement."""

    rows: int
    capacity: int
    batch: int

    def init(self, cmdp: CMDP) -> Any:
        """An empty buffer."""
        signals = {name: jnp.zeros(shape) for name, shape in cmdp.signals}
        nothing, costs = jnp.zeros(()), jnp.zeros(len(cmdp.cost_names))
        observation, action = jnp.zeros(cmdp.observation_size), jnp.zeros(cmdp.action_size)
        no = jnp.asarray(False)
        return self._buffer.init(Entry(observation, action, nothing, costs, no, no, signals))

    def add(self, state: Any, step: Transition) -> Any:
        """One control step of all rows."""
        return self._append(
            state,
            Entry(step.observation, step.action, step.reward, step.costs, step.terminated, step.valid, step.signals),
        )

    def close(self, state: Any, last: Transition) -> Any:
        """The end of all rows' episodes, after their last step."""
        zero = jax.tree.map(jnp.zeros_like, last)
        return self._append(
            state,
            Entry(
                last.next_observation,
                zero.action,
                zero.reward,
                zero.costs,
                zero.terminated,
                zero.valid,
                last.next_signals,
            ),
        )

    @property
    def entries(self) -> int:
        """How many neighbouring entries are drawn together: so many there must be before `sample`."""
        return 2

    def sample(self, state: Any, key: PRNGKeyArray) -> Batch:
        pair = self._buffer.sample(state, key).experience
        first, second = (jax.tree.map(lambda leaf, at=at: leaf[:, at], pair) for at in (0, 1))
        return Batch(
            first.observation,
            first.action,
            first.reward,
            first.costs,
            second.observation,
            first.terminated,
            first.valid,
            first.signals,
            second.signals,
            jnp.ones_like(first.reward),
        )

    def judged(self, state: Any, batch: Any, losses: Float[Array, " batch"] | None) -> Any:
        """The state after a gradient step on `batch` whose losses were these: as it was, unless it has priorities."""
        return state

    def priorities(self, state: Any) -> Any:
        """The part of the state that `judged` changes."""
        return None

    def with_priorities(self, state: Any, priorities: Any) -> Any:
        """The state with another such part."""
        return state

    def _append(self, state: Any, entry: Entry) -> Any:
        return self._buffer.add(state, jax.tree.map(lambda leaf: leaf[:, None], entry))

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "add_batch_size": self.rows,
            "sample_batch_size": self.batch,
            "sample_sequence_length": self.entries,
            "period": 1,
            "min_length_time_axis": self.entries,
            "max_length_time_axis": -(-self.capacity // self.rows),
        }

    @property
    def _buffer(self) -> Any:
        return flashbax.make_trajectory_buffer(**self._sizes)
