"""A task family of your own, written in JAX: train `dual` on it, and adapt to tasks that were not trained on.

A lorry drives along a winding road. It is paid for how far it gets, and it costs where it slides: where the bend asks
for more grip than the road has. How much that is differs from task to task, and is not seen.

    python examples/own_task.py [ITERATIONS] [ADAPTATION_STEPS]
"""

import sys
import tempfile
from dataclasses import dataclass

import jax
import jax.numpy as jnp

import safemeta
from safemeta.sim import Step

TIMESTEP = 0.2  # s


@dataclass(frozen=True)  # so that it can be hashed: compiled functions are kept for each environment
class WindingRoad:
    """A lorry: its place (m) and speed (m / s). The action is the speed to be kept: 10 m / s at 0, 20 m / s at 1."""

    length: float = 40.0  # m, from one left bend to the next
    bend: float = 0.03  # 1 / m, where the road bends most

    def reset(self, parameters, key):
        state = self.length * jax.random.uniform(key), jnp.asarray(5.0)
        return state, self.seen(*state)

    def seen(self, place, speed):
        ahead = place + jnp.array([0.0, 5.0, 10.0])
        return jnp.concatenate([speed[None] / 10, self.curvature(ahead) / self.bend])

    def curvature(self, place):
        return self.bend * jnp.sin(2 * jnp.pi * place / self.length)

    def step(self, parameters, state, action):
        place, speed = state
        speed = speed + TIMESTEP * (10 + 10 * jnp.clip(action[0], -1, 1) - speed)
        place = place + TIMESTEP * speed
        slides = speed**2 * jnp.abs(self.curvature(place)) > 9.81 * parameters["grip"]
        reward, costs = TIMESTEP * speed / 10, jnp.stack([slides]).astype(float)
        return (place, speed), Step(self.seen(place, speed), reward, costs, terminated=jnp.asarray(False))


def main(iterations: int = 25, steps: int = 20, tasks: int = 20, episodes: int = 100, **settings) -> None:
    """Train, adapt, and show what it gained and what it cost."""
    world = safemeta.functional_world(
        WindingRoad(),
        action_size=1,
        horizon=60,
        limits=5.0,  # of the discounted number of steps in which it slides
        cost_names=["slides"],
        tasks={"grip": (0.9, 0.3)},  # from the easy to the hard end: dry, and icy; drawn anew for every task
        # test_tasks={"grip": (0.6, 0.35)} would give the split "test" another range; "validation" is as "train"
    )
    folder = tempfile.mkdtemp(prefix="own-task-")
    run = safemeta.train("dual", world, iterations=iterations, out=f"{folder}/dual", **settings)
    report = safemeta.adapt(run, tasks=tasks, steps=steps, episodes=episodes)
    for name, found in (("before", report.before), ("after", report.after)):
        print(f"return {name:6} adaptation: {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]")
    for largest in report.largest_cost:  # of all policies used on the way, on all tasks
        cost = largest.cost
        print(f"largest {largest.name}: {cost.mean:.2f} [{cost.low:.2f}, {cost.high:.2f}], limit {largest.limit:g}")
    print(f"every policy safe: {report.safe}")
    print(f"pictures: {report.picture} and {safemeta.plot(run)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
