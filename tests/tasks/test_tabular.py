"""Finite CMDPs: exact values against loops in NumPy, the linear program against a second solver, and sampling."""

import math

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.tasks import make
from safemeta.tasks.tabular import (
    TablePolicy,
    TabularCMDP,
    TabularEnvironment,
    action_values,
    optimal_safe_policy,
    performance,
    values,
    visitation,
)
from safemeta.tasks.tabular_families import (
    DISCOUNT,
    GridworldFamily,
    RandomFamily,
    cmdp_of,
    gridworld_cmdp,
    random_cmdp,
)


def random_policy(seed, states=10, actions=3):
    return np.random.default_rng(seed).dirichlet(np.ones(actions), states)


def draw(seed):
    return random_cmdp(jax.random.key(seed), 10, 3, 3, 2)


@pytest.fixture
def cmdp(x64):
    return draw(3)


def arrays(cmdp):
    return tuple(np.asarray(leaf) for leaf in (cmdp.transition, cmdp.reward, cmdp.costs, cmdp.initial))


def test_random_cmdps_are_what_they_say(x64):
    for seed in range(20):
        cmdp = draw(seed)
        np.testing.assert_allclose(cmdp.transition.sum(-1), 1, rtol=1e-12)
        assert (np.count_nonzero(cmdp.transition, axis=-1) == 3).all()
        assert cmdp.costs.shape == (10, 3, 2)
        assert 0 <= cmdp.signals().min() < cmdp.signals().max() <= 1


def test_values_are_those_of_power_iteration(cmdp):
    transition, reward, costs, initial = arrays(cmdp)
    policy = random_policy(0)
    expected = np.zeros((10, 3))
    signals = np.concatenate([reward[..., None], costs], -1)
    for _ in range(600):  # 0.95^600 = 4e-14
        action = signals + 0.95 * transition @ expected
        expected = (policy[..., None] * action).sum(1)
    np.testing.assert_allclose(values(cmdp, jnp.asarray(policy), 0.95), expected, rtol=1e-10)
    np.testing.assert_allclose(action_values(cmdp, jnp.asarray(policy), 0.95), action, rtol=1e-10)
    np.testing.assert_allclose(performance(cmdp, jnp.asarray(policy), 0.95), initial @ expected, rtol=1e-10)


def test_visitation_is_the_sum_over_time(cmdp):
    transition, _, _, initial = arrays(cmdp)
    policy = random_policy(1)
    total, now = np.zeros((10, 3)), initial
    for t in range(600):
        pairs = now[:, None] * policy
        total += 0.95**t * pairs
        now = np.einsum("sa,sat->t", pairs, transition)
    found = visitation(cmdp, jnp.asarray(policy), 0.95)
    np.testing.assert_allclose(found, total, rtol=1e-10)
    assert found.sum() == pytest.approx(1 / (1 - 0.95), rel=1e-12)


def test_visitation_and_values_tell_the_same(cmdp):
    policy = jnp.asarray(random_policy(2))
    spent = jnp.einsum("sa,sax->x", visitation(cmdp, policy, 0.9), cmdp.signals())
    np.testing.assert_allclose(spent, performance(cmdp, policy, 0.9), rtol=1e-12)


def test_the_derivative_of_the_return_is_the_policy_gradient_theorem(cmdp):
    logits = jnp.log(jnp.asarray(random_policy(4)))
    gradient = jax.jacobian(lambda x: performance(cmdp, jax.nn.softmax(x), 0.9))(logits)
    policy = jax.nn.softmax(logits)
    advantage = action_values(cmdp, policy, 0.9) - values(cmdp, policy, 0.9)[:, None]
    expected = visitation(cmdp, policy, 0.9)[..., None] * advantage
    np.testing.assert_allclose(np.moveaxis(gradient, 0, -1), expected, atol=1e-12)


def by_clarabel(cmdp, limits, discount):
    """The same linear program stated state by state, solved by an interior-point method."""
    transition, reward, costs, initial = arrays(cmdp)
    states, actions = reward.shape
    d = cvxpy.Variable((states, actions), nonneg=True)
    inflow = [
        initial[s] + discount * cvxpy.sum(cvxpy.multiply(transition[:, :, s], d)) - cvxpy.sum(d[s])
        for s in range(states)
    ]
    kept = [cvxpy.sum(cvxpy.multiply(costs[..., i], d)) <= limits[i] for i in range(len(limits))]
    problem = cvxpy.Problem(
        cvxpy.Maximize(cvxpy.sum(cvxpy.multiply(reward, d))), [*kept, *(each == 0 for each in inflow)]
    )
    problem.solve(solver=cvxpy.CLARABEL)
    return problem, [float(each.dual_value) for each in kept]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limits", [(8.0, 8.0), (7.0, 20.0), (math.inf, 7.5)])
def test_the_optimal_safe_policy_is_that_of_a_second_solver(x64, seed, limits):
    cmdp = draw(seed)
    optimum = optimal_safe_policy(cmdp, limits, 0.95)
    problem, multipliers = by_clarabel(cmdp, [min(limit, 1e3) for limit in limits], 0.95)
    if not optimum.feasible:
        assert problem.status == "infeasible"
        return
    assert optimum.reward == pytest.approx(problem.value, rel=1e-6)
    np.testing.assert_allclose(optimum.multipliers, multipliers, atol=1e-5)
    assert (optimum.costs <= np.asarray(limits) + 1e-8).all()
    # The policy itself, evaluated exactly, earns and pays what the program says.
    exact = performance(cmdp, jnp.asarray(optimum.policy), 0.95)
    np.testing.assert_allclose(exact, [optimum.reward, *optimum.costs], rtol=1e-8)
    mixed = ((optimum.policy > 1e-9) & (optimum.policy < 1 - 1e-9)).any(1).sum()
    assert mixed <= (optimum.multipliers > 1e-9).sum()


def test_some_limits_bind_and_some_cannot_be_kept(x64):
    drawn = [draw(seed) for seed in range(6)]
    tight = [optimal_safe_policy(cmdp, (8.0, 8.0), 0.95) for cmdp in drawn]
    assert all(optimum.feasible for optimum in tight)
    assert sum(bool(optimum.multipliers.max() > 0.01) for optimum in tight) >= 3
    assert not optimal_safe_policy(drawn[0], (1.0, 1.0), 0.95).feasible


def test_without_limits_it_is_value_iteration(cmdp):
    transition, reward, _, initial = arrays(cmdp)
    best = np.zeros(10)
    for _ in range(600):
        best = (reward + 0.95 * transition @ best).max(1)
    optimum = optimal_safe_policy(cmdp, (math.inf, math.inf), 0.95)
    assert optimum.reward == pytest.approx(initial @ best, rel=1e-9)
    np.testing.assert_array_equal(optimum.multipliers, 0)


def test_multipliers_are_derivatives_of_the_best_return(x64):
    cmdp = draw(1)
    middle, more = (optimal_safe_policy(cmdp, (7.0 + step, 20.0), 0.95) for step in (0, 1e-4))
    assert middle.multipliers[0] > 0.01
    assert (more.reward - middle.reward) / 1e-4 == pytest.approx(middle.multipliers[0], rel=1e-4)


def test_where_no_policy_is_safe_the_largest_excess_is_smallest(cmdp):
    optimum = optimal_safe_policy(cmdp, (1.0, 1.0), 0.95)
    assert not optimum.feasible
    assert np.isnan(optimum.multipliers).all()
    exact = np.asarray(performance(cmdp, jnp.asarray(optimum.policy), 0.95))
    np.testing.assert_allclose(exact[1:], optimum.costs, rtol=1e-8)
    least = optimum.costs.max()
    tried = jnp.stack([jnp.asarray(random_policy(seed)) for seed in range(200)])
    others = np.asarray(jax.jit(jax.vmap(lambda policy: performance(cmdp, policy, 0.95)))(tried))
    assert least <= others[:, 1:].max(1).min()
    assert optimal_safe_policy(cmdp, (least + 1e-6, least + 1e-6), 0.95).feasible
    assert not optimal_safe_policy(cmdp, (least - 1e-4, least - 1e-4), 0.95).feasible


def test_limits_that_do_not_fit_are_refused(cmdp):
    with pytest.raises(ValueError, match=r"^there are 2 costs, but the limits have shape \(1,\)$"):
        optimal_safe_policy(cmdp, (1.0,), 0.95)


def test_a_grid_by_hand(x64):
    hazards = jnp.zeros((2, 3)).at[0, 1].set(1.0)
    cmdp = gridworld_cmdp(hazards, (0, 0), (0, 2), 0.0)
    # Straight: 2 steps, one of them begins in the hazard. Around: down, right, right, up: 4 steps.
    straight, around = np.zeros((6, 4)), np.zeros((6, 4))
    straight[:, 1] = 1
    around[:, 1] = 1
    around[0], around[5] = (0, 0, 1, 0), (1, 0, 0, 0)
    g = 0.9
    np.testing.assert_allclose(performance(cmdp, jnp.asarray(straight), g), [g**2 / (1 - g), g], rtol=1e-12)
    np.testing.assert_allclose(performance(cmdp, jnp.asarray(around), g), [g**4 / (1 - g), 0], atol=1e-12)
    optimum = optimal_safe_policy(cmdp, (0.45,), g)  # half of the hazard is allowed: half of the time straight
    assert optimum.reward == pytest.approx(0.5 * (g**2 + g**4) / (1 - g))


def test_slipping_goes_to_either_side_and_the_edge_stays():
    cmdp = gridworld_cmdp(jnp.zeros((3, 3)), (0, 0), (2, 2), 0.2)
    middle = np.zeros(9)
    middle[[1, 3, 5]] = 0.8, 0.1, 0.1  # up from the middle; astray to the left and to the right
    np.testing.assert_allclose(cmdp.transition[4, 0], middle, atol=1e-7)
    corner = np.zeros(9)
    corner[[0, 1]] = 0.9, 0.1
    np.testing.assert_allclose(cmdp.transition[0, 0], corner, atol=1e-7)
    np.testing.assert_allclose(cmdp.transition[8], np.eye(9)[[8] * 4], atol=1e-7)
    np.testing.assert_allclose(cmdp.transition.sum(-1), 1, rtol=1e-6)


def test_sampled_steps_have_the_right_frequencies():
    cmdp = draw(0)
    parameters, environment = dict(vars(cmdp)), TabularEnvironment()
    keys = jax.random.split(jax.random.key(1), 20000)
    state, seen = jax.vmap(environment.reset, (None, 0))(parameters, keys)
    here = np.asarray(seen).argmax(-1)
    np.testing.assert_array_equal(seen, np.eye(10)[here])
    np.testing.assert_allclose(np.bincount(here, minlength=10) / 20000, 0.1, atol=0.01)
    action = jnp.array([-2.0, -1.5, -1.6])  # the highest score is that of action 1
    _, step = jax.vmap(environment.step, (None, 0, None))(parameters, state, action)
    after = np.asarray(step.observation).argmax(-1)
    for s in range(10):
        counted = np.bincount(after[here == s], minlength=10) / (here == s).sum()
        np.testing.assert_allclose(counted, cmdp.transition[s, 1], atol=0.045)
        assert (counted[np.asarray(cmdp.transition[s, 1]) == 0] == 0).all()
    np.testing.assert_array_equal(step.reward, cmdp.reward[here, 1])
    np.testing.assert_array_equal(step.costs, cmdp.costs[here, 1])


@pytest.mark.parametrize("name", ["tabular-random", "tabular-gridworld"])
def test_rollouts_of_the_optimal_policy_earn_and_pay_what_the_program_says(name):
    world = make(name)
    tasks = world.sample(jax.random.key(5), 1)
    optimum = optimal_safe_policy(cmdp_of(tasks[0]), tasks.limits[0], DISCOUNT)
    assert optimum.feasible
    trajectory = world.collect(TablePolicy(jnp.asarray(optimum.policy, jnp.float32)), tasks, jax.random.key(6), 300)
    weights = DISCOUNT ** np.arange(world.cmdp.horizon)
    earned = (np.asarray(trajectory.reward) * weights).sum(-1)[0]
    paid = (np.asarray(trajectory.costs) * weights[:, None]).sum(-2)[0]
    margin = 4 / math.sqrt(300)
    assert earned.mean() == pytest.approx(optimum.reward, abs=margin * earned.std() + 1e-3)
    np.testing.assert_allclose(paid.mean(0), optimum.costs, atol=margin * paid.std(0).max() + 1e-3)
    assert np.isfinite(trajectory.log_prob).all()


def test_random_tasks_share_transitions_and_differ_in_reward_and_costs():
    tasks = make("tabular-random").sample(jax.random.key(0), 3)
    assert (tasks.parameters["transition"] == tasks.parameters["transition"][:1]).all()
    assert not np.allclose(tasks.parameters["reward"][0], tasks.parameters["reward"][1])
    tables = np.concatenate([tasks.parameters["reward"][..., None], tasks.parameters["costs"]], -1).reshape(3, -1)
    np.testing.assert_allclose(tasks.descriptor, 2 * tables - 1, atol=1e-6)
    np.testing.assert_array_equal(tasks.limits, np.full((3, 2), 8.0))


def test_gridworlds_have_a_safe_way_and_hazards_that_matter():
    world = make("tabular-gridworld")
    tasks = world.sample(jax.random.key(0), 40, "test")
    hazards = (np.asarray(tasks.descriptor).reshape(40, 4, 5) + 1) / 2
    assert not hazards[..., [0, -1]].any()
    assert not hazards[:, -1].any()
    assert 0.33 < hazards[:, :3, 1:4].mean() < 0.47
    optima = [optimal_safe_policy(cmdp_of(tasks[i]), (0.5,), DISCOUNT) for i in range(20)]
    assert all(optimum.feasible for optimum in optima)
    assert np.mean([optimum.multipliers[0] > 1e-6 for optimum in optima]) > 0.2
    fullest = world.corners()
    assert fullest.count == 1
    assert optimal_safe_policy(cmdp_of(fullest[0]), (0.5,), DISCOUNT).feasible


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: RandomFamily(branching=11), "branching between 1 and its states"),
        (lambda: GridworldFamily(height=1), "at least 2 x 2"),
        (lambda: GridworldFamily(slip=1.5), "probabilities"),
        (lambda: RandomFamily().sample(jax.random.key(0), 1, "x"), "^unknown split 'x'; choose one of train"),
        (lambda: GridworldFamily().sample(jax.random.key(0), 1, "x"), "^unknown split 'x'; choose one of train"),
    ],
)
def test_bad_input_gets_one_sentence(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_a_cmdp_is_a_pytree_that_can_be_batched(x64):
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(draw(seed) for seed in range(3)))
    assert isinstance(batch, TabularCMDP)
    policy = jnp.asarray(random_policy(0))
    together = jax.vmap(performance, (0, None, None))(batch, policy, 0.9)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
        np.testing.assert_allclose(together[i], performance(one, policy, 0.9), rtol=1e-12)
