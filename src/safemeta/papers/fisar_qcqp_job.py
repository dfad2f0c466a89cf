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
from safemeta.experiment.statistics import bootstrap_columns
from safemeta.papers.plan import Progress
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
            result["figure"] = self._figure(network, config, family, progress.part(0.3))
            result["speeds"] = self._speeds(network, config, progress.part(0.3))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, result)

    def _figure(self, network: Any, config: Any, family: Any, reporter: Any) -> dict[str, Any]:
        """Every optimizer on the same fresh problems."""
        import jax

        from safemeta.papers import fisar_qcqp as qcqp

        budget = BUDGETS[self.budget]
        network = qcqp.in_double(network)
        tuning = qcqp.draw(family, jax.random.key(TUNING_SEED), budget.problems)
        test = qcqp.draw(family, jax.random.key(TEST_SEED), budget.problems)
        keeping = qcqp.learned_rule(network, config, class_k=qcqp.KEEPING, trials=qcqp.TRIALS)
        runs: list[tuple[str, Any, Any, float]] = [
            ("learned", qcqp.learned_rule(network, config), test.start, config.step),
            ("learned, true constraints", keeping, test.start, config.step),
            ("learned, true constraints, from inside", keeping, test.inside, config.step),
            ("learned, from inside", qcqp.learned_rule(network, config), test.inside, config.step),
        ]
        for base in ("sgd", "adam"):
            size, _ = qcqp.tuned(family, tuning, tuning.start, base, config, budget.steps)
            runs.append((f"projected {base}", qcqp.projected_rule(base, config), test.start, size))
        for base in qcqp.BASES:
            size = qcqp.tuned_free(family, tuning, base, min(AT, budget.steps))
            runs.append((f"{base} without constraints", qcqp.free_rule(base), test.start, size))
        reporter.begin("Judging", len(runs))
        found = {}
        for index, (name, rule, start, size) in enumerate(runs, 1):
            curves = qcqp.follow(family, test, start, rule, budget.steps, size)
            found[name] = {"step": size, **summary(curves.objective, curves.violation, test.optimum)}
            reporter.advance(index, {})
        found["optimum"] = float(test.optimum.mean())
        return found

    def _speeds(self, network: Any, config: Any, reporter: Any) -> dict[str, Any]:
        """Steps until solved, by size and start; baselines are tuned on other problems of the same size and start."""
        import jax

        from safemeta.papers import fisar_qcqp as qcqp
        from safemeta.tasks.qcqp import QCQPFamily

        budget = BUDGETS[self.budget]
        network, found = qcqp.in_double(network), {}
        reporter.begin("Comparing speeds", 6 * len(budget.sizes))
        for size in budget.sizes:
            family = QCQPFamily(size, self.constraints)
            tuning = qcqp.draw(family, jax.random.key(TUNING_SEED + size), budget.problems)
            test = qcqp.draw(family, jax.random.key(TEST_SEED + size), budget.problems)
            for place, tune_at, start in (
                ("outside", tuning.start, test.start),
                ("inside", tuning.inside, test.inside),
            ):
                rows: dict[str, Any] = {}
                for method in ("learned", "sgd", "adam"):
                    if method == "learned":
                        rule, step = qcqp.learned_rule(network, config), config.step
                    else:
                        step, _ = qcqp.tuned(family, tuning, tune_at, method, config, budget.steps)
                        rule = qcqp.projected_rule(method, config)
                    curves = qcqp.follow(family, test, start, rule, budget.steps, step)
                    needed = qcqp.steps_to_solve(curves, test.optimum)
                    rows[method] = {"step": step, **solved(needed, budget.steps)}
                    reporter.advance(len(found) * 3 + len(rows), {})
                found[f"{size} {place}"] = rows
        return found

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
