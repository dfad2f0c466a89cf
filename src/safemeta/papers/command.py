"""`safemeta reproduce`."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

from safemeta.experiment.arguments import parse
from safemeta.experiment.errors import UserError
from safemeta.papers import registry

DESCRIPTION = "Reproduce a paper's figures and judge its claims. The same command goes on where it was stopped."


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """Options of `safemeta reproduce`."""

    figure: str | None = None
    """Only what this figure needs."""
    budget: Literal["smoke", "laptop", "paper"] = "laptop"
    """How much to compute: smoke (a minute), laptop (two cores, about two hours), or paper (what the paper did)."""
    seeds: int | None = None
    """How many seeds, instead of the budget's number."""
    first_seed: int = 0
    """The first of the seeds: 100 with 8 seeds are 100 to 107."""
    out: str | None = None
    """Folder of the results. By default reproductions/PAPER-BUDGET."""
    workers: int = 1
    """Processes that train at the same time."""
    quiet: bool = False
    """Show nothing but warnings and errors."""
    json: bool = False
    """The claims as one JSON object on standard output."""


def reproduce(arguments: Sequence[str]) -> None:
    """The verb; raises `UserError` with exit code 1 if a run failed, after all that can be said has been said."""
    parsed = parse(
        arguments, {"reproduce": ReproduceOptions()}, program="safemeta reproduce PAPER", description=DESCRIPTION
    )
    if len(parsed.words) != 1:
        problem = f"{len(parsed.words)} were given" if parsed.words else "none was given"
        allowed = ", ".join(registry.names())
        raise UserError(f"safemeta reproduce needs one paper, but {problem}. (Allowed: {allowed}.)")
    options: ReproduceOptions = parsed.parts[0]
    registry.get(parsed.words[0]).chosen(options.figure)

    from safemeta.papers import reproduction, tables

    outcome = reproduction.reproduce(
        parsed.words[0], figure=options.figure, budget=options.budget, seeds=options.seeds,
        first_seed=options.first_seed, out=options.out, workers=options.workers, quiet=options.quiet,
    )  # fmt: skip
    if options.json:
        print(json.dumps(outcome.claims))
    elif not options.quiet:
        tables.show(outcome.summary.tables, outcome.claims["claims"])
        print(f"Results: {outcome.folder}")
    if outcome.failed:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(outcome.failed.items())[:3])
        raise UserError(f"{len(outcome.failed)} of the runs failed ({shown}).", exit_code=1)
