"""What all worlds of safemeta share: a family of tasks around something that steps rows (task, episode)."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import PRNGKeyArray

from safemeta.core import CMDP, Agent, Performance, Tasks, Trajectory
from safemeta.sim.interaction import interact
from safemeta.sim.step import Family, Simulator


class SimulatedWorld(ABC):
    """What `FunctionalWorld` and `BatchedWorld` share: a `safemeta.core.World` around a simulator.

    Randomness: row (task i, episode j) draws from `split(key, tasks * episodes)[i * episodes + j]`; its step t acts
    with that key folded with t. `collect` and `measure` with the same key therefore see the same episodes.
    """

    cmdp: CMDP
    family: Family

    @property
    @abstractmethod
    def on_host(self) -> bool:
        """See `safemeta.core.World`."""

    @property
    def functional(self) -> bool:
        """Always true: every method may be called inside jit."""
        return True

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        """`count` independent tasks of a split ("train", "validation" or "test")."""
        return self.family.sample(key, count, split)

    def corners(self) -> Tasks:
        """The extreme tasks of the training distribution, the hardest first."""
        return self.family.corners()

    def collect(
        self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, *, per_task: bool = False
    ) -> Trajectory:
        """`episodes` episodes of each task: leaves are `[tasks, episodes, time, ...]`.

        Actions are stored as the policy drew them, unclipped, with their log-density. After its end a row stays where
        it is: zero reward and costs, `valid = False`. `truncated` marks where a row that did not terminate was cut
        off: at the last step of the horizon, or where the simulator says so.
        """
        return self._settled(self._collect(policy, tasks, key, episodes, per_task))

    def measure(
        self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, *, per_task: bool = False
    ) -> Performance:
        """Totals of the episodes that `collect` would store with the same key: `[tasks, episodes, ...]`."""
        return self._settled(self._measure(policy, tasks, key, episodes, per_task))

    def interact(self, agent: Agent, state: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int) -> tuple[Any, Any]:
        """One episode in each row, step by step with an agent: its last state, and its records `[time, ...]`."""
        return self._settled(interact(self.cmdp, self._rows(), agent, state, tasks, key, episodes))

    @abstractmethod
    def _collect(self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool) -> Trajectory: ...

    @abstractmethod
    def _measure(self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, per_task: bool) -> Performance: ...

    @abstractmethod
    def _rows(self) -> Simulator:
        """What steps all rows together."""

    def _settled(self, result: Any) -> Any:
        """What a call returns."""
        return result
