"""MetaL (Calian, Mankowitz et al., ICLR 2021): RC-D4PG whose multiplier's learning rate is learned by a meta-gradient.

One iteration (Algorithm 1): `lambda' = max(0, lambda - alpha_1 exp(alpha_lambda) (beta - J_C))`; the critic's step at
the price lambda' on one part of a replayed batch; then `alpha_lambda` descends the critic's loss on the other part,
`L(theta_c'(alpha_lambda), lambda'(alpha_lambda))`. Theorem 1 is its derivative for a scalar critic and one transition;
here it is taken by automatic differentiation of the very steps that were made, through the critic's optimizer, the
projection of the target distribution and the multiplier. Each cost has a multiplier and a rate of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.d4pg import (
    ITERATIONS,
    Algorithm,
    ConstrainedLearner,
    CriticStep,
    Evidence,
    State,
    critic_loss,
    critic_step,
    drawn_excess,
    evidence,
    multiplier_step,
)
from safemeta.algorithms.d4pg_config import FAST, FAST_MULTIPLIER_RATE, ConstrainedConfig
from safemeta.algorithms.n_step import MultiStepBatch
from safemeta.algorithms.off_policy import LOSSES
from safemeta.algorithms.settings import one_of, positive
from safemeta.nets import CategoricalValue

__all__ = ["ITERATIONS", "PRESETS", "Config", "MetaL", "MetaLearner", "meta_gradient"]

OuterLoss = Literal["critic", "actor", "both"]
InnerStep = Literal["adam", "sgd"]
RATES: dict[str, Callable[[float], optax.GradientTransformation]] = {"adam": optax.adam, "sgd": optax.sgd}
LOG_RATE_RANGE = (-10.0, 5.0)  # of alpha_lambda, so that exp stays finite; not in the paper


@dataclass(frozen=True)
class MetaConfig(ConstrainedConfig):
    """Settings of learners whose meta-parameters look one step of the critic ahead; all chosen."""

    meta_rate: float = 1e-3  # of the meta-optimizer
    meta_optimizer: Literal["adam", "sgd"] = "adam"  # sgd: the paper's update
    inner_step: InnerStep = "adam"  # what is differentiated; sgd: a step of plain SGD in its place (Theorem 1)
    validation_share: float = 0.5  # of a batch: held out from the inner step

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        positive(self, "meta_rate")
        one_of(self, "meta_optimizer", tuple(RATES))
        one_of(self, "inner_step", get_args(InnerStep))
        if not 0 < self.held_out < self.batch:
            raise ValueError(
                f"validation_share must leave part of a batch of {self.batch} on either side, not"
                f" {self.validation_share}."
            )

    @property
    def held_out(self) -> int:
        """Transitions of a batch that the outer loss is evaluated on."""
        return round(self.validation_share * self.batch)


@dataclass(frozen=True)
class Config(MetaConfig):
    """Settings of `metal`; the paper's own are in an appendix that is lost, and all of these were chosen."""

    initial_log_rate: float = 0.0  # alpha_lambda: at 0 the rate is `multiplier_rate`, as in `rc-d4pg`
    outer_loss: OuterLoss = "critic"  # what the meta-gradient lowers: the critic's loss, the policy's, or both

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        one_of(self, "outer_loss", get_args(OuterLoss))
        low, high = LOG_RATE_RANGE
        if not low <= self.initial_log_rate <= high:
            raise ValueError(f"initial_log_rate must lie between {low:g} and {high:g}, not {self.initial_log_rate}.")


PRESETS = {"fast": Config(**FAST, multiplier_rate=FAST_MULTIPLIER_RATE)}

Inner = Callable[[Float[Array, " costs"]], tuple[Float[Array, " costs"], Any, Any]]
Outer = Callable[[Any, Float[Array, " costs"]], tuple[Float[Array, ""], Any]]


def meta_gradient(
    log_rate: Float[Array, " costs"], inner: Inner, outer: Outer
) -> tuple[Float[Array, " costs"], Float[Array, ""], Float[Array, " costs"], Any]:
    """`d outer(theta'(eta), lambda'(eta)) / d eta`, the outer loss, lambda', and what else either step gave.

    `inner(eta)` gives lambda', theta' and anything else, `outer` the loss and anything else. In forward mode: there is
    one number per cost to differentiate in, and nothing of the inner step need be kept.
    """

    def look_ahead(eta: Array) -> tuple[Array, Any]:
        multiplier, critic, rest = inner(eta)
        loss, more = outer(critic, multiplier)
        return loss, (loss, multiplier, (rest, more))

    # One after the other: jacfwd would vmap over the directions, which takes twice as long on a CPU.
    directions = jnp.eye(log_rate.size, dtype=log_rate.dtype)
    found: Any = [jax.jvp(look_ahead, (log_rate,), (each,), has_aux=True) for each in directions]
    _, _, (loss, multiplier, rest) = found[0]
    return jnp.stack([slope for _, slope, _ in found]), loss, multiplier, rest


@dataclass(frozen=True)
class LookAhead(ConstrainedLearner):
    """Part of each batch is held out: on it, meta-parameters descend the critic's loss after its step on the rest."""

    config: MetaConfig

    def training(self, batch: MultiStepBatch) -> MultiStepBatch:
        return jax.tree.map(lambda leaf: leaf[self.config.held_out :], batch)

    def parts(self, state: State, batch: MultiStepBatch) -> tuple[Evidence, Evidence]:
        """What the networks learn from, and what was held out."""
        held = jax.tree.map(lambda leaf: leaf[: self.config.held_out], batch)
        return evidence(self.config, state, self.training(batch)), evidence(self.config, state, held)

    def ahead(self, state: State, step: CriticStep) -> CategoricalValue:
        """The critic that the outer loss judges."""
        if self.config.inner_step == "adam":
            return step.critic
        return jax.tree.map(lambda p, g: p - self.config.critic_rate * g, state.critic, step.gradient)

    @property
    def meta(self) -> optax.GradientTransformation:
        """The optimizer of the meta-parameters."""
        return RATES[self.config.meta_optimizer](self.config.meta_rate)


@dataclass(frozen=True)
class MetaLearner(LookAhead):
    """See the module's docstring."""

    config: Config

    def init(self, key: PRNGKeyArray) -> State:
        state = super().init(key)
        log_rate = jnp.full(len(self.cmdp.cost_names), self.config.initial_log_rate)
        return eqx.tree_at(
            lambda s: (s.log_rate, s.meta_optimizer),
            state,
            (log_rate, self.meta.init(log_rate)),
            is_leaf=lambda leaf: leaf is None,
        )

    def appraise(self, state: State, batch: MultiStepBatch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        config = self.config
        assert state.log_rate is not None
        learned_from, judged_on = self.parts(state, batch)
        excess = drawn_excess(state, key)

        def inner(log_rate: Array) -> tuple[Array, CategoricalValue, Any]:
            multiplier = multiplier_step(state.multiplier, config.multiplier_rate * jnp.exp(log_rate), excess)
            step = critic_step(config, state, multiplier, learned_from)
            return multiplier, self.ahead(state, step), step

        def outer(critic: CategoricalValue, multiplier: Array) -> tuple[Array, Array]:
            loss, fit = critic_loss(critic, multiplier, judged_on, config.categories)
            if config.outer_loss == "actor":
                loss = jnp.zeros(())
            if config.outer_loss != "critic":
                # The paper's actor loss is a square behind a stopped gradient, whose derivative here would be 0: this
                # is the objective that it descends.
                held = judged_on.batch
                logits = critic(held.observation, state.policy(held.observation))
                loss = loss - held.mean(config.categories.mean(logits))
            return loss, fit.losses

        gradient, loss, multiplier, (step, losses) = meta_gradient(state.log_rate, inner, outer)
        move, optimizer = self.meta.update(gradient, state.meta_optimizer)
        moved: Any = optax.apply_updates(state.log_rate, move)
        log_rate = jnp.clip(moved, *LOG_RATE_RANGE)
        state = eqx.tree_at(
            lambda s: (s.critic, s.critic_optimizer, s.multiplier, s.log_rate, s.meta_optimizer),
            state,
            (step.critic, step.optimizer, multiplier, log_rate, optimizer),
        )
        losses = jnp.concatenate([losses, step.metrics[LOSSES]])
        return state, step.metrics | {"outer_loss": loss, "meta_gradient": gradient, LOSSES: losses}

    def conclude(self, state: State, violations: Float[Array, "rows costs"]) -> tuple[State, Metrics]:
        state, metrics = super().conclude(state, violations)
        assert state.log_rate is not None
        rate = self.config.multiplier_rate * jnp.exp(state.log_rate)
        return state, metrics | {"log_rate": state.log_rate, "effective_rate": rate}


class MetaL(Algorithm):
    """`metal`: learned multipliers, and learned rates of theirs."""

    learner = MetaLearner
    settings = Config
