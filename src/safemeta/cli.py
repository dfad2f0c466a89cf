"""The command line. JAX is imported only once a command is known to need it.

Every way to fail ends as one sentence on standard error: exit code 2 for wrong usage, 1 for what went wrong later,
130 and 143 for Ctrl-C and SIGTERM.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safemeta.experiment.errors import Interrupted, UserError, from_value_error, unknown, writing_failed
from safemeta.experiment.options import (
    AdaptOptions,
    CertifyOptions,
    EvaluateOptions,
    ExportOptions,
    ListOptions,
    PlotOptions,
    ReportOptions,
    SweepOptions,
    TrainOptions,
    VideoOptions,
)

HELP = """safemeta: safe reinforcement learning that learns to adapt

usage: safemeta train [ALGORITHM] [options]   train; without arguments: dual on point-circle, then adapt it
       safemeta adapt RUN [options]           adapt a meta-policy to unseen tasks; is every policy on the way safe?
       safemeta evaluate RUN [options]        measure a policy on unseen tasks
       safemeta certify RUN [options]         does a safety index hold where the policy goes?
       safemeta plot RUN... [options]         draw training curves, of several runs with intervals
       safemeta video RUN [options]           film an episode of a policy on an unseen task
       safemeta export RUN [options]          the policy for deployment: plain NumPy or ONNX
       safemeta report RUN... [options]       one page about runs, with all pictures in it, to read offline
       safemeta sweep FILE [options]          algorithms x tasks x seeds x settings, on Ray; goes on if stopped
       safemeta reproduce PAPER [options]     run a paper's experiments and judge its claims; goes on if stopped
       safemeta list [NAME]                   algorithms, tasks and papers; a task's options

       safemeta COMMAND --help                a command's options
       safemeta train ALGORITHM --help        with the algorithm's own options
       safemeta --version
"""
DEBUG = "SAFEMETA_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing is raised."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _terminated) if in_main_thread else None
    try:
        _dispatch(arguments)
        sys.stdout.flush()
        return 0
    except SystemExit as problem:  # help was shown
        return problem.code if isinstance(problem.code, int) else 0
    except KeyboardInterrupt:
        return _complain("Stopped.", 130)
    except BrokenPipeError:
        # Whoever read our output has closed it; without this, Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as problem:
        return _complain(*_sentence(problem))
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _dispatch(arguments: list[str]) -> None:
    commands = {
        "train": _train, "adapt": _adapt, "evaluate": _evaluate, "certify": _certify, "plot": _plot, "video": _video,
        "export": _export, "report": _report, "sweep": _sweep, "reproduce": _reproduce, "list": _list,
    }  # fmt: skip
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if arguments[0] == "--version":
        import safemeta

        print(f"safemeta {safemeta.__version__}")
        return
    if arguments[0] not in commands:
        raise unknown("command", arguments[0], commands)
    commands[arguments[0]](arguments[1:])


def _train(arguments: list[str]) -> None:
    from safemeta.experiment.arguments import ALGORITHM, parse, peek
    from safemeta.experiment.arguments import HELP as HELP_FLAGS

    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    general_help = name is None and any(flag in arguments for flag in HELP_FLAGS)
    parts: dict[str, Any] = {"train": TrainOptions()}
    description = "Train an algorithm. `safemeta train ALGORITHM --help` shows the algorithm's own options as well."
    if peek(arguments, "resume") is None and not general_help:
        name = name if name is not None else _algorithm_in(peek(arguments, "config"))
        parts[ALGORITHM], description = _options_of(name, peek(arguments, "preset"))
    parsed = parse(arguments, parts, program="safemeta train", description=description)
    if parsed.words:
        raise UserError(
            f"Unexpected '{parsed.words[0]}'; the algorithm comes first: safemeta train ALGORITHM [options]."
        )
    run: TrainOptions = parsed.parts[0]
    given = {field: getattr(run, field) for field in parsed.given[0] - {"task_option", "no_adapt", "quiet", "json"}}
    if run.task_option:
        given["task_options"] = _pairs(run.task_option)
    if len(parts) > 1:
        given |= {field: getattr(parsed.parts[1], field) for field in parsed.given[1]}
    _train_and_adapt(name, given, run)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE as a dictionary."""
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
            raise UserError(f"The option --task-option must be NAME=VALUE, such as safety_coeff=0.1, not '{text}'.")
    names = [text.partition("=")[0] for text in texts]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"The task option {repeated[0]} was given more than once.")
    return {name: text.partition("=")[2] for name, text in zip(names, texts, strict=True)}


def _train_and_adapt(name: str | None, given: dict[str, Any], options: TrainOptions) -> None:
    """The main job: train, then adapt, and end with a table and a picture."""
    from safemeta.experiment import progress
    from safemeta.experiment.plots import plot
    from safemeta.experiment.train import train

    reporter = progress.choose(options.quiet, options.json)
    run = train(name, reporter=reporter, **given)
    last = run.metrics()[-1:]
    summary: dict[str, Any] = {"run": str(run.folder), "iterations": run.iteration, "metrics": last[0] if last else {}}
    reporter.note(f"Trained {run.name}: {run.iteration} iterations, saved in {run.folder}")
    if last:
        reporter.note(f"Training curves: {plot(run)}")
    if run.is_meta and not options.no_adapt:
        summary["adaptation"] = _adapt_after_training(run.folder, run.config.budget, options, reporter)
    reporter.summary(summary)


def _adapt_after_training(folder: Path, budget: str, options: TrainOptions, reporter: Any) -> dict[str, Any]:
    """The second half of the main job; if it is stopped, the trained run stays usable."""
    from safemeta.experiment.adapt import adapt

    small: dict[str, Any] = {"tasks": 4, "steps": 2, "episodes": 5} if budget == "smoke" else {}
    try:
        report = adapt(folder, reporter=reporter, **small)
    except (KeyboardInterrupt, Interrupted) as problem:
        code = problem.exit_code if isinstance(problem, Interrupted) else 130
        raise Interrupted(f"Stopped; training is complete. Adapt with: safemeta adapt {folder}", code) from problem
    _show_adaptation(report, options.quiet or options.json, reporter)
    return report.to_json()


def _adapt(arguments: list[str]) -> None:
    from safemeta.experiment import progress
    from safemeta.experiment.adapt import adapt, check_settings
    from safemeta.experiment.evaluate import check_shield

    folder, options = _one_run(arguments, AdaptOptions(), "adapt", "Adapt a trained meta-policy to unseen tasks.")
    check_settings(options.tasks, options.steps, options.episodes, options.seed)
    check_shield(options.shield, options.index, options.actions)
    reporter = progress.choose(options.quiet, options.json)
    _use_cache(reporter)
    report = adapt(folder, reporter=reporter, **_settings(options))
    _show_adaptation(report, options.quiet or options.json, reporter)
    if options.json:
        print(json.dumps(report.to_json()))


def _evaluate(arguments: list[str]) -> None:
    from safemeta.experiment import progress
    from safemeta.experiment.evaluate import evaluate
    from safemeta.experiment.tables import evaluation_table, show

    folder, options = _one_run(arguments, EvaluateOptions(), "evaluate", "Measure a trained policy on unseen tasks.")
    _use_cache(progress.choose(options.quiet, options.json))
    report = evaluate(folder, **_settings(options))
    if options.json:
        print(json.dumps(report.to_json()))
    elif not options.quiet:
        show(evaluation_table(report))


def _certify(arguments: list[str]) -> None:
    from safemeta.experiment import progress
    from safemeta.experiment.certify import certify, check_settings
    from safemeta.experiment.tables import certificate_table, show

    description = "Judge a run's safety index by the states that its policy visits."
    folder, options = _one_run(arguments, CertifyOptions(), "certify", description)
    check_settings(options.tasks, options.episodes, options.actions, options.seed)
    reporter = progress.choose(options.quiet, options.json)
    _use_cache(reporter)
    report = certify(folder, reporter=reporter, **_settings(options))
    if options.json:
        print(json.dumps(report.to_json()))
    elif not options.quiet:
        show(certificate_table(report))
    reporter.note(f"Picture: {report.picture}")


def _plot(arguments: list[str]) -> None:
    from safemeta.experiment.arguments import parse
    from safemeta.experiment.plots import plot

    parsed = parse(arguments, {"plot": PlotOptions()}, program="safemeta plot RUN...", description="Training curves.")
    if not parsed.words:
        raise UserError("Name at least one run: safemeta plot RUN...")
    print(plot(*parsed.words, out=parsed.parts[0].out))


def _export(arguments: list[str]) -> None:
    from safemeta.experiment.export import export

    folder, options = _one_run(arguments, ExportOptions(), "export", "Write a trained policy for deployment.")
    print(export(folder, **_settings(options)))


def _report(arguments: list[str]) -> None:
    from safemeta.experiment.arguments import parse
    from safemeta.experiment.report import report

    parsed = parse(arguments, {"report": ReportOptions()}, program="safemeta report RUN...", description="One page.")
    print(report(*parsed.words, out=parsed.parts[0].out))


def _video(arguments: list[str]) -> None:
    from safemeta.experiment import progress
    from safemeta.experiment.video import check_settings, video

    folder, options = _one_run(arguments, VideoOptions(), "video", "Film an episode of a trained policy.")
    check_settings(options.out, options.seed, options.steps, options.frames, options.fps)
    reporter = progress.choose(options.quiet, False)
    _use_cache(reporter)
    print(video(folder, reporter=reporter, **_settings(options)))


def _sweep(arguments: list[str]) -> None:
    from safemeta.experiment.arguments import parse
    from safemeta.experiment.sweep import sweep

    description = "Train all combinations that a TOML file names. The same command goes on where it was stopped."
    parsed = parse(arguments, {"sweep": SweepOptions()}, program="safemeta sweep FILE", description=description)
    if len(parsed.words) != 1:
        problem = f"{len(parsed.words)} were given" if parsed.words else "none was given"
        raise UserError(f"safemeta sweep needs one file, such as sweep.toml, but {problem}.")
    options: SweepOptions = parsed.parts[0]
    outcome = sweep(parsed.words[0], **vars(options))
    if options.json:
        print(json.dumps({"summary": True, **outcome.to_json()}))
    elif not options.quiet:
        print(f"Results: {outcome.folder} (safemeta plot and safemeta report take this folder)")
    if outcome.failed:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(outcome.failed.items())[:3])
        raise UserError(f"{len(outcome.failed)} of the jobs failed ({shown}).", exit_code=1)


def _reproduce(arguments: list[str]) -> None:
    from safemeta.papers.command import reproduce

    reproduce(arguments)


def _list(arguments: list[str]) -> None:
    from safemeta.experiment.arguments import parse
    from safemeta.experiment.listing import catalogue, find, overview, page
    from safemeta.papers import registry as papers

    parsed = parse(arguments, {"list": ListOptions()}, program="safemeta list [NAME]", description="What there is.")
    if len(parsed.words) > 1:
        raise UserError(f"Unexpected '{parsed.words[1]}'; safemeta list takes one name, or none.")
    lists = catalogue(papers.describe())
    found = find(lists, parsed.words[0]) if parsed.words else None
    if parsed.parts[0].json:
        print(json.dumps(found or lists))
    else:
        print(page(found) if found else overview(lists), end="")


def _one_run(arguments: list[str], options: Any, command: str, description: str) -> tuple[Path, Any]:
    """The one run that a command is about, and its options."""
    from safemeta.experiment.arguments import parse

    parsed = parse(arguments, {command: options}, program=f"safemeta {command} RUN", description=description)
    if len(parsed.words) != 1:
        problem = f"{len(parsed.words)} were given" if parsed.words else "none was given"
        raise UserError(f"safemeta {command} needs one run, such as runs/dual-point-circle-s0, but {problem}.")
    return Path(parsed.words[0]), parsed.parts[0]


def _options_of(name: str, preset: str | None) -> tuple[Any, str]:
    """The algorithm's options (JAX is imported here, after the name is known to be right), and its description."""
    from safemeta.algorithms import registry
    from safemeta.experiment.train import default_options

    try:
        entry = registry.get(name)
    except ValueError as problem:
        raise from_value_error(problem) from problem
    return default_options(entry.load(), preset), f"{entry.name}: {entry.description}."


def _algorithm_in(config: str | None) -> str:
    """The algorithm that a config.json names, else the default one."""
    from safemeta.algorithms import registry
    from safemeta.experiment.run import read_config_file

    return read_config_file(Path(config)).algorithm if config else registry.DEFAULT


def _settings(options: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(options).items() if key not in ("quiet", "json")}


def _show_adaptation(report: Any, hidden: bool, reporter: Any) -> None:
    from safemeta.experiment.tables import adaptation_table, show

    if not hidden:
        show(adaptation_table(report))
    reporter.note(f"Picture: {report.picture}")


def _use_cache(reporter: Any) -> None:
    from safemeta.experiment.compilation import enable_cache

    warning = enable_cache()
    if warning:
        reporter.warn(warning)


def _sentence(problem: Exception) -> tuple[str, int]:
    """One sentence and an exit code for any exception."""
    if isinstance(problem, UserError):
        return str(problem), problem.exit_code
    if isinstance(problem, OSError):
        return str(writing_failed(problem, problem.filename or "the output")), 1
    reason = " ".join(str(problem).split())
    if isinstance(problem, MemoryError) or "RESOURCE_EXHAUSTED" in reason:
        return "There is not enough memory: ask for fewer tasks or episodes, a shorter horizon or smaller networks.", 1
    reason = reason if len(reason) <= 300 else reason[:297] + "..."
    notes = " ".join(note for note in getattr(problem, "__notes__", []) if note.startswith("Continue"))  # not JAX's
    shown = f"Unexpected {type(problem).__name__}: {reason or 'no reason given'}"
    return f"{shown.rstrip('.')}. {notes} ({DEBUG}=1 shows where it happened.)".replace(".  (", ". ("), 1


def _complain(sentence: str, code: int) -> int:
    if os.environ.get(DEBUG) == "1" and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    print(f"safemeta: {sentence}", file=sys.stderr, flush=True)
    return code


def _terminated(number: int, frame: Any) -> None:
    raise Interrupted("Stopped by SIGTERM.", exit_code=128 + number)
