"""The papers by name; importable without JAX, so that help and listings answer at once."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from safemeta.experiment.errors import unknown

BUDGETS = ("smoke", "laptop", "paper")


@dataclass(frozen=True)
class Paper:
    """One line about a paper, what of it can be reproduced, and where that is written.

    `module` offers `plan(request: Request) -> Plan`; see `plan.py`.
    """

    name: str
    description: str
    module: str
    figures: Mapping[str, str]  # name, such as "5" or "table-1" -> what it shows
    seeds: Mapping[str, int]  # budget -> how many where no number is given

    def load(self) -> ModuleType:
        """Import the module (and JAX with it)."""
        return importlib.import_module(self.module)

    def chosen(self, figure: str | None) -> tuple[str, ...]:
        """All figures, or the one that is named; `UserError` if there is none of that name."""
        if figure is None:
            return tuple(self.figures)
        name = figure.lower().removeprefix("figure").strip(" -")
        if name not in self.figures:
            raise unknown(f"figure of {self.name}", figure, self.figures)
        return (name,)


PAPERS: dict[str, Paper] = {
    paper.name: paper
    for paper in (
        Paper(
            "meta-cpo",
            "Cho and Sun, Constrained Meta-Reinforcement Learning for Adaptable Safety Guarantee (AAAI 2024)",
            "safemeta.papers.meta_cpo",
            figures={"5": "meta-training and meta-test in three navigation families, limit 10 to 5"},
            seeds={"smoke": 1, "laptop": 3, "paper": 3},
        ),
        Paper(
            "dual",
            "Xu and Zhu, Safe Meta-RL via Dual-Method-Based Policy Adaptation",
            "safemeta.papers.dual",
            figures={
                "1": "return and largest cost in Half-Cheetah and Point-Circle",
                "2": "computation time of the same",
                "4": "return and largest cost in the five other scenarios",
                "5": "computation time of the same",
                "6": "allowed violation delta_c from 0 to 3 in Half-Cheetah and Car-Circle-Hazard",
            },
            seeds={"smoke": 1, "laptop": 3, "paper": 5},
        ),
        Paper(
            "fisar",
            "Sun, Kim and How, FISAR: forward-invariant safe RL with a learned optimizer (arXiv 2006.11419)",
            "safemeta.papers.fisar",
            figures={
                "2": "policies on the point mass beside projected gradient, primal-dual and CPO",
                "3": "quadratic problems with one and three constraints, and how many steps optimizers need",
            },
            seeds={"smoke": 1, "laptop": 8, "paper": 8},
        ),
        Paper(
            "fac-sis",
            "Ma et al., Joint Synthesis of Safety Certificate and Safe Control Policy (FAC-SIS, L4DC 2022)",
            "safemeta.papers.fac_sis",
            figures={
                "3": "return, cost and cost rate past hazards, to goals and pushing a box",
                "4": "violated safe-action constraints on all six navigation tasks",
                "5": "visited and infeasible states of collision avoidance, three start distributions",
                "6": "zero sublevel sets beside the Hamilton-Jacobi avoidable set",
                "7": "return, cost and cost rate past pillars",
                "8": "the index's parameters over training",
                "table-2": "their final values",
                "table-3": "five indices on collision avoidance",
            },
            seeds={"smoke": 1, "laptop": 2, "paper": 5},
        ),
        Paper(
            "metal",
            "Calian, Mankowitz et al., Balancing Constraints and Rewards with Meta-Gradient D4PG (MetaL, ICLR 2021)",
            "safemeta.papers.metal",
            figures={
                "1": "outer losses; return and penalised return beside RC-D4PG and D4PG at four safety coefficients",
                "2": "the same beside fixed multipliers",
                "3": "all methods on each task at coefficient 0.3",
                "4": "the multiplier and its rate over training, where the task is solvable and where it is not",
                "slow": "Figure 4 beside a multiplier that rises ten times slower (not in the paper)",
                "table-1": "penalised return, return and overshoot over all coefficients",
            },
            seeds={"smoke": 1, "laptop": 4, "paper": 8},
        ),
    )
}


def names() -> list[str]:
    """The papers' names."""
    return list(PAPERS)


def describe() -> dict[str, str]:
    """Name -> one line."""
    return {name: paper.description for name, paper in PAPERS.items()}


def get(name: str) -> Paper:
    """The paper called `name`; `UserError` with the nearest match if there is none."""
    if name not in PAPERS:
        raise unknown("paper", name, PAPERS)
    return PAPERS[name]


def check_budget(budget: str) -> None:
    """Raise `UserError` unless there is such a budget."""
    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
