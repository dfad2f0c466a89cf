"""The claims of the MetaL paper, as functions of what the runs came to."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from safemeta.experiment.evaluate import Interval, interval
from safemeta.experiment.statistics import mean_interval, student_quantile
from safemeta.papers.claims import CONTRADICTED, NOT_REPRODUCED, REPRODUCED, Claim, Verdict, at_least, shown
from safemeta.papers.metal_plan import COEFFICIENTS, OUTER_LOSSES, SHAPED, SOLVABLE, UNSOLVABLE
from safemeta.papers.metal_runs import Reached, RobotGroup

# Table 1: R_penalised, R, overshoot, over four tasks, coefficients and thresholds
TABLE_1 = {
    "metal": (677.93, 921.16, 0.24),
    "rs-0.1": (641.41, 906.76, 0.27),
    "rs-1": (511.70, 684.30, 0.17),
    "rc-d4pg": (478.60, 648.42, 0.17),
    "d4pg": (432.70, 927.66, 0.49),
    "rs-10": (208.57, 385.42, 0.18),
    "rs-100": (118.50, 314.93, 0.20),
}
LIKE = 50.0  # of at most 1000: returns that are no further apart count as comparable
DRASTIC = 200.0
SOLVED = 0.9  # of the best return of all methods
VANISHED = 0.1  # of the learning rate that there was
SETTLED = 0.1  # of a multiplier: how much it may still change in the last quarter of training
PICTURE = "Figure 4, without numbers"

Methods = Mapping[str, Reached]
Places = Mapping[float, Methods]  # coefficient -> method -> what it came to


def over_seeds(values: NDArray) -> Interval:
    """Mean with Student's t interval."""
    (mean,), (low,), (high,) = mean_interval(np.asarray(values, float)[None])
    return interval(mean, low, high)


def difference(first: NDArray, second: NDArray) -> Interval:
    """Mean of `first` less that of `second`, with Welch's interval for samples of unlike variance.

    Degrees of freedom by Welch and Satterthwaite, rounded down.
    """
    mean = float(np.mean(first) - np.mean(second))
    if min(len(first), len(second)) < 2:
        return Interval(mean, None, None)
    parts = [float(np.var(each, ddof=1)) / len(each) for each in (first, second)]
    total = sum(parts)
    if total == 0:
        return Interval(mean, mean, mean)
    freedom = total**2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (first, second), strict=True))
    half = student_quantile(0.975, max(math.floor(freedom), 1)) * math.sqrt(total)
    return Interval(mean, mean - half, mean + half)


def averaged(places: Places, method: str) -> Reached | None:
    """Seed by seed, means over coefficients; None unless the method was run at all of them, on as many seeds."""
    found = [methods[method] for methods in places.values() if method in methods]
    if not found or len(found) < len(places) or len({each.returns.size for each in found}) > 1:
        return None
    return Reached(*(np.mean([getattr(each, n) for each in found], axis=0) for n in ("returns", "costs", "overshoot")))


def table_1(label: str, places: Places) -> list[Claim]:
    """What section 5.1 makes of Table 1, on one task: means over coefficients."""
    found = {name: reached for name in TABLE_1 if (reached := averaged(places, name)) is not None}
    if "metal" not in found or len(found) < 2:
        return []
    metal = found["metal"]
    claims = [
        _higher(f"{label}: MetaL's penalised return is above that of {name}", metal.penalised, other.penalised,
                f"{TABLE_1['metal'][0]} against {TABLE_1[name][0]}")
        for name, other in found.items()
        if name != "metal"
    ]  # fmt: skip
    claims.append(order(label, {name: reached.penalised for name, reached in found.items()}))
    if "d4pg" in found:
        claims.append(
            _comparable(f"{label}: MetaL's return is comparable to D4PG's", metal.returns, found["d4pg"].returns,
                        f"{TABLE_1['metal'][1]} against {TABLE_1['d4pg'][1]}")
        )  # fmt: skip
        claims.append(
            _higher(f"{label}: D4PG's overshoot is above MetaL's", found["d4pg"].overshoot, metal.overshoot,
                    f"{TABLE_1['d4pg'][2]} against {TABLE_1['metal'][2]}")
        )  # fmt: skip
    if "rc-d4pg" in found:
        rc, said = found["rc-d4pg"], TABLE_1["rc-d4pg"]
        claims.append(
            _higher(f"{label}: RC-D4PG overshoots less than MetaL", metal.overshoot, rc.overshoot,
                    f"{said[2]} against {TABLE_1['metal'][2]}")
        )  # fmt: skip
        claims.append(
            _higher(f"{label}: ... and yields less return", metal.returns, rc.returns,
                    f"{said[1]} against {TABLE_1['metal'][1]}")
        )  # fmt: skip
    return claims


def stand_in(label: str, places: Places) -> list[Claim]:
    """MeSh "did not outperform MetaL": contradicted if the stand-in does, beyond the Welch interval."""
    ours, theirs = averaged(places, "metal"), averaged(places, "mesh-like")
    if ours is None or theirs is None:
        return []
    found = difference(ours.penalised, theirs.penalised)
    above = at_least(found) == CONTRADICTED
    return [
        Claim(
            f"{label}: MeSh (here a stand-in) does not outperform MetaL",
            CONTRADICTED if above else REPRODUCED if found.mean >= 0 else NOT_REPRODUCED,
            _against(ours.penalised, theirs.penalised, found),
            "does not",
            "MeSh's definition is in the lost appendix: mesh-like is no evidence about it.",
        )
    ]


def order(label: str, penalised: Mapping[str, NDArray]) -> Claim:
    """The order of Table 1's first column, among the methods that were run.

    Reproduced: the means are in it. Contradicted: two of them are the other way round, beyond their Welch interval.
    """
    expected = [name for name in TABLE_1 if name in penalised]
    pairs = [(better, worse) for i, better in enumerate(expected) for worse in expected[i + 1 :]]
    differences = {pair: difference(penalised[pair[0]], penalised[pair[1]]) for pair in pairs}
    ours = sorted(expected, key=lambda name: -float(penalised[name].mean()))
    reversed_pairs = [f"{b} above {a}" for (a, b), found in differences.items() if at_least(found) == CONTRADICTED]
    return Claim(
        f"{label}: the order of penalised returns is Table 1's",
        REPRODUCED if ours == expected else CONTRADICTED if reversed_pairs else NOT_REPRODUCED,
        ", ".join(f"{name} {penalised[name].mean():.0f}" for name in ours),
        ", ".join(f"{name} {TABLE_1[name][0]:.0f}" for name in expected),
        f"Significantly the other way round: {', '.join(reversed_pairs) or 'none'}.",
    )


def per_coefficient(label: str, places: Places) -> list[Claim]:
    """What is said of Figures 1 (right), 2 and 3, coefficient by coefficient."""
    claims = []
    for coefficient, methods in places.items():
        where = f"{label}, coefficient {coefficient:g}"
        if coefficient in (UNSOLVABLE, SOLVABLE) and len(methods) > 1:
            claims.append(solvable(where, methods, coefficient == SOLVABLE))
        metal = methods.get("metal")
        others = {} if metal is None else {name: methods[name] for name in SAID[coefficient] if name in methods}
        for name, other in others.items():
            assert metal is not None
            said, how, figure = SAID[coefficient][name]
            claims.append(
                how(f"{where}: {said}", metal.penalised, other.penalised, f"Figure {figure}, without numbers")
            )
        shaped = {name: methods[name].penalised for name in SHAPED if name in methods}
        if len(shaped) > 1:
            claims.append(drastic(where, shaped))
    return claims


def solvable(where: str, methods: Methods, said: bool) -> Claim:
    """Whether any method keeps the threshold and earns what can be earned.

    It solves the task if its mean overshoot is at most 0.01 and its return nine tenths of the best. Said to be
    solvable: reproduced if one does. Said not to be: contradicted if one does in every seed.
    """
    best = max(float(reached.returns.mean()) for reached in methods.values())
    enough = SOLVED * best if best > 0 else best

    def solves(reached: Reached) -> NDArray:
        return (reached.overshoot <= 0.01) & (reached.returns >= enough)

    on_average = [n for n, each in methods.items() if each.overshoot.mean() <= 0.01 and each.returns.mean() >= enough]
    always = [name for name, each in methods.items() if solves(each).all()]
    if said:
        verdict: Verdict = REPRODUCED if on_average else NOT_REPRODUCED
    else:
        verdict = CONTRADICTED if always else NOT_REPRODUCED if on_average else REPRODUCED
    told = "; ".join(
        f"{n}: R {each.returns.mean():.0f}, overshoot {each.overshoot.mean():.3f}" for n, each in methods.items()
    )
    return Claim(
        f"{where}: the task can {'' if said else 'not '}be solved within the threshold",
        verdict,
        f"solved on average by {', '.join(on_average) or 'none'}, in every seed by {', '.join(always) or 'none'}",
        "solvable" if said else "unsolvable",
        f"Solved: overshoot at most 0.01 at nine tenths of the best return, {best:.0f}. {told}.",
    )


def drastic(where: str, shaped: Mapping[str, NDArray]) -> Claim:
    """Figure 2: fixed multipliers."""
    best = max(shaped, key=lambda name: float(shaped[name].mean()))
    worst = min(shaped, key=lambda name: float(shaped[name].mean()))
    found = difference(shaped[best], shaped[worst])
    return Claim(
        f"{where}: the fixed multiplier makes a drastic difference",
        at_least(found) if found.mean >= DRASTIC else NOT_REPRODUCED,
        f"{best} above {worst} by {shown(found)}",
        "overall 641 (RS-0.1) to 119 (RS-100)",
        f"Drastic: at least {DRASTIC:g}. Best and worst are those of our own means.",
    )


def outer_losses(label: str, places: Places) -> list[Claim]:
    """Figure 1, left."""
    ablated = {k: methods for k, methods in places.items() if all(name in methods for name in OUTER_LOSSES)}
    if not ablated:
        return []
    critic, both, actor = (averaged(ablated, name) for name in OUTER_LOSSES)
    if critic is None or both is None or actor is None:
        return []
    where = f"{label}, coefficients {', '.join(f'{k:g}' for k in ablated)}"
    said = "Figure 1, without numbers"
    return [
        _higher(
            f"{where}: the outer loss of the critic is better than the actor's", critic.penalised, actor.penalised, said
        ),
        _higher(f"{where}: both are better than the actor's alone", both.penalised, actor.penalised, said),
        _comparable(
            f"{where}: adding the actor's to the critic's changes little", both.penalised, critic.penalised, said
        ),
    ]


def behaviour(rates: str, groups: Mapping[float, RobotGroup]) -> list[Claim]:
    """What is said of Figure 4, of MetaL at these rates; `groups` by coefficient."""
    claims = []
    if UNSOLVABLE in groups:
        group, where = groups[UNSOLVABLE], f"Figure 4, coefficient {UNSOLVABLE:g}, {rates}"
        log_rate, multiplier = group.table("log_rate"), group.table("multiplier")
        claims += [vanishing(where, log_rate), settling(where, multiplier)]
    if SOLVABLE in groups:
        group, where = groups[SOLVABLE], f"Figure 4, coefficient {SOLVABLE:g}, {rates}"
        claims += rise_and_fall(where, group.table("log_rate"), group.table("cost"), group.threshold)
    return claims


def vanishing(where: str, log_rate: NDArray) -> Claim:
    """The effective rate `alpha_1 exp(alpha_lambda)` at the end, relative to the one at alpha_lambda = 0.

    `log_rate` is `[iterations, seeds]`. Contradicted: it rises.
    """
    end = over_seeds(log_rate[-1])
    falls = end.mean <= math.log(VANISHED) and (end.high is None or end.high < 0)
    rises = end.low is not None and end.low > 0
    return Claim(
        f"{where}: the effective rate falls towards zero where the task is unsolvable",
        REPRODUCED if falls else CONTRADICTED if rises else NOT_REPRODUCED,
        f"alpha_lambda ends at {shown(end)}: {math.exp(end.mean):.3g} times the rate at first",
        PICTURE,
        f"Towards zero: at most {VANISHED:g} times.",
    )


def settling(where: str, multiplier: NDArray) -> Claim:
    """How far lambda still moves in the last quarter of training, as a share of its end. `[iterations, seeds]`."""
    quarter = multiplier[-1 - len(multiplier) // 4 :]
    moved = over_seeds(np.ptp(quarter, axis=0) / np.maximum(np.abs(multiplier[-1]), 1e-9))
    above = moved.low is not None and moved.low > SETTLED
    return Claim(
        f"{where}: lambda settles",
        REPRODUCED if moved.mean <= SETTLED else CONTRADICTED if above else NOT_REPRODUCED,
        f"ends at {shown(over_seeds(multiplier[-1]))}, and moves by {shown(moved)} of that in the last quarter",
        PICTURE,
        f"Settled: it moves by at most {SETTLED:g} of its end.",
    )


def rise_and_fall(where: str, log_rate: NDArray, costs: NDArray, threshold: float) -> list[Claim]:
    """alpha_lambda until the first iteration that keeps the threshold, and from there on; `[iterations, seeds]`."""
    kept = costs <= threshold
    first = np.where(kept.any(0), kept.argmax(0), len(costs) - 1)
    at = log_rate[first, np.arange(log_rate.shape[1])]
    rise, fall = over_seeds(at), over_seeds(at - log_rate[-1])
    when = f"after {shown(over_seeds(first + 1.0))} iterations"
    never = f" In {int((~kept.any(0)).sum())} of {kept.shape[1]} seeds it is never kept."
    return [
        Claim(f"{where}: alpha_lambda rises until the threshold is kept", at_least(rise),
              f"from 0 to {shown(rise)}, {when}", PICTURE, f"The first iteration that keeps it.{never}"),
        Claim(f"{where}: the effective rate falls once it is kept", at_least(fall),
              f"alpha_lambda falls by {shown(fall)} from then to the end", PICTURE, ""),
    ]  # fmt: skip


def _higher(claim: str, ours: NDArray, theirs: NDArray, said: str) -> Claim:
    found = difference(ours, theirs)
    return Claim(claim, at_least(found), _against(ours, theirs, found), said)


def _comparable(claim: str, ours: NDArray, theirs: NDArray, said: str) -> Claim:
    found = difference(ours, theirs)
    return Claim(claim, comparable(found), _against(ours, theirs, found), said, f"Comparable: within {LIKE:g}.")


def comparable(found: Interval) -> Verdict:
    """Reproduced: the mean difference is at most 50 of 1000. Contradicted: the whole interval is beyond that."""
    if abs(found.mean) <= LIKE:
        return REPRODUCED
    if found.low is None or found.high is None:
        return NOT_REPRODUCED
    return CONTRADICTED if found.low > LIKE or found.high < -LIKE else NOT_REPRODUCED


def _against(ours: NDArray, theirs: NDArray, found: Interval) -> str:
    return (
        f"{shown(over_seeds(ours))} against {shown(over_seeds(theirs))}; difference {shown(found)}"
        f" ({len(ours)} and {len(theirs)} seeds)"
    )


_ABOVE = {
    "d4pg": ("MetaL's penalised return is above that of d4pg", _higher, 1),
    "rc-d4pg": ("MetaL's penalised return is above that of rc-d4pg", _higher, 1),
}
SAID = dict.fromkeys(COEFFICIENTS, _ABOVE) | {
    UNSOLVABLE: {**_ABOVE, "rs-0.1": ("MetaL's penalised return is comparable to that of rs-0.1", _comparable, 2)},
    SOLVABLE: {**_ABOVE, "rc-d4pg": ("MetaL's penalised return is comparable to that of rc-d4pg", _comparable, 3)},
}
