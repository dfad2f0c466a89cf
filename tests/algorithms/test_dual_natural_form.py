"""The natural form of the dual method against dense linear algebra, and against cvxpy on problem (1) itself."""

import warnings

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import Case, dense_fisher, make_cmdp, make_policy, make_trajectory, signal_gradients

from safemeta.algorithms.critics import assess, init_critic
from safemeta.algorithms.dual_adaptation import IMPROVED, LOWERED, adapt_once
from safemeta.algorithms.dual_config import Config
from safemeta.algorithms.estimation import limited_costs
from safemeta.algorithms.surrogate import make_samples
from safemeta.nets import parameters

pytestmark = pytest.mark.usefixtures("x64")
SETTINGS = {
    "hidden": (4,),
    "cg_iterations": 300,
    "fisher_states": 10_000,  # all states
    "cost_kl_weight": 2.0,
    "margin": 0.1,
    "slack": 0.02,
    "kl_limit": 1e-3,
    "lowering": 2.0,
}
run = jax.jit(adapt_once, static_argnums=(0, 1))
judge = jax.jit(assess, static_argnums=(0, 4, 5))


class Problem:
    """One task's data and everything about it in dense form."""

    def __init__(self, seed, part, unit, costs, **changes):
        rng = np.random.default_rng(seed)
        self.config = Config(adapt=part, **(SETTINGS | changes))
        cmdp, self.policy = make_cmdp(horizon=6, costs=costs, limit_on=unit), make_policy(rng, "free")
        rows = make_trajectory(rng, self.policy, cmdp, (4,))
        self.critics = init_critic(self.config, cmdp, jax.random.key(0))
        found = judge("neural", self.critics, self.policy.normalizer, rows, cmdp, self.config.gae_smoothing)
        self.case = Case(self.policy, cmdp, rows, found, make_samples(rows, found, cmdp))
        self.rows = signal_gradients(self.case, part)
        weight = np.full(rows.reward.shape, 1 / rows.reward.size)
        fisher = dense_fisher(self.policy, rows.observation, weight, part)
        self.metric = fisher + self.config.damping * np.eye(len(fisher))
        self.solutions = self.rows @ np.linalg.inv(self.metric)
        self.gram = self.rows @ self.solutions.T
        self.costs = np.asarray(limited_costs(rows, cmdp).mean(0))
        # One less the effective discount: one over the total weight of a limit (0.9 ends nowhere).
        self.share = {"discounted": 0.1, "undiscounted": 1 / 6, "per_step": 1.0}[unit]

    def reach(self) -> np.ndarray:
        """How far the limit on KL can move each cost."""
        return np.sqrt(2 * self.config.kl_limit * np.diagonal(self.gram)[1:])

    def adapt(self, allowance):
        """`adapt_once` with limits that leave this allowance; the step and the evidence."""
        limits = (self.costs + allowance - self.config.slack) / (1 - self.config.margin)
        arguments = (self.config, self.case.cmdp, self.policy, self.critics, self.case.trajectory)
        new, evidence, _ = run(*arguments, jnp.asarray(limits), jax.random.key(0))
        part = self.config.adapt
        return np.asarray(parameters(new, part) - parameters(self.policy, part)), evidence

    def optimum(self, allowance):
        """Problem (1), linear in advantages and quadratic in KL, by cvxpy: step and multipliers.

        In units of the square root of the limit on KL, so that all numbers are of order one.
        """
        unit = np.sqrt(self.config.kl_limit)
        root = np.linalg.cholesky(self.metric).T
        x = cp.Variable(len(self.metric))  # step = unit x
        kl = cp.sum_squares(root @ x) / 2
        use = self.rows[1:] @ x * unit + self.config.cost_kl_weight * unit**2 * kl
        constraints = [self.share * use / unit <= self.share * allowance / unit, kl <= 1]
        objective = self.rows[0] @ x - self.config.kl_weight * unit * kl
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where the last digits asked for are not reached
            accuracy = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-11)
            cp.Problem(cp.Maximize(objective), constraints).solve(solver=cp.CLARABEL, **accuracy)
        return unit * x.value, np.atleast_1d(constraints[0].dual_value)


@pytest.mark.parametrize(("part", "unit", "costs"), [("all", "discounted", 1), ("last", "undiscounted", 2)])
def test_the_step_is_the_optimum_of_problem_1(part, unit, costs):
    whole, bound = 0, 0
    for seed in range(3):
        problem = Problem(seed, part, unit, costs)
        for share in (0.02, 0.3, 5.0):  # of what the limit on KL can move a cost: binding, perhaps, and idle
            allowance = share * problem.reach()
            step, evidence = problem.adapt(allowance)
            expected, multipliers = problem.optimum(allowance)
            largest = np.abs(expected).max()
            np.testing.assert_allclose(
                evidence.multipliers, multipliers, rtol=2e-3, atol=2e-3 * max(multipliers.max(), 1e-2)
            )
            bound += multipliers.max() > 1e-4
            if evidence.outcome != IMPROVED:
                np.testing.assert_array_equal(step, 0)
                continue
            fraction = step @ problem.metric @ expected / (expected @ problem.metric @ expected)
            np.testing.assert_allclose(step, fraction * expected, atol=2e-4 * largest)
            power = np.log(fraction) / np.log(0.6)
            assert abs(power - round(power)) < 1e-3
            whole += round(power) == 0
    assert whole >= 3  # several of them in full
    assert bound >= 2  # and several held by a limit


def test_without_hope_it_goes_down_the_cost_as_far_as_the_limit_on_kl_lets_it():
    lowered = 0
    for seed in range(4):
        problem = Problem(seed, "all", "discounted", 1)
        step, evidence = problem.adapt(-10 * problem.reach())
        downhill = -problem.solutions[1]
        expected = downhill * np.sqrt(2 * problem.config.kl_limit / problem.gram[1, 1])
        if evidence.outcome == LOWERED:
            fraction = step @ expected / (expected @ expected)
            np.testing.assert_allclose(step, fraction * expected, atol=1e-4 * np.abs(expected).max())
            assert 0.6**8 < fraction < 1 + 1e-4
            lowered += fraction > 0.99
    assert lowered >= 3


def test_a_violation_within_reach_is_mended_by_the_shortest_step():
    """Asked for is `lowering` times what is missing, 2 here: steps fall short of what is predicted of them."""
    problem = Problem(0, "all", "discounted", 1)
    missing = 0.3 * problem.reach()
    step, evidence = problem.adapt(-missing)
    assert evidence.outcome == LOWERED
    expected = -problem.solutions[1] * 2 * missing / problem.gram[1, 1]
    np.testing.assert_allclose(step, expected, atol=1e-4 * np.abs(expected).max())


def test_units_of_a_limit_do_not_change_the_step():
    """A limit on the sum and a limit on the mean of a step are the same promise: the step must be the same.

    The penalty on KL is in units of the cost, so it is scaled with it.
    """
    horizon, binding = 6, 0
    for seed in range(3):
        steps = []
        for unit, weight in (("undiscounted", 2.0), ("per_step", 2.0 / horizon)):
            problem = Problem(seed, "last", unit, 1, cost_kl_weight=weight)
            step, evidence = problem.adapt(0.05 * problem.reach())
            steps.append(step)
        np.testing.assert_allclose(steps[0], steps[1], rtol=1e-5, atol=1e-10)
        binding += evidence.multipliers[0] > 1e-4
    assert binding
