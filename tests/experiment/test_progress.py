"""What is shown where."""

import io
import json
import warnings

import pytest

from safemeta.experiment import progress
from safemeta.experiment.metrics import highlights

METRICS = {"iteration": 1, "return_before": 1.0, "return_after": 2.5, "largest_cost": 9.25, "limit": 10.0}


def use(reporter):
    reporter.begin("Training", 2)
    reporter.advance(1, METRICS)
    reporter.advance(2, METRICS | {"iteration": 2})
    reporter.end()
    reporter.note("note")
    reporter.warn("warning")
    reporter.summary({"run": "r"})


def test_highlights():
    assert highlights(METRICS) == "return 2.5  max cost 9.25/10"
    assert highlights({"cost": 3.0, "other": 1}) == "cost 3"
    assert highlights({"limit": 3.0}) == ""
    assert highlights({}) == ""


@pytest.mark.filterwarnings("default")
def test_what_is_warned_of_is_told(capsys):
    with progress.told(progress.Lines()):
        warnings.warn("The support is narrow.", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "Warning: The support is narrow.\n"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The support")  # by who knows why
        with progress.told(progress.Lines()):
            warnings.warn("The support is narrow.", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""


def test_lines(capsys):
    use(progress.Lines())
    out, err = capsys.readouterr()
    assert out == ""
    assert "Training 2/2  return 2.5  max cost 9.25/10" in err
    assert "0:00 left" in err
    assert "note" in err
    assert "Warning: warning" in err


def test_lines_are_rare(capsys):
    reporter = progress.Lines(pause=1000.0)
    reporter.begin("Training", 100)
    for step in range(1, 101):
        reporter.advance(step, METRICS)
    assert len(capsys.readouterr().err.splitlines()) == 2  # the first and the last


@pytest.mark.parametrize("quiet", [False, True])
def test_json(capsys, quiet):
    use(progress.choose(quiet=quiet, as_json=True))
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("iteration") for line in lines] == [1, 2, None]
    assert lines[-1] == {"summary": True, "run": "r"}
    assert "warning" in err
    assert ("note" in err) is not quiet


def test_quiet(capsys):
    use(progress.choose(quiet=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "Warning: warning\n"


def test_bar(monkeypatch):
    from rich.console import Console

    bar, stream = progress.Bar(), io.StringIO()
    bar._console = Console(file=stream, force_terminal=True, width=160)
    use(bar)
    assert "2/2" in stream.getvalue()
    assert "return 2.5  max cost 9.25" in stream.getvalue()
    assert "left" in stream.getvalue()


def test_choice(monkeypatch):
    assert type(progress.choose()) is progress.Lines
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert type(progress.choose()) is progress.Bar
