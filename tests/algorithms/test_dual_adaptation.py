"""One adaptation step of the dual method: what must hold of it in every form, on episodes of a toy world."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import kl, log_density
from toy_worlds import reach, with_config, with_mean_action

from safemeta.algorithms import dual
from safemeta.algorithms.critics import assess, init_critic
from safemeta.algorithms.dual_adaptation import IMPROVED, KEPT, LOWERED, OUTCOME_NAMES, adapt_once
from safemeta.nets import GaussianPolicy, parameters

WORLD = reach(costs=2)
FORMS = [(form, part) for form in ("natural", "fit", "gaussian") for part in ("all", "last")]
LOOSE, TIGHT = 40.0, 1.0  # the effort of the policy below is about 10 (0.4^2 + e^-2) = 3
COUNT = 6


def configuration(**changes):
    return with_config(dual.Config(kl_limit=0.02, fit_steps=30, fit_learning_rate=3e-3), episodes=8, **changes)


def start(config):
    policy = GaussianPolicy.create(3, 1, jax.random.key(0), hidden=(8,), deviation=config.deviation)
    return with_mean_action(policy, 0.4), init_critic(config, WORLD.cmdp, jax.random.key(1))


@eqx.filter_jit
def adapt_all(config, policy, critics, rows, limits, keys):
    """One policy, several tasks with their episodes and limits."""
    one = lambda r, d, k: adapt_once(config, WORLD.cmdp, policy, critics, r, d, k)
    return jax.vmap(one)(rows, limits, keys)


def episodes(policy, seed=2):
    tasks = WORLD.sample(jax.random.key(seed), COUNT)
    return WORLD.collect(policy, tasks, jax.random.key(seed + 1), 8)


def adapted(config, limit, seed=2):
    """The policy, its episodes in `COUNT` tasks, and what was made of them."""
    policy, critics = start(config)
    rows = episodes(policy, seed)
    limits = jnp.full((COUNT, 2), limit)
    return policy, critics, rows, adapt_all(config, policy, critics, rows, limits, jax.random.split(jax.random.key(9), COUNT))


def predicted(config, policy, critics, rows, new) -> tuple[float, np.ndarray]:
    """Change of the mean reward advantage and of both limited (undiscounted) costs, in plain numpy."""
    found = assess(config.critic, critics, policy.normalizer, rows, WORLD.cmdp, config.gae_smoothing)
    ratio = np.exp(log_density(new, rows.observation, rows.action) - np.asarray(rows.log_prob)) - 1
    reward, costs = np.asarray(found.reward, float), np.asarray(found.costs, float)
    effect = np.einsum("et,etc->c", ratio, costs - costs.mean((0, 1))) / len(costs)
    return np.mean(ratio * (reward - reward.mean())), effect


def one_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.parametrize(("form", "part"), FORMS)
def test_below_the_limit_it_improves_within_the_limit_on_kl(form, part):
    config = configuration(form=form, adapt=part)
    policy, critics, rows, (policies, evidence, _) = adapted(config, LOOSE)
    outcomes = np.asarray(evidence.outcome)
    assert set(outcomes) <= {IMPROVED, KEPT}
    assert np.mean(outcomes == IMPROVED) >= 0.8
    for index in range(COUNT):
        new, row = one_of(policies, index), one_of(rows, index)
        divergence = kl(new, policy, row.observation).mean()
        assert divergence <= 1.5 * config.kl_limit * 1.01
        np.testing.assert_allclose(evidence.kl[index], divergence, rtol=1e-2, atol=1e-6)
        if outcomes[index] == KEPT:
            np.testing.assert_array_equal(parameters(new), parameters(policy))
            continue
        reward, rise = predicted(config, policy, critics, row, new)
        assert reward > 0
        # Within what the limit less the margin allows, the penalty on KL included.
        allowance = (1 - config.margin) * LOOSE - np.asarray(evidence.estimated_costs[index])
        assert np.all(rise + config.cost_kl_weight * divergence <= allowance + 1e-3)


@pytest.mark.parametrize(("form", "part"), FORMS)
def test_above_the_limit_it_only_lowers_costs(form, part):
    config = configuration(form=form, adapt=part)
    policy, critics, rows, (policies, evidence, _) = adapted(config, TIGHT)
    outcomes = np.asarray(evidence.outcome)
    assert set(outcomes) <= {LOWERED, KEPT}
    lowered = np.flatnonzero(outcomes == LOWERED)
    assert len(lowered) >= 4
    for index in range(COUNT):
        new, row = one_of(policies, index), one_of(rows, index)
        assert kl(new, policy, row.observation).mean() <= 1.5 * config.kl_limit * 1.01
        _, change = predicted(config, policy, critics, row, new)
        if index in lowered:
            assert np.all(change <= 1e-4)
            assert change[0] < -1e-2
        else:
            np.testing.assert_array_equal(parameters(new), parameters(policy))


def test_evidence_is_that_of_the_episodes():
    config = configuration()
    _, _, rows, (_, evidence, advantages) = adapted(config, LOOSE)
    np.testing.assert_allclose(evidence.estimated_return, rows.reward.sum(-1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(evidence.estimated_costs, rows.costs.sum(-2).mean(1), rtol=1e-5)
    assert advantages.reward.shape == rows.reward.shape
    assert OUTCOME_NAMES[IMPROVED] == "improved"
    assert OUTCOME_NAMES[LOWERED] == "cost lowered"
    assert OUTCOME_NAMES[KEPT] == "kept"
    # eta(u) = lambda + (1 - discount) sum_i u_i lambda_ci + the multiplier of the limit on KL; 1 - discount is 1 / 10.
    least = config.kl_weight + 0.1 * config.cost_kl_weight * np.asarray(evidence.multipliers).sum(-1)
    assert np.all(np.asarray(evidence.eta) >= least * (1 - 1e-5))


def test_last_moves_the_last_layer_alone():
    config = configuration(adapt="last")
    policy, _, _, (policies, evidence, _) = adapted(config, LOOSE)
    assert np.any(evidence.outcome == IMPROVED)
    before, after = policy.network.mlp.layers, policies.network.mlp.layers
    np.testing.assert_array_equal(after[0].weight, np.broadcast_to(before[0].weight, after[0].weight.shape))
    np.testing.assert_array_equal(policies.network.log_std, np.broadcast_to(policy.network.log_std, (COUNT, 1)))
    assert np.any(after[-1].weight != before[-1].weight)


@pytest.mark.parametrize(("margin", "slack", "limit"), [(0.0, 0.0, 2.0), (0.5, 0.0, 4.0), (0.5, 1.5, 1.0)])
def test_the_same_allowance_is_the_same_step(margin, slack, limit):
    """What matters is `(1 - margin) limit + slack` less the cost: 2 in all three cases."""
    config = configuration(margin=margin, slack=slack)
    reference = configuration(margin=0.0, slack=0.0)
    *_, (ours, evidence, _) = adapted(config, limit)
    *_, (expected, same, _) = adapted(reference, 2.0)
    np.testing.assert_array_equal(evidence.outcome, same.outcome)
    np.testing.assert_allclose(parameters(one_of(ours, 0)), parameters(one_of(expected, 0)), atol=1e-5)


def test_each_task_keeps_its_own_limit():
    config = configuration()
    policy, critics = start(config)
    rows = episodes(policy)
    limits = jnp.repeat(jnp.array([[LOOSE], [TIGHT]]), 3, axis=0) * jnp.ones((1, 2))
    keys = jax.random.split(jax.random.key(9), COUNT)
    _, evidence, _ = adapt_all(config, policy, critics, rows, limits, keys)
    assert np.sum(evidence.outcome[:3] == IMPROVED) >= 2
    assert np.sum(evidence.outcome[3:] == LOWERED) >= 2
    assert not np.any(evidence.outcome[3:] == IMPROVED)


def test_one_cost_above_its_limit_is_enough():
    config = configuration()
    policy, critics = start(config)
    rows = episodes(policy)
    keys = jax.random.split(jax.random.key(9), COUNT)
    for limits in ([TIGHT, LOOSE], [LOOSE, 1e-3]):
        given = jnp.broadcast_to(jnp.array(limits), (COUNT, 2))
        _, evidence, _ = adapt_all(config, policy, critics, rows, given, keys)
        assert not np.any(evidence.outcome == IMPROVED)


@pytest.mark.parametrize("choice", [{"cross_fit": True}, {"deviation": "state", "critic": "linear"}])
def test_other_choices_keep_the_limit_on_kl_and_improve(choice):
    config = configuration(adapt="all", **choice)
    policy, _, rows, (policies, evidence, _) = adapted(config, LOOSE)
    assert np.sum(evidence.outcome == IMPROVED) >= 4
    for index in range(COUNT):
        divergence = kl(one_of(policies, index), policy, rows.observation[index]).mean()
        assert divergence <= 1.5 * config.kl_limit * 1.01


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_episodes_will_do_without_cross_fitting(count):
    """One episode gives a gradient too, and of three none has to be thrown away."""
    config = configuration()
    policy, critics = start(config)
    rows = jax.tree.map(lambda leaf: leaf[:, :count], episodes(policy))
    keys = jax.random.split(jax.random.key(9), COUNT)
    limits = jnp.full((COUNT, 2), LOOSE)
    new, evidence, _ = adapt_all(config, policy, critics, rows, limits, keys)
    assert np.mean(evidence.outcome == IMPROVED) > 0.5
    # The last episode counts: with other rewards in it, the step is another one.
    other = eqx.tree_at(lambda r: r.reward, rows, rows.reward.at[:, -1].multiply(-1.0))
    changed, _, _ = adapt_all(config, policy, critics, other, limits, keys)
    assert not np.allclose(parameters(one_of(new, 0)), parameters(one_of(changed, 0)), atol=1e-6)


def test_a_cost_that_was_never_incurred_does_not_stop_the_learning():
    """Then the linear critic's cost advantages are exactly zero, and so is the gradient of the cost."""
    config = configuration(critic="linear")
    policy, critics = start(config)
    rows = episodes(policy)
    rows = eqx.tree_at(lambda r: r.costs, rows, rows.costs.at[..., 1].set(0.0))
    keys = jax.random.split(jax.random.key(9), COUNT)
    _, evidence, _ = adapt_all(config, policy, critics, rows, jnp.full((COUNT, 2), LOOSE), keys)
    assert np.all(np.isfinite(evidence.eta))
    assert np.mean(evidence.outcome == IMPROVED) >= 0.8
