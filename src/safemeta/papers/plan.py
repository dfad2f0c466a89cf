"""What a reproduction is: jobs that can be done in any order and in any process, then a summary of what they left.

A paper's module offers `plan(request) -> Plan`. Reinforcement learning is a list of `Trial`s (`trials.py`); anything
else is a job of the module's own with the same members.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safemeta.experiment.jobs import Job
from safemeta.papers.claims import Claim
from safemeta.papers.tables import Table


@dataclass(frozen=True)
class Request:
    """What was asked for: the figures, at which budget, with how many seeds, and the first of them."""

    figures: tuple[str, ...]
    budget: str
    seeds: int
    first_seed: int = 0

    @property
    def seed_numbers(self) -> range:
        """The seeds themselves."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(frozen=True)
class Summary:
    """What a reproduction ends with. `pictures` are already saved."""

    tables: tuple[Table, ...]
    pictures: tuple[Path, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Plan:
    """`summarise(out)` reads what the jobs left under `out / "runs"` (of failed jobs, nothing) and saves pictures."""

    jobs: tuple[Job, ...]
    summarise: Callable[[Path], Summary]
