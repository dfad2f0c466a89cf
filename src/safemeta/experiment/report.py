"""`safemeta report`: one HTML page about one or more runs, with everything in it, for reading offline.

Nothing is simulated anew: the page shows what training, `adapt`, `evaluate`, `certify` and `video` have left in the
runs' folders, and names the command where something is missing.
"""

import base64
import datetime
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safemeta.algorithms import registry
from safemeta.experiment import figures, logs
from safemeta.experiment.adapt import NAMES as ADAPTATIONS
from safemeta.experiment.aggregates import aggregate, anytime, probability_of_improvement
from safemeta.experiment.certify import FILE as CERTIFICATE
from safemeta.experiment.certify import PICTURE as CERTIFICATE_PICTURE
from safemeta.experiment.errors import UserError
from safemeta.experiment.evaluate import FILE as EVALUATION
from safemeta.experiment.files import write_product
from safemeta.experiment.metrics import COSTS, LIMITS, RETURNS, found
from safemeta.experiment.plots import groups_of, plot
from safemeta.experiment.run import CONFIG, RunLog, read_config, read_log, run_folders
from safemeta.experiment.video import FILE as FILM

FILE = "report.html"
LAST = 0.1  # the share of training that counts as its end
LARGEST_FILM = 8 * 2**20  # bytes: a page with many would not open on a phone
TYPES = {".png": "image/png", ".gif": "image/gif"}


@dataclass(frozen=True)
class Picture:
    """A picture in the page itself; `words` are for those who cannot see it."""

    source: str
    words: str

    @staticmethod
    def of(path: Path, words: str) -> "Picture":
        """The picture in a file."""
        content = base64.b64encode(path.read_bytes()).decode()
        return Picture(f"data:{TYPES[path.suffix.lower()]};base64,{content}", words)


@dataclass(frozen=True)
class Adapted:
    """What one adaptation of a run has left; `how` says whether a confidence was stated, or there was a shield."""

    name: str
    how: str
    content: dict[str, Any]


@dataclass
class Card:
    """One run: what it is, how it can be had again, and what was found out about it."""

    log: RunLog
    name: str
    facts: dict[str, str]
    options: dict[str, str]
    command: str
    adapts: bool  # whether its algorithm can; a user's own, which is not registered here, may
    adaptations: list[Adapted] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    certificate: dict[str, Any] | None = None
    pictures: dict[str, Picture] = field(default_factory=dict)  # by what made them: an adaptation, "certify", "video"
    notes: list[str] = field(default_factory=list)


def report(*runs: Any, out: Path | str | None = None) -> Path:
    """Write one page about the runs (`Run`s, their folders, or folders of such folders) and return its path.

    By default `report.html` in the first folder that was named. Raises `UserError` where there is no run.
    """
    if not runs:
        raise UserError("Name at least one run: safemeta report RUN...")
    folders = run_folders(runs)
    path = Path(out) if out is not None else Path(getattr(runs[0], "folder", runs[0])) / FILE
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"A report is saved as .html, so that '{path}' (--out) will not do.")
    return write_product(path, _render([_card(folder) for folder in folders]).encode())


def _card(folder: Path) -> Card:
    config, log = read_config(folder), read_log(folder)
    last = log.lines[-1] if log.lines else {}
    seconds = sum(line.get("seconds", 0.0) for line in logs.read(folder / logs.TIMING))
    facts = {
        "algorithm": log.label,
        "task": config.task.name,
        "task options": ", ".join(f"{name} {value}" for name, value in config.task.options.items()),
        "seed": str(config.seed),
        "iterations": f"{len(log.lines)} of {config.iterations}",
        "environment steps": f"{last['environment_steps']:,}" if "environment_steps" in last else "",
        "time": str(datetime.timedelta(seconds=round(seconds))) if seconds else "",
        "version": f"safemeta {config.to_json()['safemeta']}",
    }
    card = Card(
        log,
        f"{config.algorithm} on {config.task.name}, seed {config.seed}",
        {name: value for name, value in facts.items() if value},
        {name: json.dumps(value) for name, value in config.to_json()["options"].items()},
        f"safemeta train --config {folder / CONFIG}",
        config.algorithm not in registry.names() or registry.ALGORITHMS[config.algorithm].meta,
    )
    for name in ADAPTATIONS:
        content = _content(folder / f"{name}.json")
        if content is not None:
            stated = f", confidence {content['confidence']}" if content.get("confidence") else ""
            card.adaptations.append(Adapted(name, f"{stated}{', shielded' if content.get('shield') else ''}", content))
    card.evaluation = _content(folder / EVALUATION)
    card.certificate = _content(folder / CERTIFICATE)
    for made_by, name, words in (
        *((name, f"{name}.png", "Return and cost of every policy over adaptation steps.") for name in ADAPTATIONS),
        ("certify", CERTIFICATE_PICTURE, "The safety index over distance and rate, and in the plane."),
        ("video", FILM, "An episode on an unseen task."),
    ):
        file = folder / "plots" / name
        if not file.is_file():
            continue
        if file.stat().st_size > LARGEST_FILM:
            card.notes.append(f"{file} is too large for this page.")
        else:
            card.pictures[made_by] = Picture.of(file, f"{card.name}: {words}")
    return card


def _content(path: Path) -> dict[str, Any] | None:
    """A JSON file's content, None if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"'{path}' is damaged: it is not JSON.", exit_code=1) from problem
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is damaged: it holds no report.", exit_code=1)
    return content


def _render(cards: list[Card]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

    import safemeta

    environment = Environment(
        loader=PackageLoader("safemeta.experiment", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    trained = [card for card in cards if card.log.lines]
    groups = _groups(trained)
    page = environment.get_template("report.html.jinja")
    content: dict[str, Any] = {
        "title": _title(cards),
        "made": datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
        "version": safemeta.__version__,
        "cards": cards,
        "training": _training(trained),
        "ends": [_end(group) for group in groups],
        "better": _comparisons(groups),
        "anytime": _anytime_picture(cards),
        "interval": _interval,
    }
    try:
        return page.render(content)
    except (UndefinedError, TypeError, KeyError, ValueError, AttributeError) as problem:
        files = f"{ADAPTATIONS[0]}.json, {EVALUATION} or {CERTIFICATE}"
        raise UserError(
            f"An {files} of these runs is damaged or of another version: {problem}.", exit_code=1
        ) from problem


def _title(cards: list[Card]) -> str:
    algorithms = sorted({card.log.label for card in cards})
    tasks = sorted({card.log.task for card in cards})
    return f"{_listed(algorithms)} on {_listed(tasks)}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _training(cards: list[Card]) -> list[Picture]:
    """Training curves, one picture for each task."""
    pictures = []
    with tempfile.TemporaryDirectory() as scratch:
        for task in dict.fromkeys(card.log.task for card in cards):
            members = [card.log.folder for card in cards if card.log.task == task]
            file = plot(*members, out=Path(scratch) / "training.png")
            pictures.append(Picture.of(file, f"Training on {task}: return and cost over environment steps."))
    return pictures


@dataclass(frozen=True)
class End:
    """Where the runs of one configuration ended: means over the last tenth of training, with intervals over seeds."""

    label: str
    task: str
    runs: int
    episode_return: str
    cost: str
    cost_words: str
    limit: str
    above: bool


Group = tuple[str, str, list[RunLog]]  # the task, what the runs are called, and the runs, which differ in their seed


def _groups(cards: list[Card]) -> list[Group]:
    found_so_far = []
    for task in dict.fromkeys(card.log.task for card in cards):
        groups = groups_of([card.log for card in cards if card.log.task == task])
        found_so_far += [(task, label, members) for label, members in groups.items()]
    return found_so_far


def _end(group: Group) -> End:
    task, label, members = group
    returns, costs = _last(members, RETURNS), _last(members, COSTS)
    limits = [float(log.lines[-1][name]) for log in members for name in found(log.lines[-1], LIMITS)]
    limits += [log.limit for log in members if log.limit is not None]
    cost = None if costs is None else aggregate(costs[1][:, None], "mean")
    return End(
        label,
        task,
        len(members),
        "" if returns is None else _interval(vars(aggregate(returns[1][:, None], "mean"))),
        "" if cost is None else _interval(vars(cost)),
        "" if costs is None else costs[0],
        f"{max(limits):.4g}" if limits else "",
        bool(cost and limits and cost.value > max(limits)),
    )


def _last(members: Iterable[RunLog], wanted: dict[str, tuple[str, str]]) -> tuple[str, np.ndarray] | None:
    """In words the first of the wanted metrics, and its mean over each run's last tenth."""
    values, words = [], ""
    for log in members:
        names = list(found(log.lines[-1], wanted))
        if not names:
            return None
        words = wanted[names[0]][0]
        lines = log.lines[-max(1, round(LAST * len(log.lines))) :]
        values.append(statistics.fmean(float(line[names[0]]) for line in lines if names[0] in line))
    return words, np.array(values)


def _comparisons(groups: list[Group]) -> list[tuple[str, str, str]]:
    """How likely a run of one configuration has more return than one of another on a task that both were trained on.

    Of those with several seeds; with fewer on one task than on others, as many are compared on all.
    """
    tables: dict[str, dict[str, np.ndarray]] = {}
    for task, label, members in groups:
        last = _last(members, RETURNS)
        if last is not None and len(members) > 1:
            tables.setdefault(label, {})[task] = last[1]

    def table(label: str, tasks: list[str]) -> np.ndarray:
        count = min(len(tables[label][task]) for task in tasks)
        return np.stack([tables[label][task][:count] for task in tasks], axis=1)

    compared = []
    for one, other in itertools.combinations(tables, 2):
        tasks = [task for task in tables[one] if task in tables[other]]
        if tasks:
            odds = probability_of_improvement(table(one, tasks), table(other, tasks))
            compared.append((one, other, _interval(vars(odds))))
    return compared


def _anytime_picture(cards: list[Card]) -> Picture | None:
    """The share of tasks on which a limit has been broken so far, and the largest cost so far, of each group."""
    stored: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for label, members in groups_of([card.log for card in cards]).items():
        folders = [log.folder for log in members]
        for card in cards:
            for each in card.adaptations if card.log.folder in folders else ():
                file = card.log.folder / f"{each.name}.npz"
                if file.is_file():
                    stored.setdefault(f"{label}{each.how}", []).append(_costs_and_limits(file))
    if not stored:
        return None
    with figures.figure(
        "Anytime safety", "All policies used so far, on unseen tasks; bands are exact 95 % intervals", 2
    ) as (drawing, axes):
        for number, (label, found_of) in enumerate(stored.items()):
            colour = figures.PALETTE[number % len(figures.PALETTE)]
            steps = min(len(costs) for costs, _ in found_of)
            costs = np.concatenate([costs[:steps] for costs, _ in found_of], axis=1)
            curve = anytime(costs, np.concatenate([limits for _, limits in found_of]))
            band = curve.tasks
            axes[0].fill_between(band.x, 100 * band.low, 100 * band.high, color=colour, alpha=0.15, linewidth=0)
            axes[0].plot(band.x, 100 * band.value, color=colour, linewidth=2, label=label)
            axes[1].plot(band.x, 100 * curve.worst, color=colour, linewidth=2, label=label)
        axes[0].set_title("Tasks on which any policy so far broke a limit, %")
        axes[0].set_ylim(-2, 102)
        axes[1].set_title("Largest cost so far, % above the limit")
        figures.mark_limit(axes[1], 0.0, axes[1].get_ylim()[1])
        for each in axes:
            each.set_xlabel("adaptation step (0 = meta-policy)")
            each.xaxis.get_major_locator().set_params(integer=True)
        axes[0].legend(loc="center right")
        with tempfile.TemporaryDirectory() as scratch:
            return Picture.of(
                figures.save(drawing, Path(scratch) / "anytime.png"),
                "Share of tasks on which a limit was broken so far, and largest cost so far, over adaptation steps.",
            )


def _costs_and_limits(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of an adaptation: `[steps + 1, tasks, costs]` and `[tasks, costs]`."""
    try:
        with open(file, "rb") as content, np.load(content, allow_pickle=False) as arrays:
            costs, limits = arrays["costs"].astype(float), arrays["limits"].astype(float)
        if costs.ndim != 3 or costs.shape[1:] != limits.shape or not costs.size:
            raise ValueError("the shapes do not fit")
    except Exception as problem:  # NumPy and zipfile have many ways to say it
        raise UserError(f"'{file}' is damaged.", exit_code=1) from problem
    return costs, limits


def _interval(value: Any) -> str:
    """A mean with its interval, in a table's cell."""
    mean, low, high = (value.get(name) for name in ("mean" if "mean" in value else "value", "low", "high"))
    if low is None or high is None or not np.isfinite([low, high]).all():
        return f"{mean:.3g}"
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]"
