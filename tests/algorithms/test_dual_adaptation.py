"""One adaptation step of the dual method: what must hold of it in every form, on episodes of a toy world."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import kl, log_density, make_case, make_policy
from toy_worlds import reach, with_config, with_mean_action

from safemeta.algorithms import dual
from safemeta.algorithms.critics import CriticState, assess, init_critic
from safemeta.algorithms.dual_adaptation import IMPROVED, KEPT, LOWERED, OUTCOME_NAMES, Evidence, adapt_once, parts_of
from safemeta.algorithms.estimation import Advantages
from safemeta.core import Trajectory
from safemeta.nets import GaussianPolicy, parameters

FORMS = [("natural", "last"), ("fit", "all"), ("gaussian", "last")]
LOOSE, TIGHT = 100.0, 1.0  # the effort of the policy below is about 10 (0.4^2 + e^-2) = 3
COUNT, EPISODES = 6, 8
WORLD, TWO_COSTS = reach(), reach(costs=2)


def configuration(**changes):
    settings = {"kl_limit": 0.02, "cost_kl_weight": 100.0, "fit_steps": 30, "fit_learning_rate": 3e-3}
    return with_config(dual.Config(), **(settings | changes))


class Adapted(NamedTuple):
    """One policy, its episodes in `COUNT` tasks, and what was made of them."""

    policy: GaussianPolicy
    critics: CriticState
    rows: Trajectory
    policies: GaussianPolicy
    evidence: Evidence
    advantages: Advantages


@partial(jax.jit, static_argnums=(0, 1))
def adapt_all(config, cmdp, policy, critics, rows, limits, keys):
    def one(rows, limits, key):
        return adapt_once(config, cmdp, policy, critics, rows, limits, key)

    return jax.vmap(one)(rows, limits, keys)


@partial(jax.jit, static_argnums=0)
def assessed(config, critics, policy, rows):
    return assess(config.critic, critics, policy.normalizer, rows, WORLD.cmdp, config.gae_smoothing)


def adapted(config, limits, world=WORLD, change=lambda rows: rows, episodes=EPISODES) -> Adapted:
    """Each task with the same limits `[costs]`, or each with its own `[tasks, costs]`; `change` alters the episodes."""
    policy = GaussianPolicy.create(3, 1, jax.random.key(0), hidden=(8,), deviation=config.deviation)
    policy, critics = with_mean_action(policy, 0.4), init_critic(config, world.cmdp, jax.random.key(1))
    tasks = world.sample(jax.random.key(2), COUNT)
    rows = change(world.collect(policy, tasks, jax.random.key(3), episodes))
    limits = jnp.broadcast_to(jnp.asarray(limits), tasks.limits.shape)
    keys = jax.random.split(jax.random.key(9), COUNT)
    return Adapted(policy, critics, rows, *adapt_all(config, world.cmdp, policy, critics, rows, limits, keys))


def predicted(config, found: Adapted, index) -> tuple[float, np.ndarray]:
    """Change of the mean reward advantage and of the limited (undiscounted) costs, in plain numpy."""
    row, new = one_of(found.rows, index), one_of(found.policies, index)
    advantages = assessed(config, found.critics, found.policy, row)
    ratio = np.exp(log_density(new, row.observation, row.action) - np.asarray(row.log_prob)) - 1
    reward, costs = np.asarray(advantages.reward, float), np.asarray(advantages.costs, float)
    effect = np.einsum("et,etc->c", ratio, costs - costs.mean((0, 1))) / len(costs)
    return np.mean(ratio * (reward - reward.mean())), effect


def divergence(found: Adapted, index) -> float:
    return kl(one_of(found.policies, index), found.policy, found.rows.observation[index]).mean()


def unchanged(found: Adapted, index) -> bool:
    return np.array_equal(parameters(one_of(found.policies, index)), parameters(found.policy))


def one_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.parametrize(("form", "part"), FORMS)
def test_below_the_limit_it_improves_within_the_limit_and_above_it_only_lowers_the_cost(form, part):
    config = configuration(form=form, adapt=part)
    found = adapted(config, [LOOSE])
    outcomes = np.asarray(found.evidence.outcome)
    for index, outcome in enumerate(outcomes):
        assert divergence(found, index) <= 1.5 * config.kl_limit * 1.01
        np.testing.assert_allclose(found.evidence.kl[index], divergence(found, index), rtol=1e-2, atol=1e-6)
        assert outcome in (IMPROVED, KEPT)
        assert unchanged(found, index) == (outcome == KEPT)
        if outcome == IMPROVED:
            reward, rise = predicted(config, found, index)
            assert reward > 0
            # Within what the limit less the margin allows, the penalty on KL included.
            allowance = (1 - config.margin) * LOOSE - np.asarray(found.evidence.estimated_costs[index])
            assert np.all(rise + config.cost_kl_weight * divergence(found, index) <= allowance + 1e-3)
    assert np.mean(outcomes == IMPROVED) >= 0.8

    found = adapted(config, [TIGHT])
    outcomes = np.asarray(found.evidence.outcome)
    for index, outcome in enumerate(outcomes):
        assert divergence(found, index) <= 1.5 * config.kl_limit * 1.01
        assert outcome in (LOWERED, KEPT)
        assert unchanged(found, index) == (outcome == KEPT)
        if outcome == LOWERED:
            assert predicted(config, found, index)[1] < -1e-2
    assert np.mean(outcomes == LOWERED) >= 0.8


def test_evidence_is_that_of_the_episodes():
    config = configuration()
    found = adapted(config, [LOOSE])
    evidence = found.evidence
    np.testing.assert_allclose(evidence.estimated_return, found.rows.reward.sum(-1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(evidence.estimated_costs, found.rows.costs.sum(-2).mean(1), rtol=1e-5)
    expected = jax.vmap(lambda rows: assessed(config, found.critics, found.policy, rows).target)(found.rows)
    np.testing.assert_allclose(found.advantages.target, expected, rtol=1e-4, atol=1e-4)
    assert [OUTCOME_NAMES[outcome] for outcome in (IMPROVED, LOWERED, KEPT)] == ["improved", "cost lowered", "kept"]
    # eta(u) = lambda + (1 - discount) sum_i u_i lambda_ci + the multiplier of the limit on KL; 1 - discount is 1 / 10.
    least = config.kl_weight + 0.1 * config.cost_kl_weight * np.asarray(evidence.multipliers).sum(-1)
    assert np.all(np.asarray(evidence.eta) >= least * (1 - 1e-5))


def test_last_moves_the_last_layer_alone():
    found = adapted(configuration(adapt="last"), [LOOSE])
    assert np.any(found.evidence.outcome == IMPROVED)
    before, after = found.policy.network, found.policies.network
    np.testing.assert_array_equal(after.mlp.layers[0].weight - before.mlp.layers[0].weight, 0)
    np.testing.assert_array_equal(after.mlp.layers[0].bias - before.mlp.layers[0].bias, 0)
    np.testing.assert_array_equal(after.log_std - before.log_std, 0)
    assert np.any(after.mlp.layers[-1].weight != before.mlp.layers[-1].weight)


def test_each_task_keeps_its_own_limit():
    limits = np.repeat([[LOOSE], [TIGHT]], 3, axis=0)
    outcomes = np.asarray(adapted(configuration(), limits).evidence.outcome)
    assert np.sum(outcomes[:3] == IMPROVED) >= 2
    assert np.sum(outcomes[3:] == LOWERED) >= 2
    assert not np.any(outcomes[3:] == IMPROVED)
    assert not np.any(outcomes[:3] == LOWERED)


@pytest.mark.parametrize("limits", [[TIGHT, LOOSE], [LOOSE, 1e-3]])
def test_of_two_costs_the_one_above_its_limit_is_lowered_and_the_other_stays_below_its_own(limits):
    """Less effort is more steps backwards, and the reverse: there is room for that, far from the other's limit."""
    config = configuration()
    found = adapted(config, limits, TWO_COSTS)
    outcomes, costs = np.asarray(found.evidence.outcome), np.asarray(found.evidence.estimated_costs)
    assert not np.any(outcomes == IMPROVED)
    for index in np.flatnonzero(outcomes == LOWERED):
        allowance = (1 - config.margin) * np.asarray(limits) - costs[index]
        _, change = predicted(config, found, index)
        assert np.all(change <= np.maximum(allowance, 0) + 1e-4)
        assert np.all(change[allowance < 0] < 0)
    assert np.mean(outcomes == LOWERED) >= 0.8


def test_cross_fitting_and_a_state_dependent_deviation_keep_the_limit_on_kl_and_improve():
    config = configuration(adapt="all", cross_fit=True, deviation="state")
    found = adapted(config, [LOOSE])
    assert np.mean(found.evidence.outcome == IMPROVED) > 0.5
    for index in range(COUNT):
        assert divergence(found, index) <= 1.5 * config.kl_limit * 1.01


def test_a_cost_that_was_never_incurred_does_not_stop_the_learning():
    """Then the linear critic's cost advantages are exactly zero, and so is the gradient of the cost.

    Three episodes, which are no two halves: without cross-fitting none is left out.
    """

    def without_cost(rows):
        return eqx.tree_at(lambda r: r.costs, rows, jnp.zeros_like(rows.costs))

    found = adapted(configuration(critic="linear"), [LOOSE], change=without_cost, episodes=3)
    for leaf in jax.tree.leaves((found.policies, found.evidence)):
        assert np.all(np.isfinite(leaf))
    np.testing.assert_array_equal(found.evidence.multipliers, 0)
    assert np.mean(found.evidence.outcome == IMPROVED) >= 0.8


@pytest.mark.parametrize(
    ("episodes", "cross_fit", "parts"), [(1, False, 1), (3, False, 1), (4, False, 2), (3, True, 2)]
)
def test_only_cross_fitting_leaves_out_an_episode(rng, episodes, cross_fit, parts):
    samples = make_case(rng, episodes=episodes).samples
    old = make_policy(rng)(samples.observation)
    split_old, split = parts_of(old, samples, cross_fit)
    kept = episodes - episodes % parts
    assert split.valid.shape == (parts, kept // parts, samples.valid.shape[1])
    np.testing.assert_array_equal(split.action.reshape(samples.action[:kept].shape), samples.action[:kept])
    np.testing.assert_array_equal(split_old.mean.reshape(old.mean[:kept].shape), old.mean[:kept])
    np.testing.assert_allclose(split.reward_weight.sum((1, 2)), 1, rtol=1e-6)
