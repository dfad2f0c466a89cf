"""A film of a run's policy: an episode on an unseen task on the left, its return and cost so far on the right."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.experiment.config import check_count, check_seed
from safemeta.experiment.errors import UserError, from_value_error, simulation_failed, writing_failed
from safemeta.experiment.evaluate import ADAPT_STREAM, MEASURE_STREAM, SAMPLE_STREAM, draw_tasks
from safemeta.experiment.figures import FAINT, INK, LIMIT_COLOUR, PALETTE, STYLE
from safemeta.experiment.files import write_product
from safemeta.experiment.progress import default
from safemeta.experiment.recording import Recording, record
from safemeta.experiment.run import Run, load
from safemeta.experiment.top_down import FLASH, TopDown, track_of

FILE = "episode.gif"
FORMATS = ("gif", "mp4", "png")
FRAMES, FPS = 150, 20
DPI = 100


class RenderedDrawing:
    """Pictures that MuJoCo has drawn."""

    def __init__(self, recording: Recording, moments: np.ndarray) -> None:
        from safemeta.experiment.mujoco_frames import render

        assert recording.bodies is not None
        self.pictures = dict(zip(moments.tolist(), render(recording.bodies, moments), strict=True))

    def start(self, axes: Any) -> None:
        """An empty picture."""
        self.image = axes.imshow(next(iter(self.pictures.values())))
        axes.set(xticks=[], yticks=[])
        axes.grid(False)

    def show(self, moment: int) -> None:
        """The picture of a moment."""
        self.image.set_data(self.pictures[moment])


def video(
    run: Run | Path | str,
    *,
    out: Path | str | None = None,
    split: str = "test",
    seed: int = 0,
    steps: int = 0,
    lidar: bool = False,
    frames: int = FRAMES,
    fps: int = FPS,
    checkpoint: str = "auto",
    reporter: Any = None,
) -> Path:
    """Film one episode on an unseen task and return the file, by default `plots/episode.gif` in the run's folder.

    A meta-policy is first adapted to the task for `steps` steps. The file's ending chooses what is made: gif, mp4
    (where ffmpeg is installed), or png, which is the last moment alone. At most `frames` moments are shown, `fps` to
    the second, evenly spaced over the episode. Navigation is seen from above, with `lidar` rays on demand; other robots
    on MuJoCo need an OpenGL. Raises `UserError`.
    """
    import jax

    check_settings(out, seed, steps, frames, fps)
    run = run if isinstance(run, Run) else load(run, checkpoint)
    reporter = reporter or default()
    path = Path(out) if out is not None else run.plots / FILE
    key = jax.random.key(seed)
    task = draw_tasks(run.world, jax.random.fold_in(key, SAMPLE_STREAM), 1, split, None)
    environment = _environment(run.world)
    policy = _policy(run, task, jax.random.fold_in(key, ADAPT_STREAM), steps)
    recording = record(run.world, policy, task, jax.random.fold_in(key, MEASURE_STREAM))
    moments = _moments(recording, 1 if path.suffix.lower() == ".png" else frames)
    drawing = _drawing(run, environment, recording, moments, lidar)
    reporter.note(f"Drawing {len(moments)} of {recording.steps + 1} moments ...")
    subtitle = _subtitle(run, split, steps, recording)
    with _film(f"{run.config.task.name}", subtitle, run.world.cmdp, recording, drawing) as (figure, show):
        return _save(figure, show, moments, path, fps)


def check_settings(out: Path | str | None, seed: int, steps: int, frames: int, fps: int) -> None:
    """Raise `UserError` unless all are sensible."""
    check_seed(seed)
    check_count("steps", steps, least=0)
    check_count("frames", frames)
    check_count("frames per second", fps)
    suffix = Path(out).suffix.lower().lstrip(".") if out is not None else "gif"
    if suffix not in FORMATS:
        raise UserError(f"Videos are saved as {', '.join(FORMATS)}, so that '{out}' (--out) will not do.")
    if suffix == "mp4" and shutil.which("ffmpeg") is None:
        raise UserError("An mp4 needs ffmpeg, which is not installed; name a file that ends in .gif instead.")


def _environment(world: Any) -> Any:
    """The task as its drawing knows it; `UserError` where there is none."""
    from safemeta.sim import FunctionalWorld
    from safemeta.sim.batched import BatchedWorld
    from safemeta.sim.challenges import ChallengedFunctional, ChallengedMujoco
    from safemeta.sim.mujoco import MujocoSimulator

    if isinstance(world, FunctionalWorld):
        found = world.environment
    elif isinstance(world, BatchedWorld) and isinstance(world.simulator, MujocoSimulator):
        found = world.simulator.environment
    else:
        raise UserError("Only safemeta's own tasks can be drawn; render an environment of your own with its own means.")
    return found.environment if isinstance(found, ChallengedFunctional | ChallengedMujoco) else found


def _policy(run: Run, task: Any, key: Any, steps: int) -> Any:
    """The run's policy, adapted to the task where that is asked for."""
    import equinox as eqx
    import jax

    from safemeta.sim.failures import SimulationError

    if not steps:
        return run.trained
    if not run.is_meta:
        raise UserError("Only meta-algorithms, such as dual, can adapt; leave --steps out.")
    try:
        policies = run.algorithm.adapt(run.state, run.world, task, key, steps).policies
    except ValueError as problem:
        raise from_value_error(problem) from problem
    except SimulationError as problem:
        raise simulation_failed(problem) from problem
    return jax.tree.map(lambda leaf: leaf[-1, 0] if eqx.is_array(leaf) else leaf, policies)


def _moments(recording: Recording, frames: int) -> np.ndarray:
    """The moments that are shown; the last one always."""
    if frames == 1:
        return np.array([recording.steps])
    return np.unique(np.linspace(0, recording.steps, min(frames, recording.steps + 1)).round().astype(int))


def _drawing(run: Run, environment: Any, recording: Recording, moments: np.ndarray, lidar: bool) -> Any:
    from safemeta.experiment.simple_drawings import drawing_of

    track = track_of(environment, recording)
    if lidar and track is None:
        raise UserError(f"The task '{run.config.task.name}' has no lidar; leave --lidar out.")
    if track is not None:
        return TopDown(track, recording.costly, lidar)
    simple = drawing_of(environment, recording)
    if simple is not None:
        return simple
    if recording.bodies is not None:
        return RenderedDrawing(recording, moments)
    raise UserError(f"There is no drawing of the task '{run.config.task.name}', which has no place in space.")


def _subtitle(run: Run, split: str, steps: int, recording: Recording) -> str:
    adapted = f", adapted for {steps} step{'s' if steps > 1 else ''}" if steps else ""
    numbers = {name: value for name, value in recording.parameters.items() if value.ndim == 0}
    task = ", ".join(f"{name.replace('_', ' ')} {float(value):.3g}" for name, value in list(numbers.items())[:4])
    kind = {"train": "training", "validation": "validation", "test": "unseen"}.get(split, split)
    return f"{run.config.algorithm}, iteration {run.iteration}{adapted}; {kind} task{': ' if task else ''}{task}"


@contextlib.contextmanager
def _film(title: str, subtitle: str, cmdp: Any, recording: Recording, drawing: Any) -> Iterator[tuple[Any, Any]]:
    """The figure, and a function that shows a moment and the one that was shown before it."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    with matplotlib.rc_context({**STYLE, "figure.dpi": DPI}):
        figure = Figure(figsize=(8.8, 5.6))
        FigureCanvasAgg(figure)
        figure.text(0.055, 0.965, title, fontsize=14, fontweight="bold", va="top")
        figure.text(0.055, 0.905, subtitle, fontsize=9.5, color="#555555", va="top")
        scene = figure.add_axes((0.055, 0.085, 0.535, 0.76))
        scene.spines[["top", "right"]].set_visible(True)
        drawing.start(scene)
        flash = scene.add_patch(
            Rectangle((0, 0), 1, 1, transform=scene.transAxes, color=LIMIT_COLOUR, alpha=FLASH, linewidth=0, zorder=20)
        )
        upper = figure.add_axes((0.675, 0.535, 0.295, 0.27))
        lower = figure.add_axes((0.675, 0.085, 0.295, 0.27))
        weighted = recording.costs * np.asarray(cmdp.cost_weights())[: recording.steps, None]
        curves = [
            *_sums(upper, "Return so far", recording.reward[:, None], [""], [PALETTE[0]]),
            *_sums(lower, f"Cost so far, {cmdp.limit_on.replace('_', ' ')}", weighted, cmdp.cost_names, PALETTE[1:]),
        ]
        _mark_limits(lower, recording.limits, cmdp.cost_names)
        lower.set_xlabel("step")
        clock = scene.text(0.985, 0.975, "", transform=scene.transAxes, ha="right", va="top", fontsize=9.5, zorder=21)
        clock.set_bbox({"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 2})

        def show(moment: int, before: int) -> None:
            drawing.show(moment)
            paid = recording.costly[before:moment].any()
            flash.set_visible(bool(paid))
            for spine in scene.spines.values():
                spine.set(color=LIMIT_COLOUR if paid else "#BBBBBB", linewidth=3.0 if paid else 0.8)
            for line, dot, sums in curves:
                line.set_data(np.arange(moment + 1), sums[: moment + 1])
                dot.set_data([moment], [sums[moment]])
            clock.set_text(f"step {moment} of {recording.steps}")

        yield figure, show


def _sums(axes: Any, title: str, amounts: np.ndarray, names: Any, colours: Any) -> list[tuple[Any, Any, np.ndarray]]:
    """A growing curve, with a dot at its end, for each column."""
    sums = np.vstack([np.zeros(amounts.shape[1]), np.cumsum(amounts, axis=0)])
    axes.set_title(title, fontsize=10.5)
    axes.plot(sums, color=FAINT, alpha=0.25, linewidth=1.0)
    axes.set_xlim(0, len(amounts))
    axes.tick_params(labelsize=9)
    curves = []
    for index, name in enumerate(names):
        colour = colours[index % len(colours)]
        (line,) = axes.plot([], [], color=colour, linewidth=2.0, label=name.replace("_", " "))
        (dot,) = axes.plot([], [], "o", color=colour, markersize=5, clip_on=False, zorder=5)
        curves.append((line, dot, sums[:, index]))
    return curves


def _mark_limits(axes: Any, limits: np.ndarray, names: Any) -> None:
    """Dashed lines, and room for them."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(min(0.0, bottom), max(top, 1.25 * float(limits.max())) if limits.max() > 0 else max(top, 1.0))
    for index, limit in enumerate(sorted(set(limits.tolist()))):
        axes.axhline(limit, color=LIMIT_COLOUR, linestyle=(0, (5, 3)), linewidth=1.4, zorder=2)
        axes.annotate(
            f"limit {limit:.4g}", (0.25 * index, limit), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", color=LIMIT_COLOUR, fontsize=8.5, fontweight="bold",
        )  # fmt: skip
    if len(names) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(0, 0.86), fontsize=8.5, labelcolor=INK)
    else:
        axes.set_ylabel(names[0].replace("_", " "), fontsize=9)


def _save(figure: Any, show: Any, moments: np.ndarray, path: Path, fps: int) -> Path:
    """Draw everything into a temporary file, then put it where it belongs at once."""
    from matplotlib.animation import FFMpegWriter, PillowWriter

    suffix = path.suffix.lower()
    try:
        with tempfile.TemporaryDirectory(prefix="safemeta-") as name:
            file = Path(name) / f"video{suffix}"
            if suffix == ".png":
                show(int(moments[-1]), int(moments[-1]))
                figure.savefig(file, dpi=DPI)
            else:
                writer = PillowWriter(fps=fps) if suffix == ".gif" else FFMpegWriter(fps=fps)
                with writer.saving(figure, str(file), DPI):
                    before = 0
                    for moment in [*moments.tolist(), *[int(moments[-1])] * (fps // 2)]:  # the end stays for a while
                        show(moment, before)
                        writer.grab_frame()
                        before = moment
            content = file.read_bytes()
    except OSError as problem:
        raise writing_failed(problem, path) from problem
    return write_product(path, content)
