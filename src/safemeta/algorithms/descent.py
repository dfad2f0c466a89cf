"""Gradient descent on networks, as off-policy learners share it: optimizers, their rates, target networks."""

from typing import Any

import equinox as eqx
import jax
import optax

Rate = tuple[float, float, int]  # a learning rate: from, to, over how many of its optimizer's own steps


def check_rate(name: str, rate: Rate) -> None:
    """Raise ValueError unless both ends are positive and the number of steps is."""
    first, last, steps = rate
    if not (first > 0 and last > 0 and steps >= 1):
        raise ValueError(f"{name} must be two positive rates and a number of steps, not {rate}.")


def descent(rate: Rate | float, clip: float, eps_root: float = 0.0) -> optax.GradientTransformation:
    """Adam on gradients clipped by their norm; a rate that falls is counted in this optimizer's own steps."""
    schedule = optax.linear_schedule(*rate) if isinstance(rate, tuple) else rate
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule, eps_root=eps_root))


def descend(optimizer: optax.GradientTransformation, gradient: Any, state: Any, parameters: Any) -> tuple[Any, Any]:
    """The parameters and the optimizer's state after one step."""
    updates, state = optimizer.update(gradient, state, eqx.filter(parameters, eqx.is_array))
    return eqx.apply_updates(parameters, updates), state


def fresh(optimizer: optax.GradientTransformation, parameters: Any) -> Any:
    """The optimizer's state before the first step."""
    return optimizer.init(eqx.filter(parameters, eqx.is_array))


def followed(share: float, slow: Any, fast: Any) -> Any:
    """Target networks after a step of `share` towards what they follow."""
    return jax.tree.map(lambda s, f: s + share * (f - s) if eqx.is_array(s) else s, slow, fast)
