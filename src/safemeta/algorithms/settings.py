"""Settings that algorithms share: the policy that they make, and what they must be.

Each check raises ValueError with one sentence that names the setting.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

from jaxtyping import PRNGKeyArray

from safemeta.core import CMDP
from safemeta.nets import GaussianPolicy

Deviation = Literal["free", "state"]


class PolicyConfig(Protocol):
    """The settings of a Gaussian policy."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Sizes of the tanh layers."""
        ...

    @property
    def deviation(self) -> Deviation:
        """Standard deviation: one vector, or an output of the network."""
        ...

    @property
    def initial_log_std(self) -> float:
        """Logarithm of the first standard deviation."""
        ...


def init_policy(config: PolicyConfig, cmdp: CMDP, key: PRNGKeyArray) -> GaussianPolicy:
    """A fresh policy of these settings."""
    return GaussianPolicy.create(
        cmdp.observation_size,
        cmdp.action_size,
        key,
        hidden=config.hidden,
        deviation=config.deviation,
        initial_log_std=config.initial_log_std,
    )


def check_policy(config: PolicyConfig) -> None:
    """The settings that `init_policy` reads."""
    one_of(config, "deviation", ("free", "state"))
    if not math.isfinite(config.initial_log_std):
        raise ValueError(f"initial_log_std must be a finite number, not {config.initial_log_std}.")
    layers(config, "hidden")


def layers(config: Any, *names: str) -> None:
    """Sizes of hidden layers."""
    for name, value in _values(config, names):
        if not value or min(value) < 1:
            raise ValueError(f"{name} must name at least one layer of one unit or more, not {value}.")


def one_of(config: Any, name: str, allowed: Sequence[str]) -> None:
    """A setting that is a word."""
    value = getattr(config, name)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")


def at_least_one(config: Any, *names: str) -> None:
    """Settings that count something which there must be."""
    for name, value in _values(config, names):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def positive(config: Any, *names: str) -> None:
    """Finite numbers above zero."""
    for name, value in _values(config, names):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, not {value}.")


def zero_or_more(config: Any, *names: str) -> None:
    """Finite numbers that are not negative."""
    for name, value in _values(config, names):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a number that is zero or more, not {value}.")


def share_of_limit(config: Any, *names: str) -> None:
    """Margins."""
    for name, value in _values(config, names):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is a share of the limit: at least 0 and below 1, not {value}.")


def check_pairs(config: Any) -> None:
    """Episodes of learners that take each one's baseline from the others."""
    if config.episodes < 2:
        raise ValueError(f"episodes must be at least 2, since each is the other's baseline, not {config.episodes}.")


def check_smoothing(config: Any) -> None:
    """The lambda of generalised advantage estimation."""
    if not 0 <= config.gae_smoothing <= 1:
        raise ValueError(f"gae_smoothing must lie between 0 and 1, not {config.gae_smoothing}.")


def check_fisher_states(config: Any) -> None:
    """States of a meta-step's metric, of which an inner step is measured on a tenth."""
    if config.fisher_states < 10:
        raise ValueError(f"fisher_states must be at least 10, not {config.fisher_states}.")


def _values(config: Any, names: Iterable[str]) -> list[tuple[str, Any]]:
    return [(name, getattr(config, name)) for name in names]
