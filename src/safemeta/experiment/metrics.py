"""Which logged metrics mean what.

Algorithms name their metrics freely; these names are the ones that the progress bar and the plots know.
"""

from collections.abc import Mapping
from typing import Any

# name -> (words in a legend, line style)
RETURNS: dict[str, tuple[str, str]] = {
    "return_after": ("after adaptation", "-"),
    "return_before": ("before adaptation", "--"),
    "return": ("", "-"),
}
COSTS: dict[str, tuple[str, str]] = {
    "largest_cost_after": ("largest after adaptation", "-"),
    "largest_cost_before": ("largest before adaptation", "--"),
    "largest_cost": ("largest of all tasks", "-"),
    "cost_after": ("mean after adaptation", "-."),
    "cost_before": ("mean before adaptation", ":"),
    "cost": ("mean", "-."),
}
LIMITS: dict[str, tuple[str, str]] = {"limit": ("limit", "--")}
FURTHER_COST, FURTHER_LIMIT = "cost/", "limit/"  # mean and limit of every cost after the first, before its name
SCORE = "score"  # higher is better: the state with the highest score so far is kept as the best checkpoint


def found(metrics: Mapping[str, Any], wanted: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Those of the wanted metrics that are there, in their order."""
    return {name: look for name, look in wanted.items() if name in metrics}


def highlights(metrics: Mapping[str, Any]) -> str:
    """The few numbers worth a glance, e.g. `return 41.2  max cost 8.7/10`; short, for a terminal of 80 columns."""
    shown = []
    for label, candidates in (("return", RETURNS), ("cost", COSTS)):
        for name in list(found(metrics, candidates))[:1]:
            words = "max cost" if name.startswith("largest_cost") else label
            shown.append(f"{words} {float(metrics[name]):.4g}")
    if shown and "cost" in shown[-1]:
        shown[-1] += "".join(f"/{float(metrics[name]):.4g}" for name in found(metrics, LIMITS))
    return "  ".join(shown)
