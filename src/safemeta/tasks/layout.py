"""Random layouts without overlaps, by rejection, on all rows at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

AWAY = 1000.0  # m; where objects are that a task does not have: out of reach of everything
TRIES = 100  # places tried for one object before the layout is begun anew, as in Safety-Gymnasium
LAYOUTS = 2000  # layouts begun before giving up


def sample_layout(
    key: PRNGKeyArray,
    half_width: Float[Array, " objects"],
    keepout: Float[Array, " objects"],
    present: Bool[Array, " objects"],
    fixed: Float[Array, "fixed 2"],
    fixed_keepout: Float[Array, " fixed"],
) -> tuple[Float[Array, "objects 2"], Bool[Array, ""]]:
    """Centres (m) of objects in squares around the origin, and whether a layout was found.

    Objects are placed in their order. Each is drawn uniformly from its square of half width `half_width - keepout`
    until its distance to every object before it, and to every `fixed` point, is at least the sum of the two keepouts;
    after `TRIES` draws the whole layout is begun anew (Safety-Gymnasium 1.0). Objects not `present` are put
    `AWAY`.
    """
    count = keepout.shape[0]
    radii = jnp.concatenate([fixed_keepout, keepout])
    width = jnp.maximum(half_width - keepout, 0.0)
    placed_already = jnp.arange(fixed.shape[0] + count)

    def attempt(carry):
        key, _, _, attempts = carry
        key, draw_key = jax.random.split(key)
        draws = jax.random.uniform(draw_key, (count, TRIES, 2), width.dtype, -1.0, 1.0) * width[:, None, None]

        def put(carry, inputs):
            places, ok = carry
            index, candidates, radius, here = inputs
            apart = jnp.sqrt(jnp.sum((candidates[:, None] - places) ** 2, axis=-1))
            far = (apart >= radii + radius) | (placed_already >= fixed.shape[0] + index)
            free = jnp.all(far, axis=1)
            chosen = jnp.where(here, candidates[jnp.argmax(free)], AWAY)
            return (places.at[fixed.shape[0] + index].set(chosen), ok & (jnp.any(free) | ~here)), None

        start = jnp.concatenate([fixed, jnp.full((count, 2), AWAY, width.dtype)])
        inputs = (jnp.arange(count), draws, keepout, present)
        (places, ok), _ = jax.lax.scan(put, (start, jnp.asarray(True)), inputs)
        return key, places[fixed.shape[0] :], ok, attempts + 1

    def unfinished(carry):
        _, _, ok, attempts = carry
        return ~ok & (attempts < LAYOUTS)

    nothing = jnp.zeros((count, 2), width.dtype)
    _, places, ok, _ = jax.lax.while_loop(unfinished, attempt, (key, nothing, jnp.asarray(False), jnp.asarray(0)))
    return places, ok
