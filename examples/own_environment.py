"""Train on a Gymnasium environment of your own: CPO, and `dual`, which then adapts to new tasks.

The environment is a cart on a rail that carries a load. It is paid for how fast it gets ahead, and it costs where the
load swings out too far. What differs from task to task is the length of the rope, which is not seen.

    python examples/own_environment.py [ITERATIONS] [ADAPTATION_STEPS]
"""

import sys
import tempfile

import gymnasium
import numpy as np

import safemeta


class Crane(gymnasium.Env):
    """A cart whose acceleration (m / s^2) is the action, and a load on a rope under it; small swings."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, rope: float = 1.0):
        self.rope = rope  # m

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.speed, self.angle, self.rate = 0.0, *self.np_random.normal(0.0, 0.02, 2)
        return self.seen(), {}

    def seen(self):
        return np.array([self.speed, self.angle, self.rate], np.float32)

    def step(self, action):
        push = float(action[0])
        self.rate += 0.05 * (-(9.81 * self.angle + push) / self.rope - 0.5 * self.rate)
        self.angle += 0.05 * self.rate
        self.speed += 0.05 * (push - 0.3 * self.speed)
        cost = float(abs(self.angle) > 0.05)  # rad
        return self.seen(), self.speed, False, False, {"cost": cost}


def main(iterations: int = 20, steps: int = 5, tasks: int = 8, episodes: int = 20, **settings) -> None:
    """Check the costs, train both, and adapt."""
    report = safemeta.check_costs(Crane())  # says what is wrong with them, and what random actions cost
    print(f"random actions: a cost in {report.share[0]:.0%} of all steps")

    world = safemeta.gymnasium_world(
        lambda parameters: Crane(parameters["rope"]),
        horizon=60,
        limits=5.0,  # of the discounted cost of an episode
        tasks={"rope": (0.5, 1.5)},  # from the easy to the hard end: long ropes swing slowly and for long
    )
    folder = tempfile.mkdtemp(prefix="own-environment-")
    cpo = safemeta.train("cpo", world, iterations=iterations, out=f"{folder}/cpo", **settings)
    judged = safemeta.evaluate(cpo, tasks=tasks, episodes=episodes)
    print(f"cpo   return {judged.episode_return.mean:6.2f}  {worst(judged.largest_cost)}")

    dual = safemeta.train("dual", world, iterations=iterations, out=f"{folder}/dual", **settings)
    found = safemeta.adapt(dual, tasks=tasks, steps=steps, episodes=episodes)
    print(f"dual  return {found.before.mean:6.2f} -> {found.after.mean:.2f}  {worst(found.largest_cost)}")
    print(f"runs: {folder}")


def worst(costs) -> str:
    """The largest cost of all policies on all tasks, and how many of them are above the limit for certain."""
    return ", ".join(
        f"largest {cost.name} {cost.cost.mean:.2f} (limit {cost.limit:g}), above it with certainty:"
        f" {cost.significantly_above} of {cost.policies}"
        for cost in costs
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
