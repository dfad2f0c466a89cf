"""Carrying out a plan: what is done is skipped, what broke off goes on, and a summary ends it."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safemeta.experiment.config import check_count, check_seed
from safemeta.experiment.errors import Interrupted, UserError, writing_failed
from safemeta.experiment.job_progress import Display, JobProgress, choose
from safemeta.experiment.jobs import Job, carrying_out, reason
from safemeta.papers import claims, tables
from safemeta.papers.plan import Request, Summary
from safemeta.papers.registry import Paper, check_budget, get
from safemeta.papers.workers import work_in_processes

RUNS = "runs"
MOST_SEEDS = 1000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a reproduction ended with: its summary, the content of `claims.json`, and the jobs that failed."""

    folder: Path
    summary: Summary
    claims: dict[str, Any]
    failed: dict[str, str]


def reproduce(
    paper: str,
    *,
    figure: str | None = None,
    budget: str = "laptop",
    seeds: int | None = None,
    first_seed: int = 0,
    out: Path | str | None = None,
    workers: int = 1,
    quiet: bool = False,
) -> Outcome:
    """Run what `paper` needs, or one `figure` of it, and judge its claims; the results lie in `out`.

    The same call goes on where a broken-off one stopped, and adds what is missing if it asks for more seeds or
    figures. `seeds` is by default the budget's number; they are `first_seed` and those after it. Raises `UserError`
    (one sentence).
    """
    entry = get(paper)
    check_budget(budget)
    if seeds is not None:
        check_count("seeds", seeds, most=MOST_SEEDS)
    check_seed(first_seed)
    check_count("workers", workers)
    seeds = entry.seeds[budget] if seeds is None else seeds
    request = Request(entry.chosen(figure), budget, seeds, first_seed)
    command = _command(entry, figure, request, out, workers)
    folder = Path(out) if out is not None else Path("reproductions") / f"{entry.name}-{budget}"
    warning = _use_cache()
    plan = entry.load().plan(request)
    pending = _pending(plan.jobs, folder / RUNS)
    expected = {job.name: job.seconds for job in plan.jobs}
    display = choose(quiet, expected, expected.keys() - pending.keys(), workers)
    try:
        if warning:
            display.note(f"Warning: {warning}")
        display.note(
            f"{entry.name}, budget {budget}, {seeds} seed{'s' if seeds > 1 else ''}: {len(plan.jobs)} runs,"
            f" of which {len(plan.jobs) - len(pending)} are done; about {display.left()} left."
        )
        failed = _carry_out(pending, folder, display, workers, command)
    finally:
        display.close()
    summary = plan.summarise(folder)
    content = claims.document(entry.name, budget, seeds, command, summary.claims)
    try:
        tables.save(folder, f"{entry.description}: budget {budget}, {seeds} seeds", summary.tables)
        claims.write(folder, content)
    except OSError as problem:
        raise writing_failed(problem, folder) from problem
    return Outcome(folder, summary, content, failed)


def _pending(jobs: Sequence[Job], runs: Path) -> dict[str, Job]:
    """The jobs that are not done, by name; a plan that cannot be right is found before anything is computed."""
    named = {job.name: job for job in jobs}
    if len(named) < len(jobs):
        raise AssertionError("two jobs of a plan have the same name")
    for path in (runs.parent, runs):
        if path.exists() and not path.is_dir():
            raise UserError(f"'{path}' is no folder, so no runs can be saved there; choose another --out.")
    for job in jobs:
        check = getattr(job, "config", None)
        if check is not None:
            check()
    return {name: job for name, job in named.items() if not job.done(runs / name)}


def _carry_out(pending: dict[str, Job], folder: Path, display: Display, workers: int, command: str) -> dict[str, str]:
    """Do all pending jobs; names of those that failed, with the reason."""
    runs = folder / RUNS
    with carrying_out(folder, "reproducing in", command):
        runs.mkdir(exist_ok=True)
        if workers > 1 and len(pending) > 1:
            return work_in_processes(pending, runs, display, workers)
        return work_here(pending, runs, display)


def work_here(pending: dict[str, Job], runs: Path, display: Display) -> dict[str, str]:
    """One job after the other in this process. A job that fails does not keep the others from being done."""
    import jax

    failed, program = {}, None
    for name, job in pending.items():
        if program not in (None, job.program):
            jax.clear_caches()  # else memory grows by some hundred megabytes with each program
        program = job.program

        def told(share: float, words: str, name: str = name) -> None:
            display.tell(name, min(share, 0.999), words)

        try:
            job.work(runs / name, JobProgress(told))
        except (Interrupted, OSError):
            raise
        except Exception as problem:
            failed[name] = reason(problem)
            display.note(f"{name} failed: {failed[name]}")
        display.tell(name, 1.0, "failed" if name in failed else "done")
    return failed


def _command(entry: Paper, figure: str | None, request: Request, out: Path | str | None, workers: int) -> str:
    """The command line of this reproduction."""
    words = ["safemeta", "reproduce", entry.name]
    if figure is not None:
        words += ["--figure", *request.figures]
    words += ["--budget", request.budget, "--seeds", str(request.seeds)]
    words += ["--first-seed", str(request.first_seed)] if request.first_seed else []
    words += ["--out", str(out)] if out is not None else []
    words += ["--workers", str(workers)] if workers > 1 else []
    return shlex.join(words)


def _use_cache() -> str | None:
    from safemeta.experiment.compilation import enable_cache

    return enable_cache()
