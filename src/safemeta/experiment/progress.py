"""What a user sees while something runs: a bar, plain lines, JSON lines, or nothing."""

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from safemeta.experiment.metrics import highlights


class Reporter(Protocol):
    """Receives what happens. `begin`/`advance`/`end` frame a stage of known length."""

    def begin(self, stage: str, total: int, done: int = 0) -> None: ...

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def end(self) -> None: ...

    def note(self, text: str) -> None:
        """A sentence for who watches."""
        ...

    def warn(self, text: str) -> None:
        """A sentence for who watches or reads the log."""
        ...

    def summary(self, content: Mapping[str, Any]) -> None:
        """What came of it, as JSON values."""
        ...


@contextlib.contextmanager
def told(reporter: Reporter) -> Iterator[None]:
    """What Python code within warns of is told by the reporter, each a sentence."""
    with warnings.catch_warnings(record=True) as found:
        yield
    for warning in found:
        reporter.warn(str(warning.message))


class Pace:
    """Steps per second and the time that is left, in words.

    The first step is left out as soon as there is a second one: it compiles.
    """

    def __init__(self, done: int):
        self._start = (done, time.monotonic())
        self._first: tuple[int, float] | None = None

    def measure(self, step: int, total: int) -> tuple[str, str]:
        """After `step` of `total` steps."""
        now = time.monotonic()
        since, began = self._first if self._first is not None else self._start
        rate = (step - since) / max(now - began, 1e-9)
        self._first = self._first or (step, now)
        left = clock((total - step) / rate) if rate > 0 else "?"
        return (f"{rate:.2f}/s" if rate < 10 else f"{rate:.0f}/s"), f"{left} left"


class Quiet:
    """Nothing but warnings."""

    def begin(self, stage: str, total: int, done: int = 0) -> None: ...

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def end(self) -> None: ...

    def note(self, text: str) -> None: ...

    def summary(self, content: Mapping[str, Any]) -> None: ...

    def warn(self, text: str) -> None:
        print(f"Warning: {text}", file=sys.stderr, flush=True)


class Lines(Quiet):
    """Plain lines on standard error, at most one every `pause` seconds: for pipes and log files."""

    def __init__(self, pause: float = 2.0):
        self._pause = pause
        self._stage, self._total, self._shown = "", 0, 0.0
        self._pace = Pace(0)

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self._stage, self._total, self._shown = stage, total, 0.0
        self._pace = Pace(done)

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None:
        now, (rate, left) = time.monotonic(), self._pace.measure(step, self._total)
        if step < self._total and now - self._shown < self._pause:
            return
        self._shown = now
        self.note("  ".join(filter(None, (f"{self._stage} {step}/{self._total}", highlights(metrics), rate, left))))

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Json(Lines):
    """One JSON object per iteration on standard output, the last one the summary; all else on standard error."""

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None:
        if "iteration" in metrics:
            print(json.dumps(dict(metrics)), flush=True)
        else:
            super().advance(step, metrics)

    def summary(self, content: Mapping[str, Any]) -> None:
        print(json.dumps({"summary": True, **content}), flush=True)


class QuietJson(Json):
    """JSON lines on standard output and only warnings on standard error."""

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None:
        if "iteration" in metrics:
            super().advance(step, metrics)

    def note(self, text: str) -> None: ...


class Bar(Quiet):
    """A progress bar on a terminal, with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._progress: Any = None
        self._task: Any = None
        self._pace = Pace(0)

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self.end()
        self._pace = Pace(done)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10 if self._console.width < 100 else 30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("[bold]{task.fields[numbers]}"),
            console=self._console,
        )
        self._progress.start()
        # The first step compiles; say so rather than show an empty bar.
        self._task = self._progress.add_task(
            stage, total=total, completed=done, numbers="compiling ...", rate="", left=""
        )

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None:
        rate, left = self._pace.measure(step, int(self._progress.tasks[0].total))
        self._progress.update(self._task, completed=step, numbers=highlights(metrics), rate=rate, left=left)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self._console.print(f"[yellow]Warning:[/yellow] {_escape(text)}", soft_wrap=True)


def choose(quiet: bool = False, as_json: bool = False) -> Quiet:
    """The reporter that suits the streams and the wishes."""
    if as_json:
        return QuietJson() if quiet else Json()
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()


def default() -> Quiet:
    """For Python callers: a bar for somebody who watches, nothing otherwise."""
    return Bar() if sys.stderr.isatty() else Quiet()


def clock(seconds: float) -> str:
    """`4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
