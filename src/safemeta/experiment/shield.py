"""A certificate as a filter at run time: an action that breaks its constraint gives way to the nearest that keeps it.

Whether one does is asked of the simulator itself (`model`), or of the critic Q_phi that a run has learned (`critic`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from safemeta.certificates import Candidates, SafetyIndex, nearest_safe
from safemeta.core import CLEARANCE, CMDP, Moment, Performance, Tasks, Trajectory, Transition
from safemeta.experiment.errors import UserError
from safemeta.experiment.run_certificate import (
    RunCertificate,
    certificate_of,
    grid_of,
    grid_points,
    look_ahead,
)
from safemeta.sim.batched import act_on_rows

Kind = Literal["model", "critic"]


class Shielded(eqx.Module):
    """What a shielded agent acts with: a policy, the index that it is judged by, and Q_phi where that is the judge."""

    policy: Any
    index: SafetyIndex
    critic: Any = None


class Wish(eqx.Module):
    """What the policy drew, and what became of it."""

    action: Float[Array, "rows action"]
    log_prob: Float[Array, " rows"]
    changed: Bool[Array, " rows"]
    feasible: Bool[Array, " rows"]


@dataclass(frozen=True)
class ShieldedAgent:
    """A `safemeta.core.Agent` around any policy; with `kind=None` it only watches.

    The policy's action is taken if it keeps the constraint, `Delta <= 0` or `Q_phi <= 0`, else the nearest that does of
    a grid with `points` along each axis; if none does, the one with the least energy. Distances are those of actions
    clipped to [-1, 1], which is what environments make of them. `tasks`: the policy's leaves have an axis of so many.
    """

    kind: Kind | None
    points: int
    slack: float
    tasks: int | None = None

    def act(self, state: Shielded, moment: Moment, key: PRNGKeyArray) -> tuple[Float[Array, "rows action"], Wish]:
        keys = jax.random.split(key, moment.observation.shape[0])
        wanted, log_prob = act_on_rows(state.policy, moment.observation, keys, self.tasks)
        if self.kind is None:
            return wanted, Wish(wanted, log_prob, jnp.zeros(len(wanted), bool), jnp.ones(len(wanted), bool))
        clipped = jnp.clip(wanted, -1, 1)
        grid = grid_of(wanted, self.points)
        candidates = jnp.concatenate([clipped[:, None], grid], axis=1)
        if self.kind == "model":
            found = look_ahead(state.index, self.slack, moment, candidates)
        else:  # Q_phi has learned from actions as they were drawn
            asked = jnp.concatenate([wanted[:, None], grid], axis=1)
            seen = jnp.broadcast_to(moment.observation[:, None], (*asked.shape[:2], moment.observation.shape[-1]))
            found = Candidates(state.critic(seen, asked))
        choice = jax.vmap(nearest_safe)(clipped, candidates, found)
        action = jnp.where(choice.changed[:, None], choice.action, wanted)
        return action, Wish(wanted, log_prob, choice.changed, choice.feasible)

    def learn(
        self, state: Shielded, transition: Transition, note: Wish, key: PRNGKeyArray
    ) -> tuple[Shielded, tuple[Transition, Wish, Bool[Array, " rows"]]]:
        delta = state.index.violation(transition.signals[CLEARANCE], transition.next_signals[CLEARANCE], self.slack)
        return state, (transition, note, delta > 0)


class ShieldedPerformance(Performance):
    """With how many steps each episode had, and how many of them were intervened in, infeasible, or violations."""

    steps: Int[Array, "*batch episodes"]
    changed: Int[Array, "*batch episodes"]
    infeasible: Int[Array, "*batch episodes"]
    violated: Int[Array, "*batch episodes"]


@dataclass(frozen=True)
class Shield:
    """Which filter: `kind=None` is none, for comparison."""

    kind: Kind | None
    certificate: RunCertificate
    points: int
    critic: Any = None

    def collect(
        self, world: Any, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, *, per_task: bool = False
    ) -> tuple[Trajectory, ShieldedPerformance]:
        """Episodes behind the filter. Actions and densities are the policy's own: the filter is part of the world."""
        agent = ShieldedAgent(self.kind, self.points, self.certificate.slack, tasks.count if per_task else None)
        state = Shielded(policy, self.certificate.index, self.critic)
        _, records = world.interact(agent, state, tasks, key, episodes)
        return _by_episode(world.cmdp, records, tasks.count, episodes)

    def measure(
        self, world: Any, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, *, per_task: bool = False
    ) -> ShieldedPerformance:
        """Totals of the episodes that `collect` gives."""
        return self.collect(world, policy, tasks, key, episodes, per_task=per_task)[1]

    def statistics(self, measured: list[ShieldedPerformance]) -> dict[str, Any]:
        """What it is, and how often it stepped in."""
        what = {"kind": self.kind, "points": self.points, "certificate": dataclasses.asdict(self.certificate)}
        return {**what, **dataclasses.asdict(ShieldShares.of(measured))}

    def without(self) -> "Shield":
        """The same, but only watching."""
        return dataclasses.replace(self, kind=None)


def _by_episode(
    cmdp: CMDP, records: tuple[Transition, Wish, Array], tasks: int, episodes: int
) -> tuple[Trajectory, ShieldedPerformance]:
    """Records `[time, rows, ...]` as trajectories `[tasks, episodes, time, ...]`, and their totals."""
    transition, wish, violated = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(tasks, episodes, leaf.shape[0], *leaf.shape[2:]), records
    )
    valid = transition.valid
    last = valid & ~jnp.concatenate([valid[..., 1:], jnp.zeros_like(valid[..., :1])], axis=-1)
    trajectory = Trajectory(
        transition.observation,
        wish.action,
        wish.log_prob,
        transition.reward,
        transition.costs,
        transition.terminated & valid,
        last & ~transition.terminated,
        valid,
        transition.next_observation[..., -1, :],
    )
    weights = cmdp.cost_weights(transition.costs.dtype)
    counts = [jnp.sum(marks & valid, axis=-1) for marks in (valid, wish.changed, ~wish.feasible, violated)]
    totals = jnp.sum(transition.reward, axis=-1), jnp.sum(transition.costs * weights[:, None], axis=-2)
    return trajectory, ShieldedPerformance(*totals, *counts)


@dataclass(frozen=True)
class ShieldedWorld:
    """A `safemeta.core.World` whose every action passes a filter with a model. Hashable, and callable inside jit.

    Whoever learns from its episodes sees them as those of its own actions, as if the filter were part of the robot.
    """

    world: Any
    shield: Shield

    @property
    def cmdp(self) -> CMDP:
        return self.world.cmdp

    @property
    def functional(self) -> bool:
        return self.world.functional

    @property
    def on_host(self) -> bool:
        """See `safemeta.core.World`."""
        return getattr(self.world, "on_host", False)

    def sample(self, key: PRNGKeyArray, count: int, split: str = "train") -> Tasks:
        return self.world.sample(key, count, split)

    def corners(self) -> Tasks:
        return self.world.corners()

    def collect(
        self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, *, per_task: bool = False
    ) -> Trajectory:
        return self.shield.collect(self.world, policy, tasks, key, episodes, per_task=per_task)[0]

    def measure(
        self, policy: Any, tasks: Tasks, key: PRNGKeyArray, episodes: int, *, per_task: bool = False
    ) -> ShieldedPerformance:
        return self.shield.measure(self.world, policy, tasks, key, episodes, per_task=per_task)


@dataclass(frozen=True)
class ShieldShares:
    """Of all `steps`: where the shield took another action, no action kept the constraint, the step broke it."""

    steps: int
    intervened: float
    infeasible: float
    violated: float

    @staticmethod
    def of(measured: list[ShieldedPerformance]) -> "ShieldShares":
        """Over all episodes of all measurements."""
        sums = [
            sum(int(np.sum(getattr(each, name))) for each in measured)
            for name in ("steps", "changed", "infeasible", "violated")
        ]
        steps = max(sums[0], 1)
        return ShieldShares(sums[0], *(count / steps for count in sums[1:]))


def shield_of(run: Any, kind: str, index: str | None, points: int | None) -> Shield:
    """The shield of a run: by its own index or the one called `index`, and by Q_phi if `kind` is "critic".

    Raises `UserError` on an unknown kind, where the run has no index or no critic, and as `certificate_of` does.
    """
    if kind not in ("model", "critic"):
        raise UserError(f"The shield must be model or critic, not '{kind}'.")
    critic = getattr(getattr(run.state, "learner", None), "constraint", None)
    if kind == "critic":
        if critic is None:
            raise UserError(
                f"The run '{run.folder}' of {run.config.algorithm} has learned no constraint critic, as fac-sis and fac"
                " do; use --shield model."
            )
        if index is not None:
            raise UserError("Q_phi knows the run's own index only: leave --index out, or use --shield model.")
    certificate = certificate_of(run, index)
    number = grid_points(run.world, points, looks=kind == "model")
    return Shield(kind, certificate, number, critic if kind == "critic" else None)  # type: ignore[arg-type]
