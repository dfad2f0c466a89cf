"""The page about runs: whole in itself, true to the files, and shown by a browser without complaint."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import dummy_algorithm
import numpy as np
import pytest

from safemeta.algorithms import registry as algorithms
from safemeta.cli import main
from safemeta.experiment import adapt, evaluate, plot, report, train
from safemeta.experiment.errors import UserError
from safemeta.tasks import registry as tasks


class Page(HTMLParser):
    """The tags of a page, and the words in it."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += " " + " ".join(data.split())

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two seeds, one of them adapted and evaluated, and a run with another option."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "ALGORITHMS", dict(algorithms.ALGORITHMS))
        patch.setattr(tasks, "FAMILIES", dict(tasks.FAMILIES))
        dummy_algorithm.register()
        made = [train("dummy", "dummy-task", iterations=6, seed=seed, out=folder / f"s{seed}") for seed in (0, 1)]
        train("dummy", "dummy-task", iterations=3, rate=0.2, out=folder / "other")
        adapt(made[0], tasks=4, steps=2, episodes=3)
        evaluate(made[0], tasks=3, episodes=3)
    return folder


@pytest.fixture
def runs(made):
    """Copies of them in the current folder, which is empty."""
    shutil.copytree(made, "runs")
    return [Path("runs") / name for name in ("s0", "s1", "other")]


def test_everything_is_in_the_page(runs):
    path = report(*runs)
    assert path == runs[0] / "report.html"
    page = Page(path)
    pictures = page.of("img")
    assert len(pictures) == 3  # training, anytime safety, adaptation
    for picture in pictures:
        assert picture["src"].startswith("data:image/")
        assert picture["alt"]
    for tag in ("script", "iframe"):
        assert not page.of(tag)
    assert all(link["href"].startswith(("#", "data:")) for link in page.of("a") + page.of("link"))
    assert any(meta.get("name") == "viewport" for meta in page.of("meta"))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link["href"][1:] for link in page.of("a")} <= ids


def test_numbers_are_those_of_the_files(runs):
    words = Page(report(*runs, out="page.html")).words
    adaptation = json.loads((runs[0] / "adaptation.json").read_text())
    for step in (0, 1, -1):
        value = adaptation["return_by_step"][step]
        assert f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]" in words
    evaluation = json.loads((runs[0] / "evaluation.json").read_text())
    assert f"{evaluation['episode_return']['mean']:.4g} [" in words
    cost = adaptation["largest_cost"][0]
    assert f"{cost['above_limit']} of {cost['policies']}" in words
    assert "dummy on dummy-task, seed 1" in words
    assert f"safemeta adapt {runs[1]}" in words  # what is missing, and how it is made
    assert f"safemeta adapt {runs[0]}" not in words


def test_only_meta_runs_are_said_to_adapt(runs, monkeypatch):
    monkeypatch.setitem(algorithms.ALGORITHMS, "dummy", algorithms.Entry("dummy", "for tests", "dummy_algorithm"))
    words = Page(report(runs[1])).words
    assert "safemeta adapt" not in words
    assert f"safemeta evaluate {runs[1]}" in words


def test_adaptations_with_a_confidence_stand_beside_those_without(runs):
    shutil.copy(runs[0] / "adaptation.npz", runs[0] / "adaptation-confident.npz")
    content = json.loads((runs[0] / "adaptation.json").read_text())
    (runs[0] / "adaptation-confident.json").write_text(json.dumps({**content, "tasks": 5, "confidence": 0.9}))
    page = Page(report(*runs))
    assert "Adaptation to 5 unseen tasks, confidence 0.9" in page.words
    assert "Adaptation to 4 unseen tasks" in page.words
    assert "Adaptation to 4 unseen tasks," not in page.words
    assert len(page.of("img")) == 3  # its picture is missing


def test_ends_of_training_by_hand(runs):
    for folder, values in zip(runs, ([1.0, 5.0], [2.0, 8.0], [0.0, 4.0]), strict=True):
        lines = [{"iteration": i, "return": value, "cost": 3.0, "limit": 2.0} for i, value in enumerate(values, 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = Page(report(*runs)).words
    assert "dummy, rate 0.1 dummy-task 2 6.5 [5, 8] 3 [3, 3] mean 2" in words
    assert "dummy, rate 0.2 dummy-task 1 4 3 mean 2" in words


def test_a_folder_stands_for_its_runs(runs):
    path = report(runs[0].parent)
    assert path == runs[0].parent / "report.html"
    assert Page(path).words == Page(report(*sorted(runs), out="page.html")).words


def test_the_command(runs, capsys):
    assert main(["report", *map(str, runs), "--out", "here/page.html"]) == 0
    assert capsys.readouterr().out.strip() == "here/page.html"
    assert main(["report"]) == 2
    assert main(["report", "nowhere"]) == 2
    assert main(["report", str(runs[0]), "--out", "page.pdf"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert all(line.startswith("safemeta: ") for line in said)


def test_names_are_no_html(runs, tmp_path):
    odd = runs[0].rename(runs[0].parent / "<img onerror=1> & co")
    page = Page(report(odd))
    assert all("onerror" not in picture for picture in page.of("img"))
    assert "<img onerror=1> & co" in page.words


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adaptation.json", "{"),
        ("adaptation.json", "[1]"),
        ("adaptation.json", '{"tasks": 4}'),
        ("adaptation.json", '{"tasks": 4, "steps": 1, "return_by_step": [1, 2], "largest_cost": []}'),
        ("evaluation.json", '{"tasks": 4, "split": "test", "episode_return": {}}'),
        ("adaptation.npz", "no archive"),
    ],
)
def test_damaged_files_are_named(runs, name, content):
    (runs[0] / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(name)):
        report(runs[0])


def test_a_run_that_has_only_begun(runs):
    (runs[0] / "metrics.jsonl").unlink()
    assert "Nothing has been logged yet" in Page(report(runs[0])).words


def test_films_that_are_too_large_are_named_instead(runs):
    (runs[1] / "plots").mkdir(exist_ok=True)
    (runs[1] / "plots" / "episode.gif").write_bytes(b"GIF89a" + bytes(9 * 2**20))
    path = report(runs[1])
    assert path.stat().st_size < 2**20
    assert "too large" in Page(path).words


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_it(runs, tmp_path):
    content = report(*runs).read_text()
    check = "document.title = [...document.images].filter(i => i.naturalWidth > 99).length"
    page = tmp_path / "checked.html"
    page.write_text(content.replace("</body>", f"<script>onload = () => {{ {check} }}</script></body>"))
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
        str(page),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>3</title>" in shown.stdout
    assert "CONSOLE" not in shown.stderr


def test_costs_above_the_limit_are_marked(runs):
    with np.load(runs[0] / "adaptation.npz") as arrays:
        content = dict(arrays)
    content["limits"] = content["limits"] * 0 + content["costs"].max() + 1
    np.savez(runs[0] / "adaptation.npz", **content)
    plot(runs[0])
    report(runs[0])
    lines = [{"iteration": 1, "return": 1.0, "cost": 3.0, "limit": 2.0}]
    (runs[0] / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert [cell for cell in Page(report(runs[0])).of("td") if cell.get("class") == "bad"]
