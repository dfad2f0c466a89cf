"""The safety index: an energy that is low where a state is safe and can be kept so (FAC-SIS; Ma et al., L4DC 2022).

    phi(s) = max over obstacles of  sigma + d_min^n - d^n - sum_j k_j d^(j)     (eq. 11; derivatives as in Remark 8)

d is the distance to an obstacle's centre (m), d^(j) its j-th derivative in time (negative: closing in), d_min the
distance that must be kept. Safe actions keep the energy low, or lower it: `phi(s') <= max(phi(s) - eta, 0)` (eq. 1).
"""

import difflib
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

SigmaForm = Literal["outside", "inside"]


class IndexParameters(NamedTuple):
    """What is tuned: sigma, one k per derivative of the distance, and the power n."""

    sigma: Float[Array, ""]
    k: Float[Array, " derivatives"]
    n: Float[Array, ""]


class ParameterBox(NamedTuple):
    """The closed range of each parameter; `k` is that of every derivative's factor.

    The released learner's, except that k may be 0, so that phi_0 is within.
    """

    sigma: tuple[float, float] = (0.0, 1.0)
    k: tuple[float, float] = (0.0, 3.0)
    n: tuple[float, float] = (0.1, 2.0)


RELEASED_BOX = ParameterBox(k=(0.5, 3.0))
DEFAULT_BOX = ParameterBox()

# (sigma, k, n). Table 2 of the paper; "initial" is where the released training script starts.
INDICES = {
    "zero": (0.0, 0.0, 1.0),
    "handcrafted": (0.3, 1.0, 2.0),
    "feasible": (0.04, 1.0, 2.0),
    "initial": (0.3, 1.0, 1.0),
    "synthesised": (0.0958, 0.7821, 1.149),
}


def _floats(value: object) -> Array:
    return value if isinstance(value, Array) else jnp.asarray(value, float)  # type: ignore[arg-type]


class SafetyIndex(eqx.Module):
    """`phi(s) = max_i sigma + d_min^n - d_i^n - sum_j k_j d_i^(j)` over obstacles i; trainable in sigma, k and n.

    `sigma_form="inside"` gives the released learner's `(sigma + d_min)^n` in place of the paper's `sigma + d_min^n`.
    The parameters are free; phi uses them clipped to `box` (None: as they are). Leaves of other shapes than `[]`,
    `[derivatives]`, `[]` come from `vmap` only.

    Raises ValueError unless d_min is positive, the form is known, k has at least one entry and the box's ends are in
    order.
    """

    sigma: Float[Array, ""] = eqx.field(converter=_floats)
    k: Float[Array, " derivatives"] = eqx.field(converter=_floats)
    n: Float[Array, ""] = eqx.field(converter=_floats)
    d_min: float = eqx.field(static=True, converter=float)  # m
    sigma_form: SigmaForm = eqx.field(static=True, default="outside")
    box: ParameterBox | None = eqx.field(static=True, default=DEFAULT_BOX)

    def __check_init__(self):
        if self.k.ndim != 1 or self.k.size == 0 or self.sigma.ndim or self.n.ndim:
            shapes = f"{self.sigma.shape}, {self.k.shape} and {self.n.shape}"
            raise ValueError(f"sigma and n must be scalars and k a vector with one entry per derivative, not {shapes}")
        if not self.d_min > 0:
            raise ValueError(f"d_min must be positive, not {self.d_min}")
        if self.sigma_form not in get_args(SigmaForm):
            raise ValueError(f"sigma_form must be one of {', '.join(get_args(SigmaForm))}, not {self.sigma_form!r}")
        for name, (low, high) in (self.box or DEFAULT_BOX)._asdict().items():
            if not low <= high:
                raise ValueError(f"the box of {name} must be a range, not ({low}, {high})")

    @staticmethod
    def named(
        name: str, d_min: float, *, sigma_form: SigmaForm = "outside", box: ParameterBox | None = DEFAULT_BOX
    ) -> "SafetyIndex":
        """An index of Table 2 (`zero`, `handcrafted`, `feasible`, `synthesised`), or training's `initial` one.

        Raises ValueError on an unknown name (with the nearest match), and where the box does not hold the index.
        """
        if name not in INDICES:
            near = difflib.get_close_matches(name, INDICES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(INDICES)}"
            raise ValueError(f"unknown safety index {name!r}; {hint}")
        sigma, k, n = INDICES[name]
        if box is not None:
            for symbol, value in (("sigma", sigma), ("k", k), ("n", n)):
                low, high = getattr(box, symbol)
                if not low <= value <= high:
                    raise ValueError(f"the index {name!r} has {symbol} = {value}, outside the box ({low}, {high})")
        return SafetyIndex(sigma, [k], n, d_min, sigma_form, box)  # type: ignore[arg-type]

    def clipped(self) -> IndexParameters:
        """The parameters within the box.

        Derivatives are those of a plain clip: one inside the box and on its border, zero outside. A parameter outside
        is therefore never brought back by training.
        """
        if self.box is None:
            return IndexParameters(self.sigma, self.k, self.n)
        return IndexParameters(*(_clip(getattr(self, name), *span) for name, span in self.box._asdict().items()))

    def index(self, clearance: Float[Array, "*batch obstacles signals"]) -> Float[Array, "*batch"]:
        """The energy phi of a state, given (d, d', d'', ...) of each obstacle in m, m / s, m / s^2, ...

        Distances are zero or more. All derivatives by the parameters are finite, at d = 0 too. Where obstacles tie,
        the derivative is the mean of theirs.

        Raises ValueError unless the last axis holds the distance and as many derivatives as k has entries.
        """
        if clearance.ndim < 2 or clearance.shape[-1] != 1 + self.k.size or clearance.shape[-2] == 0:
            derivatives = f"{self.k.size} derivative{'s' if self.k.size > 1 else ''}"
            raise ValueError(
                f"clearance must be [..., obstacles, {1 + self.k.size}], the distance and {derivatives}; "
                f"its shape is {clearance.shape}"
            )
        sigma, k, n = self.clipped()
        if self.sigma_form == "inside":
            threshold = _power(sigma + self.d_min, n)
        else:
            threshold = sigma + _power(jnp.asarray(self.d_min, n.dtype), n)
        energy = threshold - _power(clearance[..., 0], n) - jnp.sum(k * clearance[..., 1:], axis=-1)
        return jnp.max(energy, axis=-1)

    def violation(
        self,
        clearance: Float[Array, "*#batch obstacles signals"],
        following: Float[Array, "*#batch obstacles signals"],
        slack: float | Float[Array, ""] = 0.0,
    ) -> Float[Array, "*#batch"]:
        """`Delta = phi(s') - max(phi(s) - eta, 0)` of a step from s to s' (eq. 1 and 3), eta the slack.

        Positive: the step broke the safe-action constraint. The paper asks for `Delta < 0`; here `Delta = 0` will do,
        as the energy of a state that does not move stays the same. Batch axes of both states are broadcast.
        """
        before = self.index(clearance) - slack
        return self.index(following) - jnp.where(before > 0, before, 0)  # `maximum` would have half a slope at 0


def _clip(value: Array, low: float, high: float) -> Array:
    """Like `jnp.clip`, whose derivative on the border would be 1/2."""
    return jnp.where(value < low, low, jnp.where(value > high, high, value))


def _power(base: Array, exponent: Array) -> Array:
    """`base^exponent` for a base of zero or more, with derivatives 0 at base 0, where `n base^(n - 1)` has none."""
    positive = base > 0
    return jnp.where(positive, jnp.where(positive, base, 1) ** exponent, 0)
