"""A disk that is full at one point of a run's life: is the last checkpoint intact, and does the run go on?"""

import builtins
import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _table import Row

SIZES = (8, 20, 32, 48, 64, 96, 128)  # kB
SENTENCE = "no space is left on the disk"
TRPO = ["trpo", "--task", "point-circle", "--horizon", "20", "--tasks", "2", "--episodes", "2", "--hidden", "4"]


class FullDisk:
    """While entered, change number `at` (from 1) within `folder` fails with ENOSPC, and with `lasting` all later ones.

    A change is a file or folder that is made, a write, an fsync, a rename, a truncation. Of a write that fails half of
    the bytes arrive, as on true disks. `changes` counts them; with `at` 0 nothing fails.
    """

    def __init__(self, folder: Path, at: int = 0, lasting: bool = True) -> None:
        self.folder, self.at, self.lasting = folder.absolute(), at, lasting
        self.changes, self.failed = 0, ""
        self.first: Callable[[], None] = lambda: None  # called before the first failure
        self._patches = contextlib.ExitStack()

    def full(self, change: str) -> bool:
        """Count a change; whether it fails."""
        self.changes += 1
        if self.changes == self.at:
            self.failed = change
            self.first()
        return self.at > 0 and (self.changes >= self.at if self.lasting else self.changes == self.at)

    def check(self, change: str) -> None:
        """Count a change; raise if it fails."""
        if self.full(change):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def within(self, path: Any) -> bool:
        """Whether a path, or an open file's number, lies in the folder."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        return Path(os.fsdecode(path)).absolute().is_relative_to(self.folder)

    def __enter__(self) -> "FullDisk":
        opened = builtins.open

        def open_file(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+") or not self.within(file):
                return opened(file, mode, buffering, *rest, **named)
            if not Path(file).exists():
                self.check(f"new {Path(file).name}")
            binary = io.BufferedWriter(_File(self, file, mode.replace("b", "").replace("t", "")))
            if "b" in mode:
                return binary
            text: Any = io.TextIOWrapper(binary, *rest, line_buffering=buffering == 1, **named)
            text.mode = mode  # as `open` does
            return text

        def guarded(name: str, function: Any) -> Any:
            def call(path: Any, *rest: Any, **named: Any) -> Any:
                if self.within(path):
                    self.check(f"{name} {path}")
                return function(path, *rest, **named)

            return call

        def os_open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT and self.within(path) and not Path(path).exists():
                self.check(f"new {Path(path).name}")
            return real_open(path, flags, *rest, **named)

        real_open = os.open
        self._set(builtins, "open", open_file)
        self._set(io, "open", open_file)
        self._set(os, "open", os_open)
        for name in ("fsync", "replace", "mkdir", "truncate"):
            self._set(os, name, guarded(name, getattr(os, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _set(self, module: Any, name: str, value: Any) -> None:
        self._patches.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


class _File(io.FileIO):
    """A file on that disk."""

    def __init__(self, disk: FullDisk, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self._disk, self._over = disk, False

    def write(self, data: Any) -> int:
        if self._over or self._disk.full(f"write {Path(self.name).name}"):
            half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
            if len(half) and not self._over:
                self._over = True  # the rest fails
                return super().write(half)
            self._over = self._disk.lasting
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def called(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command, in this process."""
    from safemeta.cli import main

    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    return code, error.getvalue()


def _contents(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def _kept(folder: Path) -> dict[str, bytes]:
    """What must be equal in two runs that did the same: of checkpoints the newest and the best."""
    newest = max(path.name for path in (folder / "checkpoints").glob("iteration-*"))
    names = ("config.json", "metrics.jsonl", f"checkpoints/{newest}", "checkpoints/best.safetensors")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def training(run: list[str], scratch: Path, stride: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Every point of training at which the disk can be full, for good and for a moment, and what was wrong afterwards.

    With a `stride` every so many, for good and for a moment by turns.
    After the failure the checkpoints of before must be there, byte for byte, unless a newer one is; the run goes on, or
    begins again where it had not begun, and must end as the unbroken one has.
    """
    from safemeta.experiment.checkpoint import Checkpoints, load

    folder = scratch / "run"
    command = ["train", *run, "--checkpoint-every", "2", "--no-adapt", "--quiet", "--out", str(folder)]
    whole, counting = [*command[:-1], str(scratch / "whole")], FullDisk(scratch / "whole")
    with counting:
        code, said = called(*whole)
    if code or said:
        raise AssertionError(said)
    expected = _kept(scratch / "whole")
    for at in range(1, counting.changes + 1, stride):
        for lasting in (True, False) if stride == 1 else (at // stride % 2 == 0,):
            shutil.rmtree(folder, ignore_errors=True)
            before: dict[str, bytes] = {}
            disk = FullDisk(folder, at, lasting)
            disk.first = lambda before=before: before.update(_contents(folder, "checkpoints/*.safetensors"))
            with disk:
                code, said = called(*command)
            wrong = _misreported(code, said) if code else []  # an fsync of a folder may fail unseen
            checkpoints = Checkpoints(folder / "checkpoints")
            for iteration in checkpoints.iterations():
                load(checkpoints.path(iteration))  # raises where it is damaged
            newest = max(before, key=lambda name: ("iteration" in name, name), default=None)
            now = _contents(folder, "checkpoints/*.safetensors")
            if newest and now.get(newest) != before[newest] and max(now, default="") <= newest:
                wrong.append(f"{newest} was lost")
            wrong += ["config.json was lost"] * bool(before and not (folder / "config.json").exists())
            wrong += _afterwards(command, folder, expected)
            yield f"change {at} ({disk.failed}), {'for good' if lasting else 'for a moment'}", wrong


def _afterwards(command: list[str], folder: Path, expected: dict[str, bytes]) -> list[str]:
    """What is wrong with how a run goes on once there is space, or begins again where it had not begun."""
    begun = (folder / "config.json").exists()
    code, said = called(*["train", "--quiet", "--no-adapt", "--resume", str(folder)] if begun else command)
    wrong = [f"it did not go on: {said}"] if code else ["it ended otherwise"] * (_kept(folder) != expected)
    return wrong + [f"{name} was left over" for name in _contents(folder, "**/.*.tmp")]


def results(command: list[str], folder: Path, scratch: Path) -> Iterator[tuple[str, list[str]]]:
    """Every point of a command on the run in `folder`, and what was wrong: each file must be the old one, or whole."""
    copy = scratch / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    arguments, counting = [command[0], str(copy), *command[1:]], FullDisk(copy)
    with counting:
        code, said = called(*arguments)
    if code:
        raise AssertionError(said)
    before = _contents(copy)
    for at in range(1, counting.changes + 1):
        for lasting in (True, False):
            with FullDisk(copy, at, lasting) as disk:
                code, said = called(*arguments)
            wrong = _misreported(code, said) if code else []  # an fsync of a folder may fail unseen
            after = _contents(copy)
            wrong += [f"{name} was lost" for name in before if name not in after]
            wrong += [
                f"{name} is half" for name in after if after[name] != before.get(name) and not _is_whole(copy / name)
            ]
            yield f"change {at} ({disk.failed}), {'for good' if lasting else 'for a moment'}", wrong


def _misreported(code: int, said: str) -> list[str]:
    good = code == 1 and said.count("\n") == 1 and SENTENCE in said
    return [] if good else [f"exit code {code} and: {said!r}"]


def _is_whole(path: Path) -> bool:
    """Whether nothing is missing at the end of a file that a command writes."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return bool(json.loads(content))
    ends = {".png": b"IEND\xaeB`\x82", ".html": b"</html>", ".npz": b"PK\x05\x06"}
    return path.suffix in ends and ends[path.suffix] in content[-200:]


def tiny_disk(run: list[str], kilobytes: int, expected: dict[str, bytes]) -> list[str] | None:
    """What is wrong with a run on a true file system (tmpfs) of that size, enlarged later; None if there is none."""

    def mount(options: str, folder: str) -> bool:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        )
        return done.returncode == 0

    with tempfile.TemporaryDirectory() as scratch:
        if shutil.which("mount") is None or not mount(f"size={kilobytes}k", scratch):
            return None
        try:
            folder = Path(scratch) / "run"
            command = ["train", *run, "--checkpoint-every", "2", "--no-adapt", "--quiet", "--out", str(folder)]
            code, said = called(*command)
            saved = len(list(folder.glob("checkpoints/iteration-*")))
            print(f"tmpfs of {kilobytes} kB: exit code {code}, {saved} checkpoints", file=sys.stderr)
            wrong = _misreported(code, said) if code else []
            mount("remount,size=100m", scratch)
            return wrong + _afterwards(command, folder, expected)
        finally:
            subprocess.run(["umount", scratch], check=True)


def all_disks() -> list[Row]:
    """Rows of how many full disks left everything intact."""
    rows = []
    run = [*TRPO, "--iterations", "6"]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        cases = [("train", training(run, scratch))]
        products = ["evaluate --quiet --tasks 2 --episodes 2", "plot", "export", "report"]
        cases += [(line.split()[0], results(line.split(), scratch / "whole", scratch)) for line in products]
        for case, points in cases:
            good = tried = 0
            for point, wrong in points:
                good, tried = good + (not wrong), tried + 1
                for words in wrong:
                    print(f"{case}, {point}: {words}", file=sys.stderr)
            rows.append(Row(f"full disk: {case}", good, "intact", "points", tried, good / tried))
        tiny = [wrong for size in SIZES if (wrong := tiny_disk(run, size, _kept(scratch / "whole"))) is not None]
    if tiny:
        good = sum(not wrong for wrong in tiny)
        print(*(words for wrong in tiny for words in wrong), sep="\n", file=sys.stderr)
        rows.append(Row("full disk: train on a tiny tmpfs", good, "intact", "sizes", len(tiny), good / len(tiny)))
    return rows
