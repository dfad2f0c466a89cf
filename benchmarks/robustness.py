"""Is anything lost, and is every failure one sentence? `python benchmarks/robustness.py [--only PART] [--json]`.

An hour or so in all. The parts:

- kills: training processes are killed (SIGKILL) at random moments and resumed, until they end; configuration, metrics
  and checkpoints are then compared byte for byte with those of an unbroken run.
- sweep: workers of a sweep, and the sweep itself, are killed likewise (a fifth of all kills; `_sweep_kills.py`).
- checkpoints: damaged files (cut off, bits flipped, another version, another file altogether, a pickle, hostile JSON,
  zip bombs) are loaded; each must be refused in one sentence, within a second, with nothing executed.
- commands: made-up command lines and damaged files end in a sentence or in work (`_fuzzed_commands.py`).
- disk: at every point of training and of writing results the disk is full (`_full_disk.py`).
- environments: a user's environment raises, hangs, returns what cannot be used (`_environments.py`).
"""

import argparse
import gzip
import importlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _table import Row, print_json

SMALL: dict[str, list[str]] = {
    "trpo": ["--task", "point-circle", "--tasks", "2", "--episodes", "2", "--hidden", "8", "--horizon", "200"],
    "dual": [
        "--task", "point-circle", "--horizon", "300", "--tasks", "2", "--corner-tasks", "1", "--episodes", "2",
        "--hidden", "8", "--fisher-states", "40", "--critic-steps", "2", "--adapt-critic-steps", "2",
        "--minibatch", "20",
    ],
    "fac-sis": [
        "--task", "collision-avoidance", "--tasks", "2", "--hidden", "8", "--capacity", "400",
        "--batch", "8", "--warm-up", "8",
    ],
    "metal": [
        "--task", "realworld-cartpole", "--horizon", "100", "--tasks", "2", "--hidden", "8", "8",
        "--critic-hidden", "8", "8", "--capacity", "500", "--batch", "8", "--warm-up", "8", "--atoms", "7",
    ],
}  # fmt: skip
PARTS = ("checkpoints", "commands", "disk", "environments", "sweep", "kills")
ITERATIONS = 60
PATIENCE = 600  # seconds for one process
COMPARED = ("config.json", "metrics.jsonl")


def command(*arguments: str) -> list[str]:
    """Of a training process."""
    return [sys.executable, "-m", "safemeta", "train", *arguments, "--no-adapt", "--quiet"]


def iterations(folder: Path) -> int:
    """How many a run has logged."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(algorithm: str, kills: int, scratch: Path, draw: random.Random) -> tuple[int, bool]:
    """How often a run was really killed, and whether it ended as the unbroken one did."""
    whole, broken = scratch / f"{algorithm}-whole", scratch / f"{algorithm}-broken"
    start = [algorithm, *SMALL[algorithm], "--iterations", str(ITERATIONS), "--checkpoint-every", "3", "--out"]
    began = time.monotonic()
    subprocess.run(command(*start, str(whole)), check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
    typical, done = time.monotonic() - began, 0
    arguments = [*start, str(broken)]
    while True:
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done >= kills:
            if process.wait(PATIENCE) != 0:
                return done, False
            break
        # Any moment will do: while it starts, within an iteration, while a checkpoint is written.
        goal, limit = iterations(broken) + draw.randint(0, 4), time.monotonic() + draw.uniform(0.3, 1.5) * typical
        while iterations(broken) < goal and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        process.wait()
        if (broken / "config.json").exists():
            arguments = ["--resume", str(broken)]
        if iterations(broken) >= ITERATIONS:  # it was too quick: the rest of the kills is another run's
            break
    subprocess.run(command("--resume", str(broken)), check=False, timeout=PATIENCE, stdout=subprocess.DEVNULL)
    names = [*COMPARED, *(f"checkpoints/{path.name}" for path in (whole / "checkpoints").iterdir())]
    return done, all(_content(whole / name) == _content(broken / name) for name in names)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def all_kills(kills: int, seed: int) -> list[Row]:
    """Rows of how many kills each algorithm survived, beside how many there were."""
    draw, rows = random.Random(seed), []
    for algorithm in SMALL:
        left, survived, made = kills // len(SMALL), 0, 0
        while left > 0:
            with tempfile.TemporaryDirectory() as scratch:
                done, same = killed(algorithm, left, Path(scratch), draw)
            made, survived, left = made + done, survived + done * same, left - max(done, 1)
            print(f"{algorithm}: {survived} of {made} kills survived", file=sys.stderr)
        rows.append(
            Row(
                f"kills, {algorithm}, {ITERATIONS} iterations",
                survived,
                "survived",
                "kills",
                made,
                survived / max(made, 1),
            )
        )
    return rows


class Trap:
    """What a hostile pickle would do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def damages(content: bytes, draw: random.Random) -> Callable[[], tuple[str, bytes]]:
    """A source of damaged files."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    own = json.loads(header["__metadata__"]["safemeta"])

    def rewritten(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
        whole, inner = json.loads(content[8 : 8 + size]), json.loads(json.dumps(own))
        change(whole, inner)
        whole["__metadata__"]["safemeta"] = json.dumps(inner)
        text = json.dumps(whole).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    def flipped() -> bytes:
        changed = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)

    def hostile() -> bytes:
        unending = b'{"__metadata__": ' * 50_000
        inner = b'{"__metadata__": {"safemeta": "{"}}'
        text = draw.choice([b"[" * 100_000, unending, inner, b"{" + b"9" * 5_000])
        return len(text).to_bytes(8, "little") + text

    def bomb() -> bytes:
        path = Path("bomb.zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../checkpoint", bytes(10_000_000))
        return draw.choice([path.read_bytes(), gzip.compress(bytes(50_000_000))])

    def lying() -> bytes:
        leaf = draw.choice([name for name in header if name != "__metadata__"])
        offsets = draw.choice([[0, 2**62], [-4, 8], [0, 0], [8, 4]])
        return rewritten(lambda whole, inner: whole[leaf].update(data_offsets=offsets))

    kinds: dict[str, Callable[[], bytes]] = {
        "cut off": lambda: content[: draw.randrange(len(content))],
        "bits flipped": flipped,
        "bytes added": lambda: content + draw.randbytes(draw.randint(1, 100)),
        "noise": lambda: draw.randbytes(draw.randint(0, 5000)),
        "another version": lambda: rewritten(lambda whole, inner: inner.update(version=draw.choice([0, 2, "1", None]))),
        "another format": lambda: rewritten(lambda whole, inner: inner.update(format="model")),
        "names changed": lambda: rewritten(lambda whole, inner: inner["leaves"][0].update(name="../../etc/passwd")),
        "leaves left out": lambda: rewritten(lambda whole, inner: inner["leaves"].pop()),
        "a pickle": lambda: pickle.dumps(Trap()),
        "hostile JSON": hostile,
        "a bomb": bomb,
        "lying offsets": lying,
        "a huge header": lambda: (2**60).to_bytes(8, "little") + content[8:],
    }
    names = list(kinds)
    count = iter(range(10**9))

    def make() -> tuple[str, bytes]:
        name = names[next(count) % len(names)]
        return name, kinds[name]()

    return make


def all_checkpoints(number: int, seed: int) -> list[Row]:
    """Rows of how many damaged checkpoints were refused as they should be, by kind."""
    import jax

    from safemeta.algorithms import registry
    from safemeta.experiment.checkpoint import restore, save
    from safemeta.experiment.errors import UserError
    from safemeta.tasks import make

    entry = registry.load("trpo")
    algorithm = entry.algorithm(entry.config(hidden=(8,)))
    state = algorithm.init(jax.random.key(0), make("point-circle").cmdp)
    found: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        path = Path("checkpoint.safetensors")
        save(path, state, iteration=3)
        content = path.read_bytes()
        damaged = damages(content, random.Random(seed))
        for _ in range(number):
            kind, data = damaged()
            path.write_bytes(data)
            start, refused = time.perf_counter(), data == content
            try:
                restore(path, state)
            except UserError as problem:
                refused = problem.exit_code == 1 and "\n" not in str(problem)
            except Exception as problem:
                print(f"{kind}: {type(problem).__name__}: {problem}", file=sys.stderr)
            quick = time.perf_counter() - start < 1
            if Path("executed").exists():
                raise SystemExit(f"{kind}: something was executed")
            found.setdefault(kind, []).append(refused and quick)
        os.chdir("/")
    return [
        Row(f"damaged checkpoints: {kind}", sum(good), "refused", "files", len(good), sum(good) / len(good))
        for kind, good in found.items()
    ]


def rows_of(part: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one part; what it needs is imported only now."""
    of_sweep = options.kills if options.only == "sweep" else options.kills // 5
    if part == "checkpoints":
        return all_checkpoints(options.damages, options.seed)
    if part == "commands":
        return importlib.import_module("_fuzzed_commands").all_commands(options.commands, options.seed)
    if part == "disk":
        return importlib.import_module("_full_disk").all_disks()
    if part == "environments":
        return importlib.import_module("_environments").all_environments()
    if part == "sweep":
        return importlib.import_module("_sweep_kills").all_sweep_kills(of_sweep, options.seed)
    return all_kills(options.kills - of_sweep * (options.only is None), options.seed)


def main() -> int:
    """The command line; returns the exit code: 1 if anything was lost."""
    parser = argparse.ArgumentParser(description="Is anything lost, and is every failure one sentence?")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--kills", type=int, default=100, help="over all algorithms and the sweep")
    parser.add_argument("--damages", type=int, default=500, help="damaged checkpoints")
    parser.add_argument("--commands", type=int, default=1000, help="made-up command lines and damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if min(options.kills, options.damages, options.commands) < 1:
        parser.error("--kills, --damages and --commands must be at least 1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    table: list[Row] = []
    for part in PARTS if options.only is None else (options.only,):
        began = time.monotonic()
        table += rows_of(part, options)
        table.append(Row(f"time of {part}", time.monotonic() - began, "s"))
    if options.json:
        print_json("robustness", table)
    else:
        for row in table:
            of = "" if row.peer_value is None else f" of {row.peer_value:.0f}"
            print(f"{row.case:<50} {row.value:>6.0f}{of} {row.unit}")
    return 0 if all(row.ratio in (None, 1) for row in table) else 1


if __name__ == "__main__":
    sys.exit(main())
