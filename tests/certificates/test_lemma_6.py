"""Lemma 6 and Theorem 7 of FAC-SIS on finite worlds, by enumerating policies: what holds, and what it needs.

For an index phi let (pi*, lambda*) be a saddle point of `L'(pi, lambda) = E_s[-v_pi(s) + lambda(s) Delta(s, pi(s))]`
with lambda in [0, lambda_max]. Then `L'(pi*, lambda*, phi) = lambda_max J(phi) + E[-v_pi*]`, `J = E[max(Delta, 0)]`.
The paper calls the last term a constant in phi. These tests pin down when one may say so:

- pi* must be deterministic. A mixed policy may be safe on average, with J > 0 where lambda* < lambda_max.
- The constraint must be closed (`Delta <= 0`): a state whose best action has Delta = 0 is infeasible by the paper's
  strict "<", and its lambda* is anything.
- pi* moves with phi, so that the term is constant only while it does not. Derivatives agree all the same (the envelope
  theorem), wherever pi* does not switch; minimisers of J and L' over all phi need not.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from safemeta.certificates import SafetyIndex

STATES, ACTIONS, DISCOUNT, MOST = 5, 3, 0.9, 300.0
POLICIES = np.array(list(itertools.product(range(ACTIONS), repeat=STATES)))
EACH = np.arange(STATES)


@jax.jit
def violations(index, clearance, following):
    """Delta of every state and action."""
    return index.violation(clearance[:, None], clearance[following])


@jax.jit
@jax.value_and_grad
def energy_increase(index, clearance, following, weight, policy):
    return jnp.sum(weight * jnp.maximum(violations(index, clearance, following)[EACH, policy], 0))


class World:
    """Random transitions, rewards and clearances; in some states one can stay, from others one is carried away."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.following = rng.integers(STATES, size=(STATES, ACTIONS))
        stays = rng.random(STATES) < 0.5
        self.following[stays, 0] = EACH[stays]
        self.reward = rng.random((STATES, ACTIONS))
        distance, rate = rng.uniform(0.2, 1.0, STATES), rng.uniform(-1.0, 1.0, STATES)
        self.clearance = jnp.asarray(np.stack([distance, rate], axis=-1))[:, None]
        self.weight = rng.dirichlet(np.ones(STATES))
        flow = np.eye(STATES) - DISCOUNT * np.eye(STATES)[self.following[EACH, POLICIES]]
        self.values = np.linalg.solve(flow, self.reward[EACH, POLICIES][..., None])[..., 0]
        self.loss = -self.values @ self.weight  # E[-v_pi] of every policy

    def violations(self, index):
        return violations(index, self.clearance, self.following)

    def energy_increase(self, index, policy):
        """J(phi) under a policy, and its derivatives by sigma, k and n."""
        return energy_increase(index, self.clearance, self.following, self.weight, policy)

    def saddle(self, index):
        """(L', policy, multipliers) of a saddle point in deterministic policies, or None."""
        delta = np.asarray(self.violations(index))
        taken = delta[EACH, POLICIES]
        for policy, own, loss in zip(POLICIES, taken, self.loss, strict=True):
            # the best lambda against this policy: all, nothing, or anything where Delta = 0
            choices = [(MOST,) if x > 0 else (0.0,) if x < 0 else (0.0, MOST / 2, MOST) for x in own]
            for multipliers in itertools.product(*choices):
                weighted = self.weight * multipliers
                value = loss + own @ weighted
                if value <= np.min(self.loss + taken @ weighted) + 1e-10:
                    return value, policy, np.asarray(multipliers)
        return None


def index_of(sigma, k, n):
    return SafetyIndex(sigma, jnp.atleast_1d(jnp.asarray(k)), n, d_min=0.5)


def test_the_identity_and_its_derivatives(x64):
    found = binding = 0
    at, step = np.array([0.2, 0.8, 1.3]), 1e-6
    for seed in range(90):
        world = World(seed)
        delta = np.asarray(world.violations(index_of(*at)))
        empty = delta.min(1) > 0
        saddle = world.saddle(index_of(*at)) if empty.any() else None
        if saddle is None:
            continue
        value, policy, multipliers = saddle
        found += 1
        # Lemma 5: where a safe action exists the term vanishes, elsewhere the multiplier is at its bound
        np.testing.assert_allclose((multipliers * delta[EACH, policy])[~empty], 0, atol=1e-12)
        np.testing.assert_array_equal(multipliers[empty], MOST)
        binding += bool((multipliers[~empty] > 0).any())
        own_loss = world.loss[(policy == POLICIES).all(1)].item()
        increase, slopes = world.energy_increase(index_of(*at), policy)
        slopes = [float(slope) for slope in (slopes.sigma, slopes.k[0], slopes.n)]
        assert increase > 0
        assert value == pytest.approx(MOST * float(increase) + own_loss, rel=1e-12)

        for i in range(3):
            sides = [world.saddle(index_of(*(at + change * np.eye(3)[i]))) for change in (step, -step)]
            assert all(side is not None and (side[1] == policy).all() for side in sides)
            difference = (sides[0][0] - sides[1][0]) / (2 * step)
            assert difference == pytest.approx(MOST * slopes[i], rel=1e-5, abs=1e-5)
    assert found >= 8
    assert binding >= 3  # a constraint that is kept at a price: lambda* strictly positive and Delta = 0


def test_the_constant_changes_where_the_optimal_policy_does(x64):
    changes = 0
    for seed in range(30):
        world = World(seed)
        seen = {}
        for sigma in (0.0, 0.3, 0.6, 1.0):
            index = index_of(sigma, 0.8, 1.3)
            saddle = world.saddle(index)
            if saddle is not None:
                value, policy, _ = saddle
                constant = value - MOST * float(world.energy_increase(index, policy)[0])
                seen.setdefault(tuple(policy), []).append(constant)
        for constants in seen.values():
            np.testing.assert_allclose(constants, constants[0], atol=1e-9)
        changes += len({round(constants[0], 6) for constants in seen.values()}) > 1
    assert changes >= 2


def test_a_mixed_policy_breaks_the_identity(x64):
    index = SafetyIndex.named("zero", d_min=0.5)
    now = jnp.array([[0.5, 0.0]])  # phi = 0
    following = jnp.array([[[0.2, 0.0]], [[0.8, 0.0]]])  # tempting: Delta = 0.3; dull: Delta = -0.3
    delta, reward = np.asarray(index.violation(now[None], following)), np.array([2.0, 1.0])
    share = np.linspace(0, 1, 1001)  # of the tempting action
    gain, excess = reward[0] * share + reward[1] * (1 - share), delta[0] * share + delta[1] * (1 - share)
    multipliers = np.linspace(0, 10, 601)
    lagrangian = -gain[:, None] + multipliers * excess[:, None]
    best = lagrangian.min(0).argmax()
    assert lagrangian.min(0).max() == pytest.approx(lagrangian.max(1).min(), abs=1e-6)  # a saddle point
    chosen = lagrangian.max(1).argmin()
    assert share[chosen] == pytest.approx(0.5)
    assert multipliers[best] == pytest.approx(1 / 0.6)  # well below its bound, though phi rises half the time
    increase = share[chosen] * max(delta[0], 0) + (1 - share[chosen]) * max(delta[1], 0)
    identity = 10 * increase - gain[chosen]
    assert identity > lagrangian[chosen, best] + 1
