"""Advantages as quadratics in the action (dual-method paper, E.2.1), fitted to one batch."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from safemeta.algorithms.surrogate import Samples
from safemeta.nets import MLP, GaussianPolicy
from safemeta.solvers import QuadraticAdvantage


def fit_quadratic_advantages(
    config: Any, policy: GaussianPolicy, rows: Samples, key: PRNGKeyArray
) -> tuple[QuadraticAdvantage, QuadraticAdvantage]:
    """Networks for slope and curvature of the reward's and each cost's advantage, evaluated on the batch's states.

    With `x = action - mean`, each advantage is modelled as `slope . x - 1/2 x . curvature x + offset`, where the offset
    `1/2 curvature . std^2` makes its mean under the policy zero, as an advantage's is. Least squares by Adam;
    costs carry a leading axis.
    """
    distribution = jax.lax.stop_gradient(policy(rows.observation))
    std = jnp.exp(distribution.log_std)
    noise = (rows.action - distribution.mean) / std  # actions in units of the deviation: all inputs of order one
    observed = jnp.concatenate([rows.advantage[:, None], rows.cost_advantages], axis=1)
    scale = jnp.std(observed, axis=0) + 1e-8
    signals, size = observed.shape[1], rows.action.shape[1]
    init_key, batch_key = jax.random.split(key)
    network = MLP.create(rows.observation.shape[1], 2 * signals * size, (64,), init_key, output_gain=0.01)

    def model(network: MLP, chosen: Any) -> tuple[Array, Array]:
        output = network(policy.normalizer(rows.observation[chosen])).reshape(-1, signals, 2, size)
        return output[:, :, 0], output[:, :, 1]

    def loss(network: MLP, chosen: Array) -> Array:
        slope, curvature = model(network, chosen)
        x = noise[chosen][:, None]
        predicted = jnp.sum(slope * x - curvature * (x**2 - 1) / 2, axis=-1)
        return jnp.mean((predicted - observed[chosen] / scale) ** 2)

    optimizer = optax.adam(3e-3)
    chosen = jax.random.randint(batch_key, (2 * config.fit_steps, config.minibatch), 0, observed.shape[0])
    arrays, static = eqx.partition(network, eqx.is_array)

    def advance(carry, picked):
        arrays, moments = carry
        gradient = jax.grad(lambda a: loss(eqx.combine(a, static), picked))(arrays)
        updates, moments = optimizer.update(gradient, moments)
        return (eqx.apply_updates(arrays, updates), moments), None

    (arrays, _), _ = jax.lax.scan(advance, (arrays, optimizer.init(arrays)), chosen)
    slope, curvature = model(eqx.combine(arrays, static), slice(None))
    slope = jnp.moveaxis(slope, 1, 0) * scale[:, None, None] / std
    curvature = jnp.moveaxis(curvature, 1, 0) * scale[:, None, None] / std**2
    whole = QuadraticAdvantage(jnp.sum(curvature * std**2, axis=-1) / 2, slope, curvature)
    return jax.tree.map(lambda leaf: leaf[0], whole), jax.tree.map(lambda leaf: leaf[1:], whole)
