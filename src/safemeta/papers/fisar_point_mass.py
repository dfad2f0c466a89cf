"""The jobs behind FISAR's Figure 2: policies on the point mass, by FISAR and its rivals, at equal batches."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment.evaluate import FILE as EVALUATION
from safemeta.experiment.evaluate import Interval
from safemeta.experiment.jobs import Progress
from safemeta.papers.trials import Trial

TASK = "point-mass"
BATCH = {"tasks": 8, "episodes": 8, "hidden": (32, 32), "margin": 0.1}  # 64 episodes per update, for everybody
WINDOW, SPAN = 10, 100
FISAR = {**BATCH, "margin": 0.2, "rate": 4.0, "window": WINDOW, "span": SPAN, "policies": 1}
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fisar": ("fisar", FISAR),
    "fisar, untrained": ("fisar", FISAR),  # the LSTM as it is before any meta-training: descent with momentum
    "projected gradient": ("projected-gradient", {**BATCH, "step": 3e-3}),
    "primal-dual": ("primal-dual", {**BATCH, "step": 3e-3, "multiplier_step": 0.1}),
    "cpo": ("cpo", BATCH),
}


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is computed."""

    meta_iterations: int  # windows of 10 updates that train FISAR's optimizer
    updates: int  # of every policy
    episodes: int  # that judge it


BUDGETS = {"smoke": Budget(2, 20, 20), "laptop": Budget(80, 300, 500), "paper": Budget(300, 300, 500)}


@dataclasses.dataclass(frozen=True)
class PolicyJob:
    """A method trained with one seed, and its final policy judged on fresh episodes."""

    method: str
    seed: int
    budget: str

    @property
    def name(self) -> str:
        return f"point-mass-{self.method.replace(',', '').replace(' ', '-')}-seed{self.seed}"

    @property
    def program(self) -> str:
        return f"point-mass-{self.method}"

    @property
    def seconds(self) -> float:
        return 30.0 if self.budget == "smoke" else 120.0 if self.method == "fisar" else 40.0

    def config(self) -> Any:
        """The run's complete configuration."""
        return self._trial().config()

    def done(self, folder: Path) -> bool:
        """Whether it is trained and judged; `UserError` if the folder holds a run of other settings."""
        return self._trial().done(folder) and judged(folder) is not None

    def work(self, folder: Path, progress: Progress) -> None:
        """Train, or go on training, then judge."""
        from safemeta.experiment.evaluate import evaluate
        from safemeta.experiment.run import load

        self._trial().work(folder, progress)
        evaluate(load(folder), tasks=1, episodes=BUDGETS[self.budget].episodes, seed=1000 + self.seed)

    def curve(self, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Updates, and a metric at them; of FISAR only after its optimizer was trained."""
        from safemeta.experiment import logs

        lines = logs.read(folder / logs.METRICS)
        every = WINDOW if METHODS[self.method][0] == "fisar" else 1
        values = np.array([line[name] for line in lines[self._meta_iterations() :]], float)
        return every * np.arange(1, len(values) + 1), values

    def _meta_iterations(self) -> int:
        return BUDGETS[self.budget].meta_iterations if self.method == "fisar" else 0

    def _trial(self) -> Trial:
        budget = BUDGETS[self.budget]
        algorithm, options = METHODS[self.method]
        iterations = budget.updates
        if algorithm == "fisar":
            options = {**options, "meta_iterations": self._meta_iterations()}
            iterations = self._meta_iterations() + budget.updates // WINDOW
        return Trial(self.name, self.method, algorithm, TASK, self.seed, iterations, (), options=options)


@dataclasses.dataclass(frozen=True)
class Judged:
    """The final policy of one seed on fresh episodes; costs by name."""

    episode_return: Interval
    costs: dict[str, Interval]
    limits: dict[str, float]


def judged(folder: Path) -> Judged | None:
    """What `evaluate` left in the folder."""
    try:
        content = json.loads((folder / EVALUATION).read_bytes())
        costs = {each["name"]: Interval(**each["cost"]) for each in content["largest_cost"]}
        limits = {each["name"]: float(each["limit"]) for each in content["largest_cost"]}
        return Judged(Interval(**content["episode_return"]), costs, limits)
    except (OSError, ValueError, KeyError, TypeError):
        return None
