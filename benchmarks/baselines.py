"""Do the baselines solve what can be solved exactly?

    python benchmarks/baselines.py [--case NAME ...] [--algorithm NAME ...] [--seeds N] [--json]

Every on-policy baseline is trained from scratch on single constrained tasks whose optimum is known from elsewhere, and
its last policy is judged as it is, noise included:

- `tabular-random`: a finite CMDP whose two limits both bind. The optimum is a linear programme's. A Gaussian policy
  scores the actions and the highest score is taken; with independent noise and a mean of its own in every state, such
  scores give every mixture of actions, so the class contains policies arbitrarily near to the optimum. The trained
  policy is turned into its table of probabilities by quadrature, and its return and costs are solved for exactly.
- `tabular-gridworld`: the same for a sparse reward behind hazards; one limit, which binds.
- `point-mass`: continuous control past an obstacle. The optimum is a convex programme's (`point_mass_optimum.py`); the
  trained policy is measured on fresh episodes.

TRPO, which ignores costs, is held against the unconstrained optimum, the others against the best return within the
limits. `ratio` is the share of that return (for the point mass, whose returns are negative, its inverse) or, in rows of
costs, limit over cost: at least 1 means that the limit is kept.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _table import Row, print_json
from jaxtyping import Float
from point_mass_optimum import optimum
from scipy.special import ndtr

from safemeta.algorithms import registry
from safemeta.core import Tasks
from safemeta.experiment.compilation import enable_cache
from safemeta.nets import GaussianPolicy
from safemeta.sim import FunctionalWorld
from safemeta.tasks import make
from safemeta.tasks.tabular import TabularCMDP, optimal_safe_policy, performance
from safemeta.tasks.tabular_families import DISCOUNT, cmdp_of

ALGORITHMS = ("trpo", "cpo", "crpo", "trpo-lagrangian", "ppo-lagrangian")
MEASURED_EPISODES = 4000


@dataclass(frozen=True)
class OneTask:
    """A family that consists of one task: the first that `family` draws with `seed`."""

    family: Any
    seed: int

    def sample(self, key: Any, count: int, split: str = "train") -> Tasks:
        """`count` times the task."""
        one = self.family.sample(jax.random.key(self.seed), 1)
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), one)

    def corners(self) -> Tasks:
        """The task."""
        return self.sample(None, 1)


@dataclass(frozen=True)
class Case:
    """A world of one task, its optima, and how a policy is judged: its return and costs."""

    world: FunctionalWorld
    free: float  # best return without limits
    safe: float  # best return within the limits
    source: str
    limits: tuple[float, ...]
    judge: Callable[[GaussianPolicy], tuple[float, Float[np.ndarray, " costs"]]]
    iterations: int
    settings: dict[str, Any]
    multipliers: dict[str, Any]  # further settings of learners that have multipliers: their rates have a unit
    cpo_margin: float | None = None  # CPO foresees what a step does to a cost: the others' distance would be lost on it


def choice_probabilities(
    mean: Float[np.ndarray, "states actions"], std: Float[np.ndarray, "states actions"], nodes: int = 2001
) -> Float[np.ndarray, "states actions"]:
    """`P(a = argmax_b N(mean_b, std_b))`: the integral over a's score of all others being below, by trapezoids."""
    x = np.linspace(-8, 8, nodes)
    density = np.exp(-(x**2) / 2)
    score = mean[..., None] + std[..., None] * x  # [states, actions, nodes]
    below = ndtr((score[:, :, None] - mean[:, None, :, None]) / std[:, None, :, None])
    others = ~np.eye(mean.shape[1], dtype=bool)[None, :, :, None]
    won = np.where(others, below, 1).prod(2) @ density
    return won / won.sum(1, keepdims=True)


def table_of(policy: GaussianPolicy, states: int) -> Float[np.ndarray, "states actions"]:
    """The probabilities of actions in each state of a finite CMDP."""
    found = policy(jnp.eye(states))
    return choice_probabilities(np.asarray(found.mean, float), np.exp(np.asarray(found.log_std, float)))


def tabular(name: str, seed: int, iterations: int, margin: float, rate: float) -> Case:
    """The task of a tabular family that `seed` draws."""
    whole = make(name)
    assert isinstance(whole, FunctionalWorld)
    world = replace(whole, family=OneTask(whole.family, seed))
    task = world.corners()[0]
    model: TabularCMDP = cmdp_of(task)
    limits = tuple(float(limit) for limit in task.limits)

    def judge(policy: GaussianPolicy) -> tuple[float, Any]:
        table = jnp.asarray(table_of(policy, model.reward.shape[0]), model.reward.dtype)
        found = np.asarray(performance(model, table, DISCOUNT))
        return float(found[0]), found[1:]

    safe = optimal_safe_policy(model, limits, DISCOUNT)
    free = optimal_safe_policy(model, (float("inf"),) * len(limits), DISCOUNT)
    settings = DISCOUNTED | {"margin": margin}
    return Case(world, free.reward, safe.reward, "linear programme", limits, judge, iterations, settings, damped(rate))


def point_mass(iterations: int, rate: float) -> Case:
    """The task of `point-mass`."""
    world = make("point-mass")
    assert isinstance(world, FunctionalWorld)
    tasks, best = world.corners(), optimum()

    def judge(policy: GaussianPolicy) -> tuple[float, Any]:
        measured = world.measure(policy, tasks, jax.random.key(10**6), MEASURED_EPISODES)
        return float(measured.episode_return.mean()), np.asarray(measured.costs.mean((0, 1)))

    limits = tuple(float(limit) for limit in tasks.limits[0])
    settings = {"tasks": 1, "episodes": 200, "critic": "linear", "kl_radius": 0.02, "margin": 0.5}
    return Case(
        world, best.free_above, best.safe, "convex programme", limits, judge, iterations, settings, damped(rate), 0.2
    )


def damped(rate: float) -> dict[str, Any]:
    """Projected gradients with damping; `rate` in reward per iteration and squared unit of cost."""
    return {"multiplier_update": "gradient", "multiplier_learning_rate": rate, "multiplier_damping": DAMPING * rate}


DISCOUNTED = {"tasks": 1, "episodes": 300, "reward_weighting": "discounted", "hidden": (32,), "initial_log_std": 0.0}
DAMPING = 40  # iterations
CASES: dict[str, Callable[[], Case]] = {
    "tabular-random": lambda: tabular("tabular-random", 0, 80, 0.02, 0.1),
    "tabular-gridworld": lambda: tabular("tabular-gridworld", 0, 80, 0.1, 1.0),
    "point-mass": lambda: point_mass(100, 0.01),
}
# CRPO takes whole steps, up the reward or down a cost, so its cost swings about the limit by what a step can do: by 1.2
# of a limit of 2 on the point mass with a radius of 0.01. That goes with the root of the radius, and so does the way
# that a step makes. An eighth of the others' radius in four times as many steps is 1.4 times their way.
CRPO_ITERATIONS, CRPO_RADIUS = 4, 0.125


def learner(case: Case, name: str) -> Any:
    """The algorithm called `name` with the settings of the case that it knows."""
    module = registry.load(name)
    known = {field.name for field in fields(module.config)}
    settings = case.settings | (case.multipliers if name.endswith("lagrangian") else {})
    config = module.config(**{key: value for key, value in settings.items() if key in known})
    if name == "cpo" and case.cpo_margin is not None:
        config = replace(config, margin=case.cpo_margin)
    if name == "crpo":
        config = replace(config, kl_radius=CRPO_RADIUS * config.kl_radius)
    return module.algorithm(config)


def train(case: Case, name: str, seed: int, iterations: int | None = None) -> GaussianPolicy:
    """The last policy of a training from scratch."""
    algorithm = learner(case, name)
    state = algorithm.init(jax.random.key(seed), case.world.cmdp)
    for iteration in range(iterations or case.iterations * (CRPO_ITERATIONS if name == "crpo" else 1)):
        state, _ = algorithm.iterate(state, case.world, jax.random.fold_in(jax.random.key(seed), iteration))
    return algorithm.policy(state)


def rows_of(case_name: str, case: Case, name: str, policies: list[GaussianPolicy], seconds: float) -> Iterator[Row]:
    """Return and costs of the trained policies: means over seeds, and the worst of them."""
    judged = [case.judge(policy) for policy in policies]
    returns, costs = np.array([r for r, _ in judged]), np.stack([c for _, c in judged])
    goal, kind = (case.free, "without limits") if name == "trpo" else (case.safe, "within limits")
    label, peer = f"{case_name}: {name}", f"{case.source}, {kind}"

    def share(value: float) -> float:
        return value / goal if goal > 0 else goal / value

    yield Row(f"{label}, return", float(returns.mean()), "return", peer, goal, share(float(returns.mean())))
    yield Row(f"{label}, lowest return", float(returns.min()), "return", peer, goal, share(float(returns.min())))
    if name != "trpo":
        for index, (cost_name, limit) in enumerate(zip(case.world.cmdp.cost_names, case.limits, strict=True)):
            for words, value in (("", costs[:, index].mean()), ("highest ", costs[:, index].max())):
                ratio = float(limit / max(value, 1e-9)) if value > 1e-9 else None
                yield Row(f"{label}, {words}{cost_name}", float(value), "cost", "limit", limit, ratio)
    yield Row(f"{label}, training", seconds, "s")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="On-policy baselines on tasks with a known optimum.")
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME", help="of which")
    parser.add_argument("--algorithm", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each")
    parser.add_argument("--iterations", type=int, default=None, help="of a training; by default as the case needs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or (options.iterations is not None and options.iterations < 1):
        parser.error("--seeds and --iterations must be at least 1")
    enable_cache()
    table: list[Row] = []
    for case_name in options.case:
        case = CASES[case_name]()
        for name in options.algorithm:
            start = time.perf_counter()
            policies = [train(case, name, seed, options.iterations) for seed in range(options.seeds)]
            seconds = (time.perf_counter() - start) / options.seeds
            for row in rows_of(case_name, case, name, policies, seconds):
                table.append(row)
                against = f"{row.peer_value:10.4f}  {row.peer}" if row.peer else ""
                ratio = f"{row.ratio:8.4f}" if row.ratio is not None else " " * 8
                line = f"{row.case:<58} {row.value:10.4f} {row.unit:<7}{ratio} {against}"
                print(line, file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print_json("baselines", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
