"""Tables of results: the same content printed, as markdown and as JSON."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safemeta.experiment.evaluate import Interval
from safemeta.experiment.files import write_atomically, write_json
from safemeta.papers.claims import CONTRADICTED, REPRODUCED, shown

Cell = str | int | float | Interval | None


@dataclasses.dataclass(frozen=True)
class Table:
    """`rows` hold as many cells as there are `columns`; an `Interval` is shown with its 95 % interval."""

    name: str  # of the files
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"A row of '{self.title}' has {len(row)} cells, not {len(self.columns)}.")

    def markdown(self) -> str:
        """A heading, the table, the note."""
        lines = [self.columns, tuple("---" for _ in self.columns), *(tuple(map(text, row)) for row in self.rows)]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")

    def to_json(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns, map(_plain, row), strict=True)) for row in self.rows]
        return {"name": self.name, "title": self.title, "note": self.note, "rows": rows}


def text(cell: Cell) -> str:
    """A cell as it is shown."""
    if cell is None:
        return "-"
    if isinstance(cell, Interval):
        return shown(cell)
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _plain(cell: Cell) -> Any:
    return dataclasses.asdict(cell) if isinstance(cell, Interval) else cell


def save(folder: Path, title: str, tables: Sequence[Table]) -> tuple[Path, Path]:
    """Write `tables.md` and `tables.json`."""
    markdown, data = folder / "tables.md", folder / "tables.json"
    write_atomically(markdown, (f"# {title}\n\n" + "\n".join(each.markdown() for each in tables)).encode())
    write_json(data, [each.to_json() for each in tables])
    return markdown, data


def show(tables: Sequence[Table], claims: Sequence[dict[str, Any]]) -> None:
    """Print the tables and the verdicts on standard output."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Printed

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)
    for each in tables:
        printed = Printed(title=each.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for index, column in enumerate(each.columns):
            printed.add_column(column, justify="left" if index == 0 else "right")
        for row in each.rows:
            printed.add_row(*(escape(text(cell)) for cell in row))
        console.print(printed)
        if each.note:
            console.print(each.note, markup=False)
    if claims:
        printed = Printed(title="Claims", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for column in ("claim", "verdict", "ours", "paper"):
            printed.add_column(column)
        styles = {REPRODUCED: "bold green", CONTRADICTED: "bold red"}
        for claim in claims:
            cells = [escape(str(claim[key])) for key in ("claim", "verdict", "ours", "paper")]
            printed.add_row(*cells, style=styles.get(claim["verdict"]))
        console.print(printed)
