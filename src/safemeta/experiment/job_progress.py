"""Progress over a whole plan: which job, how far, and the time left for all of them."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from safemeta.experiment.metrics import highlights
from safemeta.experiment.progress import Quiet, clock

Told = Callable[[float, str], None]  # share of the job that is done, words


class JobProgress:
    """A job's `jobs.Progress`: its parts, one after the other, told as a share of the whole job."""

    def __init__(self, told: Told):
        self._told = told
        self._begun = 0.0

    def part(self, share: float) -> "Part":
        """A reporter for the next `share` of the job."""
        start, self._begun = self._begun, self._begun + share
        return Part(self._told, start, share)


class Part(Quiet):
    """A stage of a job, as the experiment layer reports it. Notes are left out; warnings are not."""

    def __init__(self, told: Told, start: float, share: float):
        self._told, self._start, self._share = told, start, share
        self._stage, self._total = "", 1

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self._stage, self._total = stage, total
        self.advance(done, {})

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None:
        words = f"{self._stage} {step}/{self._total}  {highlights(metrics)}"
        self._told(self._start + self._share * step / self._total, words.strip())


class Display:
    """Plain lines on standard error, at most one every `pause` seconds; `jobs` maps names to expected seconds.

    `at_once`: how many jobs are worked on side by side.
    """

    def __init__(self, jobs: Mapping[str, float], done: set[str], pause: float = 10.0, at_once: int = 1):
        self._seconds, self._at_once = dict(jobs), max(1, min(at_once, len(jobs) - len(done)))
        self._shares = {name: float(name in done) for name in jobs}
        self._start, self._began = self._sum(), time.monotonic()
        self._pause, self._shown = pause, -float("inf")

    def tell(self, name: str, share: float, words: str) -> None:
        """The job `name` has come to `share`."""
        self._shares[name] = share
        now = time.monotonic()
        if now - self._shown >= self._pause or share >= 1:
            self._shown = now
            self.show(name, words)

    def show(self, name: str, words: str) -> None:
        self.note(f"[{self.finished}/{len(self._shares)}]  {self.left()} left  {name}: {words}")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None: ...

    @property
    def finished(self) -> int:
        return sum(share >= 1 for share in self._shares.values())

    @property
    def fraction(self) -> float:
        """How much of the plan is done."""
        return self._sum() / max(sum(self._seconds.values()), 1e-9)

    def left(self) -> str:
        """The time left: by the plan's own guess at first, by the pace so far once that can be told."""
        total, now = sum(self._seconds.values()), self._sum()
        gained, elapsed = now - self._start, time.monotonic() - self._began
        known = gained > 0.02 * total
        return clock((total - now) * (elapsed / gained if known else 1 / self._at_once))

    def _sum(self) -> float:
        return sum(self._seconds[name] * share for name, share in self._shares.items())


class Silent(Display):
    """Nothing at all."""

    def show(self, name: str, words: str) -> None: ...

    def note(self, text: str) -> None: ...


class Bar(Display):
    """A bar on a terminal."""

    def __init__(self, jobs: Mapping[str, float], done: set[str], at_once: int = 1):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(jobs, done, 0.2, at_once)
        self._console = Console(stderr=True, highlight=False)
        columns = [TextColumn("{task.fields[count]}"), BarColumn(bar_width=20), TextColumn("{task.description}")]
        self._progress = Progress(*columns, console=self._console)
        self._progress.start()
        self._task = self._progress.add_task("starting ...", total=1.0, count="")

    def show(self, name: str, words: str) -> None:
        count = f"{self.finished}/{len(self._shares)}  {self.left()} left"
        self._progress.update(self._task, completed=self.fraction, description=f"{name}: {words}", count=count)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def choose(quiet: bool, jobs: Mapping[str, float], done: set[str], at_once: int = 1) -> Display:
    """The display that suits the stream and the wish."""
    if quiet:
        return Silent(jobs, done, at_once=at_once)
    return Bar(jobs, done, at_once) if sys.stderr.isatty() else Display(jobs, done, at_once=at_once)
