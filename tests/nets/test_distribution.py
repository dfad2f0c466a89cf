"""The diagonal Gaussian against scipy, against numpy written out by hand, and against its own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from safemeta.nets import DiagonalGaussian


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261101)


def gaussian(mean, log_std) -> DiagonalGaussian:
    return DiagonalGaussian(jnp.asarray(mean), jnp.asarray(log_std))


def random_pair(rng, shape=(4, 3)):
    """Means and log standard deviations of two Gaussians that differ visibly."""
    return [(rng.normal(size=shape), rng.normal(scale=0.5, size=shape)) for _ in range(2)]


def test_log_density_is_that_of_scipy(x64, rng):
    mean, log_std = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    action = mean + rng.normal(size=(5, 3)) * 2
    expected = [
        stats.multivariate_normal(m, np.diag(np.exp(2 * s))).logpdf(a)
        for m, s, a in zip(mean, log_std, action, strict=True)
    ]
    np.testing.assert_allclose(gaussian(mean, log_std).log_prob(jnp.asarray(action)), expected, rtol=1e-12)


def test_log_density_by_hand():
    # N(1, 2^2) at 3: one standard deviation away.
    density = np.exp(-0.5) / (2 * np.sqrt(2 * np.pi))
    found = gaussian([1.0], [np.log(2.0)]).log_prob(jnp.array([3.0]))
    np.testing.assert_allclose(found, np.log(density), rtol=1e-6)


def test_entropy_is_that_of_scipy(x64, rng):
    mean, log_std = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    expected = [
        stats.multivariate_normal(m, np.diag(np.exp(2 * s))).entropy() for m, s in zip(mean, log_std, strict=True)
    ]
    np.testing.assert_allclose(gaussian(mean, log_std).entropy(), expected, rtol=1e-12)


def test_kl_is_the_general_formula_with_full_matrices(x64, rng):
    (mean_p, log_p), (mean_q, log_q) = random_pair(rng)
    expected = []
    for row in range(4):
        cov_p, cov_q = np.diag(np.exp(2 * log_p[row])), np.diag(np.exp(2 * log_q[row]))
        shift = mean_q[row] - mean_p[row]
        inverse = np.linalg.inv(cov_q)
        log_volume = np.log(np.linalg.det(cov_q) / np.linalg.det(cov_p))
        expected.append((np.trace(inverse @ cov_p) + shift @ inverse @ shift - 3 + log_volume) / 2)
    np.testing.assert_allclose(gaussian(mean_p, log_p).kl(gaussian(mean_q, log_q)), expected, rtol=1e-12)


def test_kl_is_the_mean_log_ratio_under_the_first_argument(x64, rng):
    (mean_p, log_p), (mean_q, log_q) = [(mean[0], log_std[0]) for mean, log_std in random_pair(rng)]
    p, q = (stats.multivariate_normal(m, np.diag(np.exp(2 * s))) for m, s in ((mean_p, log_p), (mean_q, log_q)))
    draws = p.rvs(200_000, random_state=rng)
    ratio = p.logpdf(draws) - q.logpdf(draws)
    error = ratio.std() / np.sqrt(len(ratio))
    found = float(gaussian(mean_p, log_p).kl(gaussian(mean_q, log_q)))
    assert abs(found - ratio.mean()) < 4 * error
    # The other direction is another number, far outside that error: the order of the arguments is tested too.
    assert abs(float(gaussian(mean_q, log_q).kl(gaussian(mean_p, log_p))) - ratio.mean()) > 40 * error


def test_kl_vanishes_with_its_gradient_only_at_equality(x64, rng):
    (mean, log_std), (other, _) = random_pair(rng)
    here = gaussian(mean, log_std)
    np.testing.assert_array_equal(here.kl(here), np.zeros(4))
    gradient = jax.grad(lambda m, s: gaussian(m, s).kl(here).sum(), argnums=(0, 1))(here.mean, here.log_std)
    np.testing.assert_allclose(np.stack(gradient), 0, atol=1e-12)
    assert np.all(gaussian(other, log_std).kl(here) > 0)


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_one_deviation_serves_a_batch_of_means(x64, rng, shape):
    mean, log_std, action = rng.normal(size=(6, 3)), rng.normal(size=shape), jnp.asarray(rng.normal(size=(6, 3)))
    shared, full = gaussian(mean, log_std), gaussian(mean, np.broadcast_to(log_std, (6, 3)))
    other = gaussian(mean + 1, np.broadcast_to(log_std, (6, 3)) - 0.2)
    for ours, expected in (
        (shared.log_prob(action), full.log_prob(action)),
        (shared.entropy(), full.entropy()),
        (shared.kl(other), full.kl(other)),
        (other.kl(shared), other.kl(full)),
        (shared.sample(jax.random.key(0)), full.sample(jax.random.key(0))),
    ):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_samples_follow_the_distribution():
    count = 100_000
    mean, std = np.array([1.0, -20.0]), np.array([0.3, 4.0])
    batch = gaussian(np.broadcast_to(mean, (count, 2)), np.broadcast_to(np.log(std), (count, 2)))
    draws = np.asarray(batch.sample(jax.random.key(1)))
    assert draws.shape == (count, 2)
    assert np.all(np.abs(draws.mean(0) - mean) < 4 * std / np.sqrt(count))
    assert np.all(np.abs(draws.std(0) - std) < 4 * std / np.sqrt(2 * count))
    assert abs(np.corrcoef(draws.T)[0, 1]) < 4 / np.sqrt(count)
    for column, m, s in zip(draws.T, mean, std, strict=True):
        assert stats.kstest(column, stats.norm(m, s).cdf).pvalue > 1e-4


def test_samples_depend_on_the_key_alone():
    batch = gaussian(np.zeros((5, 2)), np.zeros(2))
    first = batch.sample(jax.random.key(3))
    np.testing.assert_array_equal(first, batch.sample(jax.random.key(3)))
    assert np.all(first != batch.sample(jax.random.key(4)))
