"""Returns and generalised advantages, for the reward and all costs at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def generalized_advantage(
    signal: Float[Array, "time *rest"],
    value: Float[Array, "time *rest"],
    next_value: Float[Array, "time *rest"],
    terminated: Bool[Array, " time"],
    truncated: Bool[Array, " time"],
    discount: float,
    smoothing: float,
) -> Float[Array, "time *rest"]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) of one row.

    `delta_t = x_t + discount (1 - terminated_t) V(s_{t+1}) - V(s_t)` and
    `A_t = delta_t + discount smoothing (1 - end_t) A_{t+1}`, where `end` is `terminated or truncated`: nothing
    is carried across the end of an episode, and only a true termination drops the bootstrap. `next_value` is the
    value of the observation that *followed* step t in its own episode. `rest` holds several signals at once.
    """
    extra = (1,) * (signal.ndim - 1)
    alive = (~terminated).astype(value.dtype).reshape(-1, *extra)
    carry_on = (~(terminated | truncated)).astype(value.dtype).reshape(-1, *extra)
    delta = signal + discount * alive * next_value - value

    def back(following, inputs):
        delta_t, carry_t = inputs
        advantage = delta_t + discount * smoothing * carry_t * following
        return advantage, advantage

    _, advantage = jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, carry_on), reverse=True)
    return advantage


def discounted_returns(
    signal: Float[Array, "time *rest"], end: Bool[Array, " time"], discount: float
) -> Float[Array, "time *rest"]:
    """Monte Carlo returns `G_t = x_t + discount (1 - end_t) G_{t+1}` of one row."""
    carry_on = (~end).astype(signal.dtype).reshape(-1, *(1,) * (signal.ndim - 1))

    def back(following, inputs):
        signal_t, carry_t = inputs
        total = signal_t + discount * carry_t * following
        return total, total

    _, returns = jax.lax.scan(back, jnp.zeros_like(signal[0]), (signal, carry_on), reverse=True)
    return returns
