"""The meta-step of the dual method against sums over samples and dense linear algebra, on a small batch."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import (
    dense_fisher,
    differences,
    log_density,
    make_cmdp,
    make_policy,
    make_trajectory,
    perturbed,
    scores,
    weights_of,
)

from safemeta.algorithms.directions import Directions, constrained_step
from safemeta.algorithms.dual_adaptation import Evidence
from safemeta.algorithms.dual_config import Config
from safemeta.algorithms.dual_meta import MetaBatch, meta_step
from safemeta.algorithms.estimation import Advantages
from safemeta.nets import GaussianPolicy, parameters, with_parameters

pytestmark = pytest.mark.usefixtures("x64")
TASKS, EPISODES, HORIZON = 3, 4, 4
DISCOUNT = 0.9
CMDP_ = make_cmdp(horizon=HORIZON, costs=2, discount=DISCOUNT)
LIMITS = np.array([[2.0, 3.0], [2.0, 3.0], [4.0, 3.0]])
SAFE, UNSAFE = 0.2 * LIMITS, np.array([[2.5, 0.1], [0.1, 0.2], [3.0, 4.5]])  # of task 0 the first cost, of 2 the second
run = jax.jit(meta_step, static_argnums=(0, 1))
solve = jax.jit(constrained_step)


def configuration(**changes) -> Config:
    settings = {"meta_kl": 1e-4, "cg_iterations": 200, "fisher_states": 10_000, "meta_margin": 0.1, "slack": 0.05}
    return Config(hidden=(4,), **(settings | changes))


class Data(NamedTuple):
    policy: GaussianPolicy
    batch: MetaBatch
    metric: np.ndarray  # damped


@pytest.fixture
def data(rng) -> Data:
    policy = make_policy(rng)
    adapted = [perturbed(policy, rng, 0.1) for _ in range(TASKS)]

    def stacked(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def advantages():
        shape = (TASKS, EPISODES, HORIZON)
        reward, costs = rng.normal(loc=0.3, size=shape), rng.normal(loc=0.5, size=(*shape, 2))
        return Advantages(jnp.asarray(reward), jnp.asarray(costs), jnp.zeros((*shape, 3)))

    before = make_trajectory(rng, policy, CMDP_, (TASKS, EPISODES))
    after = stacked([make_trajectory(rng, p, CMDP_, (EPISODES,)) for p in adapted])
    log_prob = np.stack([log_density(p, before.observation[i], before.action[i]) for i, p in enumerate(adapted)])
    zeros = jnp.zeros(TASKS)
    evidence = Evidence(
        zeros,
        jnp.zeros((TASKS, 2)),
        jnp.asarray(rng.uniform(0, 1, size=(TASKS, 2))),
        jnp.asarray(rng.uniform(1, 2, size=TASKS)),
        zeros,
        jnp.zeros(TASKS, int),
    )
    batch = MetaBatch(
        before,
        advantages(),
        after,
        advantages(),
        evidence,
        jnp.asarray(log_prob),
        jnp.asarray(SAFE),
        jnp.asarray(LIMITS),
        jnp.zeros(2),
    )
    fisher = dense_fisher(policy, before.observation, np.full(before.reward.shape, 1 / before.reward.size))
    return Data(policy, batch, fisher + configuration().damping * np.eye(len(fisher)))


def reward_gradient(policy, rows, advantage) -> np.ndarray:
    """Mean over tasks and steps of the meta-policy's score times the advantage, centred within each task."""
    advantage = centred(advantage)
    return np.einsum("ketn,ket->n", scores(policy, rows.observation, rows.action), advantage) / advantage.size


def cost_gradients(policy, rows, advantage) -> np.ndarray:
    """Per task and cost the gradient of the limited cost, `[tasks, costs, parameters]`."""
    weights, advantage = weights_of(CMDP_), np.asarray(advantage)
    centre = np.einsum("t,ketc->kc", weights, advantage) / (weights.sum() * EPISODES)
    rows = scores(policy, rows.observation, rows.action)
    return np.einsum("t,ketn,ketc->kcn", weights, rows, advantage - centre[:, None, None]) / EPISODES


def equation_6(data: Data, rewards, costs) -> np.ndarray:
    """Gradient of eq. 6's objective on fixed data, by finite differences in plain numpy.

    First term: the mean of `ratio A` on the data of the adapted policies. Second: the mean over (s_t, a_t) of
    `rho Qbar(s_t, a_t) A / eta`, with `rho = pi^tau / pi_phi`, where `Qbar` is the sum of what follows,
    `sum_{k > t} discount^(k - t) (product of ratios from t + 1 to k) (r_k - u c_k)`, as a function of the meta-policy.
    """
    batch = data.batch
    before, after = batch.before, batch.after
    own = log_density(data.policy, after.observation, after.action)
    rho = np.exp(np.asarray(batch.adapted_log_prob - before.log_prob))
    combined = rewards - np.einsum("ketc,kc->ket", costs, np.asarray(batch.evidence.multipliers))
    weight = rho * np.asarray(batch.before_advantages.reward) / np.asarray(batch.evidence.eta)[:, None, None]

    def objective(vector):
        policy = with_parameters(data.policy, jnp.asarray(vector))
        first = np.exp(log_density(policy, after.observation, after.action) - own)
        ratio = np.exp(log_density(policy, before.observation, before.action) - np.asarray(before.log_prob))
        second = 0.0
        for t in range(HORIZON):
            for k in range(t + 1, HORIZON):
                moved = DISCOUNT ** (k - t) * np.prod(ratio[..., t + 1 : k + 1], axis=-1) * combined[..., k]
                second = second + np.sum(weight[..., t] * moved)
        return np.array([np.mean(first * centred(batch.after_advantages.reward)), second / weight.size])

    return differences(objective, np.asarray(parameters(data.policy)))


def centred(advantage) -> np.ndarray:
    return np.asarray(advantage) - np.asarray(advantage).mean((1, 2), keepdims=True)


def after_step(config, data: Data, **changes):
    batch = data.batch._replace(**{name: jnp.asarray(value) for name, value in changes.items()})
    policy, correction, metrics = run(config, CMDP_, data.policy, batch)
    return np.asarray(parameters(policy) - parameters(data.policy)), np.asarray(correction), metrics, policy


def assert_shortened(step, expected):
    """`step` is `0.7^k expected`, k = 0, 1, ... 7."""
    fraction = step @ expected / (expected @ expected)
    np.testing.assert_allclose(step, fraction * expected, atol=1e-4 * np.abs(expected).max())
    power = np.log(fraction) / np.log(0.7)
    assert abs(power - round(power)) < 1e-3
    assert 0 <= round(power) <= 7


def natural(data: Data, gradient) -> np.ndarray:
    """The longest step up a gradient within the trust region."""
    direction = np.linalg.solve(data.metric, gradient)
    return direction * np.sqrt(2 * configuration().meta_kl / (gradient @ direction))


@pytest.mark.parametrize("own_return", [True, False])
def test_while_every_task_is_safe_the_switch_goes_up_the_meta_gradient(data, own_return):
    config = configuration(meta_update="switch", own_return=own_return)
    step, correction, metrics, _ = after_step(config, data, correction=[0.3, 0.0])
    batch = data.batch
    gradient = reward_gradient(data.policy, batch.after, batch.after_advantages.reward)
    if own_return:
        gradient = gradient + reward_gradient(data.policy, batch.before, batch.before_advantages.reward)
    assert_shortened(step, natural(data, gradient))
    assert metrics["meta_accepted"] == 1
    np.testing.assert_array_equal(correction, [0.3, 0.0])  # it has no part in the switch


def test_as_soon_as_a_task_is_unsafe_the_switch_goes_down_its_cost(data):
    config = configuration(meta_update="switch")
    step, _, metrics, policy = after_step(config, data, costs=UNSAFE)
    per_task = cost_gradients(data.policy, data.batch.before, data.batch.before_advantages.costs)
    assert_shortened(step, natural(data, -(per_task[0, 0] + per_task[2, 1])))
    assert metrics["meta_accepted"] == 1
    rows, costs = data.batch.before, np.asarray(data.batch.before_advantages.costs)
    ratio = np.exp(log_density(policy, rows.observation, rows.action) - np.asarray(rows.log_prob)) - 1
    weights = weights_of(CMDP_)
    centre = np.einsum("t,ketc->kc", weights, costs) / (weights.sum() * EPISODES)
    change = np.einsum("t,ket,ketc->kc", weights, ratio, costs - centre[:, None, None]) / EPISODES
    assert change[0, 0] + change[2, 1] < 0


def test_margin_and_slack_decide_which_tasks_are_safe(data):
    """Limits of 2 with a margin of a tenth and a slack of 0.05 allow 1.85."""
    up, *_ = after_step(configuration(meta_update="switch"), data, costs=np.full((TASKS, 2), 1.84))
    safe, *_ = after_step(configuration(meta_update="switch"), data)
    down, *_ = after_step(configuration(meta_update="switch"), data, costs=np.full((TASKS, 2), 1.86))
    np.testing.assert_allclose(up, safe, rtol=1e-9)
    assert not np.allclose(up, down, atol=1e-6)


def test_the_full_meta_gradient_is_that_of_equation_6(data, rng):
    """With Monte Carlo sums as advantages, centred as the samples centre them, both terms are exact."""
    weights, shape = weights_of(CMDP_), (TASKS, EPISODES, HORIZON)
    reward, costs = centred(rng.normal(size=shape)), rng.normal(size=(*shape, 2))
    costs = costs - (np.einsum("t,ketc->kc", weights, costs) / (weights.sum() * EPISODES))[:, None, None]

    def signals(sums):  # what, summed with the discount, gives these
        return sums - DISCOUNT * np.concatenate([sums[:, :, 1:], np.zeros_like(sums[:, :, :1])], axis=2)

    batch = data.batch
    advantages = Advantages(jnp.asarray(reward), jnp.asarray(costs), batch.before_advantages.target)
    data = data._replace(batch=batch._replace(before_advantages=advantages))
    config = configuration(meta_gradient="full", own_return=False)
    step, _, metrics, _ = after_step(config, data, costs=-100 * LIMITS)  # so far away that no limit binds
    first, second = equation_6(data, signals(reward), signals(costs))
    assert np.linalg.norm(second) > 0.1 * np.linalg.norm(first)
    assert_shortened(step, natural(data, first + second))
    assert metrics["meta_feasible"] == 1


def worst_tasks(config, costs):
    """Weights over tasks of each constraint, and their weighted excess over what is allowed."""
    excess = costs - ((1 - config.meta_margin) * LIMITS + config.slack)
    weight = np.exp(excess / (config.worst_temperature * LIMITS))
    weight = weight / weight.sum(0)
    return weight, (weight * excess).sum(0)


@pytest.mark.parametrize(
    ("costs", "correction"),
    [
        (SAFE, [0.0, 0.0]),
        (0.899 * LIMITS + 0.05, [0.0, 0.0]),
        (0.89 * LIMITS + 0.05, [0.04, 0.0]),
        (UNSAFE, [0.0, 0.5]),
    ],
)
def test_the_constrained_step_bounds_the_cost_of_the_worst_tasks(data, costs, correction):
    config = configuration(integral_gain=0.2)
    step, following, metrics, _ = after_step(config, data, costs=costs, correction=correction)
    batch = data.batch
    objective = sum(
        reward_gradient(data.policy, rows, found.reward)
        for rows, found in ((batch.after, batch.after_advantages), (batch.before, batch.before_advantages))
    )
    weight, excess = worst_tasks(config, costs)
    bounded = np.einsum("kc,kcn->cn", weight, cost_gradients(data.policy, batch.before, batch.before_advantages.costs))
    rows = np.concatenate([objective[None], bounded])
    solutions = rows @ np.linalg.inv(data.metric)
    gram = jnp.asarray(rows @ solutions.T)
    dense = Directions(jnp.asarray(solutions), gram, gram)
    expected, solved = solve(dense, jnp.asarray(excess + np.array(correction)), config.meta_kl)
    assert metrics["meta_feasible"] == solved.feasible
    assert_shortened(step, np.asarray(expected))
    # The integral of the measured excess, never below zero and never above the limit; it rests where it cannot help.
    grown = np.clip(np.array(correction) + 0.2 * excess, 0, LIMITS.mean(0))
    np.testing.assert_allclose(following, np.where(solved.feasible | (excess < 0), grown, correction), rtol=1e-9)


def test_the_correction_neither_winds_up_nor_falls_below_zero(data):
    config = configuration(integral_gain=0.2)
    _, rests, metrics, _ = after_step(config, data, costs=LIMITS + 1000, correction=[1.0, 1.0])
    assert not metrics["meta_feasible"]  # the whole step lowers the costs anyway: an excess that lasts is no optimism
    np.testing.assert_array_equal(rests, 1)
    _, high, metrics, _ = after_step(replace(config, meta_kl=1e9), data, costs=LIMITS + 1000, correction=[1.0, 1.0])
    assert metrics["meta_feasible"]
    np.testing.assert_allclose(high, LIMITS.mean(0))
    _, low, *_ = after_step(config, data, costs=-1000 + LIMITS, correction=[1.0, 1.0])
    np.testing.assert_array_equal(low, 0)


@pytest.mark.parametrize("costs", [SAFE, UNSAFE])
def test_the_trust_region_is_kept_and_the_normaliser_left_alone(data, costs):
    """In a region that is no longer small, with effects predicted across halves."""
    config = configuration(meta_kl=0.02, meta_cross_fit=True)
    step, _, metrics, policy = after_step(config, data, costs=costs)
    divergence = policy(data.batch.before.observation).kl(data.policy(data.batch.before.observation)).mean()
    assert divergence <= 1.5 * 0.02
    np.testing.assert_allclose(metrics["meta_kl"], divergence if metrics["meta_accepted"] else 0, rtol=1e-6, atol=1e-12)
    assert np.any(step != 0) == bool(metrics["meta_accepted"])
    np.testing.assert_array_equal(policy.normalizer.mean, data.policy.normalizer.mean)
    assert policy.normalizer.count == data.policy.normalizer.count


def test_what_happened_after_the_adaptation_is_scored_by_the_meta_policy(data):
    """Eq. 6: states and actions of the adapted policies, but the score function, and the ratio, of the meta-policy."""
    config = configuration(meta_update="switch", own_return=False)
    step, *_ = after_step(config, data)
    # So the log-densities that were stored when the adapted policies acted play no part.
    later = replace(data.batch.after, log_prob=data.batch.after.log_prob + 3.0)
    again, *_ = after_step(config, data._replace(batch=data.batch._replace(after=later)))
    np.testing.assert_allclose(again, step, rtol=1e-12)
    # And to first order the step does what the gradient says of the meta-policy's own density.
    after = with_parameters(data.policy, parameters(data.policy) + jnp.asarray(step))
    rows = data.batch.after
    rise = log_density(after, rows.observation, rows.action) - log_density(data.policy, rows.observation, rows.action)
    assert np.mean(rise * centred(data.batch.after_advantages.reward)) > 0
