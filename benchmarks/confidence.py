"""How often a stated confidence fails: `python benchmarks/confidence.py [RUN...] [--tasks 1000] [--json]`.

Adaptation to unseen tasks with and without `confidence`, and what it costs in return. RUN are folders of trained
meta-runs: their policies are judged by means over fresh episodes. Without any, small random CMDPs are adapted to, on
which the true cost of every policy is exact; each limit is `--room` above what the first policy costs on the task, so
that adaptation begins safe, as in the theorems. Counted are the policies 1..K that a confidence speaks of,
and tasks on which any of them is above its limit; the meta-policy itself, used before anything is known of a task, is
counted apart.

A mean of some episodes is above a limit by chance, too. With `--second-look N`, policies of a RUN whose first mean is
not more than three standard errors below the limit are judged anew, on N other episodes, and that mean counts.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from safemeta.algorithms import dual
from safemeta.experiment import load
from safemeta.experiment.compilation import enable_cache
from safemeta.experiment.statistics import binomial_interval, bootstrap
from safemeta.sim import FunctionalWorld
from safemeta.tasks.tabular import TabularEnvironment, performance
from safemeta.tasks.tabular_families import RandomFamily, cmdp_of, random_world

CHUNK = 100  # tasks at once
# Without margins, so that there is something to prevent; on tables the paper's unnatural forms are not needed.
BOLD = dual.Config(
    tasks=10, episodes=10, corner_tasks=0, hidden=(16,), adapt="all", margin=0.0, meta_margin=0.0, kl_limit=0.03,
    cost_kl_weight=0.5, cost_episodes=0, integral_gain=0.0, validation_margin=0.0, fisher_states=1000,
)  # fmt: skip
CAREFUL = dataclasses.replace(BOLD, margin=0.1, meta_margin=0.1)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A meta-policy, and how its adapted policies are judged."""

    name: str
    algorithm: Any
    state: Any
    world: Any
    exact: bool


def two_actions(limit: float) -> FunctionalWorld:
    """Random CMDPs of 6 states and 2 actions, with one cost.

    Of two actions the one with the higher score is taken, so that of Gaussian scores the first is taken with
    probability `Phi((m_1 - m_2) / sqrt(s_1^2 + s_2^2))`: a network's policy is a table, whose cost is exact.
    """
    family = RandomFamily(states=6, actions=2, limits=(limit,))
    cmdp = dataclasses.replace(
        random_world(limit).cmdp, observation_size=6, action_size=2, cost_names=("cost",), limits=(limit,)
    )
    return FunctionalWorld(cmdp, TabularEnvironment(), family)


def tabular_case(name: str, config: dual.Config, iterations: int, seed: int) -> Case:
    """Meta-trained here, in seconds."""
    world, algorithm, key = two_actions(10.0), dual.Algorithm(config), jax.random.key(seed)
    state = algorithm.init(key, world.cmdp)
    for index in range(iterations):
        state, _ = algorithm.iterate(state, world, jax.random.fold_in(key, index))
    return Case(f"random CMDPs, {name}", algorithm, state, world, exact=True)


def exact_values(world: Any, policy: Any, tasks: Any) -> tuple[jax.Array, jax.Array]:
    """Discounted return and cost of each task's policy, `[tasks]` each."""
    from jax.scipy.stats import norm

    states = jnp.eye(world.cmdp.observation_size)

    def one(policy: Any, task: Any) -> jax.Array:
        found = policy(states)
        spread = jnp.exp(2 * found.log_std).sum(-1) ** 0.5
        first = norm.cdf((found.mean[:, 0] - found.mean[:, 1]) / spread)
        return performance(cmdp_of(task), jnp.stack([first, 1 - first], axis=1), world.cmdp.discount)

    found = jax.vmap(one)(policy, tasks)
    return found[:, 0], found[:, 1]


@eqx.filter_jit
def judged(case: Case, policy: Any, tasks: Any, key: Any, episodes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return, first cost and its standard error, of one policy per task, `[tasks]` each."""
    if case.exact:
        returns, costs = exact_values(case.world, policy, tasks)
        return returns, costs, jnp.zeros_like(costs)
    found = case.world.measure(policy, tasks, key, episodes, per_task=True)
    costs = found.costs[..., 0]
    return found.episode_return.mean(-1), costs.mean(-1), costs.std(-1, ddof=1) / episodes**0.5


def judged_anew(
    case: Case, policies: Any, tasks: Any, costs: np.ndarray, errors: np.ndarray, key: Any, episodes: int
) -> np.ndarray:
    """`costs[steps, tasks]`, of policies near or above their limit from other episodes."""
    near = np.argwhere(costs + 3 * errors > np.asarray(tasks.limits[:, 0]))
    costs = costs.copy()
    for part, start in enumerate(range(0, len(near), CHUNK)):
        step, task = np.resize(near[start : start + CHUNK], (CHUNK, 2)).T  # the last part repeats itself
        chosen = jax.tree.map(lambda leaf, at=(step, task): leaf[at] if eqx.is_array(leaf) else leaf, policies)
        costs[step, task] = judged(case, chosen, tasks[task], jax.random.fold_in(key, part), episodes)[1]
    return costs


def unstacked(policies: Any, count: int) -> list[Any]:
    """Policies of each step."""
    return [jax.tree.map(lambda leaf, index=index: leaf[index], policies) for index in range(count)]


def adapted(case: Case, confidence: float | None, options: Any) -> dict[str, Any]:
    """What adaptation did on all tasks; the same tasks and episodes with and without a confidence."""
    key, found, outcomes = jax.random.key(2000 + options.seed), [], {}
    for chunk in range(-(-options.tasks // CHUNK)):
        task_key, act_key, judge_key = jax.random.split(jax.random.fold_in(key, chunk), 3)
        tasks = case.world.sample(task_key, min(CHUNK, options.tasks), "test")
        if case.exact:
            first = case.algorithm.adapt(case.state, case.world, tasks, act_key, 0).policies
            costs = judged(case, unstacked(first, 1)[0], tasks, judge_key, 0)[1]
            tasks = dataclasses.replace(tasks, limits=costs[:, None] + options.room)
        result = case.algorithm.adapt(case.state, case.world, tasks, act_key, options.steps, confidence)
        rows = [
            judged(case, policy, tasks, jax.random.fold_in(judge_key, step), options.episodes)
            for step, policy in enumerate(unstacked(result.policies, options.steps + 1))
        ]
        returns, costs, errors = map(np.stack, zip(*rows, strict=True))
        if options.second_look and not case.exact:
            again = jax.random.fold_in(judge_key, options.steps + 1)
            costs = judged_anew(case, result.policies, tasks, costs, errors, again, options.second_look)
        found.append((returns, costs, tasks.limits[:, 0]))
        for index, name in enumerate(result.outcome_names):
            outcomes[name] = outcomes.get(name, 0) + int((np.asarray(result.outcome) == index).sum())
        print(f"{case.name}, confidence {confidence}: {(chunk + 1) * CHUNK} tasks", file=sys.stderr, flush=True)
    returns, costs = (np.concatenate(parts, axis=1) for parts in list(zip(*found, strict=True))[:2])
    limits = np.concatenate([limit for *_, limit in found])
    above = costs > limits
    return {
        "case": case.name,
        "confidence": confidence,
        "tasks": int(limits.size),
        "steps": options.steps,
        "exact": case.exact,
        "episodes": None if case.exact else options.episodes,
        "second_look": None if case.exact else options.second_look,
        "limit": float(limits.mean()),
        "meta_policy_above": share(above[0]),
        "policies_above": share(above[1:].ravel()),
        "policies_above_by_a_tenth": share((costs > 1.1 * limits)[1:].ravel()),
        "adaptations_with_any_above": share(np.any(above[1:], axis=0)),
        "return": [spread(row) for row in returns],
        "cost": [spread(row) for row in costs],
        "outcomes": outcomes,
    }


def share(happened: Any) -> dict[str, Any]:
    """Count and share, with the exact binomial interval (for policies of one task, which are alike, too narrow)."""
    count, of = int(happened.sum()), int(happened.size)
    low, high = binomial_interval(count, of)
    return {"count": count, "of": of, "share": count / of, "low": low, "high": high}


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean over tasks with its bootstrap interval."""
    low, high = bootstrap(values)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def line(row: dict[str, Any]) -> str:
    """For people."""
    above, tasks = row["policies_above"], row["adaptations_with_any_above"]
    stated = "without" if row["confidence"] is None else f"confidence {row['confidence']:g}"
    return (
        f"{row['case']}, {stated}: {above['share']:.1%} [{above['low']:.1%}, {above['high']:.1%}] of policies above the"
        f" limit, {tasks['share']:.1%} of adaptations; meta-policy {row['meta_policy_above']['share']:.1%}; return"
        f" {row['return'][0]['mean']:.2f} -> {row['return'][-1]['mean']:.2f}"
        f" [{row['return'][-1]['low']:.2f}, {row['return'][-1]['high']:.2f}], cost {row['cost'][0]['mean']:.2f} ->"
        f" {row['cost'][-1]['mean']:.2f}"
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--tasks", type=int, default=1000, help=f"in chunks of {CHUNK}")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100, help="fresh episodes that judge each policy of a RUN")
    parser.add_argument("--second-look", type=int, default=0, help="further episodes for policies near their limit")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--iterations", type=int, default=10, help="of meta-training on random CMDPs")
    parser.add_argument("--room", type=float, default=0.5, help="between first costs and limits on random CMDPs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    enable_cache()
    if options.runs:
        runs = [load(folder) for folder in options.runs]
        cases = [Case(run.name, run.algorithm, run.state, run.world, exact=False) for run in runs]
    else:
        named = {"dual without margins": BOLD, "dual with margins of 10 %": CAREFUL}
        cases = [tabular_case(name, config, options.iterations, options.seed) for name, config in named.items()]
    rows = [adapted(case, confidence, options) for case in cases for confidence in (None, options.confidence)]
    if options.json:
        print(json.dumps({"benchmark": "confidence", "rows": rows}))
    else:
        print("\n".join(map(line, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
