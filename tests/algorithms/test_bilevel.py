"""The bilevel loop: meta-gradients through chains of inner steps against finite differences, steps against cvxpy."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_worlds import reach, with_mean_action

from safemeta.algorithms import bilevel
from safemeta.algorithms.bilevel_config import BilevelConfig
from safemeta.algorithms.critics import init_critic
from safemeta.algorithms.inner import InnerData, inner_step, inner_update, replayed
from safemeta.algorithms.outer import Control, MetaData, meta_objective, nearest_update, outer_update
from safemeta.algorithms.surrogate import surrogate
from safemeta.nets import GaussianPolicy, parameters, with_parameters

TASKS, EPISODES = 2, 6
DISCOUNT = jnp.asarray(0.9)
SMALL = BilevelConfig(
    hidden=(3,), tasks=TASKS, episodes=EPISODES, inner_steps=2, cg_iterations=60, fisher_states=10_000, critic_steps=3
)


@pytest.fixture(scope="module")
def batch():
    """A policy and the samples of its own episodes on each task, in float64."""
    with jax.enable_x64(True):
        world = reach(costs=2)
        policy = GaussianPolicy.create(3, 1, jax.random.key(0), hidden=(3,))
        noise = 0.3 * jax.random.normal(jax.random.key(5), parameters(policy).shape)
        policy = with_mean_action(with_parameters(policy, parameters(policy) + noise), 0.4, -0.5)
        tasks = world.sample(jax.random.key(1), TASKS)
        tasks = jax.tree.map(lambda leaf: leaf.astype(float), tasks)
        state = bilevel.State(policy, init_critic(SMALL, world.cmdp, jax.random.key(2)))
        theta = parameters(policy)
        x = jnp.broadcast_to(theta, (TASKS, theta.shape[0]))

        @jax.jit
        def collected(x):
            rows, estimates = bilevel._collect(SMALL, world, state, x, tasks, jax.random.key(3))
            return jax.vmap(lambda r, a: bilevel.make_samples(r, a, world.cmdp))(rows, estimates)

        return policy, theta, collected(x)


def data_of(samples, violations, fractions=(1.0,)):
    """The same samples and violations `[..., costs]` for as many inner steps as there are fractions of a step."""
    shape = len(fractions), samples.valid.shape[0]
    samples = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (shape[0], *leaf.shape)), samples)
    given = jnp.broadcast_to(jnp.asarray(violations, float), (*shape, 2))
    fraction = jnp.broadcast_to(jnp.asarray(fractions, float)[:, None], shape)
    return InnerData(samples, given, fraction, jnp.full(shape, DISCOUNT, float))


CASES = {
    "inactive": [-50.0, -50.0],
    "active": [-1e-3, -50.0],
    "both active": [-1e-3, 0.36],
    "recovery": [30.0, -50.0],
}
BOTH_IN_EUCLIDEAN = [-1e-3, 0.37]  # the band in which both hold a step is narrow, and elsewhere in that metric
ACTIVE = {"inactive": [0, 0], "active": [1, 0], "both active": [1, 1], "recovery": [1, 0]}


def compiled(config, policy):
    """F and G, their derivatives, the adapted parameters and the first step: compiled once for all cases."""

    def stacked(y, meta):
        reward, costs = meta_objective(config, policy, y, meta)
        return jnp.concatenate([reward[None], costs])

    def adapted(theta, data):
        return jax.vmap(lambda each: replayed(config, policy, theta, each), in_axes=1)(data)

    def first(theta, data):
        return jax.vmap(lambda each: inner_step(config, policy, theta, each))(jax.tree.map(lambda leaf: leaf[0], data))

    return jax.jit(stacked), jax.jit(jax.jacrev(stacked)), jax.jit(adapted), jax.jit(first)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("metric", "count", "cases"),
    [
        ("fisher", 1, CASES),
        ("euclidean", 2, CASES),
        ("fisher", 5, ["active", "recovery"]),
        *(pytest.param(m, k, CASES, marks=pytest.mark.slow) for m in ("fisher", "euclidean") for k in range(1, 6)),
    ],
)
def test_the_meta_gradient_is_that_of_finite_differences(batch, metric, count, cases):
    policy, theta, samples = batch
    value, derivative, adapted, first = compiled(replace(SMALL, metric=metric, inner_radius=0.02), policy)
    for case in cases:
        violations = BOTH_IN_EUCLIDEAN if (metric, case) == ("euclidean", "both active") else CASES[case]
        data = data_of(samples, violations, np.linspace(1.0, 0.5, count))
        meta = MetaData(data, samples, data.violations[0], adapted(theta, data))
        steps = first(theta, data)
        assert np.all(np.asarray(steps.feasible) == (case != "recovery"))
        held = np.abs(np.asarray(steps.multipliers)) > 1e-9
        assert held.any(0).tolist() == [bool(flag) for flag in ACTIVE[case]]
        jacobian = derivative(theta, meta)
        for seed in range(2):
            direction = jax.random.normal(jax.random.key(seed), theta.shape)
            near, far = (
                (value(theta + width * direction, meta) - value(theta - width * direction, meta)) / (2 * width)
                for width in (1e-6, 2e-6)
            )
            expected = (4 * near - far) / 3  # where two constraints nearly exclude each other, errors of h^2 are 1e-4
            np.testing.assert_allclose(jacobian @ direction, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.usefixtures("x64")
def test_first_order_and_ignored_sampling_differ_from_exact_as_they_should(batch):
    policy, theta, samples = batch
    data = data_of(samples, CASES["active"])
    adapted = compiled(SMALL, policy)[2](theta, data)
    meta = MetaData(data, samples, data.violations[0], adapted)

    def gradient(config):
        return jax.jit(jax.grad(lambda y: meta_objective(config, policy, y, meta)[0]))(theta)

    exact, first = gradient(SMALL), gradient(replace(SMALL, meta_gradient="first"))

    def direct(x, own):
        old = with_parameters(policy, x)(own.observation)
        return jax.grad(lambda y: surrogate(with_parameters(policy, y), old, own).reward)(x)

    np.testing.assert_allclose(first, jax.vmap(direct)(adapted, samples).mean(0), rtol=1e-9)
    ignored = gradient(replace(SMALL, sampling="ignored"))
    for other in (first, ignored):
        assert np.linalg.norm(exact - other) > 1e-3 * np.linalg.norm(exact)
    # At the data's own policy the two ways to write the surrogate have the same first derivative.
    ratio, log = (compiled(c, policy)[3](theta, data).step for c in (SMALL, replace(SMALL, sampling="ignored")))
    np.testing.assert_allclose(ratio, log, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_inner_step_is_cvxpys(batch):
    cp = pytest.importorskip("cvxpy")
    policy, theta, samples = batch
    own = jax.tree.map(lambda leaf: leaf[0], samples)
    data = InnerData(own, jnp.array([-0.05, 0.2]), jnp.ones(()), DISCOUNT)
    found = jax.jit(inner_step, static_argnums=0)(SMALL, policy, theta, data)
    gradients, fisher = models(policy, theta, own)
    x = cp.Variable(theta.shape[0])
    within = [cp.quad_form(x, cp.psd_wrap(fisher)) <= 2 * SMALL.inner_radius, data.violations + gradients[1:] @ x <= 0]
    cp.Problem(cp.Maximize(gradients[0] @ x), within).solve(solver="CLARABEL")
    assert gradients[0] @ found.step == pytest.approx(gradients[0] @ x.value, rel=1e-4)
    np.testing.assert_allclose(found.step, x.value, atol=1e-3 * np.abs(x.value).max())


@pytest.mark.usefixtures("x64")
def test_the_inner_step_of_the_dual_method_is_cvxpys(batch):
    cp = pytest.importorskip("cvxpy")
    policy, theta, samples = batch
    own = jax.tree.map(lambda leaf: leaf[0], samples)
    config = replace(SMALL, inner="dual", kl_weight=0.05, cost_kl_weight=4.0)
    step = jax.jit(inner_step, static_argnums=0)
    gradients, fisher = models(policy, theta, own)
    for violations, binding in (([-0.05, -0.03], True), ([-50.0, -50.0], False)):
        data = InnerData(own, jnp.array(violations), jnp.ones(()), DISCOUNT)
        found = step(config, policy, theta, data)
        x = cp.Variable(theta.shape[0])
        kl = cp.quad_form(x, cp.psd_wrap(fisher)) / 2
        within = [data.violations + gradients[1:] @ x + config.cost_kl_weight * kl <= 0, kl <= config.inner_radius]
        cp.Problem(cp.Maximize(gradients[0] @ x - config.kl_weight * kl), within).solve(solver="CLARABEL")
        assert bool(np.any(np.asarray(found.multipliers) > 1e-6)) == binding
        np.testing.assert_allclose(found.step, x.value, atol=1e-3 * np.abs(x.value).max())
    above = InnerData(own, jnp.array([0.5, -0.1]), jnp.ones(()), DISCOUNT)
    found = step(config, policy, theta, above)
    assert not found.feasible
    assert gradients[1] @ found.step < 0


def models(policy, theta, own):
    """The linear models of reward and costs, and the damped Fisher matrix, by automatic differentiation of values."""

    def predicted(y):
        old = policy(own.observation)
        values = surrogate(with_parameters(policy, y), old, own)
        return jnp.concatenate([values.reward[None], values.costs])

    def divergence(y):
        return jnp.mean(policy(own.observation).kl(with_parameters(policy, y)(own.observation)))

    fisher = np.asarray(jax.hessian(divergence)(theta)) + SMALL.damping * np.eye(theta.shape[0])
    return np.asarray(jax.jacobian(predicted)(theta)), fisher


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inner", ["cpo", "trpo", "crpo", "dual"])
def test_accepted_inner_updates_keep_their_promises(batch, inner):
    policy, theta, samples = batch
    config = replace(SMALL, inner=inner)
    violations = jnp.array([-0.3, -0.1])
    own = jax.tree.map(lambda leaf: leaf[0], samples)
    update = jax.jit(inner_update, static_argnums=0)
    moved, used, facts = update(config, policy, theta, own, violations, DISCOUNT)
    assert facts["accepted"]
    values = surrogate(with_parameters(policy, moved), policy(own.observation), own)
    assert 0 < values.kl <= 1.5 * config.inner_radius
    assert values.reward > 0
    if inner in ("cpo", "dual"):
        assert np.all(violations + values.costs <= 1e-9)
    again = theta + used.fraction * jax.jit(inner_step, static_argnums=0)(config, policy, theta, used).step
    np.testing.assert_allclose(moved, again, rtol=1e-8, atol=1e-12)
    if inner in ("crpo", "dual"):  # a violated cost is lowered instead
        moved, _, _ = update(config, policy, theta, own, jnp.array([0.5, -0.1]), DISCOUNT)
        values = surrogate(with_parameters(policy, moved), policy(own.observation), own)
        assert values.costs[0] < 0


@pytest.mark.usefixtures("x64")
def test_mamls_step_is_the_gradient_less_the_penalty(batch):
    policy, theta, samples = batch
    own = jax.tree.map(lambda leaf: leaf[0], samples)
    config = replace(SMALL, inner="gradient", penalty=2.0, inner_learning_rate=0.3)

    def predicted(y):
        values = surrogate(with_parameters(policy, y), policy(own.observation), own)
        return jnp.concatenate([values.reward[None], values.costs])

    gradients = jax.jacobian(predicted)(theta)
    spread = np.sqrt(np.sum(own.reward_weight * own.advantage**2))
    spread_of_cost = np.sqrt(np.sum(own.reward_weight * own.cost_advantages[..., 0] ** 2))
    cost = gradients[1] / (own.cost_weight.sum() / own.cost_weight.shape[0]) / spread_of_cost
    found = inner_step(config, policy, theta, InnerData(own, jnp.array([0.1, -0.1]), jnp.ones(()), DISCOUNT))
    np.testing.assert_allclose(found.step, 0.3 * (gradients[0] / spread - 2.0 * cost), rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("outer", "meta_gradient"), [("cpo", "exact"), ("trpo", "first"), ("switch", "first")])
def test_the_outer_step_improves_what_it_promises(batch, outer, meta_gradient):
    policy, theta, samples = batch
    config = replace(SMALL, outer=outer, meta_gradient=meta_gradient)
    data = data_of(samples, CASES["active"])
    adapted = compiled(config, policy)[2](theta, data)
    observations = samples.observation
    step_out = jax.jit(outer_update, static_argnums=0)
    exact = replace(config, meta_gradient="exact")
    value = jax.jit(lambda y, meta: meta_objective(exact, policy, y, meta))
    for violations, safe in (([-0.3, -0.2], True), ([5.0, -0.2], False)):
        meta = MetaData(data, samples, jnp.broadcast_to(jnp.asarray(violations), (TASKS, 2)), adapted)
        before = value(theta, meta)
        moved, _, facts = step_out(config, policy, theta, meta, observations, samples.valid)
        assert facts["meta_accepted"] == 1
        after = value(moved, meta)
        kl = with_parameters(policy, moved)(observations).kl(policy(observations)).mean()
        assert 0 < kl <= 1.5 * config.outer_radius + 1e-12
        if safe or outer == "trpo":
            assert after[0] > before[0] or meta_gradient == "first"
        else:
            assert after[1][0] < before[1][0] or meta_gradient == "first"
        if outer == "cpo" and safe and meta_gradient == "exact":
            assert np.all(np.asarray(after[1]) <= 1e-9)
        if outer == "cpo":  # a correction is as much excess more
            part = jnp.array([0.1, 0.0])
            less = eqx.tree_at(lambda m: m.violations, meta, meta.violations - part)
            control = eqx.tree_at(lambda c: c.correction, Control.create(2), part)
            unmeasured = replace(config, least_share=1.0)
            corrected, *_ = step_out(unmeasured, policy, theta, less, observations, samples.valid, control)
            np.testing.assert_allclose(corrected, moved, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_dual_methods_step_is_differentiated_through(batch):
    policy, theta, samples = batch
    config = replace(SMALL, inner="dual", kl_weight=0.05, cost_kl_weight=4.0)
    value, derivative, adapted, first = compiled(config, policy)
    for case in ("inactive", "active", "recovery"):
        data = data_of(samples, CASES[case], (1.0, 0.6))
        meta = MetaData(data, samples, data.violations[0], adapted(theta, data))
        held = np.asarray(first(theta, data).multipliers) > 1e-6
        assert held.any() == (case == "active")
        direction = jax.random.normal(jax.random.key(0), theta.shape)
        ahead, behind = (value(theta + width * direction, meta) for width in (2e-6, -2e-6))
        expected = (ahead - behind) / 4e-6
        found = derivative(theta, meta) @ direction
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.usefixtures("x64")
def test_the_meta_policys_own_cost_is_bounded_on_its_worst_task(batch):
    policy, theta, samples = batch
    config = replace(SMALL, inner="dual", outer="cpo", bounded="initial", meta_gradient="first")
    given = jnp.array([[-0.3, 0.1], [0.2, -0.4]])  # each task is the worst for one of the costs
    data = data_of(samples, given)
    adapted = compiled(config, policy)[2](theta, data)
    meta = MetaData(data, samples, given, adapted)
    np.testing.assert_allclose(meta_objective(config, policy, theta, meta)[1], [0.2, 0.1], atol=1e-12)
    update = jax.jit(outer_update, static_argnums=0)
    moved, _, facts = update(config, policy, theta, meta, samples.observation, samples.valid)
    assert facts["meta_accepted"] == 1
    now = with_parameters(policy, moved)
    after = jax.vmap(lambda own: surrogate(now, policy(own.observation), own).costs)(samples)
    assert np.all(np.asarray(after)[[1, 0], [0, 1]] < 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("metric", ["fisher", "euclidean"])
def test_meta_crpo_goes_to_the_policy_nearest_to_the_adapted_ones(batch, metric):
    policy, theta, samples = batch
    shift = 0.02 * jax.random.normal(jax.random.key(7), (TASKS, theta.shape[0]))
    config = replace(SMALL, outer="nearest", outer_rate=1.0, metric=metric, damping=1e-8)
    data = data_of(samples, CASES["inactive"])

    def distance(y, adapted):
        kl = jax.vmap(
            lambda x, own: with_parameters(policy, x)(own.observation).kl(with_parameters(policy, y)(own.observation))
        )
        return float(kl(adapted, samples).mean())

    update = jax.jit(nearest_update, static_argnums=0)
    for same in (True, False):
        adapted = theta + jnp.broadcast_to(shift[:1], shift.shape) if same else theta + shift
        meta = MetaData(data, samples, data.violations[0], adapted)
        moved, facts = update(config, policy, theta, meta, samples.observation, samples.valid)
        assert facts["meta_accepted"] == 1
        assert float(facts["distance"]) == pytest.approx(distance(theta, adapted), rel=1e-6)
        assert distance(moved, adapted) < distance(theta, adapted)
        if metric == "fisher" and same:  # one Gauss-Newton step all but reaches a common goal
            assert distance(moved, adapted) < 0.01 * distance(theta, adapted)
