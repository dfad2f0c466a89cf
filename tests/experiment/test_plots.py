"""Pictures: they are drawn for all shapes of data, saved whole, and group runs rightly."""

import dataclasses
import json

import numpy as np
import pytest

from safemeta.experiment import adapt, plot, train
from safemeta.experiment.errors import UserError
from safemeta.experiment.plots import draw_adaptation, groups_of
from safemeta.experiment.run import read_log

HEADS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def test_training_curves_of_one_run(trained):
    path = plot(trained)
    assert path == trained.folder / "plots" / "training.png"
    assert path.read_bytes().startswith(HEADS["png"])


def test_every_cost_has_a_panel_with_its_limit(trained):
    path = trained.folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    further = {"cost/heat_loss": 4.5, "limit/heat_loss": 7.25}
    path.write_text("".join(json.dumps(line | further) + "\n" for line in lines))
    picture = plot(trained.folder, out="two.svg").read_text()
    for words in ("First cost", "Cost: heat loss", "limit 7.25"):
        assert f">{words}<" in picture
    assert ">Cost<" not in picture


@pytest.mark.parametrize("suffix", HEADS)
def test_formats(trained, suffix):
    assert plot(trained.folder, out=f"new/curves.{suffix}").read_bytes().startswith(HEADS[suffix])


def test_runs_are_grouped_by_all_but_seed_and_length(dummy):
    folders = [
        train("dummy", "dummy-task", iterations=2 + seed, seed=seed, **options).folder
        for seed, options in ((0, {}), (1, {}), (0, {"rate": 0.2}), (0, {"preset": "paper"}), (0, {"limit": 3.0}))
    ]
    groups = groups_of([read_log(folder) for folder in folders])
    assert {label: len(runs) for label, runs in groups.items()} == {
        "dummy, limit None, rate 0.1": 2,
        "dummy, limit None, rate 0.2": 1,
        "dummy (paper)": 1,
        "dummy, limit 3.0, rate 0.1": 1,
    }
    assert plot(*folders, out="all.png").exists()


@pytest.mark.parametrize(("out", "words"), [("curves.gif", "png, pdf, svg"), ("curves", "png, pdf, svg")])
def test_other_formats_are_refused(trained, out, words):
    with pytest.raises(UserError, match=words):
        plot(trained, out=out)


def test_nothing_to_plot(trained):
    (trained.folder / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="no metrics"):
        plot(trained)
    with pytest.raises(UserError, match="at least one"):
        plot()


def test_adaptation_with_several_costs_and_limits_per_task(trained, tmp_path):
    report = adapt(trained, tasks=3, steps=2, episodes=4)
    two = dataclasses.replace(
        report,
        costs=np.concatenate([report.costs, report.costs / 2], -1),
        limits=np.array([[8.0, 1.0], [8.0, 2.0], [8.0, 3.0]]),
        largest_cost=report.largest_cost * 2,
    )
    path = draw_adaptation(two, tmp_path / "two.png", title="two costs", cost_names=("crash", "heat"))
    assert path.stat().st_size > 10_000
