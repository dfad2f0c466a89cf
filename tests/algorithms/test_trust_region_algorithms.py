"""One iteration of TRPO and CPO: what must hold of every step, recomputed from the same episodes in plain numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import kl, log_density, with_normalizer_of
from toy_worlds import HORIZON, reach, with_config, with_mean_action

from safemeta.algorithms import cpo, trpo
from safemeta.algorithms.base import Algorithm, MetaAlgorithm
from safemeta.algorithms.critics import assess
from safemeta.algorithms.estimation import limited_costs
from safemeta.algorithms.on_policy import iterate_on
from safemeta.nets import parameters
from safemeta.tasks import registry

# Each value of each choice appears with both algorithms.
CHOICES = [
    {"deviation": "free", "critic": "neural", "cross_fit": False},
    {"deviation": "state", "critic": "linear", "cross_fit": True},
]
SEEDS = 6


WORLD = reach(costs=2)
step = eqx.filter_jit(iterate_on)


def start(algorithm, mean):
    """A fresh state whose policy has a given mean action."""
    state = algorithm.init(jax.random.key(0), WORLD.cmdp)
    return eqx.tree_at(lambda s: s.policy, state, with_mean_action(state.policy, mean))


def one_iteration_each(algorithm, state, limit):
    """Independent iterations from the same state, each with its tasks (of this limit) and its key."""
    runs = []
    for key in jax.random.split(jax.random.key(1), SEEDS):
        tasks = WORLD.sample(key, algorithm.config.tasks)
        tasks = eqx.tree_at(lambda t: t.limits, tasks, jnp.full_like(tasks.limits, limit))
        runs.append((tasks, key, *step(algorithm.config, type(algorithm).step, WORLD, state, tasks, key)))
    return runs


def collected(algorithm, state, tasks, key):
    """The episodes that `iterate_on` sees."""
    return WORLD.collect(state.policy, tasks, jax.random.split(key)[0], algorithm.config.episodes)


@eqx.filter_jit
def assessed(config, state, rows):
    normalizer = state.policy.normalizer
    return jax.vmap(lambda r: assess(config.critic, state.critics, normalizer, r, WORLD.cmdp, 0.95))(rows)


def cost_change(algorithm, state, rows, policy) -> np.ndarray:
    """Predicted change of the limited costs, mean over tasks, by importance weights on centred advantages."""
    weights = np.ones(HORIZON)  # the limit is undiscounted
    advantage = np.asarray(assessed(algorithm.config, state, rows).costs, float)
    centred = advantage - advantage.mean((1, 2), keepdims=True)
    ratio = np.exp(log_density(policy, rows.observation, rows.action) - np.asarray(rows.log_prob))
    return np.einsum("t,net,netc->nc", weights, ratio - 1, centred).mean(0) / advantage.shape[1]


@pytest.mark.parametrize("choice", CHOICES)
def test_trpo_keeps_the_trust_region_and_improves_its_surrogate(choice):
    algorithm = trpo.Algorithm(with_config(trpo.Config(kl_radius=0.02), **choice))
    before = start(algorithm, mean=0.0)
    for tasks, key, after, metrics in one_iteration_each(algorithm, before, limit=0.1):  # which it ignores
        rows = collected(algorithm, before, tasks, key)
        policy = with_normalizer_of(after.policy, before.policy)
        divergence = kl(policy, before.policy, rows.observation).mean()
        np.testing.assert_allclose(metrics["kl"], divergence, rtol=2e-2, atol=1e-5)
        assert 0 < divergence <= 1.5 * 0.02 * 1.01
        assert metrics["accepted"] == metrics["feasible"] == 1
        advantage = np.asarray(assessed(algorithm.config, before, rows).reward)
        ratio = np.exp(log_density(policy, rows.observation, rows.action) - np.asarray(rows.log_prob))
        assert np.mean((ratio - 1) * (advantage - advantage.mean((1, 2), keepdims=True))) > 0


def test_metrics_and_normaliser_are_those_of_the_episodes():
    algorithm = trpo.Algorithm(with_config(trpo.Config(kl_radius=0.02), **CHOICES[0]))
    before = start(algorithm, mean=0.0)
    for tasks, key, after, metrics in one_iteration_each(algorithm, before, limit=0.1)[:2]:
        rows = collected(algorithm, before, tasks, key)
        seen = rows.observation.reshape(-1, 3)
        np.testing.assert_allclose(after.policy.normalizer.mean, seen.mean(0), rtol=1e-4, atol=1e-5)
        assert after.policy.normalizer.count == len(seen)
        np.testing.assert_allclose(metrics["return"], rows.reward.sum(-1).mean(), rtol=1e-5)
        effort, backwards = rows.costs[..., 0].sum(-1), rows.costs[..., 1].sum(-1)
        np.testing.assert_allclose(metrics["cost"], effort.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["largest_cost"], effort.mean(1).max(), rtol=1e-5)
        np.testing.assert_allclose(metrics["cost/backwards"], backwards.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["limit"], 0.1, rtol=1e-6)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("limit", [50.0, 3.2, 1.0])  # far away, about to bind, violated by far
def test_cpo_never_raises_the_predicted_violation(choice, limit):
    algorithm = cpo.Algorithm(with_config(cpo.Config(kl_radius=0.02), **choice))
    before = start(algorithm, mean=0.4)  # an effort of about 10 (0.16 + 0.14) = 3
    runs = one_iteration_each(algorithm, before, limit)
    for tasks, key, after, metrics in runs:
        rows = collected(algorithm, before, tasks, key)
        policy = with_normalizer_of(after.policy, before.policy)
        violations = np.asarray(limited_costs(rows, WORLD.cmdp).mean(1) - tasks.limits).mean(0)
        following = violations + cost_change(algorithm, before, rows, policy)
        assert kl(policy, before.policy, rows.observation).mean() <= 1.5 * 0.02 * 1.01
        if metrics["feasible"]:
            assert np.all(following <= np.maximum(violations, 0) + 1e-3)
        elif metrics["accepted"]:
            assert np.sum(np.maximum(following, 0) ** 2) < np.sum(np.maximum(violations, 0) ** 2)
    assert sum(int(metrics["accepted"]) for *_, metrics in runs) >= SEEDS - 1
    feasible = np.mean([metrics["feasible"] for *_, metrics in runs])
    assert {50.0: feasible == 1, 3.2: feasible > 0.5, 1.0: feasible == 0}[limit]


def test_the_margin_of_cpo_is_a_share_of_the_limit():
    """A margin of 3/4 on a limit of 4 is a limit of 1; the step is the same, and not that of the limit of 4."""
    plain = cpo.Algorithm(with_config(cpo.Config(kl_radius=0.02), **CHOICES[0]))
    careful = cpo.Algorithm(with_config(cpo.Config(kl_radius=0.02, margin=0.75), **CHOICES[0]))
    before = start(plain, mean=0.4)
    runs = [
        one_iteration_each(*case)[0] for case in ((careful, before, 4.0), (plain, before, 1.0), (plain, before, 4.0))
    ]
    with_margin, tighter, without = (np.asarray(parameters(run[2].policy)) for run in runs)
    np.testing.assert_allclose(with_margin, tighter, atol=1e-6)
    assert np.max(np.abs(with_margin - without)) > 1e-3


def test_iterations_are_deterministic_and_the_state_keeps_its_structure():
    """Equal types, weak ones included: otherwise the second iteration compiles anew, and a checkpoint may not load."""
    world = registry.make("point-circle", limit=10, horizon=20)
    for module in (trpo, cpo):
        algorithm = module.Algorithm(with_config(module.Config()))
        state = algorithm.init(jax.random.key(0), world.cmdp)
        shapes = eqx.filter_eval_shape(algorithm.iterate, state, world, jax.random.key(1))[0]
        assert jax.tree.structure(state) == jax.tree.structure(shapes)
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
            assert (old.shape, old.dtype, jax.typeof(old).weak_type) == (new.shape, new.dtype, new.weak_type)
    first, second = (algorithm.iterate(state, world, jax.random.key(1)) for _ in range(2))
    assert eqx.tree_equal(first, second)
    other = algorithm.iterate(state, world, jax.random.key(2))
    assert not np.array_equal(parameters(first[0].policy), parameters(other[0].policy))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))


def test_steps_are_counted_and_both_are_algorithms_that_do_not_adapt():
    world = reach()
    for module in (trpo, cpo):
        algorithm = module.Algorithm(with_config(module.Config(), tasks=3, episodes=5))
        assert algorithm.steps_per_iteration(world.cmdp) == 3 * 5 * HORIZON
        assert isinstance(algorithm, Algorithm)
        assert not isinstance(algorithm, MetaAlgorithm)
        state = algorithm.init(jax.random.key(0), world.cmdp)
        assert algorithm.policy(state) is state.policy


BAD = {
    "tasks": (0, -1),
    "episodes": (0,),
    "critic_steps": (0,),
    "minibatch": (0,),
    "cg_iterations": (0,),
    "fisher_states": (0,),
    "kl_radius": (0.0, -0.1, float("nan"), float("inf")),
    "critic_learning_rate": (0.0, float("nan")),
    "damping": (-1e-3, float("nan"), float("inf")),
    "initial_log_std": (float("nan"), float("inf")),
    "margin": (-0.1, 1.0, float("nan")),
    "gae_smoothing": (-0.1, 1.1, float("nan")),
    "hidden": ((), (0,), (8, -1)),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_settings_that_make_no_sense_are_refused_in_one_sentence_that_names_them(name, value):
    for module in (trpo, cpo):
        with pytest.raises(ValueError, match=name) as caught:
            module.Algorithm(module.Config(**{name: value}))
        assert str(caught.value).count("\n") == 0
        assert str(caught.value).endswith(".")


def test_cross_fitting_needs_two_episodes():
    with pytest.raises(ValueError, match="cross_fit needs at least 2 episodes"):
        cpo.Algorithm(cpo.Config(cross_fit=True, episodes=1))
    cpo.Algorithm(cpo.Config(episodes=1))


def test_one_episode_is_enough_without_cross_fitting():
    world = reach()
    algorithm = trpo.Algorithm(with_config(trpo.Config(), episodes=1))
    state = algorithm.init(jax.random.key(0), world.cmdp)
    after, metrics = algorithm.iterate(state, world, jax.random.key(1))
    assert metrics["accepted"] == 1
    assert not jnp.array_equal(parameters(after.policy), parameters(state.policy))
