"""Returns of several steps from replayed sequences, the reward and each cost apart, so that prices may change later."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from safemeta.algorithms.replay import Batch, Entry, Replay


class MultiStepBatch(Batch):
    """Transitions of up to n steps: `reward` and `costs` are discounted sums, `next_observation` follows the last step.

    `discount` is what the value of `next_observation` is worth: `gamma^steps`, and 0 where the episode terminated.
    """

    discount: Float[Array, " batch"]
    index: Int[Array, " batch"] | None = None  # where a replay with priorities keeps it


def multi_step(sequence: Entry, discount: float) -> MultiStepBatch:
    """Sums over the first n of n + 1 neighbouring entries, `[batch, n + 1, ...]`.

    With m <= n the number of steps until the episode ended or was cut off: `R = sum_{k<m} gamma^k r_k`, `C_i` alike,
    and `R + gamma^m v(s_m)` estimates the value. An entry that is not valid shows where its episode ended, so that s_m
    is right at a cut; what terminated has no value beyond.
    """
    steps = sequence.reward.shape[1] - 1
    first = jax.tree.map(lambda leaf: leaf[:, 0], sequence)
    # A step counts if it and all before it are steps of one episode.
    ended = jnp.pad(sequence.terminated[:, : steps - 1], ((0, 0), (1, 0)))
    counts = jnp.cumprod(sequence.valid[:, :steps] & ~ended, axis=1)
    made = counts.sum(axis=1)
    dtype = first.reward.dtype
    weights = counts * jnp.asarray(discount, dtype) ** jnp.arange(steps)
    terminated = jnp.any((counts > 0) & sequence.terminated[:, :steps], axis=1)
    rows = jnp.arange(made.shape[0])
    return MultiStepBatch(
        observation=first.observation,
        action=first.action,
        reward=jnp.sum(weights * sequence.reward[:, :steps], axis=1),
        costs=jnp.sum(weights[..., None] * sequence.costs[:, :steps], axis=1),
        next_observation=sequence.observation[rows, made],
        terminated=terminated,
        valid=first.valid,
        signals=first.signals,
        next_signals=jax.tree.map(lambda leaf: leaf[rows, made], sequence.signals),
        weight=jnp.ones_like(first.reward),
        discount=jnp.where(terminated, 0, jnp.asarray(discount, dtype) ** made),
    )


@dataclass(frozen=True)
class SequenceReplay(Replay):
    """A replay of which transitions of `steps` steps are drawn; shorter ones at the end of an episode."""

    steps: int
    discount: float

    @property
    def entries(self) -> int:
        return self.steps + 1

    def sample(self, state: Any, key: PRNGKeyArray) -> MultiStepBatch:
        return multi_step(self._buffer.sample(state, key).experience, self.discount)
