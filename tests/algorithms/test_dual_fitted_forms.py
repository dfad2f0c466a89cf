"""The forms "fit" and "gaussian" of the dual method on one state and one action, where pi^u can be integrated."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_oracles import differences, make_cmdp, make_trajectory
from algorithm_oracles import make_policy as another_policy
from scipy import optimize, stats

from safemeta.algorithms import dual_adaptation
from safemeta.algorithms.critics import init_critic
from safemeta.algorithms.dual_adaptation import IMPROVED, _fitted_step, _gaussian_step, _metric, adapt_once
from safemeta.algorithms.dual_config import Config
from safemeta.algorithms.gaussian_form import fit_quadratic_advantages
from safemeta.algorithms.surrogate import Samples
from safemeta.core import CMDP
from safemeta.nets import DiagonalGaussian, GaussianPolicy, parameters, with_parameters
from safemeta.solvers import DualSolution, Outcome, QuadraticAdvantage, dual_gaussian, gaussian_policy

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


def fit(config, policy, samples) -> GaussianPolicy:
    step = _fitted_step(config, policy, samples, given_dual(), jax.random.key(0))
    return with_parameters(policy, parameters(policy, config.adapt) + step, config.adapt)


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_loss_of_the_fit_has_the_gradient_of_kl_to_the_closed_form(monkeypatch, shift):
    policy, action = make_policy(), quantiles()
    samples = make_samples(policy, np.zeros_like(action), action, reward_advantage(action), cost_advantage(action))
    seen = []

    def spy(config, loss, start, count, key):
        seen.append((loss, start, count))
        return start + 1

    monkeypatch.setattr(dual_adaptation, "_adam", spy)
    moved = fit(Config(hidden=(1,), form="fit", adapt="all"), policy, samples)
    np.testing.assert_allclose(parameters(moved) - parameters(policy), 1)
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
    found = jax.jit(lambda s: fit(config, policy, s)(jnp.zeros(1)))(samples)
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
    return jax.jit(lambda samples, key: fit_quadratic_advantages(SETTINGS, make_policy(), flat(samples), 0.95, key))


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


@jax.jit
def exact_gaussian(truth: Quadratic, allowance, kl_limit):
    """pi^u of the true advantages, by the (separately tested) solver."""
    count, share = truth.old.mean.shape[0], 1 / CMDP_.horizon
    std = jnp.exp(truth.old.log_std)
    solved = dual_gaussian(
        std,
        truth.reward,
        truth.cost,
        jnp.full(count, 1 / count),
        jnp.array([share * allowance]),
        SETTINGS.kl_weight,
        jnp.array([SETTINGS.cost_kl_weight]),
        1 - share,
        kl_limit=kl_limit,
    )
    return solved, gaussian_policy(truth.old.mean, std, truth.reward, truth.cost, solved.multipliers, solved.eta)


@pytest.fixture(scope="module")
def gaussian_step():
    """Solution and step, from samples and allowance."""
    config = replace(SETTINGS, kl_limit=0.05, damping=0.0, fisher_states=40_000)

    def run(samples, allowance):
        policy = make_policy()
        old, start = policy(samples.observation), parameters(policy)
        metric = _metric(config, policy, samples, start)
        arguments = (config, CMDP_, policy, old, samples, allowance[None], metric, jax.random.key(0))
        return _gaussian_step(*arguments)

    return jax.jit(run)


@pytest.mark.parametrize("allowance", [0.3, 100.0])
def test_the_gaussian_form_steps_to_the_network_nearest_to_the_closed_form(rng, gaussian_step, allowance):
    """By weighted least squares in numpy, on the derivatives of mean and log deviation by finite differences."""
    truth = quadratic(rng)
    solved, (mean, std) = exact_gaussian(truth, allowance, 0.05)
    found, step = gaussian_step(truth.samples, jnp.asarray(allowance))
    assert (solved.multipliers[0] > 1e-3) == (allowance < 1)
    assert found.outcome == Outcome.SOLVED
    np.testing.assert_allclose(found.eta, solved.eta, rtol=0.1)
    np.testing.assert_allclose(found.multipliers, solved.multipliers, rtol=0.2, atol=1e-3)

    x = np.asarray(flat(truth.samples).observation[:, 0])

    def moments(vector):  # in units in which KL is half of the squared distance
        bent = np.tanh(vector[0] * x + vector[1])
        return np.concatenate([(vector[2] * bent + vector[3]) / STD, np.sqrt(2) * vector[4] + 0 * x])

    start = np.asarray(parameters(make_policy()))
    slopes = differences(moments, start)
    wanted = np.concatenate([(mean - truth.old.mean)[:, 0] / STD, np.sqrt(2) * np.log(np.asarray(std)[:, 0] / STD)])
    expected = np.linalg.lstsq(slopes, wanted, rcond=None)[0]
    moved, exact = slopes @ np.asarray(step), slopes @ expected
    assert np.sqrt(np.mean(exact**2)) > 0.1
    assert np.linalg.norm(moved - exact) < 0.1 * np.linalg.norm(exact)  # of which the fitted advantages are to blame


def test_the_closed_form_exists_however_convex_advantages_are_in_the_action(rng, fit_models):
    """For every multiplier: `eta(u) + h std^2` is at least half of eta, so that no variance more than doubles."""
    truth = quadratic(rng, bend=-8.0)  # curvatures of -6.4 for the reward, and of about 2.4 for the cost
    reward, cost = fit_models(truth.samples, jax.random.key(1))
    np.testing.assert_allclose(reward.curvature * STD**2, -SETTINGS.kl_weight / 2, rtol=0.02)
    for multiplier in (0.0, 1.0, 100.0, 1e5):
        eta = SETTINGS.kl_weight + 0.05 * multiplier * SETTINGS.cost_kl_weight
        old = truth.old.mean, jnp.exp(truth.old.log_std)
        mean, std = gaussian_policy(*old, reward, cost, jnp.array([multiplier]), jnp.asarray(eta))
        assert np.all(np.isfinite(mean))
        assert np.all(np.asarray(std) ** 2 <= 2 * STD**2 * (1 + 1e-6))
    # And the mean of each advantage under its own policy is still zero.
    np.testing.assert_allclose(reward.offset, np.sum(reward.curvature * STD**2, -1) / 2, rtol=1e-9)


def test_evidence_has_the_multipliers_of_the_form_that_made_the_step(rng, monkeypatch):
    """Of the Gaussian closed form, which are not those of the second-order model: the meta-gradient uses them."""
    zero = jnp.zeros(())
    given = DualSolution(jnp.array([1.25]), zero, jnp.asarray(3.5), zero[None], zero, jnp.asarray(Outcome.SOLVED), zero)
    cmdp, policy = make_cmdp(horizon=6, costs=1), another_policy(rng)
    config = Config(hidden=(4,), form="gaussian", cost_kl_weight=1.0, kl_limit=0.1)
    rows, critics = make_trajectory(rng, policy, cmdp, (4,)), init_critic(config, cmdp, jax.random.key(0))
    step = 1e-3 * rng.normal(size=parameters(policy, "last").size)

    @jax.jit
    def run(rows, step, limit):
        monkeypatch.setattr(
            dual_adaptation,
            "_gaussian_step",
            lambda *_: (given._replace(outcome=jnp.asarray(Outcome.SOLVED, jnp.int32)), step),
        )
        return adapt_once(config, cmdp, policy, critics, rows, limit, jax.random.key(0))[:2]

    outcomes = []
    for sign in (1, -1):  # one of them is uphill
        new, evidence = run(rows, jnp.asarray(sign * step), jnp.array([100.0]))
        np.testing.assert_allclose(evidence.eta, 3.5)
        np.testing.assert_allclose(evidence.multipliers, [1.25])
        outcomes.append(int(evidence.outcome))
        if evidence.outcome == IMPROVED:
            np.testing.assert_allclose(parameters(new, "last") - parameters(policy, "last"), sign * step, atol=1e-9)
    assert outcomes.count(IMPROVED) == 1
