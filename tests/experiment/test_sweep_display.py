"""What a sweep shows of its runs: a table, lines, JSON or nothing."""

import json
import os
import sys

from safemeta.experiment import sweep_display
from safemeta.experiment.sweep_display import Board, JsonBoard, Row, Table


def rows(count=3):
    return [
        Row(f"run-s{number}", 10, "done" if number == 0 else "waiting", 10 * (number == 0)) for number in range(count)
    ]


def test_a_table_of_all_runs(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "14")
    table = Table(rows(8))
    table.update("run-s1", "running", 0, {})
    table.update("run-s1", "running", 5, {"return": 12.34567, "largest_cost": 3.0, "limit": 2.5})
    table.update("run-s2", "failed", 1, {})
    from rich.console import Console

    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table.table())
    table.close()
    console.file.close()
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    assert ["run-s1", "running", "5/10", "12.35", "3", "/", "2.5", "0:00"] in lines
    assert ["run-s2", "failed", "1/10"] in lines
    assert "run-s7" not in text  # no room; those that wait are left out first
    assert "5 waiting, 1 done, 1 running, 1 failed" in text
    assert "2 runs are not shown" in " ".join(text.split())


def test_json_lines_go_to_the_standard_output_that_was_there_at_first(capsys, monkeypatch):
    board = sweep_display.choose(rows(), True, True)
    assert isinstance(board, JsonBoard)
    monkeypatch.setattr(sys, "stdout", None)  # what Ray prints is kept away
    board.update("run-s1", "running", 1, {"return": 2.0, "cost": 1.0})
    board.update("run-s1", "running", 1, {"return": 2.0, "cost": 1.0})  # nothing new
    board.note("a note")
    monkeypatch.undo()
    out, err = capsys.readouterr()
    assert err == ""
    shown = {"run": "run-s1", "state": "running", "iteration": 1, "iterations": 10, "return": 2.0, "cost": 1.0}
    assert [json.loads(line) for line in out.splitlines()] == [{**shown, "limit": None}]


def test_lines_and_silence(capsys):
    board = sweep_display.choose(rows(), False, False)
    assert type(board) is Board
    board.update("run-s1", "running", 5, {"return": 2.0})
    assert board.left() == "0:00"  # five of twenty in no time
    board.update("run-s1", "done", 10, {"return": 3.0})
    silent = sweep_display.choose(rows(), True, False)
    silent.update("run-s1", "done", 10, {})
    silent.note("a note")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[1/3]")
    assert lines[0].endswith("run-s1: iteration 5/10  return 2")
    assert lines[1].startswith("[2/3]")
    assert len(lines) == 2
