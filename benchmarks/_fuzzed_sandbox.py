"""Where made-up command lines are tried out: runs that can be spoilt, commands that stop where work would begin.

Everything up to that moment is real: parsing, names, files, checks, worlds, algorithms (their initial state is traced,
not computed). A watch on the interpreter's audit events notices every file that is written.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

RUNS = {
    "run": ("dual", "point-circle"),
    "fac": ("fac-sis", "collision-avoidance"),
    "metal": ("metal", "realworld-cartpole"),
}
SLOT, GIVEN, SWEEP = "slot", "given.json", "given.toml"  # a copy of a run, a configuration, a sweep: each spoilt anew
CACHES = (str(Path.home() / ".cache" / "matplotlib"), str(Path.home() / ".config" / "matplotlib"))
SECONDS = 20  # of this process's time that a command may take before its work begins
CODES = (0, 1, 2)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")


class Begun(BaseException):
    """The command is right, and its work would begin."""


@dataclass(frozen=True)
class Damage:
    """A file of the run in the slot (or a configuration or a sweep beside it) with other content; None is no file."""

    run: str
    file: str
    content: bytes | None


@dataclass(frozen=True)
class Example:
    """A command line, what is damaged, where it may write, and what its error message may name."""

    arguments: tuple[str, ...]
    damage: Damage | None = None
    outputs: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass
class Answer:
    """What a command did."""

    code: int | None  # None: its work would have begun
    out: str = ""
    error: str = ""
    written: set[str] = field(default_factory=set)
    seconds: float = 0.0


def faults(example: Example, answer: Answer, folder: Path) -> list[str]:
    """What is wrong with an answer."""
    wrong = []
    lines = answer.error.splitlines()
    told = [line for line in lines if line.startswith("safemeta: ")]
    if "Traceback" in answer.error or "Unexpected " in answer.error.replace("Unexpected '", ""):
        wrong.append("an unforeseen error")
    if answer.code not in (None, *CODES):
        wrong.append(f"exit code {answer.code}")
    if answer.code in (None, 0) and told:
        wrong.append("a complaint, and exit code 0")
    if answer.code in CODES[1:]:
        if len(told) != 1 or lines[-1] != told[0]:
            wrong.append("not one message at the end")
        elif len(told[0]) > 1200 or not re.search(r"([.!?)]|: safemeta .+)$", told[0]):
            wrong.append("not a sentence")
        elif not _names(told[0], example):
            wrong.append("names neither an option nor a file")
        if answer.out:
            wrong.append("something on standard output")
    outputs = [Path(os.path.normpath(folder / name)) for name in ("runs", "reproductions", "sweeps", *example.outputs)]
    made = {parent for path in outputs for parent in path.parents if parent.is_relative_to(folder.parent)}
    made |= {path.parent / f".{path.name}.{os.getpid()}.tmp" for path in outputs}  # until it is whole
    inside = [path for path in answer.written if Path(path) in made or any(map(Path(path).is_relative_to, outputs))]
    outside = sorted(answer.written.difference(inside))
    wrong += [f"wrote {path}" for path in outside]
    if answer.seconds > SECONDS:
        wrong.append(f"took {answer.seconds:.0f} s")
    return wrong


def _names(message: str, example: Example) -> bool:
    said = message.lower()
    if example.damage is not None:
        return example.damage.file.lower() in said or f"'{SLOT}" in said
    if any(form in said for word in example.arguments for form in _quoted(word)):
        return True
    for word in example.words:
        plain = " ".join(word.lower().split())
        shown = plain.encode("utf-8", "backslashreplace").decode()  # as the terminal shows it
        forms = (shown, shown.replace("-", " "), shown.replace("-", "_"))
        if f"'{shown}" in said or any(form in said for form in forms if len(form) > 1):
            return True
    return any(form in said for form in ("--task ", "none was given", "were given", "at least one run", "'.'", "''"))


def _quoted(word: str) -> tuple[str, str]:
    plain = " ".join(f"'{word}'".lower().split())  # as messages show it, on one line
    return plain, f"option {plain[1:-1]};"


class _Idle:
    """An algorithm that only begins: its state is two numbers once the true one could be traced."""

    real: Any

    def __init__(self, config: Any) -> None:
        self._algorithm = self.real(config)

    def init(self, key: Any, cmdp: Any) -> Any:
        eqx.filter_eval_shape(self._algorithm.init, key, cmdp)
        return {"weight": jnp.zeros(2)}

    def steps_per_iteration(self, cmdp: Any) -> int:
        return self._algorithm.steps_per_iteration(cmdp)

    def policy(self, state: Any) -> Any:
        return _policy()

    def iterate(self, *_: Any) -> Any:
        raise Begun

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._algorithm, name)
        return _begin if name == "adapt" else found


def _begin(*_: Any, **__: Any) -> Any:
    raise Begun


@functools.cache
def _policy() -> Any:
    from safemeta.nets import GaussianPolicy

    return GaussianPolicy.create(3, 2, jax.random.key(0), hidden=(4,))


@contextlib.contextmanager
def _without_work() -> Iterator[None]:
    """Commands stop where they would train, simulate or film."""
    from safemeta.algorithms import registry as algorithms
    from safemeta.experiment import certified_episodes, compilation
    from safemeta.papers import reproduction
    from safemeta.sim import FunctionalWorld
    from safemeta.sim.batched import BatchedWorld
    from safemeta.tasks import registry as tasks

    undo = contextlib.ExitStack()

    def put(owner: Any, name: str, value: Any) -> None:
        undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    load = algorithms.Entry.load

    @functools.cache
    def idle(entry: Any) -> Any:
        from dataclasses import replace

        module = load(entry)
        return replace(module, algorithm=type("Idle", (_Idle,), {"real": module.algorithm}))

    def sampling(real: Any) -> Any:
        def sample(self: Any, key: Any, count: int, split: str = "train") -> Any:
            assert count <= 10**9, "nobody has so many tasks"
            shapes = eqx.filter_eval_shape(lambda key: real(self, key, count, split), key)
            if sum(leaf.size for leaf in jax.tree.leaves(shapes)) > 10**7:
                raise Begun  # memory is the machine's own matter
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        return sample

    make, made = tasks.make, {}

    def make_once(name: str, **given: Any) -> Any:
        key = repr((name, sorted(given.items(), key=str)))
        if key not in made:
            made[key] = make(name, **given)
        return made[key]

    with undo:
        put(algorithms.Entry, "load", lambda entry: idle(entry))
        put(tasks, "make", make_once)
        for world in (FunctionalWorld, BatchedWorld):
            put(world, "sample", sampling(world.sample))
            for name in ("collect", "measure", "interact"):
                put(world, name, _begin)
        put(certified_episodes, "visit", _begin)
        put(importlib.import_module("safemeta.experiment.video"), "record", _begin)
        put(reproduction, "_carry_out", _begin)
        put(importlib.import_module("safemeta.experiment.sweep"), "session", _begin)
        put(compilation, "enable_cache", lambda: None)
        yield


_watching: set[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is written while somebody wants to know; an audit hook cannot be taken back."""
    if _watching is None:
        return
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & WRITING
    elif event in CHANGES:
        path = arguments[1 if event == "os.rename" else 0]
        writes = (
            event in ("os.rename", "os.truncate", "os.link", "os.symlink") or arguments[-1] == -1
        )  # no folder given
    else:
        return
    if event == "os.mkdir" and os.path.isdir(path):
        return  # it fails
    if writes and isinstance(path, (str, bytes, os.PathLike)):
        _watching.add(os.path.normpath(os.path.abspath(os.fsdecode(path))))


@functools.cache
def _install_watch() -> None:
    sys.addaudithook(_watch)


class Sandbox:
    """A folder with sound runs and other things, in which commands are tried out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve() / "inside"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Sandbox":
        self.folder.mkdir(parents=True)
        _install_watch()
        self._stack.enter_context(_without_work())
        self._stack.enter_context(contextlib.chdir(self.folder))
        for name, (algorithm, task) in RUNS.items():
            make_run(Path(name), algorithm, task)
        (self.folder / "file").write_text("a file")
        (self.folder / "full").mkdir()
        (self.folder / "full" / "precious.txt").write_text("precious")
        self.files = {
            name: {str(path.relative_to(name)): path.read_bytes() for path in Path(name).rglob("*") if path.is_file()}
            for name in RUNS
        }
        self._sound = _contents(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answer(self, example: Example) -> Answer:
        """What a command does, here; the folder is as it was for the next one."""
        global _watching
        from safemeta.cli import main

        if example.damage is not None:
            self._spoil(example.damage)
        out, error = (io.TextIOWrapper(io.BytesIO(), "utf-8", kind) for kind in ("strict", "backslashreplace"))
        began, _watching = time.process_time(), set()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
                warnings.simplefilter("error")
                code = main(list(example.arguments))
        except Begun:
            code = None
        finally:
            written, _watching = _watching, None
        texts = []
        for stream in (out, error):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode(errors="replace"))  # type: ignore[attr-defined]
        elsewhere = (*CACHES, tempfile.gettempdir() + os.sep, os.devnull)
        own = str(self.folder.parent)
        seen = {
            path
            for path in written
            if (path.startswith(own) or not path.startswith(elsewhere)) and "__pycache__" not in path
        }
        self._restore()
        return Answer(code, *texts, written=seen, seconds=time.process_time() - began)

    def _spoil(self, damage: Damage) -> None:
        shutil.copytree(damage.run, SLOT)
        path = Path(damage.file) if damage.file in (GIVEN, SWEEP) else Path(SLOT) / damage.file
        if damage.content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(damage.content)

    def _restore(self) -> None:
        now = _contents(self.folder)
        for path in sorted(now.keys() - self._sound.keys(), reverse=True):
            file = self.folder / path
            file.rmdir() if file.is_dir() else file.unlink()
        for path, content in sorted(self._sound.items()):
            if path not in now or now[path] != content:
                file = self.folder / path
                if content is None:
                    file.mkdir(exist_ok=True)
                else:
                    file.write_bytes(content)


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def make_run(folder: Path, algorithm: str, task: str) -> None:
    """A run of three iterations as training, adapt, evaluate and certify would have left it."""
    from safemeta.experiment.checkpoint import Checkpoints
    from safemeta.experiment.run import create_folder
    from safemeta.experiment.train import resolve

    create_folder(resolve({"algorithm": algorithm, "task": task, "budget": "smoke"}, 9), folder)
    Checkpoints(folder / "checkpoints").save({"weight": jnp.zeros(2)}, 3, best_score=None)
    metrics = [
        {"iteration": i, "environment_steps": 10 * i, "return": 1.5 * i, "largest_cost": 12.0 - i, "limit": 10.0}
        for i in (1, 2, 3)
    ]
    clock = [{"iteration": i, "seconds": 0.5, "time": 1.0 + i} for i in (1, 2, 3)]
    for name, lines in (("metrics.jsonl", metrics), ("timing.jsonl", clock)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    interval = {"mean": 3.0, "low": 2.0, "high": 4.0}
    cost = {
        "name": "crash", "cost": interval, "limit": 10.0, "task": 0, "step": 1, "policies": 4, "above_limit": 1,
        "significantly_above": 0,
    }  # fmt: skip
    shared = {"tasks": 2, "episodes": 5, "split": "test", "seed": 0, "limit_on": "discounted", "largest_cost": [cost]}
    states = {"visited": 12, "feasible_share": 0.5, "violation_share": 0.25}
    contents: dict[str, Any] = {
        "adaptation.json": {**shared, "steps": 1, "return_by_step": [interval, interval]},
        "evaluation.json": {**shared, "episode_return": interval},
        "certificate.json": {"states": states, "smallest_distance": 0.25, "safe_distance": 0.5},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    buffer = io.BytesIO()
    np.savez(buffer, returns=np.ones((2, 2)), costs=np.ones((2, 2, 1)), limits=np.ones((2, 1)))
    (folder / "adaptation.npz").write_bytes(buffer.getvalue())
