"""The tables that end `safemeta adapt` and `safemeta evaluate`."""

from typing import Any

from safemeta.experiment.adapt import AdaptationReport
from safemeta.experiment.evaluate import EvaluationReport, Interval, LargestCost


def adaptation_table(report: AdaptationReport) -> Any:
    """Return before and after adaptation, and the largest cost of any policy used, against its limit."""
    from rich.markup import escape

    table = _table(f"Adaptation to {report.tasks} unseen tasks ({report.episodes} fresh episodes per policy)")
    table.add_row("return before adaptation", *_shown(report.before))
    table.add_row("return after 1 step", *_shown(report.after_one))
    if report.steps > 1:
        table.add_row(f"return after {report.steps} steps", *_shown(report.after))
    for cost in report.largest_cost:
        _add_cost(table, cost, report.limit_on, f"(task {cost.task}, step {cost.step})")
    if report.outcomes:
        table.caption = escape("  ".join(f"{name}: {count}" for name, count in report.outcomes.items() if count))
    return table


def evaluation_table(report: EvaluationReport) -> Any:
    """Return and largest cost of one policy over tasks."""
    table = _table(f"{report.tasks} {report.split} tasks, {report.episodes} episodes each")
    table.add_row("return", *_shown(report.episode_return))
    for cost in report.largest_cost:
        _add_cost(table, cost, report.limit_on, f"(task {cost.task})")
    return table


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
