"""Acting and learning step by step, on all rows of a batch side by side."""

from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

CLEARANCE = "clearance"  # the signal that safety indices are computed from; see `CMDP`
Signals = dict[str, Array]  # by the names of `CMDP.signals`; leaves `[rows, ...]`
Look = Callable[
    [Float[Array, "rows choices action"]], Signals
]  # what each action would lead to: `[rows, choices, ...]`


class Moment(eqx.Module):
    """What an agent may know when it acts.

    `look` asks the simulator itself, which stays as it is; call it from `act` directly, not from
    within a loop or branch.
    """

    observation: Float[Array, "rows observation"]
    signals: Signals
    look: Look = eqx.field(static=True)


class Transition(eqx.Module):
    """One control step of every row; what rows show that had ended before is marked by `valid = False`."""

    observation: Float[Array, "rows observation"]
    action: Float[Array, "rows action"]
    reward: Float[Array, " rows"]
    costs: Float[Array, "rows costs"]
    next_observation: Float[Array, "rows observation"]
    terminated: Bool[Array, " rows"]
    valid: Bool[Array, " rows"]
    signals: Signals
    next_signals: Signals


class Agent(Protocol):
    """Pure functions of a state pytree, called within compiled code. Must be hashable.

    `act` gives the actions of all rows and a note (a pytree of arrays) for `learn`, which is called after the control
    step; what `learn` returns beside the state is recorded.
    """

    def act(self, state: Any, moment: Moment, key: PRNGKeyArray) -> tuple[Float[Array, "rows action"], Any]: ...

    def learn(self, state: Any, transition: Transition, note: Any, key: PRNGKeyArray) -> tuple[Any, Any]: ...
