"""Prioritised replay (Schaul, Quan, Antonoglou, Silver 2016): transitions are drawn by how ill the critic fits them.

`P(i) = p_i^alpha / sum_k p_k^alpha`. That draws are not uniform is made up for by importance weights `(N P(i))^-beta`,
divided by the largest of their batch. The priority `p_i` is the learner's loss when the transition was last drawn; a
new one has the largest `p^alpha` that was ever given, so that it is soon drawn.
"""

from dataclasses import dataclass, replace
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.n_step import MultiStepBatch, SequenceReplay, multi_step
from safemeta.core import CMDP

LEAST = 1e-6  # added to a loss, so that nothing is forgotten for good
# flashbax 0.1.3 cuts the priority of new entries down to an integer: in so small a unit that makes no difference. A
# power of two changes no digit of a float.
UNIT = 2.0**-16


@dataclass(frozen=True)
class PrioritisedReplay(SequenceReplay):
    """Stratified draws by priority; `exponent` is alpha, `importance_exponent` beta."""

    exponent: float
    importance_exponent: float

    def init(self, cmdp: CMDP) -> Any:
        state = super().init(cmdp)
        largest = jnp.full_like(state.sum_tree_state.max_recorded_priority, 1 / UNIT)
        return state.replace(sum_tree_state=state.sum_tree_state.replace(max_recorded_priority=largest))

    def sample(self, state: Any, key: PRNGKeyArray) -> MultiStepBatch:
        """In random order: strata come sorted by place, and a learner may take a batch apart."""
        draw_key, order_key = jax.random.split(key)
        drawn = self._buffer.sample(state, draw_key)
        drawn = jax.tree.map(lambda leaf: jax.random.permutation(order_key, leaf), drawn)
        batch = multi_step(drawn.experience, self.discount)
        # Rounding may lead to a place of priority 0, where the newest experience meets the oldest.
        valid = batch.valid & (drawn.probabilities > 0)
        probability = jnp.where(valid, drawn.probabilities, 1)
        weight = jnp.where(valid, (probability.min() / probability) ** self.importance_exponent, 0)
        return replace(batch, valid=valid, weight=weight, index=drawn.indices)

    def judged(self, state: Any, batch: MultiStepBatch, losses: Float[Array, " batch"] | None) -> Any:
        """What is not valid is never drawn again."""
        if losses is None:
            raise TypeError("Priorities need a learner that tells its losses.")
        priority = jnp.where(batch.valid, (losses + LEAST) ** self.exponent / UNIT, 0)
        return self._buffer.set_priorities(state, batch.index, priority)

    def priorities(self, state: Any) -> Any:
        return state.sum_tree_state

    def with_priorities(self, state: Any, priorities: Any) -> Any:
        return state.replace(sum_tree_state=priorities)

    @property
    def _buffer(self) -> Any:
        return flashbax.make_prioritised_trajectory_buffer(
            **self._sizes, priority_exponent=1.0, device=jax.default_backend()
        )
