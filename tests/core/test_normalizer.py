"""The running normaliser against NumPy on everything it has seen."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.core import Normalizer


@pytest.fixture
def observations():
    return jnp.asarray(np.random.default_rng(0).normal([3.0, -20.0, 0.0], [0.1, 5.0, 1.0], size=(400, 3)))


def test_statistics_are_those_of_numpy(observations):
    normalizer = Normalizer.create(3).merge(observations)
    assert normalizer.count == 400
    seen = np.asarray(observations, float)
    np.testing.assert_allclose(normalizer.mean, seen.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalizer.variance, seen.var(0, ddof=1), rtol=1e-4)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [200], [399], [10, 10, 300]])
def test_merging_in_pieces_equals_merging_all_at_once(observations, cuts):
    at_once = Normalizer.create(3).merge(observations)
    in_pieces = Normalizer.create(3)
    for piece in jnp.split(observations, np.array(cuts)):
        if len(piece):
            in_pieces = in_pieces.merge(piece)
    for ours, expected in zip(jax.tree.leaves(in_pieces), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_batch_axes_do_not_matter(observations):
    flat = Normalizer.create(3).merge(observations)
    batched = Normalizer.create(3).merge(observations.reshape(4, 10, 10, 3))
    assert eqx.tree_equal(flat, batched, rtol=1e-6)


def test_output_has_zero_mean_and_unit_variance(observations):
    scaled = Normalizer.create(3, clip=100.0).merge(observations)(observations)
    np.testing.assert_allclose(scaled.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0, ddof=1), 1.0, atol=1e-3)


def test_fresh_normalizer_is_the_identity_up_to_clipping():
    np.testing.assert_allclose(Normalizer.create(3)(jnp.array([0.0, -4.5, 7.0])), [0.0, -4.5, 5.0])


def test_one_observation_has_no_variance_yet():
    # Scaling by the spread of a single point would divide by zero.
    once = Normalizer.create(2).merge(jnp.array([[2.0, 3.0]]))
    np.testing.assert_allclose(once.variance, 1.0)
    np.testing.assert_allclose(once(jnp.array([2.5, 3.0])), [0.5, 0.0])


def test_a_constant_observation_stays_finite():
    constant = Normalizer.create(1).merge(jnp.full((10, 1), 9.81))
    assert np.all(np.abs(constant(jnp.array([9.81]))) <= 5.0)


def test_merge_leaves_the_old_statistics_alone(observations):
    old = Normalizer.create(3)
    old.merge(observations)
    assert old.count == 0


@pytest.mark.parametrize("garbage", [1e6, np.nan])
def test_padding_does_not_count(observations, garbage):
    valid = jnp.asarray(np.random.default_rng(1).random((4, 100)) < 0.6)
    batch = observations.reshape(4, 100, 3)
    padded = jnp.where(valid[..., None], batch, garbage)
    start = Normalizer.create(3).merge(observations[:50])
    ours, expected = start.merge(padded, valid), start.merge(batch[np.asarray(valid)])
    assert ours.count == expected.count == 50 + valid.sum()
    for found, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_batch_of_padding_changes_nothing(observations):
    for start in (Normalizer.create(3), Normalizer.create(3).merge(observations)):
        assert eqx.tree_equal(start.merge(observations, jnp.zeros(400, bool)), start)
