"""What a reproduction is: jobs that can be done in any order and in any process, then a summary of what they left.

A paper's module offers `plan(request) -> Plan`. Reinforcement learning is a list of `Trial`s (`trials.py`); anything
else is a job of the module's own with the same members.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safemeta.experiment.progress import Reporter
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


class Progress(Protocol):
    """How a job tells how far it is."""

    def part(self, share: float) -> Reporter:
        """A reporter for the next `share` of the job, to hand to `train` and the like."""
        ...


class Job(Protocol):
    """An independent piece of work. It must be picklable, since it may be done in another process.

    All it leaves lies in `out / "runs" / name`. It is done if its result is there, whole; so results are written at
    once (`files.write_json`) and last. If it was stopped before, `work` goes on where it stopped, as far as it can.
    """

    @property
    def name(self) -> str: ...

    @property
    def seconds(self) -> float:
        """Roughly how long it takes, for the time left."""
        ...

    @property
    def program(self) -> str:
        """Jobs of one program use the same compiled code, which is let go before a job of another program."""
        ...

    def done(self, folder: Path) -> bool:
        """Whether `folder` holds the result; `UserError` if it holds another job's, of other settings."""
        ...

    def work(self, folder: Path, progress: Progress) -> None:
        """Do it, or what is left of it. `UserError` with exit code 1 if it fails; `Interrupted` if it is stopped."""
        ...


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
