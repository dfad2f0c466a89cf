"""A user's environment that goes wrong in the middle of training: what is said, and is the run saved?"""

import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from _table import Row

import safemeta

TIMEOUT = 2.0  # seconds
EPISODE = 9  # the first episode that goes wrong, counted over all instances
SMALL: dict[str, dict[str, Any]] = {
    "cpo": {"tasks": 2, "episodes": 2, "critic_steps": 2, "hidden": (4,), "fisher_states": 20},
    "sac-lagrangian": {"tasks": 2, "hidden": (4,), "capacity": 100, "batch": 4, "warm_up": 4},
}
# What goes wrong at the second step, and what is said of it
FAULTS = {
    "raises": "RuntimeError: the motor is on fire",
    "raises at reset": "KeyError: 'motor'",
    "exits": "SystemExit: 3",
    "no tuple": "step() returned a int, not (observation, reward, terminated, truncated, info)",
    "NaN observed": "number 0 of the observation is NaN or infinite",
    "NaN reward": "the reward is nan",
    "infinite cost": "the cost 'cost' is inf",
    "no cost": "the step has no cost",
    "wrong shape": "the observation has 5 numbers instead of 2",
    "ragged": "ValueError: setting an array element with a sequence",
    "text as reward": "the reward is not a number but a str",
    "hangs": f"it has not answered for {TIMEOUT:g} s",
    "hangs at reset": f"it has not answered for {TIMEOUT:g} s",
}


class Faulty(gymnasium.Env[Any, Any]):
    """The reward is the action, which costs where it is positive; from episode `EPISODE` on it shows `fault`."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    fault = ""
    episodes = 0

    def __init__(self, side: float = 0.0) -> None:
        self.side, self.steps = side, 0

    @property
    def broken(self) -> str:
        """What goes wrong now."""
        return Faulty.fault if Faulty.episodes >= EPISODE else ""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        Faulty.episodes += 1
        self.steps = 0
        if self.broken == "raises at reset":
            raise KeyError("motor")
        if self.broken == "hangs at reset":
            threading.Event().wait()
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        fault = self.broken if self.steps == 2 else ""
        observation, reward, info = np.zeros(2, np.float32), float(action[0]), {"cost": max(float(action[0]), 0.0)}
        if fault == "raises":
            raise RuntimeError("the motor\nis on fire.")
        if fault == "exits":
            sys.exit(3)
        if fault == "hangs":
            threading.Event().wait()
        if fault == "no tuple":
            return 7
        broken = {
            "NaN observed": (np.full(2, np.nan), reward, info),
            "NaN reward": (observation, np.nan, info),
            "infinite cost": (observation, reward, {"cost": np.inf}),
            "no cost": (observation, reward, {}),
            "wrong shape": (np.zeros(5), reward, info),
            "ragged": ([[1.0], [1.0, 2.0]], reward, info),
            "text as reward": (observation, "much", info),
        }
        observation, reward, info = broken.get(fault, (observation, reward, info))
        return observation, reward, False, False, info


def faulty_world() -> Any:
    """The world of such environments."""
    return safemeta.gymnasium_world(
        lambda parameters: Faulty(**parameters),
        horizon=3, limits=1.0, tasks={"side": (0.0, 1.0)}, timeout=TIMEOUT, name="faulty",
    )  # fmt: skip


def complaints(fault: str, algorithm: str, world: Any, folder: Path) -> list[str]:
    """What is wrong with how training ends under a fault; nothing where it ends as it should."""
    from safemeta.experiment.errors import UserError
    from safemeta.experiment.run import load
    from safemeta.sim.failures import pending

    Faulty.fault, Faulty.episodes = fault, 0
    wrong = []
    try:
        safemeta.train(algorithm, world, iterations=9, checkpoint_every=9, out=folder, **SMALL[algorithm])
        wrong.append("it went on")
    except UserError as problem:
        said = str(problem)
        where = f"failed at {'reset' if fault.endswith('reset') else 'step 2'}: {FAULTS[fault]}"
        wanted = ("Training stopped at iteration ", "the environment of task ", "(side 0.", ", episode ", where)
        wrong += [f"'{words}' is not in: {said}" for words in (*wanted, "is saved in") if words not in said]
        wrong += ["the exit code is not 1"] * (problem.exit_code != 1)
    except Exception as problem:
        wrong.append(f"{type(problem).__name__}: {problem}")
    finally:
        Faulty.fault = ""
    wrong += ["an error was left over"] * (pending() is not None)
    saved = load(folder, world=world)
    wrong += ["nothing was saved"] * (saved.iteration < 1)
    wrong += ["the logs do not fit the state"] * (len(saved.metrics()) != saved.iteration)
    on = safemeta.train(resume=folder, task=world, iterations=saved.iteration + 1)  # once it is mended
    return wrong + ["it did not go on"] * (on.iteration != saved.iteration + 1)


def all_environments() -> list[Row]:
    """Rows of how many faults ended training as they should, by algorithm."""
    rows = []
    for algorithm in SMALL:
        world, good = faulty_world(), 0
        for fault in FAULTS:
            with tempfile.TemporaryDirectory() as scratch:
                wrong = complaints(fault, algorithm, world, Path(scratch) / "run")
            good += not wrong
            for words in wrong:
                print(f"{algorithm}, {fault}: {words}", file=sys.stderr)
        rows.append(
            Row(f"faulty environments: {algorithm}", good, "ended well", "faults", len(FAULTS), good / len(FAULTS))
        )
    return rows
