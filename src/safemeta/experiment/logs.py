"""Metrics of a run: `metrics.jsonl`, `timing.jsonl` and TensorBoard events.

`metrics.jsonl` holds only what the seed determines, so that a resumed run's file equals an unbroken run's byte for
byte; the clock's readings are kept apart in `timing.jsonl`.
"""

import contextlib
import importlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from safemeta.experiment.errors import UserError

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
EVENTS = "tensorboard"
TAIL = 2**16  # bytes, more than a line has

Scalars = Mapping[str, float | int | bool]


class RunLogs:
    """Writers that continue after `iteration`; whatever the files hold beyond it is cut off."""

    def __init__(self, folder: Path, iteration: int):
        self.complete = cut(folder / METRICS, iteration) == iteration
        cut(folder / TIMING, iteration)
        with contextlib.ExitStack() as opened:
            self._metrics: IO[str] = opened.enter_context(_appending(folder / METRICS))
            self._timing: IO[str] = opened.enter_context(_appending(folder / TIMING))
            self._events = _events(folder / EVENTS, iteration)
            opened.pop_all()

    def write(self, iteration: int, metrics: Scalars, seconds: float) -> None:
        """Append one iteration. Metrics must be finite."""
        self._metrics.write(json.dumps({"iteration": iteration, **metrics}, allow_nan=False) + "\n")
        clock = {"iteration": iteration, "seconds": round(seconds, 6), "time": round(time.time(), 3)}
        self._timing.write(json.dumps(clock) + "\n")
        self._write_events(iteration, {**metrics, "seconds": seconds})

    def sync(self) -> None:
        """Bring everything to the disk; done before a checkpoint is written, which must never be ahead of it."""
        for file in (self._metrics, self._timing):
            file.flush()
            os.fsync(file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Close all files; a full disk is no reason to leave one open."""
        # The writer of events closes its file only after it could write to it; its file itself always closes.
        for file in (self._metrics, self._timing, self._events, self._events._py_recordio_writer):
            with contextlib.suppress(OSError):
                file.close()

    def _write_events(self, iteration: int, scalars: Scalars) -> None:
        events, summaries = _messages("event"), _messages("summary")
        values = [summaries.Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        summary = summaries.Summary(value=values)
        self._events.write_event(events.Event(wall_time=time.time(), step=iteration, summary=summary))


def _appending(path: Path) -> IO[str]:
    """Line buffering hands every whole line to the system at once: a killed process loses none."""
    return open(path, "a", buffering=1, encoding="utf-8")


def cut(path: Path, iteration: int) -> int:
    """Cut a JSON-lines file after the line of `iteration`; the number of lines that remain.

    Lines are kept as long as they are whole and count 1, 2, 3, ... without a gap.
    """
    if not path.exists():
        return 0
    kept, size = 0, 0
    with open(path, "rb") as file:
        for line in file:
            if kept == iteration or not line.endswith(b"\n") or _iteration_of(line) != kept + 1:
                break
            kept += 1
            size += len(line)
    if size < path.stat().st_size:
        os.truncate(path, size)
    return kept


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; a torn last one is left out. `UserError` where another one is damaged."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            content = None
        if not _is_record(content):
            raise UserError(f"'{path}' is damaged at line {number}.", exit_code=1)
        found.append(content)
    return found


def _is_record(content: Any) -> bool:
    """Whether it is what `write` has written: the number of an iteration, and finite numbers."""
    if not isinstance(content, dict) or not isinstance(content.get("iteration"), int):
        return False
    return all(isinstance(value, (int, float)) and -1e300 < value < 1e300 for value in content.values())


def last(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file that may still be written to; {} if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]
        found = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _iteration_of(line: bytes) -> Any:
    try:
        return json.loads(line).get("iteration")
    except (ValueError, AttributeError, RecursionError):
        return None


def _messages(name: str) -> ModuleType:
    """TensorBoard's protocol messages; their classes are made at run time, where no type checker sees them."""
    return importlib.import_module(f"tensorboardX.proto.{name}_pb2")


def _events(folder: Path, iteration: int) -> Any:
    """A TensorBoard writer without a thread of its own (an error must surface here), which hides later steps."""
    from tensorboardX.event_file_writer import EventsWriter

    folder.mkdir(exist_ok=True)
    writer = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}.{iteration}")
    if iteration > 0:
        events = _messages("event")
        restart = events.SessionLog(status=events.SessionLog.SessionStatus.Value("START"))
        writer.write_event(events.Event(wall_time=time.time(), step=iteration + 1, session_log=restart))
    return writer
