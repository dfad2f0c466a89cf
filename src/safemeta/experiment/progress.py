"""What a user sees while something runs: a bar, plain lines, JSON lines, or nothing."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from safemeta.experiment.metrics import highlights


class Reporter(Protocol):
    """Receives what happens. `begin`/`advance`/`end` frame a stage of known length."""

    def begin(self, stage: str, total: int, done: int = 0) -> None: ...

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def end(self) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def summary(self, content: Mapping[str, Any]) -> None: ...


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
        self._stage, self._total, self._first = "", 0, 0
        self._began = self._shown = 0.0

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self._stage, self._total, self._first = stage, total, done
        self._began, self._shown = time.monotonic(), 0.0

    def advance(self, step: int, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if step < self._total and now - self._shown < self._pause:
            return
        self._shown = now
        rate = (step - self._first) / max(now - self._began, 1e-9)
        left = _clock((self._total - step) / rate) if rate > 0 else "?"
        numbers = highlights(metrics)
        speed = f"{rate:.2f}/s" if rate < 10 else f"{rate:.0f}/s"
        self.note("  ".join(filter(None, (f"{self._stage} {step}/{self._total}", numbers, speed, f"{left} left"))))

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
        self._began, self._first = 0.0, 0

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.end()
        self._began, self._first = time.monotonic(), done
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
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
        rate = (step - self._first) / max(time.monotonic() - self._began, 1e-9)
        total = self._progress.tasks[0].total
        left = _clock((total - step) / rate) if rate > 0 else "?"
        speed = f"{rate:.2f}/s" if rate < 10 else f"{rate:.0f}/s"
        self._progress.update(self._task, completed=step, numbers=highlights(metrics), rate=speed, left=f"{left} left")

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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
