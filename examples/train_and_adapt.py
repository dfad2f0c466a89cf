"""Meta-train in a loop of your own, adapt to new tasks, and judge every policy that was used on the way.

`safemeta.train` and `safemeta.adapt` do the same and add run folders, checkpoints and intervals.

    python examples/train_and_adapt.py [ITERATIONS] [ADAPTATION_STEPS]
"""

import sys

import equinox as eqx
import jax

import safemeta
from safemeta.algorithms import registry


def main(iterations: int = 20, steps: int = 5, tasks: int = 8, episodes: int = 20) -> None:
    """Train for a few iterations (150 are usual), adapt, and print return and largest cost after each step."""
    world = safemeta.make("point-circle")  # a task family and its simulator
    dual = registry.load("dual")
    algorithm = dual.algorithm(dual.config(corner_tasks=3))  # any field of its Config can be changed

    # An algorithm is a pair of pure functions over one state; all randomness comes in as keys.
    key = jax.random.key(0)
    state = algorithm.init(jax.random.fold_in(key, 0), world.cmdp)
    for iteration in range(1, iterations + 1):
        state, metrics = algorithm.iterate(state, world, jax.random.fold_in(key, iteration))
        print(f"iteration {iteration:3}  return after one step {float(metrics['return_after']):6.2f}", flush=True)

    # Tasks that training has not seen. Adaptation explores each with the policy that it has so far.
    sample_key, adapt_key, judge_key = jax.random.split(jax.random.key(1), 3)
    unseen = world.sample(sample_key, tasks, "test")
    adaptation = algorithm.adapt(state, world, unseen, adapt_key, steps)

    # Fresh episodes judge: those that chose a policy flatter it. Policy 0 is the meta-policy.
    for step in range(steps + 1):
        policies = jax.tree.map(lambda leaf, step=step: leaf[step] if eqx.is_array(leaf) else leaf, adaptation.policies)
        fresh = world.measure(policies, unseen, jax.random.fold_in(judge_key, step), episodes, per_task=True)
        mean_return = float(fresh.episode_return.mean())
        cost = fresh.costs.mean(axis=1)[:, 0]  # of each task: the mean over its episodes
        limit = float(unseen.limits[0, 0])
        print(f"step {step:2}  return {mean_return:6.2f}  largest cost {float(cost.max()):5.2f}  (limit {limit:g})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
