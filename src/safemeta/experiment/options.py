"""The options of every command but `reproduce`: one dataclass each, from which help and parsing are made."""

import dataclasses
from typing import Literal

Index = Literal["zero", "handcrafted", "feasible", "initial", "synthesised"]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Options of `safemeta train`."""

    task: str = "point-circle"
    """Task family to train on; `safemeta list` shows them."""
    task_option: tuple[str, ...] = ()
    """NAME=VALUE, an option of the task family; may be repeated. `safemeta list TASK` shows those there are."""
    preset: str | None = None
    """Named settings of the algorithm, such as its paper's."""
    budget: Literal["default", "smoke", "paper"] = "default"
    """How long to train: minutes, seconds (only to see that it runs), or as long as the paper."""
    iterations: int | None = None
    """Number of iterations, instead of the budget's."""
    seed: int = 0
    """Seed of everything random."""
    limit: float | None = None
    """Cost limit, instead of the task family's own."""
    limit_on: Literal["discounted", "undiscounted", "per_step"] | None = None
    """What the limit bounds: the discounted or undiscounted sum of an episode's costs, or the mean cost of a step."""
    horizon: int | None = None
    """Steps of an episode, instead of the task family's own."""
    out: str | None = None
    """Folder of the run; new or empty. By default runs/ALGORITHM-TASK-sSEED."""
    resume: str | None = None
    """Continue the run in this folder from its last checkpoint, bit for bit."""
    config: str | None = None
    """Repeat the run that this config.json describes; options override it."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    no_adapt: bool = False
    """Stop when training is done; otherwise a meta-policy is then adapted to unseen tasks."""
    quiet: bool = False
    """Show nothing but warnings and errors."""
    json: bool = False
    """One JSON object per iteration on standard output, the last one the summary."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Options of `safemeta evaluate`."""

    tasks: int = 20
    """Number of unseen tasks."""
    episodes: int | None = None
    """Fresh episodes per task and policy (100; 20 with a shield, or where physics or environments step on the host)."""
    split: str = "test"
    """Which tasks: train, validation or test."""
    seed: int = 0
    """Seed of the tasks and episodes."""
    limit: float | None = None
    """Cost limit, instead of the tasks' own."""
    checkpoint: Literal["auto", "best", "last"] = "auto"
    """Which state: the best if the algorithm names one, else the last."""
    shield: Literal["model", "critic"] | None = None
    """Filter every action by a safety index: what it leads to is asked of the simulator, or of the learned critic."""
    index: Index | None = None
    """Safety index of the shield, instead of the run's own."""
    actions: int | None = None
    """Actions that the shield tries, along each axis (17; 5 where the simulator is asked and steps on the host)."""
    quiet: bool = False
    """Show nothing but warnings and errors."""
    json: bool = False
    """The report as one JSON object on standard output."""


@dataclasses.dataclass(frozen=True)
class AdaptOptions(EvaluateOptions):
    """Options of `safemeta adapt`."""

    steps: int = 20
    """Adaptation steps on each task."""
    confidence: float | None = None
    """Use an adapted policy only if its costs are below the limits with this confidence, such as 0.95."""


@dataclasses.dataclass(frozen=True)
class CertifyOptions:
    """Options of `safemeta certify`."""

    tasks: int | None = None
    """Number of unseen tasks (100; 10 where physics steps on the host)."""
    episodes: int = 1
    """Trajectories per task."""
    actions: int | None = None
    """Actions that are tried in each state, along each axis (17; 5 where physics steps on the host)."""
    index: Index | None = None
    """Safety index to judge by, instead of the run's own; for any run on a task with obstacles."""
    split: str = "test"
    """Which tasks: train, validation or test."""
    seed: int = 0
    """Seed of the tasks and trajectories."""
    checkpoint: Literal["auto", "best", "last"] = "auto"
    """Which state: the best if the algorithm names one, else the last."""
    quiet: bool = False
    """Show nothing but warnings and errors."""
    json: bool = False
    """The report as one JSON object on standard output."""


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Options of `safemeta plot`."""

    out: str | None = None
    """File to draw into (png, pdf or svg). By default plots/training.png in the (first) run's folder."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of `safemeta export`."""

    out: str | None = None
    """File to write (npz for NumPy, or onnx). By default policy.npz in the run's folder."""
    checkpoint: Literal["auto", "best", "last"] = "auto"
    """Which state: the best if the algorithm names one, else the last."""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Options of `safemeta report`."""

    out: str | None = None
    """The page's file. By default report.html in the first folder that was named."""


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Options of `safemeta sweep`."""

    out: str | None = None
    """Folder of the runs. By default sweeps/NAME, after the file's name."""
    workers: int | None = None
    """Processes that train at the same time; by default as many as there is room for."""
    cpus: int = 1
    """Cores that each of them takes."""
    gpus: float = 0.0
    """Graphics cards that each of them takes, or a share of one; with 0 they train on processors."""
    ray_address: str | None = None
    """Address of a Ray cluster, such as auto or HOST:6379; by default Ray is started on this machine alone."""
    quiet: bool = False
    """Show nothing but errors."""
    json: bool = False
    """One JSON object on standard output for every change of a run, the last one the summary."""


@dataclasses.dataclass(frozen=True)
class VideoOptions:
    """Options of `safemeta video`."""

    out: str | None = None
    """File to film into (gif, mp4 or png). By default plots/episode.gif in the run's folder."""
    split: str = "test"
    """Which tasks: train, validation or test."""
    seed: int = 0
    """Seed of the task and the episode."""
    steps: int = 0
    """Adaptation steps on the task before the episode; for meta-policies."""
    lidar: bool = False
    """Show what the robot's lidar sees."""
    frames: int = 150
    """Number of pictures, evenly spaced over the episode."""
    fps: int = 20
    """Pictures per second."""
    checkpoint: Literal["auto", "best", "last"] = "auto"
    """Which state: the best if the algorithm names one, else the last."""
    quiet: bool = False
    """Show nothing but warnings and errors."""


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Options of `safemeta list`."""

    json: bool = False
    """As one JSON object on standard output."""
