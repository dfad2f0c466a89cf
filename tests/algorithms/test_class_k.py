"""Class-K functions: what makes them one, and which violations they let decay how fast."""

import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.algorithms.class_k import SHAPES, ClassK


@pytest.mark.parametrize("shape", SHAPES)
def test_increasing_odd_and_zero_at_zero(shape):
    alpha = ClassK(shape, rate=0.7, scale=2.0)
    values = jnp.linspace(-4, 4, 41)
    found = np.asarray(alpha(values))
    assert np.all(np.diff(found) > 0)
    np.testing.assert_allclose(found, -found[::-1], atol=1e-5)
    assert alpha(jnp.zeros(())) == 0


def test_values_by_hand():
    assert ClassK("linear", 0.5, 3.0)(jnp.array(4.0)) == pytest.approx(2.0)
    assert ClassK("cubic", 0.5, 2.0)(jnp.array(4.0)) == pytest.approx(0.5 * 2 * 8)
    assert ClassK("saturating", 0.5, 2.0)(jnp.array(1e3)) == pytest.approx(1.0)


def test_what_makes_no_sense_is_refused():
    for settings in ({"rate": 0.0}, {"scale": float("nan")}):
        with pytest.raises(ValueError, match="positive"):
            ClassK("linear", **settings)
