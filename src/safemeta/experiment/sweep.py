"""`safemeta sweep`: many runs in one folder. What is done is skipped, what broke off goes on."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from safemeta.experiment import logs
from safemeta.experiment.config import check_count
from safemeta.experiment.errors import UserError, writing_failed
from safemeta.experiment.files import write_atomically
from safemeta.experiment.jobs import carrying_out
from safemeta.experiment.run import CONFIG, create_folder, read_config, remove_empty
from safemeta.experiment.sweep_display import Board, Row, choose
from safemeta.experiment.sweep_file import Plan, PlannedRun, read_content, read_plan
from safemeta.experiment.sweep_jobs import SweepJob, saved
from safemeta.experiment.sweep_ray import Pool, Resources, examined, load_ray, session

FOLDER = Path("sweeps")
COPY = "sweep.toml"  # of the sweep's file, in the sweep's folder


@dataclasses.dataclass(frozen=True)
class SweepOutcome:
    """What a sweep ended with: every run's row, and the jobs that failed, with the reason."""

    folder: Path
    rows: tuple[Row, ...]
    failed: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The last line of `safemeta sweep --json`."""
        return {"folder": str(self.folder), "runs": [row.to_json() for row in self.rows], "failed": self.failed}


def sweep(
    file: Path | str,
    *,
    out: Path | str | None = None,
    workers: int | None = None,
    cpus: int = 1,
    gpus: float = 0.0,
    ray_address: str | None = None,
    quiet: bool = False,
    json: bool = False,
) -> SweepOutcome:
    """Train all that the TOML `file` asks for, and return what came of it; the runs' folders lie in `out`.

    `workers` processes train at a time, by default as many as there is room for on this machine, or on the cluster at
    `ray_address`: each takes `cpus` cores and `gpus` graphics cards, or a share of one (0: they train on processors).
    The same call goes on where a broken-off one stopped. Raises `UserError` (one sentence) before any run begins if the
    settings of one make no sense, and `Interrupted` on Ctrl-C and SIGTERM, once all runs have saved what they have.
    """
    if workers is not None:
        check_count("workers", workers)
    check_count("cpus", cpus)
    if isinstance(gpus, bool) or not isinstance(gpus, (int, float)) or not (0 <= gpus <= 1 or gpus in range(1000)):
        raise UserError(f"The number of gpus must be a share from 0 to 1 or a whole number, not {gpus}.")
    path = Path(file)
    content = read_content(path)
    folder = Path(out) if out is not None else FOLDER / path.stem
    plan = read_plan(path, content, meet=False)
    check_folder(plan, folder)
    load_ray()
    resources = Resources(ray_address, workers, cpus, float(gpus))
    failed: dict[str, str] = {}
    with carrying_out(folder, "working on the sweep", _command(path, out, resources)):
        board = choose([_row(run, folder) for run in plan.runs], quiet, json)
        try:
            board.note(f"{len(plan.runs)} runs in '{folder}', of which {board.finished} are done.")
            if board.finished < len(plan.runs):
                with session(resources) as ray:
                    plan = examined(ray, resources, path, content)
                    _prepare(plan, folder, content)
                    jobs = [job for job in map(SweepJob, plan.groups) if not job.done(folder)]
                    failed = Pool(ray, resources, folder.resolve(), _Teller(board, folder), board.note).run(jobs)
        finally:
            board.close()
    return SweepOutcome(folder, tuple(board.rows.values()), failed)


@dataclasses.dataclass(frozen=True)
class _Teller:
    """Tells a board what the folders of a job's runs show."""

    board: Board
    folder: Path

    def __call__(self, job: SweepJob, state: Any) -> None:
        for run in job.runs:
            line = logs.last(self.folder / run.name / logs.METRICS)
            self.board.update(run.name, state, int(line.get("iteration", 0)), line)


def check_folder(plan: Plan, folder: Path) -> None:
    """Raise `UserError` if the folder holds anything but runs of this plan, with the same settings."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is no folder, so no runs can be saved there; choose another --out.")
    planned = {run.name: run for run in plan.runs}
    advice = "undo the change, or choose another --out"
    for found in sorted(folder.glob(f"*/{CONFIG}")):
        name = found.parent.name
        if name not in planned:
            raise UserError(f"'{folder}' holds the run '{name}', which is none of this sweep's; {advice}.")
        config = read_config(found.parent)
        if config != planned[name].config:
            raise UserError(
                f"The sweep was changed: the run '{found.parent}' was begun with {_difference(config, planned[name])};"
                f" {advice}."
            )


def _difference(config: Any, run: PlannedRun) -> str:
    """The first setting in which a run that is there differs from the planned one."""
    there, wanted = ({**vars(each), **vars(each.options), **vars(each.task)} for each in (config, run.config))
    for name in there:
        if name not in ("options", "task") and name in wanted and there[name] != wanted[name]:
            return f"{name.replace('_', '-')} {there[name]}, not {wanted[name]}"
    if config.task.options != run.config.task.options:
        return f"the task options {config.task.options}, not {run.config.task.options}"
    return "other settings"


def _prepare(plan: Plan, folder: Path, content: bytes) -> None:
    """Every run's folder with its configuration, and a copy of the sweep's file; what is there stays."""
    for run in plan.runs:
        if not (folder / run.name / CONFIG).is_file():
            remove_empty(folder / run.name)
            create_folder(run.config, folder / run.name)
    try:
        write_atomically(folder / COPY, content)
    except OSError as problem:
        raise writing_failed(problem, folder) from problem


def _row(run: PlannedRun, folder: Path) -> Row:
    line = logs.last(folder / run.name / logs.METRICS)
    done = saved(folder / run.name) >= run.config.iterations
    iteration = run.config.iterations if done else int(line.get("iteration", 0))
    return Row(run.name, run.config.iterations, "done" if done else "waiting", iteration, line)


def _command(file: Path, out: Path | str | None, resources: Resources) -> str:
    """The command line of this sweep."""
    words = ["safemeta", "sweep", str(file)]
    words += ["--out", str(out)] if out is not None else []
    words += ["--workers", str(resources.workers)] if resources.workers is not None else []
    words += ["--cpus", str(resources.cpus)] if resources.cpus != 1 else []
    words += ["--gpus", f"{resources.gpus:g}"] if resources.gpus else []
    words += ["--ray-address", resources.address] if resources.address is not None else []
    return shlex.join(words)
