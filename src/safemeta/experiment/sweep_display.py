"""What a user sees of a sweep: a table of all runs on a terminal, lines elsewhere, JSON lines for machines."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from safemeta.experiment.job_progress import Display, Silent
from safemeta.experiment.metrics import COSTS, LIMITS, RETURNS, found, highlights
from safemeta.experiment.progress import Pace

State = Literal["waiting", "running", "stopping", "done", "failed"]
ORDER: tuple[State, ...] = ("failed", "stopping", "running", "done", "waiting")  # where there is no room for all
COLOURS = {"waiting": "dim", "running": "bold", "stopping": "yellow", "done": "green", "failed": "red"}
FRAME = 8  # lines of a terminal that are not for runs


@dataclasses.dataclass
class Row:
    """One run, as far as is known."""

    name: str
    iterations: int
    state: State = "waiting"
    iteration: int = 0
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    left: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `safemeta sweep --json` prints it."""
        return {
            "run": self.name,
            "state": self.state,
            "iteration": self.iteration,
            "iterations": self.iterations,
            "return": _first(self.metrics, RETURNS),
            "cost": _first(self.metrics, COSTS),
            "limit": _first(self.metrics, LIMITS),
        }


class Board(Display):
    """All runs of a sweep; told as plain lines on standard error."""

    def __init__(self, rows: Iterable[Row], pause: float = 10.0):
        self.rows = {row.name: row for row in rows}
        done = {row.name for row in self.rows.values() if row.state == "done"}
        super().__init__({row.name: float(row.iterations) for row in self.rows.values()}, done, pause)
        self._paces: dict[str, Pace] = {}

    def update(self, name: str, state: State, iteration: int, metrics: Mapping[str, Any]) -> None:
        """What is known of a run now."""
        row = self.rows[name]
        if (row.state, row.iteration) == (state, iteration):
            return
        if state == "running" and (row.state != "running" or iteration < row.iteration):
            self._paces[name] = Pace(iteration)
            row.left = ""
        elif state == "running":
            row.left = self._paces[name].measure(iteration, row.iterations)[1].removesuffix(" left")
        else:
            row.left = ""
        row.state, row.iteration, row.metrics = state, iteration, metrics
        self.changed(row)

    def changed(self, row: Row) -> None:
        """Tell of a row that has changed."""
        over = row.state in ("done", "failed")
        share = 1.0 if over else min(row.iteration / row.iterations, 0.999)
        words = row.state if over else f"iteration {row.iteration}/{row.iterations}  {highlights(row.metrics)}".strip()
        self.tell(row.name, share, words)

    def left(self) -> str:
        """The time left by the pace so far; nothing is known before."""
        return super().left() if self._sum() - self._start > 0.02 * sum(self._seconds.values()) else "?"

    def counts(self) -> str:
        """How many runs there are in each state."""
        states = [row.state for row in self.rows.values()]
        return ", ".join(f"{states.count(state)} {state}" for state in reversed(ORDER) if state in states)


class Table(Board):
    """A table on a terminal, redrawn as runs go on."""

    def __init__(self, rows: Iterable[Row]):
        from rich.console import Console
        from rich.live import Live

        super().__init__(rows, pause=0.0)
        self._console = Console(stderr=True, highlight=False)
        # What others print (Ray does) is kept off the terminal elsewhere.
        self._live = Live(
            console=self._console, get_renderable=self.table, refresh_per_second=2, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip
        self._live.start()

    def show(self, name: str, words: str) -> None: ...  # the table is redrawn by itself

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()

    def table(self) -> Any:
        """All runs, or the most interesting ones that there is room for."""
        from rich import box, table

        room = max(self._console.height - FRAME, 3)
        rows = list(self.rows.values())
        if len(rows) > room:
            rows = sorted(rows, key=lambda row: ORDER.index(row.state))[:room]
        more = len(self.rows) - len(rows)
        caption = f"{self.counts()}; {self.left()} left{f'; {more} runs are not shown' if more else ''}"
        drawn = table.Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
        drawn.add_column("run", overflow="fold", ratio=1)
        for name in ("state", "iteration", "return", "cost", "left"):
            drawn.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        for row in rows:
            numbers = row.to_json()
            cost = _number(numbers["cost"]) + (
                f" / {_number(numbers['limit'])}" if numbers["limit"] is not None else ""
            )
            drawn.add_row(
                row.name, row.state, f"{row.iteration}/{row.iterations}", _number(numbers["return"]), cost, row.left,
                style=COLOURS[row.state],
            )  # fmt: skip
        return drawn


class JsonBoard(Board):
    """One JSON object on standard output for every change of a run."""

    def __init__(self, rows: Iterable[Row], quiet: bool):
        super().__init__(rows)
        self._quiet, self._stream = quiet, sys.stdout

    def changed(self, row: Row) -> None:
        print(json.dumps(row.to_json()), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        if not self._quiet:
            super().note(text)


class SilentBoard(Board, Silent):
    """Nothing at all."""

    show, note = Silent.show, Silent.note


def choose(rows: Iterable[Row], quiet: bool, as_json: bool) -> Board:
    """The display that suits the streams and the wishes."""
    if as_json:
        return JsonBoard(rows, quiet)
    if quiet:
        return SilentBoard(rows)
    return Table(rows) if sys.stderr.isatty() else Board(rows)


def _first(metrics: Mapping[str, Any], wanted: dict[str, tuple[str, str]]) -> float | None:
    return next((float(metrics[name]) for name in found(metrics, wanted)), None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
