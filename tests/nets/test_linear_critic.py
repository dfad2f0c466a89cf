"""The linear-feature baseline against numpy's least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.nets import LinearCritic

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261101)


def ridge(x: np.ndarray, y: np.ndarray, regularization: float) -> np.ndarray:
    """`argmin |x w - y|^2 + n regularization |w|^2`, as an ordinary least-squares problem with extra rows."""
    extra = np.sqrt(len(x) * regularization) * np.eye(x.shape[1])
    rows, targets = np.concatenate([x, extra]), np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
    return np.linalg.lstsq(rows, targets, rcond=None)[0]


def test_features_by_hand():
    inputs = jnp.array([[2.0, -3.0], [0.5, 1.0]])  # two steps of two inputs
    expected = [
        [2.0, -3.0, 4.0, 9.0, 0.0, 0.0, 0.0, 1.0],
        [0.5, 1.0, 0.25, 1.0, 0.25, 0.0625, 0.015625, 1.0],
    ]
    np.testing.assert_allclose(LinearCritic.features(inputs, 4), expected, rtol=1e-14)


def test_features_can_start_later_and_take_any_batch(rng):
    inputs = rng.normal(size=(3, 5, 6, 2))
    whole = LinearCritic.features(jnp.asarray(inputs), 10)
    assert whole.shape == (3, 5, 6, 8)
    later = LinearCritic.features(jnp.asarray(inputs[..., 4:, :]), 10, first_step=4)
    np.testing.assert_allclose(later, whole[..., 4:, :], rtol=1e-14)


@pytest.mark.parametrize("regularization", [1e-5, 0.3])
def test_fit_is_ridge_regression_on_the_valid_rows(rng, regularization):
    x, y = rng.normal(size=(6, 10, 7)), rng.normal(size=(6, 10, 3))
    valid = rng.random((6, 10)) < 0.7
    fitted = LinearCritic.fit(jnp.asarray(x), jnp.asarray(y), jnp.asarray(valid), regularization)
    np.testing.assert_allclose(fitted.weight, ridge(x[valid], y[valid], regularization), rtol=1e-9, atol=1e-12)


def test_rows_that_are_not_valid_do_not_matter_however_wild(rng):
    x, y = rng.normal(size=(6, 10, 7)), rng.normal(size=(6, 10, 3))
    valid = rng.random((6, 10)) < 0.7
    clean = LinearCritic.fit(jnp.asarray(x), jnp.asarray(y), jnp.asarray(valid))
    x[~valid], y[~valid] = 1e6, -1e6
    np.testing.assert_array_equal(
        LinearCritic.fit(jnp.asarray(x), jnp.asarray(y), jnp.asarray(valid)).weight, clean.weight
    )


def test_a_value_within_its_span_is_found(rng):
    inputs = jnp.asarray(rng.normal(size=(8, 20, 3)))
    features = LinearCritic.features(inputs, 20)
    weight = jnp.asarray(rng.normal(size=(features.shape[-1], 2)))
    values = features @ weight
    fitted = LinearCritic.fit(features, values, jnp.ones((8, 20), bool), 1e-12)
    np.testing.assert_allclose(fitted(features), values, atol=1e-6)


def test_a_fresh_one_is_zero_and_has_the_shape_of_a_fitted_one(rng):
    fresh = LinearCritic.create(3, 2)
    features = LinearCritic.features(jnp.asarray(rng.normal(size=(4, 6, 3))), 6)
    np.testing.assert_array_equal(fresh(features), np.zeros((4, 6, 2)))
    fitted = LinearCritic.fit(features, jnp.ones((4, 6, 2)), jnp.ones((4, 6), bool))
    assert fitted.weight.shape == fresh.weight.shape


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_single_precision_survives_more_features_than_rows(rng, scale):
    """As on Humanoid before its observations are normalised: some are zero, some the same, some enormous."""
    inputs = rng.normal(size=(4, 30, 200)) * scale ** rng.uniform(-1, 1, 200)
    inputs[..., 50:100] = 0
    inputs[..., 100:150] = inputs[..., :50]
    targets = np.tanh(inputs[..., :1]) + 0.1 * rng.normal(size=(4, 30, 2))
    with jax.enable_x64(False):
        features = LinearCritic.features(jnp.asarray(inputs, jnp.float32), 30)
        assert features.dtype == jnp.float32
        fitted = LinearCritic.fit(features, jnp.asarray(targets, jnp.float32), jnp.ones((4, 30), bool))
        values = np.asarray(fitted(features))
    assert np.isfinite(values).all()
    assert np.abs(values - targets).max() < 0.1  # more weights than rows: what was fitted is met
