"""Pieces of work that can be done in any order and in any process, and what carrying them out has in common."""

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from safemeta.experiment.errors import Interrupted, UserError, writing_failed
from safemeta.experiment.progress import Reporter
from safemeta.experiment.run import locked


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


@contextlib.contextmanager
def carrying_out(folder: Path, doing: str, command: str) -> Iterator[None]:
    """Hold `folder` alone while jobs are done in it; whatever stops them is told in one sentence.

    `doing` completes "Another process is ..."; `command` is the command line that goes on.
    """
    stopped = f"Stopped; what is done is kept. Go on with: {command}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, doing):
            yield
    except KeyboardInterrupt as problem:
        raise Interrupted(stopped, exit_code=130) from problem
    except Interrupted as problem:
        raise Interrupted(stopped, exit_code=problem.exit_code) from problem
    except OSError as problem:
        raise writing_failed(problem, folder) from problem


def reason(problem: Exception) -> str:
    """Why a job failed, in one sentence."""
    if isinstance(problem, UserError):
        return str(problem)
    if os.environ.get("SAFEMETA_DEBUG") == "1":
        traceback.print_exception(problem)
    return f"Unexpected {type(problem).__name__}: {' '.join(str(problem).split())[:300] or 'no reason given'}."
