"""What flows from simulators to algorithms."""

import equinox as eqx
from jaxtyping import Array, Bool, Float


class Trajectory(eqx.Module):
    """Experience of a batch of episodes; batch axes first, then time.

    An episode that ends before the horizon keeps its row: steps after `terminated` or `truncated` are marked
    by `valid = False` and must not be learned from. `last_observation` is what was seen after the last step of
    the row (after the end of the episode if it ended early), for bootstrapping.
    """

    observation: Float[Array, "*batch time observation"]
    action: Float[Array, "*batch time action"]
    log_prob: Float[Array, "*batch time"]
    reward: Float[Array, "*batch time"]
    costs: Float[Array, "*batch time costs"]
    terminated: Bool[Array, "*batch time"]
    truncated: Bool[Array, "*batch time"]
    valid: Bool[Array, "*batch time"]
    last_observation: Float[Array, "*batch observation"]


class Performance(eqx.Module):
    """Totals of whole episodes: undiscounted return, and each cost in the unit that its limit bounds."""

    episode_return: Float[Array, "*batch episodes"]
    costs: Float[Array, "*batch episodes costs"]
