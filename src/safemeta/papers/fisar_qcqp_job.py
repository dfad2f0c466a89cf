"""One of the jobs behind FISAR's Figure 3: meta-train on quadratic problems, then judge on fresh ones."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment.evaluate import Interval
from safemeta.experiment.files import write_json
from safemeta.experiment.jobs import Progress
from safemeta.experiment.statistics import bootstrap_columns
from safemeta.solvers.projection import ProjectionMetric

FILE = "result.json"
AT = 100  # the step at which violations are judged
TRAINING_SEED, TUNING_SEED, TEST_SEED = 0, 1000, 2000


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is computed."""

    iterations: int  # of meta-training, with 64 problems each
    problems: int  # fresh ones, for every judgement
    steps: int  # of every optimizer on every problem
    sizes: tuple[int, ...]  # n of the comparison of speeds; the first is the training size


BUDGETS = {
    "smoke": Budget(2, 4, 20, (10,)),
    "laptop": Budget(300, 64, 300, (10, 20, 50)),
    "paper": Budget(1000, 64, 300, (10, 20, 50)),
}


@dataclasses.dataclass(frozen=True)
class QuadraticJob:
    """Optimizer for `constraints` constraints in one metric; see `work`."""

    constraints: int
    metric: ProjectionMetric
    seed: int
    budget: str

    @property
    def name(self) -> str:
        return f"qcqp-m{self.constraints}-{self.metric}-seed{self.seed}"

    @property
    def program(self) -> str:
        return f"qcqp-m{self.constraints}-{self.metric}"

    @property
    def seconds(self) -> float:
        return 60.0 if self.budget == "smoke" else 300.0

    def done(self, folder: Path) -> bool:
        """Whether the result is there."""
        return read(folder, self) is not None

    def work(self, folder: Path, progress: Progress) -> None:
        """Meta-train; follow all optimizers on fresh problems; compare speeds on several sizes."""
        import jax

        from safemeta.algorithms.fisar_meta import MetaConfig, meta_train
        from safemeta.tasks.qcqp import QCQPFamily

        budget = BUDGETS[self.budget]
        config = MetaConfig(metric=self.metric, iterations=budget.iterations)
        family = QCQPFamily(budget.sizes[0], self.constraints)
        reporter = progress.part(0.4)
        reporter.begin("Meta-training", budget.iterations)
        began = time.perf_counter()
        key = jax.random.fold_in(jax.random.key(TRAINING_SEED), self.seed)
        network, losses = meta_train(config, family, key, lambda i, _: reporter.advance(i, {}))
        losses = np.asarray(losses)
        result: dict[str, Any] = {
            "settings": self._settings(),
            "training": {"seconds": time.perf_counter() - began, "loss": losses.mean(1).tolist()},
        }
        with jax.enable_x64(True):
            result |= self._judged(network, config, progress.part(0.6))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, result)

    def _judged(self, network: Any, config: Any, reporter: Any) -> dict[str, Any]:
        """Every optimizer on the same fresh problems; steps until solved, by size and start.

        Baselines are tuned on other problems, of the same size and with the same kind of start.
        """
        import jax

        from safemeta.papers import fisar_qcqp as qcqp
        from safemeta.tasks.qcqp import QCQPFamily

        budget, figure, speeds = BUDGETS[self.budget], {}, {}
        network = qcqp.in_double(network)
        sizes = budget.sizes if self.metric == "euclidean" else budget.sizes[:1]  # speeds are compared in one metric
        reporter.begin("Judging", 3 * len(sizes) + 1 + len(qcqp.BASES))
        done = 0
        for size in sizes:
            family = QCQPFamily(size, self.constraints)
            test = qcqp.draw(family, jax.random.key(TEST_SEED + size), budget.problems)
            tuning = qcqp.draw(family, jax.random.key(TUNING_SEED + size), budget.problems)
            runs = {"learned": (config.step, config.step, qcqp.both_starts(
                family, test, qcqp.learned_rule(network, config), budget.steps
            ))}  # fmt: skip
            reporter.advance(done := done + 1, {})
            for base in ("sgd", "adam"):
                runs[base] = qcqp.tuned(family, tuning, test, qcqp.projected_rule(base, config), budget.steps)
                reporter.advance(done := done + 1, {})
            for index, place in enumerate(("outside", "inside")):
                rows = speeds[f"{size} {place}"] = {}
                for method, run in runs.items():
                    needed = qcqp.steps_to_solve(run[2][index], test.optimum)
                    rows[method] = {"step": run[index], **solved(needed, budget.steps)}
            if size > budget.sizes[0]:
                continue
            keeping = qcqp.learned_rule(network, config, class_k=qcqp.KEEPING, trials=qcqp.TRIALS)
            kept = qcqp.both_starts(family, test, keeping, budget.steps)
            reporter.advance(done := done + 1, {})
            curves = {
                "learned": (config.step, runs["learned"][2][0]),
                "learned, from inside": (config.step, runs["learned"][2][1]),
                "learned, true constraints": (config.step, kept[0]),
                "learned, true constraints, from inside": (config.step, kept[1]),
                "projected sgd": (runs["sgd"][0], runs["sgd"][2][0]),
                "projected adam": (runs["adam"][0], runs["adam"][2][0]),
            }
            for base in qcqp.BASES:
                curves[f"{base} without constraints"] = qcqp.tuned_free(family, tuning, test, base, budget.steps)
                reporter.advance(done := done + 1, {})
            for name, (step, found) in curves.items():
                figure[name] = {"step": step, **summary(found.objective, found.violation, test.optimum)}
            figure["optimum"] = float(test.optimum.mean())
        return {"figure": figure, "speeds": speeds}

    def _settings(self) -> dict[str, Any]:
        return json.loads(json.dumps({**dataclasses.asdict(self), "amount": dataclasses.asdict(BUDGETS[self.budget])}))


def read(folder: Path, job: QuadraticJob) -> dict[str, Any] | None:
    """The result of a finished job with these settings."""
    try:
        content = json.loads((folder / FILE).read_bytes())
        return content if content["settings"] == job._settings() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: to be made anew


def summary(objective: NDArray, violation: NDArray, optimum: NDArray) -> dict[str, Any]:
    """Curves with their intervals over problems, and how it ends."""
    at = min(AT, violation.shape[1] - 1)
    gap = objective[:, [at, -1]] / optimum[:, None] - 1
    return {
        "objective": curve(objective),
        "violation": curve(violation),
        "gap": gap.mean(0).tolist(),  # relative to the optimum: at step AT, and at the end
        "largest_gap": np.abs(gap).max(0).tolist(),
        "objective_ratio": (objective[:, [at, -1]].mean(0) / optimum.mean()).tolist(),  # of the means
        "largest_violation": [float(violation[:, at].max()), float(violation[:, -1].max())],
        "largest_violation_ever": float(violation.max()),
        "largest_increase": float(np.maximum(np.diff(np.maximum(violation, 0), axis=1), 0).max()),
    }


def curve(values: NDArray) -> dict[str, list[float]]:
    """Mean over problems and its interval, at every step."""
    values = np.nan_to_num(values, nan=1e9, posinf=1e9)
    low, high = bootstrap_columns(values.T)
    return {"mean": values.mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}


def solved(needed: NDArray, steps: int) -> dict[str, Any]:
    """Share of problems that were solved; mean steps, those that were not counting as twice the steps there were."""
    finite = np.where(np.isfinite(needed), needed, 2.0 * steps)
    return {
        "solved": float(np.isfinite(needed).mean()),
        "median": float(np.median(needed)) if np.isfinite(np.median(needed)) else None,
        "mean": dataclasses.asdict(Interval.over_tasks(finite)),
    }
