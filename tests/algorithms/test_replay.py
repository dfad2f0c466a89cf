"""Replay: pairs of neighbours are transitions, and nothing leaks from one episode into another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.algorithms.replay import Replay
from safemeta.core import CMDP, Transition

ROWS, HORIZON = 3, 4
WORLD = CMDP(1, 1, HORIZON, ("cost",), (1.0,), signals=(("clearance", (2, 2)),))


def step(row_values, terminated=False, valid=True):
    """A control step of all rows whose observation is `row_values` and whose next one is one more."""
    values = jnp.asarray(row_values, jnp.float32)
    rows = values.shape[0]
    seen = jnp.broadcast_to(values[:, None, None], (rows, 2, 2))
    return Transition(
        values[:, None],
        10 * values[:, None],
        100 * values,
        values[:, None],
        values[:, None] + 1,
        jnp.full(rows, terminated),
        jnp.full(rows, valid),
        {"clearance": seen},
        {"clearance": seen + 1},
    )


def filled(episodes, capacity=1000):
    """Row r of episode e begins at 100 r + 1000 e."""
    replay = Replay(ROWS, capacity, 256)
    state = replay.init(WORLD)
    for episode in range(episodes):
        start = 100.0 * jnp.arange(ROWS) + 1000 * episode
        for t in range(HORIZON):
            last = step(start + t)
            state = replay.add(state, last)
        state = replay.close(state, last)
    return replay, state


@pytest.mark.parametrize(("episodes", "capacity"), [(3, 1000), (7, 60)])
def test_every_transition_that_counts_is_one_that_was_made(episodes, capacity):
    replay, state = filled(episodes, capacity)
    batch = replay.sample(state, jax.random.key(0))
    counts = np.asarray(batch.valid) > 0
    observation = np.asarray(batch.observation)[:, 0]
    np.testing.assert_allclose(batch.next_observation[counts, 0], observation[counts] + 1)
    np.testing.assert_allclose(batch.action[counts, 0], 10 * observation[counts])
    np.testing.assert_allclose(batch.reward[counts], 100 * observation[counts])
    np.testing.assert_allclose(batch.next_signals["clearance"][counts], batch.signals["clearance"][counts] + 1)
    # the last step of an episode is among them, and its successor is where the episode ended
    assert {int(o) % 100 for o in observation[counts]} == set(range(HORIZON))
    # only closing entries have no weight: 1 of 5
    assert counts.mean() == pytest.approx(HORIZON / (HORIZON + 1), abs=0.08)
    if capacity == 60:  # only the newest 20 steps of each row are left
        assert observation.min() >= 1000 * (episodes - capacity // ROWS // (HORIZON + 1) - 1)


def test_sampling_is_uniform():
    replay, state = filled(2)
    draws = [replay.sample(state, jax.random.key(seed)).observation[:, 0] for seed in range(20)]
    values, counts = np.unique(np.concatenate(draws), return_counts=True)
    # entries 0 .. 8 of each row can begin a pair
    assert len(values) == ROWS * 9
    expected = 20 * 256 / (ROWS * 9)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_rows_that_have_ended_do_not_count():
    replay = Replay(ROWS, 100, 64)
    state = replay.add(replay.init(WORLD), step([0.0, 1.0, 2.0], terminated=True))
    state = replay.add(state, step([1.0, 2.0, 3.0], valid=False))
    state = replay.close(state, step([1.0, 2.0, 3.0], valid=False))
    batch = replay.sample(state, jax.random.key(0))
    first = np.asarray(batch.observation[:, 0] - jnp.round(batch.action[:, 0] / 10)) == 0
    np.testing.assert_array_equal(np.asarray(batch.valid) > 0, np.asarray(batch.terminated) & first)


def test_the_mean_is_that_of_what_counts():
    replay, state = filled(1)
    batch = replay.sample(state, jax.random.key(1))
    counts = np.asarray(batch.valid) > 0
    assert float(batch.mean(batch.reward)) == pytest.approx(float(np.asarray(batch.reward)[counts].mean()), rel=1e-5)
