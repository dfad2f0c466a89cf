"""The tables that end `safemeta adapt`, `evaluate` and `certify`."""

from typing import Any

from safemeta.experiment.adapt import AdaptationReport
from safemeta.experiment.certify import CertificateReport, Share
from safemeta.experiment.evaluate import EvaluationReport, Interval, LargestCost


def adaptation_table(report: AdaptationReport) -> Any:
    """Return before and after adaptation, and the largest cost of any policy used, against its limit."""
    from rich.markup import escape

    stated = "" if report.confidence is None else f", confidence {report.confidence:g}"
    table = _table(f"Adaptation to {report.tasks} unseen tasks ({report.episodes} fresh episodes per policy{stated})")
    table.add_row("return before adaptation", *_shown(report.before))
    table.add_row("return after 1 step", *_shown(report.after_one))
    if report.steps > 1:
        table.add_row(f"return after {report.steps} steps", *_shown(report.after))
    for cost in report.largest_cost:
        _add_cost(table, cost, report.limit_on, f"(task {cost.task}, step {cost.step})")
    if report.outcomes:
        table.caption = escape("  ".join(f"{name}: {count}" for name, count in report.outcomes.items() if count))
    if report.shield is not None:
        _add_shield(table, report.shield)
    return table


def evaluation_table(report: EvaluationReport) -> Any:
    """Return and largest cost of one policy over tasks."""
    table = _table(f"{report.tasks} {report.split} tasks, {report.episodes} episodes each")
    table.add_row("return", *_shown(report.episode_return))
    for cost in report.largest_cost:
        _add_cost(table, cost, report.limit_on, f"(task {cost.task})")
    if report.shield is not None:
        _add_shield(table, report.shield)
    return table


def certificate_table(report: CertificateReport) -> Any:
    """What was found in the states and trajectories of a policy."""
    from rich import box
    from rich.table import Table

    index, states, paths = report.certificate, report.states, report.trajectories
    rates = ", ".join(f"{rate:.4g}" for rate in index["k"])
    title = (
        f"Safety index: sigma {index['sigma']:.4g}, k {rates}, n {index['n']:.4g}, d_min {index['safe_distance']:g} m"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", caption_justify="left")
    for name in ("", "count", "share", "95 % interval"):
        table.add_column(name, justify="left" if name == "" else "right")
    rows = [
        (f"states visited ({report.actions} actions tried in each)", states.visited, ""),
        ("  with an action that keeps the constraint", states.feasible, f"{states.feasible_share:.2%}"),
        ("  where the policy's own action broke it", states.violations, f"{states.violation_share:.2%}"),
        ("    though another would have kept it", states.avoidable, f"{states.avoidable / states.visited:.2%}"),
    ]
    for name, count, share in rows:
        table.add_row(name, str(count), share, "")
    table.add_section()
    table.add_row("trajectories", str(paths.success.of), "", "")
    for name, share in (
        ("  nearer to an obstacle than is safe", paths.hazard_entry),
        ("  through an infeasible state", paths.infeasible),
        ("  neither", paths.success),
        ("  with a cost", paths.cost),
    ):
        table.add_row(name, str(share.count), f"{share.share:.1%}", _ends(share))
    notes = [f"largest index {report.largest_index:.3g}", f"smallest distance {report.smallest_distance:.3g} m"]
    if states.missed:
        notes.append(f"{states.missed} states where only the policy's own action kept it: the grid is coarse")
    notes += [
        f"0 to {each['top_speed']:g} m/s: index <= 0 in {each['sublevel_share']:.1%} of the grid,"
        f" {each['unsafe_inside']} of these states bound to collide"
        for each in ([] if report.reachability is None else report.reachability["inclusion"])
    ]
    table.caption = "\n".join(notes)
    return table


def _ends(share: Share) -> str:
    return f"{share.low:.1%} to {share.high:.1%}"


def _add_shield(table: Any, shield: dict[str, Any]) -> None:
    """How often the shield stepped in, and what there was without it, where that was measured."""
    table.add_section()
    table.add_row(f"shield ({shield['kind']}): steps intervened in", f"{shield['intervened']:.2%}", "", "")
    table.add_row("  where no action kept the constraint", f"{shield['infeasible']:.2%}", "", "")
    table.add_row("  that broke the constraint", f"{shield['violated']:.2%}", "", "")
    without = shield.get("without")
    if without is not None:
        table.add_row("without it: return", *_shown(Interval(**without["episode_return"])), "")
        for cost in without["largest_cost"]:
            name = f"  largest {cost['name'].replace('_', ' ')} (task {cost['task']})"
            table.add_row(name, *_shown(Interval(**cost["cost"])), f"{cost['limit']:.4g}")
        table.add_row("  steps that broke the constraint", f"{without['violated']:.2%}", "", "")


def show(table: Any, stream: Any = None) -> None:
    """Print a table on standard output."""
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    # Away from a terminal rich assumes 80 columns and would wrap; a log file has no edge.
    if not console.is_terminal:
        console.width = max(console.width, 100)
    console.print(table)


def _table(title: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("limit", justify="right")
    return table


def _add_cost(table: Any, cost: LargestCost, limit_on: str, where: str) -> None:
    style = "bold red" if cost.above_limit else "bold green"
    table.add_row(
        f"largest {cost.name.replace('_', ' ')}, {limit_on.replace('_', ' ')} {where}",
        *_shown(cost.cost),
        f"{cost.limit:.4g}",
        style=style,
    )
    table.add_row(
        "policies above the limit",
        f"{cost.above_limit} of {cost.policies}",
        f"{cost.significantly_above} significantly",
        "",
        style=style if cost.above_limit else None,
    )


def _shown(value: Interval) -> tuple[str, str]:
    if value.low is None or value.high is None:
        return f"{value.mean:.2f}", "-"
    return f"{value.mean:.2f}", f"{value.low:.2f} to {value.high:.2f}"
