"""Limited quantities, advantages of batches, and the units of limits, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import make_cmdp, make_policy, make_trajectory, weights_of

from safemeta.algorithms.estimation import advantages, effective_discount, episode_return, limited_costs
from safemeta.core import Trajectory, generalized_advantage

pytestmark = pytest.mark.usefixtures("x64")
UNITS = ("discounted", "undiscounted", "per_step")


def with_garbage(rng, rows: Trajectory) -> Trajectory:
    """Numbers where nothing valid is: estimates must not see them."""
    hidden = ~np.asarray(rows.valid)
    assert hidden.any()
    reward, costs = np.array(rows.reward), np.array(rows.costs)
    reward[hidden], costs[hidden] = rng.normal(size=hidden.sum()), rng.normal(size=(hidden.sum(), costs.shape[-1]))
    return Trajectory(
        rows.observation,
        rows.action,
        rows.log_prob,
        jnp.asarray(reward),
        jnp.asarray(costs),
        rows.terminated,
        rows.truncated,
        rows.valid,
        rows.last_observation,
    )


@pytest.mark.parametrize("unit", UNITS)
def test_limited_costs_and_returns_equal_a_loop_over_valid_steps(rng, unit):
    cmdp = make_cmdp(horizon=8, limit_on=unit)
    rows = with_garbage(rng, make_trajectory(rng, make_policy(rng), cmdp, (3, 4), ends=0.15))
    expected, returns = np.zeros((3, 4, 2)), np.zeros((3, 4))
    for i in range(3):
        for j in range(4):
            for t in range(8):
                if not rows.valid[i, j, t]:
                    break
                weight = {"discounted": 0.9**t, "undiscounted": 1.0, "per_step": 1 / 8}[unit]
                expected[i, j] += weight * np.asarray(rows.costs[i, j, t])
                returns[i, j] += float(rows.reward[i, j, t])
    np.testing.assert_allclose(limited_costs(rows, cmdp), expected, rtol=1e-12)
    np.testing.assert_allclose(episode_return(rows), returns, rtol=1e-12)


@pytest.mark.parametrize("batch", [(4,), (2, 3)])
def test_advantages_of_a_batch_are_those_of_each_row(rng, batch):
    cmdp = make_cmdp(horizon=8)
    rows = make_trajectory(rng, make_policy(rng), cmdp, batch, ends=0.15)
    value, last = rng.normal(size=(*batch, 8, 3)), rng.normal(size=(*batch, 3))
    found = advantages(rows, jnp.asarray(value), jnp.asarray(last), cmdp, 0.8)
    for row in np.ndindex(batch):
        signal = np.concatenate([rows.reward[row][:, None], rows.costs[row]], axis=1)
        following = np.concatenate([value[row][1:], last[row][None]])
        arrays = (jnp.asarray(signal), jnp.asarray(value[row]), jnp.asarray(following))
        alone = np.asarray(generalized_advantage(*arrays, rows.terminated[row], rows.truncated[row], 0.9, 0.8))
        valid = np.asarray(rows.valid[row])
        np.testing.assert_allclose(found.reward[row][valid], alone[valid, 0], rtol=1e-12)
        np.testing.assert_allclose(found.costs[row][valid], alone[valid, 1:], rtol=1e-12)
        np.testing.assert_allclose(found.target[row][valid], (alone + value[row])[valid], rtol=1e-12)
        np.testing.assert_array_equal(np.asarray(found.reward[row])[~valid], 0)
        np.testing.assert_array_equal(np.asarray(found.costs[row])[~valid], 0)


def one_row(reward, terminated_at=None, truncated_at=None) -> Trajectory:
    """One episode with one cost (zero), which ends where it is said to."""
    steps = len(reward)
    ends = [np.arange(steps) == (steps if at is None else at) for at in (terminated_at, truncated_at)]
    valid = np.arange(steps) <= min(steps if at is None else at for at in (terminated_at, truncated_at))
    zeros = jnp.zeros(steps)
    return Trajectory(
        jnp.zeros((steps, 3)),
        jnp.zeros((steps, 2)),
        zeros,
        jnp.asarray(reward),
        zeros[:, None],
        jnp.asarray(ends[0]),
        jnp.asarray(ends[1]),
        jnp.asarray(valid),
        jnp.zeros(3),
    )


def advantage_by_hand(row: Trajectory, value: list[float], last: float) -> list[float]:
    """Discount 0.5, smoothing 1."""
    values = jnp.asarray(np.stack([value, np.zeros(len(value))], axis=1))
    cmdp = make_cmdp(horizon=len(value), costs=1, discount=0.5)
    return list(np.asarray(advantages(row, values, jnp.array([last, 0.0]), cmdp, 1.0).reward))


def test_at_the_horizon_the_last_observation_is_bootstrapped_from():
    # delta_2 = 1 + 0.5 * 8 - 2 = 3; delta_1 = 1 + 0.5 * 2 - 2 = 0; delta_0 = 0. Sums with 0.5: 3, 1.5, 0.75.
    row = one_row([1.0, 1.0, 1.0], truncated_at=2)
    np.testing.assert_allclose(advantage_by_hand(row, [2.0, 2.0, 2.0], 8.0), [0.75, 1.5, 3.0])


def test_after_a_termination_nothing_is_bootstrapped_from():
    # delta_1 = 1 - 2 = -1 (what follows is padding); delta_0 = 1 + 0.5 * 2 - 2 = 0, advantage_0 = -0.5.
    row = one_row([1.0, 1.0, 0.0], terminated_at=1)
    np.testing.assert_allclose(advantage_by_hand(row, [2.0, 2.0, 100.0], 100.0), [-0.5, -1.0, 0.0])


def test_an_early_time_out_bootstraps_from_the_last_observation_and_not_from_padding():
    # delta_1 = 1 + 0.5 * 8 - 2 = 3, though the row goes on with a value of 100 in its padding.
    row = one_row([1.0, 1.0, 0.0], truncated_at=1)
    np.testing.assert_allclose(advantage_by_hand(row, [2.0, 2.0, 100.0], 8.0), [1.5, 3.0, 0.0])


@pytest.mark.parametrize("unit", UNITS)
def test_effective_discount_stands_for_the_total_weight_of_a_limit(unit):
    cmdp = make_cmdp(horizon=200, limit_on=unit, discount=0.9)
    total = weights_of(cmdp).sum()
    np.testing.assert_allclose(np.asarray(cmdp.cost_weights(jnp.float64)).sum(), total, rtol=1e-12)
    # A discounted sum is taken as if it never ended, as in the paper: what is missing is discount^horizon (1e-9 here).
    np.testing.assert_allclose(1 / (1 - effective_discount(cmdp)), total, rtol=1e-8)


@pytest.mark.parametrize("unit", UNITS)
def test_performance_difference_on_a_chain_by_hand(unit):
    """Two states, two actions, three steps: a change of policy changes the limited cost by `sum_t w_t E[A_c]`.

    Action k leads to state k; being sent to state 1 costs 1. The old policy takes action 1 with probability 1/2 in
    either state, the new one with 0.7 in state 0 and 0.2 in state 1; the start is state 0.
    """
    cmdp = make_cmdp(horizon=3, costs=1, limit_on=unit, discount=0.9)
    weights = np.asarray(cmdp.cost_weights(jnp.float64))
    old, new = np.array([0.5, 0.5]), np.array([0.7, 0.2])  # probability of action 1 per state

    def occupancy(policy):  # probability of state 1 before steps 0, 1, 2
        ones = [0.0]
        for _ in range(3):
            ones.append((1 - ones[-1]) * policy[0] + ones[-1] * policy[1])
        return np.array(ones)

    # Under the old policy the next state never depends on the state, so the value of what follows is the same after
    # either action, and the advantage of action k is its own cost less its mean: +-1/2 in units of a step's weight.
    there = occupancy(new)[:3]
    chance = (1 - there) * new[0] + there * new[1]
    predicted = np.sum(weights * (chance * 0.5 + (1 - chance) * -0.5))
    expected = np.sum(weights * (occupancy(new)[1:] - occupancy(old)[1:]))
    np.testing.assert_allclose(predicted, expected, rtol=1e-12)
    by_hand = {"discounted": 0.2 + 0.9 * -0.15 + 0.81 * 0.025, "undiscounted": 0.075, "per_step": 0.025}[unit]
    np.testing.assert_allclose(predicted, by_hand, rtol=1e-12)


def test_estimates_can_be_compiled_and_batched(rng):
    cmdp = make_cmdp(horizon=5)
    rows = make_trajectory(rng, make_policy(rng), cmdp, (2, 3), ends=0.2)
    batched = jax.jit(jax.vmap(lambda r: limited_costs(r, cmdp)))(rows)
    np.testing.assert_allclose(batched, limited_costs(rows, cmdp), rtol=1e-12)
