"""Gymnasium environments as users write them, and some that they should not have written."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Slide(gymnasium.Env):
    """A bead on a rail: the reward is its position, the cost how far it is beyond `edge`; ends beyond twice that."""

    def __init__(self, edge=0.5, ends=True):
        self.edge, self.ends = edge, ends
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-0.5, 0.5, (1,), np.float32)
        self.position = self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.uniform(-0.1, 0.1), 0
        return self.seen(), {}

    def seen(self):
        return np.array([self.position, self.steps], np.float32)

    def step(self, action):
        assert self.action_space.contains(action)
        self.position += float(action[0])
        self.steps += 1
        over = abs(self.position) > 2 * self.edge
        info = {"cost": max(abs(self.position) - self.edge, 0.0)}
        return self.seen(), self.position, self.ends and over, False, info


class TwoCosts(Slide):
    def step(self, action):
        *step, info = super().step(action)
        return *step, {"costs": {"beyond": info["cost"], "effort": np.abs(action)[0]}}


class SixValues(Slide):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, info["cost"], terminated, truncated, {}


class Settable(Slide):
    made = 0

    def __init__(self):
        Settable.made += 1
        super().__init__()

    def set_task(self, parameters):
        self.edge = parameters["edge"]


class Broken(Slide):
    """Does what it is told at step 3 where the edge is above 0.6."""

    def __init__(self, edge, fault):
        super().__init__(edge, ends=False)
        self.fault = fault

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.steps == 3 and self.edge > 0.6:
            if self.fault == "raises":
                raise RuntimeError("the motor\nis on fire.")
            if self.fault == "shape":
                observation = np.zeros(3, np.float32)
            if self.fault == "observation":
                observation[1] = np.nan
            if self.fault == "reward":
                reward = np.float64("inf")
            if self.fault == "cost":
                info["cost"] = np.nan
            if self.fault == "missing":
                del info["cost"]
            if self.fault == "text":
                info["cost"] = "much"
        return observation, reward, terminated, truncated, info
