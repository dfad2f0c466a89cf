"""Adaptation to unseen tasks: from a meta-trained policy, from an untrained one, and CPO from scratch.

    python benchmarks/adaptation.py RUN... [--draws 3] [--tasks 20] [--steps 20] [--out DIR] [--json]

RUN are folders of `safemeta train dual --task point-circle --seed N` with different seeds. Every contender gets the
same unseen tasks and the same number of environment steps on them (`episodes` of the run's config per step); every
policy it uses is judged on fresh episodes that adapted nothing. Intervals are 95 % bootstrap intervals over
(training seed, draw of tasks, task).
"""

import argparse
import dataclasses
import json
import operator
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from safemeta.algorithms import cpo, dual
from safemeta.experiment import load
from safemeta.experiment.compilation import enable_cache
from safemeta.experiment.statistics import bootstrap

CHECKPOINTS = (0, 1, 5, 10, 20)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one contender on one draw of tasks: `[policies, tasks]`."""

    returns: np.ndarray
    costs: np.ndarray
    limit: float


def judge(world: Any, policies: Any, tasks: Any, key: Any, episodes: int) -> Outcome:
    """Fresh episodes for every policy of every task; the first cost."""

    @eqx.filter_jit
    def one(policy: Any, key: Any) -> tuple[Any, Any]:
        measured = world.measure(policy, tasks, key, episodes, per_task=True)
        return measured.episode_return.mean(-1), measured.costs[..., 0].mean(-1)

    count = jax.tree.leaves(policies)[0].shape[0]
    rows = []
    for index in range(count):
        policy = jax.tree.map(operator.itemgetter(index), policies)
        rows.append(one(policy, jax.random.fold_in(key, index)))
    returns, costs = (np.asarray(part) for part in zip(*rows, strict=True))
    return Outcome(returns, costs, float(tasks.limits[0, 0]))


def cpo_from_scratch(config: dual.Config, world: Any, tasks: Any, key: Any, steps: int) -> Any:
    """A policy of its own for each task, trained by CPO from a random start; all tasks in one vmapped program."""
    algorithm = cpo.Algorithm(cpo.Config(tasks=1, episodes=config.episodes, hidden=config.hidden))
    start = jax.vmap(lambda k: algorithm.init(k, world.cmdp))(jax.random.split(key, tasks.count))

    @eqx.filter_jit
    def advance(states: Any, key: Any) -> Any:
        keys = jax.random.split(key, tasks.count)
        alone = jax.tree.map(lambda leaf: leaf[:, None], tasks)
        return jax.vmap(lambda s, t, k: algorithm.iterate_on(s, world, t, k)[0])(states, alone, keys)

    used, states = [start.policy], start
    for step in range(steps):
        states = advance(states, jax.random.fold_in(key, step))
        used.append(states.policy)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *used)


def contenders(run: Any, tasks: Any, key: Any, steps: int) -> dict[str, Any]:
    """Name -> policies `[policies, tasks, ...]`."""
    algorithm, world = run.algorithm, run.world
    untrained = algorithm.init(jax.random.fold_in(key, 1), world.cmdp)
    return {
        "dual, meta-trained": algorithm.adapt(run.state, world, tasks, key, steps).policies,
        "dual, untrained policy": algorithm.adapt(untrained, world, tasks, key, steps).policies,
        "CPO from scratch": cpo_from_scratch(algorithm.config, world, tasks, key, steps),
    }


def summary(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """What is claimed, with its numbers."""
    limit = outcomes[0].limit
    row: dict[str, Any] = {"contender": name, "draws": len(outcomes), "limit": limit}
    for step in CHECKPOINTS:
        if step < outcomes[0].returns.shape[0]:
            values = np.concatenate([outcome.returns[step] for outcome in outcomes])
            low, high = bootstrap(values)
            row[f"return_{step}"] = {"mean": float(values.mean()), "low": float(low), "high": float(high)}
    costs = np.stack([outcome.costs for outcome in outcomes])
    row["largest_cost"] = float(costs.max())
    row["largest_cost_per_draw"] = [round(float(cost.max()), 2) for cost in costs]
    row["policies"] = int(costs.size)
    row["policies_above_limit"] = int((costs > limit).sum())
    return row


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=100, help="fresh episodes that judge each policy")
    parser.add_argument("--out", type=Path, help="folder for comparison.json and comparison.png")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    enable_cache()
    gathered: dict[str, list[Outcome]] = {}
    for folder in options.runs:
        run = load(folder)
        for draw in range(options.draws):
            key = jax.random.fold_in(jax.random.key(1000 + run.config.seed), draw)
            task_key, act_key, judge_key = jax.random.split(key, 3)
            tasks = run.world.sample(task_key, options.tasks, "test")
            for name, policies in contenders(run, tasks, act_key, options.steps).items():
                outcome = judge(run.world, policies, tasks, judge_key, options.episodes)
                gathered.setdefault(name, []).append(outcome)
                print(
                    f"{folder} draw {draw} {name}: return {outcome.returns[0].mean():.1f} -> "
                    f"{outcome.returns[-1].mean():.1f}, largest cost {outcome.costs.max():.2f}",
                    file=sys.stderr,
                    flush=True,
                )
    rows = [summary(name, outcomes) for name, outcomes in gathered.items()]
    command = f"python benchmarks/adaptation.py {' '.join(str(r) for r in options.runs)} --draws {options.draws}"
    content = {"benchmark": "adaptation", "command": command, "training_seeds": len(options.runs), "details": rows}
    content["rows"] = [
        {
            "case": f"return after {options.steps} steps",
            "value": rows[0][f"return_{options.steps}"]["mean"],
            "unit": "return",
            "peer": other["contender"],
            "peer_value": other[f"return_{options.steps}"]["mean"],
            "ratio": rows[0][f"return_{options.steps}"]["mean"] / other[f"return_{options.steps}"]["mean"],
        }
        for other in rows[1:]
        if options.steps in CHECKPOINTS
    ]
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
        draw_picture(gathered, options.out / "comparison.png")
    if options.json:
        print(json.dumps(content))
    else:
        print_table(rows)
    return 0


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line for each contender."""
    for row in rows:
        returns = "  ".join(
            f"{name[7:]}: {value['mean']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"
            for name, value in row.items()
            if name.startswith("return_")
        )
        print(
            f"{row['contender']}: return after steps {returns}; largest cost {row['largest_cost']:.2f} "
            f"(limit {row['limit']:g}); {row['policies_above_limit']} of {row['policies']} policies above it"
        )


def draw_picture(gathered: dict[str, list[Outcome]], path: Path) -> None:
    """Return and largest cost over adaptation steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for (name, outcomes), colour in zip(gathered.items(), ("#0072B2", "#999999", "#D55E00"), strict=True):
        returns = np.concatenate([outcome.returns for outcome in outcomes], axis=1)
        costs = np.concatenate([outcome.costs for outcome in outcomes], axis=1)
        steps = np.arange(returns.shape[0])
        low, high = np.array([bootstrap(row) for row in returns]).T
        left.plot(steps, returns.mean(1), color=colour, label=name)
        left.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
        right.plot(steps, costs.max(1), color=colour, label=name)
    limit = next(iter(gathered.values()))[0].limit
    right.axhline(limit, color="#CC3311", ls="--", label="limit")
    left.set(xlabel="adaptation step", ylabel="return", title="Return on unseen tasks (mean, 95 % interval)")
    right.set(xlabel="adaptation step", ylabel="discounted cost", title="Largest cost over all tasks", ylim=(0, None))
    # Below both panels: curves may run anywhere within them.
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
