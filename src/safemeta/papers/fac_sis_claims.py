"""The claims of the FAC-SIS paper, as functions of what was measured."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment.evaluate import Interval
from safemeta.papers.claims import (
    ABOUT,
    CONTRADICTED,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Verdict,
    at_least,
    shown,
    within,
)
from safemeta.papers.fac_sis_custom import TABLE_3, infeasible_states, over_episodes, rates, tracking
from safemeta.papers.fac_sis_geometry import LEARNED, Inclusions
from safemeta.papers.fac_sis_plan import BASELINES, COMPARED
from safemeta.papers.fac_sis_runs import WatchedGroup
from safemeta.papers.groups import over_seeds

SYNTHESISED = {"k": 0.7821, "sigma": 0.0958, "n": 1.149}  # Table 2
STARTED = {"fac-sis": {"k": 1.0, "sigma": 0.3, "n": 2.0}, "fac-sis-initial": {"k": 1.0, "sigma": 0.3, "n": 1.0}}
TREND = {"k": -1, "sigma": -1, "n": 1}  # Figure 8
NEARLY = 1e-3  # the share of an episode's steps that may break the constraint where the paper says "nearly zero"
OVERLAP = 0.01  # the share of visited states that may be infeasible where the paper says "very small"
RATE_NOTE = "Paired by seed. A policy that stands still has no cost: see the returns."

Methods = Mapping[str, WatchedGroup]


def performance(tasks: Mapping[str, Methods]) -> list[Claim]:
    """What section 5.1 says of Figures 3 and 7."""
    claims = []
    for task, methods in tasks.items():
        if "fac-sis" in methods:
            claims.append(zero_violation(task, methods))
            claims += lowest_cost_rate(task, methods)
        if "fac phi_h" in methods and "0.30" in task:
            group = methods["fac phi_h"]
            claims.append(
                Claim(
                    f"{task}: FAC with phi_h fails to learn a solid safe policy",
                    some_cost([group.pooled("costs")]),
                    _costs(group),
                    "fails with obstacles of 0.30 m",
                    "Fails: the mean episode cost is significantly above 0.",
                )
            )
        if "fac phi_0" in methods:
            claims += worst_cost_rate(task, methods)
        baselines = {name: methods[name] for name in BASELINES if name in methods}
        if baselines:
            claims.append(
                Claim(
                    f"{task}: the Lagrangian baselines and CPO do not reach zero violation",
                    some_cost([group.pooled("costs") for group in baselines.values()]),
                    "; ".join(f"{name}: {_costs(group)}" for name, group in baselines.items()),
                    "not in any environment",
                    "All of them have to be significantly above 0; one without any cost contradicts it, even if it"
                    " earns nothing either.",
                )
            )
    return claims


def zero_violation(task: str, methods: Methods) -> Claim:
    """No episode of a final policy has any cost."""
    group = methods["fac-sis"]
    costs = group.pooled("costs")
    variant = methods.get("fac-sis-initial")
    other = "" if variant is None else f" Started from n = 1: {_costs(variant)}."
    last = f" Largest episode cost in the last tenth of training: {group.largest_training_cost:.4g}."
    return Claim(
        f"{task}: FAC-SIS learns a policy with zero violation",
        zero_cost(costs),
        _costs(group),
        "zero",
        f"The paper's plotting script sets such curves to zero before drawing.{last}{other}",
    )


def zero_cost(costs: NDArray) -> Verdict:
    """Of `[seeds, episodes]`: reproduced if all are 0, contradicted if their mean is significantly above."""
    if not costs.any():
        return REPRODUCED
    return CONTRADICTED if _significant(costs) else NOT_REPRODUCED


def some_cost(costs: Sequence[NDArray]) -> Verdict:
    """Of methods' `[seeds, episodes]`: reproduced if all are significantly above 0, contradicted if one has none."""
    if any(not each.any() for each in costs):
        return CONTRADICTED
    return REPRODUCED if all(_significant(each) for each in costs) else NOT_REPRODUCED


def lowest_cost_rate(task: str, methods: Methods) -> list[Claim]:
    """Lower than each of the methods that the paper compares."""
    rivals = {name: methods[name] for name in COMPARED if name != "fac-sis" and name in methods}
    if not rivals:
        return []
    best = min(rivals, key=lambda name: float(rivals[name].cost_rates()[1][-1].mean()))
    difference = _rate_difference(rivals[best], methods["fac-sis"])
    return [
        Claim(
            f"{task}: FAC-SIS takes the lowest cost rate",
            at_least(difference),
            f"{_rate(methods['fac-sis'])} against {_rate(rivals[best])} of {best}; difference {shown(difference)}",
            "lowest in all environments",
            RATE_NOTE,
        )
    ]


def worst_cost_rate(task: str, methods: Methods) -> list[Claim]:
    """Higher than each of the methods that the paper compares."""
    rivals = {name: methods[name] for name in COMPARED if name != "fac phi_0" and name in methods}
    if not rivals:
        return []
    worst = max(rivals, key=lambda name: float(rivals[name].cost_rates()[1][-1].mean()))
    difference = _rate_difference(methods["fac phi_0"], rivals[worst])
    return [
        Claim(
            f"{task}: FAC with phi_0 performs poorest in safety",
            at_least(difference),
            f"cost rate {_rate(methods['fac phi_0'])} against {_rate(rivals[worst])} of {worst};"
            f" difference {shown(difference)}",
            "poorest of all",
            RATE_NOTE,
        )
    ]


def violations(tasks: Mapping[str, Methods]) -> list[Claim]:
    """What section 5.2 says of Figure 4, each method under its own index."""
    claims = []
    for task, methods in tasks.items():
        for method in ("fac-sis", "fac phi_F"):
            if method in methods:
                found = over_episodes(methods[method].pooled("own_violations"))
                claims.append(
                    Claim(
                        f"{task}: {method} nearly always satisfies its safe-action constraint",
                        within(found, NEARLY * methods[method].horizon),
                        f"{shown(found)} steps of {methods[method].horizon} violate it",
                        "nearly stable zero",
                        f"Nearly: at most {NEARLY:.1%} of the steps, final policies on fresh episodes.",
                    )
                )
        for method in ("fac phi_0", "fac phi_h"):
            if method in methods:
                counts = methods[method].pooled("own_violations")
                claims.append(
                    Claim(
                        f"{task}: {method} keeps violating its safe-action constraint",
                        some_cost([counts]),
                        f"{shown(over_episodes(counts))} steps of {methods[method].horizon} violate it",
                        "consistent violations",
                        "Final policies on fresh episodes.",
                    )
                )
    return claims


def parameters(tasks: Mapping[str, Methods]) -> list[Claim]:
    """Trends and ends of the index's parameters (Figure 8, Table 2), over all tasks and seeds."""
    claims = []
    for method, start in STARTED.items():
        groups = [methods[method] for methods in tasks.values() if method in methods]
        if not groups:
            continue
        for name, sign in TREND.items():
            lasting = np.concatenate([[line[-1][name] for line in group.metrics] for group in groups])
            change = over_seeds(lasting - start[name])
            moved = over_seeds(sign * (lasting - start[name]))
            held = " It starts at the end of its box, 2, and cannot rise." if start[name] == 2.0 else ""
            claims.append(
                Claim(
                    f"{method}: {name} {'rises' if sign > 0 else 'falls'} (Figure 8)",
                    at_least(moved),
                    f"changes by {shown(change)} from {start[name]:g}",
                    "rises" if sign > 0 else "falls",
                    f"Means over tasks and seeds.{held} How far depends on the rates: Adam moves a parameter by at most"
                    " about its rate per step.",
                )
            )
            if method == "fac-sis-initial":
                claims.append(
                    Claim(
                        f"{method}: {name} ends near {SYNTHESISED[name]:g} (Table 2)",
                        near(lasting, SYNTHESISED[name]),
                        shown(over_seeds(lasting)),
                        SYNTHESISED[name],
                        "Near: the mean over tasks and seeds is within a tenth. The paper's end is that of its"
                        " schedule, after 2,000,000 gradient steps, not of convergence.",
                    )
                )
    return claims


def near(values: NDArray, claimed: float) -> Verdict:
    """Reproduced if the mean is within a tenth of the paper's number."""
    return REPRODUCED if abs(float(np.mean(values)) - claimed) <= (1 - ABOUT) * abs(claimed) else NOT_REPRODUCED


def table_3(place: str, methods: Methods) -> list[Claim]:
    """Each success rate, and what the text makes of them."""
    where = "released sign of d_dot" if place.endswith("flipped") else "true d_dot"
    claims = []
    for method, (said, *_) in TABLE_3.items():
        if method in methods:
            success, entered, infeasible = rates(methods[method])
            claims.append(
                Claim(
                    f"Table 3, {where}: the success rate of {method} is {said:g} %",
                    contains(success, said / 100),
                    f"{_percent(success)}; into the hazard {_percent(entered)}, infeasible {_percent(infeasible)}",
                    f"{said:g} %",
                    "Reproduced if the exact 95 % interval, one per cent wider, holds the paper's number.",
                )
            )
    for better, worse in (("fac phi_SIS", "fac phi_i"), ("fac phi_SIS", "fac phi_h"), ("fac phi_SIS", "fac phi_0")):
        if better in methods and worse in methods:
            first, second = rates(methods[better])[0], rates(methods[worse])[0]
            claims.append(
                Claim(
                    f"Table 3, {where}: {better} succeeds more often than {worse}",
                    apart(first, second),
                    f"{_percent(first)} against {_percent(second)}",
                    f"{TABLE_3[better][0]:g} % against {TABLE_3[worse][0]:g} %",
                    "The exact 95 % intervals have to be apart.",
                )
            )
    for worse in ("fac phi_F", "fac phi_h"):
        if "fac phi_SIS" in methods and worse in methods:
            ours, theirs = tracking(methods["fac phi_SIS"]), tracking(methods[worse])
            claims.append(
                Claim(
                    f"Table 3, {where}: phi_SIS tracks better than {worse}",
                    apart(theirs, ours),
                    f"{shown(ours)} against {shown(theirs)}",
                    f"{TABLE_3['fac phi_SIS'][3]} against {TABLE_3[worse][3]}",
                    "Minus the mean reward; the paper does not define its error. The 95 % intervals have to be apart.",
                )
            )
    return claims


def contains(found: Interval, claimed: float) -> Verdict:
    """Whether an interval, 0.01 wider on either side, holds the number. Never contradicted: its policy is another."""
    low, high = found.low, found.high
    held = low is not None and high is not None and low - 0.01 <= claimed <= high + 0.01
    return REPRODUCED if held else NOT_REPRODUCED


def apart(higher: Interval, lower: Interval) -> Verdict:
    """Verdict on "higher" from two intervals that must not overlap."""
    if None in (higher.low, higher.high, lower.low, lower.high):
        return NOT_REPRODUCED
    if higher.low > lower.high:  # type: ignore[operator]
        return REPRODUCED
    return CONTRADICTED if higher.high < lower.low else NOT_REPRODUCED  # type: ignore[operator]


def overlap(visited: Mapping[str, Methods]) -> list[Claim]:
    """Figure 5."""
    claims = []
    for start, methods in visited.items():
        for method in ("fac phi_SIS", "fac-sis-initial"):
            if method in methods:
                among, states = infeasible_states(methods[method])
                claims.append(
                    Claim(
                        f"Figure 5, start distribution {start}: nearly all visited states of {method} are feasible",
                        REPRODUCED if among <= OVERLAP * states else NOT_REPRODUCED,
                        f"{among} of {states} visited states are infeasible ({among / states:.3%})",
                        "the overlap is very small",
                        f"Very small: at most {OVERLAP:.0%}.",
                    )
                )
    return claims


def sets(found: Inclusions) -> list[Claim]:
    """Figure 6, judged up to the highest of the speeds."""
    claims = []
    for name, flipped in {(name, flipped): None for name, flipped, _ in found}:
        where = "released sign of d_dot" if flipped else "true d_dot"
        speeds = {fastest: counts for (*key, fastest), counts in found.items() if key == [name, flipped]}
        counts = speeds[max(speeds)]
        told = "; ".join(
            f"up to {fastest:g} m/s {each.unsafe_inside} of {each.sublevel} grid points with phi <= 0 are inevitably"
            f" unsafe, {each.unsafe_well_inside} of them more than a cell inside"
            for fastest, each in speeds.items()
        )
        if name in ("phi_SIS", LEARNED):
            claims.append(
                Claim(
                    f"Figure 6, {where}: {{phi <= 0}} of {name} is within the avoidable set",
                    subset(counts.unsafe_inside, counts.unsafe_well_inside),
                    told,
                    "a subset",
                    "Avoidable set by Hamilton-Jacobi reachability with the released bounds of the actions.",
                )
            )
        if name == "phi_h":
            claims.append(
                Claim(
                    f"Figure 6, {where}: {{phi_h <= 0}} holds inevitably unsafe states",
                    REPRODUCED if counts.unsafe_well_inside else NOT_REPRODUCED,
                    told,
                    "it does",
                    "The paper gives no bounds of the actions; with others there may be some.",
                )
            )
    return claims


def subset(inside: int, well_inside: int) -> Verdict:
    """No grid point within: reproduced. Some more than a cell within: contradicted."""
    if inside == 0:
        return REPRODUCED
    return CONTRADICTED if well_inside else NOT_REPRODUCED


def _significant(values: NDArray) -> bool:
    """Whether the mean over all episodes is significantly above 0."""
    low = over_episodes(values).low
    return low is not None and low > 0


def _costs(group: WatchedGroup) -> str:
    costs = group.pooled("costs")
    paid = int((costs > 0).sum())
    return (
        f"{paid} of {costs.size} episodes with cost, mean {shown(over_episodes(costs))}, largest {costs.max():.4g},"
        f" return {group.pooled('returns').mean():.3g}"
    )


def _rate(group: WatchedGroup) -> str:
    return shown(over_seeds(group.cost_rates()[1][-1]))


def _rate_difference(first: WatchedGroup, second: WatchedGroup) -> Interval:
    shared = [seed for seed in first.seeds if seed in second.seeds]
    one, other = (group.only(shared).cost_rates()[1][-1] for group in (first, second))
    return over_seeds(one - other)


def _percent(found: Interval) -> str:
    ends = "" if found.low is None or found.high is None else f" [{found.low:.1%}, {found.high:.1%}]"
    return f"{found.mean:.0%}{ends}"
