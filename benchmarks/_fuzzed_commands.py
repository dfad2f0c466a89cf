"""Command lines and damaged files, as hypothesis makes them up. Options come from the commands' own dataclasses."""

import functools
import json
import math
import sys
import tempfile
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from _fuzzed_sandbox import GIVEN, RUNS, SLOT, SWEEP, Damage, Example, Sandbox, faults
from _table import Row
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

NUMBERS = [
    "0", "1", "2", "3", "7", "-1", "-0", "+3", "0.5", "1.5", "1e3", "1e-320", "1e999", "nan", "inf", "-inf", "NaN",
    "0x10", "1_000", "1,5", "٣", "true", "None", "2e9", "4294967296", "", " 3", "9" * 25, "9" * 4000, "9" * 5000,
    "-" + "9" * 400,
]  # fmt: skip
TEXTS = [
    "", " ", "-", "--", "—", "😀", "..", "~", "$x_$", "%s", "{}", "a\nb", "=", "x=1", "\udcff", "\x1b[31m", "a" * 300,
    "b" * 5000, "None", "'", "None.png", "[bold]", "\u2028",
]  # fmt: skip
PATHS = [
    "out", "out/deeper/yet", "full", "full/new", "file", "file/x", "run", "/proc/safemeta", "", ".", "..", "../beside",
    "a" * 300, "out.png", "out.pdf", "out.gif", "out.npz", "out.onnx", "out.html", "out.mp4", "out.PNG", "file/x.png",
    "full/x.html", "out.tar.gz", "ünï cödé.png", "\udcff.npz", "/proc/x.png", "/dev/full",
]  # fmt: skip
WORDS = [
    *RUNS, "nowhere", "file", "full", "run/checkpoints", "run/config.json", "", ".", "..", "~", "a" * 300, "b" * 5000,
    "-", "-1",
]  # fmt: skip
PAIRS = [
    "pole_length=1", "pole_length=0.8,1.2", "safety_coeff=0.1", "safety_coeff=2", "constraint=slider_pos", "=", "=3",
    "pole_length", "pole_length=", "pole_length=nan", "pole_length=1,2,3", "action_delay=1e400", "safety_cof=1",
    "constraint=slider_pos,slider_pos", "action_delay=" + "9" * 400, "noise=😀",
]  # fmt: skip
COMMANDS = ["adapt", "evaluate", "certify", "plot", "video", "export", "report", "reproduce", "list", "sweep"]
COMMANDS += ["train"] * 8
BATCH = 25  # examples that hypothesis makes up from one seed; it varies what it has, which soon looks alike
HUGE = b"[" * 100_000

texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _values(name: str, hint: Any, default: Any) -> st.SearchStrategy[list[str]]:
    """What may be given for an option: mostly something that makes sense, where that is known."""
    if hint is bool:
        return st.just([])
    known = {
        "task": catalogue().tasks, "split": ["train", "validation", "test"], "out": PATHS, "resume": WORDS,
        "ray-address": ["auto", "127.0.0.1:1", ""], "config": ["run/config.json", "file", "full", "nowhere.json"],
        "preset": ["paper", "papr"], "figure": ["1", "5", "table-1", "Figure 2", "9"],
    }.get(name)  # fmt: skip
    if name == "task-option":
        return st.lists(_mostly(st.sampled_from(PAIRS), texts), min_size=0, max_size=3)
    if known is not None:
        return _mostly(st.sampled_from(known), texts).map(lambda value: [value])
    if typing.get_origin(hint) is Literal:
        return _mostly(st.sampled_from([str(each) for each in typing.get_args(hint)]), texts).map(lambda value: [value])
    one = st.sampled_from(NUMBERS) | texts
    if typing.get_origin(hint) is tuple:
        usual = [str(each) for each in default] if default else ["3"]
        return _mostly(st.just(usual), st.lists(one, max_size=4), st.just(["3"] * 2000), times=2)
    usual = str(default) if default is not None and default != "" else "3"
    return _mostly(st.just(usual) | st.sampled_from(["1", "2", "5"]), one, times=2).map(lambda value: [value])


def _mostly(usual: st.SearchStrategy[Any], *others: st.SearchStrategy[Any], times: int = 6) -> st.SearchStrategy[Any]:
    """The usual, in `times` of `times + 1` cases."""
    return st.integers(0, times).flatmap(lambda number: usual if number else st.one_of(*others))


@st.composite
def _option(draw: Any, options: Mapping[str, tuple[Any, Any]]) -> tuple[list[str], str]:
    """One option as it is typed, and its name."""
    name = draw(st.sampled_from(sorted(options)))
    values = draw(_values(name, *options[name]))
    style = draw(st.sampled_from(["plain"] * 24 + ["=", "_", "short", "upper", "dash", "typo"]))
    typed = {
        "_": f"--{name.replace('-', '_')}", "short": f"--{name[:-2] or name}", "upper": f"--{name.upper()}",
        "dash": f"-{name}", "typo": f"--{name[:1]}{name}",
    }.get(style, f"--{name}")  # fmt: skip
    if style == "=":
        return [f"{typed}={','.join(values)}"], name
    return [typed, *values], name


def _options_of(command: str, algorithm: str | None) -> dict[str, tuple[Any, Any]]:
    """Name -> type (without None) and default of the options that a command has."""
    from safemeta.algorithms import registry
    from safemeta.experiment import options as own
    from safemeta.experiment.arguments import _without_none, flags
    from safemeta.papers.command import ReproduceOptions

    parts = [ReproduceOptions() if command == "reproduce" else getattr(own, f"{command.capitalize()}Options")()]
    if command == "train" and algorithm in registry.ALGORITHMS:
        parts.append(registry.load(algorithm).config())
    found = {}
    for part in parts:
        for name, hint in flags(type(part)).items():
            value = part
            for step in name.replace("-", "_").split("."):
                value = getattr(value, step)
            found[name] = (_without_none(hint), value)
    return found


@dataclass(frozen=True)
class Catalogue:
    """What there is to choose from."""

    algorithms: list[str]
    tasks: list[str]
    papers: list[str]
    options: dict[str, dict[str, tuple[Any, Any]]]  # of commands, and of algorithms' `train`


@functools.cache
def catalogue() -> Catalogue:
    """Asked of safemeta once: strategies must not call code that is checked at random, as tests have it."""
    from safemeta.algorithms import registry
    from safemeta.papers import registry as papers
    from safemeta.tasks import registry as tasks

    options = {command: _options_of(command, None) for command in {*COMMANDS}}
    options |= {name: _options_of("train", name) for name in registry.names()}
    return Catalogue([*registry.names()], [*tasks.names()], [*papers.names()], options)


@st.composite
def command_lines(draw: Any) -> Example:
    """A command with options, some of which make sense, on runs that may be there."""
    command = draw(st.sampled_from(COMMANDS) | st.just("train"))
    words: list[str] = []
    algorithm = None
    if command == "train":
        algorithm = draw(_mostly(st.sampled_from(catalogue().algorithms), st.none(), texts))
        words = [] if algorithm is None else [algorithm]
    elif command == "reproduce":
        one = _mostly(st.sampled_from(catalogue().papers), texts).map(lambda name: [name])
        words = draw(_mostly(one, st.lists(texts, max_size=2)))
    elif command != "list":
        one = st.sampled_from([*RUNS]).map(lambda name: [name])
        words = draw(_mostly(one, st.lists(st.sampled_from(WORDS) | texts, max_size=3), times=2))
    options = catalogue().options.get(algorithm or "dual") or catalogue().options["train"]
    options = options if command == "train" else catalogue().options[command]
    given = [draw(_option(options)) for _ in range(draw(st.integers(0, 4)))]
    tokens = [token for each, _ in given for token in each]
    arguments = [command, *words, *tokens] if draw(st.integers(0, 9)) else [command, *tokens, *words]
    if not draw(st.integers(0, 39)):
        arguments.append(draw(st.sampled_from(["--help", "-h", "--version"])))
    if not draw(st.integers(0, 19)):
        arguments[0] = draw(st.sampled_from([command[:-1], command.upper(), "--" + command]) | texts)
    return _example(arguments, [name for _, name in given])


def _example(arguments: Sequence[str], names: Sequence[str] = (), damage: Damage | None = None) -> Example:
    """With what it may write and name: any word on the command line."""
    split = [part for word in arguments for part in (word, word.partition("=")[2], *word.split("="))]
    plain = [word.lstrip("-") for word in split if word.lstrip("-") and not word.lstrip("-").isdigit()]
    plain += [word.split("/")[0] for word in plain if "/" in word]  # the folder that something was to be in
    named = [*names, *(word[:80] for word in plain)]
    outputs = [word for word in split if word and not word.startswith("-")]
    return Example(tuple(arguments), damage, tuple(outputs), tuple(named))


ON_FILE: dict[str, list[list[str]]] = {
    "config.json": [
        ["train", "--quiet", "--resume", SLOT], ["adapt", SLOT], ["evaluate", SLOT], ["plot", SLOT], ["video", SLOT],
        ["certify", SLOT, "--index", "zero"], ["export", SLOT], ["report", SLOT],
        ["evaluate", SLOT, "--shield", "model"],
    ],
    GIVEN: [["train", "--quiet", "--config", GIVEN]],
    "metrics.jsonl": [["plot", SLOT], ["report", SLOT], ["train", "--quiet", "--resume", SLOT], ["plot", "run", SLOT]],
    "timing.jsonl": [["report", SLOT], ["train", "--quiet", "--resume", SLOT]],
    "adaptation.json": [["report", SLOT]],
    "evaluation.json": [["report", SLOT]],
    "certificate.json": [["report", SLOT]],
    "adaptation.npz": [["report", SLOT]],
    "checkpoints/iteration-00000003.safetensors": [["adapt", SLOT], ["export", SLOT], ["train", "--resume", SLOT]],
}  # fmt: skip


@st.composite
def damaged_files(draw: Any, files: Mapping[str, Mapping[str, bytes]]) -> Example:
    """A right command on a run, or with a configuration, in which one file is damaged."""
    run = draw(st.sampled_from(sorted(files)))
    file = draw(st.sampled_from(["config.json"] * 6 + [GIVEN] * 3 + [*ON_FILE]))
    content = files[run]["config.json" if file == GIVEN else file]
    spoil = _spoilt_bytes(content)
    if file.endswith(("json", "jsonl")):
        spoil = st.one_of(spoil, *[_spoilt_json(content)] * 4)
    damage = Damage(run, file, draw(spoil))
    meta = [words for words in ON_FILE[file] if words[0] != "adapt" or run != "fac"]
    return _example(draw(st.sampled_from(meta)), damage=damage)


SWEPT: dict[str, Any] = {
    "algorithms": ["trpo", "cpo"], "tasks": ["point-mass"], "seeds": 2, "iterations": 3,
    "options": {"tasks": 2, "hidden": [8], "gae-smoothing": 0.9}, "algorithm": {"cpo": {"integral-gain": 0.1}},
    "task": {"point-mass": {"limit": 2.0}},
    "grid": {"kl-radius": [0.003, 0.01], "algorithm": {"cpo": {"damping": [0.1]}}},
}  # fmt: skip


@st.composite
def sweep_files(draw: Any) -> Example:
    """A sweep's file, most often with something in it that is another, gone, or called otherwise."""
    whole = json.loads(json.dumps(SWEPT))
    for _ in range(draw(st.integers(0, 2))):
        inner, key = draw(st.sampled_from([*_places(whole)]))
        action = draw(st.sampled_from(["replace"] * 4 + ["remove", "add"]))
        if action == "remove":
            del inner[key]
        elif action == "add" and isinstance(inner, dict):
            inner[draw(st.sampled_from([f"{key}s", "", "😀", "limit", "horizon", "preset", "task-option"]))] = draw(
                json_values
            )
        else:
            inner[key] = draw(json_values)
    content: bytes | None = _toml(whole).encode("utf-8", "surrogatepass")
    if not draw(st.integers(0, 5)):
        content = draw(_spoilt_bytes(content or b"x"))
    return _example(["sweep", SWEEP], damage=Damage("run", SWEEP, content))


def _toml(content: Any, path: str = "") -> str:
    """TOML of what JSON can say; null, which TOML lacks, becomes something that is no TOML."""
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    lines = [f"{json.dumps(key)} = {_toml_value(value)}" for key, value in content.items() if key not in tables]
    for key, value in tables.items():
        own = f"{path}{json.dumps(key)}"
        lines += [f"[{own}]", _toml(value, f"{own}.")]
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(json.dumps(value), json.dumps(value))


@st.composite
def _spoilt_json(draw: Any, content: bytes) -> bytes:
    """JSON, or one line of several, in which an entry is another one, gone, or called otherwise."""
    lines = [json.loads(line) for line in content.decode().splitlines()] if content.count(b"}\n{") else None
    whole = json.loads(content) if lines is None else draw(st.sampled_from(lines))
    places = list(_places(whole))
    inner, key = draw(st.sampled_from(places))
    action = draw(st.sampled_from(["replace"] * 5 + ["remove", "rename", "add", "wrap"]))
    if action in ("replace", "add") or isinstance(inner, list):
        new = draw(json_values | st.just(inner[key]))
        if action == "add" and isinstance(inner, dict):
            inner[draw(st.sampled_from([f"{key}s", "", "😀"]))] = new
        else:
            inner[key] = new
    elif action == "wrap":
        inner[key] = [inner[key]]
    else:
        value = inner.pop(key)
        if action == "rename":
            inner[f"{key}x"] = value
    return "\n".join(map(json.dumps, [whole] if lines is None else lines)).encode() + b"\n"


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry, as what holds it and its key."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys):
        yield content, key
        yield from _places(content[key])


@st.composite
def _spoilt_bytes(draw: Any, content: bytes) -> bytes | None:
    """A file that is cut off, changed, something else, or not there."""
    kind = draw(st.sampled_from(["cut", "flip", "noise", "fixed", "gone", "digits"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "flip":
        changed = bytearray(content)
        for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
            changed[place] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if kind == "noise":
        return draw(st.binary(max_size=40))
    if kind == "digits":
        return content.replace(b"3", draw(st.sampled_from([b"9" * 5000, b"1e999", b"NaN", b"-3"])), 1)
    if kind == "gone":
        return None
    fixed = [b"", b"null", b"[]", b"{}", b"3", HUGE, b'{"a":' * 50_000, b"\xef\xbb\xbf" + content, content * 2]
    return draw(st.sampled_from([*fixed, content.decode("latin-1").encode("utf-16")]))


def examples(files: Mapping[str, Mapping[str, bytes]]) -> st.SearchStrategy[Example]:
    """Command lines and damaged files, half and half, and some sweeps."""
    kinds = [command_lines(), damaged_files(files)] * 3
    return st.one_of(*kinds, sweep_files())


def fuzz(number: int, start: int, folder: Path) -> tuple[Counter[str], list[tuple[Example, list[str], str]]]:
    """How many commands of each kind ended how, and those that ended as they should not, with what they said."""
    counts: Counter[str] = Counter()
    found: list[tuple[Example, list[str], str]] = []
    catalogue()
    with Sandbox(folder) as sandbox:

        @settings(
            max_examples=min(number, BATCH),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        )
        @given(examples(sandbox.files))
        def run(example: Example) -> None:
            answer = sandbox.answer(example)
            wrong = faults(example, answer, sandbox.folder)
            ended = {None: "work began", 0: "done", 1: "failed", 2: "refused"}.get(answer.code, "otherwise")
            counts[f"{'command line' if example.damage is None else 'damaged file'}: {ended}"] += 1
            if wrong:
                found.append((example, wrong, answer.error))

        for batch in range(math.ceil(number / BATCH)):
            seed(start * 10_000 + batch)(run)()
    return counts, found


def all_commands(number: int, start: int) -> list[Row]:
    """Rows of how many commands ended as they should."""
    with tempfile.TemporaryDirectory() as scratch:
        counts, found = fuzz(number, start, Path(scratch))
    for example, wrong, said in found:
        shown = [word if len(word) < 80 else f"{word[:70]}... ({len(word)} characters)" for word in example.arguments]
        damage = (
            "" if example.damage is None else f" [{example.damage.file}: {(example.damage.content or b'')[:3000]!r}]"
        )
        print(f"{shown}{damage}\n  {'; '.join(wrong)}\n  {said[:600]!r}", file=sys.stderr)
    total = sum(counts.values())
    rows = [
        Row("fuzzed commands", total - len(found), "one sentence or none", "commands", total, 1 - len(found) / total)
    ]
    return rows + [Row(f"fuzzed commands, {kind}", count, "commands") for kind, count in sorted(counts.items())]
