"""Feasibility: plain loops over actions as the oracle."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.certificates import (
    Candidates,
    SafetyIndex,
    action_grid,
    feasible_states,
    filter_action,
    judge,
    nearest_safe,
)
from safemeta.tasks.collision_avoidance import CollisionAvoidance, UnicycleState, advance

INDEX = SafetyIndex.named("feasible", d_min=0.5)


def clearance(state):
    return CollisionAvoidance().clearance({}, state)


def random_states(count, seed=0):
    rng = np.random.default_rng(seed)
    columns = rng.uniform((-1.5, -1.5, 0.0, -math.pi, 0.0), (1.5, 1.5, 6.0, math.pi, 0.0), (count, 5)).T
    return UnicycleState(*map(jnp.asarray, columns))


def test_the_grid_of_actions():
    grid = np.asarray(action_grid(2, 5))
    expected = list(itertools.product([-1, -0.5, 0, 0.5, 1], repeat=2))
    np.testing.assert_allclose(grid, expected, atol=1e-7)
    assert action_grid(3, 2).shape == (8, 3)
    with pytest.raises(ValueError, match="2 points"):
        action_grid(2, 1)


def plain_violation(state, action):
    """Delta of phi_F for the unicycle by an Euler scheme of many small steps, in plain Python."""
    x, y, v, heading = state

    def energy():
        d = math.hypot(x, y)
        return 0.04 + 0.25 - d**2 - v * (x * math.cos(heading) + y * math.sin(heading)) / d

    before = energy()
    for _ in range(400):
        middle, turned = v + 4 * action[0] * 0.000125, heading + math.pi * action[1] * 0.000125
        x, y = x + 0.00025 * middle * math.cos(turned), y + 0.00025 * middle * math.sin(turned)
        v, heading = v + 4 * action[0] * 0.00025, heading + math.pi * action[1] * 0.00025
    return energy() - max(before, 0)


def test_feasible_states_are_those_of_plain_loops(x64):
    states, actions = random_states(60), action_grid(2, 3)
    found = feasible_states(INDEX, advance, clearance, states, actions, chunk=16)  # 60 is no multiple of 16
    for i in range(60):
        row = [float(getattr(states, name)[i]) for name in ("x", "y", "speed", "heading")]
        deltas = np.array([plain_violation(row, action) for action in np.asarray(actions)])
        assert found.least_violation[i] == pytest.approx(deltas.min(), abs=1e-4)
        if np.abs(deltas).min() > 1e-4:  # farther from zero than Euler's error
            assert found.feasible[i] == (deltas <= 0).any()
            assert found.safe_share[i] == pytest.approx((deltas <= 0).mean())
    assert {True, False} == set(found.feasible.tolist())


def test_chunks_change_nothing_and_slack_makes_states_infeasible():
    states, actions = random_states(50), action_grid(2, 5)
    whole = feasible_states(INDEX, advance, clearance, states, actions, chunk=50)
    parts = feasible_states(INDEX, advance, clearance, states, actions, chunk=7)
    np.testing.assert_allclose(whole.least_violation, parts.least_violation, atol=1e-6)
    strict = feasible_states(INDEX, advance, clearance, states, actions, 0.5)
    assert strict.feasible.sum() < whole.feasible.sum()
    assert not jnp.any(strict.feasible & ~whole.feasible)


def test_nearest_safe_against_brute_force():
    rng = np.random.default_rng(1)
    candidates = np.asarray(action_grid(2, 4))
    choose, outcomes = jax.jit(nearest_safe), set()
    for _ in range(200):
        action = candidates[rng.integers(16)] if rng.random() < 0.3 else rng.uniform(-1.2, 1.2, 2)
        violation = rng.normal(rng.choice([-1.0, 0.5, 3.0]), 1.0, 16)
        action, violation = action.astype(np.float32), violation.astype(np.float32)
        found = choose(jnp.asarray(action), jnp.asarray(candidates), Candidates(jnp.asarray(violation)))
        allowed = [i for i in range(16) if violation[i] <= 0]
        if allowed:
            best = min(math.dist(candidates[i], action) for i in allowed)
            assert math.dist(found.action, action) == pytest.approx(best, abs=1e-6)
            assert any(np.array_equal(found.action, candidates[i]) for i in allowed)
        else:
            np.testing.assert_array_equal(found.action, candidates[violation.argmin()])
        assert found.feasible == bool(allowed)
        assert found.changed == (not np.array_equal(found.action, action))
        outcomes.add((bool(found.feasible), bool(found.changed)))
    assert {(True, True), (True, False), (False, True)} <= outcomes


def test_nearest_safe_in_batches_and_beside_nan():
    candidates = jnp.array([[-1.0], [0.0], [1.0]])
    violation = jnp.array([[1.0, -1.0, -1.0], [jnp.nan, 2.0, 1.0], [0.0, 1.0, 1.0]])
    found = nearest_safe(jnp.array([[0.9], [0.9], [0.9]]), candidates, Candidates(violation))
    np.testing.assert_array_equal(found.action[:, 0], [1, 1, -1])  # NaN is no safe action, and Delta = 0 is one
    np.testing.assert_array_equal(found.feasible, [True, False, True])


def test_judging_broadcasts_over_candidates(x64):
    key = jax.random.key(0)
    now = jax.random.uniform(key, (5, 2, 2), minval=0.1, maxval=1.5)
    following = jax.random.uniform(jax.random.fold_in(key, 1), (5, 7, 2, 2), minval=0.1, maxval=1.5)
    judged = judge(INDEX, now, following, 0.1)
    for state, action in itertools.product(range(5), range(7)):
        energy = [float(0.29 - (x[:, 0] ** 2 + x[:, 1]).min()) for x in (now[state], following[state, action])]
        assert judged.violation[state, action] == pytest.approx(energy[1] - max(energy[0] - 0.1, 0), abs=1e-7)
    np.testing.assert_array_equal(judged.feasible, (judged.violation <= 0).any(1))


def test_the_filter_leaves_safe_actions_alone_and_keeps_a_unicycle_out_of_the_hazard():
    ahead = jnp.array([1.0, 0.0])  # full throttle, straight at the hazard
    actions = action_grid(2, 9)
    start = UnicycleState(*map(jnp.asarray, (0.05, -3.0, 1.0, math.pi / 2, 0.0)))

    @jax.jit
    def drive(state, _):
        chosen = filter_action(INDEX, advance, clearance, state, ahead, actions)
        state = advance(state, chosen.action)
        return state, (clearance(state)[0, 0], chosen.changed, chosen.feasible)

    _, (distance, changed, feasible) = jax.lax.scan(drive, start, length=60)
    assert not changed[0]  # far away anything goes
    assert changed.any()
    assert feasible.all()
    assert distance.min() > 0.5
    unguarded, _ = jax.lax.scan(lambda state, _: (advance(state, ahead), None), start, length=10)
    assert clearance(unguarded)[0, 0] < 0.5  # without the filter it is inside after a second
