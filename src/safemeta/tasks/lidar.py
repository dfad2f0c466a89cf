"""The pseudo-lidar of Safety-Gymnasium."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def pseudo_lidar(
    forward: Float[Array, " objects"], left: Float[Array, " objects"], reach: float | None, bins: int = 16
) -> Float[Array, " bins"]:
    """Closeness of a class of objects per sector of the horizon, in [0, 1].

    `forward` and `left` (m) are object centres in the frame of the robot. An object at distance d and angle
    `(k + f) w`, with `w = 2 pi / bins` and `0 <= f < 1`, has strength `s = max(0, reach - d) / reach`. Bin k sees s,
    bin k + 1 sees `f s`, bin k - 1 sees `(1 - f) s` ("aliasing"), and each bin keeps its strongest object
    (Safety-Gymnasium 1.0, `_obs_lidar_pseudo`). Without a reach the strength is `exp(-d / m)`.

    In terms of the angle between an object and the middle of a bin, counted in bins, `|u| <= bins / 2`, the three
    cases are one trapezoid, `s clip(3/2 - |u|, 0, 1)`: no scatter, and continuous.
    """
    distance = jnp.sqrt(forward**2 + left**2)
    strength = jnp.exp(-distance) if reach is None else jnp.maximum(0.0, reach - distance) / reach
    angle = jnp.arctan2(left, forward) * (bins / (2 * jnp.pi))
    middle = jnp.arange(bins, dtype=angle.dtype) + 0.5
    apart = jnp.abs(angle[:, None] - middle)  # angle is within [-bins / 2, bins / 2]
    apart = jnp.minimum(apart, jnp.abs(bins - apart))
    return jnp.max(strength[:, None] * jnp.clip(1.5 - apart, 0.0, 1.0), axis=0)
