"""Prioritised replay: who is drawn how often, what that counts, and whose priority is changed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.algorithms.prioritised import LEAST, UNIT, PrioritisedReplay
from safemeta.core import CMDP, Transition

ROWS, HORIZON, STEPS, LENGTH = 3, 4, 2, 16
ALPHA, BETA, GAMMA = 0.6, 0.4, 0.5
REPLAY = PrioritisedReplay(ROWS, ROWS * LENGTH, 256, STEPS, GAMMA, ALPHA, BETA)
ADD, CLOSE, SAMPLE, JUDGED = (jax.jit(part) for part in (REPLAY.add, REPLAY.close, REPLAY.sample, REPLAY.judged))


def filled(episodes):
    """Row r of episode e begins at 100 r + 1000 e, and counts on; it ends in a closing entry."""
    state = REPLAY.init(CMDP(1, 1, HORIZON, ("cost",), (1.0,)))
    for episode in range(episodes):
        for t in range(HORIZON):
            at = (100.0 * jnp.arange(ROWS) + 1000 * episode + t)[:, None]
            no, yes = jnp.zeros(ROWS, bool), jnp.ones(ROWS, bool)
            last = Transition(at, at, jnp.ones(ROWS), jnp.ones((ROWS, 1)), at + 1, no, yes, {}, {})
            state = ADD(state, last)
        state = CLOSE(state, last)
    return state


def priorities(state):
    """`p^alpha` of every place: the leaves of the tree."""
    tree = state.sum_tree_state
    return np.asarray(tree.nodes)[2**tree.tree_depth - 1 :][: ROWS * LENGTH] * UNIT


def told(state, losses):
    """The state after losses of places."""
    places = jnp.resize(jnp.asarray(list(losses)), 256)
    values = jnp.resize(jnp.asarray(list(losses.values())), 256)
    batch = replace(SAMPLE(state, jax.random.key(0)), index=places, valid=jnp.ones(256, bool))
    return JUDGED(state, batch, values)


@pytest.fixture(scope="module")
def uneven():
    """Two episodes (10 of 16 places of a row are written, 8 can begin a sequence); losses from 0 to 4."""
    state = filled(2)
    begins = np.flatnonzero(priorities(state))
    assert [p for p in begins if p < LENGTH] == list(range(2 * (HORIZON + 1) - STEPS))
    losses = np.random.default_rng(0).uniform(0, 4, begins.size)
    return told(state, dict(zip(begins.tolist(), losses.tolist(), strict=True))), begins, losses


def test_draws_are_as_frequent_as_priorities_to_their_exponent(uneven):
    state, begins, losses = uneven
    expected = (losses + LEAST) ** ALPHA
    np.testing.assert_allclose(priorities(state)[begins], expected, rtol=1e-5)
    np.testing.assert_array_equal(np.delete(priorities(state), begins), 0)
    draws = np.concatenate([SAMPLE(state, jax.random.key(seed)).index for seed in range(20)])
    counts = np.bincount(draws, minlength=ROWS * LENGTH)[begins]
    assert counts.sum() == draws.size
    share = draws.size * expected / expected.sum()
    # Strata leave less to chance than independent draws would.
    assert np.all(np.abs(counts - share) < 4 * np.sqrt(share))
    uniform = np.full(begins.size, draws.size / begins.size)
    assert np.abs(counts - uniform).max() > 100


def test_weights_are_those_of_a_plain_loop(uneven):
    state, begins, _ = uneven
    leaves = priorities(state)
    batch = SAMPLE(state, jax.random.key(3))
    valid = np.asarray(batch.valid)
    assert 0 < valid.sum() < 256  # closing entries among them
    by_hand = []
    for place in np.asarray(batch.index):
        chance = leaves[place] / leaves.sum()
        by_hand.append((begins.size * chance) ** -BETA)
    largest = max(weight for weight, counts in zip(by_hand, valid, strict=True) if counts)
    np.testing.assert_allclose(batch.weight[valid], np.asarray(by_hand)[valid] / largest, rtol=1e-4)
    np.testing.assert_array_equal(batch.weight[~valid], 0)
    assert float(batch.weight.max()) == 1
    assert float(batch.weight[valid].min()) < 0.7


def test_the_index_is_the_place_of_the_transition_and_the_order_is_random(uneven):
    state, _, _ = uneven
    batch = SAMPLE(state, jax.random.key(4))
    index = np.asarray(batch.index)
    np.testing.assert_array_equal(
        batch.observation, np.asarray(state.experience.observation)[index // LENGTH, index % LENGTH]
    )
    # A learner takes part of the batch to train on: it must not be other rows than the rest.
    rows = index // LENGTH
    assert abs(rows[:128].mean() - rows[128:].mean()) < 0.3


def test_a_loss_changes_its_own_place_alone_and_what_is_not_valid_is_not_drawn_again():
    state = filled(2)
    before, batch = priorities(state), SAMPLE(state, jax.random.key(5))
    assert not np.all(batch.valid)
    losses = 1 + 0.01 * batch.index.astype(jnp.float32)
    state = JUDGED(state, batch, losses)
    for place, was in enumerate(before):
        hit = np.flatnonzero(np.asarray(batch.index) == place)
        expected = was
        if hit.size:
            expected = (1 + 0.01 * place + LEAST) ** ALPHA if batch.valid[hit[0]] else 0.0
        assert priorities(state)[place] == pytest.approx(expected, rel=1e-5)
    assert np.all(SAMPLE(state, jax.random.key(6)).valid)  # 256 draws of 24 places have met all


def test_what_is_new_has_the_largest_priority_that_was_given():
    state = told(filled(1), {0: 3.0, 1: 0.5})
    largest = (3.0 + LEAST) ** ALPHA  # 1.93: not an integer
    state = told(state, {0: 0.25})  # it stays the largest that was ever given
    known = set(np.flatnonzero(priorities(state)))
    one = jnp.zeros((ROWS, 1))
    yes = jnp.ones(ROWS, bool)
    state = ADD(state, Transition(one, one, jnp.ones(ROWS), one, one, ~yes, yes, {}, {}))
    new = sorted(set(np.flatnonzero(priorities(state))) - known)
    assert new == [row * LENGTH + HORIZON + 1 - STEPS for row in range(ROWS)]
    np.testing.assert_allclose(priorities(state)[new], largest, rtol=1e-4)


def test_sequences_do_not_leak_through_the_buffers_end():
    """Seven episodes in a place for three: the successor is two further on, or where the episode ended."""
    state = filled(7)
    batch = SAMPLE(state, jax.random.key(0))
    counts = np.asarray(batch.valid)
    place = np.asarray(batch.observation)[counts, 0] % 100
    made = np.minimum(STEPS, HORIZON - place)
    np.testing.assert_array_equal(batch.next_observation[counts, 0], batch.observation[counts, 0] + made)
    np.testing.assert_allclose(batch.reward[counts], 2 * (1 - GAMMA**made))
    assert set(place) == set(range(HORIZON))


def test_priorities_need_losses(uneven):
    with pytest.raises(TypeError, match="tells its losses"):
        REPLAY.judged(uneven[0], SAMPLE(uneven[0], jax.random.key(0)), None)
