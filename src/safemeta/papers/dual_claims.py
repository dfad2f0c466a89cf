"""The claims of the dual-method paper, as functions of what was measured."""

from collections.abc import Callable, Sequence

from safemeta.experiment.evaluate import Interval
from safemeta.experiment.metrics import RETURNS
from safemeta.papers.claims import (
    CONTRADICTED,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Verdict,
    at_least,
    none_above,
    shown,
)
from safemeta.papers.groups import Group, gain, over_seeds_and_tasks, paired, saving

BASELINES = ("meta-cpo", "meta-crpo", "maml")
BETTER = 0.5  # "about 50% improvement over the best baselines" (Figure 1)
TRAINING_SAVED, TEST_SAVED = 0.7, 0.5  # of Meta-CPO's time (Figure 2)
SLOWER = 10.0  # Meta-CPO in Humanoid (D.3)

Found = dict[str, dict[str, Group]]  # scenario -> method -> group


def claims_of(figure: str, found: Found) -> list[Claim]:
    """The claims that the paper makes of a figure, for the scenarios of which there are runs."""
    claims = []
    for family, methods in found.items():
        if "dual" not in methods:
            continue
        if figure in ("1", "4"):
            claims += better(figure, family, methods)
            claims.append(anytime_safe(family, methods))
            claims += baselines_violate(family, methods)
        elif figure in ("2", "5") and "meta-cpo" in methods:
            claims += faster(figure, family, *paired(methods["dual"], methods["meta-cpo"]))
    return claims


def better(figure: str, family: str, methods: dict[str, Group]) -> list[Claim]:
    """Higher return than the best baseline, in meta-training and in the test."""
    claimed = BETTER if figure == "1" else 0.0
    said = "about 50 % above the best baseline" if claimed else "above all baselines"
    claims = []
    rivals = [methods[name] for name in BASELINES if name in methods and set(methods[name].seeds) & _seeds(methods)]
    if rivals:
        best = max(rivals, key=lambda group: float(group.returns[-1].mean()))
        first, second = (group.returns[-1] for group in paired(methods["dual"], best))
        higher = gain(first, second)
        claims.append(
            Claim(
                f"{family}, meta-test: the return is {said}",
                at_least(higher, claimed),
                f"{percent(higher)}: {shown(over_seeds_and_tasks(first))} against"
                f" {shown(over_seeds_and_tasks(second))} of {best.method}",
                said,
                f"After the last adaptation step.{_papers_settings(methods)}",
            )
        )
    ends = {group.method: end for group in rivals if (end := group.at_end(*RETURNS)) is not None}
    ends.pop("meta-crpo", None)  # in the paper it has no meta-training
    if ends:
        name = max(ends, key=lambda method: float(ends[method].mean()))
        ours, theirs = (group.at_end(*RETURNS) for group in paired(methods["dual"], methods[name]))
        if ours is not None and theirs is not None:
            higher = gain(ours, theirs)
            claims.append(
                Claim(
                    f"{family}, meta-training: the return is {said}",
                    at_least(higher, claimed),
                    f"{percent(higher)}: {ours.mean():.4g} against {theirs.mean():.4g} of {name}",
                    said,
                    "Return after one adaptation step on training tasks, mean over the last tenth of training.",
                )
            )
    return claims


def _seeds(methods: dict[str, Group]) -> set[int]:
    return set(methods["dual"].seeds)


def _papers_settings(methods: dict[str, Group]) -> str:
    """What the paper's own settings gave, beside safemeta's."""
    if "dual-paper" not in methods:
        return ""
    group = methods["dual-paper"]
    policies, above, significantly = group.policies
    reward = shown(over_seeds_and_tasks(group.returns[-1]))
    return (
        f" With the paper's own settings: return {reward}, {above} of {policies} policies above the limit,"
        f" {significantly} significantly."
    )


def anytime_safe(family: str, methods: dict[str, Group]) -> Claim:
    """No policy that is used in the test is above the limit."""
    group = methods["dual"]
    policies, above, significantly = group.policies
    return Claim(
        f"{family}: anytime safety, the largest cost never exceeds the limit of {group.limit:g} in the meta-test",
        none_above(policies, above, significantly),
        f"largest {shown(group.largest_cost)}; {above} of {policies} policies above, {significantly} significantly",
        f"at most {group.limit:g}",
        f"Every policy of every task and step, on fresh episodes.{_papers_settings(methods)}",
    )


def baselines_violate(family: str, methods: dict[str, Group]) -> list[Claim]:
    """The baselines are not anytime-safe."""
    counts = {name: methods[name].policies for name in BASELINES if name in methods}
    if not counts:
        return []
    return [
        Claim(
            f"{family}: the baselines do not achieve anytime safety",
            all_violate([(above, significantly) for _, above, significantly in counts.values()]),
            "; ".join(f"{name}: {above} of {policies} above" for name, (policies, above, _) in counts.items()),
            "all of them exceed the limit",
            "A baseline fails if at least one of its policies is significantly above the limit.",
        )
    ]


def all_violate(counts: Sequence[tuple[int, int]]) -> Verdict:
    """Verdict from (above, significantly above) of each baseline.

    Reproduced: each has policies significantly above; contradicted: one has none above at all.
    """
    if all(significantly > 0 for _, significantly in counts):
        return REPRODUCED
    return CONTRADICTED if any(above == 0 for above, _ in counts) else NOT_REPRODUCED


def faster(figure: str, family: str, dual: Group, meta_cpo: Group) -> list[Claim]:
    """Less time than Meta-CPO for a meta-iteration and for a task in the test."""
    claims = []
    stages = (
        ("meta-training", dual.iteration_seconds, meta_cpo.iteration_seconds, TRAINING_SAVED),
        ("meta-test", dual.test_seconds, meta_cpo.test_seconds, TEST_SAVED),
    )
    for stage, ours, theirs, share in stages:
        claimed = share if figure == "2" else 0.0
        said = f"about {share:.0%} less" if claimed else "less, no number given"
        saved = saving(ours, theirs)
        claims.append(
            Claim(
                f"{family}, {stage}: less computation time than Meta-CPO",
                at_least(saved, claimed),
                f"{percent(saved)} less: {ours.mean():.4g} s against {theirs.mean():.4g} s",
                said,
                "Compilation apart. Meta-CPO takes one inner step here, from as many episodes, and its exact gradient"
                " is compiled; safemeta's dual also measures and validates its meta-policy in every iteration.",
            )
        )
    if family == "humanoid":
        ratio = 1 / (1 - saving(dual.iteration_seconds, meta_cpo.iteration_seconds).mean)
        claims.append(
            Claim(
                "humanoid: meta-training by Meta-CPO is 10 times slower",
                slower(ratio),
                f"{ratio:.3g} times",
                f"{SLOWER:g} times (D.3)",
                "Ratio of the times of a meta-iteration.",
            )
        )
    return claims


def slower(ratio: float) -> Verdict:
    """Of a ratio that the paper puts at ten: reproduced from half of it on, contradicted if it is below one."""
    if ratio >= SLOWER / 2:
        return REPRODUCED
    return CONTRADICTED if ratio < 1 else NOT_REPRODUCED


def slack_claims(found: Found, name: Callable[[float], str]) -> list[Claim]:
    """A larger allowed violation raises the return and the cost together."""
    claims = []
    for family, methods in found.items():
        largest = max((slack for slack in (1.0, 2.0, 3.0) if name(slack) in methods), default=None)
        if largest is None or name(0.0) not in methods:
            continue
        few, many = paired(methods[name(0.0)], methods[name(largest)])
        if not few.seeds:
            continue
        for what, first, second in (
            ("return", many.returns[-1], few.returns[-1]),
            ("cost", many.costs[-1], few.costs[-1]),
        ):
            difference = over_seeds_and_tasks(first - second)
            claims.append(
                Claim(
                    f"{family}: allowing a violation of {largest:g} instead of 0 raises the {what}",
                    at_least(difference),
                    f"{shown(difference)} higher: {shown(over_seeds_and_tasks(first))} against"
                    f" {shown(over_seeds_and_tasks(second))}",
                    "higher (Figure 6)",
                    "Paired difference on unseen tasks after the last adaptation step, the paper's settings.",
                )
            )
    return claims


def percent(value: Interval) -> str:
    """A share as per cent with its interval."""
    ends = "" if value.low is None or value.high is None else f" [{value.low:.0%}, {value.high:.0%}]"
    return f"{value.mean:.0%}{ends}"
