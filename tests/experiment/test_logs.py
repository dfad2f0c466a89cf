"""Metric files: whole lines only, cut back to the checkpoint."""

import json
import struct

import pytest

from safemeta.experiment import logs


def lines(*numbers):
    return b"".join(json.dumps({"iteration": number, "x": number / 3}).encode() + b"\n" for number in numbers)


@pytest.mark.parametrize(
    ("content", "iteration", "kept"),
    [
        (lines(1, 2, 3), 3, 3),
        (lines(1, 2, 3), 2, 2),
        (lines(1, 2, 3), 0, 0),
        (lines(1, 2, 3)[:-1], 3, 2),  # a torn last line
        (lines(1, 2) + b'{"iteration": 3, "x', 3, 2),
        (lines(1, 3), 3, 1),  # a gap
        (lines(1) + b"rubbish\n" + lines(2), 3, 1),
        (lines(1) + b"[]\n" + lines(2), 3, 1),
        (b"", 3, 0),
    ],
)
def test_cut(tmp_path, content, iteration, kept):
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    assert logs.cut(path, iteration) == kept
    assert path.read_bytes() == lines(*range(1, kept + 1))


def test_cut_of_a_file_that_is_not_there(tmp_path):
    assert logs.cut(tmp_path / "m.jsonl", 3) == 0
    assert not (tmp_path / "m.jsonl").exists()


def write(folder, start, end):
    run = logs.RunLogs(folder, start)
    for iteration in range(start + 1, end + 1):
        run.write(iteration, {"return": iteration / 7, "count": iteration}, 0.5)
    run.sync()
    run.close()
    return run.complete


def test_a_continued_log_equals_an_unbroken_one(tmp_path):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    write(tmp_path / "whole", 0, 6)
    assert write(tmp_path / "broken", 0, 5)
    assert write(tmp_path / "broken", 3, 6)
    whole, broken = ((tmp_path / name / logs.METRICS).read_bytes() for name in ("whole", "broken"))
    assert whole == broken
    assert [line["iteration"] for line in logs.read(tmp_path / "broken" / logs.TIMING)] == [1, 2, 3, 4, 5, 6]


def test_missing_lines_are_noticed(tmp_path):
    write(tmp_path, 0, 2)
    assert not write(tmp_path, 4, 5)


def test_nan_is_never_written(tmp_path):
    run = logs.RunLogs(tmp_path, 0)
    with pytest.raises(ValueError, match="JSON"):
        run.write(1, {"return": float("nan")}, 0.1)
    run.close()
    assert (tmp_path / logs.METRICS).read_bytes() == b""


def test_tensorboard_events(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    write(tmp_path, 0, 2)
    write(tmp_path, 2, 3)
    found = []
    for path in sorted((tmp_path / logs.EVENTS).iterdir(), key=lambda path: path.name.rsplit(".")[-1]):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    scalars = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert (2, "return", pytest.approx(2 / 7)) in scalars
    assert (3, "count", 3.0) in scalars
    # the restart hides steps from 3 on that the first process may have written
    assert [event.step for event in found if event.HasField("session_log")] == [3]


def test_read_stops_at_a_torn_line(tmp_path):
    (tmp_path / "m").write_bytes(lines(1, 2) + b'{"iter')
    assert [line["iteration"] for line in logs.read(tmp_path / "m")] == [1, 2]
    assert logs.read(tmp_path / "none") == []


def test_the_last_line_of_a_file_that_is_written_to(tmp_path):
    path = tmp_path / "lines"
    assert logs.last(path) == {}
    path.write_bytes(b'{"iteration": 1}\n{"iteration": 2}\n{"itera')
    assert logs.last(path) == {"iteration": 2}
    path.write_bytes(b"x" * 100_000 + b'\n{"iteration": 3}\n')
    assert logs.last(path) == {"iteration": 3}
    path.write_bytes(b"x\n")
    assert logs.last(path) == {}
