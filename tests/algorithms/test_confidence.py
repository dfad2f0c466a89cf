"""Stated confidence: the bound against a plain loop, which policy clears, and that adaptation uses no other."""

import dataclasses

import confidence as benchmark
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from toy_worlds import reach

from safemeta.algorithms import dual, maml
from safemeta.algorithms.confidence import FRACTIONS, OUTCOMES, WINDOW, Gathered, clear, student_quantiles, upper_bound
from safemeta.algorithms.surrogate import Samples
from safemeta.core import Tasks
from safemeta.nets import DiagonalGaussian

EPISODES, TIME, COSTS = 3, 4, 2
WORLD = reach(limit=5.0)
SMALL = {
    "hidden": (4,), "tasks": 2, "episodes": 2, "critic_steps": 2, "minibatch": 8, "fisher_states": 20,
}  # fmt: skip


def policy(x):
    """A policy of three parameters: a linear mean of the observation's two entries, and a log deviation."""
    return lambda observation: DiagonalGaussian((observation @ x[:2])[..., None], jnp.full((1,), x[2]))


START = jnp.array([0.2, -0.1, 0.3])
STATED = student_quantiles(0.95, EPISODES, COSTS, 1)


@pytest.fixture
def batch(rng):
    """Makes one policy's episodes, the last of which ends early, and their costs."""

    def make(level=5.0, behaviour=START):
        observation = jnp.asarray(rng.normal(size=(EPISODES, TIME, 2)))
        mean = policy(behaviour)(observation)
        action = mean.sample(jax.random.key(int(rng.integers(1000))))
        valid = jnp.ones((EPISODES, TIME), bool).at[-1, 2:].set(False)
        samples = Samples(
            observation, action, mean.log_prob(action), jnp.zeros((EPISODES, TIME)),
            jnp.asarray(rng.normal(size=(EPISODES, TIME, COSTS))), valid / valid.sum(),
            0.9 ** jnp.arange(TIME) * valid, valid,
        )  # fmt: skip
        return samples, jnp.asarray(level + rng.normal(size=(EPISODES, COSTS)))

    return make


def gathered(batches, stated=STATED):
    """What is gathered after these batches, the oldest first."""
    first = jax.tree.map(lambda leaf: leaf[None], batches[0])
    empty = jax.tree.map(lambda leaf: leaf[0], Gathered.nothing(lambda: first, START[None], stated))
    for each in batches:
        empty = empty.add(*each)
    return empty


@pytest.mark.parametrize("count", [1, 2, WINDOW + 2])
def test_the_bound_is_that_of_a_plain_loop(batch, count):
    batches, x = [batch(behaviour=START * (1 + 0.1 * i)) for i in range(count)], START + 0.1
    found = upper_bound(policy(x), gathered(batches, student_quantiles(0.7, EPISODES, COSTS, 3)))
    predicted = []
    for samples, costs in batches[-WINDOW:]:
        new = policy(x)(samples.observation)
        for j in range(EPISODES):
            value = np.array(costs[j])
            for t in range(TIME):
                if samples.valid[j, t]:
                    scale = np.exp(float(new.log_std[0]))
                    log_prob = stats.norm.logpdf(float(samples.action[j, t, 0]), float(new.mean[j, t, 0]), scale)
                    ratio = np.exp(log_prob - float(samples.log_prob[j, t]))
                    value += 0.9**t * (ratio - 1) * np.array(samples.cost_advantages[j, t])
            predicted.append(value)
    # 70 % for three policies and two costs together: 95 % each.
    mean, spread = np.mean(predicted, 0), stats.sem(predicted, axis=0)
    expected = mean + stats.t.ppf(0.95, len(predicted) - 1) * spread
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_clears_is_the_longest_part_of_the_step_whose_bound_is_within_the_limits(batch):
    own, proposed = gathered([batch()]), START + jnp.array([2.0, -2.0, 0.5])
    bounds = np.array([upper_bound(policy(START + f * (proposed - START)), own) for f in (*FRACTIONS, 0.0)])
    assert len(np.unique(bounds[:, 0])) == len(bounds)
    for limits in (bounds.max(0) + 1, *(row + 1e-4 for row in bounds)):
        found, after = clear(policy, START, proposed, own, jnp.asarray(limits))
        allowed = np.all(bounds <= limits, axis=1)
        first = int(np.argmax(allowed))
        fraction = (*FRACTIONS, 0.0)[first]
        np.testing.assert_allclose(found.parameters, START + fraction * (proposed - START), rtol=1e-6)
        np.testing.assert_allclose(found.bound, bounds[first], rtol=1e-5)
        assert int(found.outcome) == (
            -1 if first == 0 else OUTCOMES.index("withheld" if fraction == 0 else "shortened")
        )
        assert bool(found.passed)
        np.testing.assert_array_equal(after.cleared, found.parameters)


def test_where_nothing_new_clears_the_newest_that_has_cleared_returns(batch):
    """The present policy's episodes are dear, those of the one before are few; only the latter keeps the limit."""
    safe, here = START, START.at[0].add(1.0)

    def dear(samples, costs):
        """Large advantages wherever the policy moved to: going back is predicted to be cheap."""
        new, old = (policy(x)(samples.observation).log_prob(samples.action) for x in (here, safe))
        advantages = jnp.repeat(10 * jnp.sign(new - old)[..., None], COSTS, -1)
        return eqx.tree_at(lambda s: s.cost_advantages, samples, advantages), costs

    own = gathered([dear(*batch(behaviour=here)) for _ in range(WINDOW)])
    own = eqx.tree_at(lambda g: g.cleared, own, safe)
    at_safe, at_here = (upper_bound(policy(x), own) for x in (safe, here))
    assert np.all(at_safe < at_here)
    limits = (at_safe + at_here) / 2
    found, after = clear(policy, here, here + (here - safe), own, limits)
    np.testing.assert_array_equal(found.parameters, safe)
    assert bool(found.passed)
    np.testing.assert_array_equal(after.cleared, safe)
    found, after = clear(policy, here, here + (here - safe), own, at_safe - 1)
    np.testing.assert_array_equal(found.parameters, safe)  # the lowest bound, though it does not clear
    assert not bool(found.passed)


def test_what_cannot_be_predicted_does_not_clear(batch):
    own = gathered([batch()])
    found, _ = clear(policy, START, jnp.array([jnp.nan, 0.0, -1e4]), own, jnp.full(COSTS, 1e9))
    np.testing.assert_array_equal(found.parameters, START)


def test_the_exact_costs_of_the_benchmark_are_those_of_episodes():
    world = benchmark.two_actions(10.0)
    state = dual.Algorithm(dual.Config(hidden=(4,))).init(jax.random.key(0), world.cmdp)
    bold = eqx.tree_at(lambda s: s.current.policy.network.mlp.layers[-1].weight, state, replace_fn=lambda w: 300 * w)
    tasks = world.sample(jax.random.key(1), 3, "test")
    policies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), bold.current.policy)
    _, costs = benchmark.exact_values(world, policies, tasks)
    seen = world.measure(policies, tasks, jax.random.key(2), 2000, per_task=True).costs[..., 0]
    error = np.asarray(seen.std(1)) / 2000**0.5
    np.testing.assert_array_less(np.abs(np.asarray(costs - seen.mean(1))), 4 * error)
    _, other = benchmark.exact_values(world, jax.tree.map(jnp.zeros_like, policies), tasks)  # chooses evenly
    assert np.all(np.abs(np.asarray(costs - other)) > 10 * error)


@pytest.mark.parametrize(("value", "episodes"), [(0.4, 10), (1.0, 10), (float("nan"), 10), (0.95, 1)])
def test_what_is_no_confidence_is_refused(value, episodes):
    with pytest.raises(ValueError, match=r"^confidence \w"):
        student_quantiles(value, episodes, 1, 1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "algorithm",
    [
        dual.Algorithm(dual.Config(**SMALL, corner_tasks=0, adapt_critic_steps=2)),
        maml.Algorithm(maml.Config(**SMALL)),
    ],
    ids=["dual", "maml"],
)
def test_adaptation_uses_only_what_clears(algorithm):
    """Under limits that nothing exceeds it is as without; under limits that nothing clears, no step is taken."""
    state = algorithm.init(jax.random.key(0), WORLD.cmdp)
    tasks, key = WORLD.sample(jax.random.key(1), 2, "test"), jax.random.key(2)
    loose = dataclasses.replace(tasks, limits=jnp.full_like(tasks.limits, 1e6))
    tight = dataclasses.replace(tasks, limits=jnp.full_like(tasks.limits, -1.0))
    free, kept = (algorithm.adapt(state, WORLD, loose, key, 2, stated) for stated in (None, 0.95))
    assert free.cost_bounds is None
    for a, b in zip(jax.tree.leaves(free.policies), jax.tree.leaves(kept.policies), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert kept.outcome_names == (*free.outcome_names, *OUTCOMES)
    np.testing.assert_array_equal(free.outcome, kept.outcome)
    assert kept.cost_bounds.shape == (2, 2, 1)
    # Where nothing can clear, the policy with the lowest bound is used; none is used for its return.
    held = algorithm.adapt(state, WORLD, tight, key, 2, 0.95)
    assert np.all(np.asarray(held.cost_bounds) > -1)
    improved = free.outcome_names.index("improved")
    assert np.any(np.asarray(free.outcome) == improved)
    assert not np.any(np.asarray(held.outcome) == improved)


def test_only_policies_near_their_limit_are_judged_anew(monkeypatch):
    """Also where they are more than fit into one part, and the last part repeats itself."""
    limits, costs = np.full(5, 10.0), np.full((3, 5), 2.0)
    near = [(0, 1), (1, 4), (2, 0)]
    for at, cost in zip(near, (9.0, 10.5, 30.0), strict=True):
        costs[at] = cost
    policies = np.arange(15).reshape(3, 5)
    tasks = Tasks({"number": jnp.arange(5.0)}, jnp.asarray(limits)[:, None], jnp.zeros((5, 1)))
    seen = []

    def judged(case, policy, tasks, key, episodes):
        assert episodes == 40
        np.testing.assert_array_equal(policy % 5, tasks.parameters["number"])
        seen.extend(np.asarray(policy).tolist())
        return None, np.asarray(policy) + 100.0, None

    monkeypatch.setattr(benchmark, "judged", judged)
    monkeypatch.setattr(benchmark, "CHUNK", 2)
    found = benchmark.judged_anew(
        None, jnp.asarray(policies), tasks, costs, np.full((3, 5), 0.5), jax.random.key(0), 40
    )
    assert set(seen) == {1, 9, 10}
    expected = costs.copy()
    expected[tuple(np.transpose(near))] = [101.0, 109.0, 110.0]
    np.testing.assert_array_equal(found, expected)
