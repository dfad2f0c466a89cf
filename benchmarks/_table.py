"""What a benchmark prints: one line for each case, beside a peer where there is one."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table; `ratio` above one means better than the peer."""

    case: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None


def print_json(benchmark: str, rows: Iterable[Row]) -> None:
    """All rows as one JSON object."""
    print(json.dumps({"benchmark": benchmark, "rows": [asdict(row) for row in rows]}, default=float))


def print_rows(benchmark: str, rows: list[Row], as_json: bool) -> None:
    """All rows as one JSON object, or a line of each without its peer."""
    if as_json:
        return print_json(benchmark, rows)
    for row in rows:
        print(f"{row.case:<80} {row.value:10.4f} {row.unit}")
