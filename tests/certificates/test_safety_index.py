"""The safety index: values by hand, clipped parameters, derivatives against finite differences, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.certificates import INDICES, RELEASED_BOX, ParameterBox, SafetyIndex


def clearances(*obstacles):
    return jnp.asarray(obstacles, float)


@pytest.mark.parametrize(
    ("name", "form", "expected"),  # d_min = 0.5 at d = 0.8, d' = -0.7
    [
        ("zero", "outside", 0.5 - 0.8),
        ("zero", "inside", 0.5 - 0.8),
        ("handcrafted", "outside", 0.3 + 0.25 - 0.64 + 0.7),
        ("handcrafted", "inside", 0.64 - 0.64 + 0.7),
        ("feasible", "outside", 0.04 + 0.25 - 0.64 + 0.7),
        ("initial", "inside", 0.3 + 0.5 - 0.8 + 0.7),
        ("synthesised", "outside", 0.0958 + 0.5**1.149 - 0.8**1.149 + 0.7821 * 0.7),
        ("synthesised", "inside", 0.5958**1.149 - 0.8**1.149 + 0.7821 * 0.7),
    ],
)
def test_values_by_hand(x64, name, form, expected):
    index = SafetyIndex.named(name, d_min=0.5, sigma_form=form)
    assert index.index(clearances((0.8, -0.7))) == pytest.approx(expected, abs=1e-6)


def test_every_named_index_has_the_numbers_of_the_table():
    for name, (sigma, k, n) in INDICES.items():
        index = SafetyIndex.named(name, d_min=0.5)
        np.testing.assert_allclose([index.sigma, index.k[0], index.n], [sigma, k, n], rtol=1e-6)
        assert index.k.shape == (1,)


def test_the_most_dangerous_obstacle_counts_and_it_need_not_be_the_nearest(x64):
    index = SafetyIndex.named("initial", d_min=0.5)
    near_but_leaving, far_but_closing_in = (0.6, 1.0), (1.5, -2.0)
    both = clearances(near_but_leaving, far_but_closing_in)
    assert index.index(both) == pytest.approx(0.8 - 1.5 + 2.0)
    assert index.index(both[:1]) == pytest.approx(0.8 - 0.6 - 1.0)
    # and each state has its own: at s the second, at s' the first
    following = clearances((0.55, 0.0), (1.5, 0.0))
    assert index.violation(both, following) == pytest.approx((0.8 - 0.55) - (0.8 - 1.5 + 2.0))


def test_derivatives_of_higher_order_are_combined(x64):
    index = SafetyIndex(0.1, [0.5, 0.25], 1.0, d_min=1.0)
    assert index.index(clearances((2.0, -1.0, 3.0))) == pytest.approx(0.1 + 1 - 2 + 0.5 - 0.75)
    batch = jnp.tile(clearances((2.0, -1.0, 3.0), (9.0, 0.0, 0.0)), (4, 3, 1, 1))
    assert index.index(batch).shape == (4, 3)


@pytest.mark.parametrize(
    ("energy", "following", "slack", "expected"),
    [
        (-0.5, -0.1, 0.0, -0.1),  # low stays low
        (-0.5, 0.2, 0.0, 0.2),  # low becomes high
        (0.4, 0.3, 0.0, -0.1),  # high, and falls
        (0.4, 0.3, 0.15, 0.05),  # but not by as much as is asked
        (0.2, 0.1, 0.15, 0.05),
        (0.1, 0.02, 0.3, 0.02),  # nobody need fall below zero
        (0.4, 0.4, 0.0, 0.0),
    ],
)
def test_violation_and_its_slack(x64, energy, following, slack, expected):
    index = SafetyIndex.named("zero", d_min=1.0)  # phi = 1 - d
    states = clearances((1 - energy, 0.3)), clearances((1 - following, -0.2))
    assert index.violation(*states, slack) == pytest.approx(expected, abs=1e-12)


def test_clipping_to_a_box_and_its_derivatives(x64):
    def clipped(sigma, k, n, box):
        return SafetyIndex(sigma, k, n, 0.5, box=box).clipped()

    outside, inside, border = (1.4, [0.2, 3.5], 0.05), (0.2, [0.6, 2.0], 1.5), (0.0, [0.5, 3.0], 2.0)
    for values, expected, slope in (
        (outside, (1.0, [0.5, 3.0], 0.1), 0.0),
        (inside, inside, 1.0),
        (border, border, 1.0),  # not 1/2: an index on the border can be trained away from it
    ):
        arrays = [jnp.asarray(value) for value in values]
        found = clipped(*arrays, RELEASED_BOX)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-15)
        slopes = jax.jacobian(lambda *p: jnp.concatenate([jnp.atleast_1d(x) for x in clipped(*p, RELEASED_BOX)]))
        np.testing.assert_array_equal(slopes(*arrays), [slope, 0, 0, 0])
        slopes = jax.grad(lambda sigma, k, n: clipped(sigma, k, n, RELEASED_BOX).k.sum(), argnums=1)
        np.testing.assert_array_equal(slopes(*arrays), [slope, slope])
    assert clipped(*outside, None).sigma == 1.4


def test_outside_the_box_an_index_is_that_of_the_border_and_does_not_learn(x64):
    index = SafetyIndex(1.5, [0.1], 3.0, 0.5, box=RELEASED_BOX)
    state = clearances((0.7, -0.4))
    assert index.index(state) == SafetyIndex(1.0, [0.5], 2.0, 0.5).index(state)
    slopes = jax.grad(lambda index: index.index(state))(index)
    assert all(not jnp.any(slope) for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize("form", ["outside", "inside"])
@pytest.mark.parametrize("slack", [0.0, 0.05])
def test_derivatives_of_the_violation_are_those_of_finite_differences(x64, form, slack):
    key = jax.random.key(0)
    d = jax.random.uniform(key, (2, 50, 3), minval=0.05, maxval=2)
    rate = jax.random.uniform(jax.random.fold_in(key, 1), (2, 50, 3), minval=-2, maxval=2)
    now, following = jnp.stack([d, rate], axis=-1)

    @jax.jit
    def violations(parameters):
        index = SafetyIndex(parameters[0], parameters[1:2], parameters[2], 0.5, form)
        return index.violation(now, following, slack)

    at, step = jnp.array([0.2, 0.9, 0.7]), 1e-6
    exact = jax.jit(jax.jacobian(violations))(at)
    differences = [(violations(at.at[i].add(step)) - violations(at.at[i].add(-step))) / (2 * step) for i in range(3)]
    np.testing.assert_allclose(exact, jnp.stack(differences, -1), atol=1e-8)
    before = SafetyIndex(at[0], at[1:2], at[2], 0.5, form).index(now) - slack
    assert {True, False} == set((before > 0).tolist())  # both branches were met


def test_all_derivatives_are_finite_at_the_centre_of_an_obstacle():
    @jax.jit
    @jax.value_and_grad
    def violation(both):
        index, now = both
        return index.violation(now, clearances((0.0, -1.0), (0.3, 0.2)))

    for n in (0.1, 0.5, 1.0):
        index = SafetyIndex(0.0, [1.0], n, 0.5)
        for distance in (0.0, 1e-30, 1e-8):
            found = violation((index, clearances((distance, -1.0), (0.3, 0.2))))
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
        assert index.index(clearances((0.0, 0.0))) == pytest.approx(0.5**n)  # 0^n is 0


def test_an_index_is_a_pytree_of_its_three_parameters():
    index = SafetyIndex.named("initial", d_min=0.5)
    assert len(jax.tree.leaves(index)) == 3
    many = eqx.filter_vmap(lambda sigma: SafetyIndex(sigma, [1.0], 1.0, 0.5))(jnp.linspace(0, 1, 5))
    found = eqx.filter_vmap(lambda index: index.index(clearances((0.5, 0.0))))(many)
    np.testing.assert_allclose(found, jnp.linspace(0, 1, 5), atol=1e-6)
    found = jax.jit(lambda index, state: index.index(state))(index, clearances((0.5, 0.0)))
    assert found == pytest.approx(0.3)


def test_what_is_refused():
    with pytest.raises(ValueError, match="did you mean 'synthesised'"):
        SafetyIndex.named("synthesized", d_min=0.5)
    with pytest.raises(ValueError, match=r"'zero' has k = 0\.0, outside the box"):
        SafetyIndex.named("zero", d_min=0.5, box=RELEASED_BOX)
    SafetyIndex.named("zero", d_min=0.5, box=None)
    with pytest.raises(ValueError, match="d_min must be positive"):
        SafetyIndex.named("zero", d_min=0.0)
    with pytest.raises(ValueError, match="k a vector"):
        SafetyIndex(0.0, [], 1.0, 0.5)
    with pytest.raises(ValueError, match="the box of n must be a range"):
        SafetyIndex(0.0, [1.0], 1.0, 0.5, box=ParameterBox(n=(2.0, 0.1)))
    index = SafetyIndex.named("feasible", d_min=0.5)
    with pytest.raises(
        ValueError, match=r"\[..., obstacles, 2\], the distance and 1 derivative; its shape is \(3, 3\)"
    ):
        index.index(jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="its shape is"):
        index.index(jnp.zeros((0, 2)))
    astray = eqx.tree_at(lambda index: index.sigma, index, jnp.zeros(2))  # construction would be refused by the tests
    with pytest.raises(ValueError, match="sigma and n must be scalars"):
        SafetyIndex.__check_init__(astray)
