"""Advantages as quadratics in the action (dual-method paper, E.2.1), fitted to one batch."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from safemeta.algorithms.dual_config import Config
from safemeta.algorithms.surrogate import Samples
from safemeta.nets import MLP, GaussianPolicy
from safemeta.solvers import QuadraticAdvantage


def fit_quadratic_advantages(
    config: Config, policy: GaussianPolicy, rows: Samples, discount: float, key: PRNGKeyArray
) -> tuple[QuadraticAdvantage, QuadraticAdvantage]:
    """Networks for slope and curvature of the reward's and each cost's advantage, evaluated on the batch's states.

    With `x = action - mean`, each advantage is modelled as `slope . x - 1/2 x . curvature x + offset`, where the offset
    `1/2 curvature . std^2` makes its mean under the policy zero, as an advantage's is. Least squares by Adam;
    costs carry a leading axis.

    `pi^u` has precision `1 / std^2 + h / eta(u)`, h the curvature of `A - sum_i u_i A_ci`, and exists only where that
    is positive. A fitted h is noisy, and one state of thousands would be enough. So the reward's curvature is at least
    `-lambda / 2` and each cost's at most `(1 - discount) lambda_ci / 2`, in units of the deviation: then h is at least
    `-eta(u) / 2` whatever the multipliers are, and no variance more than doubles.
    """
    distribution = jax.lax.stop_gradient(policy(rows.observation))
    std = jnp.exp(distribution.log_std)
    noise = (rows.action - distribution.mean) / std  # actions in units of the deviation: all inputs of order one
    observed = jnp.concatenate([rows.advantage[:, None], rows.cost_advantages], axis=1)
    share = rows.valid / jnp.sum(rows.valid)
    scale = jnp.sqrt(jnp.maximum(share @ observed**2 - (share @ observed) ** 2, 0)) + 1e-8
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
        return jnp.mean(((predicted - observed[chosen] / scale) * rows.valid[chosen, None]) ** 2)

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
    slope, curvature = (jnp.moveaxis(part, 1, 0) * scale[:, None, None] for part in (slope, curvature))
    least = jnp.full(signals, -jnp.inf).at[0].set(-config.kl_weight / 2)
    most = jnp.full(signals, (1 - discount) * config.cost_kl_weight / 2).at[0].set(jnp.inf)
    curvature = jnp.clip(curvature, least[:, None, None], most[:, None, None])
    whole = QuadraticAdvantage(jnp.sum(curvature, axis=-1) / 2, slope / std, curvature / std**2)
    return jax.tree.map(lambda leaf: leaf[0], whole), jax.tree.map(lambda leaf: leaf[1:], whole)
