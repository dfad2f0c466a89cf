"""Films: the episode is the world's own, each kind of task can be drawn, and what cannot be is said in one sentence."""

import shutil
import types
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import safemeta
from safemeta.cli import main
from safemeta.experiment import mujoco_frames
from safemeta.experiment.config import RunConfig, TaskConfig
from safemeta.experiment.errors import UserError
from safemeta.experiment.recording import record
from safemeta.experiment.run import Run
from safemeta.experiment.top_down import TopDown, track_of


class Ahead(eqx.Module):
    """Full speed ahead, with a wobble."""

    size: int = eqx.field(static=True)

    def act(self, observation, key):
        return jnp.ones(self.size).at[1:].set(jax.random.normal(key, (self.size - 1,))), jnp.zeros(())


def run_on(name, tmp_path, horizon=6, world=None):
    """A run as `load` would give it, without having trained one."""
    world = world or safemeta.make(name, horizon=horizon)
    config = RunConfig("dual", None, TaskConfig(name), 0, 1)
    algorithm = types.SimpleNamespace(policy=lambda state: Ahead(world.cmdp.action_size))
    return Run(tmp_path, config, algorithm, world, None, iteration=7)


@pytest.mark.parametrize("name", ["point-circle", "point-button"])
def test_a_recording_is_the_episode_that_the_world_collects(name):
    world, key = safemeta.make(name, horizon=5), jax.random.key(4)
    task, policy = world.sample(key, 1, "test"), Ahead(2)
    found, rows = record(world, policy, task, key), world.collect(policy, task, key, 1)
    np.testing.assert_allclose(found.observation[:-1], rows.observation[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.observation[-1], rows.last_observation[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.reward, rows.reward[0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.costs, rows.costs[0, 0])
    assert (found.bodies is None) == (name == "point-circle")


@pytest.mark.parametrize("name", ["realworld-cartpole", pytest.param("realworld-walker", marks=pytest.mark.dm_control)])
def test_a_film_shows_the_task_itself_behind_delays(name, tmp_path):
    world = safemeta.make(name, horizon=4, options={"observation_delay": 3})
    task, key = world.sample(jax.random.key(1), 1), jax.random.key(0)
    found = record(world, Ahead(world.cmdp.action_size), task, key)
    np.testing.assert_array_equal(found.observation[3], found.observation[0])
    if name == "realworld-walker":
        assert (np.diff(found.bodies.qpos, axis=0) != 0).any(1).all()
    else:
        assert (np.diff(found.state.position) != 0).all()
        run = run_on(name, tmp_path, world=world)
        assert safemeta.video(run, out=tmp_path / "v.png").exists()


def test_a_track_is_where_the_robot_is():
    world = safemeta.make("point-push-1", horizon=4)
    task = world.sample(jax.random.key(1), 1)
    found = record(world, Ahead(2), task, jax.random.key(0))
    track = track_of(world.simulator.environment, found)
    assert track is not None
    assert found.bodies is not None
    np.testing.assert_allclose(track.place, found.bodies.qpos[:, :2])
    np.testing.assert_allclose(np.cos(track.heading), np.cos(found.bodies.qpos[:, 2]), atol=1e-9)
    assert track.box is not None
    np.testing.assert_allclose(track.box[0], found.bodies.qpos[:, 3:5])
    assert [name for name, _ in track.lidar] == ["goal", "hazards", "pillars", "box"]
    assert {each.kind for each in track.discs} == {"goal", "hazards", "pillars"}


@pytest.mark.parametrize(
    ("name", "lidar"),
    [
        ("point-circle", True),
        ("point-button", True),
        ("car-circle-hazard", False),
        ("pillars-0.15-goal", True),
        ("hazards-0.15-push", False),
        ("point-mass", False),
        ("collision-avoidance", False),
        ("realworld-cartpole", False),
    ],
)
def test_every_kind_of_task_without_a_renderer_is_drawn(name, lidar, tmp_path):
    file = safemeta.video(run_on(name, tmp_path), out=tmp_path / "v.gif", lidar=lidar, frames=3, fps=2)
    with Image.open(file) as film:
        assert film.n_frames >= 3
        assert film.size == (880, 560)
        film.seek(0)
        first = np.asarray(film.convert("RGB"), int)
        film.seek(film.n_frames - 1)
        assert np.abs(np.asarray(film.convert("RGB"), int) - first).max() > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.gif"]


def test_a_cost_flashes_where_it_is_paid(tmp_path):
    """Red within the picture's frame at the moment, and not before."""
    run = run_on("point-mass", tmp_path, horizon=60)
    task = run.world.sample(jax.random.key(0), 1)
    found = record(run.world, Ahead(2), task, jax.random.key(0))
    assert found.costly.any()
    assert not found.costly.all()
    video = safemeta.video(run, out=tmp_path / "v.gif", frames=61)
    with Image.open(video) as film:
        red = []
        for index in range(min(film.n_frames, 61)):
            film.seek(index)
            edge = np.asarray(film.convert("RGB"), int)[300, 60:80]
            red.append(bool(((edge[:, 0] > 180) & (edge[:, 1] < 90)).any()))
    assert any(red)
    assert not red[0]


def test_a_cost_that_is_never_zero_does_not_flash():
    world = safemeta.make("hopper", horizon=4)
    found = record(world, Ahead(3), world.sample(jax.random.key(0), 1), jax.random.key(0))
    assert (found.costs > 0).all()
    assert not found.costly.any()


def test_a_single_picture_and_the_default_place(tmp_path):
    run = run_on("point-circle", tmp_path)
    with Image.open(safemeta.video(run, out=tmp_path / "v.png")) as picture:
        assert picture.size == (880, 560)
    assert safemeta.video(run, frames=2) == tmp_path / "plots" / "episode.gif"


def test_rays_are_drawn_on_demand_only():
    from matplotlib.figure import Figure

    world = safemeta.make("point-circle", horizon=2)
    found = record(world, Ahead(2), world.sample(jax.random.key(0), 1), jax.random.key(0))
    track = track_of(world.environment, found)
    for rays in (True, False):
        drawing = TopDown(track, found.costly, rays)
        drawing.start(Figure().add_subplot())
        drawing.show(1)
        assert len(drawing.lines) == rays


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("tabular-random", {}, "There is no drawing of the task 'tabular-random'"),
        ("point-mass", {"lidar": True}, "The task 'point-mass' has no lidar"),
        ("point-circle", {"out": "film.avi"}, "Videos are saved as gif, mp4, png, so that 'film.avi'"),
        ("point-circle", {"frames": 0}, "The number of frames must be a whole number of at least 1"),
        ("point-circle", {"split": "tset"}, "Unknown split 'tset'"),
        ("point-circle", {"steps": 2}, "Only meta-algorithms, such as dual, can adapt"),
        ("point-circle", {"steps": -2}, "The number of steps must be a whole number of at least 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_filmed_is_said_in_one_sentence(name, changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as caught:
        safemeta.video(run_on(name, tmp_path), **changes)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_an_mp4_needs_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="An mp4 needs ffmpeg, which is not installed"):
        safemeta.video(run_on("point-circle", tmp_path), out="film.mp4")


def test_without_any_opengl_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "none-such")
    with pytest.raises(UserError, match=r"found no OpenGL here \(tried MUJOCO_GL=none-such\)") as caught:
        safemeta.video(run_on("hopper", tmp_path), frames=2)
    assert caught.value.exit_code == 1


def test_mujocos_renderer_draws_where_there_is_an_opengl(tmp_path):
    try:
        file = safemeta.video(run_on("hopper", tmp_path), frames=2)
    except UserError as problem:
        assert "no OpenGL" in str(problem)  # noqa: PT017
        pytest.skip("no OpenGL here")
    with Image.open(file) as film:
        assert film.n_frames >= 2
    assert mujoco_frames.SIZE == 480


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["video", "nothing"]) == 2
    assert "There is no folder 'nothing'" in capsys.readouterr().err
    assert main(["video"]) == 2
    assert "safemeta video needs one run" in capsys.readouterr().err
    assert main(["video", "nothing", "--out", "film.mov"]) == 2
    assert "Videos are saved as gif, mp4, png" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_trained_run_is_filmed_from_the_command_line(trained, monkeypatch, capsys):
    """The dummy's world is in no place, which is what is said; everything before that has worked."""
    assert main(["video", str(trained.folder), "--quiet"]) == 2
    assert "Only safemeta's own tasks can be drawn" in capsys.readouterr().err
