"""The linear-feature baseline that is usual in meta-RL (Duan et al. 2016): fitted in closed form."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from safemeta.core import solve_without_pivots


class LinearCritic(eqx.Module):
    """`V(s, t) = w . [s, s^2, tau, tau^2, tau^3, 1]` with `tau = t / horizon`, one column of `w` per signal.

    `s` is the normalised observation. The state has to say the time, so values depend on the step.
    """

    weight: Float[Array, "features signals"]

    @staticmethod
    def create(inputs: int, signals: int) -> "LinearCritic":
        """All weights zero."""
        return LinearCritic(jnp.zeros((2 * inputs + 4, signals)))

    @staticmethod
    def features(
        inputs: Float[Array, "*batch time inputs"], horizon: int, first_step: int = 0
    ) -> Float[Array, "*batch time features"]:
        """What values are linear in, without weights."""
        steps = (first_step + jnp.arange(inputs.shape[-2], dtype=inputs.dtype)) / horizon
        clock = jnp.stack([steps, steps**2, steps**3, jnp.ones_like(steps)], -1)
        clock = jnp.broadcast_to(clock, (*inputs.shape[:-1], 4))
        return jnp.concatenate([inputs, inputs**2, clock], -1)

    @staticmethod
    def fit(
        features: Float[Array, "*batch features"],
        targets: Float[Array, "*batch signals"],
        valid: Bool[Array, "*batch"],
        regularization: float = 1e-5,
    ) -> "LinearCritic":
        """Ridge regression on the valid rows: `(X'X + n regularization I) w = X'y`.

        To each entry of the diagonal its own size times the number of features and the precision of the numbers is
        added. It is what rounding may take away: with more features than rows (Humanoid has 756) single precision else
        meets pivots of zero, and every value is NaN.
        """
        x = features.reshape(-1, features.shape[-1])
        y = targets.reshape(-1, targets.shape[-1])
        mask = valid.reshape(-1, 1).astype(x.dtype)
        gram = (x * mask).T @ x
        rounding = x.shape[1] * jnp.finfo(x.dtype).eps * jnp.diagonal(gram)
        gram = gram + jnp.diag(regularization * jnp.sum(mask) + rounding)
        return LinearCritic(solve_without_pivots(gram, (x * mask).T @ (y * mask)))

    def __call__(self, features: Float[Array, "*batch features"]) -> Float[Array, "*batch signals"]:
        return features @ self.weight
