"""`mesh-like`: a stand-in for MeSh, the baseline of MetaL's paper that learns to scale and offset the shaped reward.

MeSh is defined in an appendix that is lost; known is that it scales and offsets the shaped reward by outputs of meta-
parameters, which follow an outer loss. This is one way to do that, chosen here, and no evidence about MeSh itself:
`r~ = (1 + tanh u) (R - lambda C) + 0.1 tanh v` with `(u, v) = MLP(R, lambda C)`. The multipliers follow past episodes
as in `rc-d4pg`; the critic's step is made on `r~`, and the MLP descends the loss of the critic that results on other
data, at the plain `R - lambda C`. (At `r~`, a scale of 0 would be the best.)
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.d4pg import (
    ITERATIONS,
    Algorithm,
    State,
    critic_loss,
    critic_step,
    drawn_excess,
    multiplier_step,
)
from safemeta.algorithms.d4pg_config import FAST, FAST_MULTIPLIER_RATE
from safemeta.algorithms.descent import descend
from safemeta.algorithms.metal import LookAhead, MetaConfig
from safemeta.algorithms.n_step import MultiStepBatch
from safemeta.algorithms.off_policy import LOSSES
from safemeta.algorithms.settings import layers
from safemeta.nets import MLP

__all__ = ["ITERATIONS", "PRESETS", "Config", "MeshLike", "MeshLikeLearner", "shaped"]

LARGEST_OFFSET = 0.1


@dataclass(frozen=True)
class Config(MetaConfig):
    """Settings of `mesh-like`; all chosen."""

    shaping_hidden: tuple[int, ...] = (32, 32)  # tanh layers of the MLP that shapes rewards

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        layers(self, "shaping_hidden")


PRESETS = {"fast": Config(**FAST, multiplier_rate=FAST_MULTIPLIER_RATE)}


def shaped(
    shaping: MLP, reward: Float[Array, " batch"], price: Float[Array, " batch"]
) -> tuple[Float[Array, " batch"], Float[Array, " batch"], Float[Array, " batch"]]:
    """`r~` of sums of several steps, its scale and its offset; `price` is `lambda C`."""
    u, v = shaping(jnp.stack([reward, price], axis=-1)).T
    scale, offset = 1 + jnp.tanh(u), LARGEST_OFFSET * jnp.tanh(v)
    return scale * (reward - price) + offset, scale, offset


@dataclass(frozen=True)
class MeshLikeLearner(LookAhead):
    """See the module's docstring."""

    config: Config

    def init(self, key: PRNGKeyArray) -> State:
        """The last layer is zero at first: rewards are then as they are in `rc-d4pg`."""
        shaping = MLP.create(2, 2, self.config.shaping_hidden, jax.random.fold_in(key, 1), output_gain=0.0)
        return eqx.tree_at(
            lambda s: (s.shaping, s.meta_optimizer),
            super().init(key),
            (shaping, self.meta.init(shaping)),  # pyright: ignore[reportArgumentType]
            is_leaf=lambda leaf: leaf is None,
        )

    def appraise(self, state: State, batch: MultiStepBatch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        config = self.config
        assert state.shaping is not None
        learned_from, judged_on = self.parts(state, batch)
        multiplier = multiplier_step(state.multiplier, config.multiplier_rate, drawn_excess(state, key))
        free = jnp.zeros_like(multiplier)  # what is shaped has its price already

        def look_ahead(shaping: MLP) -> tuple[Array, tuple]:
            seen = learned_from.batch
            reward, scale, offset = shaped(shaping, seen.reward, seen.costs @ multiplier)
            step = critic_step(config, state, free, replace(learned_from, batch=replace(seen, reward=reward)))
            loss, fit = critic_loss(self.ahead(state, step), multiplier, judged_on, config.categories)
            return loss, (step, fit.losses, {"scale": seen.mean(scale), "offset": seen.mean(offset)})

        (loss, (step, losses, shape)), gradient = eqx.filter_value_and_grad(look_ahead, has_aux=True)(state.shaping)
        shaping, optimizer = descend(self.meta, gradient, state.meta_optimizer, state.shaping)
        state = eqx.tree_at(
            lambda s: (s.critic, s.critic_optimizer, s.multiplier, s.shaping, s.meta_optimizer),
            state,
            (step.critic, step.optimizer, multiplier, shaping, optimizer),
        )
        losses = jnp.concatenate([losses, step.metrics[LOSSES]])
        return state, step.metrics | shape | {"outer_loss": loss, LOSSES: losses}


class MeshLike(Algorithm):
    """`mesh-like`: learned multipliers, and a learned scale and offset of what they shape."""

    learner = MeshLikeLearner
    settings = Config
