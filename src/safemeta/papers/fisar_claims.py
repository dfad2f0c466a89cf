"""The claims of the FISAR paper, as functions of what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from safemeta.papers.claims import CONTRADICTED, NOT_REPRODUCED, REPRODUCED, Claim, at_least, shown
from safemeta.papers.fisar_point_mass import Judged
from safemeta.papers.groups import over_seeds

WORDS = "in words only"
SMALL, EXACT, CLOSE = 1e-2, 1e-6, 0.01  # violations; relative gap of the objective


def quadratic(found: Mapping[tuple[int, str], Mapping[str, Any]]) -> list[Claim]:
    """What section 5.1 and Figure 3 say, and Lemma 1, and the remark after eq. 6."""
    return [
        claim
        for (constraints, metric), result in found.items()
        for claim in (
            converges(_label(constraints, metric), result["figure"]),
            monotone(_label(constraints, metric), result["figure"]),
            invariant(_label(constraints, metric), result["figure"]),
            comparable(_label(constraints, metric), result["figure"]),
            standard_optimizers_fail(_label(constraints, metric), result["figure"]),
        )
    ]


def converges(label: str, figure: Mapping[str, Any]) -> Claim:
    """Figure 3, right."""
    at, end = figure["learned"]["largest_violation"]
    kept, _ = figure["learned, true constraints"]["largest_violation"]
    return Claim(
        f"{label}: the violation converges to zero",
        REPRODUCED if end <= SMALL else CONTRADICTED,
        f"largest of all problems: {at:.2g} after 100 steps, {end:.2g} at the end",
        WORDS,
        f"With steps that keep the true constraints: {kept:.2g} after 100.",
    )


def monotone(label: str, figure: Mapping[str, Any]) -> Claim:
    """The abstract."""
    ours, kept = (figure[name]["largest_increase"] for name in ("learned", "learned, true constraints"))
    return Claim(
        f"{label}: the violation falls monotonically",
        REPRODUCED if ours <= EXACT else CONTRADICTED,
        f"largest increase in one step: {ours:.2g}",
        WORDS,
        f"True in continuous time; steps are finite. With steps that keep the true constraints: {kept:.2g}.",
    )


def invariant(label: str, figure: Mapping[str, Any]) -> Claim:
    """Lemma 1."""
    ours = figure["learned, from inside"]["largest_violation_ever"]
    kept = figure["learned, true constraints, from inside"]["largest_violation_ever"]
    return Claim(
        f"{label}: from a feasible start the feasible set is not left (Lemma 1)",
        REPRODUCED if ours <= EXACT else CONTRADICTED,
        f"largest constraint value on the way: {ours:.2g}",
        WORDS,
        f"True in continuous time; steps are finite. With steps that keep the true constraints: {kept:.2g}.",
    )


def comparable(label: str, figure: Mapping[str, Any]) -> Claim:
    """The paper's distribution is unknown; in ours the constraints cut the free optimum, zero, off."""
    optimum = figure["optimum"]
    learned = figure["learned"]["objective"]["mean"][-1]
    free = min(figure[name]["objective"]["mean"][-1] for name in figure if name.endswith("without constraints"))
    gap = figure["learned"]["objective_ratio"][1] - 1
    return Claim(
        f"{label}: the objective is comparable to that of unconstrained optimizers",
        REPRODUCED if learned <= 2 * free else NOT_REPRODUCED,
        f"{learned:.3g}; unconstrained {free:.2g}; constrained optimum {optimum:.3g} ({100 * gap:+.2f} %)",
        WORDS,
        "The paper's problems are not given. In ours every constraint cuts off the free optimum, which is zero.",
    )


def standard_optimizers_fail(label: str, figure: Mapping[str, Any]) -> Claim:
    """One problem class on which they do not fail is enough to contradict."""
    ends = {
        name: (figure[f"projected {name}"]["objective_ratio"][1] - 1, figure[f"projected {name}"]["largest_violation"])
        for name in ("sgd", "adam")
    }
    works = [abs(gap) <= CLOSE and violation[1] <= SMALL for gap, violation in ends.values()]
    told = "; ".join(
        f"{name}: objective {100 * gap:+.2f} % off the optimum, largest violation {violation[1]:.2g}"
        for name, (gap, violation) in ends.items()
    )
    return Claim(
        f"{label}: standard optimizers with the projection (eq. 6) will fail",
        CONTRADICTED if any(works) else REPRODUCED if not any(works) else NOT_REPRODUCED,
        told,
        "said, not shown",
        "At the end of the run, with step sizes tuned on other problems. Adam's direction is no gradient, so it rests"
        " where that direction, not the gradient, is normal to the constraints.",
    )


def policies(found: Mapping[str, Sequence[Judged]]) -> list[Claim]:
    """What section 5.2 and Figure 2 say."""
    ours = found.get("fisar", [])
    if not ours:
        return []
    within, returns = sum(keeps(each) for each in ours), _returns(ours)
    largest = {name: max(each.costs[name].mean for each in ours) for name in ours[0].costs}
    told = ", ".join(f"{name} {value:.3g} (limit {ours[0].limits[name]:g})" for name, value in largest.items())
    claims = [
        Claim(
            "point mass: the costs are driven to their limits, and kept",
            REPRODUCED if within == len(ours) else NOT_REPRODUCED if _not_clearly_above(ours) else CONTRADICTED,
            f"{within} of {len(ours)} seeds within both limits at the end; largest mean costs: {told}",
            WORDS,
            "Final policies on fresh episodes.",
        )
    ]
    for method, results in found.items():
        if method == "fisar" or len(results) != len(ours):
            continue
        difference = over_seeds(returns - _returns(results))
        kept = sum(keeps(each) for each in results)
        claims.append(
            Claim(
                f"point mass: a learned optimizer gets further than {method}",
                at_least(difference),
                f"return {shown(over_seeds(returns))} against {shown(over_seeds(_returns(results)))};"
                f" difference {shown(difference)}",
                "said of standard optimizers, not shown" if method == "projected gradient" else "no comparison",
                f"{method} is within both limits in {kept} of {len(results)} seeds. Equal batches and numbers of policy"
                " updates; what FISAR's optimizer was trained on before is not counted.",
            )
        )
    return claims


def keeps(result: Judged) -> bool:
    """Whether no mean cost is above its limit."""
    return all(cost.mean <= result.limits[name] for name, cost in result.costs.items())


def _not_clearly_above(results: Sequence[Judged]) -> bool:
    """Whether no whole interval is above a limit."""
    return not any(
        cost.low is not None and cost.low > each.limits[name] for each in results for name, cost in each.costs.items()
    )


def _returns(results: Sequence[Judged]) -> np.ndarray:
    return np.array([each.episode_return.mean for each in results])


def _label(constraints: int, metric: str) -> str:
    return f"quadratic problems, m = {constraints}, {metric.replace('_', ' ')} metric"
