"""The forms "fit" and "gaussian" of the dual method on one state and one action, where pi^u can be integrated."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from toy_worlds import quick_jit

from safemeta.algorithms import dual_adaptation
from safemeta.algorithms.dual_adaptation import _fit, adapt_once
from safemeta.algorithms.dual_config import Config
from safemeta.algorithms.gaussian_form import fit_quadratic_advantages
from safemeta.algorithms.surrogate import Samples
from safemeta.core import CMDP
from safemeta.nets import DiagonalGaussian, GaussianPolicy, parameters, with_parameters
from safemeta.solvers import DualSolution, QuadraticAdvantage, dual_gaussian, gaussian_policy

pytestmark = pytest.mark.usefixtures("x64")
MEAN, LOG_STD, MULTIPLIER, ETA = 0.3, -0.4, 0.7, 1.6
STD = np.exp(LOG_STD)
CMDP_ = CMDP(1, 1, 20, ("cost",), (1.0,), 0.9, "undiscounted")


def make_policy(log_std=LOG_STD) -> GaussianPolicy:
    """One input, one hidden unit; mean 0.3 where the input is zero."""
    policy = GaussianPolicy.create(1, 1, jax.random.key(0), hidden=(1,))
    # In order: first weight and bias, last weight and bias, log standard deviation.
    return with_parameters(policy, jnp.array([0.5, 0.0, 0.2, MEAN, log_std]))


def make_samples(policy, observation, action, advantage, cost_advantage, valid=None) -> Samples:
    """Rows of 20 steps, all states alike in weight."""
    shape = (-1, CMDP_.horizon)
    valid = np.ones(action.shape, bool) if valid is None else valid
    observation, action = observation.reshape(*shape, 1), action.reshape(*shape, 1)
    log_prob = policy(jnp.asarray(observation)).log_prob(jnp.asarray(action))
    valid = valid.reshape(shape)
    return Samples(
        jnp.asarray(observation),
        jnp.asarray(action),
        log_prob,
        jnp.asarray(advantage.reshape(shape)),
        jnp.asarray(cost_advantage.reshape(*shape, 1)),
        jnp.asarray(valid / valid.sum()),
        jnp.asarray(valid.astype(float)),
        jnp.asarray(valid),
    )


def reward_advantage(action):
    return np.sin(2 * action) + 0.5 * action


def cost_advantage(action):
    return (action - 0.2) ** 2


def quantiles(count=20_000) -> np.ndarray:
    """Actions that stand for the policy's: their means are integrals over it."""
    return MEAN + STD * stats.norm.ppf((np.arange(count) + 0.5) / count)


def kl_to_tilted(mean: float, log_std: float) -> float:
    """`KL(N(mean, std) || pi^u)` by quadrature, up to the log of the normalising constant of pi^u."""
    grid = np.linspace(mean - 9 * np.exp(log_std), mean + 9 * np.exp(log_std), 4001)
    density = stats.norm(mean, np.exp(log_std)).pdf(grid)
    tilt = (reward_advantage(grid) - MULTIPLIER * cost_advantage(grid)) / ETA
    integrand = density * (stats.norm(mean, np.exp(log_std)).logpdf(grid) - stats.norm(MEAN, STD).logpdf(grid) - tilt)
    return np.trapezoid(integrand, grid)


def given_dual() -> DualSolution:
    zero = jnp.zeros(())
    return DualSolution(jnp.array([MULTIPLIER]), zero, jnp.asarray(ETA), jnp.zeros(1), zero, zero, zero)


def fit(config, policy, samples, allowance=1.0, key=0):
    old = policy(samples.observation)
    run = partial(_fit, config, CMDP_)
    return run(policy, old, samples, given_dual(), jnp.array([allowance]), jax.random.key(key))


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_loss_of_the_fit_has_the_gradient_of_kl_to_the_closed_form(monkeypatch, shift):
    policy, action = make_policy(), quantiles()
    samples = make_samples(policy, np.zeros_like(action), action, reward_advantage(action), cost_advantage(action))
    seen = []

    def spy(config, loss, start, count, key):
        seen.append((loss, start, count))
        return start

    monkeypatch.setattr(dual_adaptation, "_adam", spy)
    fit(Config(hidden=(1,), form="fit", adapt="all"), policy, samples)
    loss, start, count = seen[0]
    assert count == action.size
    at = start + shift * jnp.array([0.0, 1.0, 1.0, 1.0, -1.0])
    found = jax.grad(loss)(at, jnp.arange(count)) / count

    def exact(vector: np.ndarray) -> float:  # mean = last weight tanh(first bias) + last bias
        return kl_to_tilted(vector[2] * np.tanh(vector[1]) + vector[3], vector[4])

    point = np.asarray(at)
    expected = [(exact(point + e) - exact(point - e)) / 2e-5 for e in 1e-5 * np.eye(5)]
    assert np.linalg.norm(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=3e-3 * np.linalg.norm(expected))


def test_the_fit_ends_at_the_gaussian_that_is_nearest_to_the_closed_form():
    policy, action = make_policy(), quantiles(4000)
    samples = make_samples(policy, np.zeros_like(action), action, reward_advantage(action), cost_advantage(action))
    config = Config(hidden=(1,), form="fit", adapt="all", fit_steps=600, fit_learning_rate=3e-3, minibatch=1000)
    found = quick_jit(lambda s: fit(config, policy, s)(jnp.zeros(1)))(samples)
    best = optimize.minimize(lambda x: kl_to_tilted(*x), [MEAN, LOG_STD], method="Nelder-Mead").x
    assert abs(best[0] - MEAN) > 0.1
    np.testing.assert_allclose([found.mean[0], found.log_std[0]], best, atol=0.03)


class Quadratic(NamedTuple):
    """Advantages that are exactly quadratic in the action, with slopes and curvatures that depend on the state."""

    samples: Samples
    reward: QuadraticAdvantage
    cost: QuadraticAdvantage
    old: DiagonalGaussian


def quadratic(rng, count=4000, log_std=LOG_STD, bend=1.0) -> Quadratic:
    policy = make_policy(log_std)
    observation = rng.uniform(-1, 1, size=count)
    old = policy(jnp.asarray(observation)[:, None])
    std = np.exp(log_std)
    x = std * rng.normal(size=count)
    models = []
    for slope, curvature in (
        (1.0 + 0.5 * observation, bend * (0.8 + 0.0 * observation)),
        (0.6 - 0.3 * observation, bend * (-0.3 + 0.2 * observation)),
    ):
        parts = (curvature * std**2 / 2, slope[:, None], curvature[:, None])
        models.append(QuadraticAdvantage(*(jnp.asarray(part) for part in parts)))
    values = [np.asarray(m.offset + m.slope[:, 0] * x - m.curvature[:, 0] * x**2 / 2) for m in models]
    samples = make_samples(policy, observation, np.asarray(old.mean[:, 0]) + x, *values)
    cost = jax.tree.map(lambda leaf: leaf[None], models[1])
    return Quadratic(samples, models[0], cost, old)


def flat(samples: Samples) -> Samples:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), samples)


SETTINGS = Config(
    hidden=(1,), form="gaussian", adapt="all", fit_steps=400, minibatch=256, kl_weight=1.0, cost_kl_weight=2.0
)


@pytest.fixture(scope="module")
def fit_models():
    return quick_jit(lambda samples, key: fit_quadratic_advantages(SETTINGS, make_policy(), flat(samples), key))


def test_quadratic_advantages_are_found(rng, fit_models):
    truth = quadratic(rng)
    reward, cost = fit_models(truth.samples, jax.random.key(1))
    assert reward.slope.shape == (4000, 1)
    assert cost.slope.shape == (1, 4000, 1)
    for found, expected in ((reward, truth.reward), (cost, truth.cost)):
        for name, scale in (("slope", 1.0), ("curvature", 1 / STD)):
            error = np.asarray(getattr(found, name) - getattr(expected, name))
            assert np.sqrt(np.mean(error**2)) < 0.08 * scale, name
        # The mean of an advantage under its own policy is zero.
        np.testing.assert_allclose(found.offset, np.sum(found.curvature * STD**2, -1) / 2, rtol=1e-9)


def test_steps_after_the_end_of_an_episode_are_not_fitted(rng, fit_models):
    """Half of the rows are padding with advantages of no meaning."""
    truth = quadratic(rng)
    valid = np.arange(4000).reshape(-1, 20) % 20 < 10
    padding = ~valid
    samples = truth.samples
    wild = jnp.where(padding, 5.0, samples.advantage), jnp.where(padding[..., None], -5.0, samples.cost_advantages)
    samples = replace(samples, valid=jnp.asarray(valid), advantage=wild[0], cost_advantages=wild[1])
    reward, cost = fit_models(samples, jax.random.key(1))
    for found, expected in ((reward, truth.reward), (cost, truth.cost)):
        error = np.asarray(found.slope - expected.slope)[..., valid.ravel(), :]
        assert np.sqrt(np.mean(error**2)) < 0.12


def exact_gaussian(truth: Quadratic, allowance, config=SETTINGS):
    """pi^u of the true advantages, by the (separately tested) solver."""
    count = truth.old.mean.shape[0]
    std = jnp.exp(truth.old.log_std)
    share = 1 / CMDP_.horizon
    solved = dual_gaussian(
        std,
        truth.reward,
        truth.cost,
        jnp.full(count, 1 / count),
        jnp.array([share * allowance]),
        config.kl_weight,
        jnp.array([config.cost_kl_weight]),
        1 - share,
        kl_limit=config.kl_limit,
    )
    return solved, gaussian_policy(truth.old.mean, std, truth.reward, truth.cost, solved.multipliers, solved.eta)


@pytest.mark.parametrize("allowance", [0.3, 100.0])
def test_the_gaussian_form_ends_at_the_closed_form(rng, allowance):
    truth = quadratic(rng)
    config = replace(SETTINGS, kl_limit=0.05, fit_learning_rate=3e-3)
    solved, (mean, std) = exact_gaussian(truth, allowance, config)
    assert (solved.multipliers[0] > 1e-3) == (allowance < 1)
    found = quick_jit(lambda s: fit(config, make_policy(), s, allowance)(truth.old.mean * 0 + flat(s).observation))(
        truth.samples
    )
    moved = np.asarray(mean - truth.old.mean)
    assert np.sqrt(np.mean(moved**2)) > 0.05
    # A network of one unit cannot follow every state; on average it has to be there.
    np.testing.assert_allclose(np.mean(found.mean), np.mean(mean), atol=0.15 * np.sqrt(np.mean(moved**2)))
    np.testing.assert_allclose(np.exp(found.log_std).mean(), np.mean(std), rtol=0.05)


@pytest.mark.parametrize("bend", [-0.3, -1.0, -5.0])
def test_the_closed_form_exists_where_advantages_are_convex_in_the_action(rng, bend):
    """At temperature lambda alone a convex advantage has no pi^u; the limit on KL gives a temperature that has one."""
    truth = quadratic(rng, count=200, bend=bend)
    config = replace(SETTINGS, kl_weight=0.1, kl_limit=0.01)
    _, (mean, std) = exact_gaussian(truth, 100.0, config)
    assert np.all(np.isfinite(mean))
    assert np.all(np.isfinite(std))
    ratio = np.asarray(std) / STD
    divergence = np.mean((ratio**2 - 1) / 2 - np.log(ratio) + ((mean - truth.old.mean) / STD) ** 2 / 2)
    np.testing.assert_allclose(divergence, 0.01, rtol=1e-4)


def test_evidence_has_the_multipliers_of_the_form_that_made_the_step(rng, monkeypatch):
    """Of the Gaussian closed form, which are not those of the second-order model: the meta-gradient uses them."""
    from algorithm_oracles import make_cmdp, make_trajectory
    from algorithm_oracles import make_policy as another_policy

    from safemeta.algorithms.critics import init_critic

    solutions = []

    def spy(*arguments, **settings):
        solutions.append(dual_gaussian(*arguments, **settings))
        return solutions[-1]

    monkeypatch.setattr(dual_adaptation, "dual_gaussian", spy)
    cmdp, policy = make_cmdp(horizon=6, costs=1), another_policy(rng)
    config = Config(hidden=(4,), form="gaussian", kl_weight=5.0, fit_steps=5, minibatch=16, cost_kl_weight=1.0)
    rows = make_trajectory(rng, policy, cmdp, (4,))
    limits = jnp.array([100.0])
    critics = init_critic(config, cmdp, jax.random.key(0))

    def run(rows):
        _, evidence, _ = adapt_once(config, cmdp, policy, critics, rows, limits, jax.random.key(0))
        return evidence, solutions[-1]

    evidence, solved = quick_jit(run)(rows)
    assert np.isfinite(solved.eta)
    np.testing.assert_allclose(evidence.eta, solved.eta, rtol=1e-6)
    np.testing.assert_allclose(evidence.multipliers, solved.multipliers, rtol=1e-6, atol=1e-9)
    assert parameters(policy).shape == (4 * 4 + 5 * 2 + 2,)
