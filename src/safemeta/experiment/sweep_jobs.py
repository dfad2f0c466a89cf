"""What a sweep does in one process: one run, or several seeds in one compiled program, to their ends."""

import platform
from dataclasses import dataclass
from pathlib import Path

from safemeta.experiment.errors import UserError
from safemeta.experiment.progress import Reporter
from safemeta.experiment.run import CONFIG, locked
from safemeta.experiment.sweep_file import PlannedRun

PATIENCE = 30.0  # seconds for a process that died, or is dying, to let go of its runs


@dataclass(frozen=True)
class SweepJob:
    """Runs that differ in their seed alone. Their folders, with their configurations, are there before it begins."""

    runs: tuple[PlannedRun, ...]

    @property
    def name(self) -> str:
        return self.runs[0].name if len(self.runs) == 1 else f"{self.runs[0].name} to {self.runs[-1].config.seed}"

    @property
    def program(self) -> str:
        """Jobs of one program use the same compiled code."""
        return self.runs[0].name.rpartition("-s")[0]

    def iteration(self, folder: Path) -> int:
        """The iteration from which it would go on."""
        return min(saved(folder / run.name) for run in self.runs)

    def done(self, folder: Path) -> bool:
        """Whether all runs are trained to their ends."""
        return all(saved(folder / run.name) >= run.config.iterations for run in self.runs)

    def work(self, folder: Path, reporter: Reporter) -> None:
        """Train what is left. `UserError` with exit code 1 if it fails; `Interrupted` if it is stopped."""
        from safemeta.experiment.lockstep import opened, train_together
        from safemeta.experiment.train import train

        places = [folder / run.name for run in self.runs]
        for place in places:
            if not (place / CONFIG).is_file():
                raise UserError(
                    f"The machine {platform.node()} does not see '{place}'; a sweep on several machines needs a folder"
                    " that all of them share.",
                    exit_code=1,
                )
            with locked(place, patience=PATIENCE):
                pass
        if len(places) == 1:
            train(resume=places[0], reporter=reporter)
        else:
            train_together(
                [opened(place, run.config, reporter) for place, run in zip(places, self.runs, strict=True)], reporter
            )


def saved(folder: Path) -> int:
    """The iteration of a run's newest checkpoint, 0 if there is none."""
    from safemeta.experiment.checkpoint import Checkpoints

    return next(iter(Checkpoints(folder / "checkpoints").iterations()), 0)
