"""Recorded traces are followed to 1e-9, deviations are noticed, and bad files get one sentence."""

import json

import numpy as np
import pytest

from safemeta.tasks.replay import main, replay

FIRST_STEP = "first step (whether wheels that just touch the floor carry is left to rounding)"
TRACES = ("PointCircle1-s0", "PointCircle1-s1", "PointStCircle-s3")


@pytest.fixture
def data(repository):
    return repository / "tests" / "data"


@pytest.fixture
def trace(data):
    """The content of a trace, to be changed."""
    with np.load(data / "PointStCircle-s3.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture
def rewrite(trace, tmp_path):
    """Save the trace with some entries replaced (or removed: None) and `meta` updated."""

    def save(meta=None, **entries):
        content = trace | entries
        if meta is not None:
            content["meta"] = np.asarray(json.dumps(json.loads(str(trace["meta"])) | meta))
        path = tmp_path / "changed.npz"
        np.savez(path, **{name: value for name, value in content.items() if value is not None})
        return path

    return save


@pytest.mark.parametrize("name", TRACES)
def test_recorded_episodes_are_followed_to_1e_9(data, name):
    outcome = replay(data / f"{name}.npz")
    assert outcome.steps == 500
    assert outcome.skipped == []
    assert max(vars(outcome.max_error).values()) < 1e-9
    assert outcome.cost_agreement == 1.0


@pytest.mark.parametrize(
    ("name", "skipped", "bound"),
    [
        ("PointStButton-s3", [], 1e-9),  # buttons are run into
        ("PointGoal1-s3", ["vases", "28 steps within reach of them"], 1e-9),
        ("PointButton1-s1", ["gremlins", "20 steps within reach of them"], 1e-9),
        ("PointPush1-s0", [], 1e-6),
        (
            "CarStCircleHazard-s3",
            ["first step (whether wheels that just touch the floor carry is left to rounding)"],
            1e-3,
        ),
    ],
)
def test_recorded_contacts_are_followed(data, name, skipped, bound):
    outcome = replay(data / f"{name}.npz")
    assert outcome.skipped == skipped
    assert outcome.steps > 400
    assert max(vars(outcome.max_error).values()) < bound
    assert outcome.cost_agreement == 1.0


def test_the_traces_test_something(data):
    for name in TRACES:
        with np.load(data / f"{name}.npz") as archive:
            cost, reward = archive["cost"], archive["reward"]
        assert 0 < cost.mean() < 1
        assert np.ptp(reward) > 0.05


@pytest.mark.parametrize(
    ("entry", "where", "field"),
    [
        ("qpos", (500, 1), "qpos"),
        ("qvel", (500, 2), "qvel"),
        ("obs_flat", (500, 17), "observation"),
        ("obs_flat", (0, 9), "observation"),
        ("reward", 321, "reward"),
    ],
)
def test_a_deviation_in_one_number_is_measured(trace, rewrite, entry, where, field):
    changed = trace[entry].copy()
    changed[where] += 1e-3
    errors = vars(replay(rewrite(**{entry: changed})).max_error)
    assert errors.pop(field) == pytest.approx(1e-3, rel=1e-6)
    assert max(errors.values()) < 1e-9


def test_a_wrong_cost_is_counted(trace, rewrite):
    cost = trace["cost"].copy()
    cost[[3, 77]] = 1 - cost[[3, 77]]
    assert replay(rewrite(cost=cost)).cost_agreement == pytest.approx(498 / 500)


def test_wall_and_radius_come_from_the_file(rewrite):
    walls = {"num": 2, "locate_factor": 100.0}
    outcome = replay(rewrite(meta={"object/sigwalls": walls, "object/circle": {"radius": 3.0}}))
    assert outcome.cost_agreement < 1
    assert outcome.max_error.reward > 1e-3
    assert outcome.max_error.observation < 1e-9


def test_the_shape_of_the_json(data, capsys):
    path = str(data / "PointCircle1-s0.npz")
    assert main([path, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"file", "steps", "skipped", "max_error", "cost_agreement"}
    assert set(printed["max_error"]) == {"qpos", "qvel", "observation", "reward"}
    assert (printed["file"], printed["steps"]) == (path, 500)


def test_the_table_names_all_errors(data, capsys):
    assert main([str(data / "PointCircle1-s0.npz")]) == 0
    table = capsys.readouterr().out
    for word in ("500 steps", "qpos", "qvel", "observation", "reward", "100.00%"):
        assert word in table


def refused(path, capsys):
    """The one sentence that a file gets."""
    assert main([str(path)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_damaged_files(data, tmp_path, capsys):
    whole = (data / "PointCircle1-s0.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", b"no trace at all", whole[:1000], whole[: len(whole) // 2], bytes(flipped)):
        path = tmp_path / "damaged.npz"
        path.write_bytes(content)
        assert "cannot be read as an .npz trace" in refused(path, capsys)


def test_a_single_array_is_no_trace(tmp_path, capsys):
    np.save(tmp_path / "array.npy", np.zeros(3))
    assert "cannot be read as an .npz trace" in refused(tmp_path / "array.npy", capsys)


def test_pickled_objects_are_not_loaded(rewrite, capsys):
    path = rewrite(reward=np.array([print], dtype=object))
    assert "cannot be read as an .npz trace" in refused(path, capsys)


def test_missing_files_and_folders(tmp_path, capsys):
    assert "does not exist" in refused(tmp_path / "nothing.npz", capsys)
    assert "not a file" in refused(tmp_path, capsys)


@pytest.mark.parametrize("meta", [None, "{not json", "[1, 2]"])
def test_files_without_a_readable_description(trace, tmp_path, capsys, meta):
    content = {name: value for name, value in trace.items() if name != "meta"}
    if meta is not None:
        content["meta"] = np.asarray(meta)
    np.savez(tmp_path / "changed.npz", **content)
    assert "'meta'" in refused(tmp_path / "changed.npz", capsys)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"env_id": "SafetyCarCircle1-v0"}, "has 3 coordinates of robot and box, not 13"),
        ({"env_id": None, "domain": "walker", "task": "realworld_run"}, "from walker/realworld_run, which cannot"),
        ({"object/hazards": {"num": 3}}, "does not describe a robot and its task"),
        ({"object/sigwalls": {}}, "does not describe"),
        ({"body_names": ["world"]}, "does not describe"),
        ({"substeps": 5}, "5 to an action, not 0.002 s and 10"),
    ],
)
def test_traces_of_other_worlds(rewrite, capsys, meta, said):
    assert said in refused(rewrite(meta=meta), capsys)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"qvel": None}, "no array 'qvel'"),
        ({"action": None}, "holds no steps"),
        ({"action": np.zeros((0, 2))}, "holds no steps"),
        ({"reward": np.zeros(499)}, "'reward' has shape (499,), not (500,)"),
        ({"cost": np.full(500, np.nan)}, "'cost' holds something else than finite numbers"),
        ({"cost": np.full(500, "1")}, "'cost' holds something else than finite numbers"),
    ],
)
def test_incomplete_traces(rewrite, capsys, entries, said):
    assert said in refused(rewrite(**entries), capsys)
