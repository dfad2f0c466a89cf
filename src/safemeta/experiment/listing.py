"""What `safemeta list` shows. Imports no JAX: a listing answers at once."""

import textwrap
from collections.abc import Mapping
from typing import Any

from safemeta.algorithms import registry as algorithms
from safemeta.experiment.errors import UserError, nearest
from safemeta.tasks import registry as tasks

Lists = dict[str, list[dict[str, Any]]]
WIDTH = 120  # columns


def catalogue(papers: Mapping[str, str]) -> Lists:
    """All algorithms, tasks and papers by name; tasks with their options and with what is missing here to make them."""
    return {
        "algorithms": [{"name": name, "description": line} for name, line in algorithms.describe().items()],
        "tasks": [_task(family) for family in tasks.FAMILIES.values()],
        "papers": [{"name": name, "description": line} for name, line in papers.items()],
    }


def overview(lists: Lists) -> str:
    """The lists as text; tasks with options are marked."""
    blocks = []
    for title, entries in lists.items():
        names = [entry["name"] + ("*" if entry.get("options") else "") for entry in entries]
        width = max(map(len, names), default=0)
        lines = [f"  {name:<{width}}  {entry['description']}" for name, entry in zip(names, entries, strict=True)]
        lines += [f"  {sentence}" for sentence in dict.fromkeys(_remarks(entries))]
        blocks.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(blocks) + "\n"


def find(lists: Lists, name: str) -> dict[str, Any]:
    """The one entry of that name, with what it is as `kind`; `UserError` with the nearest name if there is none."""
    for title, entries in lists.items():
        for entry in entries:
            if entry["name"] == name:
                return {"kind": title[:-1], **entry}
    match = nearest(name, [entry["name"] for entries in lists.values() for entry in entries])
    hint = f"did you mean '{match}'?" if match else "safemeta list shows those there are."
    raise UserError(f"There is no algorithm, task or paper '{name}'; {hint}")


def page(entry: Mapping[str, Any]) -> str:
    """One entry as text: a task with its options, and how to go on with it."""
    name, kind = entry["name"], entry["kind"]
    lines = [f"{name}: {entry['description']}"]
    if kind == "algorithm":
        lines += ["", f"Its options: safemeta train {name} --help"]
    elif kind == "paper":
        lines += ["", f"Its experiments: safemeta reproduce {name} --help"]
    elif entry["options"]:
        lines += ["", f"options (safemeta train --task {name} --task-option NAME=VALUE):"]
        for option in entry["options"]:
            lines.append(f"  {option['name']} = {_shown(option['default'])}")
            text = f"{option['description']}; {option['allowed']}"
            lines += textwrap.wrap(text, WIDTH, initial_indent="      ", subsequent_indent="      ")
    else:
        lines += ["", "It has no options."]
    if entry.get("missing"):
        lines += ["", entry["missing"]]
    return "\n".join(lines) + "\n"


def _task(family: tasks.Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "description": family.description,
        "options": tasks.describe_options(family.name),
        "missing": family.missing or None,
    }


def _remarks(entries: list[dict[str, Any]]) -> list[str]:
    """What is said below a list."""
    remarks = [entry["missing"] for entry in entries if entry.get("missing")]
    some = next((entry["name"] for entry in entries if entry.get("options")), None)
    if some is not None:
        remarks.append(f"* has options, which safemeta list TASK shows, such as: safemeta list {some}")
    return remarks


def _shown(default: Any) -> str:
    """A default as it would be given on the command line."""
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)
