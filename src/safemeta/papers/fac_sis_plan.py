"""Which runs FAC-SIS's figures need, at which size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safemeta.experiment.figures import PALETTE
from safemeta.papers.fac_sis_runs import Watch, WatchedTrial
from safemeta.papers.plan import Request

# Figures 3 and 7: which two of the six tasks are the appendix's is not said; the released plots end with the pillars.
IN_FIGURE = {
    "3": ("hazards-0.15-goal", "hazards-0.30-goal", "hazards-0.15-push", "hazards-0.30-push"),
    "7": ("pillars-0.15-goal", "pillars-0.30-goal"),
}
NAVIGATION = ("hazards-0.15-goal", "hazards-0.30-goal", "pillars-0.15-goal", "pillars-0.30-goal",
              "hazards-0.15-push", "hazards-0.30-push")  # fmt: skip
STARTS = {"1": "collision-avoidance", "2": "collision-avoidance-2", "3": "collision-avoidance-3"}

# name -> algorithm, its own options. FAC-SIS starts from phi_h, as section 5.2 says; Table 2's n = 1.149 can only come
# from a start at n = 1, that of the released script.
FAC: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fac-sis": ("fac-sis", {"index": "handcrafted"}),
    "fac-sis-initial": ("fac-sis", {"index": "initial"}),
    "fac phi_0": ("fac", {"index": "zero"}),
    "fac phi_h": ("fac", {"index": "handcrafted"}),
    "fac phi_F": ("fac", {"index": "feasible"}),
    "fac phi_i": ("fac", {"index": "initial"}),
    "fac phi_SIS": ("fac", {"index": "synthesised"}),
}
BASELINES = ("trpo-lagrangian", "ppo-lagrangian", "cpo")  # the paper's, with limit 0
COMPARED = ("fac-sis", "fac phi_0", "fac phi_h", *BASELINES)  # by section 5.1
METHODS = ("fac-sis", "fac-sis-initial", "fac phi_0", "fac phi_h", "fac phi_F", "sac-lagrangian", *BASELINES)
CUSTOM = ("fac phi_0", "fac phi_i", "fac phi_SIS", "fac phi_F", "fac phi_h", "fac-sis-initial")  # Table 3, and ours
LOOKS = {  # colour and line
    "fac-sis": (PALETTE[0], "-"),
    "fac-sis-initial": (PALETTE[0], ":"),
    "fac phi_0": (PALETTE[2], "-"),
    "fac phi_h": (PALETTE[3], "-"),
    "fac phi_F": (PALETTE[1], "-"),
    "sac-lagrangian": (PALETTE[4], "-"),
    "trpo-lagrangian": (PALETTE[5], "-"),
    "ppo-lagrangian": (PALETTE[5], "--"),
    "cpo": (PALETTE[5], ":"),
}
# Plain CPO, without safemeta's integral part: at limit 0 that would only ever grow.
PLAIN: Mapping[str, Mapping[str, Any]] = {"cpo": {"integral_gain": 0.0}}
# Table 4, as far as the algorithms here have such a setting.
TABLE_4: Mapping[str, Mapping[str, Any]] = {
    "trpo-lagrangian": {"kl_radius": 0.1, "damping": 0.1, "initial_multiplier": 0.268},
    "ppo-lagrangian": {"initial_multiplier": 0.268, "minibatch": 64},
    "cpo": {"kl_radius": 0.1, "damping": 0.1},
}


@dataclass(frozen=True)
class Size:
    """How much to compute. An iteration is 8 episodes; FAC takes a gradient step per 4 environment steps."""

    iterations: tuple[int, int, int]  # hazards and goals, pillars and goals, hazards and a box to push
    custom_iterations: int
    episodes: int  # that judge a policy on the navigation tasks
    trajectories: int  # on the custom environment (Table 3)
    cells: tuple[int, int, int]  # of Figure 5's search for infeasible states
    tasks: tuple[str, ...] = NAVIGATION
    methods: tuple[str, ...] = METHODS
    custom: tuple[str, ...] = CUSTOM
    starts: tuple[str, ...] = tuple(STARTS)
    flipped: bool = True
    horizon: int | None = None  # of the navigation tasks, where it is not 1,000
    preset: str | None = "fast"
    options: Mapping[str, Any] = field(default_factory=dict)  # of everything off-policy
    table_4: bool = False
    reachability: tuple[int, int, int] = (41, 61, 32)


SIZES = {
    "smoke": Size(
        (2, 2, 2), 2, 3, 8, (8, 7, 5), ("hazards-0.15-goal",), ("fac-sis", "fac phi_0", "trpo-lagrangian"),
        ("fac phi_h", "fac-sis-initial"), ("1",), False, 100,
        options={"warm_up": 200, "capacity": 2000, "batch": 32, "hidden": (16, 16)}, reachability=(21, 31, 16),
    ),
    "laptop": Size((60, 50, 30), 200, 20, 100, (71, 31, 33)),
    "paper": Size((1000, 1000, 1000), 8340, 20, 100, (71, 61, 65), preset=None, table_4=True),
}  # fmt: skip
# Seconds per iteration, roughly, on two cores with another process beside: off-policy (preset fast), on-policy.
KINDS = ("hazards-goal", "pillars-goal", "hazards-push", "collision-avoidance")
PACE = ((2.7, 0.2), (2.8, 0.7), (5.6, 2.0), (0.3, 0.2))
PAPER_PACE = 8.0  # networks of 256 units, relative to "fast"
START_UP = 15.0  # s, mostly compilation


def navigation(request: Request, size: Size) -> list[WatchedTrial]:
    """The runs on the six tasks that the figures ask for."""
    wanted = {
        "3": (IN_FIGURE["3"], METHODS),
        "7": (IN_FIGURE["7"], METHODS),
        "4": (NAVIGATION, METHODS),
        "8": (NAVIGATION, ("fac-sis", "fac-sis-initial")),
        "table-2": (NAVIGATION, ("fac-sis", "fac-sis-initial")),
    }
    chosen = [wanted[figure] for figure in request.figures if figure in wanted]
    return [
        _trial(f"{method}-{task}", method, task, seed, size, Watch(size.episodes), size.horizon)
        for task in size.tasks
        for method in size.methods
        if any(task in tasks and method in methods for tasks, methods in chosen)
        for seed in request.seed_numbers
    ]


def custom(request: Request, size: Size) -> list[WatchedTrial]:
    """The runs on the custom environment: every index on the first start, and the synthesised ones on all starts."""
    found = []
    for start in size.starts:
        for flipped in (False, True) if size.flipped and start == "1" else (False,):
            table = "table-3" in request.figures and start == "1"
            for method in size.custom:
                synthesised = method in ("fac phi_SIS", "fac-sis-initial") and not flipped
                if not (table or (synthesised and "5" in request.figures) or _in_figure_6(request, method, start)):
                    continue
                for seed in request.seed_numbers:
                    watch = Watch(size.trajectories, 17, size.cells if synthesised else None)
                    name = f"{method}-{STARTS[start]}{'-flipped' if flipped else ''}"
                    found.append(_trial(name, method, STARTS[start], seed, size, watch, None, flipped))
    return found


def _in_figure_6(request: Request, method: str, start: str) -> bool:
    return "6" in request.figures and method == "fac-sis-initial" and start == "1"


def _trial(
    name: str,
    method: str,
    task: str,
    seed: int,
    size: Size,
    watch: Watch,
    horizon: int | None,
    flipped: bool = False,
) -> WatchedTrial:
    algorithm, options = FAC.get(method, (method, PLAIN.get(method, {})))
    off_policy = method not in BASELINES
    options = {**options, "tasks": 8, "episodes": 1}
    if off_policy:
        options |= size.options
    elif size.table_4:
        options |= TABLE_4[method]
    kind = next(i for i, kind in enumerate(KINDS) if all(part in task for part in kind.split("-")))
    iterations = (*size.iterations, size.custom_iterations)[kind]
    pace = PACE[kind][0 if off_policy else 1] * (PAPER_PACE if off_policy and size.preset is None else 1)
    return WatchedTrial(
        name=f"{name.replace(' ', '-').replace('_', '-')}-s{seed}",
        method=method,
        algorithm=algorithm,
        task=task,
        seed=seed,
        iterations=iterations,
        judgements=(),
        preset=size.preset if off_policy else None,
        options=options,
        horizon=horizon,
        seconds=START_UP + iterations * pace * (horizon or 1000) / 1000,
        watch=watch,
        flipped=flipped,
        start=next((start for start, name in STARTS.items() if name == task), ""),
    )
