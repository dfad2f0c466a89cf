"""FAC-SIS: a safety certificate and a policy that keeps to it, learned together (Ma et al., L4DC 2022).

`min_phi max_lambda min_pi E_s[-v_pi(s) + lambda(s) Delta(s)]`, `Delta = phi(s') - max(phi(s) - eta, 0)` (eq. 3, 6, 9).
A soft actor-critic whose policy pays `lambda(s) Q_phi(s, a)`; Q_phi regresses on Delta; the multiplier network climbs
`E[lambda(s) Q_phi(s, a)]`, a drawn from the policy (eq. 12); and the index descends `E[lambda(s) Delta(s)]` (eq. 13).
Each is slower than the one before it (Algorithm 1). phi is evaluated anew with the present parameters, from the
distances that the replay keeps. `fac` is the same with a fixed index.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from safemeta.algorithms.base import Metrics
from safemeta.algorithms.descent import Rate, descend, descent, fresh
from safemeta.algorithms.off_policy import OffPolicyAlgorithm, every
from safemeta.algorithms.replay import Batch
from safemeta.algorithms.sac import (
    FAST,
    SacConfig,
    SacLearner,
    SacState,
    critic_step,
    init_actor_critic,
    policy_step,
    regress,
)
from safemeta.algorithms.settings import at_least_one, one_of, positive, zero_or_more
from safemeta.certificates import DEFAULT_BOX, INDICES, RELEASED_BOX, SafetyIndex
from safemeta.core import CLEARANCE, CMDP, Transition
from safemeta.nets import ActionValue, MultiplierNetwork

ITERATIONS = {"smoke": 2, "default": 100, "paper": 750}


@dataclass(frozen=True)
class Config(SacConfig):
    """Settings of `fac-sis`; those of the paper (Table 4), where it says so. Preset `released`: its code."""

    index: Literal["zero", "handcrafted", "feasible", "initial", "synthesised"] = "handcrafted"  # where it starts
    safe_distance: float | None = None  # d_min in m; None: what the task says
    sigma_form: Literal["outside", "inside"] = "outside"  # of the power: sigma + d^n, or (sigma + d)^n (released code)
    slack: float = 0.0  # eta
    learn_index: bool = True  # false: `fac`
    released_box: bool = False  # k from 0.5 (released code), not from 0
    index_rate: Rate = (8e-6, 1e-6, 100_000)  # of the index's parameters, from, to, over how many of their steps
    index_interval: int = 24  # gradient steps of the critics per one of the index
    index_after: int = 0  # gradient steps before the first of them (released code: 100,000)
    index_loss: Literal["weighted", "hinge"] = "weighted"  # E[lambda Delta], or E[max(Delta, 0)] (released code)
    multiplier_rate: Rate = (5e-6, 5e-6, 150_000)  # of the multiplier network
    multiplier_interval: int = 12  # gradient steps of the critics per one of the multiplier network
    multiplier_actions: Literal["policy", "replay"] = "policy"  # that Q_phi is asked about (released code: replay)
    multiplier_clip: float = 3.0  # of its gradient's norm (released code)
    largest_multiplier: float = 100.0  # lambda_max; not in the paper, 100 in the released code
    initial_bias: float = -10.0  # of the multiplier network's output: lambda = softplus(-10) = 4.5e-5 (released code)
    decrease_floor: float | None = -0.001  # see `constraint_of`; not in the paper, this in the released code

    def validate(self) -> None:
        """Raise ValueError, in one sentence, on a setting that makes no sense."""
        super().validate()
        one_of(self, "index", tuple(INDICES))
        one_of(self, "sigma_form", ("outside", "inside"))
        one_of(self, "index_loss", ("weighted", "hinge"))
        one_of(self, "multiplier_actions", ("policy", "replay"))
        at_least_one(self, "index_interval", "multiplier_interval")
        zero_or_more(self, "slack", "index_after")
        positive(self, "multiplier_clip", "largest_multiplier")
        if self.safe_distance is not None:
            positive(self, "safe_distance")
        if self.decrease_floor is not None and not self.decrease_floor <= 0:
            raise ValueError(f"decrease_floor must be zero or negative, not {self.decrease_floor}.")


PRESETS = {
    "released": Config(
        index="initial",
        safe_distance=0.5,
        sigma_form="inside",
        released_box=True,
        index_after=100_000,
        index_loss="hinge",
        multiplier_rate=(5e-6, 1e-6, 150_000),
        multiplier_interval=1,
        multiplier_actions="replay",
        policy_interval=2,
        action_scale=10.0,
    ),
    # A multiplier that moves fast, and starts where it can be felt.
    "fast": Config(
        **FAST,
        multiplier_rate=(3e-4, 3e-4, 100_000),
        initial_bias=-2.0,
        index_rate=(1e-4, 1e-5, 5000),
    ),
}


class State(SacState):
    """Actor-critic, constraint critic, multiplier network and index, with their optimizers."""

    constraint: ActionValue  # Q_phi
    multiplier: MultiplierNetwork
    index: SafetyIndex
    constraint_optimizer: Any
    multiplier_optimizer: Any
    index_optimizer: Any


@dataclass(frozen=True)
class FacLearner(SacLearner):
    """See the module's docstring. Raises ValueError on a task without obstacles."""

    config: Config

    def init(self, key: PRNGKeyArray) -> State:
        config, cmdp = self.config, self.cmdp
        actor_key, constraint_key, multiplier_key = jax.random.split(key, 3)
        index = initial_index(config, cmdp)
        constraint, constraint_optimizer = self.further_critic(constraint_key)
        multiplier = MultiplierNetwork.create(
            cmdp.observation_size, multiplier_key, hidden=config.hidden, initial_bias=config.initial_bias
        )
        return State(
            actor=init_actor_critic(config, cmdp, actor_key),
            count=jnp.zeros((), jnp.int32),
            constraint=constraint,
            multiplier=multiplier,
            index=index,
            constraint_optimizer=constraint_optimizer,
            multiplier_optimizer=fresh(descent(config.multiplier_rate, config.multiplier_clip), multiplier),
            index_optimizer=fresh(descent(config.index_rate, config.gradient_clip), index),
        )

    def update(self, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        """One step of the critics, and of what else is due (Algorithm 1)."""
        config, count = self.config, state.count
        critic_key, policy_key, multiplier_key = jax.random.split(key, 3)
        actor, metrics = critic_step(config, self.cmdp.discount, state.actor, batch, critic_key)
        target = constraint_of(state.index, batch, config)
        optimizer = descent(config.critic_rate, config.gradient_clip)
        constraint, constraint_state, loss = regress(
            optimizer, state.constraint, state.constraint_optimizer, batch, target
        )
        metrics |= {"constraint_loss": loss, "violated_share": batch.mean((target > 0).astype(target.dtype))}
        state = eqx.tree_at(
            lambda s: (s.actor, s.constraint, s.constraint_optimizer, s.count),
            state,
            (actor, constraint, constraint_state, count + 1),
        )

        state, paid = every(config.policy_interval, count, lambda s: self._policy(s, batch, policy_key), state)
        state, priced = every(
            config.multiplier_interval, count, lambda s: self._multiplier(s, batch, multiplier_key), state
        )
        metrics |= {**paid, **priced}
        if config.learn_index:
            interval, after = config.index_interval, config.index_after
            state, tuned = every(interval, count, lambda s: self._index(s, batch), state, after)
            metrics |= tuned
        return state, metrics

    def _policy(self, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        def price(observation: Array, action: Array) -> Array:
            return state.multiplier(observation) * state.constraint(observation, action)

        actor, metrics = policy_step(self.config, state.actor, price, batch, key)
        return eqx.tree_at(lambda s: s.actor, state, actor), metrics

    def _multiplier(self, state: State, batch: Batch, key: PRNGKeyArray) -> tuple[State, Metrics]:
        config = self.config
        drawn = config.multiplier_actions == "policy"
        action = state.policy.sample(batch.observation, key)[0] if drawn else batch.action
        constraint = state.constraint(batch.observation, action)
        gradient = eqx.filter_grad(multiplier_loss)(state.multiplier, batch, constraint, config.largest_multiplier)
        optimizer = descent(config.multiplier_rate, config.multiplier_clip)
        multiplier, optimizer_state = descend(optimizer, gradient, state.multiplier_optimizer, state.multiplier)
        value = batch.mean(multiplier(batch.observation))
        moved = eqx.tree_at(lambda s: (s.multiplier, s.multiplier_optimizer), state, (multiplier, optimizer_state))
        return moved, {"multiplier": value}

    def _index(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        config = self.config
        value, gradient = eqx.filter_value_and_grad(index_loss)(state.index, state.multiplier, batch, config)
        optimizer = descent(config.index_rate, config.gradient_clip)
        index, optimizer_state = descend(optimizer, gradient, state.index_optimizer, state.index)
        moved = eqx.tree_at(lambda s: (s.index, s.index_optimizer), state, (index, optimizer_state))
        return moved, {"index_loss": value}

    def watch(self, state: State, step: Transition) -> Metrics:
        """`violations`: steps that broke the safe-action constraint (Figure 4)."""
        delta = state.index.violation(step.signals[CLEARANCE], step.next_signals[CLEARANCE], self.config.slack)
        return {"violations": (delta > 0).astype(delta.dtype)}

    def conclude(self, state: State, violations: Float[Array, "rows costs"]) -> tuple[State, Metrics]:
        sigma, k, n = state.index.clipped()
        return state, {"sigma": sigma, "k": k[0], "n": n, "temperature": jnp.exp(state.actor.log_temperature)}


def initial_index(config: Config, cmdp: CMDP) -> SafetyIndex:
    """The index that training starts from. Raises ValueError on a task without obstacles."""
    if CLEARANCE not in dict(cmdp.signals):
        raise ValueError(
            "A safety index needs a task that measures its distance to obstacles: --task collision-avoidance, or one of"
            " the Goal and Push tasks."
        )
    distance = cmdp.safe_distance if config.safe_distance is None else config.safe_distance
    if distance is None:
        raise ValueError("This task names no safe distance; set safe_distance.")
    box = RELEASED_BOX if config.released_box else DEFAULT_BOX
    return SafetyIndex.named(config.index, distance, sigma_form=config.sigma_form, box=box)


def constraint_of(index: SafetyIndex, batch: Batch, config: Config) -> Float[Array, " batch"]:
    """`max(Delta, floor)` of replayed steps: what Q_phi predicts and what multiplier and index are trained on.

    Far from all obstacles phi is hugely negative, and so is Delta. Where `lambda` is not exactly zero there, a policy
    is paid for running away and the multiplier is driven to zero everywhere: without a floor nothing becomes safe.
    """
    delta = index.violation(batch.signals[CLEARANCE], batch.next_signals[CLEARANCE], config.slack)
    return delta if config.decrease_floor is None else jnp.maximum(delta, config.decrease_floor)


def multiplier_loss(
    multiplier: MultiplierNetwork, batch: Batch, constraint: Float[Array, " batch"], largest: float
) -> Float[Array, ""]:
    """`-E[min(lambda(s), lambda_max) Q_phi(s, a)]`, whose descent is eq. 12."""
    return -batch.mean(jnp.clip(multiplier(batch.observation), 0, largest) * constraint)


def index_loss(index: SafetyIndex, multiplier: MultiplierNetwork, batch: Batch, config: Config) -> Float[Array, ""]:
    """`E[min(lambda(s), lambda_max) Delta(s)]` (eq. 13), or `E[max(Delta(s), 0)]` (eq. 4, released code)."""
    constraint = constraint_of(index, batch, config)
    if config.index_loss == "hinge":
        return batch.mean(jnp.maximum(constraint, 0))
    return batch.mean(jnp.clip(multiplier(batch.observation), 0, config.largest_multiplier) * constraint)


class Algorithm(OffPolicyAlgorithm):
    """See the module's docstring."""

    learner = FacLearner

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or Config())


class Fac(OffPolicyAlgorithm):
    """The same with a fixed index: `learn_index` is off whatever the settings say."""

    learner = FacLearner

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(replace(config or Config(), learn_index=False))
