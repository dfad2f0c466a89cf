"""Every task as a Gymnasium environment, with its cost in `info`.

    import gymnasium, safemeta.gymnasium

    env = gymnasium.make("safemeta/PointCircle-v0", split="test")
    observation, info = env.reset(seed=0, options={"task": {"radius": 1.2, "wall": 0.8}})
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    info["cost"], info["costs"]  # their sum, and each by name

Importing this module registers them; ids come from the names in `safemeta list`.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register, registry
from jaxtyping import Array, PRNGKeyArray

from safemeta.core import Tasks, check_split
from safemeta.core.cmdp import LimitOn
from safemeta.sim import FunctionalWorld, one_row
from safemeta.sim.batched import BatchedWorld
from safemeta.sim.failures import raise_pending
from safemeta.tasks import registry as tasks

LARGEST = np.finfo(np.float32).max


def environment_id(name: str) -> str:
    """The Gymnasium id of a task family: `point-circle-1` is `safemeta/PointCircle1-v0`."""
    return f"safemeta/{''.join(word.capitalize() for word in name.split('-'))}-v0"


class TaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One episode at a time of a task family.

    Each `reset` draws a new task of `split`, unless its options say which: `options={"task": {...}}` gives numbers to
    some of the task's parameters (`info["task"]` shows them all), `options={"split": "test"}` draws from another split
    this once. The parameters are not part of the observation. `terminated` is the task's own end, `truncated` its
    horizon. Actions are clipped to [-1, 1].

    With `episode_key` the key that an episode was drawn with, the episode is the one that
    `world.collect(policy, task, episode_key, 1)` goes through under the same actions.

    `task_options` are the family's own options, as for `safemeta.make`.

    Raises `ValueError` on unknown names and splits, and on limits, horizons and task options that make no sense.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (as the base class declares it)

    def __init__(
        self,
        name: str,
        split: str = "train",
        limit: float | int | None = None,
        limit_on: LimitOn | None = None,
        horizon: int | None = None,
        task_options: Mapping[str, Any] | None = None,
        render_mode: None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError("safemeta's environments are not rendered; safemeta.video draws a run")
        check_split(split)
        world = tasks.make(name, limit=limit, limit_on=limit_on, horizon=horizon, options=task_options)
        assert isinstance(world, FunctionalWorld | BatchedWorld)
        self.world, self.split = world, split
        size = (world.cmdp.observation_size,)
        self.observation_space = spaces.Box(-LARGEST, LARGEST, size, np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (world.cmdp.action_size,), np.float32)
        self.task: Tasks | None = None
        self.episode_key: Array | None = None
        self._state: Any = None
        self._steps = 0
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation of an episode; `info` names its task and limits."""
        super().reset(seed=seed)
        task_seed, episode_seed = (int(drawn) for drawn in self.np_random.integers(2**32, size=2))
        self.task = self._chosen(jax.random.key(task_seed), options or {})
        self.episode_key = jax.random.key(episode_seed)
        self._finish()
        self._state, observation = one_row.begin(self.world, self.task, self.episode_key)
        self._steps, self._over = 0, False
        raise_pending()
        names = self.world.cmdp.cost_names
        shown = {name: np.asarray(values[0]).tolist() for name, values in self.task.parameters.items()}
        limits = dict(zip(names, np.asarray(self.task.limits[0]).tolist(), strict=True))
        return np.asarray(observation, np.float32), {"task": shown, "limits": limits}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step. Raises `gymnasium.error.ResetNeeded` after the end of an episode."""
        if self._over:
            raise gymnasium.error.ResetNeeded("The episode is over: call reset() before step().")
        given = jnp.asarray(np.asarray(action, np.float32).reshape(self.action_space.shape))
        assert self.task is not None
        self._state, step = one_row.advance(self.world, self.task, self._state, given)
        self._steps += 1
        raise_pending()
        terminated = bool(step.terminated)
        truncated = not terminated and (self._steps >= self.world.cmdp.horizon or bool(step.ended))
        self._over = terminated or truncated
        costs = dict(zip(self.world.cmdp.cost_names, np.asarray(step.costs).tolist(), strict=True))
        info = {"cost": sum(costs.values()), "costs": costs}
        return np.asarray(step.observation, np.float32), float(step.reward), terminated, truncated, info

    def close(self) -> None:
        """Give back what the episode holds of a physics engine; may be called again."""
        self._finish()

    def _finish(self) -> None:
        if self._state is not None:
            one_row.finish(self.world, self._state)
        self._state, self._over = None, True

    def _chosen(self, key: PRNGKeyArray, options: dict[str, Any]) -> Tasks:
        """A drawn task, with what the options say of it."""
        unknown = [name for name in options if name not in ("task", "split")]
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r} of reset; there are 'task' and 'split'")
        split = options.get("split", self.split)
        check_split(split)
        drawn = _sample(self.world, key, split)
        wanted = options.get("task", {})
        if not isinstance(wanted, Mapping):
            raise ValueError(f"the option 'task' must give numbers to parameters by name, not be {wanted!r}")
        parameters = dict(drawn.parameters)
        for name, value in wanted.items():
            if name not in parameters:
                raise ValueError(f"the task has no parameter {name!r}; there are {', '.join(parameters)}")
            given = jnp.asarray(value, parameters[name].dtype)
            if given.shape != parameters[name].shape[1:] or not bool(jnp.isfinite(given).all()):
                shape = parameters[name].shape[1:]
                raise ValueError(
                    f"the parameter {name!r} must be {f'numbers of shape {shape}' if shape else 'a number'}"
                )
            parameters[name] = given[None]
        return Tasks(parameters, drawn.limits, drawn.descriptor)


@eqx.filter_jit
def _sample(world: Any, key: PRNGKeyArray, split: str) -> Tasks:
    return world.sample(key, 1, split)


def register_environments() -> tuple[str, ...]:
    """Register every task family that is not registered yet; returns all ids."""
    ids = {environment_id(name): name for name in tasks.names()}
    for each, name in ids.items():
        if each not in registry:
            register(each, entry_point="safemeta.gymnasium:TaskEnv", kwargs={"name": name})
    return tuple(ids)


IDS = register_environments()
