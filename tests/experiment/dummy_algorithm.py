"""A meta-algorithm and a world that are as small as the contracts allow, for tests of the experiment layer."""

import time
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from safemeta.algorithms import registry as algorithms
from safemeta.algorithms.base import Adaptation
from safemeta.core import CMDP, Performance, Tasks
from safemeta.tasks import registry as tasks

PRESETS: dict[str, "Config"] = {}
ITERATIONS = {"smoke": 2, "default": 6, "paper": 12}


@dataclass(frozen=True)
class Config:
    """Options of the dummy."""

    rate: float = 0.1
    """Step size."""
    hidden: tuple[int, ...] = (3, 2)
    """Layer sizes."""
    form: Literal["gaussian", "fit"] = "gaussian"
    """Which form."""
    double: bool = False
    """Twice the step."""
    adapt: Literal["all", "last"] = "all"
    """An option that is named like a flag of the command line."""
    fail_at: int = -1
    """Iteration (from 0) at which a NaN arises."""
    fail_in: Literal["metric", "state", "exception"] = "metric"
    """Where it arises."""
    pause: float = 0.0
    """Seconds that an iteration sleeps."""

    def validate(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate must be above 0, not {self.rate}")


PRESETS["paper"] = Config(rate=0.5, form="fit")


class Policy(eqx.Module):
    weight: jax.Array

    def act(self, observation: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.weight[:1], jnp.zeros(())


class State(eqx.Module):
    policy: Policy
    layers: list[jax.Array]
    momentum: dict[str, jax.Array]
    key: jax.Array
    count: jax.Array
    active: jax.Array
    highest: jax.Array


@dataclass(frozen=True)
class Algorithm:
    config: Config

    def init(self, key: jax.Array, cmdp: CMDP) -> State:
        layers = [jnp.ones((size, cmdp.observation_size)) for size in self.config.hidden]
        weight = jax.random.normal(key, (4,))
        return State(
            Policy(weight), layers, {"m": jnp.zeros(4)}, jax.random.key(3), jnp.array(0), jnp.array(True), -jnp.inf
        )

    def iterate(self, state: State, world: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        time.sleep(self.config.pause)
        failing = int(state.count) == self.config.fail_at
        if failing and self.config.fail_in == "exception":
            raise RuntimeError("the dummy broke\nin two lines")
        state, metrics = _iterate(self.config, state, world, key)
        if failing and self.config.fail_in == "metric":
            metrics["return"] = jnp.nan * metrics["return"]
        if failing and self.config.fail_in == "state":
            state = eqx.tree_at(lambda s: s.momentum["m"], state, state.momentum["m"].at[1].set(jnp.nan))
        return state, metrics

    def policy(self, state: State) -> Policy:
        return state.policy

    def steps_per_iteration(self, cmdp: CMDP) -> int:
        return 10 * cmdp.horizon

    def adapt(self, state: State, world: Any, tasks: Tasks, key: jax.Array, steps: int) -> Adaptation:
        count, costs = tasks.limits.shape
        growth = 1 + 0.05 * jnp.arange(steps + 1)
        weights = growth[:, None, None] * jnp.broadcast_to(jnp.abs(state.policy.weight), (count, 4))
        empty = jnp.zeros((steps, count))
        return Adaptation(
            Policy(weights), jnp.zeros((steps + 1, count)), jnp.zeros((steps + 1, count, costs)),
            jnp.zeros((steps, count, costs)), empty, empty.astype(int), ("feasible", "recovered"),
        )  # fmt: skip


@eqx.filter_jit
def _iterate(config: Config, state: State, world: Any, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    drawn = world.sample(key, 3)
    performance = world.measure(state.policy, drawn, key, 5)
    gradient = jax.random.normal(key, (4,)) + 0.1 * performance.episode_return.mean()
    momentum = 0.9 * state.momentum["m"] + gradient
    weight = state.policy.weight - config.rate * jnp.tanh(momentum)
    value = performance.episode_return.mean()
    following = State(
        Policy(weight),
        [layer * 1.01 for layer in state.layers],
        {"m": momentum},
        jax.random.split(state.key)[0],
        state.count + 1,
        ~state.active,
        jnp.maximum(state.highest, value),
    )
    return following, {
        "return": value,
        "largest_cost": performance.costs.mean(1).max(),
        "limit": drawn.limits.max(),
        "score": -jnp.abs(weight).sum(),
    }


@dataclass(frozen=True)
class World:
    cmdp: CMDP
    functional: bool = True

    def sample(self, key: jax.Array, count: int, split: str = "train") -> Tasks:
        if split not in ("train", "validation", "test"):
            raise ValueError(f"unknown split {split!r}; choose one of train, validation, test")
        hardness = jax.random.uniform(key, (count,))
        return Tasks({"hardness": hardness}, jnp.full((count, 1), self.cmdp.limits[0]), hardness[:, None])

    def measure(
        self, policy: Policy, tasks: Tasks, key: jax.Array, episodes: int, *, per_task: bool = False
    ) -> Performance:
        weight = policy.weight if per_task else jnp.broadcast_to(policy.weight, (tasks.count, 4))
        size = jnp.abs(weight).sum(-1, keepdims=True)
        noise = jax.random.normal(key, (2, tasks.count, episodes))
        cost = 2 * size * tasks.parameters["hardness"][:, None] + 0.3 * noise[1]
        return Performance(10 * size + noise[0], cost[..., None])


def _build(limit: float | None, limit_on: Any, horizon: int | None) -> World:
    return World(CMDP(2, 1, horizon or 7, ("crash",), (8.0 if limit is None else limit,), limit_on=limit_on))


def register() -> None:
    """Add the algorithm `dummy` and the task family `dummy-task` to the registries."""
    algorithms.ALGORITHMS["dummy"] = algorithms.Entry("dummy", "for tests", "dummy_algorithm", meta=True)
    tasks.FAMILIES["dummy-task"] = tasks.Family("dummy-task", "for tests", "undiscounted", _build)


if __name__ == "__main__":
    # The command line with the dummy registered, for tests that need a true process: imported under its own name, as
    # the registry will import it.
    import sys

    import dummy_algorithm

    from safemeta.cli import main

    dummy_algorithm.register()
    sys.exit(main())
